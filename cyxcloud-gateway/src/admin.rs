//! What administrators see and may do: nodes, repairs, audits, garbage collection.
//!
//! Status degrades: a part that the database cannot answer is `null` and named under `problems`; the answer is 200 all
//! the same, so that the rest can be seen when it matters most. Commands fail as problems do.
//! Whoever serves this has authenticated the request; here only administrators pass. Not here: what is done in the background (the rebalancer).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use cyxcloud_core::NodeId;
use cyxcloud_core::node::NodeStatus;
use cyxcloud_metadata::model::Node;
use cyxcloud_metadata::upkeep::model::{AuditEvent, NodeUpkeep, RepairQueue, ScanReason};
use cyxcloud_metadata::{Error as MetadataError, MetadataStore, Result as MetadataResult};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::auth::Principal;
use crate::ephemeral::Ephemeral;
use crate::identity::routes::{Asked, asked, parse};
use crate::nodes::scrub_wanted;
use crate::problem::{FOR_ADMINISTRATORS, Kind, Problem};
use crate::rest::{Raw, known, rfc3339};

/// A part of the status that takes longer than this is left out.
const PART_TIMEOUT: Duration = Duration::from_secs(5);
/// Audit events shown at most.
const EVENTS_MAX: usize = 1000;

/// For so long a node that is silent may be told to scrub.
const SCRUB_ASKED_FOR: Duration = Duration::from_secs(3600);

type Metadata = State<Arc<dyn MetadataStore>>;
type Caller = Option<Extension<Principal>>;

/// Strangers are asked who they are before they learn that this is not for them.
fn administrator(caller: Caller) -> Result<Principal, Problem> {
    let caller = known(caller)?;
    if caller.admin {
        return Ok(caller);
    }
    Err(Problem::new(Kind::NotAdmin, FOR_ADMINISTRATORS))
}

/// The parts of a status that could not be had. Those of one status are asked for at once.
#[derive(Default)]
struct Parts(Mutex<Vec<String>>);

