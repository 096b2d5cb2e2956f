//! Access keys: whose they are, and the keys that sign with them.
//!
//! What the store said is remembered for [`REMEMBERED`], so a key revoked elsewhere stops working by then, and at once
//! where [`KeyRing::forget`] is called. An expiry is looked at on every use. Keys that do not exist are not remembered.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::sigv4::{Scope, SigningKey};
use cyxcloud_core::{OwnerId, Timestamp};
use cyxcloud_metadata::MetadataStore;
use http::StatusCode;
use moka::future::Cache;
use secrecy::{ExposeSecret, SecretString};
use tracing::error;
use zeroize::Zeroizing;

use super::AuthError;

/// How long an answer of the store is believed.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Keys and owners remembered at most.
const REMEMBERED_MAX: u64 = 10_000;
/// Days with a signing key at hand, per access key: a presigned URL lives for a week, so nine can be in use.
const DAYS_MAX: usize = 10;

/// The root user's key, from the configuration.
#[derive(Clone, Debug)]
pub struct RootCredentials {
    /// Public part.
    pub access_key: String,
    /// Secret part.
    pub secret: SecretString,
    /// Whose rights it carries.
    pub owner: OwnerId,
}

/// What a stored access key's secret is wrapped for: wrap with this context, or it will not unwrap.
pub fn access_key_context(id: &str) -> String {
    format!("cyxcloud/access-key/v1/{id}")
}

/// An access key that may sign.
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) owner: OwnerId,
    pub(crate) admin: bool,
    secret: SecretString,
    expires_at: Option<Timestamp>,
    by_day: Mutex<Vec<(String, Arc<SigningKey>)>>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Key {
    /// The signing key of a scope. The scope's region and service must have been checked: only its day is looked at.
    pub(crate) fn signing_key(&self, scope: &Scope) -> Arc<SigningKey> {
        let mut by_day = self.by_day.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, key)) = by_day.iter().find(|(day, _)| *day == scope.date) {
            return key.clone();
        }
        let key = Arc::new(SigningKey::derive(self.secret.expose_secret(), scope));
        if by_day.len() >= DAYS_MAX {
            by_day.remove(0);
        }
        by_day.push((scope.date.clone(), key.clone()));
        key
    }
}

/// Finds keys and owners.
#[derive(Debug)]
pub(crate) struct KeyRing {
    metadata: Arc<dyn MetadataStore>,
    master: MasterKey,
    root: Option<Arc<Key>>,
    keys: Cache<String, Arc<Key>>,
    admins: Cache<OwnerId, bool>,
}

impl KeyRing {
    pub(crate) fn new(
        metadata: Arc<dyn MetadataStore>,
        master: MasterKey,
        root: Option<RootCredentials>,
    ) -> Self {
        let root = root.map(|root| {
            Arc::new(Key {
                id: root.access_key,
                owner: root.owner,
                admin: true,
                secret: root.secret,
                expires_at: None,
                by_day: Mutex::default(),
            })
        });
        let keys = Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED).build();
        let admins = Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED).build();
        Self { metadata, master, root, keys, admins }
    }

    /// The key, if it may be used now.
    pub(crate) async fn key(&self, id: &str, now: Timestamp) -> Result<Arc<Key>, AuthError> {
        let key = match &self.root {
            Some(root) if root.id == id => root.clone(),
            _ => self.keys.try_get_with_by_ref(id, self.load(id)).await.map_err(|error| (*error).clone())?,
        };
        match key.expires_at {
            Some(expires_at) if expires_at <= now => {
                Err(unknown_key("this access key has expired; make a new one"))
            }
            _ => Ok(key),
        }
    }

    async fn load(&self, id: &str) -> Result<Arc<Key>, AuthError> {
        let key = self.metadata.access_key(id).await.map_err(|error| store_failed(&error))?;
        let key = key.ok_or_else(|| unknown_key("the access key id is not one of ours; check it"))?;
        if key.revoked {
            return Err(unknown_key("this access key was revoked; make a new one"));
        }
        let admin = self.load_owner(key.owner).await?;
        let admin =
            admin.ok_or_else(|| unknown_key("the owner of this access key does not exist any more"))?;
        let secret = self.master.unwrap(&access_key_context(id), &key.wrapped_secret).ok();
        let secret = secret.and_then(|secret| {
            let secret = Zeroizing::new(secret);
            std::str::from_utf8(&secret).ok().map(SecretString::from)
        });
        let secret = secret.ok_or_else(|| {
            error!(
                access_key = id,
                "the stored secret of an access key does not unwrap under this master key"
            );
            AuthError::internal()
        })?;
        Ok(Arc::new(Key {
            id: key.id,
            owner: key.owner,
            admin,
            secret,
            expires_at: key.expires_at,
            by_day: Mutex::default(),
        }))
    }

    /// Whether the owner exists, and is an administrator.
    pub(crate) async fn owner(&self, id: OwnerId) -> Result<Option<bool>, AuthError> {
        if let Some(admin) = self.admins.get(&id).await {
            return Ok(Some(admin));
        }
        let admin = self.load_owner(id).await?;
        if let Some(admin) = admin {
            self.admins.insert(id, admin).await;
        }
        Ok(admin)
    }

    async fn load_owner(&self, id: OwnerId) -> Result<Option<bool>, AuthError> {
        let owner = self.metadata.owner(id).await.map_err(|error| store_failed(&error))?;
        Ok(owner.map(|owner| owner.admin))
    }

    /// Looks the key up anew on its next use.
    pub(crate) async fn forget(&self, id: &str) {
        self.keys.invalidate(id).await;
    }
}

fn unknown_key(message: &'static str) -> AuthError {
    AuthError::new("InvalidAccessKeyId", StatusCode::FORBIDDEN, message)
}

fn store_failed(error: &cyxcloud_metadata::Error) -> AuthError {
    error!(error = error as &dyn std::error::Error, "could not look up credentials");
    match error {
        cyxcloud_metadata::Error::Unavailable { .. } => AuthError::unavailable(),
        _ => AuthError::internal(),
    }
}
