//! What callers of the chunk and data services may rely on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use cyxcloud_core::receipt::Receipt;
use cyxcloud_core::{ByteCount, ChunkId, proof};
use cyxcloud_node::Config;
use cyxcloud_node::identity::Identity;
use cyxcloud_proto::node::chunk_service_client::ChunkServiceClient;
use cyxcloud_proto::node::delete_chunk_response::Outcome;
use cyxcloud_proto::node::verify_chunk_response::State;
use cyxcloud_proto::node::{
    DeleteChunkRequest, GetChunkRequest, HasChunkRequest, ListChunksRequest, ReplicateChunkRequest, Slice,
    StoreChunkRequest, VerifyChunkRequest,
};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;
use tonic::transport::Channel;

use crate::cluster::{Node, config, id, noise, rot};

#[tokio::test]
async fn a_chunk_is_stored_with_a_receipt_and_read_back() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    for length in [1, 1000, 420_000, 5 << 20] {
        let bytes = noise(1, length);
        let answer = node.store(&bytes).await.expect("stored");
        assert!(!answer.existed);
        let receipt = Receipt::try_from(answer.receipt.expect("always there")).expect("well formed");
        let key = Identity::open(dir.path()).expect("made by the node").key().public();
        receipt.verify(&key).expect("signed by the node");
        assert_eq!(receipt.chunk, ChunkId::of(&bytes));
        assert_eq!(receipt.length, ByteCount::bytes(length as u64));
        assert_eq!(node.get(id(&bytes)).await.expect("held"), bytes);
        let again = node.store(&bytes).await.expect("stored again");
        assert!(again.existed);
        let newer = again.receipt.and_then(|receipt| receipt.generation).expect("complete").counter;
        assert!(newer > receipt.generation.counter);
    }
    assert_eq!(node.get(id(b"absent")).await.expect_err("not held").code(), Code::NotFound);
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn slices_come_with_a_proof_that_needs_only_the_id() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    let bytes = noise(2, 300_000);
    node.store(&bytes).await.expect("stored");
    let get = async |slices: Vec<Slice>| {
        let request = GetChunkRequest { chunk_id: id(&bytes), slices, token: Bytes::new() };
        node.chunks().await.get_chunk(request).await.map(|answer| answer.into_inner())
    };
    let wanted = [0..10, 70_000..140_000, 299_999..300_000u64];
    let slices =
        wanted.iter().map(|range| Slice { offset: range.start, length: range.end - range.start }).collect();
    let answer = get(slices).await.expect("proven");
    assert!(answer.data.is_empty());
    let read = proof::verify(&ChunkId::of(&bytes), 300_000, &wanted, &answer.proof).expect("a proof");
    for (range, read) in wanted.iter().zip(read) {
        assert_eq!(read, bytes[range.start as usize..range.end as usize]);
    }
    for (offset, length) in [(299_999, 2), (0, 0), (u64::MAX, 2)] {
        let error = get(vec![Slice { offset, length }]).await.expect_err("no such slice");
        assert_eq!(error.code(), Code::InvalidArgument, "{offset}+{length}");
    }
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn bad_requests_are_the_caller_s_fault_and_store_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    let mut client = node.chunks().await;
    let good =
        StoreChunkRequest { chunk_id: id(b"abc"), data: Bytes::from_static(b"abc"), ..Default::default() };
    let bad = [
        StoreChunkRequest { data: Bytes::from_static(b"abd"), ..good.clone() },
        StoreChunkRequest { chunk_id: Bytes::from_static(b"short"), ..good.clone() },
        StoreChunkRequest { chunk_id: id(b""), data: Bytes::new(), ..good.clone() },
        StoreChunkRequest { descriptor: Bytes::from(vec![0; 257]), ..good.clone() },
    ];
    for request in bad {
        let error = client.store_chunk(request).await.expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    assert_eq!(node.get(id(b"abc")).await.expect_err("not held").code(), Code::NotFound);
    let no_generation = DeleteChunkRequest { chunk_id: id(b"abc"), ..Default::default() };
    let error = client.delete_chunk(no_generation).await.expect_err("refused");
    assert_eq!(error.code(), Code::InvalidArgument);
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn deletes_name_a_generation_and_inventories_are_ordered() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    let mut client = node.chunks().await;
    let mut ids = Vec::new();
    for seed in 0..20 {
        let bytes = noise(seed, 500);
        node.store(&bytes).await.expect("stored");
        ids.push(id(&bytes));
    }
    ids.sort();
    let list = async |after: Bytes, limit, with_descriptors| {
        let request = ListChunksRequest {
            after,
            limit,
            with_descriptors,
            with_receipts: with_descriptors,
            token: Bytes::new(),
        };
        let mut stream = node.chunks().await.list_chunks(request).await.expect("listed").into_inner();
        let mut entries = Vec::new();
        while let Some(page) = stream.message().await.expect("whole") {
            entries.extend(page.chunks);
        }
        entries
    };
    let listed = list(Bytes::new(), 0, true).await;
    assert_eq!(listed.iter().map(|entry| entry.chunk_id.clone()).collect::<Vec<_>>(), ids);
    assert!(listed.iter().all(|entry| entry.descriptors == [Bytes::from_static(b"descriptor")]));
    for entry in &listed {
        let receipt = entry.receipt.clone().expect("signed anew");
        assert_eq!((&receipt.chunk_id, &receipt.generation), (&entry.chunk_id, &entry.generation));
        let receipt = cyxcloud_core::receipt::Receipt::try_from(receipt).expect("well formed");
        assert_eq!(receipt.verify(&receipt.node_key), Ok(()));
    }
    let some = list(ids[4].clone(), 3, false).await;
    assert_eq!(some.iter().map(|entry| entry.chunk_id.clone()).collect::<Vec<_>>(), ids[5..8]);
    assert!(some.iter().all(|entry| entry.descriptors.is_empty() && entry.receipt.is_none()));

    let held = listed[0].generation.clone().expect("always there");
    let older = cyxcloud_proto::node::Generation { counter: held.counter - 1, ..held.clone() };
    let older = if older.counter == 0 { None } else { Some(older) };
    let mut delete = async |generation| {
        let request = DeleteChunkRequest { chunk_id: ids[0].clone(), generation, token: Bytes::new() };
        client.delete_chunk(request).await.expect("answered").into_inner()
    };
    if let Some(older) = older {
        let kept = delete(Some(older)).await;
        assert_eq!((kept.outcome(), kept.held.as_ref()), (Outcome::KeptNewer, Some(&held)));
    }
    assert_eq!(delete(Some(held.clone())).await.outcome(), Outcome::Deleted);
    assert_eq!(delete(Some(held)).await.outcome(), Outcome::Absent);
    let has = |chunk_id: &Bytes| HasChunkRequest { chunk_id: chunk_id.clone(), token: Bytes::new() };
    let mut client = node.chunks().await;
    assert!(!client.has_chunk(has(&ids[0])).await.expect("answered").into_inner().held);
    let kept = client.has_chunk(has(&ids[1])).await.expect("answered").into_inner();
    assert_eq!((kept.held, kept.length), (true, 500));
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_node_takes_what_it_offers_and_not_a_byte_more() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    for seed in 0..16 {
        node.store(&noise(seed, 4 << 20)).await.expect("64 MiB are offered");
    }
    let error = node.store(&noise(99, 1)).await.expect_err("full");
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(node.store(&noise(3, 4 << 20)).await.expect("held already").existed);
    assert_eq!(node.get(id(&noise(15, 4 << 20))).await.expect("reads go on").len(), 4 << 20);
    assert!(node.http("/health").await.ends_with("OK"), "full is no failure");
    let dir_again = node.dir.clone();
    node.stop().await.expect("a clean end");
    let node = Node::alone(&dir_again).await;
    let error = node.store(&noise(99, 1)).await.expect_err("what is used is known after a restart");
    assert_eq!(error.code(), Code::ResourceExhausted);
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_chunk_that_rotted_is_never_served_and_healed_by_a_store() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    let bytes = noise(5, 100_000);
    node.store(&bytes).await.expect("stored");
    node.stop().await.expect("a clean end");
    rot(dir.path(), &id(&bytes));

    let node = Node::alone(dir.path()).await;
    let verify = VerifyChunkRequest { chunk_id: id(&bytes), token: Bytes::new() };
    let absent = VerifyChunkRequest { chunk_id: id(b"absent"), token: Bytes::new() };
    let mut data = node.data().await;
    assert_eq!(
        data.verify_chunk(verify.clone()).await.expect("answered").into_inner().state(),
        State::Corrupt
    );
    assert_eq!(data.verify_chunk(absent).await.expect("answered").into_inner().state(), State::Absent);
    assert_eq!(node.get(id(&bytes)).await.expect_err("corrupt").code(), Code::DataLoss);
    let slice = GetChunkRequest {
        chunk_id: id(&bytes),
        slices: vec![Slice { offset: 9, length: 9 }],
        token: Bytes::new(),
    };
    assert_eq!(node.chunks().await.get_chunk(slice).await.expect_err("corrupt").code(), Code::DataLoss);
    let has = HasChunkRequest { chunk_id: id(&bytes), token: Bytes::new() };
    assert!(!node.chunks().await.has_chunk(has).await.expect("answered").into_inner().held);

    assert!(!node.store(&bytes).await.expect("stored").existed);
    assert_eq!(node.get(id(&bytes)).await.expect("healed"), bytes);
    assert_eq!(data.verify_chunk(verify).await.expect("answered").into_inner().state(), State::Intact);
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_chunk_is_pushed_to_another_node_at_an_allowed_address_only() {
    let (here, there) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
    let (source, target) = (Node::alone(here.path()).await, Node::alone(there.path()).await);
    let bytes = noise(6, 200_000);
    source.store(&bytes).await.expect("stored");
    let push = |target_address: &str, chunk_id| ReplicateChunkRequest {
        chunk_id,
        target_address: target_address.to_owned(),
        descriptor: Bytes::from_static(b"copy"),
        ..Default::default()
    };
    let mut data = source.data().await;
    let answer = data.replicate_chunk(push(&target.grpc, id(&bytes))).await.expect("pushed").into_inner();
    let receipt = Receipt::try_from(answer.receipt.expect("there")).expect("well formed");
    receipt
        .verify(&Identity::open(there.path()).expect("made").key().public())
        .expect("the target's signature");
    assert_eq!(target.get(id(&bytes)).await.expect("held"), bytes);

    let code =
        async |request| source.data().await.replicate_chunk(request).await.expect_err("refused").code();
    assert_eq!(code(push(&target.grpc, id(b"absent"))).await, Code::NotFound);
    for refused in
        ["http://169.254.169.254:80", "http://10.1.2.3:50051", "http://[::ffff:169.254.169.254]:80"]
    {
        assert_eq!(code(push(refused, id(&bytes))).await, Code::PermissionDenied, "{refused}");
    }
    for nonsense in ["", "127.0.0.1:1", "https://127.0.0.1:1", "http://127.0.0.1", "http://127.0.0.1:1/x"] {
        assert_eq!(code(push(nonsense, id(&bytes))).await, Code::InvalidArgument, "{nonsense}");
    }
    source.stop().await.expect("a clean end");
    target.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_chunk_is_pushed_over_tls_to_the_node_that_was_named_only() {
    let (here, there) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
    let source = Node::alone(here.path()).await;
    let target = Node::start(Config { tls: true, ..config(there.path(), "http://127.0.0.1:9") }).await;
    let bytes = noise(6, 200_000);
    source.store(&bytes).await.expect("stored");
    let [own, other] =
        [there.path(), here.path()].map(|dir| Identity::open(dir).expect("made").key().public());
    let url = target.grpc.replace("http://", "https://");
    let push = async |url: &str, key: &[u8]| {
        let request = ReplicateChunkRequest {
            chunk_id: id(&bytes),
            target_address: url.to_owned(),
            target_key: Bytes::copy_from_slice(key),
            ..Default::default()
        };
        source.data().await.replicate_chunk(request).await
    };
    let answer = push(&url, &own).await.expect("pushed").into_inner();
    let receipt = Receipt::try_from(answer.receipt.expect("there")).expect("well formed");
    receipt.verify(&own).expect("the target's signature");
    let refused = push(&url, &other).await.expect_err("somebody else");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(push(&url, &[]).await.expect_err("nobody named").code(), Code::InvalidArgument);
    assert_eq!(push(&target.grpc, &own).await.expect_err("plain text").code(), Code::Unavailable);
    source.stop().await.expect("a clean end");
    target.stop().await.expect("a clean end");
}

#[tokio::test]
async fn loopback_is_refused_unless_allowed() {
    let (here, there) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
    let mut strict = config(here.path(), "http://127.0.0.1:9");
    strict.node_loopback = false;
    let (source, target) = (Node::start(strict).await, Node::alone(there.path()).await);
    let request = ReplicateChunkRequest {
        chunk_id: id(b"anything"),
        target_address: target.grpc.clone(),
        ..Default::default()
    };
    let error = source.data().await.replicate_chunk(request).await.expect_err("refused");
    assert_eq!(error.code(), Code::PermissionDenied);
    source.stop().await.expect("a clean end");
    target.stop().await.expect("a clean end");
}

#[tokio::test]
async fn requests_in_flight_are_answered_before_the_node_ends() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    let mut client = node.chunks().await;
    node.store(&noise(0, 10)).await.expect("it is up");
    // They go on until they are refused, so that some are being worked on whenever the node is told to stop.
    let told = Arc::new(AtomicBool::new(false));
    let stores: Vec<_> = (1..9)
        .map(|seed| {
            let (mut client, told) = (client.clone(), told.clone());
            let mut bytes = noise(seed, 1 << 20).to_vec();
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                // The same again and again: it is not the disk that is to be full.
                for n in (0..3).cycle() {
                    bytes[0] = n;
                    let data = Bytes::copy_from_slice(&bytes);
                    let chunk_id = id(&data);
                    let request =
                        StoreChunkRequest { chunk_id: chunk_id.clone(), data, ..Default::default() };
                    if client.store_chunk(request).await.is_err() {
                        break;
                    }
                    acknowledged.push((chunk_id, told.load(Ordering::SeqCst)));
                }
                acknowledged
            })
        })
        .collect();
    node.serves_something().await;
    told.store(true, Ordering::SeqCst);
    node.stop().await.expect("a clean end");
    let (mut acknowledged, mut in_flight) = (BTreeSet::new(), 0);
    for store in stores {
        for (id, late) in store.await.expect("no panic") {
            acknowledged.insert(id);
            in_flight += u32::from(late);
        }
    }
    assert!(in_flight > 0, "nothing that was in flight was answered");
    client.has_chunk(HasChunkRequest::default()).await.expect_err("the node is gone");
    let node = Node::alone(dir.path()).await;
    for id in acknowledged {
        node.get(id).await.expect("acknowledged is durable");
    }
    node.stop().await.expect("a clean end");
}

