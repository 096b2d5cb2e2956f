//! The data plane: cuts a body into stripes, seals, codes and stores them on nodes, and reads them back.
//!
//! What it acknowledges survives the loss of as many nodes as it says, computed from verified receipts. What it
//! hands out was verified on the way. Memory is bounded by a budget, whatever the objects' sizes and number; dropping a future
//! or a stream stops its work and returns all it held.
//! Not here: what makes an object visible (`cyxcloud-metadata`), where shards go (`cyxcloud_core::placement`), repair's queue.

mod budget;
mod buffer;
mod config;
mod cpu;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod latency;
mod metrics;
mod node;
pub mod own;
mod read;
mod repair;
mod report;
mod rotation;
mod write;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::address::AddressPolicy;
use cyxcloud_core::profile::{Profile, TooFewNodes};
use cyxcloud_core::seal::{MasterKey, OwnerSecret};
use cyxcloud_core::{ByteCount, NodeId, Timestamp};
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{Extent, NewSegment};
use futures::Stream;
use tracing::warn;

pub use config::Config;
pub use error::{NodeError, ReadError, WriteError};
pub use node::{Deleted, ListedChunk, NodePool};
pub use repair::{Audited, RepairError, Repaired};
pub use rotation::{RotateError, SigningKey};
pub use write::{Tap, WriteRequest};

use budget::ByteBudget;
use buffer::BufferPool;
use cpu::Cpu;
use metrics::Metrics;
use node::view::View;
use report::Reporter;

/// A list of nodes older than this is renewed before it is used.
const VIEW_AGE_MAX: Duration = Duration::from_secs(2);

/// Writes segments to nodes and reads them back. A clone is the same data plane.
#[derive(Clone)]
pub struct DataPlane(Arc<Plane>);

/// What all reads and writes share.
pub(crate) struct Plane {
    config: Config,
    metadata: Arc<dyn MetadataStore>,
    master: Arc<MasterKey>,
    pool: NodePool,
    buffers: BufferPool,
    cpu: Cpu,
    write_budget: ByteBudget,
    read_budget: ByteBudget,
    reporter: Reporter,
    metrics: Metrics,
    refreshing: tokio::sync::Mutex<()>,
}

impl DataPlane {
    /// A data plane over these nodes' metadata. Spawns nothing and connects to nobody yet.
    pub fn new(
        config: Config,
        metadata: Arc<dyn MetadataStore>,
        policy: AddressPolicy,
        master: MasterKey,
        registry: &prometheus::Registry,
    ) -> Self {
        let metrics = Metrics::new(registry);
        let half = ByteCount::bytes(config.memory.get() / 2);
        let budget = |direction| ByteBudget::new(half, metrics.budget_in_use.with_label_values(&[direction]));
        let cpu = Cpu::new();
        Self(Arc::new(Plane {
            pool: NodePool::new(config.clone(), policy, cpu.clone(), metrics.clone()),
            buffers: BufferPool::new(half),
            cpu,
            write_budget: budget("write"),
            read_budget: budget("read"),
            reporter: Reporter::new(metadata.clone()),
            metrics,
            refreshing: tokio::sync::Mutex::default(),
            master: Arc::new(master),
            metadata,
            config,
        }))
    }

    /// Looks up the nodes again. To be called at start and every second or so; otherwise reads and writes do it when
    /// the list has grown old.
    pub async fn refresh_nodes(&self) -> cyxcloud_metadata::Result<()> {
        self.0.look_up().await
    }

    /// What nodes are to check our servers' tokens by: the public keys that they are, were or will be signed with, newest
    /// first. None before the nodes were looked up for the first time.
    pub fn token_keys(&self) -> Vec<[u8; 32]> {
        self.0.pool.issuer.public_keys()
    }

    /// The key by which a node is known, as of the last look at the nodes.
    pub fn key_of(&self, node: NodeId) -> Option<[u8; 32]> {
        self.0.pool.view().nodes.get(&node).map(|known| known.client.public_key)
    }

    /// The time by the database's clock, once it was asked.
    pub fn now(&self) -> Option<Timestamp> {
        self.0.pool.issuer.now()
    }

    /// Says whether enough nodes take new data for the profile's promise; to be asked before a body is taken.
    /// Judges by the list of nodes as it was last looked up.
    pub fn check_capacity(&self, profile: &Profile) -> Result<(), TooFewNodes> {
        profile.ack_tolerance(self.0.pool.view().eligible(), self.0.config.consent_to_no_redundancy).map(drop)
    }

    /// Stores a body and answers with the segment to be committed. When it returns, every stripe survives the loss of
    /// `acked_tolerance` nodes.
    ///
    /// `tap` sees all plain bytes in order, in parallel with the rest; for small bodies on the calling thread, otherwise on a
    /// blocking one.
    ///
    /// Dropping the future stops the work. Never feed it a body that itself waits for this write's memory.
    pub async fn write_segment<S, E>(
        &self,
        request: WriteRequest,
        body: S,
        tap: Tap,
    ) -> Result<NewSegment, WriteError<E>>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Send,
    {
        write::write_segment(&self.0, request, body, tap).await
    }

    /// The bytes of `range` of an object made of these extents, verified, in order. The first come before the last are
    /// fetched. Nothing happens until the stream is polled; dropping it stops the work.
    ///
    /// After an error the stream ends. Must be polled within a tokio runtime.
    pub fn read(
        &self,
        secret: Arc<OwnerSecret>,
        extents: Vec<Extent>,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + 'static {
        read::read(self.0.clone(), secret, extents, range)
    }

    /// Whether somebody waits to read because others hold the memory for it.
    pub fn readers_wait(&self) -> bool {
        self.0.read_budget.is_wanted()
    }

    /// The nodes' connections, for services that work on single chunks.
    pub fn nodes(&self) -> &NodePool {
        &self.0.pool
    }
}

impl fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataPlane").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Plane {
    /// Looks the nodes up, and makes sure that tokens for them can be signed.
    async fn look_up(&self) -> cyxcloud_metadata::Result<()> {
        self.pool.issuer.learn(&*self.metadata, &self.master).await?;
        self.pool.update(&self.metadata.nodes().await?);
        Ok(())
    }

    /// The nodes, looked up again if what is known is old. Old is better than nothing.
    async fn fresh_view(&self) -> cyxcloud_metadata::Result<Arc<View>> {
        let fresh = |view: &View| view.taken_at.is_some_and(|at| at.elapsed() < VIEW_AGE_MAX);
        let view = self.pool.view();
        if fresh(&view) {
            return Ok(view);
        }
        let _turn = self.refreshing.lock().await;
        let view = self.pool.view();
        if fresh(&view) {
            return Ok(view);
        }
        match self.look_up().await {
            Ok(()) => Ok(self.pool.view()),
            Err(error) if view.taken_at.is_some() => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "nodes could not be looked up; going on with those known"
                );
                Ok(view)
            }
            Err(error) => Err(error),
        }
    }
}
