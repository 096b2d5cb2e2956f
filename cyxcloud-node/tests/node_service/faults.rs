//! That the faults which other tests ask a node for do what they say. Real processes: faults come by environment.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::{ChunkId, proof};
use cyxcloud_proto::MESSAGE_BYTES_MAX;
use cyxcloud_proto::node::chunk_service_client::ChunkServiceClient;
use cyxcloud_proto::node::{GetChunkRequest, HasChunkRequest, Slice, StoreChunkRequest};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::cluster::{id, noise};

struct Process {
    child: Child,
    chunks: ChunkServiceClient<Channel>,
}

impl Process {
    async fn start(dir: &Path, faults: &[(&str, &str)]) -> Self {
        // As a gateway left it that wants no tokens.
        std::fs::write(dir.join("trust"), "open\n").expect("written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_cyxcloud-node"))
            .env_clear()
            .env("STORAGE_PATH", dir)
            .env("CENTRAL_SERVER_ADDR", "http://127.0.0.1:9")
            .envs([("GRPC_HOST", "127.0.0.1"), ("METRICS_HOST", "127.0.0.1")])
            .envs([("GRPC_PORT", "0"), ("METRICS_PORT", "0"), ("RUST_LOG", "info")])
            .envs(faults.iter().copied())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the node starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let port = loop {
            let line = lines.next_line().await.expect("readable").expect("it says where it listens");
            if let Some((_, rest)) = line.split_once("grpc_port=") {
                break rest.split(' ').next().expect("a word").to_owned();
            }
        };
        // Read on, or the node would wait for us.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let url = format!("http://127.0.0.1:{port}");
        let channel = Channel::from_shared(url).expect("a URL").connect().await.expect("it listens");
        let chunks = ChunkServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { child, chunks }
    }

    async fn store(&mut self, bytes: &Bytes) -> Result<(), Status> {
        let request =
            StoreChunkRequest { chunk_id: id(bytes), data: bytes.clone(), ..StoreChunkRequest::default() };
        self.chunks.store_chunk(request).await.map(drop)
    }

    async fn get(&mut self, bytes: &Bytes, slices: Vec<Slice>) -> Result<(Bytes, Bytes), Status> {
        let request = GetChunkRequest { chunk_id: id(bytes), slices, token: Bytes::new() };
        let found = self.chunks.get_chunk(request).await?.into_inner();
        Ok((found.data, found.proof))
    }
}

#[tokio::test]
async fn a_lying_node_lies_about_bytes_and_proofs_only() {
    let slice = Slice { offset: 70_000, length: 10_000 };
    for lie in ["wrong-bytes", "short", "long", "garbled", "wrong-proof", "audits-only", "lost", "stale"] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut node = Process::start(dir.path(), &[("CYXCLOUD_FAULT_LIE", lie)]).await;
        let (bytes, other) = (noise(1, 300_000), noise(2, 300_000));
        node.store(&bytes).await.expect("stored");
        node.store(&other).await.expect("stored");
        let whole = node.get(&bytes, Vec::new()).await;
        let proven = node.get(&bytes, vec![slice]).await;
        match lie {
            "lost" => {
                assert_eq!(whole.expect_err("denied").code(), Code::NotFound);
                assert_eq!(proven.expect_err("denied").code(), Code::NotFound);
            }
            "garbled" => {
                whole.expect_err("no message");
                proven.expect_err("no message");
            }
            _ => {
                let (whole, proven) = (whole.expect("answered").0, proven.expect("answered").1);
                assert_eq!(whole == bytes, lie == "wrong-proof", "{lie}");
                assert_eq!(whole == other, lie == "stale", "{lie}");
                assert_eq!(whole.len() < bytes.len(), lie == "short", "{lie}");
                assert_eq!(whole.len() > bytes.len(), lie == "long", "{lie}");
                let range = 70_000..80_000u64;
                let read = proof::verify(&ChunkId::of(&bytes), 300_000, &[range], &proven);
                assert_eq!(read.is_ok(), lie == "audits-only", "{lie}");
            }
        }
        let has = HasChunkRequest { chunk_id: id(&bytes), token: Bytes::new() };
        assert!(node.chunks.has_chunk(has).await.expect("answered").into_inner().held, "{lie}");
    }
}

#[tokio::test]
async fn a_node_dies_at_the_named_point_and_keeps_what_it_had_written_by_then() {
    for (point, kept) in [("node.received", false), ("node.written", true), ("node.synced", true)] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let bytes = noise(7, 100_000);
        let mut node = Process::start(dir.path(), &[("CYXCLOUD_CRASH_AT", &format!("{point}:2"))]).await;
        node.store(&noise(1, 1_000)).await.expect("the first pass");
        node.store(&bytes).await.expect_err("it dies before it answers");
        let ended = tokio::time::timeout(Duration::from_secs(10), node.child.wait()).await;
        assert!(!ended.expect("it ends").expect("known").success(), "{point}");
        let mut node = Process::start(dir.path(), &[]).await;
        node.get(&noise(1, 1_000), Vec::new()).await.expect("acknowledged is durable");
        assert_eq!(node.get(&bytes, Vec::new()).await.is_ok(), kept, "{point}");
        node.store(&bytes).await.expect("a retry succeeds");
    }
}

#[tokio::test]
async fn without_syncs_a_node_still_serves_what_it_was_given() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut node = Process::start(dir.path(), &[("CYXCLOUD_FAULT_UNSYNCED", "1")]).await;
    let bytes = noise(1, 100_000);
    node.store(&bytes).await.expect("stored");
    assert_eq!(node.get(&bytes, Vec::new()).await.expect("held").0, bytes);
    node.child.kill().await.expect("killed");
    let mut node = Process::start(dir.path(), &[]).await;
    assert_eq!(node.get(&bytes, Vec::new()).await.expect("a killed process loses no writes").0, bytes);
}
