//! What every metadata store promises, one test per promise.
//!
//! An engine runs them all with [`conformance_suite!`](crate::conformance_suite). Each test is given
//! a store of its own: what upkeep claims and counts is whatever there is.

pub mod audits;
pub mod buckets;
pub mod garbage;
pub mod held;
pub mod identity;
pub mod intents;
pub mod listing;
pub mod multipart;
pub mod nodes;
pub mod objects;
pub mod owners;
pub mod repairs;
pub mod samples;
pub mod scans;
pub mod segments;
pub mod stripes;
pub mod token_keys;
pub mod usage;

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::node::NodeStatus;
use cyxcloud_core::{
    BucketId, ByteCount, ChunkId, Generation, Geometry, NodeId, OwnerId, ShardIndex, Timestamp,
};
use uuid::Uuid;

use crate::MetadataStore;
use crate::model::{
    Attributes, Bucket, CommitObject, Content, NewLocation, NewSegment, NewShard, NewStripe, Object, Owner,
    Precondition, RegisterNode, SegmentBody, SegmentRange,
};

/// A store opened for one test, and what must live as long as it (a directory, say).
pub struct Opened {
    store: Arc<dyn MetadataStore>,
    _keep: Box<dyn Any + Send>,
}

impl Opened {
    /// A store that needs nothing beside it.
    pub fn new(store: impl MetadataStore + 'static) -> Self {
        Self::with(store, ())
    }

    /// A store, and what is dropped after it.
    pub fn with(store: impl MetadataStore + 'static, keep: impl Any + Send) -> Self {
        Self { store: Arc::new(store), _keep: Box::new(keep) }
    }

