//! Access keys, users and tokens: whose they are, and whether they still hold.
//!
//! What the store said is remembered for [`REMEMBERED`], so what was revoked elsewhere stops working by then, and at once
//! where [`KeyRing::forget_all`] or [`KeyRing::refuse`] is called (here, and by news wherever Redis carries them). While
//! those news are known to be lost, nothing is remembered. An expiry is looked at on every use. What does not exist is
//! not remembered, so that a new key works at once everywhere; instead it is looked up so often for an address and no more,
//! and only where it looks like one of ours. Keys that were found here before are looked up whoever asks. What was revoked
//! is remembered, since nothing revives it, and counts for nobody: a client that goes on with such a key keeps nobody else
//! at its address out.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::sigv4::{Scope, SigningKey};
use cyxcloud_core::{ByteCount, OwnerId, Timestamp};
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::identity::model::PersonChange;
use cyxcloud_metadata::model::Owner;
use cyxcloud_tls::client::address_group;
use cyxwiz_client::Account;
use http::StatusCode;
use moka::future::Cache;
use secrecy::{ExposeSecret, SecretString};
use tracing::{error, info, warn};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::AuthError;
use super::accounts::{Accounts, Known};
use super::jwt::Token;
use crate::journal;
use crate::limits::Limits;
use crate::objects::OwnerSecrets;

/// How long an answer of the store is believed.
const REMEMBERED: Duration = Duration::from_secs(20);
/// Keys and owners remembered at most.
const REMEMBERED_MAX: u64 = 10_000;
/// Keys that one address may name in a minute which are found not to exist, or whose owners may do nothing.
const STRANGE_PER_MINUTE: u64 = 300;
/// How long it is known that a key was found, after it was last looked up.
const FOUND_REMEMBERED: Duration = Duration::from_secs(24 * 3_600);
/// How long it is known that a key was revoked.
const REVOKED_REMEMBERED: Duration = Duration::from_secs(24 * 3_600);
/// Characters of an access key's id after its beginning.
const ID_DIGITS: usize = 17;
/// Days with a signing key at hand, per access key: a presigned URL lives for a week, so nine can be in use.
const DAYS_MAX: usize = 10;

/// What the audit log calls the identity service.
const SERVICE: &str = "CyxWiz API";
/// Between two records of which keys were used.
const TOUCH_EVERY: Duration = Duration::from_secs(60);
const MINUTE: Duration = Duration::from_secs(60);
const NOT_OURS: &str = "the access key id is not one of ours; check it";
const REVOKED: &str = "this access key was revoked; make a new one";

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
    pub(crate) limits: Option<Arc<Limits>>,
    pub(crate) expires_at: Option<Timestamp>,
    secret: SecretString,
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
    /// Space of a user that the identity service vouches for first, where it does not say.
    newcomer_quota: Option<ByteCount>,
    /// The identity service, where it may be asked.
    accounts: Option<Arc<Accounts>>,
    // Under the round in which they were asked for: what is asked for in an earlier one is never looked at again, also
    // where its answer comes late.
    round: AtomicU64,
    /// Whether nobody tells us what was ended elsewhere.
    deaf: AtomicBool,
    keys: Cache<(u64, String), Arc<Key>>,
    /// Ids of keys that were good when they were last looked up.
    found: Cache<String, ()>,
    /// Ids of keys that were revoked.
    revoked: Cache<String, ()>,
    /// By address, how many keys it named this minute that were not.
    strange: Cache<String, Arc<AtomicU64>>,
    owners: Cache<(u64, OwnerId), Standing>,
    /// Tokens, by their ids and sessions, that were found to hold.
    good: Cache<(u64, String, Option<Uuid>), ()>,
    /// Tokens and sessions that were ended here or by news, for longer than anything is remembered.
    ended: Cache<String, ()>,
    used: Mutex<HashSet<String>>,
}

/// A key that an address named, counted before it is known whether that was in vain, so that who asks many times at once is not
/// asked for each of them. Given back when it is dropped: whoever goes away meanwhile named nothing.
#[derive(Debug)]
struct Counted(Option<Arc<AtomicU64>>);

