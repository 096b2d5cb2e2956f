//! What was deleted can be had back for a while, and stands in nobody's way.

use bytes::Bytes;
use cyxcloud_proto::node::delete_chunk_response::Outcome as Deleted;
use cyxcloud_proto::node::restore_chunk_response::Outcome;
use cyxcloud_proto::node::{Generation, HasChunkRequest};
use tonic::Code;

use crate::cluster::{Gateway, Node, config, id, noise, rot};

#[tokio::test]
async fn a_deleted_chunk_is_restored_after_a_restart_in_its_generation() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    let bytes = noise(1, 100_000);
    let stored = node.store(&bytes).await.expect("stored");
    let generation = stored.receipt.clone().and_then(|receipt| receipt.generation).expect("complete");
    assert_eq!(node.delete(&stored).await, Deleted::Deleted);
    assert_eq!(node.delete(&stored).await, Deleted::Absent);
    assert_eq!(node.get(id(&bytes)).await.expect_err("not held").code(), Code::NotFound);
    node.stop().await.expect("a clean end");

    let node = Node::alone(dir.path()).await;
    let has = async || {
        let request = HasChunkRequest { chunk_id: id(&bytes), token: Bytes::new() };
        node.chunks().await.has_chunk(request).await.expect("answered").into_inner()
    };
    assert!(!has().await.held);
    let metrics = node.http("/metrics").await;
    for line in ["cyxcloud_node_trash_bytes 100000", "cyxcloud_node_trash_chunks 1", "cyxcloud_node_chunks 0"]
    {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    let other = Generation { counter: generation.counter + 1, ..generation.clone() };
    let answer = node.restore(id(&bytes), Some(other)).await.expect("answered");
    assert_eq!((answer.outcome(), answer.held), (Outcome::Absent, None));
    let answer = node.restore(id(&bytes), Some(generation.clone())).await.expect("answered");
    assert_eq!((answer.outcome(), answer.held), (Outcome::Restored, Some(generation.clone())));
    assert_eq!(node.get(id(&bytes)).await.expect("held"), bytes);
    assert_eq!(has().await.generation, Some(generation.clone()));
    let answer = node.restore(id(&bytes), None).await.expect("answered");
    assert_eq!((answer.outcome(), answer.held), (Outcome::Held, Some(generation)));
    let answer = node.restore(id(b"never stored"), None).await.expect("answered");
    assert_eq!((answer.outcome(), answer.held), (Outcome::Absent, None));

    let bad = node.restore(Bytes::from_static(b"short"), None).await.expect_err("refused");
    assert_eq!(bad.code(), Code::InvalidArgument);
    let bad = node.restore(id(&bytes), Some(Generation::default())).await.expect_err("no incarnation");
    assert_eq!(bad.code(), Code::InvalidArgument);
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn what_rotted_in_the_trash_is_data_loss() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    let bytes = noise(1, 50_000);
    let stored = node.store(&bytes).await.expect("stored");
    assert_eq!(node.delete(&stored).await, Deleted::Deleted);
    node.stop().await.expect("a clean end");
    rot(dir.path(), &id(&bytes));
    let node = Node::alone(dir.path()).await;
    assert_eq!(node.restore(id(&bytes), None).await.expect_err("corrupt").code(), Code::DataLoss);
    assert_eq!(node.get(id(&bytes)).await.expect_err("not held").code(), Code::NotFound);
    node.store(&bytes).await.expect("stored");
    assert_eq!(node.get(id(&bytes)).await.expect("healed"), bytes);
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn trash_expires_and_without_a_period_there_is_none() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let with_trash = |secs| {
        let mut told = config(dir.path(), "http://127.0.0.1:9");
        told.trash_secs = Some(secs);
        told
    };
    let node = Node::start(with_trash(1)).await;
    let stored = node.store(&noise(1, 1_000)).await.expect("stored");
    assert_eq!(node.delete(&stored).await, Deleted::Deleted);
    assert_eq!(
        node.restore(id(&noise(1, 1_000)), None).await.expect("answered").outcome(),
        Outcome::Restored
    );
    assert_eq!(node.delete(&stored).await, Deleted::Deleted);
    node.eventually("cyxcloud_node_trash_purged_total 1").await;
    assert_eq!(node.restore(id(&noise(1, 1_000)), None).await.expect("answered").outcome(), Outcome::Absent);
    node.eventually("cyxcloud_node_storage_used_bytes 0").await;
    node.stop().await.expect("a clean end");

    let node = Node::start(with_trash(3_600)).await;
    let stored = node.store(&noise(2, 1_000)).await.expect("stored");
    assert_eq!(node.delete(&stored).await, Deleted::Deleted);
    node.stop().await.expect("a clean end");
    let node = Node::start(with_trash(0)).await;
    node.eventually("cyxcloud_node_trash_purged_total 1").await;
    let stored = node.store(&noise(3, 1_000)).await.expect("stored");
    assert_eq!(node.delete(&stored).await, Deleted::Deleted);
    node.eventually("cyxcloud_node_trash_chunks 0").await;
    assert_eq!(node.restore(id(&noise(3, 1_000)), None).await.expect("answered").outcome(), Outcome::Absent);
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_node_full_of_trash_is_empty_to_its_gateway_and_takes_stores() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (gateway, address) = Gateway::start().await;
    let node = Node::start(config(dir.path(), &address)).await;
    for seed in 0..16 {
        let stored = node.store(&noise(seed, 4 << 20)).await.expect("64 MiB are offered");
        assert_eq!(node.delete(&stored).await, Deleted::Deleted);
    }
    gateway
        .eventually("all of it is used, and available", |heard| {
            let beat = heard.heartbeats.last();
            beat.is_some_and(|beat| beat.storage_used == 64 << 20 && beat.storage_available == 64 << 20)
        })
        .await;
    for seed in 100..116 {
        node.store(&noise(seed, 4 << 20)).await.expect("trash makes room");
    }
    let error = node.store(&noise(200, 1)).await.expect_err("what is held does not");
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(
        node.restore(id(&noise(15, 4 << 20)), None).await.expect("answered").outcome(),
        Outcome::Absent
    );
    node.stop().await.expect("a clean end");
}
