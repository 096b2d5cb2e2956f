//! People: log-ins and what ends them, keys with limits, quotas, and the log of who did what.
//!
//! The truth about revocation is here: what a cache may have forgotten is still refused. Not here: what a token or a
//! signature looks like; secrets and answers come wrapped and are never opened.

pub mod model;

use std::time::Duration;

use async_trait::async_trait;
use cyxcloud_core::{ByteCount, OwnerId, Timestamp};
use uuid::Uuid;

use crate::Result;
use crate::model::Owner;
use model::*;

/// People and their credentials. Every method is one transaction, as in [`crate::MetadataStore`].
#[async_trait]
pub trait Identity: Send + Sync {
    // Users.

    /// Makes an owner unless its wallet has one; answers with the wallet's owner, and whether it is new.
    async fn ensure_wallet(&self, owner: &Owner) -> Result<(Owner, bool)>;
    /// The owner of a wallet, if anybody came with it before.
    async fn wallet_owner(&self, wallet: &str) -> Result<Option<Owner>>;
    /// A user with its standing.
    async fn person(&self, id: OwnerId) -> Result<Option<Person>>;
    /// Users after `after` in order of id, at most `limit`.
    async fn people(&self, after: Option<OwnerId>, limit: usize) -> Result<Vec<Person>>;
    /// Changes what is named. A new status or role ends all tokens issued before. `None` if there is no such user.
    async fn change_person(&self, id: OwnerId, change: &PersonChange) -> Result<Option<Person>>;

    // Log-ins and tokens.

    /// Begins a session: one log-in and all that follows from it. False if another one of this id was begun before; begun
    /// again with the same refresh token, it is the same.
    async fn begin_session(&self, session: &NewSession) -> Result<bool>;
    /// Exchanges a refresh token. One that was exchanged within `grace` gets the same answer again; one exchanged
    /// before that ends its session.
    async fn rotate_session(&self, rotation: &Rotation, grace: Duration) -> Result<Rotated>;
    /// Ends a session and every token of it. Never an error if it is gone.
    async fn end_session(&self, id: Uuid) -> Result<()>;
    /// Refuses a token from now on. Idempotent.
    async fn revoke_token(&self, jti: &str, owner: OwnerId, expires_at: Timestamp) -> Result<()>;
    /// Whether this token, or the session it belongs to, was ended. A session that nobody knows is.
    async fn token_is_revoked(&self, jti: &str, session: Option<Uuid>) -> Result<bool>;

    // API keys.

    /// Makes an API key. `Stale` if the id is taken, or the key that it is made with is not in use. `TooManyKeys` if `most` are
    /// in use already: of those that the owner made itself, or, where a key makes it, of those that come of the same one of them.
    async fn create_api_key(&self, key: &ApiKey, most: u32) -> Result<ApiKey>;
    /// One key, also if expired or revoked.
    async fn api_key(&self, id: &str) -> Result<Option<ApiKey>>;
    /// The owner's keys, at most `limit`: first those in use, then those revoked or expired, each newest first.
    async fn api_keys(&self, owner: OwnerId, limit: usize) -> Result<Vec<ApiKey>>;
    /// Revokes the owner's key; false if there is none of this id.
    async fn revoke_api_key(&self, owner: OwnerId, id: &str) -> Result<bool>;
    /// Records that keys were used just now.
    async fn touch_api_keys(&self, ids: &[String]) -> Result<()>;

    // Quotas.

    /// Refuses (`QuotaExceeded`) if the owner has no room for `more` beside what is stored, uploaded in parts, and
    /// reserved by uploads under way.
    async fn check_room(&self, owner: OwnerId, more: ByteCount) -> Result<()>;

    // Who did what.

    /// Writes lines, all or none. Lines are never changed; one of an id that is there already is left out.
    async fn append_audit(&self, entries: &[NewAuditEntry]) -> Result<()>;
    /// Lines before `before`, newest first, at most `limit`; `owner` limits them to one account.
    async fn audit_log(
        &self,
        owner: Option<OwnerId>,
        before: Option<AuditCursor>,
        limit: usize,
    ) -> Result<Vec<AuditEntry>>;

    // Upkeep.

    /// Drops at most `limit` each of sessions and revocations that have expired, and audit lines older than
    /// `audit_older`; answers how many rows went.
    async fn purge_identity(&self, audit_older: Duration, limit: usize) -> Result<usize>;
}
