//! What is kept of people and their credentials, as plain data.

use cyxcloud_core::{ByteCount, OwnerId, Timestamp};
use uuid::Uuid;

use crate::model::Owner;

/// A user, and whether it may do anything now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The row.
    pub owner: Owner,
    /// Suspended: every credential is refused.
    pub suspended: bool,
    /// Tokens of another version are refused.
    pub token_version: i64,
}

/// What to change about a user; `None` leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersonChange {
    /// Bytes it may store; `Some(None)` is no limit.
    pub quota: Option<Option<ByteCount>>,
    /// Whether it is an administrator.
    pub admin: Option<bool>,
    /// Whether its credentials are refused.
    pub suspended: Option<bool>,
}

impl PersonChange {
    /// Whether tokens issued before must end: what they were issued for has changed.
    pub fn ends_tokens(&self) -> bool {
        self.admin.is_some() || self.suspended.is_some()
    }
}

/// A session that begins.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Random, and given once.
    pub id: Uuid,
    /// Whose.
    pub owner: OwnerId,
    /// Id of its first refresh token.
    pub refresh: String,
    /// When that token ends.
    pub expires_at: Timestamp,
}

/// A refresh token to be exchanged.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Its session.
    pub session: Uuid,
    /// Its id.
    pub presented: String,
    /// Id of the token that follows it.
    pub next: String,
    /// When that one ends.
    pub expires_at: Timestamp,
    /// What is answered, wrapped.
    pub answer: Vec<u8>,
}

/// What became of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotated {
    /// Done: the answer given is the one.
    Fresh,
    /// It was exchanged a moment ago: this was the answer.
    Again(Vec<u8>),
    /// It was exchanged long ago: somebody has a copy. The session is ended.
    Reused,
    /// There is no such session, or it was ended or has expired.
    Ended,
}

/// An API key: a row of `access_keys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Access key id, and id of the token.
    pub id: String,
    /// Whose rights it carries, within its limits.
    pub owner: OwnerId,
    /// What its owner calls it.
    pub name: String,
    /// Secret part, wrapped under the server's master key.
    pub wrapped_secret: Vec<u8>,
    /// Only these buckets; `None` is all.
    pub buckets: Option<Vec<String>>,
    /// Only keys that begin with one of these; `None` is all.
    pub prefixes: Option<Vec<String>>,
    /// Whether it changes nothing.
    pub read_only: bool,
    /// Stops working then.
    pub expires_at: Option<Timestamp>,
    /// The key that it was made with, and is revoked with; `None` is a log-in or root.
    pub made_by: Option<String>,
    /// By the database's clock. Ignored on creation, like the next two.
    pub created_at: Timestamp,
    /// About when it was last used.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A line to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAuditEntry {
    /// Random.
    pub id: Uuid,
    /// Whose account it is about, if anybody's.
    pub owner: Option<OwnerId>,
    /// Who did it: a user's id, a wallet, or nothing.
    pub actor: String,
    /// What, such as `login`.
    pub action: String,
    /// On what.
    pub target: String,
    /// From where.
    pub address: String,
    /// `ok`, or the kind of the refusal.
    pub outcome: String,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When, by the database's clock.
    pub at: Timestamp,
    /// What.
    pub entry: NewAuditEntry,
}

impl AuditEntry {
    /// Where the page after this line begins.
    pub fn cursor(&self) -> AuditCursor {
        AuditCursor { at: self.at, id: self.entry.id }
    }
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditCursor {
    /// Time of the last line seen.
    pub at: Timestamp,
    /// Its id.
    pub id: Uuid,
}