impl Parts {
    async fn take<T>(&self, name: &str, part: impl Future<Output = MetadataResult<T>>) -> Option<T> {
        let problem = match tokio::time::timeout(PART_TIMEOUT, part).await {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => {
                tracing::warn!(
                    part = name,
                    error = &error as &dyn std::error::Error,
                    "a status is incomplete"
                );
                format!("{name}: {error}")
            }
            Err(_) => format!("{name}: no answer within {} s", PART_TIMEOUT.as_secs()),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
        None
    }

    /// What could not be had, and why.
    fn problems(self) -> Vec<String> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nodes, repairs and garbage in numbers; a part that cannot be had is `null` and named under `problems`.
#[derive(Serialize, ToSchema)]
pub(crate) struct StatusBody {
    nodes: Option<NodeCounts>,
    repairs: Option<RepairsBody>,
    gc: Option<GcBody>,
    problems: Vec<String>,
}

/// Nodes in numbers.
#[derive(Serialize, ToSchema)]
pub(crate) struct NodeCounts {
    #[schema(value_type = BTreeMap<String, usize>)]
    by_status: BTreeMap<&'static str, usize>,
    quarantined: usize,
    maintenance: usize,
    storage_total_bytes: u64,
    storage_used_bytes: u64,
    storage_available_bytes: u64,
}

impl NodeCounts {
    fn of(nodes: &[Node]) -> Self {
        let mut by_status: BTreeMap<_, _> = NodeStatus::ALL.map(|status| (status.as_str(), 0)).into();
        for node in nodes {
            *by_status.entry(node.status.as_str()).or_default() += 1;
        }
        let sum = |field: fn(&Node) -> u64| nodes.iter().map(field).fold(0, u64::saturating_add);
        Self {
            by_status,
            quarantined: nodes.iter().filter(|node| node.quarantined).count(),
            maintenance: nodes.iter().filter(|node| node.maintenance).count(),
            storage_total_bytes: sum(|node| node.storage_total.get()),
            storage_used_bytes: sum(|node| node.storage_used.get()),
            storage_available_bytes: sum(|node| node.storage_available.get()),
        }
    }
}

/// The queue of repairs.
#[derive(Serialize, ToSchema)]
pub(crate) struct RepairsBody {
    /// Open jobs by the number of node losses that their stripe still survives; -1 is unreadable now.
    #[schema(value_type = BTreeMap<String, u64>)]
    pending_by_tolerance: BTreeMap<i32, u64>,
    due: u64,
    /// Open jobs of stripes that are whole and only to be spread over more operators, after all else; none of them is `due`.
    to_spread: u64,
    in_progress: u64,
    /// Those that ended well within the last 24 hours; no more than 100,000 are counted.
    completed: u64,
    /// Those that were given up within the last 24 hours; no more than 100,000 are counted.
    failed: u64,
    oldest_due_seconds: Option<f64>,
}

impl From<RepairQueue> for RepairsBody {
    fn from(queue: RepairQueue) -> Self {
        Self {
            pending_by_tolerance: queue.pending,
            due: queue.due,
            to_spread: queue.to_spread,
            in_progress: queue.in_progress,
            completed: queue.completed,
            failed: queue.failed,
            oldest_due_seconds: queue.oldest_due.map(|age| age.as_secs_f64()),
        }
    }
}

/// What waits to be collected; no more than 100,000 of each kind are counted.
#[derive(Serialize, ToSchema)]
pub(crate) struct GcBody {
    candidates: u64,
    condemned_segments: u64,
    chunk_deletes: u64,
    chunk_deletes_due: u64,
    orphans: u64,
    /// Why an administrator stopped it.
    frozen: Option<String>,
    /// Why a brake keeps something from being collected: an administrator must look.
    halted: Option<String>,
}

async fn gc_body(metadata: &dyn MetadataStore) -> MetadataResult<GcBody> {
    let state = metadata.gc_state().await?;
    Ok(GcBody {
        candidates: state.candidates,
        condemned_segments: state.condemned,
        chunk_deletes: state.deletes,
        chunk_deletes_due: state.deletes_due,
        orphans: state.orphans,
        frozen: state.frozen,
        halted: state.halted,
    })
}

pub(crate) async fn status(State(metadata): Metadata, caller: Caller) -> Result<Json<StatusBody>, Problem> {
    administrator(caller)?;
    let parts = Parts::default();
    let (nodes, repairs, gc) = tokio::join!(
        parts.take("nodes", metadata.nodes()),
        parts.take("repairs", metadata.repair_queue()),
        parts.take("gc", gc_body(&*metadata)),
    );
    Ok(Json(StatusBody {
        nodes: nodes.map(|nodes| NodeCounts::of(&nodes)),
        repairs: repairs.map(RepairsBody::from),
        gc,
        problems: parts.problems(),
    }))
}

/// All nodes.
#[derive(Serialize, ToSchema)]
pub(crate) struct NodesBody {
    nodes: Option<Vec<NodeBody>>,
    problems: Vec<String>,
}

/// A node.
#[derive(Serialize, ToSchema)]
pub(crate) struct NodeBody {
    id: String,
    peer_id: String,
    label: String,
    name: String,
    grpc_address: String,
    region: String,
    operator: String,
    subnet: String,
    version: String,
    status: &'static str,
    status_changed_at: String,
    last_heartbeat: String,
    failure_count: u32,
    maintenance: bool,
    read_only: bool,
    quarantined: bool,
    vetted: bool,
    storage_total_bytes: u64,
    storage_used_bytes: u64,
    storage_available_bytes: u64,
    upkeep: Option<NodeUpkeepBody>,
}

/// What audits and inventories say of a node.
#[derive(Serialize, ToSchema)]
pub(crate) struct NodeUpkeepBody {
    audits_proven: u64,
    audits_failed: u64,
    audit_score: Option<f64>,
    last_audit: Option<String>,
    reconciled_at: Option<String>,
    locations: u64,
}

impl From<&NodeUpkeep> for NodeUpkeepBody {
    fn from(node: &NodeUpkeep) -> Self {
        let weight = node.audits.alpha + node.audits.beta;
        Self {
            audits_proven: node.audits.proven,
            audits_failed: node.audits.failed,
            audit_score: (weight > 0.0).then(|| node.audits.alpha / weight),
            last_audit: node.audits.last_audit.map(rfc3339),
            reconciled_at: node.reconciled_at.map(rfc3339),
            locations: node.locations,
        }
    }
}

impl NodeBody {
    fn of(node: Node, upkeep: Option<&NodeUpkeep>) -> Self {
        Self {
            id: node.id.to_string(),
            peer_id: node.peer_id,
            label: node.label,
            name: node.name,
            grpc_address: node.grpc_address,
            region: node.region,
            operator: node.operator,
            subnet: node.subnet,
            version: node.version,
            status: node.status.as_str(),
            status_changed_at: rfc3339(node.status_changed_at),
            last_heartbeat: rfc3339(node.last_heartbeat),
            failure_count: node.failure_count,
            maintenance: node.maintenance,
            read_only: node.read_only,
            quarantined: node.quarantined,
            vetted: node.vetted,
            storage_total_bytes: node.storage_total.get(),
            storage_used_bytes: node.storage_used.get(),
            storage_available_bytes: node.storage_available.get(),
            upkeep: upkeep.map(NodeUpkeepBody::from),
        }
    }
}

pub(crate) async fn nodes(State(metadata): Metadata, caller: Caller) -> Result<Json<NodesBody>, Problem> {
    administrator(caller)?;
    let parts = Parts::default();
    let (nodes, upkeep) =
        tokio::join!(parts.take("nodes", metadata.nodes()), parts.take("upkeep", metadata.nodes_upkeep()),);
    let upkeep = upkeep.unwrap_or_default();
    let upkeep: BTreeMap<NodeId, NodeUpkeep> = upkeep.into_iter().map(|node| (node.node, node)).collect();
    let nodes = nodes.map(|nodes| {
        nodes.into_iter().map(|node| NodeBody::of(node.clone(), upkeep.get(&node.id))).collect()
    });
    Ok(Json(NodesBody { nodes, problems: parts.problems() }))
}

/// The queue of repairs, if it can be had.
#[derive(Serialize, ToSchema)]
pub(crate) struct RepairsStatus {
    repairs: Option<RepairsBody>,
    problems: Vec<String>,
}

pub(crate) async fn repairs(
    State(metadata): Metadata,
    caller: Caller,
) -> Result<Json<RepairsStatus>, Problem> {
    administrator(caller)?;
    let parts = Parts::default();
    let repairs = parts.take("repairs", metadata.repair_queue()).await.map(RepairsBody::from);
    Ok(Json(RepairsStatus { repairs, problems: parts.problems() }))
}

/// What waits to be collected, if it can be had.
#[derive(Serialize, ToSchema)]
pub(crate) struct GcStatus {
    gc: Option<GcBody>,
    problems: Vec<String>,
}

pub(crate) async fn gc(State(metadata): Metadata, caller: Caller) -> Result<Json<GcStatus>, Problem> {
    administrator(caller)?;
    let parts = Parts::default();
    let gc = parts.take("gc", gc_body(&*metadata)).await;
    Ok(Json(GcStatus { gc, problems: parts.problems() }))
}

/// Which proofs are asked for.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditsQuery {
    /// One node's only.
    #[param(value_type = Option<String>, format = "uuid")]
    node: Option<Uuid>,
    /// 1 to 1000; 100 where nothing is said.
    limit: Option<usize>,
}

/// Proofs of storage, newest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct AuditsBody {
    audits: Option<Vec<AuditBody>>,
    problems: Vec<String>,
}