    /// The store.
    pub fn store(&self) -> &dyn MetadataStore {
        self.store.as_ref()
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Makes a `#[tokio::test]` of every promise; `open` is an `async fn() -> Opened`, or `-> Option<Opened>` where
/// `None` leaves the test out.
#[macro_export]
macro_rules! conformance_suite {
    ($open:expr) => {
        $crate::conformance_suite! { @each $open;
            audits::an_audit_is_kept_and_marks_its_location,
            audits::a_late_answer_is_asked_for_again,
            audits::who_sent_other_bytes_is_asked_at_once,
            audits::who_denies_chunks_is_asked_for_one,
            audits::a_node_is_judged_by_its_audits,
            audits::who_has_nothing_left_to_prove_is_let_back,
            audits::who_is_held_back_is_taken_back_by_an_administrator,
            audits::who_is_held_back_is_looked_through,
            audits::who_cannot_be_reached_is_not_judged,
            audits::a_sample_is_stored_and_live,
            audits::a_node_that_is_vetted_stays_so,
            audits::a_node_under_another_account_is_new_again,
            audits::what_is_at_risk_is_found,
            audits::old_audits_are_purged_and_records_stay,
            audits::multipart_uploads_do_not_stay_for_ever,
            buckets::a_bucket_name_is_taken_once,
            buckets::buckets_are_listed_by_name_for_their_owner_only,
            buckets::an_owner_has_so_many_buckets,
            buckets::a_bucket_in_use_stays,
            buckets::a_deleted_bucket_takes_nothing_more,
            garbage::only_what_nothing_refers_to_is_condemned,
            garbage::a_brake_changes_nothing,
            garbage::a_freeze_stops_everything,
            garbage::a_collected_segment_leaves_deletes,
            garbage::large_segments_are_collected_one_by_one,
            garbage::a_chunk_that_is_still_named_stays,
            garbage::a_delete_waits_for_older_uploads,
            garbage::a_delete_waits_for_older_repairs,
            garbage::a_node_that_is_not_there_is_not_asked_to_delete,
            garbage::who_drains_and_is_silent_is_not_asked_to_delete,
            garbage::an_orphan_waits,
            garbage::orphans_of_a_node_have_a_limit,
            garbage::what_is_to_be_deleted_is_no_orphan,
            garbage::too_many_orphans_of_a_node_stay,
            garbage::no_orphan_goes_where_no_location_is_known,
            garbage::what_an_operator_lets_go_passes_brakes,
            garbage::why_a_brake_holds_is_kept,
            garbage::a_compared_inventory_is_recorded,
            garbage::old_uploads_are_purged,
            held::lost_locations_are_recorded_again,
            held::a_newer_location_is_left_alone,
            held::work_in_hand_is_what_leases_hold,
            intents::a_commit_asked_again_answers_the_same,
            intents::a_failed_commit_leaves_its_intent,
            intents::a_renewed_upload_stays,
            intents::a_cancelled_upload_is_gone,
            intents::an_upload_that_ran_out_is_gone,
            listing::pages_never_repeat_or_miss,
            listing::keys_are_listed_in_byte_order,
            listing::a_prefix_is_taken_literally,
            listing::a_common_prefix_stands_for_all_it_folds,
            listing::a_big_folder_is_one_entry,
            listing::listings_show_what_clients_ask_for,
            listing::a_listing_goes_on_after_what_was_deleted,
            multipart::a_multipart_upload_becomes_an_object,
            multipart::a_part_replaces_the_one_of_its_number,
            multipart::parts_are_listed_in_pages,
            multipart::complete_asked_again_answers_the_same,
            multipart::parts_that_are_not_there_are_refused,
            multipart::a_part_that_was_lost_is_refused,
            multipart::what_assemble_refuses_changes_nothing,
            multipart::an_aborted_upload_is_gone,
            multipart::an_upload_is_known_by_bucket_and_key_too,
            multipart::complete_twice_at_once_makes_one_object,
            multipart::complete_and_abort_at_once_have_one_outcome,
            multipart::a_part_can_refer_to_an_object,
            multipart::a_part_whose_intent_is_gone_is_refused,
            multipart::a_part_promises_what_is_left,
            multipart::complete_keeps_preconditions_and_quota,
            multipart::open_uploads_are_listed_in_pages,
            multipart::an_owner_has_so_many_open_uploads,
            nodes::a_node_is_known_by_its_public_key,
            nodes::a_taken_identity_is_a_conflict,
            nodes::an_address_is_one_node_s,
            nodes::of_many_at_one_address_one_is_known,
            nodes::an_operator_has_so_many_nodes,
            nodes::of_many_nodes_at_once_so_many_are_an_operator_s,
            nodes::a_node_that_comes_back_is_recovering,
            nodes::a_drain_that_was_asked_for_goes_on,
            nodes::heartbeats_tell_who_is_known,
            nodes::nodes_of_a_suspended_operator_drain_until_it_is_lifted,
            nodes::a_suspended_node_goes_to_no_other_operator,
            nodes::a_node_that_is_drained_stays_with_its_account,
            nodes::a_step_from_elsewhere_is_stale,
            nodes::going_offline_is_counted,
            nodes::a_planned_pause_is_no_failure,
            nodes::what_a_former_life_stored_keeps_no_promise,
            nodes::only_a_draining_node_can_be_removed,
            nodes::a_bad_location_is_not_read_again,
            nodes::corrupt_chunks_are_marked_wherever_they_are,
            objects::an_object_reads_back_as_committed,
            objects::keys_hold_anything,
            objects::a_body_of_no_bytes_is_an_object,
            objects::an_overwrite_replaces_the_object,
            objects::preconditions_are_judged,
            objects::of_many_creators_of_a_key_one_wins,
            objects::of_many_overwriters_of_a_version_one_wins,
            objects::commits_of_many_keys_at_once_all_stand,
            objects::deletes_answer_per_key_in_order,
            objects::a_delete_refused_deletes_nothing,
            identity::a_wallet_has_one_owner,
            identity::what_changes_rights_ends_tokens,
            identity::a_session_begins_once,
            identity::a_refresh_token_is_exchanged_once,
            identity::a_refresh_token_used_again_later_ends_its_session,
            identity::what_is_revoked_stays_revoked,
            identity::a_key_keeps_its_limits_and_its_owner,
            identity::a_key_is_revoked_with_the_one_that_made_it,
            identity::an_owner_has_so_many_keys,
            identity::keys_in_use_are_listed_first,
            identity::room_is_reserved_and_given_back,
            identity::uploads_at_once_do_not_take_the_same_room,
            identity::room_is_reserved_as_a_body_grows,
            identity::a_part_is_held_against_the_quota,
            identity::the_log_is_read_in_pages_by_whom_it_is_about,
            identity::what_has_expired_is_dropped_and_no_other,
            owners::an_owner_is_made_once,
            owners::a_constant_keeps_its_first_value,
            owners::the_store_answers_and_has_a_clock,
            repairs::a_queued_stripe_is_claimed_once,
            repairs::what_can_wait_is_left_to_who_asks_for_it,
            repairs::what_is_put_back_is_as_urgent_as_it_was_found,
            repairs::what_was_in_vain_can_be_hurried,
            repairs::what_is_only_to_be_spread_comes_last,
            repairs::many_workers_never_share_a_job,
            repairs::a_job_whose_lease_ran_out_is_anothers,
            repairs::a_renewed_job_stays,
            repairs::a_stripe_queued_during_its_repair_comes_back,
            repairs::a_failed_job_waits_or_is_given_up,
            repairs::what_was_lost_is_queued_with_its_reason,
            repairs::a_finished_repair_is_recorded_whole,
            repairs::a_plan_that_was_overtaken_takes_nothing_away,
            repairs::what_a_repair_stored_in_a_former_life_is_not_recorded,
            repairs::a_repair_of_a_condemned_segment_records_nothing,
            scans::a_change_of_a_node_asks_for_a_scan,
            scans::maintenance_asks_for_a_scan_once,
            scans::a_scan_goes_on_where_it_stopped,
            scans::a_scan_begins_anew,
            scans::a_renewed_scan_stays,
            scans::a_paused_scan_goes_on_where_it_stopped,
            scans::scans_are_claimed_in_the_order_of_their_classes,
            scans::a_scan_that_was_put_off_is_behind_the_others,
            scans::an_inventory_in_hand_goes_on,
            scans::a_node_shows_all_its_locations,
            segments::stripes_read_back_in_any_geometry,
            segments::the_first_stripes_come_with_the_layout,
            segments::layouts_asked_for_at_once_are_not_mixed_up,
            segments::a_range_finds_only_what_overlaps_it,
            segments::a_copy_outlives_its_source,
            segments::a_reference_to_nothing_is_refused,
            segments::a_node_that_left_holds_nothing,
            stripes::a_stripe_shows_all_its_locations,
            stripes::a_stripe_that_lacks_a_chunk_is_unreadable,
            stripes::a_sweep_meets_every_stripe_once,
            stripes::an_object_shows_its_stripes,
            token_keys::the_first_key_is_made_once,
            token_keys::a_key_is_added_after_the_newest_only,
            token_keys::revoked_keys_are_gone,
            usage::usage_adds_up_folded_or_not,
            usage::a_quota_is_kept,
        }
    };
    (@each $open:expr; $($module:ident :: $name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let opened: Option<$crate::conformance::Opened> = ($open)().await.into();
                let Some(opened) = opened else { return };
                $crate::conformance::$module::$name(opened.store()).await;
            }
        )*
    };
}

/// What became of a database that held one online node, the access key `OLD` and the token key `[1, 2]` before any of
/// the later migrations: the node is vetted, the key that tokens were signed with goes on signing, and a key whose maker
/// was not recorded goes on opening.
pub async fn brought_up_to_date(store: &dyn MetadataStore) {
    let [node] = &*store.nodes().await.expect("nodes") else { panic!("there is one node") };
    assert!(node.vetted && node.status == NodeStatus::Online);
    let key = store.api_key("OLD").await.expect("read").expect("is there");
    assert_eq!((key.made_by, key.revoked_at), (None, None));
    let [key] = &*store.token_keys(b"another").await.expect("keys") else { panic!("there is one key") };
    assert_eq!((key.times.number, key.wrapped_seed.as_slice()), (1, [1, 2].as_slice()));
    assert!(key.times.signs_from <= store.now().await.expect("now") && key.times.accepted_until.is_none());
}

/// An owner and a bucket of one test.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The owner.
    pub owner: OwnerId,
    /// The bucket.
    pub bucket: BucketId,
}

