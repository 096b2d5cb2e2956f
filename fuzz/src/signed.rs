//! Receipts, registrations and tokens that nodes want to see: what was signed is believed as it was signed, by whom it was
//! signed, and in no other form.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use cyxcloud_core::receipt::{NodeKey, Receipt, verify_signature};
use cyxcloud_core::token::{LIFETIME_MAX, Operation, Operations, SKEW, Token, countersign};
use cyxcloud_core::{ByteCount, ChunkId, Generation, Timestamp};
use cyxcloud_gateway::fuzzing::{peer_id, registered_key};
use cyxcloud_proto::gateway::RegisterNodeRequest;
use cyxcloud_proto::{FORMAT_OLDEST, WIRE_VERSION, format_newest, node, signed};
use prost::Message as _;
use uuid::Uuid;

use super::input::{Draft, Input, edited};

const NOW: Timestamp = Timestamp::from_unix_millis(1_700_000_000_000);

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 5 {
        0 => receipt(input),
        1 => registration(input),
        2 => messages(input),
        3 => token(input),
        _ => signature(input),
    }
}

fn receipt(mut input: Input<'_>) {
    let key = NodeKey::from_seed([input.u8(); 32]);
    let chunk = ChunkId::from_bytes(input.array());
    let generation = Generation { incarnation: Uuid::from_bytes(input.array()), counter: input.u64() };
    let stored_at = Timestamp::from_unix_millis(input.u64() as i64);
    let right = Receipt::sign(&key, chunk, ByteCount::bytes(input.u64()), generation, stored_at);
    assert_eq!(right.verify(&key.public()), Ok(()));
    let wire = node::Receipt::from(right.clone()).encode_to_vec();
    // Whatever is changed on the way makes it another receipt, or none at all.
    let changed = edited(&wire, &mut input);
    let Ok(message) = node::Receipt::decode(changed.as_slice()) else { return };
    let Ok(read) = Receipt::try_from(message.clone()) else { return };
    assert_eq!(node::Receipt::from(read.clone()), message, "not written as it was read");
    assert_eq!(read.verify(&key.public()).is_ok(), read == right);
}

fn registration(mut input: Input<'_>) {
    let key = NodeKey::from_seed([input.u8(); 32]);
    let incarnation = Uuid::from_bytes(input.array());
    let (host, region) = (input.text(300), input.text(300));
    let (grpc_port, metrics_port) = (u32::from(input.u16()), u32::from(input.u16()));
    let tls = input.u8() & 1 != 0;
    let mut right = RegisterNodeRequest {
        public_key: key.public().to_vec().into(),
        peer_id: peer_id(&key.public()),
        advertise_host: host,
        grpc_port,
        metrics_port,
        region,
        tls,
        wire_version: WIRE_VERSION,
        format_version: FORMAT_OLDEST + u32::from(input.u8()) % 4,
        incarnation: incarnation.as_bytes().to_vec().into(),
        signed_at_ms: NOW.unix_millis(),
        ..RegisterNodeRequest::default()
    };
    right.signature = key.sign(&signed::registration(&right)).to_vec().into();
    let plain = |text: &str| text.len() <= 255 && !text.chars().any(char::is_control);
    let fine = plain(&right.advertise_host)
        && plain(&right.region)
        && grpc_port != 0
        && metrics_port != 0
        && right.format_version <= format_newest();
    assert_eq!(registered_key(&right, NOW).is_ok(), fine, "{right:?}");

    let changed = edited(&right.encode_to_vec(), &mut input);
    let Ok(changed) = RegisterNodeRequest::decode(changed.as_slice()) else { return };
    if let Ok(believed) = registered_key(&changed, NOW) {
        assert_eq!(believed, key.public(), "a registration in another's name");
        assert_eq!(changed, right, "what was signed was changed");
    }
}

/// Two registrations that say different things never have the same signed bytes.
fn messages(mut input: Input<'_>) {
    let mut one = || {
        let request = RegisterNodeRequest {
            public_key: vec![input.u8(); 32].into(),
            incarnation: vec![input.u8(); 16].into(),
            signed_at_ms: i64::from(input.u16()),
            advertise_host: input.text(80),
            grpc_port: u32::from(input.u16()),
            metrics_port: u32::from(input.u16()),
            tls: input.u8() & 1 != 0,
            label: input.text(80),
            name: input.text(80),
            region: input.text(80),
            storage_total: u64::from(input.u16()),
            storage_used: u64::from(input.u16()),
            ..RegisterNodeRequest::default()
        };
        let message = signed::registration(&request);
        (request, message)
    };
    let (first, second) = (one(), one());
    assert_eq!(first.0 == second.0, first.1 == second.1);
}

