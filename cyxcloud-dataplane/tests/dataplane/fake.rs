//! A storage node made for misbehaving: a real gRPC server on loopback whose faults are switched by the test.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::receipt::{NodeKey, Receipt};
use cyxcloud_core::{ByteCount, ChunkId, Generation, NodeId, Timestamp, proof};
use cyxcloud_proto::node::chunk_service_client::ChunkServiceClient;
use cyxcloud_proto::node::chunk_service_server::{ChunkService, ChunkServiceServer};
use cyxcloud_proto::node::data_service_server::{DataService, DataServiceServer};
use cyxcloud_proto::node::delete_chunk_response::Outcome;
use cyxcloud_proto::node::{
    ChunkEntry, DeleteChunkRequest, DeleteChunkResponse, GetChunkRequest, GetChunkResponse, HasChunkRequest,
    HasChunkResponse, ListChunksRequest, ListChunksResponse, ReplicateChunkRequest, ReplicateChunkResponse,
    RestoreChunkRequest, RestoreChunkResponse, StoreChunkRequest, StoreChunkResponse, VerifyChunkRequest,
    VerifyChunkResponse,
};
use futures::{Stream, StreamExt};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// What a node does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Every call fails at once.
    Refuse,
    /// No call is ever answered.
    Hang,
    /// Every call takes this long.
    Slow(Duration),
    /// Chunks come back with a byte changed.
    WrongBytes,
    /// So do whole chunks; slices are right.
    AuditsOnly,
    /// The other way round.
    WholesOnly,
    /// Chunks come back with their end cut off.
    ShortBytes,
    /// Chunks come back much longer than they were.
    LongBytes,
    /// Chunks are not found.
    Forget,
    /// Chunks are found to have rotted.
    Rotten,
    /// Receipts are signed by somebody else.
    OtherKey,
    /// Receipts are for another length.
    OtherLength,
    /// Receipts are of a life that it did not register.
    OtherLife,
    /// Stores are refused for lack of space.
    Full,
    /// Refuses everything after so many stores.
    DieAfter(u64),
    /// Lists what it holds, and then nothing, without an end.
    SilentList,
    /// Lists what it holds again and again.
    EndlessList,
    /// Lists what nobody stored, one at a time and slowly.
    DrippingList,
}

struct Held {
    bytes: Bytes,
    generation: Generation,
    descriptor: Bytes,
}

#[derive(Default)]
pub(crate) struct Counts {
    /// Of all kinds, also those that were not answered.
    pub(crate) calls: AtomicU64,
    pub(crate) stores: AtomicU64,
    pub(crate) gets: AtomicU64,
    pub(crate) slices: AtomicU64,
    pub(crate) slice_bytes: AtomicU64,
}

struct State {
    key: NodeKey,
    incarnation: Uuid,
    counter: AtomicU64,
    chunks: Mutex<BTreeMap<ChunkId, Held>>,
    fault: Mutex<Fault>,
    counts: Counts,
}

/// A node and the runtime it lives on, so that it can die without a goodbye.
pub(crate) struct FakeNode {
    pub(crate) id: NodeId,
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

impl FakeNode {
    pub(crate) fn start(number: u8) -> Self {
        let state = Arc::new(State {
            key: NodeKey::from_seed([number + 1; 32]),
            incarnation: Uuid::from_bytes([number + 1; 16]),
            counter: AtomicU64::new(0),
            chunks: Mutex::default(),
            fault: Mutex::new(Fault::None),
            counts: Counts::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("bound");
        let mut node = Self { id: NodeId::from_random([number + 1; 16]), address, state, runtime: None };
        node.serve(listener);
        node
    }

    fn serve(&mut self, listener: TcpListener) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        listener.set_nonblocking(true).expect("set");
        let state = self.state.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let data = DataServiceServer::new(Service(state.clone()));
            let service = ChunkServiceServer::new(Service(state))
                .max_decoding_message_size(cyxcloud_proto::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(cyxcloud_proto::MESSAGE_BYTES_MAX);
            tonic::transport::Server::builder()
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20)
                .max_frame_size(1 << 20)
                .tcp_nodelay(true)
                .add_service(service)
                .add_service(data)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .expect("serve");
        });
        self.runtime = Some(runtime);
    }

