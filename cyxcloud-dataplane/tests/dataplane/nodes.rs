//! Calls to single nodes.

use cyxcloud_core::{ByteCount, ChunkId, Generation, NodeId};
use std::sync::atomic::Ordering;
use std::time::Duration;

use cyxcloud_dataplane::{Audited, Config, Deleted, NodeError};
use futures::TryStreamExt;

use crate::cluster::{Cluster, PATIENCE, quick, random};
use crate::fake::Fault;

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_stored_found_listed_and_deleted() {
    let cluster = Cluster::start(2).await;
    let (pool, node) = (cluster.plane.nodes(), cluster.nodes[0].id);
    let mut chunks = Vec::new();
    for seed in 0..10 {
        let data = random(100_000, seed);
        let chunk = ChunkId::of(&data);
        let receipt = pool.store_chunk(node, chunk, data.clone(), vec![7; 9].into()).await.expect("store");
        let length = ByteCount::bytes(100_000);
        assert_eq!(pool.get_chunk(node, chunk, length).await.expect("get"), data);
        assert_eq!(pool.has_chunk(node, chunk).await.expect("has"), Some((length, receipt.generation)));
        let slices = pool.get_slices(node, chunk, length, &[5..6, 70_000..100_000]).await.expect("slices");
        assert!(slices[0] == data[5..6] && slices[1] == data[70_000..]);
        chunks.push((chunk, receipt.generation));
    }
    chunks.sort_by_key(|(chunk, _)| *chunk);
    let list = pool.list_chunks(node, None, 0, true).await.expect("list");
    let listed: Vec<_> = list.try_collect().await.expect("list");
    assert_eq!(listed.iter().map(|entry| (entry.chunk, entry.generation)).collect::<Vec<_>>(), chunks);
    assert_eq!(listed[0].descriptors, [&[7; 9][..]]);
    let list = pool.list_chunks(node, Some(chunks[2].0), 4, false).await.expect("list");
    let listed: Vec<_> = list.try_collect().await.expect("list");
    assert_eq!(
        listed.iter().map(|entry| entry.chunk).collect::<Vec<_>>(),
        chunks[3..7].iter().map(|c| c.0).collect::<Vec<_>>()
    );

    let (chunk, generation) = chunks[0];
    let older = Generation { counter: generation.counter.saturating_sub(1).max(1), ..generation };
    let other = Generation { incarnation: uuid::Uuid::from_bytes([9; 16]), ..generation };
    assert_eq!(pool.delete_chunk(node, chunk, other).await.expect("delete"), Deleted::KeptNewer);
    if older.counter < generation.counter {
        assert_eq!(pool.delete_chunk(node, chunk, older).await.expect("delete"), Deleted::KeptNewer);
    }
    assert_eq!(pool.delete_chunk(node, chunk, generation).await.expect("delete"), Deleted::Gone);
    assert_eq!(pool.delete_chunk(node, chunk, generation).await.expect("delete"), Deleted::Absent);
    assert_eq!(pool.has_chunk(node, chunk).await.expect("has"), None);
    let missing = pool.get_chunk(node, chunk, ByteCount::bytes(100_000)).await;
    assert!(matches!(missing, Err(NodeError::Missing)), "{missing:?}");
}

