//! What a write promises, whatever nodes do.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cyxcloud_core::placement::tolerance;
use cyxcloud_core::profile::TooFewNodes;
use cyxcloud_core::seal::{Descriptor, MasterKey};
use cyxcloud_core::{NodeId, ShardIndex};
use cyxcloud_dataplane::{Config, WriteError, WriteRequest};
use cyxcloud_metadata::model::{NewSegment, SegmentBody};
use futures::StreamExt;

use crate::cluster::{Cluster, PATIENCE, STRIPE, broken, quick, random, stream};
use crate::fake::Fault;

/// Every stripe's tolerance as recorded is the one its locations have, computed here from scratch.
fn check_tolerance(segment: &NewSegment, least: u8) {
    let SegmentBody::Stripes(stripes) = &segment.body else { return };
    for stripe in stripes {
        let held: Vec<(ShardIndex, NodeId)> = stripe
            .shards
            .iter()
            .flat_map(|shard| shard.locations.iter().map(|location| (shard.index, location.node)))
            .collect();
        assert_eq!(tolerance(segment.geometry, &held), Some(stripe.tolerance));
        assert!(stripe.tolerance >= segment.acked_tolerance && stripe.tolerance >= least, "{held:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_all_lengths_come_back() {
    let cluster = Cluster::start(6).await;
    let small = 128 << 10;
    let lengths = [
        0,
        1,
        4095,
        4096,
        4097,
        65_535,
        65_536,
        65_537,
        small - 1,
        small,
        small + 1,
        200_000,
        STRIPE - 1,
        STRIPE,
        STRIPE + 1,
        2 * STRIPE,
        9 * STRIPE + 12_345,
    ];
    for (seed, len) in lengths.into_iter().enumerate() {
        let body = random(len, seed as u64);
        for known in [true, false] {
            let segment = cluster.write(&body, known).await.expect("write");
            match (&segment.body, len) {
                (SegmentBody::Stripes(stripes), 0) => assert!(stripes.is_empty()),
                (SegmentBody::Inline { sealed, .. }, 1..=4096) => assert!(!sealed.is_empty()),
                (SegmentBody::Stripes(stripes), 4097..) => {
                    let small = len <= small;
                    assert_eq!(segment.geometry.copies(), if small { 3 } else { 1 });
                    assert_eq!(stripes.len(), if small { 1 } else { len.div_ceil(STRIPE) });
                }
                (body, _) => panic!("{len} bytes became {body:?}"),
            }
            check_tolerance(&segment, u8::from(len > 4096));
            let extents = cluster.commit(segment).await;
            if len > 0 {
                assert!(
                    cluster.get_all(&extents).await.expect("read") == body[..],
                    "{len} bytes, known: {known}"
                );
            }
        }
    }
    cluster.memory_is_returned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_a_node_is_sealed_and_described() {
    let cluster = Cluster::start(4).await;
    let body = Bytes::from(vec![b'A'; 2 * STRIPE - 5]);
    let segment = cluster.write(&body, true).await.expect("write");
    let master = MasterKey::from_bytes([1; 32]);
    let mut seen = HashSet::new();
    for node in &cluster.nodes {
        for (chunk, descriptor) in node.held() {
            let bytes = node.bytes_of(&chunk).expect("held");
            assert!(!bytes.windows(16).any(|window| window == [b'A'; 16]), "no plain byte leaves");
            let (descriptor, secret) = Descriptor::open(&master, &descriptor).expect("ours");
            assert_eq!((descriptor.segment, descriptor.owner), (segment.id, cluster.owner));
            assert_eq!(secret.expose(), cluster.secret.expose());
            let SegmentBody::Stripes(stripes) = &segment.body else { panic!("it is not small") };
            let stripe = &stripes[descriptor.stripe as usize];
            assert_eq!(stripe.shards[descriptor.shard.get()].chunk, chunk);
            assert_eq!(stripe.plain_hash, descriptor.plain_hash);
            seen.insert(chunk);
        }
    }
    assert_eq!(seen.len(), 28);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_of_six_nodes_may_be_down() {
    let body = random(3 * STRIPE + 77, 1);
    let small = random(50_000, 2);
    for down in 0..6 {
        let mut cluster = Cluster::start(6).await;
        cluster.nodes[down].kill();
        for body in [&body, &small] {
            let segment = cluster.write(body, true).await.expect("write");
            check_tolerance(&segment, 1);
            let extents = cluster.commit(segment).await;
            assert!(cluster.get_all(&extents).await.expect("read") == body[..]);
        }
        cluster.memory_is_returned().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_during_a_write_are_planned_around() {
    let body = random(4 * STRIPE + 5, 3);
    for fault in [
        Fault::Refuse,
        Fault::Hang,
        Fault::Full,
        Fault::OtherKey,
        Fault::OtherLength,
        Fault::OtherLife,
        Fault::DieAfter(4),
        Fault::Slow(Duration::from_millis(700)),
    ] {
        let cluster = Cluster::start(6).await;
        cluster.nodes[2].fault(fault);
        let began = Instant::now();
        for body in [&body, &random(60_000, 9)] {
            let segment =
                cluster.write(body, true).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
            check_tolerance(&segment, 1);
            use Fault::{Full, Hang, OtherKey, OtherLength, OtherLife};
            if let SegmentBody::Stripes(stripes) = &segment.body
                && matches!(fault, OtherKey | OtherLength | OtherLife | Full | Hang)
            {
                let mut locations = stripes.iter().flat_map(|s| &s.shards).flat_map(|s| &s.locations);
                assert!(locations.all(|location| location.node != cluster.nodes[2].id), "{fault:?}");
            }
            let extents = cluster.commit(segment).await;
            assert!(cluster.get_all(&extents).await.expect("read") == body[..], "{fault:?}");
        }
        assert!(
            began.elapsed() < PATIENCE / 2,
            "{fault:?}: {:?}, no time-out is waited for",
            began.elapsed()
        );
        cluster.memory_is_returned().await;
    }
}

/// Whoever waits for the answer is told before the nodes' own time is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_given_up_when_all_nodes_are_silent() {
    let config = Config { silence: Duration::from_millis(100), ..quick() };
    let cluster = Cluster::with(6, config).await;
    for seed in 0..8 {
        // What stores take here must be known before silence means anything.
        for len in [STRIPE + 7, 60_000] {
            cluster.write(&random(len, seed), true).await.expect("write");
        }
    }
    cluster.fault_all(Fault::Hang);
    let began = Instant::now();
    for len in [STRIPE + 7, 60_000] {
        let given_up = cluster.write(&random(len, 99), true).await;
        assert!(matches!(given_up, Err(WriteError::NotEnoughAcks { .. })), "{given_up:?}");
    }
    assert!(began.elapsed() < PATIENCE, "{:?}: a time-out was waited for", began.elapsed());
    cluster.memory_is_returned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn few_nodes_get_extra_copies() {
    for (nodes, locations) in [(2, 20), (3, 16), (4, 14)] {
        let mut cluster = Cluster::start(nodes).await;
        let body = random(2 * STRIPE, 4);
        let segment = cluster.write(&body, true).await.expect("write");
        check_tolerance(&segment, 1);
        let SegmentBody::Stripes(stripes) = &segment.body else { panic!("it is not small") };
        let stored: usize = stripes[0].shards.iter().map(|shard| shard.locations.len()).sum();
        assert!(stored >= locations, "{stored}; more only where a node was slow");
        let extents = cluster.commit(segment).await;
        for down in 0..usize::from(nodes) {
            cluster.nodes[down].kill();
            assert!(cluster.get_all(&extents).await.expect("read") == body[..], "{nodes} nodes, {down} down");
            cluster.nodes[down].restart();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_of_which_one_dies_still_keep_the_promise() {
    let mut cluster = Cluster::start(3).await;
    cluster.nodes[1].kill();
    for len in [2 * STRIPE, 100_000] {
        let segment = cluster.write(&random(len, 6), true).await.expect("write");
        check_tolerance(&segment, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_nodes_are_refused_before_and_after() {
    let body = random(2 * STRIPE, 7);
    let cluster = Cluster::start(1).await;
    let refused = TooFewNodes { have: 1, need: 2 };
    assert_eq!(cluster.plane.check_capacity(cluster.profile), Err(refused));
    for body in [&body, &random(50_000, 7)] {
        let failed = cluster.write(body, true).await;
        assert!(matches!(failed, Err(WriteError::TooFewNodes(few)) if few == refused), "{failed:?}");
    }
    // Tiny bodies need no node.
    cluster.write(&random(100, 7), true).await.expect("inline");

    let consenting = Cluster::with(1, Config { consent_to_no_redundancy: true, ..quick() }).await;
    let segment = consenting.write(&body, true).await.expect("the operator said so");
    assert_eq!(segment.acked_tolerance, 0);

    // Both are known, but one is gone: nothing is acknowledged.
    let mut cluster = Cluster::start(2).await;
    cluster.nodes[0].kill();
    for body in [&body, &random(50_000, 8)] {
        let failed = cluster.write(body, true).await;
        assert!(matches!(failed, Err(WriteError::NotEnoughAcks { need: 1, .. })), "{failed:?}");
    }
    cluster.mark_offline(0).await;
    assert_eq!(cluster.plane.check_capacity(cluster.profile), Err(refused));
    cluster.memory_is_returned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fourteen_nodes_wait_for_two_losses() {
    let mut cluster = Cluster::start(14).await;
    let body = random(STRIPE + 1, 8);
    let segment = cluster.write(&body, true).await.expect("write");
    assert_eq!((segment.acked_tolerance, segment.target_tolerance), (4, 4));
    let extents = cluster.commit(segment).await;
    for node in &mut cluster.nodes[3..7] {
        node.kill();
    }
    assert!(cluster.get_all(&extents).await.expect("read") == body[..], "four are lost");
    let segment = cluster.write(&body, true).await.expect("write with ten left");
    check_tolerance(&segment, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_fails_the_write() {
    let cluster = Cluster::start(6).await;
    for len in [0, 100, 100_000, 5 * STRIPE + 3] {
        let failed = cluster.plane.write_segment(cluster.request(None), broken(len), Box::new(|_| ())).await;
        assert!(
            matches!(&failed, Err(WriteError::Body(error)) if error == "the client went away"),
            "{failed:?}"
        );
    }
    let body = random(3 * STRIPE, 9);
    for declared in [1, 4097, 200_000, 3 * STRIPE as u64 - 1, 3 * STRIPE as u64 + 1, 9 * STRIPE as u64] {
        let request = cluster.request(Some(declared));
        let failed = cluster.plane.write_segment(request, stream(&body), Box::new(|_| ())).await;
        assert!(matches!(failed, Err(WriteError::Length { .. })), "declared {declared}: {failed:?}");
    }
    cluster.memory_is_returned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_write_stops_and_returns_its_memory() {
    let cluster = Cluster::start(6).await;
    for stuck in [Fault::Hang, Fault::None] {
        cluster.fault_all(stuck);
        let body = stream(&random(2 * STRIPE, 10)).chain(futures::stream::pending());
        let write = cluster.plane.write_segment(cluster.request(None), body, Box::new(|_| ()));
        tokio::time::timeout(Duration::from_millis(400), write).await.expect_err("it never ends");
        cluster.memory_is_returned().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_30_who_drips_keeps_nobody_from_writing() {
    // Two stripes of one MiB, or one of two and half of the budget.
    let memory = cyxcloud_core::ByteCount::mib(12);
    let sender_grace = Duration::from_millis(300);
    let cluster = Cluster::with(6, Config { memory, per_request: memory, sender_grace, ..quick() }).await;
    let drip = |length: Option<u64>, stripe: usize| {
        let drops = futures::stream::repeat(Bytes::from_static(b"x")).then(|drop| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok::<_, String>(drop)
        });
        let stripe_size = cyxcloud_core::ByteCount::bytes(stripe as u64);
        let request = WriteRequest { stripe_size, ..cluster.request(length) };
        cluster.plane.write_segment(request, drops, Box::new(|_| ()))
    };
    let alone = tokio::time::timeout(4 * sender_grace, drip(Some(4 << 20), STRIPE)).await;
    assert!(alone.is_err(), "whoever keeps nobody waiting is not hurried");
    for (length, stripe) in [(Some(4 << 20), STRIPE), (Some(4 << 20), 2 * STRIPE), (None, STRIPE)] {
        let drips = futures::future::join_all((0..16).map(|_| async {
            let cut = drip(length, stripe).await;
            assert!(matches!(cut, Err(WriteError::Slow { .. })), "{cut:?}");
        }));
        let body = random(3 * STRIPE, 30);
        let good = async {
            tokio::time::sleep(sender_grace / 3).await;
            tokio::time::timeout(PATIENCE, cluster.write(&body, true)).await
        };
        let (mut good, drips) = (std::pin::pin!(good), std::pin::pin!(drips));
        let written = tokio::select! {
            written = good.as_mut() => written,
            // All of them kept it waiting.
            _ = drips => good.await,
        };
        written.expect("in time").expect("write");
    }
    cluster.memory_is_returned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writes_share_a_small_budget() {
    // Room for about two stripes at a time; a tap that is slow must still see everything in order.
    let memory = cyxcloud_core::ByteCount::mib(12);
    let config = Config { memory, per_request: memory, ..quick() };
    let cluster = Cluster::with(6, config).await;
    let bodies: Vec<Bytes> = (0..8).map(|seed| random(4 * STRIPE + 100 * seed, seed as u64 + 20)).collect();
    let writes = bodies.iter().map(|body| cluster.write(body, body.len() % 200 == 0));
    let written = futures::future::try_join_all(writes).await.expect("write");
    cluster.memory_is_returned().await;
    let mut layouts = Vec::new();
    for segment in written {
        layouts.push(cluster.commit(segment).await);
    }
    let reads = layouts.iter().map(|extents| cluster.get_all(extents));
    let read = futures::future::try_join_all(reads).await.expect("read");
    assert!(read.iter().zip(&bodies).all(|(read, body)| read[..] == body[..]));
    cluster.memory_is_returned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_seal_to_the_same_chunks_and_are_stored_again() {
    let cluster = Cluster::start(6).await;
    let body = random(STRIPE, 11);
    let ids = |segment: &NewSegment| match &segment.body {
        SegmentBody::Stripes(stripes) => {
            stripes[0].shards.iter().map(|shard| shard.chunk).collect::<Vec<_>>()
        }
        SegmentBody::Inline { .. } => panic!("it is not small"),
    };
    let stores =
        || -> u64 { cluster.nodes.iter().map(|node| node.counts().stores.load(Ordering::SeqCst)).sum() };
    let first = cluster.write(&body, true).await.expect("write");
    let before = stores();
    let second = cluster.write(&body, true).await.expect("write");
    assert_eq!(ids(&first), ids(&second));
    assert_eq!(stores(), before * 2);
}
