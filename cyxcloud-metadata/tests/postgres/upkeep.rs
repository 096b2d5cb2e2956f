//! Background work beside everything else: what is collected while it is copied, and deletes that are made anew.

use std::time::Duration;

use cyxcloud_core::{ChunkId, Generation, Geometry};
use cyxcloud_metadata::model::{Content, Precondition, SegmentRange};
use cyxcloud_metadata::upkeep::model::{DeleteOutcome, GcBrake, Reconciled};
use cyxcloud_metadata::{Error, MetadataStore, Upkeep};
use sqlx::Executor;

use crate::database::Database;
use crate::fixture::{key, nodes, place};

const LONG: Duration = Duration::from_secs(3600);
const FREE: GcBrake = GcBrake { max_fraction: 1.0, floor: u64::MAX };

/// Whoever copies, overwrites and deletes at once: what is visible is live and whole, and in the end all else goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_visible_is_collected() {
    let Some(database) = Database::make().await else { return };
    let store = database.store().await;
    let place = place(&store).await;
    let nodes = nodes(&store, 3).await;
    let source = async |round: usize, n: usize| {
        let segment = place.striped(Geometry::STANDARD_SMALL, 2, &nodes);
        let range = SegmentRange { segment: segment.id, offset: 0, length: segment.length.get() };
        store.commit_object(&place.commit(&format!("s{n}"), segment.clone())).await.expect("commit");
        for copy in 0..2 {
            let mut commit = place.commit(&format!("c{}", (n + copy + round) % 6), segment.clone());
            commit.content = Content::References(vec![range]);
            match store.commit_object(&commit).await {
                Ok(_) | Err(Error::SourceGone) => {}
                Err(error) => panic!("{error:?}"),
            }
            store
                .delete_objects(place.bucket, &[key(&format!("s{n}"))], &Precondition::None)
                .await
                .expect("delete");
        }
    };
    let collect = async || {
        for _ in 0..40 {
            store.condemn_segments(3, FREE).await.expect("condemn").expect("goes on");
            store.collect_segments(Duration::ZERO, 3, u64::MAX).await.expect("collect").expect("goes on");
        }
    };
    for round in 0..8 {
        let sources = futures::future::join_all((0..6).map(|n| source(round, n)));
        futures::join!(sources, collect(), collect());
    }
    for _ in 0..3 {
        store.condemn_segments(1000, FREE).await.expect("condemn").expect("goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
        store.collect_segments(Duration::ZERO, 1000, u64::MAX).await.expect("collect").expect("goes on");
    }
    let beside = &mut database.connection().await;
    let left: (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM segments),
                (SELECT count(DISTINCT e.segment_id) FROM file_segments e JOIN segments s ON s.id = e.segment_id
                 WHERE s.state = 'live'
                    AND (SELECT count(*) FROM chunk_locations l WHERE l.segment_id = s.id) = 6),
                (SELECT count(DISTINCT segment_id) FROM file_segments),
                (SELECT count(*) FROM gc_candidates)",
    )
    .fetch_one(beside)
    .await
    .expect("count");
    assert_eq!(left, (left.2, left.2, left.2, 0));
    assert!(left.2 > 0);
}

/// Whoever has the older entry in hand named an older generation: it ends nothing.
#[tokio::test]
async fn a_delete_made_anew_is_not_ended_by_the_older_claim() {
    let Some(database) = Database::make().await else { return };
    let store = database.store().await;
    let node = &nodes(&store, 1).await[0];
    let orphan = async |counter| {
        let held = Generation { incarnation: node.incarnation, counter };
        let seen = Reconciled {
            node: node.id,
            missing: Vec::new(),
            found: Vec::new(),
            renewed: Vec::new(),
            orphans: vec![(ChunkId::of(b"chunk"), held)],
            orphans_max: 10,
        };
        store.record_inventory(&seen).await.expect("record");
        assert_eq!(store.condemn_orphans(Duration::ZERO, 10, FREE).await.expect("condemn").taken, 1);
    };
    orphan(5).await;
    let older = store.claim_deletes(10, Duration::from_millis(1), LONG).await.expect("claim");
    assert_eq!(older.len(), 1);
    orphan(9).await;
    store.finish_deletes(&[(older[0].id, DeleteOutcome::Settled)]).await.expect("finish");
    assert_eq!(store.gc_state().await.expect("look").deletes, 1);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let newer = store.claim_deletes(10, Duration::ZERO, LONG).await.expect("claim");
    assert_eq!((newer.len(), newer[0].generation.counter), (1, 9));
    store.finish_deletes(&[(newer[0].id, DeleteOutcome::Settled)]).await.expect("finish");
    assert_eq!(store.gc_state().await.expect("look").deletes, 0);
}

/// With all that is known of it, and the log of its audits stays.
#[tokio::test]
async fn a_removed_node_takes_its_rows_along() {
    use cyxcloud_core::node::NodeStatus::{Draining, Online};
    use cyxcloud_metadata::model::NodeStep;
    use cyxcloud_metadata::upkeep::model::{AuditEvent, AuditOutcome, AuditRecord};
    let Some(database) = Database::make().await else { return };
    let store = database.store().await;
    let place = place(&store).await;
    let nodes = nodes(&store, 3).await;
    let node = nodes[0].id;
    store
        .commit_object(&place.commit("k", place.striped(Geometry::STANDARD_SMALL, 1, &nodes)))
        .await
        .expect("commit");
    let at = store.node_locations(node, None, 1).await.expect("look")[0].at;
    let late = AuditEvent {
        round: crate::fixture::fresh(),
        node,
        at,
        slice: 0..1,
        outcome: AuditOutcome::Late,
        again: false,
        when: cyxcloud_core::Timestamp::default(),
    };
    let judge = |record: &AuditRecord, _: &AuditEvent| (*record, None);
    store.record_audits(&[late], Duration::from_secs(60), &judge).await.expect("record");
    let held = Generation { incarnation: nodes[0].incarnation, counter: 1 };
    let seen = Reconciled {
        node,
        missing: Vec::new(),
        found: Vec::new(),
        renewed: Vec::new(),
        orphans: [b"a", b"b"].map(|name| (ChunkId::of(name), held)).into(),
        orphans_max: 10,
    };
    store.record_inventory(&seen).await.expect("record");
    assert_eq!(store.condemn_orphans(Duration::ZERO, 1, FREE).await.expect("condemn").taken, 1);
    store.step_node(&NodeStep { node, from: Online, to: Draining }).await.expect("step");
    store.remove_node(node).await.expect("remove");
    let beside = &mut database.connection().await;
    for table in ["chunk_deletes", "orphans", "node_scans", "contained_audits"] {
        let rows =
            beside.fetch_all(sqlx::AssertSqlSafe(format!("SELECT 1 FROM {table}"))).await.expect("look");
        assert!(rows.is_empty(), "{table}");
    }
    assert_eq!(store.audit_events(Some(node), 10).await.expect("read").len(), 1);
    assert_eq!(store.repair_queue().await.expect("look").pending.values().sum::<u64>(), 1);
}
