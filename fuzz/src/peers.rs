//! What nodes and gateways show each other: certificates, capability tokens one after the other, heartbeats. A key is believed that
//! stands in the certificate; a node lets in whom its gateway's latest word lets in, and for what is done once, once.

use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;
use cyxcloud_core::receipt::{NodeKey, is_usable_key};
use cyxcloud_core::token::{Operation, Operations, Token, countersign};
use cyxcloud_core::{ChunkId, Timestamp};
use cyxcloud_gateway::fuzzing;
use cyxcloud_proto::convert::chunk_id_bytes;
use cyxcloud_proto::gateway::HeartbeatRequest;
use cyxcloud_tls::PeerKey;
use cyxcloud_tls::fuzzing::{certificate_of, key_of};
use prometheus::IntCounter;
use prost::Message as _;

use super::input::{Draft, Input, edited};
use super::node::gate::{Gate, Trust};

/// What stands before an Ed25519 key in a certificate (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// By the gateway's clock, which goes on by less than what [`BEGINS`] and [`LIVES`] are away from where it matters.
const NOW: Timestamp = Timestamp::from_unix_millis(1_800_000_000_000);
/// When tokens begin, in seconds after that.
const BEGINS: [i64; 5] = [-4_000, -90, -30, 30, 90];
/// For how many seconds they hold.
const LIVES: [i64; 4] = [10, 600, 3_600, 3_700];

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 5 {
        0 => changed(input),
        1 => of_any_key(&input.array()),
        2 => strange(input.rest()),
        3 => gate(input),
        _ => heartbeat(input.rest()),
    }
}

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed([seed; 32])
}

/// A certificate as it is made, and what becomes of it on its way.
fn changed(mut input: Input<'_>) {
    let key = key(input.u8());
    let certificate = certificate_of(&key);
    assert_eq!(key_of(&[&certificate]), Some(PeerKey(key.public())));
    let longer = [certificate.as_slice(), &[0]].concat();
    assert_eq!(key_of(&[&longer]), None, "something follows the certificate");
    strange(&edited(&certificate, &mut input));
}

/// A certificate that names a key which somebody may not have.
fn of_any_key(other: &[u8; 32]) {
    let own = key(7).public();
    let mut certificate = certificate_of(&key(7));
    let place = certificate.windows(own.len()).position(|window| window == own.as_slice());
    let place = place.expect("the key is in its certificate");
    certificate[place..place + own.len()].copy_from_slice(other);
    assert_eq!(key_of(&[&certificate]), is_usable_key(other).then_some(PeerKey(*other)));
}

fn strange(certificate: &[u8]) {
    let Some(PeerKey(key)) = key_of(&[certificate]) else { return };
    assert!(is_usable_key(&key), "anybody can sign for this key");
    let told = [SPKI_PREFIX.as_slice(), &key].concat();
    assert!(certificate.windows(told.len()).any(|window| window == told.as_slice()), "it names another key");
    let chain: [&[u8]; 2] = [certificate, b"another"];
    assert_eq!(key_of(&chain), Some(PeerKey(key)), "the first one counts");
}

/// What a caller presents, and for what.
struct Call {
    presented: Vec<u8>,
    operation: Operation,
    chunk: Option<ChunkId>,
    peer: Option<[u8; 32]>,
}

/// What a node was told: whether it wants tokens, and signed by whom.
type Told = Option<(bool, Vec<[u8; 32]>)>;

fn gate(mut input: Input<'_>) {
    let refused = IntCounter::new("refused", "Calls refused").expect("a counter");
    // Nothing is there, and nothing is written.
    let gate = Gate::open(key(9).public(), Path::new("/nonexistent"), refused);
    let (mut told, mut spent) = (None, HashSet::new());
    for _ in 0..12 {
        if input.is_empty() {
            return;
        }
        if input.u8().is_multiple_of(4) {
            told = Some(tell(&gate, input.u8()));
            continue;
        }
        let call = call(&mut input);
        let Call { presented, operation, chunk, peer } = &call;
        let passed = gate.check(presented, *operation, chunk.as_ref(), *peer).is_ok();
        assert_eq!(passed, may_pass(&told, &mut spent, &call), "{operation:?} of {chunk:?} by {peer:?}");
    }
}

/// Keys 1 to 3 may be named, and something that is no key.
fn tell(gate: &Gate, word: u8) -> (bool, Vec<[u8; 32]>) {
    let required = word & 1 != 0;
    let named = (1..=3u8).filter(|seed| word & (1u8 << *seed) != 0);
    let keys: Vec<[u8; 32]> = named.map(|seed| key(seed).public()).collect();
    let mut sent: Vec<Vec<u8>> = keys.iter().map(|key| key.to_vec()).collect();
    if word & 0x10 != 0 {
        sent.insert(0, vec![1; 31]);
    }
    gate.told(Trust::told(required, &sent), NOW);
    (required, keys)
}

