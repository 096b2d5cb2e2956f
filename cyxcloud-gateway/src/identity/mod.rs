//! Who people are: log-in by wallet, sessions, API keys, and the log of who did what.
//!
//! Every nonce is used once, every refresh token is exchanged once, and what was revoked is refused also when Redis
//! forgot everything: the truth is in the metadata store. A refusal says the same whatever was wrong with a log-in.
//! Nobody is kept out by what strangers try: a wallet's signature cannot be guessed, so only tries that it did not prove
//! are counted against where they came from, and only those that it proved against the wallet.
//! Not here: verifying requests ([`crate::auth`]), HTTP ([`routes`]).

pub mod challenge;
mod keys;
pub mod routes;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::claims::{REFRESH_GRACE, TokenKind};
use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::{ByteCount, OwnerId, Timestamp};
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::identity::model::{NewSession, Person, PersonChange, Rotated, Rotation};
use cyxcloud_metadata::model::Owner;
use futures::StreamExt as _;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};
use uuid::Uuid;

use crate::auth::{AuthError, Authenticator, Principal, Scheme, Token, now};
use crate::ephemeral::{Ephemeral, Heard, Topic, over_limit};
use crate::journal;
use crate::objects::OwnerSecrets;
use challenge::{Binding, Wallet};
use cyxcloud_tls::client::address_group;
pub(crate) use keys::actor;
pub use keys::{MadeKey, WantedKey};

/// Longest nonce that is looked up, in bytes.
const NONCE_MAX: usize = 64;
/// A nonce is good for so long.
const CHALLENGE_LIFE: Duration = Duration::from_secs(300);
const TICKET_LIFE: Duration = Duration::from_secs(30);
/// Of one owner.
const TICKETS_PER_MINUTE: u64 = 60;
const CHALLENGES_PER_MINUTE: u64 = 10;
/// Log-ins of one wallet; and tries at one wallet from one address that proved nothing.
const LOGINS_PER_MINUTE: u64 = 5;
/// Tries from one address, right or wrong: bounds what is verified for it.
const TRIES_PER_ADDRESS_AND_MINUTE: u64 = 30;
/// What new users are counted for.
const HOUR: Duration = Duration::from_secs(3600);

/// Why a log-in or an exchange was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Whatever was wrong: unknown or used nonce, wrong signature, ended session.
    #[error("{0}")]
    NotLetIn(&'static str),
    /// The user may do nothing now.
    #[error("this account is suspended; ask an administrator")]
    Suspended,
    /// Too often.
    #[error("too many tries; wait {} s and try again", after.as_secs().max(1))]
    TooMany {
        /// Until the next one.
        after: Duration,
    },
    /// The key in use may not do that.
    #[error("{0}")]
    Exceeds(&'static str),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// There are enough keys.
    #[error("there are {0} keys in use already; revoke one first")]
    TooManyKeys(u32),
    /// The credentials do not hold.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// We cannot say now.
    #[error("log-ins cannot be checked just now; try again")]
    Unavailable,
}

impl From<cyxcloud_metadata::Error> for Refusal {
    fn from(error: cyxcloud_metadata::Error) -> Self {
        if let cyxcloud_metadata::Error::TooManyKeys { max } = error {
            return Self::TooManyKeys(max);
        }
        error!(error = &error as &dyn std::error::Error, "the metadata store failed a log-in");
        Self::Unavailable
    }
}

impl From<crate::ephemeral::Error> for Refusal {
    fn from(error: crate::ephemeral::Error) -> Self {
        warn!(error = &error as &dyn std::error::Error, "ephemeral state failed a log-in");
        Self::Unavailable
    }
}

/// What to sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The text.
    pub text: String,
    /// The nonce in it.
    pub nonce: String,
    /// When it is no longer good.
    pub expires: Timestamp,
}

/// What a log-in or an exchange answers.
#[derive(Clone, Serialize, Deserialize)]
pub struct Issued {
    /// Opens S3 and REST.
    pub access_token: String,
    /// Is exchanged for the next two.
    pub refresh_token: String,
    /// Seconds until the access token ends.
    pub expires_in: u64,
}

/// Without the tokens: they open the account.
impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

/// What may be set about log-ins.
#[derive(Clone, Debug)]
pub struct Config {
    /// What signatures are bound to.
    pub binding: Binding,
    /// Bytes that a new user may store; `None` is no limit.
    pub quota: Option<ByteCount>,
    /// New users from one address in an hour, at most: a wallet costs nothing, and each is given its space.
    pub signups_per_hour: u32,
}

