//! Who shows no good token is refused, whatever he asks for; and a good one is good for what it says.

use bytes::Bytes;
use cyxcloud_core::receipt::NodeKey;
use cyxcloud_core::token::{CHUNK_LIFETIME, Operation, Operations, SESSION_LIFETIME, Token, countersign};
use cyxcloud_core::{ChunkId, Timestamp};
use cyxcloud_proto::node::{
    DeleteChunkRequest, Generation, GetChunkRequest, HasChunkRequest, ListChunksRequest,
    ReplicateChunkRequest, RestoreChunkRequest, Slice, StoreChunkRequest, VerifyChunkRequest,
};
use tonic::Code;

use crate::cluster::{Gateway, Node, config, id, noise};

pub(crate) fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed([seed; 32])
}

pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Timestamp::from_unix_millis(i64::try_from(since.as_millis()).expect("not so late"))
}

pub(crate) fn session(node: [u8; 32], operations: &[Operation]) -> Token {
    Token {
        id: rand::random(),
        node,
        operations: Operations::of(operations),
        holder: None,
        issued: now(),
        expires: now().plus(SESSION_LIFETIME),
        chunk: None,
    }
}

fn signed(node: [u8; 32], operation: Operation) -> Bytes {
    session(node, &[operation]).sign(&key(1)).into()
}

pub(crate) fn storing(bytes: &Bytes, token: Bytes) -> StoreChunkRequest {
    StoreChunkRequest { chunk_id: id(bytes), data: bytes.clone(), descriptor: Bytes::new(), token }
}

/// A token to store one chunk once, as its holder presents it.
fn to_store(node: [u8; 32], bytes: &[u8], issued: Timestamp) -> Bytes {
    let token = Token {
        holder: Some(key(3).public()),
        chunk: Some(ChunkId::of(bytes)),
        issued,
        expires: issued.plus(CHUNK_LIFETIME),
        ..session(node, &[Operation::Store])
    };
    countersign(&token.sign(&key(1)), &key(3)).into()
}

/// A node whose gateway wants tokens signed by the key 1; and its public key.
pub(crate) async fn guarded(dir: &std::path::Path) -> (Gateway, Node, [u8; 32]) {
    let (gateway, address) = Gateway::start().await;
    gateway.with(|heard| heard.token_key = Some(key(1).public()));
    let node = Node::start(config(dir, &address)).await;
    gateway.eventually("a heartbeat", |heard| !heard.heartbeats.is_empty()).await;
    let public = gateway.with(|heard| heard.registrations[0].public_key.clone());
    (gateway, node, public.as_ref().try_into().expect("a public key"))
}

/// How the node answers each of its calls, made with this token.
pub(crate) async fn all_calls(node: &Node, token: &Bytes) -> Vec<(&'static str, Operation, Code)> {
    let (mut chunks, mut data) = (node.chunks().await, node.data().await);
    let (bytes, token) = (noise(5, 3_000), token.clone());
    let chunk_id = id(&bytes);
    let generation = Some(Generation { incarnation: vec![1; 16].into(), counter: 1 });
    let code = |failed: Option<tonic::Status>| failed.map_or(Code::Ok, |status| status.code());
    let mut codes = Vec::new();
    let store = storing(&bytes, token.clone());
    codes.push(("StoreChunk", Operation::Store, code(chunks.store_chunk(shown(store, &token)).await.err())));
    for slices in [vec![], vec![Slice { offset: 0, length: 9 }]] {
        let get = GetChunkRequest { chunk_id: chunk_id.clone(), slices, token: token.clone() };
        codes.push(("GetChunk", Operation::Get, code(chunks.get_chunk(shown(get, &token)).await.err())));
    }
    let has = HasChunkRequest { chunk_id: chunk_id.clone(), token: token.clone() };
    codes.push(("HasChunk", Operation::Has, code(chunks.has_chunk(shown(has, &token)).await.err())));
    let delete = DeleteChunkRequest {
        chunk_id: chunk_id.clone(),
        generation: generation.clone(),
        token: token.clone(),
    };
    let deleted = chunks.delete_chunk(shown(delete, &token)).await;
    codes.push(("DeleteChunk", Operation::Delete, code(deleted.err())));
    let restore = RestoreChunkRequest { chunk_id: chunk_id.clone(), generation, token: token.clone() };
    let restored = chunks.restore_chunk(shown(restore, &token)).await;
    codes.push(("RestoreChunk", Operation::Restore, code(restored.err())));
    let list = ListChunksRequest { token: token.clone(), ..ListChunksRequest::default() };
    codes.push(("ListChunks", Operation::List, code(chunks.list_chunks(shown(list, &token)).await.err())));
    let push = ReplicateChunkRequest {
        chunk_id: chunk_id.clone(),
        target_address: "http://169.254.169.254:80".to_owned(),
        token: token.clone(),
        ..ReplicateChunkRequest::default()
    };
    let pushed = data.replicate_chunk(shown(push, &token)).await;
    codes.push(("ReplicateChunk", Operation::Replicate, code(pushed.err())));
    let verify = VerifyChunkRequest { chunk_id, token: token.clone() };
    let verified = data.verify_chunk(shown(verify, &token)).await;
    codes.push(("VerifyChunk", Operation::Verify, code(verified.err())));
    codes
}

