//! The node's gRPC services over a [`ChunkStore`]: translation, and the bridge from async to blocking.
//!
//! Hashing, proofs and the store run on blocking threads, a bounded number of them: many for stores, which mostly wait
//! for a shared sync, few for reads, which keep a processor busy. Work that has begun ends even if its caller goes away.
//! Not here: who may call (`gate` and `limit`, asked first), what a store promises (`store`).

mod chunks;
mod data;
#[cfg(feature = "faults")]
mod lie;
mod push;
mod whole;

use std::sync::Arc;

use cyxcloud_core::ChunkId;
use cyxcloud_core::address::AddressPolicy;
use cyxcloud_core::receipt::NodeKey;
use cyxcloud_tls::grpc::PeerInfo;
use tokio::sync::Semaphore;
use tonic::{Request, Status};

use crate::corrupt::CorruptChunks;
use crate::limit::Callers;
use crate::metrics::Metrics;
use crate::store::{ChunkStore, Error};

pub(crate) use whole::Whole;

pub(crate) use chunks::now;

/// Stores at a time: as many as may share one sync.
const STORES_MAX: usize = 64;
/// Reads at a time.
const READS_MAX: usize = 16;

/// A request, and what is known of its sender.
type Asked<T> = (T, Option<PeerInfo>);

fn asked<T>(request: Request<T>) -> Asked<T> {
    let peer = request.extensions().get().copied();
    (request.into_inner(), peer)
}

/// Both services; clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    store: Arc<dyn ChunkStore>,
    key: Arc<NodeKey>,
    callers: Arc<Callers>,
    policy: Arc<AddressPolicy>,
    /// Whether deleted chunks go to the trash.
    trash: bool,
    corrupt: Arc<CorruptChunks>,
    metrics: Arc<Metrics>,
    stores: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(
        store: Arc<dyn ChunkStore>,
        key: NodeKey,
        callers: Arc<Callers>,
        policy: AddressPolicy,
        trash: bool,
        corrupt: Arc<CorruptChunks>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            store,
            key: Arc::new(key),
            callers,
            policy: Arc::new(policy),
            trash,
            corrupt,
            metrics,
            stores: Arc::new(Semaphore::new(STORES_MAX)),
            reads: Arc::new(Semaphore::new(READS_MAX)),
        }
    }

    /// Runs work on the store that changes something.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        self.blocking(&self.stores, work).await
    }

    /// Runs work on the store that only reads.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        self.blocking(&self.reads, work).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        permits: &Arc<Semaphore>,
        work: impl FnOnce(&Self) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let permit = permits.clone().acquire_owned().await.expect("never closed");
        let service = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&service)
        });
        done.await
            .unwrap_or_else(|_| Err(Status::internal("the request failed inside the node; see its log")))
    }

    /// A store's error as a status. One that is corrupt is also remembered for the next heartbeat.
    fn status(&self, error: Error) -> Status {
        let message = error.to_string();
        match error {
            Error::WrongId { .. } | Error::Length { .. } => Status::invalid_argument(message),
            Error::Full { .. } => Status::resource_exhausted(message),
            Error::ReadOnly { .. } | Error::Damaged { .. } | Error::Closed => Status::unavailable(message),
            Error::Corrupt { id } => {
                self.corrupt.found(id);
                self.metrics.corrupt.inc();
                Status::data_loss(message)
            }
            Error::Io { source, .. } => {
                tracing::error!(error = %message, cause = %source, "chunk store failed");
                Status::internal(message)
            }
        }
    }

    /// A chunk's verified bytes.
    fn load(&self, id: ChunkId) -> Result<bytes::Bytes, Status> {
        match self.store.get(id) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(Status::not_found(format!("chunk {id} is not held here"))),
            Err(error) => Err(self.status(error)),
        }
    }
}