/// Log-ins and keys.
#[derive(Debug)]
pub struct Identity {
    metadata: Arc<dyn MetadataStore>,
    ephemeral: Arc<dyn Ephemeral>,
    auth: Arc<Authenticator>,
    master: MasterKey,
    config: Config,
}

fn session_context(session: Uuid) -> String {
    format!("cyxcloud/session/v1/{session}")
}

/// Under which the nonce is kept that a wallet was last asked to sign, from there.
fn latest(wallet: &Wallet, from: IpAddr) -> String {
    format!("latest:{wallet} {}", address_group(from))
}

#[derive(Serialize, Deserialize)]
struct Pending {
    wallet: String,
    text: String,
}

/// What a ticket was given for.
#[derive(Serialize, Deserialize)]
struct Given {
    owner: OwnerId,
    access_key: Option<String>,
    token: Option<Token>,
}

impl Identity {
    /// Log-ins over this store; revocations are told to `auth` at once and to other gateways by `ephemeral`.
    pub fn new(
        metadata: Arc<dyn MetadataStore>,
        ephemeral: Arc<dyn Ephemeral>,
        auth: Arc<Authenticator>,
        master: MasterKey,
        config: Config,
    ) -> Self {
        Self { metadata, ephemeral, auth, master, config }
    }

    async fn limit(&self, what: &str, who: &str, most: u64) -> Result<(), Refusal> {
        let over = over_limit(&*self.ephemeral, what, who, most).await?;
        over.map_or(Ok(()), |after| Err(Refusal::TooMany { after }))
    }

    /// A text for this wallet to sign.
    pub async fn challenge(&self, wallet: &Wallet, from: IpAddr) -> Result<Challenge, Refusal> {
        self.limit("challenge", &address_group(from), CHALLENGES_PER_MINUTE).await?;
        let nonce = Uuid::new_v4().simple().to_string();
        let issued = now();
        let expires = issued.plus(CHALLENGE_LIFE);
        let text = self.config.binding.challenge(wallet, &nonce, issued, expires);
        let pending = Pending { wallet: wallet.to_string(), text: text.clone() };
        let pending = serde_json::to_string(&pending).map_err(|_| Refusal::Unavailable)?;
        self.ephemeral.keep(&format!("nonce:{nonce}"), &pending, CHALLENGE_LIFE).await?;
        // For clients that send the signature alone. By address, too: nobody else's challenge takes this one's place.
        self.ephemeral.keep(&latest(wallet, from), &nonce, CHALLENGE_LIFE).await?;
        Ok(Challenge { text, nonce, expires })
    }

    /// Lets a wallet in that signed the challenge of this nonce, or the latest one that its address asked for. A nonce is
    /// used up by the signature that proves it and by nothing else; it names the session that begins, so that it begins none
    /// again where a Redis has come back with what it knew before.
    pub async fn log_in(
        &self,
        wallet: &Wallet,
        signature: &str,
        nonce: Option<&str>,
        text: Option<&str>,
        from: IpAddr,
    ) -> Result<Issued, Refusal> {
        const REFUSED: Refusal = Refusal::NotLetIn(
            "the log-in was refused; ask for a new challenge, sign exactly its text, and send the signature in base58",
        );
        let address = address_group(from);
        self.limit("login", &address, TRIES_PER_ADDRESS_AND_MINUTE).await?;
        let Some(session) = self.proves(wallet, signature, nonce, text, from).await? else {
            self.limit("wrong", &format!("{wallet} {address}"), LOGINS_PER_MINUTE).await?;
            self.audit(None, wallet.address(), "login", "", from, "refused").await;
            return Err(REFUSED);
        };
        self.limit("wallet", wallet.address(), LOGINS_PER_MINUTE).await?;
        let (owner, made) = match self.metadata.wallet_owner(wallet.address()).await? {
            Some(owner) => (owner, false),
            None => self.sign_up(wallet, &address).await?,
        };
        let person = self.metadata.person(owner.id).await?.ok_or(Refusal::Unavailable)?;
        let actor = owner.id.to_string();
        if person.suspended {
            self.audit(Some(owner.id), &actor, "login", wallet.address(), from, "suspended").await;
            return Err(Refusal::Suspended);
        }
        let (issued, refresh) = self.issue(&owner, session, person.token_version)?;
        let session =
            NewSession { id: session, owner: owner.id, refresh: refresh.id, expires_at: refresh.expires_at };
        if !self.metadata.begin_session(&session).await? {
            self.audit(Some(owner.id), &actor, "login", wallet.address(), from, "replayed").await;
            return Err(REFUSED);
        }
        let action = if made { "signup" } else { "login" };
        self.audit(Some(owner.id), &actor, action, wallet.address(), from, "ok").await;
        Ok(issued)
    }