impl Counted {
    /// `None` where the address has named too many.
    fn one_more(count: Arc<AtomicU64>) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::SeqCst);
        let counted = Self(Some(count));
        (before < STRANGE_PER_MINUTE).then_some(counted)
    }

    /// It was in vain.
    fn stays(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// What a user may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) admin: bool,
    pub(crate) token_version: i64,
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
                limits: None,
                secret: root.secret,
                expires_at: None,
                by_day: Mutex::default(),
            })
        });
        Self {
            metadata,
            master,
            root,
            newcomer_quota: None,
            accounts: None,
            round: AtomicU64::new(0),
            deaf: AtomicBool::new(false),
            keys: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED).build(),
            found: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(FOUND_REMEMBERED).build(),
            revoked: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REVOKED_REMEMBERED).build(),
            strange: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(MINUTE).build(),
            owners: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED).build(),
            good: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED).build(),
            ended: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(3 * REMEMBERED).build(),
            used: Mutex::default(),
        }
    }

    pub(crate) fn set_newcomer_quota(&mut self, quota: ByteCount) {
        self.newcomer_quota = Some(quota);
    }

    pub(crate) fn set_accounts(&mut self, accounts: Accounts) {
        self.accounts = Some(Arc::new(accounts));
    }

    /// Whether an administrator here suspended this user.
    pub(crate) async fn suspended_here(&self, id: OwnerId) -> Result<bool, AuthError> {
        if self.owner(id).await?.is_some() {
            return Ok(false);
        }
        let person = self.metadata.person(id).await.map_err(|error| store_failed(&error))?;
        Ok(person.is_some_and(|person| person.suspended))
    }

    /// What the identity service says of this account; `None` where there is no such service.
    pub(crate) async fn known_elsewhere(&self, id: OwnerId) -> Option<Known> {
        Some(self.accounts.as_ref()?.known(id).await)
    }

    /// Whether the identity service says that this account may do nothing now; `None` while it never said anything.
    pub(crate) async fn suspended_elsewhere(&self, id: OwnerId) -> Option<bool> {
        match self.known_elsewhere(id).await {
            Some(Known::Account(Account { suspended, .. })) => Some(suspended),
            Some(Known::Nobody) | None => Some(false),
            Some(Known::Nothing) => None,
        }
    }

    /// What the identity service said last of this account, waiting for it only where it never said anything: after a start
    /// nothing is known of what it has ended.
    pub(crate) async fn said_elsewhere(&self, id: OwnerId) -> Option<Known> {
        Some(self.accounts.as_ref()?.said(id).await)
    }

    /// Whether this is the root user's key.
    pub(crate) fn is_root(&self, id: &str) -> bool {
        self.root.as_ref().is_some_and(|root| root.id == id)
    }

    /// Notes that somebody who has this key used it.
    pub(crate) fn used(&self, id: &str) {
        if !self.is_root(id) {
            self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
        }
    }

    /// The key, if it may be used now; `from` is where a stranger names it. Why it may not is for those who have proven that they
    /// have it: see [`unproven`].
    pub(crate) async fn key(
        &self,
        id: &str,
        now: Timestamp,
        from: Option<IpAddr>,
    ) -> Result<Arc<Key>, AuthError> {
        let key = match &self.root {
            Some(root) if root.id == id => root.clone(),
            _ => {
                let at = (self.round.load(Ordering::SeqCst), id.to_owned());
                match self.deaf.load(Ordering::SeqCst) {
                    true => self.look_up(id, from).await?,
                    false => {
                        let found = self.keys.try_get_with(at, self.look_up(id, from)).await;
                        found.map_err(|error| (*error).clone())?
                    }
                }
            }
        };
        match key.expires_at {
            Some(expires_at) if expires_at <= now => {
                Err(unknown_key("this access key has expired; make a new one"))
            }
            _ => Ok(key),
        }
    }

    /// Asks the store, unless this address has named too many keys in vain.
    async fn look_up(&self, id: &str, from: Option<IpAddr>) -> Result<Arc<Key>, AuthError> {
        if !is_an_id(id) {
            return Err(unknown_key(NOT_OURS));
        }
        if self.revoked.contains_key(id) {
            return Err(unknown_key(REVOKED));
        }
        let counted = match from {
            Some(from) if self.found.get(id).await.is_none() => Some(self.count(from).await?),
            Some(_) | None => None,
        };
        let loaded = self.load(id).await;
        let is_bad = loaded.as_ref().is_err_and(|error| error.status() == StatusCode::FORBIDDEN);
        // One that was revoked is not looked up again.
        if let Some(counted) = counted
            && is_bad
            && !self.revoked.contains_key(id)
        {
            counted.stays();
        }
        if is_bad {
            self.found.invalidate(id).await;
        } else if loaded.is_ok() {
            self.found.insert(id.to_owned(), ()).await;
        }
        loaded
    }

    async fn count(&self, from: IpAddr) -> Result<Counted, AuthError> {
        let count = self.strange.get_with(address_group(from), async { Arc::default() }).await;
        Counted::one_more(count).ok_or_else(|| {
            AuthError::slow_down(
                "too many access keys were named from this address that are not good; wait a minute and try again",
            )
        })
    }

    async fn load(&self, id: &str) -> Result<Arc<Key>, AuthError> {
        let key = self.metadata.api_key(id).await.map_err(|error| store_failed(&error))?;
        let key = key.ok_or_else(|| unknown_key(NOT_OURS))?;
        if key.revoked_at.is_some() {
            self.revoked.insert(id.to_owned(), ()).await;
            return Err(unknown_key(REVOKED));
        }
        let owner = self.load_owner(key.owner).await?;
        let owner = owner.ok_or_else(|| {
            unknown_key("the owner of this access key does not exist any more, or is suspended")
        })?;
        let limits = Limits::of(key.buckets, key.prefixes, key.read_only);
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
            admin: owner.admin && limits.is_none(),
            limits,
            secret,
            expires_at: key.expires_at,
            by_day: Mutex::default(),
        }))
    }

    /// What the owner may do; `None` if there is no such owner or it is suspended, here or at the identity service.
    pub(crate) async fn owner(&self, id: OwnerId) -> Result<Option<Standing>, AuthError> {
        let at = (self.round.load(Ordering::SeqCst), id);
        let deaf = self.deaf.load(Ordering::SeqCst);
        if !deaf && let Some(standing) = self.owners.get(&at).await {
            return Ok(Some(standing));
        }
        let standing = self.load_owner(id).await?;
        if !deaf && let Some(standing) = standing {
            self.owners.insert(at, standing).await;
        }
        Ok(standing)
    }

    /// Makes the user that the identity service vouches for, at the first use of its token; what such a user is called
    /// and which wallet it holds is the service's to know. Nothing for one who is suspended.
    pub(crate) async fn welcome(&self, id: OwnerId) -> Result<Option<Standing>, AuthError> {
        if self.metadata.person(id).await.map_err(|error| store_failed(&error))?.is_none() {
            let said = match &self.accounts {
                Some(accounts) => accounts.known(id).await,
                None => Known::Nothing,
            };
            if matches!(said, Known::Account(Account { suspended: true, .. })) {
                return Ok(None);
            }
            let new = Owner {
                id,
                username: None,
                email: None,
                wallet_address: None,
                admin: false,
                storage_quota: match said {
                    Known::Account(account) => account.storage_quota,
                    Known::Nobody | Known::Nothing => self.newcomer_quota,
                },
                wrapped_secret: OwnerSecrets::wrap_new(&self.master, id),
                created_at: Timestamp::default(),
            };
            self.metadata.ensure_owner(&new).await.map_err(|error| store_failed(&error))?;
            info!(owner = %id, "made the user of an identity service's token");
            journal::write(&*self.metadata, Some(id), &id.to_string(), "signup", SERVICE, None, "ok").await;
        }
        self.owner(id).await
    }

    async fn load_owner(&self, id: OwnerId) -> Result<Option<Standing>, AuthError> {
        let person = self.metadata.person(id).await.map_err(|error| store_failed(&error))?;
        let person = person.filter(|person| !person.suspended);
        if let Some(person) = &person {
            self.look_up_account(&person.owner);
        }
        if let Some(accounts) = &self.accounts
            && accounts.said_suspended(id).await
        {
            return Ok(None);
        }
        Ok(person.map(|person| Standing { admin: person.owner.admin, token_version: person.token_version }))
    }

    /// Takes over what the identity service says of one of its accounts, beside the request that asks for it: what it
    /// said before is in the store, and is kept to meanwhile.
    fn look_up_account(&self, owner: &Owner) {
        let Some(accounts) = &self.accounts else { return };
        if !is_the_service_s(owner) || accounts.is_fresh(owner.id) {
            return;
        }
        let (accounts, metadata) = (accounts.clone(), self.metadata.clone());
        let (id, before) = (owner.id, owner.storage_quota);
        tokio::spawn(async move {
            let Known::Account(account) = accounts.known(id).await else { return };
            if account.storage_quota == before {
                return;
            }
            let change = PersonChange { quota: Some(account.storage_quota), ..PersonChange::default() };
            match metadata.change_person(id, &change).await {
                Ok(_) => {
                    let quota = account.storage_quota.map(ByteCount::get);
                    info!(owner = %id, quota, "the CyxWiz API changed a quota");
                    let target = quota.map_or("unlimited".to_owned(), |bytes| format!("{bytes} bytes"));
                    journal::write(&*metadata, Some(id), SERVICE, "quota", &target, None, "ok").await;
                }
                Err(error) => warn!(owner = %id, %error, "a quota could not be changed"),
            }
        });
    }

    /// Refuses a token that was ended, by itself or with its session.
    pub(crate) async fn check_token(&self, token: &Token) -> Result<(), AuthError> {
        let over = || AuthError::bad_token("the token was ended; log in again");
        let at = (self.round.load(Ordering::SeqCst), token.id.clone(), token.session);
        let deaf = self.deaf.load(Ordering::SeqCst);
        if deaf || self.good.get(&at).await.is_none() {
            let revoked = self.metadata.token_is_revoked(&token.id, token.session).await;
            if revoked.map_err(|error| store_failed(&error))? {
                return Err(over());
            }
            if !deaf {
                self.good.insert(at, ()).await;
            }
        }
        // Looked at last: whoever ends a token while we ask has said so here before it answers.
        let session = token.session.map(|session| session.to_string());
        for id in std::iter::once(&token.id).chain(&session) {
            if self.ended.get(id).await.is_some() {
                return Err(over());
            }
        }
        Ok(())
    }

    /// Refuses a token or session from now on; the store must know already.
    pub(crate) async fn refuse(&self, id: &str) {
        self.ended.insert(id.to_owned(), ()).await;
    }

    /// Looks keys and owners up anew on their next use.
    pub(crate) fn forget_all(&self) {
        self.round.fetch_add(1, Ordering::SeqCst);
    }

    /// Says whether news of what was ended elsewhere are heard. What was missed is not held against anyone: all is looked
    /// up anew.
    pub(crate) fn hears(&self, news: bool) {
        self.forget_all();
        self.deaf.store(!news, Ordering::SeqCst);
    }

    /// Records now and then which keys were used.
    pub(crate) async fn record_use(&self) {
        loop {
            tokio::time::sleep(TOUCH_EVERY).await;
            self.record_used().await;
        }
    }

    /// Records which keys were used since it was last asked to.
    pub(crate) async fn record_used(&self) {
        let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        let used: Vec<String> = used.into_iter().collect();
        if !used.is_empty()
            && let Err(error) = self.metadata.touch_api_keys(&used).await
        {
            tracing::debug!(%error, "the use of keys was not recorded");
        }
    }
}

/// Whether this can be the id of a key that was made here.
fn is_an_id(id: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte);
    id.strip_prefix("CYX").is_some_and(|digits| digits.len() == ID_DIGITS && digits.bytes().all(is_digit))
}

/// Whether a user was made by [`KeyRing::welcome`]: one who logged in here has a wallet, and root a name.
fn is_the_service_s(owner: &Owner) -> bool {
    owner.wallet_address.is_none() && owner.username.is_none() && owner.email.is_none()
}

/// What somebody is told who names a key and has not proven to have it: the same whatever is wrong with the key.
pub(crate) fn unproven(error: AuthError) -> AuthError {
    match error.status() {
        StatusCode::FORBIDDEN => unknown_key(
            "no key of this access key id may sign: it is not one of ours, was revoked or has expired, or its owner is \
             suspended; check it, or make a new one",
        ),
        _ => error,
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
