//! An object service without nodes, for tests of what needs none.

use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::address::AddressPolicy;
use cyxcloud_core::name::ObjectKey;
use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::{BucketId, OwnerId, Timestamp};
use cyxcloud_dataplane::DataPlane;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::{Bucket, Owner};
use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};

use super::{Config, ObjectService, OwnerSecrets};

/// A service in memory, a bucket of it, and a key.
pub(super) async fn service() -> (ObjectService, Bucket, ObjectKey) {
    let metadata: Arc<dyn MetadataStore> =
        Arc::new(SqliteStore::open(&SqliteConfig::Memory).expect("opens in memory"));
    let (master, id) = (MasterKey::from_bytes([1; 32]), OwnerId::from_random([1; 16]));
    let owner = Owner {
        id,
        username: None,
        email: None,
        wallet_address: None,
        admin: false,
        storage_quota: None,
        wrapped_secret: OwnerSecrets::wrap_new(&master, id),
        created_at: Timestamp::default(),
    };
    metadata.ensure_owner(&owner).await.expect("makes an owner");
    let bucket = Bucket {
        id: BucketId::from_random([2; 16]),
        name: "bucket".parse().expect("valid"),
        owner: id,
        profile: "standard".to_owned(),
        created_at: Timestamp::default(),
    };
    let bucket = metadata.create_bucket(&bucket, 1000).await.expect("makes a bucket");
    let registry = prometheus::Registry::new();
    let plane = DataPlane::new(
        cyxcloud_dataplane::Config::default(),
        Arc::clone(&metadata),
        AddressPolicy::default(),
        master.clone(),
        &registry,
    );
    let secrets = OwnerSecrets::new(Arc::clone(&metadata), master);
    let config = Config { renew_every: Duration::from_millis(5), ..Config::default() };
    let key = ObjectKey::new("key").expect("valid");
    (ObjectService::new(metadata, plane, secrets, config), bucket, key)
}
