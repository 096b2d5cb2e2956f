//! The secrets that owners' objects are sealed with: kept wrapped in the metadata store, unwrapped here, cached.

use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::OwnerId;
use cyxcloud_core::seal::{MasterKey, OwnerSecret};
use cyxcloud_metadata::MetadataStore;

use super::error::{Error, Result};

/// Unwrapped secrets kept in memory, at most.
const CACHED_MAX: u64 = 100_000;
/// How long one is kept unused.
const IDLE: Duration = Duration::from_secs(600);

/// Owners' sealing secrets. An owner's secret never changes, so a cached one is never stale.
#[derive(Clone)]
pub struct OwnerSecrets {
    metadata: Arc<dyn MetadataStore>,
    master: MasterKey,
    cache: moka::future::Cache<OwnerId, Arc<OwnerSecret>>,
}

impl std::fmt::Debug for OwnerSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnerSecrets").field("cached", &self.cache.entry_count()).finish_non_exhaustive()
    }
}

impl OwnerSecrets {
    /// Secrets wrapped under this master key.
    pub fn new(metadata: Arc<dyn MetadataStore>, master: MasterKey) -> Self {
        let cache = moka::future::Cache::builder().max_capacity(CACHED_MAX).time_to_idle(IDLE).build();
        Self { metadata, master, cache }
    }

    /// A fresh random secret for a new owner, wrapped as [`cyxcloud_metadata::model::Owner`] keeps it.
    pub fn wrap_new(master: &MasterKey, owner: OwnerId) -> Vec<u8> {
        master.wrap_owner_secret(owner, &OwnerSecret::from_bytes(rand::random()), rand::random())
    }

    /// The owner's secret.
    pub(super) async fn of(&self, owner: OwnerId) -> Result<Arc<OwnerSecret>> {
        if let Some(secret) = self.cache.get(&owner).await {
            return Ok(secret);
        }
        let row = self.metadata.owner(owner).await?.ok_or(Error::OwnerKey { owner, source: None })?;
        let secret = self
            .master
            .open_owner_secret(owner, &row.wrapped_secret)
            .map_err(|error| Error::OwnerKey { owner, source: Some(Box::new(error)) })?;
        let secret = Arc::new(secret);
        self.cache.insert(owner, Arc::clone(&secret)).await;
        Ok(secret)
    }
}