/// A call that shows the token where people's programs would, too.
fn shown<T>(message: T, token: &Bytes) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let text = std::str::from_utf8(token).ok().map(|text| format!("Bearer {text}"));
    if let Some(bearer) = text.and_then(|text| text.parse().ok()) {
        request.metadata_mut().insert("authorization", bearer);
    }
    request
}

/// Anything but a refusal for want of a token: the call passed the door.
fn passed(code: Code, operation: Operation) -> bool {
    // A push to a forbidden address is refused behind the door, with the code of a token for something else.
    code != Code::Unauthenticated && (code != Code::PermissionDenied || operation == Operation::Replicate)
}

#[tokio::test]
async fn nothing_is_done_without_a_token() {
    let dir = tempfile::tempdir().expect("directory");
    let (_gateway, node, public) = guarded(dir.path()).await;
    let constant = Bytes::from_static(b"rustfs rpc");
    let by_a_stranger: Bytes = session(public, &Operation::ALL).sign(&key(9)).into();
    let for_another: Bytes = session(key(8).public(), &Operation::ALL).sign(&key(1)).into();
    let over = Token {
        issued: Timestamp::from_unix_millis(0),
        expires: Timestamp::from_unix_millis(600_000),
        ..session(public, &Operation::ALL)
    };
    let over: Bytes = over.sign(&key(1)).into();
    for token in [Bytes::new(), constant, by_a_stranger, for_another, over] {
        for (_, operation, code) in all_calls(&node, &token).await {
            assert!(
                matches!(code, Code::Unauthenticated | Code::PermissionDenied),
                "{operation:?}: {code:?}"
            );
        }
    }
    let good: Bytes = session(public, &Operation::ALL).sign(&key(1)).into();
    for (_, operation, code) in all_calls(&node, &good).await {
        assert!(passed(code, operation), "{operation:?}: {code:?}");
    }
    node.eventually("cyxcloud_node_tokens_refused_total 45").await;
    node.stop().await.expect("a clean end");
}