fn call(input: &mut Input<'_>) -> Call {
    let about = input.u8();
    let seconds = |seconds: i64| Timestamp::from_unix_millis(NOW.unix_millis() + seconds * 1000);
    let begins = BEGINS[usize::from(input.u8()) % BEGINS.len()];
    let lives = LIVES[usize::from(input.u8()) % LIVES.len()];
    let allowed = u16::from(input.u8());
    let operations = Operation::ALL.into_iter().filter(|operation| allowed & *operation as u16 != 0);
    let (holder, other, x) = (key(8), key(5), ChunkId::of(b"x"));
    let token = Token {
        id: [input.u8() % 4; 16],
        node: key(if about & 1 != 0 { 9 } else { 6 }).public(),
        operations: Operations::of(&operations.collect::<Vec<_>>()),
        holder: (about & 2 != 0).then(|| holder.public()),
        issued: seconds(begins),
        expires: seconds(begins + lives),
        chunk: (about & 4 != 0).then_some(x),
    };
    let mut presented = token.sign(&key(1 + input.u8() % 3));
    if about & 8 != 0 {
        presented = countersign(&presented, if about & 0x10 != 0 { &holder } else { &other });
    }
    if about & 0x20 != 0 {
        presented = edited(&presented, input);
    }
    Call {
        presented,
        operation: Operation::ALL[usize::from(input.u8()) % Operation::ALL.len()],
        chunk: [None, Some(x), Some(ChunkId::of(b"y"))][usize::from(input.u8()) % 3],
        peer: [None, Some(holder.public()), Some(other.public())][usize::from(input.u8()) % 3],
    }
}

/// Whether it passes: judged anew each time, with nothing remembered but what was used.
fn may_pass(told: &Told, spent: &mut HashSet<[u8; 16]>, call: &Call) -> bool {
    let Some((required, keys)) = told else { return false };
    if !required {
        return true;
    }
    let Ok(token) = Token::open(&call.presented, keys) else { return false };
    let fits = token.check(&key(9).public(), call.operation, call.chunk.as_ref(), call.peer.as_ref(), NOW);
    if fits.is_err() || token.chunk.is_none() || !call.operation.changes() {
        return fits.is_ok();
    }
    // One of before the node's start may have been used then.
    token.issued >= NOW && spent.insert(token.id)
}

fn heartbeat(data: &[u8]) {
    let Ok(beat) = HeartbeatRequest::decode(data) else { return };
    let Ok((id, loads, chunks)) = fuzzing::heartbeat(&beat) else { return };
    assert_eq!(beat.node_id.as_ref(), id.as_bytes().as_slice());
    assert!(loads.iter().all(|load| (0.0..=100.0).contains(load)), "{loads:?}");
    assert!(chunks.len() <= 1_000);
    assert_eq!(chunks.iter().map(chunk_id_bytes).collect::<Vec<Bytes>>(), beat.corrupt_chunks);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let one = |choice: u8| Draft::default().u8(choice);
    // Told of key 1; then a session that gets, a chunk token that stores, the same again, and another key.
    let told = |word: u8| [0, word];
    let session: [u8; 9] = [1, 0x01, 3, 1, 0x02, 0, 0, 1, 0];
    let chunk: [u8; 9] = [1, 0x1f, 3, 1, 0x01, 1, 0, 0, 1];
    let calls =
        [&told(0x03)[..], &session, &[0], &chunk, &[1], &chunk, &[1], &told(0x05), &session, &[0]].concat();
    let bound = [&told(0x1f)[..], &[1, 0x03, 3, 2, 0x06, 2, 1, 1, 0, 1], &told(0), &session, &[2]].concat();
    let beat = HeartbeatRequest {
        node_id: vec![1; 16].into(),
        cpu_usage: f64::NAN,
        memory_usage: 250.0,
        corrupt_chunks: vec![vec![3; 32].into(), vec![4; 32].into()],
        ..HeartbeatRequest::default()
    };
    vec![
        one(0).u8(1).u32(0).u32(90).u8(0).rest([3]),
        one(0).u8(2).u32(1).u32(4).u8(1).u8(0x81).u32(200).u8(3).rest([]),
        one(1).rest(key(5).public()),
        one(1).rest([1]),
        one(2).rest([0x30, 0x82, 0x01, 0x00, 0x30, 0x2a]),
        one(3).rest(calls),
        one(3).rest(bound),
        one(4).rest(beat.encode_to_vec()),
    ]
}