    /// Makes a user of a wallet that nobody came with before, unless many new ones came from there already; and whether it is new
    /// still. Its wallet is proven: nobody uses up what an address may have without one.
    async fn sign_up(&self, wallet: &Wallet, address: &str) -> Result<(Owner, bool), Refusal> {
        let (count, after) = self.ephemeral.count(&format!("rate:signup:{address}"), HOUR).await?;
        if count > u64::from(self.config.signups_per_hour) {
            return Err(Refusal::TooMany { after });
        }
        let id = OwnerId::from_random(rand::random());
        let new = Owner {
            id,
            username: None,
            email: None,
            wallet_address: Some(wallet.to_string()),
            admin: false,
            storage_quota: self.config.quota,
            wrapped_secret: OwnerSecrets::wrap_new(&self.master, id),
            created_at: Timestamp::default(),
        };
        Ok(self.metadata.ensure_wallet(&new).await?)
    }

    /// The session that this signature begins, if it is the wallet's under a challenge of its own, for the first time.
    async fn proves(
        &self,
        wallet: &Wallet,
        signature: &str,
        nonce: Option<&str>,
        text: Option<&str>,
        from: IpAddr,
    ) -> Result<Option<Uuid>, Refusal> {
        let nonce = match nonce {
            Some(nonce) => Some(nonce.to_owned()),
            None => self.ephemeral.look(&latest(wallet, from)).await?,
        };
        let session = nonce.as_ref().and_then(|nonce| nonce.parse::<Uuid>().ok());
        let name = nonce.filter(|nonce| nonce.len() <= NONCE_MAX).map(|nonce| format!("nonce:{nonce}"));
        let pending = match &name {
            Some(name) => self.ephemeral.look(name).await?,
            None => None,
        };
        let pending: Option<Pending> = pending.and_then(|pending| serde_json::from_str(&pending).ok());
        // Verified also where there is nothing to verify: a stranger does not learn which it was by the time it takes.
        let signed = wallet.signed(pending.as_ref().map_or("", |pending| &pending.text), signature);
        let (Some(name), Some(pending)) = (name, pending) else { return Ok(None) };
        let same_text = text.is_none_or(|text| text == pending.text);
        let proven = signed && same_text && pending.wallet == wallet.address();
        // Of those who show the same proof at once, one takes it.
        let taken = proven && self.ephemeral.take(&name).await?.is_some();
        Ok(session.filter(|_| taken))
    }

    fn issue(&self, owner: &Owner, session: Uuid, version: i64) -> Result<(Issued, Token), Refusal> {
        let now = now();
        let token = |kind: TokenKind| Token {
            owner: owner.id,
            kind,
            id: Uuid::new_v4().to_string(),
            session: Some(session),
            key: None,
            version: Some(version),
            issued_at: now,
            expires_at: now.plus(kind.lifetime()),
        };
        let (access, refresh) = (token(TokenKind::Access), token(TokenKind::Refresh));
        let wallet = owner.wallet_address.as_deref();
        let issued = Issued {
            access_token: self.auth.issue(&access, wallet, now)?.expose_secret().to_owned(),
            refresh_token: self.auth.issue(&refresh, wallet, now)?.expose_secret().to_owned(),
            expires_in: TokenKind::Access.lifetime().as_secs(),
        };
        Ok((issued, refresh))
    }

    /// Exchanges a refresh token for new tokens.
    pub async fn refresh(&self, token: &str, from: IpAddr) -> Result<Issued, Refusal> {
        const ENDED: Refusal = Refusal::NotLetIn("the session has ended; log in again");
        let token = self.auth.refresh_token(token, now()).await?;
        let session = token.session.ok_or(ENDED)?;
        let person = self.metadata.person(token.owner).await?.ok_or(ENDED)?;
        let (issued, refresh) = self.issue(&person.owner, session, person.token_version)?;
        let answer = serde_json::to_vec(&issued).map_err(|_| Refusal::Unavailable)?;
        let context = session_context(session);
        let rotation = Rotation {
            session,
            presented: token.id,
            next: refresh.id,
            expires_at: refresh.expires_at,
            answer: self.master.wrap(&context, &answer, rand::random()),
        };
        match self.metadata.rotate_session(&rotation, REFRESH_GRACE).await? {
            Rotated::Fresh => Ok(issued),
            Rotated::Again(wrapped) => {
                let answer = self.master.unwrap(&context, &wrapped).map_err(|_| Refusal::Unavailable)?;
                serde_json::from_slice(&answer).map_err(|_| Refusal::Unavailable)
            }
            Rotated::Reused => {
                self.ended(&session.to_string()).await;
                let actor = token.owner.to_string();
                self.audit(Some(token.owner), &actor, "refresh", &session.to_string(), from, "reused").await;
                Err(ENDED)
            }
            Rotated::Ended => Err(ENDED),
        }
    }