/// What an auditor asks for, of the largest chunk that a standard stripe makes.
#[tokio::test]
async fn an_audit_moves_less_than_twenty_kilobytes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = Node::alone(dir.path()).await;
    let bytes = noise(11, 420_000);
    node.store(&bytes).await.expect("stored");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let between = listener.local_addr().expect("bound");
    let address = node.grpc.trim_start_matches("http://").to_owned();
    let counted = tokio::spawn(async move {
        let (mut caller, _) = listener.accept().await.expect("a caller");
        let mut callee = TcpStream::connect(address).await.expect("the node");
        tokio::io::copy_bidirectional(&mut caller, &mut callee).await.expect("both end")
    });
    {
        let channel = Channel::from_shared(format!("http://{between}")).expect("an address");
        let mut client = ChunkServiceClient::new(channel.connect().await.expect("listens"));
        let slice = Slice { offset: 16 * 16_384, length: 16_384 };
        let request = GetChunkRequest { chunk_id: id(&bytes), slices: vec![slice], token: Bytes::new() };
        let proof = client.get_chunk(request).await.expect("proven").into_inner().proof;
        let slice = 16 * 16_384..17 * 16_384;
        proof::verify(&ChunkId::of(&bytes), 420_000, &[slice], &proof).expect("a proof");
    }
    // The connection ends with its client.
    let (asked, answered) = counted.await.expect("no panic");
    assert!(asked > 0 && answered > 16_384, "{asked} and {answered} bytes");
    assert!(asked + answered < 20_000, "{asked} and {answered} bytes");
    node.stop().await.expect("a clean end");
}