/// A v4 id of its own.
pub(crate) fn fresh<T: From<Uuid>>() -> T {
    T::from(Uuid::new_v4())
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).expect("tests name keys well")
}

fn new_owner(quota: Option<ByteCount>) -> Owner {
    Owner {
        id: fresh(),
        username: None,
        email: None,
        wallet_address: None,
        admin: false,
        storage_quota: quota,
        wrapped_secret: vec![7; 60],
        created_at: Timestamp::default(),
    }
}

/// More than any test makes.
const MANY: u32 = 10_000;

fn new_bucket(owner: OwnerId) -> Bucket {
    Bucket {
        id: fresh(),
        name: format!("t-{}", Uuid::new_v4().simple()).parse().expect("tests name buckets well"),
        owner,
        profile: "standard".to_owned(),
        created_at: Timestamp::default(),
    }
}

/// A new owner with a new bucket.
pub async fn place(store: &dyn MetadataStore) -> Place {
    place_with_quota(store, None).await
}

async fn place_with_quota(store: &dyn MetadataStore, quota: Option<ByteCount>) -> Place {
    let owner = store.ensure_owner(&new_owner(quota)).await.expect("make an owner");
    let bucket = store.create_bucket(&new_bucket(owner.id), MANY).await.expect("make a bucket");
    Place { owner: owner.id, bucket: bucket.id }
}

