//! What a node says to its gateway and to its operator.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use cyxcloud_core::receipt::verify_signature;
use cyxcloud_node::identity::Identity;
use cyxcloud_proto::gateway::NodeCommand;
use cyxcloud_proto::gateway::node_command::Kind;
use cyxcloud_proto::signed;
use tokio::io::AsyncReadExt;
use tonic_health::pb::HealthCheckRequest;

use crate::cluster::{Gateway, Node, config, id, noise, rot};

#[tokio::test]
async fn a_node_registers_with_proof_of_its_key_and_lives_by_heartbeats() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (gateway, address) = Gateway::start().await;
    let mut told = config(dir.path(), &address);
    told.node_region = "zone-1".to_owned();
    told.advertise_addr = Some("node.example:7000".to_owned());
    let node = Node::start(told).await;
    gateway.eventually("three heartbeats", |heard| heard.heartbeats.len() >= 3).await;
    node.store(&noise(1, 1000)).await.expect("stored");
    gateway
        .eventually("what is used is told", |heard| {
            heard.heartbeats.last().is_some_and(|beat| beat.storage_used == 1000)
        })
        .await;
    let registration = gateway.with(|heard| heard.registrations[0].clone());
    let identity = Identity::open(dir.path()).expect("made by the node");
    assert_eq!(registration.peer_id, identity.peer_id());
    assert_eq!(registration.region, "zone-1");
    assert_eq!((registration.advertise_host.as_str(), registration.grpc_port), ("node.example", 7000));
    assert_eq!((registration.storage_total, registration.storage_reserved), (65 << 20, 1 << 20));
    let message = signed::registration(&registration);
    let signature = registration.signature.as_ref().try_into().expect("64 bytes");
    verify_signature(&identity.key().public(), &message, signature).expect("possession is proven");
    let beat = gateway.with(|heard| heard.heartbeats.last().cloned()).expect("some");
    assert_eq!(beat.node_id.as_ref(), [7; 16]);
    assert_eq!(beat.storage_available, (64 << 20) - 1000);
    assert!(!beat.read_only && !beat.maintenance);
    node.stop().await.expect("a clean end");
    assert_eq!(std::fs::metadata(dir.path().join("identity.key")).expect("kept").mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_refused_or_forgotten_node_registers_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (gateway, address) = Gateway::start().await;
    gateway.with(|heard| heard.refuse = 2);
    let node = Node::start(config(dir.path(), &address)).await;
    gateway.eventually("registered after two refusals", |heard| heard.registrations.len() == 1).await;
    gateway.with(|heard| heard.forget = true);
    gateway.eventually("registered again", |heard| heard.registrations.len() == 2).await;
    gateway.with(|heard| heard.commands = vec![NodeCommand { kind: Kind::Register.into() }]);
    gateway.eventually("registered on request", |heard| heard.registrations.len() == 3).await;
    let keys =
        gateway.with(|heard| heard.registrations.iter().map(|r| r.public_key.clone()).collect::<Vec<_>>());
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_scrub_finds_what_rotted_and_a_heartbeat_reports_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    let (bad, good) = (noise(1, 5_000), noise(2, 5_000));
    node.store(&bad).await.expect("stored");
    node.store(&good).await.expect("stored");
    node.stop().await.expect("a clean end");
    rot(dir.path(), &id(&bad));
    let (gateway, address) = Gateway::start().await;
    let node = Node::start(config(dir.path(), &address)).await;
    gateway.eventually("a heartbeat", |heard| !heard.heartbeats.is_empty()).await;
    gateway.with(|heard| heard.commands = vec![NodeCommand { kind: Kind::Scrub.into() }]);
    let reported = |heard: &crate::cluster::Heard| {
        heard.heartbeats.iter().map(|beat| beat.corrupt_chunks.clone()).collect::<Vec<_>>().concat()
    };
    gateway.eventually("the corrupt chunk is reported", |heard| !reported(heard).is_empty()).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(gateway.with(|heard| reported(heard)), [id(&bad)], "once, and no other");
    assert!(node.http("/metrics").await.contains("cyxcloud_node_quarantined_chunks 1"));
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn scrubs_come_by_themselves() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    let bad = noise(1, 5_000);
    node.store(&bad).await.expect("stored");
    node.store(&noise(2, 5_000)).await.expect("stored");
    node.stop().await.expect("a clean end");
    rot(dir.path(), &id(&bad));
    let (gateway, address) = Gateway::start().await;
    let mut told = config(dir.path(), &address);
    told.scrub_interval_secs = Some(1);
    let node = Node::start(told).await;
    gateway
        .eventually("the corrupt chunk is reported", |heard| {
            heard.heartbeats.iter().any(|beat| beat.corrupt_chunks == [id(&bad)])
        })
        .await;
    node.eventually("cyxcloud_node_quarantined_chunks 1").await;
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn health_and_metrics_answer_in_their_formats() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    node.store(&noise(1, 777)).await.expect("stored");
    node.get(id(b"absent")).await.expect_err("not held");
    let health = node.http("/health").await;
    assert!(health.starts_with("HTTP/1.1 200") && health.ends_with("\r\n\r\nOK"), "{health}");
    let metrics = node.http("/metrics").await;
    for line in [
        "cyxcloud_node_storage_capacity_bytes 68157440",
        "cyxcloud_node_storage_reserved_bytes 1048576",
        "cyxcloud_node_storage_used_bytes 777",
        "cyxcloud_node_chunks 1",
        "cyxcloud_node_read_only 0",
        "cyxcloud_node_requests_total{code=\"OK\",method=\"StoreChunk\"} 1",
        "cyxcloud_node_requests_total{code=\"NOT_FOUND\",method=\"GetChunk\"} 1",
        "cyxcloud_node_request_duration_seconds_count{method=\"GetChunk\"} 1",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    let request = HealthCheckRequest { service: "cyxcloud.node.v1.ChunkService".to_owned() };
    let status = node.health().await.check(request).await.expect("answered").into_inner().status;
    assert_eq!(status, 1, "SERVING");
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn adv_30_an_address_has_so_many_connections_for_health() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    node.http("/health").await;
    let mut many = Vec::new();
    for _ in 0..40 {
        many.push(node.connect_from("127.0.0.21").await);
    }
    let mut closed = 0;
    for stream in &mut many[32..] {
        let read = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut [0])).await;
        closed += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
    }
    assert_eq!(closed, 8, "those beyond the limit are closed at once");
    assert!(node.http("/health").await.ends_with("OK"), "others have their own");
    assert!(node.http("/metrics").await.contains("cyxcloud_node_connections_refused_total 8"));
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_data_directory_in_use_is_a_clear_error() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    node.store(&noise(1, 10)).await.expect("it is up");
    let error = Node::alone(dir.path()).await.stop().await.expect_err("in use");
    let mut chain = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        chain = format!("{chain}: {next}");
        cause = next.source();
    }
    assert!(chain.contains("in use by another node"), "{chain}");
    assert_eq!(node.get(id(&noise(1, 10))).await.expect("the first goes on").len(), 10);
    node.stop().await.expect("a clean end");
}