/// Whoever reads an inventory comes to an end of it, whatever the node does.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_does_not_end_is_given_up() {
    let config = Config { read_timeout: Duration::from_millis(400), ..quick() };
    let cluster = Cluster::with(1, config).await;
    let (pool, node) = (cluster.plane.nodes(), cluster.nodes[0].id);
    for seed in 0..10 {
        let data = random(100, seed);
        pool.store_chunk(node, ChunkId::of(&data), data.clone(), Default::default()).await.expect("store");
    }
    let list = async |after| -> Result<Vec<_>, NodeError> {
        pool.list_chunks(node, after, 0, false).await?.try_collect().await
    };
    let all = list(None).await.expect("a good list");
    for fault in [Fault::SilentList, Fault::EndlessList, Fault::DrippingList] {
        cluster.nodes[0].fault(fault);
        let given_up = list(None).await.expect_err("it has no end");
        match fault {
            Fault::EndlessList => assert!(matches!(given_up, NodeError::Status { .. }), "{given_up:?}"),
            _ => assert!(matches!(given_up, NodeError::TimedOut), "{fault:?}: {given_up:?}"),
        }
    }
    cluster.nodes[0].fault(Fault::None);
    let rest = list(Some(all[3].chunk)).await.expect("a good list");
    assert_eq!(rest.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_are_found_out() {
    let cluster = Cluster::start(1).await;
    let (pool, node) = (cluster.plane.nodes(), cluster.nodes[0].id);
    let data = random(500_000, 1);
    let (chunk, length) = (ChunkId::of(&data), ByteCount::bytes(500_000));
    for fault in [Fault::OtherKey, Fault::OtherLength, Fault::OtherLife] {
        cluster.nodes[0].fault(fault);
        let stored = pool.store_chunk(node, chunk, data.clone(), Default::default()).await;
        assert!(matches!(stored, Err(NodeError::BadReceipt(_))), "{fault:?}: {stored:?}");
    }
    for (fault, admits) in [(Fault::WrongBytes, false), (Fault::ShortBytes, false), (Fault::Rotten, true)] {
        let right = |error: Option<&NodeError>| match error {
            Some(NodeError::Corrupt) => !admits,
            Some(NodeError::Rotten) => admits,
            _ => false,
        };
        cluster.nodes[0].fault(fault);
        let whole = pool.get_chunk(node, chunk, length).await.map(|bytes| bytes.len());
        assert!(right(whole.as_ref().err()), "{fault:?}: {whole:?}");
        let slice = pool
            .get_slices(node, chunk, length, std::slice::from_ref(&(240_000..260_000)))
            .await
            .map(|slices| slices.len());
        assert!(right(slice.as_ref().err()), "{fault:?}: {slice:?}");
    }
    cluster.nodes[0].fault(Fault::LongBytes);
    let whole = pool.get_chunk(node, chunk, length).await.map(|bytes| bytes.len());
    assert!(matches!(whole, Err(NodeError::Corrupt)), "it is not even taken in: {whole:?}");
    let unknown = pool.has_chunk(NodeId::from_random([77; 16]), chunk).await;
    assert!(matches!(unknown, Err(NodeError::Unknown(_))));
}

/// Whoever tells audits by their slices is asked for a whole chunk as readers ask for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_audit_of_a_whole_chunk_is_what_a_reader_asks() {
    let cluster = Cluster::start(1).await;
    let (pool, node) = (cluster.plane.nodes(), cluster.nodes[0].id);
    let data = random(500_000, 1);
    let (chunk, length) = (ChunkId::of(&data), ByteCount::bytes(500_000));
    pool.store_chunk(node, chunk, data, Default::default()).await.expect("store");
    let audit = async |slice| cluster.plane.audit(node, chunk, length, slice, PATIENCE, PATIENCE).await;
    let asked = || {
        let counts = cluster.nodes[0].counts();
        (counts.gets.load(Ordering::SeqCst), counts.slices.load(Ordering::SeqCst))
    };
    assert!(matches!(audit(0..500_000).await, Audited::Proven));
    assert_eq!(asked(), (1, 1), "both kinds of readers");
    assert!(matches!(audit(0..16_384).await, Audited::Proven));
    assert_eq!(asked(), (1, 2));
    cluster.nodes[0].fault(Fault::AuditsOnly);
    assert!(matches!(audit(0..16_384).await, Audited::Proven));
    for (fault, outcome) in [
        (Fault::AuditsOnly, "Wrong"),
        (Fault::WholesOnly, "Wrong"),
        (Fault::LongBytes, "Wrong"),
        (Fault::Rotten, "Wrong"),
        (Fault::Forget, "Lost"),
    ] {
        cluster.nodes[0].fault(fault);
        assert_eq!(format!("{:?}", audit(0..500_000).await), outcome, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_is_dialled_again() {
    let mut cluster = Cluster::start(1).await;
    let node = cluster.nodes[0].id;
    let data = random(1000, 1);
    let chunk = ChunkId::of(&data);
    cluster.plane.nodes().store_chunk(node, chunk, data.clone(), Default::default()).await.expect("store");
    cluster.nodes[0].kill();
    cluster.plane.nodes().has_chunk(node, chunk).await.expect_err("it is gone");
    cluster.nodes[0].restart();
    let mut answer = cluster.plane.nodes().has_chunk(node, chunk).await;
    for _ in 0..50 {
        if answer.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        answer = cluster.plane.nodes().has_chunk(node, chunk).await;
    }
    assert!(answer.expect("it is back").is_some());
}
