//! What was sealed opens, and nothing else does.

use proptest::prelude::*;

use super::*;

const OWNER: OwnerSecret = OwnerSecret([1; 32]);

fn plain(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn key_of(owner: &OwnerSecret, plain: &[u8]) -> StripeKey {
    StripeKey::derive(owner, blake3::hash(plain).as_bytes(), FORMAT)
}

fn sealed(plain: &[u8]) -> (StripeKey, Vec<u8>) {
    let key = key_of(&OWNER, plain);
    let mut out = vec![0xaa; sealed_len(plain.len())];
    seal(&key, plain, &mut out);
    (key, out)
}

fn opened(key: &StripeKey, mut sealed: Vec<u8>, plain_len: usize) -> Result<Vec<u8>, SealError> {
    open_in_place(key, &mut sealed, plain_len)?;
    Ok(plain_frames(plain_len).flat_map(|frame| sealed[frame].to_vec()).collect())
}

const LENGTHS: [usize; 10] =
    [0, 1, 15, 16, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME - 1, 2 * FRAME, 3 * FRAME + 7];

#[test]
fn what_was_sealed_opens() {
    for len in LENGTHS {
        let plain = plain(len);
        let (key, sealed) = sealed(&plain);
        assert_eq!(sealed.len(), len + len.div_ceil(FRAME) * TAG);
        assert_eq!(opened(&key, sealed, len).as_deref(), Ok(&plain[..]), "{len}");
    }
}

#[test]
fn a_flipped_bit_anywhere_never_opens() {
    let plain = plain(200);
    let (key, sealed) = sealed(&plain);
    for bit in 0..sealed.len() * 8 {
        let mut bad = sealed.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(opened(&key, bad, plain.len()), Err(SealError::DoesNotOpen), "bit {bit}");
    }
}

#[test]
fn frames_do_not_open_elsewhere() {
    let plain = plain(3 * FRAME);
    let (key, sealed) = sealed(&plain);
    let frame = |index: usize| sealed[index * (FRAME + TAG)..][..FRAME + TAG].to_vec();
    assert!(open_frame(&key, 1, false, &mut frame(1)).is_ok());
    assert!(open_frame(&key, 2, true, &mut frame(2)).is_ok());
    assert!(open_frame(&key, 0, false, &mut frame(1)).is_err());
    assert!(open_frame(&key, 1, true, &mut frame(1)).is_err());
    assert!(open_frame(&key, 2, false, &mut frame(2)).is_err());
    // A stripe cut after a whole frame.
    let cut = sealed[..2 * (FRAME + TAG)].to_vec();
    assert_eq!(opened(&key, cut.clone(), 2 * FRAME), Err(SealError::DoesNotOpen));
    let length = SealError::Length { have: cut.len(), want: sealed.len() };
    assert_eq!(opened(&key, cut, 3 * FRAME), Err(length));
}

#[test]
fn a_frame_shorter_than_its_tag_is_an_error() {
    let (key, _) = sealed(b"x");
    for len in 0..=TAG {
        assert!(open_frame(&key, 0, true, &mut vec![0; len]).is_err());
    }
}

#[test]
fn owners_do_not_open_or_recognise_each_other() {
    let plain = plain(1000);
    let (_, mine) = sealed(&plain);
    let other = key_of(&OwnerSecret([2; 32]), &plain);
    assert!(opened(&other, mine.clone(), plain.len()).is_err());
    let mut theirs = vec![0; mine.len()];
    seal(&other, &plain, &mut theirs);
    assert_ne!(mine, theirs);
    // The same owner's same stripe is the same bytes: dedup.
    assert_eq!(sealed(&plain).1, mine);
    let other_format = StripeKey::derive(&OWNER, blake3::hash(&plain).as_bytes(), FORMAT + 1);
    assert!(opened(&other_format, mine, plain.len()).is_err());
}

#[test]
fn master_keys_wrap_by_context() {
    let (master, other) = (MasterKey::from_bytes([5; 32]), MasterKey::from_bytes([6; 32]));
    let wrapped = master.wrap("owner/1", b"secret", [9; 12]);
    assert_eq!(master.unwrap("owner/1", &wrapped).as_deref(), Ok(&b"secret"[..]));
    assert_eq!(master.unwrap("owner/2", &wrapped), Err(SealError::DoesNotOpen));
    assert_eq!(other.unwrap("owner/1", &wrapped), Err(SealError::DoesNotOpen));
    for bit in 0..wrapped.len() * 8 {
        let mut bad = wrapped.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(master.unwrap("owner/1", &bad).is_err(), "bit {bit}");
    }
    for len in 0..wrapped.len() {
        assert!(master.unwrap("owner/1", &wrapped[..len]).is_err(), "cut to {len}");
    }
    assert_ne!(master.wrap("owner/1", b"secret", [8; 12]), wrapped);
    assert_ne!(master.check_value(), other.check_value());
    assert_eq!(master.check_value(), master.clone().check_value());
}

#[test]
fn descriptors_say_where_a_chunk_belongs() {
    let geometry = Geometry::STANDARD;
    let descriptor = Descriptor {
        owner: OwnerId::from_random([1; 16]),
        segment: SegmentId::from_random([2; 16]),
        stripe: 7,
        shard: geometry.shard(13).expect("exists"),
        geometry,
        format: FORMAT,
        plain_len: 4 << 20,
        stripe_size: 4 << 20,
        plain_hash: [3; 32],
    };
    let master = MasterKey::from_bytes([5; 32]);
    let sealed = descriptor.seal(&master, &OWNER, [9; 12]);
    assert!(sealed.len() <= Descriptor::SEALED_MAX);
    let (found, secret) = Descriptor::open(&master, &sealed).expect("opens");
    assert_eq!((found, secret.expose()), (descriptor, OWNER.expose()));
    assert!(Descriptor::open(&MasterKey::from_bytes([6; 32]), &sealed).is_err());
    assert!(Descriptor::open(&master, &master.wrap("descriptor", b"short", [1; 12])).is_err());
    assert!(Descriptor::open(&master, &master.wrap("other", &[0; DESCRIPTOR_LEN], [1; 12])).is_err());
}

#[test]
fn secrets_do_not_print() {
    let printed = format!("{:?} {:?} {:?}", OWNER, MasterKey::from_bytes([1; 32]), key_of(&OWNER, b""));
    assert_eq!(printed, "OwnerSecret(..) MasterKey(..) StripeKey(..)");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_changed_byte_opens(len in 1usize..300_000, at: prop::sample::Index, change in 1u8..) {
        let plain = plain(len);
        let (key, mut sealed) = sealed(&plain);
        let at = at.index(sealed.len());
        sealed[at] ^= change;
        prop_assert_eq!(opened(&key, sealed, len), Err(SealError::DoesNotOpen));
    }

    #[test]
    fn any_range_opens_from_its_frames_alone(
        len in 1usize..400_000, a: prop::sample::Index, b: prop::sample::Index,
    ) {
        let plain = plain(len);
        let (key, sealed) = sealed(&plain);
        let (a, b) = (a.index(len + 1), b.index(len + 1));
        let range = a.min(b)..a.max(b);
        let span = frames_of(range.clone(), len);
        prop_assert!(span.sealed.len() <= range.len() + 2 * FRAME + (range.len() / FRAME + 2) * TAG);
        let mut bytes = sealed[span.sealed.clone()].to_vec();
        let mut out = Vec::new();
        for (index, last, place) in span.frames(len) {
            out.extend_from_slice(open_frame(&key, index, last, &mut bytes[place]).expect("opens"));
        }
        let skip = range.start - span.first as usize * FRAME * usize::from(!range.is_empty()) ;
        let got = if range.is_empty() { &[][..] } else { &out[skip..skip + range.len()] };
        prop_assert_eq!(got, &plain[range]);
    }
}
