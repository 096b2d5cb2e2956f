//! `ChunkService`: chunks in, chunks and proofs out.

use std::ops::Range;
use std::pin::Pin;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cyxcloud_core::proof::{ProofError, prove};
use cyxcloud_core::receipt::Receipt;
use cyxcloud_core::token::Operation;
use cyxcloud_core::{ByteCount, Generation, Timestamp};
use cyxcloud_proto::convert::{chunk_id, chunk_id_bytes, required};
use cyxcloud_proto::node::chunk_service_server::ChunkService;
use cyxcloud_proto::node::delete_chunk_response::Outcome;
use cyxcloud_proto::node::{
    ChunkEntry, DeleteChunkRequest, DeleteChunkResponse, GetChunkRequest, GetChunkResponse, HasChunkRequest,
    HasChunkResponse, ListChunksRequest, ListChunksResponse, RestoreChunkRequest, RestoreChunkResponse,
    Slice, StoreChunkRequest, StoreChunkResponse, restore_chunk_response,
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Asked, Service, asked};
use crate::store::{DESCRIPTOR_BYTES_MAX, Deleted, Entry, Restored};

/// Slices in one request.
const SLICES_MAX: usize = 1024;
/// Entries in one page of the inventory, without and with descriptors (up to 4 KiB each) or receipts.
const PAGE: usize = 4096;
const PAGE_IN_FULL: usize = 512;

type Pages = Pin<Box<dyn Stream<Item = Result<ListChunksResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ChunkService for Service {
    type ListChunksStream = Pages;

    async fn store_chunk(
        &self,
        request: Request<StoreChunkRequest>,
    ) -> Result<Response<StoreChunkResponse>, Status> {
        let measured = self.metrics.begin("StoreChunk");
        measured.end(self.store_one(asked(request)).await.map(Response::new))
    }

    async fn get_chunk(
        &self,
        request: Request<GetChunkRequest>,
    ) -> Result<Response<GetChunkResponse>, Status> {
        self.get_measured(asked(request)).await.map(Response::new)
    }

    async fn delete_chunk(
        &self,
        request: Request<DeleteChunkRequest>,
    ) -> Result<Response<DeleteChunkResponse>, Status> {
        let measured = self.metrics.begin("DeleteChunk");
        measured.end(self.delete_one(asked(request)).await.map(Response::new))
    }

    async fn restore_chunk(
        &self,
        request: Request<RestoreChunkRequest>,
    ) -> Result<Response<RestoreChunkResponse>, Status> {
        let measured = self.metrics.begin("RestoreChunk");
        measured.end(self.restore_one(asked(request)).await.map(Response::new))
    }

    async fn has_chunk(
        &self,
        request: Request<HasChunkRequest>,
    ) -> Result<Response<HasChunkResponse>, Status> {
        let measured = self.metrics.begin("HasChunk");
        measured.end(self.has_one(asked(request)).await.map(Response::new))
    }

    async fn list_chunks(&self, request: Request<ListChunksRequest>) -> Result<Response<Pages>, Status> {
        let measured = self.metrics.begin("ListChunks");
        measured.end(self.list_all(asked(request)).map(Response::new))
    }
}