/// A proof of storage, or its failure.
#[derive(Serialize, ToSchema)]
pub(crate) struct AuditBody {
    at: String,
    #[schema(value_type = String, format = "uuid")]
    round: Uuid,
    node: String,
    chunk: String,
    segment: String,
    stripe: u32,
    shard: usize,
    slice_offset: u64,
    slice_bytes: u64,
    outcome: &'static str,
    again: bool,
}

impl From<AuditEvent> for AuditBody {
    fn from(event: AuditEvent) -> Self {
        Self {
            at: rfc3339(event.when),
            round: event.round,
            node: event.node.to_string(),
            chunk: event.at.chunk.to_string(),
            segment: event.at.stripe.segment.to_string(),
            stripe: event.at.stripe.index,
            shard: event.at.shard.get(),
            slice_offset: event.slice.start,
            slice_bytes: event.slice.end.saturating_sub(event.slice.start),
            outcome: event.outcome.as_str(),
            again: event.again,
        }
    }
}

pub(crate) async fn audits(
    State(metadata): Metadata,
    caller: Caller,
    query: Asked<AuditsQuery>,
) -> Result<Json<AuditsBody>, Problem> {
    administrator(caller)?;
    let query = asked(query)?;
    let parts = Parts::default();
    let node = query.node.map(NodeId::from_uuid);
    let limit = query.limit.unwrap_or(100).clamp(1, EVENTS_MAX);
    let audits = parts.take("audits", metadata.audit_events(node, limit)).await;
    let audits = audits.map(|audits| audits.into_iter().map(AuditBody::from).collect());
    Ok(Json(AuditsBody { audits, problems: parts.problems() }))
}

pub(crate) fn refused(error: MetadataError) -> Problem {
    match error {
        MetadataError::Stale { .. } => {
            let detail = "the node changed state meanwhile; look at it again and repeat";
            Problem::new(Kind::Stale, detail)
        }
        error => {
            tracing::error!(error = &error as &dyn std::error::Error, "an administrator's command failed");
            let detail = "the metadata store does not answer; try again";
            Problem::new(Kind::Unavailable, detail)
        }
    }
}