/// A server begins with many requests at once at a node that has not seen a token of it yet, and somebody without one does too.
#[tokio::test]
async fn of_many_requests_at_once_each_is_judged_by_its_token() {
    let dir = tempfile::tempdir().expect("directory");
    let (_gateway, node, public) = guarded(dir.path()).await;
    let chunks = node.chunks().await;
    let answers = async |token: Bytes| {
        let calls = (0..150).map(|_| {
            let mut chunks = chunks.clone();
            let asked = HasChunkRequest { chunk_id: id(b"absent"), token: token.clone() };
            async move { chunks.has_chunk(asked).await.map(drop).map_err(|status| status.code()) }
        });
        futures::future::join_all(calls).await
    };
    assert_eq!(answers(Bytes::new()).await, vec![Err(Code::Unauthenticated); 150]);
    assert_eq!(answers(signed(public, Operation::Has)).await, vec![Ok(()); 150]);
    node.eventually("cyxcloud_node_strangers_refused_total 0").await;
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn adv_03_a_token_for_one_operation_opens_no_other() {
    let dir = tempfile::tempdir().expect("directory");
    let (_gateway, node, public) = guarded(dir.path()).await;
    for operation in Operation::ALL {
        for (_, called, code) in all_calls(&node, &signed(public, operation)).await {
            if called == operation {
                assert!(passed(code, called), "{called:?}: {code:?}");
            } else {
                assert_eq!(code, Code::PermissionDenied, "a token for {operation:?} presented to {called:?}");
            }
        }
    }
    node.stop().await.expect("a clean end");
}

/// Class 3 and 4 of what others met: a captured token, presented elsewhere, again, and after a restart.
#[tokio::test]
async fn adv_03_04_a_captured_chunk_token_is_worth_nothing() {
    let (here, there) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
    let (gateway, node, public) = guarded(here.path()).await;
    let (_other_gateway, other, _) = guarded(there.path()).await;
    let (bytes, more) = (noise(5, 3_000), noise(6, 3_000));
    let token = to_store(public, &bytes, now());
    let store = async |node: &Node, bytes: &Bytes, token: &Bytes| {
        let request = storing(bytes, token.clone());
        node.chunks().await.store_chunk(request).await.map(drop).map_err(|status| status.code())
    };
    let get = GetChunkRequest { chunk_id: id(&bytes), token: token.clone(), ..GetChunkRequest::default() };
    let got = node.chunks().await.get_chunk(get).await.expect_err("to store only");
    assert_eq!(got.code(), Code::PermissionDenied);
    assert_eq!(store(&node, &more, &token).await, Err(Code::PermissionDenied), "another chunk");
    assert_eq!(store(&other, &bytes, &token).await, Err(Code::PermissionDenied), "another node");
    assert_eq!(store(&node, &bytes, &token).await, Ok(()));
    assert_eq!(store(&node, &bytes, &token).await, Err(Code::Unauthenticated), "again");
    let unused = to_store(public, &more, now());
    node.stop().await.expect("a clean end");
    gateway.with(|heard| heard.heartbeats.clear());
    let address = gateway.with(|heard| heard.address.clone());
    let node = Node::start(config(here.path(), &address)).await;
    gateway.eventually("a heartbeat", |heard| !heard.heartbeats.is_empty()).await;
    for (token, bytes) in [(&token, &bytes), (&unused, &more)] {
        assert_eq!(store(&node, bytes, token).await, Err(Code::Unauthenticated), "after a restart");
    }
    assert_eq!(store(&node, &more, &to_store(public, &more, now())).await, Ok(()));
    node.stop().await.expect("a clean end");
    other.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_node_pushes_in_its_own_name() {
    let (here, there) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
    let (_gateway, source, source_key) = guarded(here.path()).await;
    let (_other_gateway, target, target_key) = guarded(there.path()).await;
    let bytes = noise(7, 50_000);
    let store = storing(&bytes, signed(source_key, Operation::Store));
    source.chunks().await.store_chunk(store).await.expect("stored");
    let push = async |holder: [u8; 32]| {
        let token = Token {
            holder: Some(holder),
            chunk: Some(ChunkId::of(&bytes)),
            issued: now(),
            ..session(target_key, &[Operation::Store])
        };
        let request = ReplicateChunkRequest {
            chunk_id: id(&bytes),
            target_address: target.grpc.clone(),
            token: signed(source_key, Operation::Replicate),
            target_token: token.sign(&key(1)).into(),
            ..ReplicateChunkRequest::default()
        };
        source.data().await.replicate_chunk(request).await
    };
    let refused = push(key(4).public()).await.expect_err("made for somebody else");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(push(source_key).await.expect("pushed").into_inner().receipt.is_some());
    source.stop().await.expect("a clean end");
    target.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_node_whose_clock_is_wrong_registers_by_the_gateway_s() {
    let dir = tempfile::tempdir().expect("directory");
    let (gateway, address) = Gateway::start().await;
    let then = now().unix_millis() - 7 * 86_400_000;
    gateway.with(|heard| heard.now_ms = Some(then));
    let node = Node::start(config(dir.path(), &address)).await;
    gateway.eventually("a registration", |heard| !heard.registrations.is_empty()).await;
    let signed_at = gateway.with(|heard| heard.registrations[0].signed_at_ms);
    assert!(signed_at.abs_diff(then) < 60_000, "signed at {signed_at} by a clock that says {then}");
    node.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_key_that_is_not_named_any_more_opens_nothing() {
    let dir = tempfile::tempdir().expect("made");
    let (gateway, node, public) = guarded(dir.path()).await;
    let mut chunks = node.chunks().await;
    let mut answer = async |by: &NodeKey| {
        let token = session(public, &[Operation::Has]).sign(by).into();
        let asked = HasChunkRequest { chunk_id: id(&noise(5, 3_000)), token };
        chunks.has_chunk(asked).await.map(drop).map_err(|status| status.code())
    };
    assert_eq!(answer(&key(1)).await, Ok(()));
    assert_eq!(answer(&key(9)).await, Err(Code::Unauthenticated));
    gateway.with(|heard| {
        heard.token_key = Some(key(9).public());
        heard.heartbeats.clear();
    });
    // With the second it has heard the answer to the first.
    gateway.eventually("it is told", |heard| heard.heartbeats.len() > 1).await;
    assert_eq!(answer(&key(1)).await, Err(Code::Unauthenticated));
    assert_eq!(answer(&key(9)).await, Ok(()));
}