impl Service {
    async fn store_one(
        &self,
        (request, peer): Asked<StoreChunkRequest>,
    ) -> Result<StoreChunkResponse, Status> {
        let id = chunk_id("chunk_id", &request.chunk_id)?;
        self.callers.check(&request.token, Operation::Store, Some(&id), peer)?;
        let StoreChunkRequest { data, descriptor, .. } = request;
        if descriptor.len() > DESCRIPTOR_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "a descriptor has at most {DESCRIPTOR_BYTES_MAX} bytes, not {}",
                descriptor.len()
            )));
        }
        cyxcloud_core::crash_point!("node.received");
        self.change(move |service| {
            let length = data.len() as u64;
            let at = now();
            let stored =
                service.store.put(id, data, descriptor, at).map_err(|error| service.status(error))?;
            service.metrics.received.inc_by(length);
            service.metrics.stored_chunk_bytes.observe(length as f64);
            let receipt = Receipt::sign(&service.key, id, ByteCount::bytes(length), stored.generation, at);
            Ok(StoreChunkResponse { receipt: Some(receipt.into()), existed: stored.existed })
        })
        .await
    }

    pub(super) async fn get_measured(
        &self,
        request: Asked<GetChunkRequest>,
    ) -> Result<GetChunkResponse, Status> {
        let measured = self.metrics.begin("GetChunk");
        measured.end(self.get_one(request).await)
    }

    async fn get_one(&self, (request, peer): Asked<GetChunkRequest>) -> Result<GetChunkResponse, Status> {
        let id = chunk_id("chunk_id", &request.chunk_id)?;
        self.callers.check(&request.token, Operation::Get, Some(&id), peer)?;
        let slices = ranges(&request.slices)?;
        self.read(move |service| {
            #[cfg(feature = "faults")]
            if let Some(lie) = super::lie::Lie::told() {
                return lie.answer(service, id, &slices);
            }
            let data = service.load(id)?;
            let response = if slices.is_empty() {
                GetChunkResponse { data, proof: Bytes::new() }
            } else {
                let proof = prove(&data, &slices).map_err(|error| match error {
                    ProofError::BadSlice { .. } | ProofError::NoSlices => {
                        Status::invalid_argument(error.to_string())
                    }
                    ProofError::Wrong => Status::internal(error.to_string()),
                })?;
                GetChunkResponse { data: Bytes::new(), proof: proof.into() }
            };
            service.metrics.sent.inc_by((response.data.len() + response.proof.len()) as u64);
            Ok(response)
        })
        .await
    }

    async fn delete_one(
        &self,
        (request, peer): Asked<DeleteChunkRequest>,
    ) -> Result<DeleteChunkResponse, Status> {
        let id = chunk_id("chunk_id", &request.chunk_id)?;
        self.callers.check(&request.token, Operation::Delete, Some(&id), peer)?;
        let generation = Generation::try_from(required("generation", request.generation)?)?;
        self.change(move |service| {
            let trash_at = service.trash.then(now);
            let deleted = service.store.delete(id, generation, trash_at);
            let deleted = deleted.map_err(|error| service.status(error))?;
            let (outcome, held) = match deleted {
                Deleted::Gone => (Outcome::Deleted, None),
                Deleted::Absent => (Outcome::Absent, None),
                Deleted::KeptNewer(held) => (Outcome::KeptNewer, Some(held.into())),
            };
            Ok(DeleteChunkResponse { outcome: outcome.into(), held })
        })
        .await
    }

    async fn restore_one(
        &self,
        (request, peer): Asked<RestoreChunkRequest>,
    ) -> Result<RestoreChunkResponse, Status> {
        use restore_chunk_response::Outcome;
        let id = chunk_id("chunk_id", &request.chunk_id)?;
        self.callers.check(&request.token, Operation::Restore, Some(&id), peer)?;
        let generation = request.generation.map(Generation::try_from).transpose()?;
        self.change(move |service| {
            let restored = service.store.restore(id, generation).map_err(|error| service.status(error))?;
            let (outcome, held) = match restored {
                Restored::Back(held) => (Outcome::Restored, Some(held.into())),
                Restored::Absent => (Outcome::Absent, None),
                Restored::Held(held) => (Outcome::Held, Some(held.into())),
            };
            Ok(RestoreChunkResponse { outcome: outcome.into(), held })
        })
        .await
    }

    async fn has_one(&self, (request, peer): Asked<HasChunkRequest>) -> Result<HasChunkResponse, Status> {
        let id = chunk_id("chunk_id", &request.chunk_id)?;
        self.callers.check(&request.token, Operation::Has, Some(&id), peer)?;
        self.read(move |service| {
            let entry = service.store.entry(id).map_err(|error| service.status(error))?;
            Ok(match entry.filter(|entry| !entry.quarantined) {
                Some(entry) => HasChunkResponse {
                    held: true,
                    length: entry.length.get(),
                    generation: Some(entry.generation.into()),
                },
                None => HasChunkResponse::default(),
            })
        })
        .await
    }

    /// Answers at once; pages follow as fast as the caller takes them. No page holds on to the store while it waits.
    fn list_all(&self, (request, peer): Asked<ListChunksRequest>) -> Result<Pages, Status> {
        self.callers.check(&request.token, Operation::List, None, peer)?;
        let mut after = match request.after.is_empty() {
            true => None,
            false => Some(chunk_id("after", &request.after)?),
        };
        let mut left = if request.limit == 0 { u64::MAX } else { request.limit };
        let (with_descriptors, with_receipts) = (request.with_descriptors, request.with_receipts);
        let page = if with_descriptors || with_receipts { PAGE_IN_FULL } else { PAGE };
        let (pages, stream) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            while left > 0 {
                let want = page.min(usize::try_from(left).unwrap_or(usize::MAX));
                let entries = service
                    .read(move |service| {
                        let entries =
                            service.store.list(after, want).map_err(|error| service.status(error))?;
                        let last = entries.last().map(|entry| entry.id);
                        let shown = |entry: Entry| {
                            let receipt =
                                (with_receipts && !entry.quarantined).then(|| service.receipt(&entry));
                            listed(entry, with_descriptors, receipt)
                        };
                        Ok((last, entries.into_iter().map(shown).collect::<Vec<_>>()))
                    })
                    .await;
                let last_page = entries.as_ref().is_ok_and(|(_, entries)| entries.len() < want);
                let failed = entries.is_err();
                if let Ok((last, entries)) = &entries {
                    after = *last;
                    left -= entries.len() as u64;
                }
                let message = entries.map(|(_, chunks)| ListChunksResponse { chunks });
                // An empty page says nothing, and a caller that is gone wants no more.
                let silent = message.as_ref().is_ok_and(|page| page.chunks.is_empty());
                if silent || pages.send(message).await.is_err() || last_page || failed {
                    return;
                }
            }
        });
        Ok(Box::pin(ReceiverStream::new(stream)))
    }

    /// The receipt of a chunk that is held: the one given when it was stored, where the time is known.
    fn receipt(&self, entry: &Entry) -> Receipt {
        let at = entry.stored_at.unwrap_or_else(now);
        Receipt::sign(&self.key, entry.id, entry.length, entry.generation, at)
    }
}

fn listed(entry: Entry, with_descriptors: bool, receipt: Option<Receipt>) -> ChunkEntry {
    ChunkEntry {
        chunk_id: chunk_id_bytes(&entry.id),
        length: entry.length.get(),
        generation: Some(entry.generation.into()),
        quarantined: entry.quarantined,
        descriptors: if with_descriptors { entry.descriptors } else { Vec::new() },
        receipt: receipt.map(Into::into),
    }
}

/// Slices as ranges. Whether they lie within the chunk is seen once its length is known.
fn ranges(slices: &[Slice]) -> Result<Vec<Range<u64>>, Status> {
    if slices.len() > SLICES_MAX {
        return Err(Status::invalid_argument(format!("at most {SLICES_MAX} slices fit one request")));
    }
    let range = |slice: &Slice| {
        let end = slice.offset.checked_add(slice.length).filter(|_| slice.length > 0);
        end.map(|end| slice.offset..end)
            .ok_or_else(|| Status::invalid_argument("a slice is empty or too long"))
    };
    slices.iter().map(range).collect()
}

/// The node's clock: evidence in receipts and signatures, and how long trash is kept and scrubs wait; never a decision
/// about what is held.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_unix_millis(cyxcloud_core::faults::wall_clock(millis))
}
