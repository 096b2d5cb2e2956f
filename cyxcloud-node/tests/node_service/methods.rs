//! Every method that a node serves, with every kind of credentials, and what each gets.

use std::collections::BTreeSet;

use bytes::Bytes;
use cyxcloud_core::ChunkId;
use cyxcloud_core::token::{CHUNK_LIFETIME, Operation, Token, countersign};
use tonic::Code;

use crate::cluster::noise;
use crate::tokens::{all_calls, guarded, key, now, session, storing};

/// What was decided about every method: what opens it, and how it then answers here. A new one must be added.
const DECIDED: &[(&str, &str, Operation, Code)] = &[
    ("ChunkService", "StoreChunk", Operation::Store, Code::Ok),
    ("ChunkService", "GetChunk", Operation::Get, Code::Ok),
    ("ChunkService", "HasChunk", Operation::Has, Code::Ok),
    ("ChunkService", "DeleteChunk", Operation::Delete, Code::Ok),
    ("ChunkService", "RestoreChunk", Operation::Restore, Code::Ok),
    ("ChunkService", "ListChunks", Operation::List, Code::Ok),
    // Let in, and asked to send to an address that is forbidden.
    ("DataService", "ReplicateChunk", Operation::Replicate, Code::PermissionDenied),
    ("DataService", "VerifyChunk", Operation::Verify, Code::Ok),
];

/// Tokens as a gateway gives them to people, programs and nodes; a node takes none of them.
const JWTS: [(&str, &str); 3] = [
    (
        "a person",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiAiMDAwMDAwMDAtMDAwMC00MDAwLTgwMDAtMDAwMDAwMDAwMDAxIiwgInR5cCI6ICJhY2Nlc3MiLCAiZXhwIjogOTAwMDAwMDAwMCwgImlzcyI6ICJjeXhjbG91ZCIsICJhdWQiOiAiY3l4Y2xvdWQifQ.mcMrE7u3lWz2BF1LCbxtkrsbkV1S1IkZz1MwBYaH8gU",
    ),
    (
        "a program",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiAiMDAwMDAwMDAtMDAwMC00MDAwLTgwMDAtMDAwMDAwMDAwMDAxIiwgInR5cCI6ICJhcGlfa2V5IiwgImV4cCI6IDkwMDAwMDAwMDAsICJpc3MiOiAiY3l4Y2xvdWQiLCAiYXVkIjogImN5eGNsb3VkIn0.qibZQ02zhGhT-rmiuooh-uSnJsbz0vpyY5LBJTgVgiM",
    ),
    (
        "a node",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiAiMDAwMDAwMDAtMDAwMC00MDAwLTgwMDAtMDAwMDAwMDAwMDAxIiwgInR5cCI6ICJub2RlIiwgImV4cCI6IDkwMDAwMDAwMDAsICJpc3MiOiAiY3l4Y2xvdWQiLCAiYXVkIjogImN5eGNsb3VkIn0.RTWUvJ-5TxJUaoj_HZQ9v43ypsJjCeP2Se2dTohrnjI",
    ),
];

/// What gateways and rebalancers put into one session token.
const SESSIONS: [&[Operation]; 3] = [
    &[Operation::Get, Operation::Has],
    &[Operation::Store],
    &[Operation::Delete, Operation::Restore, Operation::List, Operation::Replicate, Operation::Verify],
];

/// Whoever calls, what it may do, and how it is refused all else.
struct Caller {
    what: String,
    token: Bytes,
    may: Vec<Operation>,
    refused: Code,
}

fn callers(node: [u8; 32], chunk: ChunkId) -> Vec<Caller> {
    let stranger = |what: &str, token: Bytes| Caller {
        what: what.to_owned(),
        token,
        may: Vec::new(),
        refused: Code::Unauthenticated,
    };
    let mut callers = vec![stranger("nobody", Bytes::new()), stranger("junk", Bytes::from_static(b"a.b.c"))];
    callers.extend(JWTS.map(|(what, token)| stranger(what, Bytes::from_static(token.as_bytes()))));
    callers
        .push(stranger("a server of another cluster", session(node, &Operation::ALL).sign(&key(9)).into()));
    let known = |what: String, token: Vec<u8>, may: &[Operation]| Caller {
        what,
        token: token.into(),
        may: may.to_vec(),
        refused: Code::PermissionDenied,
    };
    callers.push(known(
        "a session at another node".to_owned(),
        session(key(8).public(), &Operation::ALL).sign(&key(1)),
        &[],
    ));
    for together in SESSIONS {
        callers.push(known(
            format!("a session for {together:?}"),
            session(node, together).sign(&key(1)),
            together,
        ));
    }
    for operation in Operation::ALL {
        let token = Token {
            holder: Some(key(3).public()),
            chunk: Some(chunk),
            expires: now().plus(CHUNK_LIFETIME),
            ..session(node, &[operation])
        };
        let countersigned = countersign(&token.sign(&key(1)), &key(3));
        // It names one chunk, so it lists none.
        let may = [operation];
        let may = if operation == Operation::List { &[] } else { may.as_slice() };
        callers.push(known(format!("a chunk token for {operation:?}"), countersigned, may));
    }
    callers
}

#[test]
fn every_method_was_decided_about() {
    let decided: BTreeSet<String> =
        DECIDED.iter().map(|(service, method, ..)| format!("/cyxcloud.node.v1.{service}/{method}")).collect();
    let there = cyxcloud_proto::methods().expect("decodes");
    let there: BTreeSet<String> =
        there.into_iter().filter(|path| path.starts_with("/cyxcloud.node.")).collect();
    assert_eq!(there, decided);
    let operations: BTreeSet<Operation> = DECIDED.iter().map(|(_, _, operation, _)| *operation).collect();
    assert_eq!(operations.len(), DECIDED.len(), "what opens one method opens no other");
}

#[tokio::test]
async fn every_method_opens_to_what_was_decided_and_to_nothing_else() {
    let dir = tempfile::tempdir().expect("directory");
    let (_gateway, node, public) = guarded(dir.path()).await;
    let bytes = noise(5, 3_000);
    let stored = storing(&bytes, session(public, &[Operation::Store]).sign(&key(1)).into());
    node.chunks().await.store_chunk(stored).await.expect("stored");
    for Caller { what, token, may, refused } in callers(public, ChunkId::of(&bytes)) {
        let calls = all_calls(&node, &token).await;
        let called: BTreeSet<&str> = calls.iter().map(|(method, ..)| *method).collect();
        assert_eq!(called, DECIDED.iter().map(|(_, method, ..)| *method).collect(), "each is tried");
        for (method, operation, code) in calls {
            let row = DECIDED.iter().find(|(_, name, ..)| *name == method).expect("decided");
            assert_eq!(row.2, operation, "{method}");
            let wanted = if may.contains(&operation) { row.3 } else { refused };
            assert_eq!(code, wanted, "{method} with {what}");
        }
    }
    node.stop().await.expect("a clean end");
}