impl Place {
    /// A segment that lives in its row.
    pub fn inline(self, body: &[u8]) -> NewSegment {
        NewSegment {
            id: fresh(),
            owner: self.owner,
            length: ByteCount::bytes(body.len() as u64),
            stripe_size: ByteCount::mib(4),
            geometry: Geometry::STANDARD_SMALL,
            format: 1,
            content_hash: *ChunkId::of(body).as_bytes(),
            body: SegmentBody::Inline {
                plain_hash: *ChunkId::of(body).as_bytes(),
                sealed: Bytes::copy_from_slice(&[body, &[0; 16]].concat()),
            },
            ack_tolerance: 0,
            acked_tolerance: 4,
            target_tolerance: 4,
        }
    }

    /// A segment of `stripes` stripes (the last one short), shard `i` on node `i` modulo their number, and so on
    /// for copies.
    pub fn striped(self, geometry: Geometry, stripes: u32, nodes: &[NodeId]) -> NewSegment {
        let stripe_size = 1000;
        let short = u64::from(stripes.saturating_sub(1)) * stripe_size + 137;
        NewSegment {
            length: ByteCount::bytes(if stripes == 0 { 0 } else { short }),
            stripe_size: ByteCount::bytes(stripe_size),
            geometry,
            body: SegmentBody::Stripes((0..stripes).map(|n| stripe(geometry, n, nodes)).collect()),
            acked_tolerance: 0,
            target_tolerance: 0,
            ..self.inline(&stripes.to_be_bytes())
        }
    }

    /// A commit under a key, of a new upload without an intent. Its ETag is random.
    pub fn commit(self, key: &str, content: Content) -> CommitObject {
        let size = match &content {
            Content::New(segment) => segment.length,
            Content::References(ranges) => ByteCount::bytes(ranges.iter().map(|range| range.length).sum()),
        };
        CommitObject {
            upload: fresh(),
            has_intent: false,
            file: fresh(),
            owner: self.owner,
            bucket: self.bucket,
            key: self::key(key),
            precondition: Precondition::None,
            size,
            etag: Uuid::new_v4().simple().to_string(),
            content_hash: *ChunkId::of(key.as_bytes()).as_bytes(),
            attributes: Attributes::default(),
            content,
        }
    }