    /// Ends the session of the token that the caller came with.
    pub async fn log_out(&self, caller: &Principal, from: IpAddr) -> Result<(), Refusal> {
        let token = caller.token.as_ref().filter(|token| token.kind == TokenKind::Access);
        let token = token.ok_or(Refusal::Invalid(
            "there is no session to end; log out with an access token, or revoke the key",
        ))?;
        self.metadata.revoke_token(&token.id, token.owner, token.expires_at).await?;
        self.ended(&token.id).await;
        if let Some(session) = token.session {
            self.metadata.end_session(session).await?;
            self.ended(&session.to_string()).await;
        }
        let (actor, target) = (token.owner.to_string(), token.session.map(|id| id.to_string()));
        self.audit(Some(token.owner), &actor, "logout", &target.unwrap_or_default(), from, "ok").await;
        Ok(())
    }

    /// A ticket that opens one WebSocket soon, for browsers, whose addresses would tell a token to everybody.
    /// It stands for the credentials that the caller came with, and for nothing that they do not.
    pub async fn ticket(&self, caller: &Principal) -> Result<(String, Duration), Refusal> {
        self.limit("ticket", &caller.owner.to_string(), TICKETS_PER_MINUTE).await?;
        let ticket = hex::encode(rand::random::<[u8; 32]>());
        let Principal { owner, access_key, token, .. } = caller.clone();
        let given = Given { owner, access_key, token };
        let given = serde_json::to_string(&given).map_err(|_| Refusal::Unavailable)?;
        self.ephemeral.keep(&format!("ticket:{ticket}"), &given, TICKET_LIFE).await?;
        Ok((ticket, TICKET_LIFE))
    }

    /// Who comes with a ticket; asked once, it is used up. Nobody where it is not good, or not any more.
    pub async fn redeem_ticket(&self, ticket: &str) -> Result<Option<Principal>, Refusal> {
        if ticket.len() != 64 {
            return Ok(None);
        }
        let given = self.ephemeral.take(&format!("ticket:{ticket}")).await?;
        let Some(given) = given.and_then(|given| serde_json::from_str::<Given>(&given).ok()) else {
            return Ok(None);
        };
        let Given { owner, access_key, token } = given;
        let scheme = Scheme::Ticket;
        let given = Principal { owner, admin: false, access_key, scheme, limits: None, token };
        Ok(Some(self.auth.still(&given).await?))
    }

    /// Changes a user; what it could do before ends at once here, and elsewhere as soon as the news are there.
    pub async fn change_user(&self, id: OwnerId, change: &PersonChange) -> Result<Option<Person>, Refusal> {
        let person = self.metadata.change_person(id, change).await?;
        self.changed().await;
        Ok(person)
    }

    /// The metadata store below.
    pub fn metadata(&self) -> &dyn MetadataStore {
        &*self.metadata
    }

    /// Refuses a token or session here at once, and elsewhere as soon as the news are there.
    async fn ended(&self, id: &str) {
        self.auth.refuse(id).await;
        if let Err(error) = self.ephemeral.publish(Topic::Credentials, id).await {
            warn!(%error, "other gateways are not told of an ended session and must look for themselves");
        }
    }

    /// Looks all keys and users up anew, here at once and elsewhere as soon as the news are there.
    async fn changed(&self) {
        self.auth.forget_all();
        if let Err(error) = self.ephemeral.publish(Topic::Credentials, "*").await {
            warn!(%error, "other gateways are not told of a changed key or user and must look for themselves");
        }
    }

    /// Listens for what other gateways ended or changed; returns when there is nothing to listen to.
    pub async fn listen(&self) {
        match self.ephemeral.subscribe(Topic::Credentials).await {
            Ok(mut news) => {
                while let Some(heard) = news.next().await {
                    match heard {
                        Heard::Message(all) if all == "*" => self.auth.forget_all(),
                        Heard::Message(id) => self.auth.refuse(&id).await,
                        Heard::Lost => self.auth.hears(false),
                        Heard::Back => self.auth.hears(true),
                    }
                }
            }
            Err(error) => {
                warn!(%error, "without news the metadata store is asked about each request");
                self.auth.hears(false);
            }
        }
    }

    /// Writes a line of the log. What was done is done, whether it can be written or not.
    pub async fn audit(
        &self,
        owner: Option<OwnerId>,
        actor: &str,
        action: &str,
        target: &str,
        from: IpAddr,
        outcome: &str,
    ) {
        journal::write(&*self.metadata, owner, actor, action, target, Some(from), outcome).await;
    }
}
