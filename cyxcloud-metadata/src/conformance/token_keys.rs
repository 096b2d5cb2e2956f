//! The keys that tokens for nodes are signed with.

use std::time::Duration;

use cyxcloud_core::token_keys::{KeyState, Wanted, plan, signer, state};

use crate::model::TokenKey;
use crate::{Error, MetadataStore};

fn times(keys: &[TokenKey]) -> Vec<cyxcloud_core::token_keys::KeyTimes> {
    keys.iter().map(|key| key.times).collect()
}

/// Also when many ask at once; whoever comes later gets what there is.
pub async fn the_first_key_is_made_once(store: &dyn MetadataStore) {
    let offered: Vec<[u8; 2]> = (0..8).map(|n| [n, 1]).collect();
    let asked = offered.iter().map(|seed| store.token_keys(seed));
    let answers: Vec<_> =
        futures::future::join_all(asked).await.into_iter().map(|keys| keys.expect("read")).collect();
    let [first] = answers[0].as_slice() else { panic!("there is one: {answers:?}") };
    assert!(answers.iter().all(|keys| *keys == answers[0]));
    assert!(offered.iter().any(|seed| first.wrapped_seed == seed));
    let now = store.now().await.expect("now");
    assert_eq!(signer(&times(&answers[0]), now), Some(first.times.number));
}

/// One of two that were planned at once; the other is to look again.
pub async fn a_key_is_added_after_the_newest_only(store: &dyn MetadataStore) {
    let before = store.token_keys(b"first").await.expect("read");
    let now = store.now().await.expect("now");
    let rotation = plan(&times(&before), Wanted::default(), now).expect("planned");
    let added = store.add_token_key(&rotation, b"second").await.expect("added");
    assert_eq!((added.times.number, added.times.signs_from), (2, rotation.signs_from));
    let again = store.add_token_key(&rotation, b"another").await;
    assert!(matches!(again, Err(Error::Stale { .. })), "{again:?}");
    let keys = store.token_keys(b"not needed").await.expect("read");
    assert_eq!(keys[1..], [added]);
    assert_eq!(keys[0].times.accepted_until, Some(rotation.previous_until));
    assert_eq!(keys[0].wrapped_seed, before[0].wrapped_seed);
    let states: Vec<_> = keys.iter().map(|key| state(&times(&keys), &key.times, now)).collect();
    assert_eq!(states, [KeyState::Signing, KeyState::Announced]);
}

/// And those that would have ended sooner still do.
pub async fn revoked_keys_are_gone(store: &dyn MetadataStore) {
    let rotate = async |wanted: Wanted, seed: &[u8]| {
        let keys = store.token_keys(b"first").await.expect("read");
        let rotation = plan(&times(&keys), wanted, store.now().await.expect("now")).expect("planned");
        store.add_token_key(&rotation, seed).await.expect("added");
        rotation
    };
    let revoke = |secs| Wanted { overlap: Duration::from_secs(secs), revoke: true };
    let soon = rotate(revoke(60), b"second").await;
    rotate(revoke(600), b"third").await;
    let keys = store.token_keys(b"first").await.expect("read");
    assert_eq!(keys[0].times.accepted_until, Some(soon.previous_until));
    assert_eq!(keys.len(), 3);
    rotate(revoke(0), b"fourth").await;
    let keys = store.token_keys(b"first").await.expect("read");
    let seeds: Vec<_> = keys.iter().map(|key| (key.times.number, key.wrapped_seed.as_slice())).collect();
    assert_eq!(seeds, [(4, b"fourth".as_slice())]);
    assert_eq!(keys[0].times.accepted_until, None);
}
