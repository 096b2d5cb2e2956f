//! Constants, owners, the store itself.

use cyxcloud_core::{ByteCount, Timestamp};
use uuid::Uuid;

use super::{fresh, new_owner};
use crate::MetadataStore;
use crate::model::Owner;

/// Asked again with other values, it answers as it was made.
pub async fn an_owner_is_made_once(store: &dyn MetadataStore) {
    let tag = Uuid::new_v4().simple().to_string();
    let owner = Owner {
        username: Some(format!("user-{tag}")),
        email: Some(format!("{tag}@example.org")),
        wallet_address: Some(format!("wallet-{tag}")),
        admin: true,
        ..new_owner(Some(ByteCount::gib(5)))
    };
    assert_eq!(store.owner(owner.id).await.expect("read an owner"), None);
    let made = store.ensure_owner(&owner).await.expect("make an owner");
    assert!(made.created_at > Timestamp::default());
    assert_eq!(made, Owner { created_at: made.created_at, ..owner.clone() });
    let other = Owner { wrapped_secret: vec![1], admin: false, storage_quota: None, ..owner.clone() };
    assert_eq!(store.ensure_owner(&other).await.expect("ask again"), made);
    assert_eq!(store.owner(owner.id).await.expect("read an owner"), Some(made));
}

/// Also when many ask at once.
pub async fn a_constant_keeps_its_first_value(store: &dyn MetadataStore) {
    let name = format!("test-{}", Uuid::new_v4());
    let values: Vec<[u8; 2]> = (0..8).map(|n| [n, 0]).collect();
    let asked = values.iter().map(|value| store.keep_constant(&name, value));
    let kept = futures::future::join_all(asked).await;
    let first = kept[0].as_ref().expect("keep a constant").clone();
    for answer in kept {
        assert_eq!(answer.expect("keep a constant"), first);
    }
    assert_eq!(store.keep_constant(&name, b"later").await.expect("keep a constant"), first);
}

/// And unknown owners and buckets use nothing.
pub async fn the_store_answers_and_has_a_clock(store: &dyn MetadataStore) {
    store.ping().await.expect("answer");
    assert!(["sqlite", "postgres"].contains(&store.engine()));
    let first = store.now().await.expect("tell the time");
    let second = store.now().await.expect("tell the time");
    assert!(second >= first && first > Timestamp::from_unix_millis(1_700_000_000_000));
    assert_eq!(store.owner_usage(fresh()).await.expect("read usage"), crate::model::Usage::default());
    assert_eq!(store.bucket_usage(fresh()).await.expect("read usage"), crate::model::Usage::default());
}