async fn one_node(metadata: &dyn MetadataStore, id: &str) -> Result<Node, Problem> {
    let id = id.parse::<Uuid>().ok().map(NodeId::from_uuid);
    let nodes = metadata.nodes().await.map_err(refused)?;
    nodes
        .into_iter()
        .find(|node| Some(node.id) == id)
        .ok_or_else(|| Problem::new(Kind::NoSuchNode, "GET /api/v1/admin/nodes lists the nodes there are"))
}

/// What was done.
#[derive(Serialize, ToSchema)]
pub(crate) struct Done {
    status: &'static str,
}

/// Moves everything away from a node that is to leave. Reads go on until it is empty.
pub(crate) async fn drain(
    State(metadata): Metadata,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Done>), Problem> {
    let caller = administrator(caller)?;
    let node = one_node(&*metadata, &id).await?;
    if metadata.drain_node(node.id, true).await.map_err(refused)? {
        tracing::info!(node = %node.id, by = %caller.owner, "an administrator drains a node");
    }
    Ok((StatusCode::ACCEPTED, Json(Done { status: NodeStatus::Draining.as_str() })))
}

/// Lets a node be one of the others again that drains because somebody asked for it; or else one that is held back for what it
/// failed to prove. That one's record begins anew, and it counts as new.
pub(crate) async fn resume(
    State(metadata): Metadata,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Done>), Problem> {
    let caller = administrator(caller)?;
    let node = one_node(&*metadata, &id).await?;
    let status = if metadata.drain_node(node.id, false).await.map_err(refused)? {
        NodeStatus::Recovering.as_str()
    } else if metadata.forgive(node.id).await.map_err(refused)? {
        "forgiven"
    } else {
        let detail = "it neither drains because an administrator asked for it nor is held back: it may be in service, away, or \
                      its operator suspended; GET /api/v1/admin/nodes says which";
        return Err(Problem::new(Kind::NotNow, detail));
    };
    tracing::info!(node = %node.id, by = %caller.owner, status, "an administrator takes a node back into service");
    Ok((StatusCode::ACCEPTED, Json(Done { status })))
}

/// Has a node read again and check all that it holds, as soon as its next heartbeat comes. May be lost with Redis, or with a node
/// that is silent for an hour: then it is to be asked for again.
pub(crate) async fn scrub(
    State(metadata): Metadata,
    State(ephemeral): State<Arc<dyn Ephemeral>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Done>), Problem> {
    administrator(caller)?;
    let node = one_node(&*metadata, &id).await?;
    let kept = ephemeral.keep(&scrub_wanted(node.id), "", SCRUB_ASKED_FOR).await;
    kept.map_err(|_| Problem::new(Kind::Unavailable, "Redis does not answer; try again"))?;
    Ok((StatusCode::ACCEPTED, Json(Done { status: "queued" })))
}

/// Compares a node's inventory with the database, both ways, soon.
pub(crate) async fn reconcile(
    State(metadata): Metadata,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Done>), Problem> {
    administrator(caller)?;
    let node = one_node(&*metadata, &id).await?;
    metadata.queue_scan(node.id, ScanReason::Periodic).await.map_err(refused)?;
    Ok((StatusCode::ACCEPTED, Json(Done { status: "queued" })))
}

/// Why collection is to stop.
#[derive(Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Freeze {
    reason: Option<String>,
}

/// Stops garbage collection until it is thawed.
pub(crate) async fn freeze(
    State(metadata): Metadata,
    caller: Caller,
    Raw(body): Raw,
) -> Result<Json<Done>, Problem> {
    let caller = administrator(caller)?;
    let body = if body.is_empty() { Freeze::default() } else { parse(&body)? };
    let reason = body.reason.unwrap_or_else(|| "an administrator asked".to_owned());
    metadata.freeze_gc(&reason).await.map_err(refused)?;
    tracing::warn!(by = %caller.owner, reason, "garbage collection is frozen");
    Ok(Json(Done { status: "frozen" }))
}

/// Lets garbage collection go on, after a restore too: from then on what the restored metadata does not know is collected. What
/// waits at this moment goes even where a brake held it.
pub(crate) async fn thaw(State(metadata): Metadata, caller: Caller) -> Result<Json<Done>, Problem> {
    let caller = administrator(caller)?;
    let was = metadata.thaw_gc().await.map_err(refused)?;
    tracing::warn!(by = %caller.owner, was_frozen = was.frozen, was_braked = was.braked, "garbage collection goes on");
    let status = match (was.frozen, was.braked) {
        (true, _) => "thawed",
        (false, true) => "released",
        (false, false) => "was-not-frozen",
    };
    Ok(Json(Done { status }))
}