    /// Kills the process, so to say; what it stored stays on its disk.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Starts it again where it was.
    pub(crate) fn restart(&mut self) {
        for _ in 0..100 {
            if let Ok(listener) = TcpListener::bind(self.address) {
                return self.serve(listener);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the port of a killed node did not become free");
    }

    pub(crate) fn public_key(&self) -> [u8; 32] {
        self.state.key.public()
    }

    pub(crate) fn incarnation(&self) -> Uuid {
        self.state.incarnation
    }

    pub(crate) fn fault(&self, fault: Fault) {
        *self.state.fault.lock().expect("no test panics holding it") = fault;
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.state.counts
    }

    /// Ids and descriptors of all it holds.
    pub(crate) fn held(&self) -> Vec<(ChunkId, Bytes)> {
        self.state.chunks().iter().map(|(id, held)| (*id, held.descriptor.clone())).collect()
    }

    pub(crate) fn bytes_of(&self, chunk: &ChunkId) -> Option<Bytes> {
        self.state.chunks().get(chunk).map(|held| held.bytes.clone())
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.kill();
    }
}

impl State {
    fn chunks(&self) -> MutexGuard<'_, BTreeMap<ChunkId, Held>> {
        self.chunks.lock().expect("no test panics holding it")
    }

    /// What every call goes through first.
    async fn enter(&self) -> Result<Fault, Status> {
        self.counts.calls.fetch_add(1, Ordering::SeqCst);
        let fault = *self.fault.lock().expect("no test panics holding it");
        match fault {
            Fault::Refuse => Err(Status::unavailable("refused")),
            Fault::Hang => std::future::pending().await,
            Fault::Slow(delay) => {
                tokio::time::sleep(delay).await;
                Ok(fault)
            }
            Fault::DieAfter(stores) if self.counts.stores.load(Ordering::SeqCst) >= stores => {
                Err(Status::unavailable("dead"))
            }
            _ => Ok(fault),
        }
    }
}

struct Service(Arc<State>);

fn id_of(bytes: &[u8]) -> Result<ChunkId, Status> {
    ChunkId::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

#[tonic::async_trait]
impl ChunkService for Service {
    async fn store_chunk(
        &self,
        request: Request<StoreChunkRequest>,
    ) -> Result<Response<StoreChunkResponse>, Status> {
        let request = request.into_inner();
        let fault = self.0.enter().await?;
        if fault == Fault::Full {
            return Err(Status::resource_exhausted("full"));
        }
        let chunk = id_of(&request.chunk_id)?;
        if ChunkId::of(&request.data) != chunk {
            return Err(Status::invalid_argument("the bytes do not hash to the id"));
        }
        let generation = Generation {
            incarnation: if fault == Fault::OtherLife {
                Uuid::from_bytes([99; 16])
            } else {
                self.0.incarnation
            },
            counter: self.0.counter.fetch_add(1, Ordering::SeqCst) + 1,
        };
        self.0.counts.stores.fetch_add(1, Ordering::SeqCst);
        let length = request.data.len() as u64 + u64::from(fault == Fault::OtherLength);
        let held = Held { bytes: request.data, generation, descriptor: request.descriptor };
        let existed = self.0.chunks().insert(chunk, held).is_some();
        let other = NodeKey::from_seed([99; 32]);
        let key = if fault == Fault::OtherKey { &other } else { &self.0.key };
        let at = Timestamp::from_unix_millis(1_700_000_000_000);
        let receipt = Receipt::sign(key, chunk, ByteCount::bytes(length), generation, at);
        Ok(Response::new(StoreChunkResponse { receipt: Some(receipt.into()), existed }))
    }

    async fn get_chunk(
        &self,
        request: Request<GetChunkRequest>,
    ) -> Result<Response<GetChunkResponse>, Status> {
        let request = request.into_inner();
        let fault = self.0.enter().await?;
        let chunk = id_of(&request.chunk_id)?;
        let held = self.0.chunks().get(&chunk).map(|held| held.bytes.clone());
        let mut bytes =
            held.filter(|_| fault != Fault::Forget).ok_or_else(|| Status::not_found("not held"))?.to_vec();
        match fault {
            Fault::Rotten => return Err(Status::data_loss("rotten")),
            Fault::AuditsOnly if !request.slices.is_empty() => {}
            Fault::WholesOnly if request.slices.is_empty() => {}
            Fault::WrongBytes | Fault::AuditsOnly | Fault::WholesOnly => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            Fault::ShortBytes => bytes.truncate(bytes.len() - 1),
            Fault::LongBytes => bytes.resize(bytes.len() + (3 << 20), 7),
            _ => {}
        }
        if request.slices.is_empty() {
            self.0.counts.gets.fetch_add(1, Ordering::SeqCst);
            return Ok(Response::new(GetChunkResponse { data: bytes.into(), proof: Bytes::new() }));
        }
        self.0.counts.slices.fetch_add(1, Ordering::SeqCst);
        self.0.counts.slice_bytes.fetch_add(request.slices.iter().map(|s| s.length).sum(), Ordering::SeqCst);
        let slices: Vec<_> = request.slices.iter().map(|s| s.offset..s.offset + s.length).collect();
        let proof =
            proof::prove(&bytes, &slices).map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(GetChunkResponse { data: Bytes::new(), proof: proof.into() }))
    }

    async fn delete_chunk(
        &self,
        request: Request<DeleteChunkRequest>,
    ) -> Result<Response<DeleteChunkResponse>, Status> {
        let request = request.into_inner();
        self.0.enter().await?;
        let chunk = id_of(&request.chunk_id)?;
        let named = request.generation.ok_or_else(|| Status::invalid_argument("no generation"))?;
        let mut chunks = self.0.chunks();
        let held = chunks.get(&chunk).map(|held| held.generation);
        let outcome = match held {
            None => Outcome::Absent,
            Some(held)
                if held.incarnation.as_bytes()[..] == named.incarnation && held.counter <= named.counter =>
            {
                chunks.remove(&chunk);
                Outcome::Deleted
            }
            Some(_) => Outcome::KeptNewer,
        };
        Ok(Response::new(DeleteChunkResponse { outcome: outcome.into(), held: held.map(Into::into) }))
    }

    async fn restore_chunk(
        &self,
        _: Request<RestoreChunkRequest>,
    ) -> Result<Response<RestoreChunkResponse>, Status> {
        Err(Status::unimplemented("this node has no trash"))
    }

    async fn has_chunk(
        &self,
        request: Request<HasChunkRequest>,
    ) -> Result<Response<HasChunkResponse>, Status> {
        self.0.enter().await?;
        let chunk = id_of(&request.into_inner().chunk_id)?;
        let answer = match self.0.chunks().get(&chunk) {
            None => HasChunkResponse::default(),
            Some(held) => HasChunkResponse {
                held: true,
                length: held.bytes.len() as u64,
                generation: Some(held.generation.into()),
            },
        };
        Ok(Response::new(answer))
    }

    type ListChunksStream = Pin<Box<dyn Stream<Item = Result<ListChunksResponse, Status>> + Send>>;

    async fn list_chunks(
        &self,
        request: Request<ListChunksRequest>,
    ) -> Result<Response<Self::ListChunksStream>, Status> {
        let request = request.into_inner();
        let fault = self.0.enter().await?;
        let after = (!request.after.is_empty()).then(|| id_of(&request.after)).transpose()?;
        let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        let entries: Vec<ChunkEntry> = self
            .0
            .chunks()
            .iter()
            .filter(|(id, _)| after.is_none_or(|after| **id > after))
            .take(limit)
            .map(|(id, held)| ChunkEntry {
                chunk_id: Bytes::copy_from_slice(id.as_bytes()),
                length: held.bytes.len() as u64,
                generation: Some(held.generation.into()),
                quarantined: false,
                descriptors: if request.with_descriptors {
                    vec![held.descriptor.clone()]
                } else {
                    Vec::new()
                },
                receipt: None,
            })
            .collect();
        let pages: Vec<_> =
            entries.chunks(3).map(|page| Ok(ListChunksResponse { chunks: page.to_vec() })).collect();
        let pages: Self::ListChunksStream = match fault {
            Fault::SilentList => Box::pin(futures::stream::iter(pages).chain(futures::stream::pending())),
            Fault::EndlessList => {
                let pages: Vec<ListChunksResponse> = pages.into_iter().filter_map(Result::ok).collect();
                Box::pin(futures::stream::iter(pages.into_iter().cycle().map(Ok)))
            }
            Fault::DrippingList => Box::pin(futures::stream::unfold(0u128, |n| async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let mut id = [0; 32];
                id[..16].copy_from_slice(&n.to_be_bytes());
                let generation = Some(Generation { incarnation: Uuid::from_u128(1), counter: 1 }.into());
                let entry = ChunkEntry {
                    chunk_id: Bytes::copy_from_slice(&id),
                    length: 1,
                    generation,
                    ..ChunkEntry::default()
                };
                Some((Ok(ListChunksResponse { chunks: vec![entry] }), n + 1))
            })),
            _ => Box::pin(futures::stream::iter(pages)),
        };
        Ok(Response::new(pages))
    }
}