/// A token as it was made, as it came, and as a stranger would make it.
fn token(mut input: Input<'_>) {
    let (signer, holder) = (NodeKey::from_seed([1; 32]), NodeKey::from_seed([2; 32]));
    let keys = [NodeKey::from_seed([3; 32]).public(), signer.public()];
    let about = input.u8();
    let chunk = (about & 1 != 0).then(|| ChunkId::from_bytes(input.array()));
    let operations: Vec<Operation> =
        Operation::ALL.into_iter().filter(|operation| input.u16() & *operation as u16 != 0).collect();
    let named = about & 2 != 0 || chunk.is_some();
    let right = Token {
        id: input.array(),
        node: [input.u8(); 32],
        operations: Operations::of(&operations),
        holder: named.then(|| holder.public()),
        issued: Timestamp::from_unix_millis(input.u64() as i64),
        expires: Timestamp::from_unix_millis(input.u64() as i64),
        chunk,
    };
    let mut bytes = right.sign(&signer);
    if chunk.is_some() {
        assert!(Token::open(&bytes, &keys).is_err(), "nobody presents it");
        bytes = countersign(&bytes, &holder);
    }
    assert_eq!(Token::open(&bytes, &keys).as_ref(), Ok(&right));
    assert!(Token::open(&bytes, &keys[..1]).is_err(), "signed by a key that nobody was told of");
    let now = Timestamp::from_unix_millis(input.u64() as i64);
    for operation in Operation::ALL {
        let peer = holder.public();
        let allowed = right.check(&right.node, operation, chunk.as_ref(), Some(&peer), now).is_ok();
        assert!(!allowed || operations.contains(&operation));
        assert!(!allowed || right.expires.since(right.issued) <= LIFETIME_MAX);
        assert!(!allowed || now < right.expires.plus(SKEW) && right.issued <= now.plus(SKEW));
        let other = ChunkId::of(b"another");
        let elsewhere = right.check(&right.node, operation, Some(&other), Some(&peer), now).is_ok();
        assert!(chunk.is_none() || !elsewhere, "another chunk");
        assert!(
            right.check(&[0xee; 32], operation, chunk.as_ref(), Some(&peer), now).is_err()
                || right.node == [0xee; 32]
        );
    }
    let changed = edited(&bytes, &mut input);
    assert_eq!(Token::open(&changed, &keys).is_ok(), changed == bytes, "a changed token was believed");
    assert!(Token::open(input.rest(), &keys).is_err(), "a token was forged");
}

/// A key, a signature and a message of a stranger. Two implementations: ours may be stricter, never laxer.
fn signature(mut input: Input<'_>) {
    let (public, signature) = (input.array::<32>(), input.array::<64>());
    let message = input.rest();
    if verify_signature(&public, message, &signature).is_ok() {
        assert!(UnparsedPublicKey::new(&ED25519, public).verify(message, &signature).is_ok());
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let repeat = |draft: Draft, byte: u8, times: usize| (0..times).fold(draft, |draft, _| draft.u8(byte));
    let receipt = repeat(repeat(Draft::default().u8(0).u8(7), 1, 32), 2, 16);
    let receipt = receipt.u64(9).u64(1_700_000_000_000).u64(420_000).u32(0).u32(60).u8(0).rest([1]);
    let registration = repeat(Draft::default().u8(1).u8(7), 3, 16).some("192.0.2.7").some("eu");
    let registration = registration.rest([0xc3, 0x83, 0x23, 0x82, 0, 0, 0, 0, 0, 0, 0, 0, 40, 0, 1]);
    let half = |draft: Draft, host: &str| draft.u8(1).u8(2).u8(0).u8(3).some(host).u8(1).u8(2).u8(3).u8(4);
    let messages = half(half(Draft::default().u8(2), "host"), "hos").rest([]);
    let key = NodeKey::from_seed([5; 32]);
    let signature = [&[4][..], &key.public(), &key.sign(b"message"), b"message"].concat();
    let token = |about: u8| {
        let draft = Draft::default().u8(3).u8(about);
        let draft = if about & 1 != 0 { repeat(draft, 6, 32) } else { draft };
        let draft = repeat(repeat(draft, 0xff, 16), 9, 16).u8(7).u64(1_700_000_000_000);
        draft.u64(1_700_000_600_000).u64(1_700_000_300_000).u32(0).u32(60).u8(0).rest([1; 20])
    };
    vec![receipt, registration, messages, signature, token(0), token(1), token(2)]
}
