//! The node's `DataService`: works on chunks where they are.

use cyxcloud_core::token::{Operation, countersign};
use cyxcloud_proto::convert::chunk_id;
use cyxcloud_proto::node::data_service_server::DataService;
use cyxcloud_proto::node::verify_chunk_response::State;
use cyxcloud_proto::node::{
    ReplicateChunkRequest, ReplicateChunkResponse, StoreChunkRequest, VerifyChunkRequest, VerifyChunkResponse,
};
use tonic::{Code, Request, Response, Status};

use super::{Asked, Service, asked, push};
use crate::store::DESCRIPTOR_BYTES_MAX;

#[tonic::async_trait]
impl DataService for Service {
    async fn replicate_chunk(
        &self,
        request: Request<ReplicateChunkRequest>,
    ) -> Result<Response<ReplicateChunkResponse>, Status> {
        let measured = self.metrics.begin("ReplicateChunk");
        measured.end(self.replicate_one(asked(request)).await.map(Response::new))
    }

    async fn verify_chunk(
        &self,
        request: Request<VerifyChunkRequest>,
    ) -> Result<Response<VerifyChunkResponse>, Status> {
        let measured = self.metrics.begin("VerifyChunk");
        measured.end(self.verify_one(asked(request)).await.map(Response::new))
    }
}

impl Service {
    /// The receipt is passed on as it came: the caller knows the target's key, this node does not.
    async fn replicate_one(
        &self,
        (request, peer): Asked<ReplicateChunkRequest>,
    ) -> Result<ReplicateChunkResponse, Status> {
        let id = chunk_id("chunk_id", &request.chunk_id)?;
        self.callers.check(&request.token, Operation::Replicate, Some(&id), peer)?;
        if request.descriptor.len() > DESCRIPTOR_BYTES_MAX {
            return Err(Status::invalid_argument("the descriptor is too long"));
        }
        // First the address: a refused one must not cost a read.
        let target =
            push::resolve(&request.target_address, &request.target_key, &self.key, &self.policy).await?;
        let data = self.read(move |service| service.load(id)).await?;
        let length = data.len() as u64;
        let store = StoreChunkRequest {
            chunk_id: request.chunk_id.clone(),
            data,
            descriptor: request.descriptor,
            // The target sees that we are whom it was made for.
            token: match request.target_token.is_empty() {
                true => request.target_token,
                false => countersign(&request.target_token, &self.key).into(),
            },
        };
        let receipt = push::store(target, store).await?.receipt;
        let receipt = receipt.ok_or_else(|| Status::unavailable("the target answered without a receipt"))?;
        if receipt.chunk_id != request.chunk_id || receipt.length != length {
            return Err(Status::unavailable("the target's receipt is for another chunk"));
        }
        self.metrics.sent.inc_by(length);
        Ok(ReplicateChunkResponse { receipt: Some(receipt) })
    }

    async fn verify_one(
        &self,
        (request, peer): Asked<VerifyChunkRequest>,
    ) -> Result<VerifyChunkResponse, Status> {
        let id = chunk_id("chunk_id", &request.chunk_id)?;
        self.callers.check(&request.token, Operation::Verify, Some(&id), peer)?;
        let state = self
            .read(move |service| match service.load(id) {
                Ok(_) => Ok(State::Intact),
                Err(status) if status.code() == Code::NotFound => Ok(State::Absent),
                Err(status) if status.code() == Code::DataLoss => Ok(State::Corrupt),
                Err(status) => Err(status),
            })
            .await?;
        Ok(VerifyChunkResponse { state: state.into() })
    }
}
