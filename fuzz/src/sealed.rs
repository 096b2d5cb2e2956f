//! Sealed stripes, wrapped secrets and descriptors: what was sealed opens in every way of opening, and nothing else does.

use cyxcloud_core::seal::{
    Descriptor, FORMAT, FRAME, MasterKey, OwnerSecret, StripeKey, TAG, frames_of, open_frame,
    open_frame_into, open_in_place, plain_frames, seal, sealed_len,
};
use cyxcloud_core::{ChunkId, OwnerId};

use super::input::{Draft, Input, edited, pattern};

const MASTER: MasterKey = MasterKey::from_bytes([7; 32]);

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 3 {
        0 => stripe(input),
        1 => wrapped(input),
        _ => descriptor(input),
    }
}

fn stripe(mut input: Input<'_>) {
    let secret = OwnerSecret::from_bytes(input.array());
    let seed = input.u32();
    let plain = pattern(seed, input.below(2 * FRAME + 100));
    let key = StripeKey::derive(&secret, ChunkId::of(&plain).as_bytes(), FORMAT);
    let mut sealed = vec![0; sealed_len(plain.len())];
    seal(&key, &plain, &mut sealed);

    let mut opened = sealed.clone();
    open_in_place(&key, &mut opened, plain.len()).expect("opens");
    let frames: Vec<u8> = plain_frames(plain.len()).flat_map(|frame| opened[frame].to_vec()).collect();
    assert_eq!(frames, plain);

    let start = input.below(plain.len() + 1);
    let range = start..start + input.below(plain.len() - start + 1);
    let span = frames_of(range.clone(), plain.len());
    let mut ranged = Vec::new();
    for (index, last, place) in span.frames(plain.len()) {
        let mut frame = sealed[span.sealed.clone()][place].to_vec();
        let mut apart = vec![0; frame.len() - TAG];
        open_frame_into(&key, index, last, &frame, &mut apart).expect("opens apart");
        assert_eq!(open_frame(&key, index, last, &mut frame).expect("opens in place"), apart);
        ranged.extend_from_slice(&apart);
    }
    let skipped = range.start - span.first as usize * FRAME;
    assert_eq!(ranged.get(skipped..skipped + range.len()).unwrap_or_default(), &plain[range]);

    let mut changed = edited(&sealed, &mut input);
    if changed != sealed {
        assert!(open_in_place(&key, &mut changed, plain.len()).is_err(), "changed bytes were opened");
    }
    // A frame in another's place, and a strange one.
    let mut moved = sealed.clone();
    if plain.len() > FRAME {
        moved.rotate_left(FRAME + TAG);
        assert!(open_in_place(&key, &mut moved, plain.len()).is_err(), "frames were moved");
    }
    let strange = input.rest();
    let mut out = vec![0; strange.len().saturating_sub(TAG)];
    if !sealed.ends_with(strange) || strange.is_empty() {
        assert!(open_frame_into(&key, 0, true, strange, &mut out).is_err());
    }
}

fn wrapped(mut input: Input<'_>) {
    let owner = OwnerId::from_random(input.array());
    let (context, other) = (input.text(64), input.text(64));
    let nonce = input.array();
    let secret = input.some(200);
    let sealed = MASTER.wrap(&context, secret, nonce);
    assert_eq!(MASTER.unwrap(&context, &sealed).as_deref(), Ok(secret));
    if other != context {
        assert!(MASTER.unwrap(&other, &sealed).is_err(), "opened in another context");
    }
    let changed = edited(&sealed, &mut input);
    if changed != sealed {
        assert!(MASTER.unwrap(&context, &changed).is_err(), "changed bytes were opened");
    }
    let rest = input.rest();
    assert!(MASTER.open_owner_secret(owner, rest).is_err());
    if let Ok(text) = std::str::from_utf8(rest)
        && let Ok(key) = text.parse::<MasterKey>()
    {
        let bytes: [u8; 32] = hex::decode(text.trim()).expect("hexadecimal").try_into().expect("32 bytes");
        assert_eq!(key.check_value(), MasterKey::from_bytes(bytes).check_value());
    }
}

/// What is inside a seal was written by us, but perhaps by another version of us.
fn descriptor(mut input: Input<'_>) {
    let nonce = input.array();
    let plain = input.rest();
    assert!(Descriptor::open(&MASTER, plain).is_err(), "a descriptor was forged");
    let sealed = MASTER.wrap("descriptor", plain, nonce);
    if let Ok((descriptor, secret)) = Descriptor::open(&MASTER, &sealed) {
        assert_eq!(descriptor.seal(&MASTER, &secret, nonce), sealed);
        assert!(sealed.len() <= Descriptor::SEALED_MAX);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let stripe = |len: u32, start: u32, size: u32| {
        let draft = [9; 32].into_iter().fold(Draft::default().u8(0), Draft::u8);
        draft.u32(1).u32(len).u32(start).u32(size).u32(0).u32(17).u8(0).u8(1).rest([5; 40])
    };
    let wrap = |text: &str| {
        let draft = [3; 16].into_iter().fold(Draft::default().u8(1), Draft::u8);
        let draft = draft.some("access-key/A").some("access-key/B");
        let draft = [4; 12].into_iter().fold(draft, Draft::u8).some("a secret");
        draft.u32(0).u32(3).u8(0).u8(1).rest(text)
    };
    let mut plain = [[1; 16], [2; 16]].concat();
    plain.extend([0, 0, 0, 5, 3, 10, 4, 1, FORMAT, 0, 64, 0, 0, 0, 64, 0, 0]);
    plain.extend([[8; 32], [9; 32]].concat());
    let descriptor = [6; 12].into_iter().fold(Draft::default().u8(2), Draft::u8).rest(&plain);
    vec![
        stripe(0, 0, 0),
        stripe(FRAME as u32, 5, 100),
        stripe(2 * FRAME as u32 + 17, FRAME as u32 - 1, 3),
        wrap("00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"),
        wrap("ff"),
        descriptor,
    ]
}