#[tonic::async_trait]
impl DataService for Service {
    async fn replicate_chunk(
        &self,
        request: Request<ReplicateChunkRequest>,
    ) -> Result<Response<ReplicateChunkResponse>, Status> {
        let ReplicateChunkRequest { chunk_id, target_address, descriptor, .. } = request.into_inner();
        self.0.enter().await?;
        let chunk = id_of(&chunk_id)?;
        let held = self.0.chunks().get(&chunk).map(|held| held.bytes.clone());
        let data = held.ok_or_else(|| Status::not_found("not held"))?;
        let unavailable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        let target = Endpoint::from_shared(target_address).map_err(unavailable)?;
        let target = target.connect().await.map_err(unavailable)?;
        let mut target = ChunkServiceClient::new(target)
            .max_decoding_message_size(cyxcloud_proto::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(cyxcloud_proto::MESSAGE_BYTES_MAX);
        let store = StoreChunkRequest { chunk_id, data, descriptor, token: Bytes::new() };
        let receipt = target.store_chunk(store).await?.into_inner().receipt;
        Ok(Response::new(ReplicateChunkResponse { receipt }))
    }

    async fn verify_chunk(
        &self,
        _: Request<VerifyChunkRequest>,
    ) -> Result<Response<VerifyChunkResponse>, Status> {
        Err(Status::unimplemented("this node verifies nothing"))
    }
}
