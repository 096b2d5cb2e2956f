//! What a read promises, whatever nodes do.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cyxcloud_core::{ByteCount, NodeId};
use cyxcloud_dataplane::{Config, ReadError};
use cyxcloud_metadata::model::{Extent, StripeLayout};
use futures::StreamExt;

use crate::cluster::{Cluster, PATIENCE, STRIPE, quick, random};
use crate::fake::Fault;

/// How many shards of a stripe each node holds.
fn load(stripe: &StripeLayout) -> HashMap<NodeId, usize> {
    let mut load = HashMap::new();
    for node in stripe.shards.iter().flat_map(|shard| &shard.nodes) {
        *load.entry(*node).or_default() += 1;
    }
    load
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_all_shapes_are_what_was_written() {
    let cluster = Cluster::start(6).await;
    for len in [1u64, 4000, 5000, 70_000, 131_072, 200_000, 3 * STRIPE as u64 + 99_999] {
        let body = random(len as usize, len);
        let extents = cluster.put(&body).await;
        let stripe = STRIPE as u64;
        let marks = [
            0,
            1,
            65_535,
            65_536,
            65_537,
            104_857,
            300_000,
            stripe - 1,
            stripe,
            stripe + 1,
            2 * stripe,
            len - 1,
            len,
        ];
        let marks: Vec<u64> = marks.into_iter().filter(|mark| *mark <= len).collect();
        for &from in &marks {
            for &to in &marks {
                if from <= to {
                    let read = cluster.get(&extents, from..to).await.expect("read");
                    assert!(read == body[from as usize..to as usize], "{from}..{to} of {len}");
                }
            }
        }
    }
    cluster.memory_is_returned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_range_moves_little() {
    let cluster = Cluster::start(6).await;
    let body = random(4 * STRIPE, 1);
    let extents = cluster.put(&body).await;
    let range = STRIPE as u64 + 300_000..STRIPE as u64 + 310_000;
    let read = cluster.get(&extents, range.clone()).await.expect("read");
    assert!(read == body[range.start as usize..range.end as usize]);
    let sum = |count: fn(&crate::fake::Counts) -> u64| -> u64 {
        cluster.nodes.iter().map(|node| count(node.counts())).sum()
    };
    assert_eq!(sum(|counts| counts.gets.load(Ordering::SeqCst)), 0, "no whole shard");
    let slices = sum(|counts| counts.slices.load(Ordering::SeqCst));
    assert!((1..=2).contains(&slices), "{slices}");
    assert_eq!(sum(|counts| counts.slice_bytes.load(Ordering::SeqCst)), 65_536 + 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_several_segments_read_as_one() {
    let cluster = Cluster::start(4).await;
    let bodies = [random(1000, 1), random(90_000, 2), random(2 * STRIPE + 7, 3), random(STRIPE, 4)];
    // Of each body all but its first and last few bytes, as ranged copies make it.
    let (mut extents, mut whole) = (Vec::new(), Vec::new());
    for body in &bodies {
        let mut extent: Extent = cluster.put(body).await.remove(0);
        extent.object_offset = whole.len() as u64;
        extent.segment_offset = 100;
        extent.length -= 300;
        whole.extend_from_slice(&body[100..body.len() - 200]);
        extents.push(extent);
    }
    let len = whole.len() as u64;
    for range in [0..len, 1..len - 1, 650..750, 700..701, 80_000..1_200_000, len - 10..len, 5..5] {
        let read = cluster.get(&extents, range.clone()).await.expect("read");
        assert!(read == whole[range.start as usize..range.end as usize], "{range:?}");
    }
    let beyond = cluster.get(&extents, 0..len + 1).await;
    assert!(
        matches!(beyond, Err(ReadError::NotCovered { at }) if at == len),
        "{:?}",
        beyond.map(|read| read.len())
    );
    extents.remove(1);
    assert!(matches!(cluster.get(&extents, 0..len).await, Err(ReadError::NotCovered { at: 700 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn any_m_shards_may_be_lost_and_one_more_is_an_error() {
    let mut cluster = Cluster::start(14).await;
    let body = random(2 * STRIPE, 5);
    let extents = cluster.put(&body).await;
    for first in 0..14 {
        let lost: Vec<usize> = (0..4).map(|i| (first + i * (1 + first % 3)) % 14).collect();
        lost.iter().for_each(|&node| cluster.nodes[node].fault(Fault::Refuse));
        assert!(cluster.get_all(&extents).await.expect("read") == body[..], "{lost:?}");
        lost.iter().for_each(|&node| cluster.nodes[node].fault(Fault::None));
    }
    for node in &mut cluster.nodes[0..5] {
        node.kill();
    }
    let failed = cluster.get_all(&extents).await;
    assert!(
        matches!(failed, Err(ReadError::Unreadable { have: 9, need: 10, .. })),
        "{:?}",
        failed.map(|read| read.len())
    );
    cluster.nodes[2].restart();
    assert!(cluster.get_all(&extents).await.expect("read") == body[..]);
    assert!(cluster.metric("reconstructs_total") > 0.0);
    cluster.memory_is_returned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_one_of_six_nodes_may_fail_in_any_way() {
    let cluster = Cluster::start(6).await;
    let body = random(2 * STRIPE + 1234, 6);
    let small = random(70_000, 7);
    for (victim, fault) in [
        Fault::Refuse,
        Fault::Hang,
        Fault::WrongBytes,
        Fault::ShortBytes,
        Fault::LongBytes,
        Fault::Forget,
        Fault::Rotten,
        Fault::Slow(Duration::from_millis(900)),
    ]
    .into_iter()
    .enumerate()
    {
        let objects = [(cluster.put(&body).await, &body), (cluster.put(&small).await, &small)];
        cluster.nodes[victim % 6].fault(fault);
        let began = Instant::now();
        for (extents, body) in &objects {
            assert!(cluster.get_all(extents).await.expect("read") == body[..], "{fault:?}");
            for range in [0..1, 50_000..66_000, 69_999..70_000] {
                let read = cluster.get(extents, range.clone()).await.expect("read");
                assert!(read == body[range.start as usize..range.end as usize], "{fault:?} {range:?}");
            }
        }
        assert!(
            began.elapsed() < PATIENCE / 2,
            "{fault:?}: {:?}, no time-out is waited for",
            began.elapsed()
        );
        cluster.nodes[victim % 6].fault(Fault::None);
    }
    cluster.memory_is_returned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_and_missing_shards_are_reported() {
    for (fault, metric) in [
        (Fault::WrongBytes, "corrupt_shards_total"),
        (Fault::LongBytes, "corrupt_shards_total"),
        (Fault::Rotten, "corrupt_shards_total"),
        (Fault::Forget, "missing_shards_total"),
    ] {
        let cluster = Cluster::start(6).await;
        let body = random(STRIPE, 8);
        let extents = cluster.put(&body).await;
        let before = cluster.stripes(&extents).await;
        let victim = cluster.nodes[3].id;
        let data_shards = before[0].shards[..10].iter().filter(|shard| shard.nodes.contains(&victim)).count();
        // A refusal is not a lie: nothing is reported of a node that is merely away.
        cluster.nodes[4].fault(Fault::Refuse);
        assert!(cluster.get_all(&extents).await.expect("read") == body[..]);
        cluster.nodes[4].fault(Fault::None);
        cluster.nodes[3].fault(fault);
        assert!(cluster.get_all(&extents).await.expect("read") == body[..]);
        let lost = |stripes: &[StripeLayout]| 14 - load(&stripes[0]).values().sum::<usize>();
        let found = cluster.metric(metric) as usize;
        // Of its parity as much as was asked for in place of what the other node refused.
        assert!(found >= data_shards, "{fault:?}");
        for _ in 0..200 {
            if lost(&cluster.stripes(&extents).await) == found {
                break;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        let after = cluster.stripes(&extents).await;
        assert_eq!(lost(&after), found, "{fault:?}");
        let left = load(&after[0]).get(&victim).copied().unwrap_or(0);
        assert_eq!(left + found, load(&before[0])[&victim]);
        // Who sent a lie is to be audited for it, who denied shards for one of them, and not who owned up to rot.
        let owed = cluster.metadata.claim_contained(100, PATIENCE).await.expect("claim");
        let due = match fault {
            Fault::Forget => 1,
            Fault::Rotten => 0,
            _ => found,
        };
        assert_eq!(owed.len(), due, "{fault:?}");
        assert!(owed.iter().all(|owed| owed.node == victim));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_node_is_hedged_and_then_avoided() {
    let penalty = (PATIENCE, PATIENCE);
    let late_fetch = (Duration::from_secs(1), Duration::from_secs(2));
    let cluster = Cluster::with(6, Config { penalty, late_fetch, ..quick() }).await;
    let body = random(6 * STRIPE, 9);
    let extents = cluster.put(&body).await;
    cluster.nodes[0].fault(Fault::Hang);
    let calls = || cluster.nodes[0].counts().calls.load(Ordering::SeqCst);
    let began = Instant::now();
    assert!(cluster.get_all(&extents).await.expect("read") == body[..]);
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    assert!(cluster.metric("hedges_total") > 0.0);
    let before = calls();
    assert!(cluster.get_all(&extents).await.expect("read") == body[..]);
    assert!(calls() <= before + 1, "who kept us waiting is asked last");
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_beyond_the_parity_are_an_error_and_never_wrong_bytes() {
    let cluster = Cluster::start(6).await;
    let body = random(2 * STRIPE, 10);
    let small = random(50_000, 11);
    let objects = [(cluster.put(&body).await, 10), (cluster.put(&small).await, 1)];
    for fault in [Fault::WrongBytes, Fault::ShortBytes, Fault::LongBytes] {
        cluster.fault_all(fault);
        for (extents, needed) in &objects {
            for range in [0..40_000, 0..1] {
                let failed = cluster.get(extents, range).await;
                assert!(
                    matches!(failed, Err(ReadError::Unreadable { need, .. }) if need == *needed),
                    "{:?}",
                    failed.map(|read| read.len())
                );
            }
        }
    }
    cluster.memory_is_returned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_secret_opens_nothing() {
    let mut cluster = Cluster::start(4).await;
    let extents = [
        cluster.put(&random(STRIPE, 12)).await,
        cluster.put(&random(9000, 13)).await,
        cluster.put(&random(90, 14)).await,
    ];
    cluster.secret = std::sync::Arc::new(cyxcloud_core::seal::OwnerSecret::from_bytes([3; 32]));
    for extents in &extents {
        assert!(matches!(cluster.get_all(extents).await, Err(ReadError::Sealed { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_bytes_do_not_wait_for_the_rest() {
    let cluster = Cluster::with(6, Config { read_ahead: 2, ..quick() }).await;
    let body = random(12 * STRIPE, 15);
    let extents = cluster.put(&body).await;
    let mut read = Box::pin(cluster.plane.read(cluster.secret.clone(), extents, 0..body.len() as u64));
    let first = read.next().await.expect("bytes").expect("read");
    assert!(body.starts_with(&first));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let fetched: u64 = cluster.nodes.iter().map(|node| node.counts().gets.load(Ordering::SeqCst)).sum();
    assert!(fetched <= 3 * 14, "{fetched} shards were fetched for a reader that waits");
    drop((read, first));
    cluster.memory_is_returned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_keeps_what_it_read_still_gets_the_rest() {
    let memory = ByteCount::mib(16);
    let cluster = Cluster::with(6, Config { memory, per_request: ByteCount::mib(4), ..quick() }).await;
    let body = random(10 * STRIPE, 16);
    let extents = cluster.put(&body).await;
    let read = cluster.plane.read(cluster.secret.clone(), extents, 0..body.len() as u64);
    let pieces: Vec<_> =
        tokio::time::timeout(Duration::from_secs(30), read.collect::<Vec<_>>()).await.expect("it ends");
    let read: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.expect("read")).collect();
    assert!(read == body[..]);
    cluster.memory_is_returned().await;
}