    /// Puts a few bytes under a key.
    pub(crate) async fn put(self, store: &dyn MetadataStore, key: &str, body: &[u8]) -> Object {
        let commit = self.commit(key, Content::New(self.inline(body)));
        store.commit_object(&commit).await.expect("commit a small object")
    }

    async fn get(self, store: &dyn MetadataStore, key: &str) -> Option<Object> {
        store.object(self.bucket, &self::key(key)).await.expect("read an object")
    }

    async fn delete(self, store: &dyn MetadataStore, keys: &[&str]) -> Vec<Option<Object>> {
        let keys: Vec<ObjectKey> = keys.iter().map(|key| self::key(key)).collect();
        store.delete_objects(self.bucket, &keys, &Precondition::None).await.expect("delete objects")
    }

    /// What refers to all of an object, as a copy of it does.
    async fn references(self, store: &dyn MetadataStore, key: &str) -> Content {
        let layout = store.object_layout(self.bucket, &self::key(key), None).await.expect("read a layout");
        let extents = layout.expect("the source is there").extents;
        let range = |extent: &crate::model::Extent| SegmentRange {
            segment: extent.segment.id,
            offset: extent.segment_offset,
            length: extent.length,
        };
        Content::References(extents.iter().map(range).collect())
    }
}

/// Of every node's data directory, until it registers with another.
const FIRST_LIFE: Uuid = Uuid::from_u128(9);

fn stripe(geometry: Geometry, number: u32, nodes: &[NodeId]) -> NewStripe {
    let shard = |index: ShardIndex| {
        let at = |copy: usize| NewLocation {
            node: nodes[(index.get() + copy) % nodes.len()],
            generation: Generation { incarnation: FIRST_LIFE, counter: u64::from(number) + 1 },
            receipt_signature: vec![index.get() as u8; 64],
            stored_at: Timestamp::from_unix_millis(1_700_000_000_123),
        };
        let copies = if nodes.is_empty() { 0 } else { geometry.copies() };
        NewShard {
            index,
            chunk: ChunkId::of(Uuid::new_v4().as_bytes()),
            size: ByteCount::bytes(64 + u64::from(number)),
            locations: (0..copies).map(at).collect(),
        }
    };
    NewStripe {
        plain_hash: *ChunkId::of(&number.to_be_bytes()).as_bytes(),
        plain_len: ByteCount::bytes(if number == 0 { 1000 } else { 137 }),
        shards: geometry.indices().map(shard).collect(),
        tolerance: 0,
    }
}

fn new_node() -> RegisterNode {
    let id: NodeId = fresh();
    let secret = Uuid::new_v4();
    RegisterNode {
        id,
        public_key: *ChunkId::of(secret.as_bytes()).as_bytes(),
        peer_id: format!("peer-{secret}"),
        label: "node-1".to_owned(),
        name: "A node".to_owned(),
        // No two nodes have the same.
        grpc_address: format!("http://{secret}.example:50051"),
        metrics_address: "http://203.0.113.7:9090".to_owned(),
        incarnation: FIRST_LIFE,
        storage_total: ByteCount::gib(100),
        storage_reserved: ByteCount::gib(2),
        storage_used: ByteCount::gib(1),
        region: "eu".to_owned(),
        operator: "op".to_owned(),
        subnet: "203.0.113.0/24".to_owned(),
        version: "0.1.0".to_owned(),
        wire_version: 1,
        nodes_max: None,
    }
}

/// Registers `count` nodes that are online.
pub async fn online_nodes(store: &dyn MetadataStore, count: usize) -> Vec<NodeId> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(store.register_node(&new_node()).await.expect("register a node").id);
    }
    ids
}
