//! The one door: every request is verified here, whatever its scheme, before any handler sees it.
//!
//! Default deny. [`Authenticator::authenticate`] verifies over the path, query and headers exactly as the client sent
//! them, then hands on a plain request: root path, path style, no credentials, no `aws-chunked` framing, with a
//! [`Principal`] in its extensions. What is verified and what is handed on come from the same decoded text, so that
//! no handler can read another key than the one that was signed.
//! A body fails before its end if it is not what was promised ([`crate::body`]).
//! Not here: what a principal may do (`objects`, `limits`), CORS preflights, public routes, who is given tokens and keys.

mod accounts;
mod client;
mod credentials;
mod error;
pub(crate) mod jwt;
mod keys;
mod payload;
pub(crate) mod query;
pub(crate) mod rewrite;
mod signature;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::claims::{LEEWAY_SECS, TokenKind};
use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::sigv4;
use cyxcloud_core::{ByteCount, NodeId, OwnerId, Timestamp, faults};
use cyxcloud_metadata::MetadataStore;
use cyxwiz_client::Account;
use http::Request;
use http::request::Parts;
use http_body::Body;
use secrecy::SecretString;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

pub use client::ClientAddress;
pub use error::AuthError;
pub use jwt::{JwtConfig, Token};
pub use keys::{RootCredentials, access_key_context};
pub use rewrite::virtual_host_bucket;

use crate::body::{ChunkSigner, Framing, S3Body};
use crate::limits::{Caller, Limits};
use accounts::Known;
use credentials::{Claim, Presented, only};
use payload::{Announced, Payload};
use query::Query;

/// How a request proved who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Signature in the `Authorization` header.
    Header,
    /// Signature in the query: a presigned URL.
    Presigned,
    /// JWT.
    Bearer,
    /// A ticket for one WebSocket, which was given for one of the others.
    Ticket,
}

/// Who sends a request. In the extensions of every request that was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Whose rights it has.
    pub owner: OwnerId,
    /// Whether the owner is an administrator.
    pub admin: bool,
    /// The access key that signed, if one did.
    pub access_key: Option<String>,
    /// How it was proven.
    pub scheme: Scheme,
    /// Less than all of the owner's rights.
    pub limits: Option<Arc<Limits>>,
    /// The token that was presented, if one was.
    pub token: Option<Token>,
}

impl Principal {
    /// As `objects` knows who asks.
    pub fn caller(&self) -> Caller {
        Caller { owner: self.owner, limits: self.limits.clone() }
    }

    fn of_key(key: &keys::Key, scheme: Scheme) -> Self {
        Self {
            owner: key.owner,
            admin: key.admin,
            access_key: Some(key.id.clone()),
            scheme,
            limits: key.limits.clone(),
            token: None,
        }
    }
}

/// Where a handler is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mount {
    /// S3 below a path, such as `/s3`, which is signed and then taken off.
    Prefix(&'static str),
    /// S3 at the root.
    Root,
    /// Not S3: the path keeps its meaning in one encoding, and the host names no bucket.
    Plain,
}

/// Verifies requests.
pub struct Authenticator {
    keys: keys::KeyRing,
    jwt: Option<jwt::Tokens>,
    region: String,
    domains: Vec<String>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("region", &self.region)
            .field("domains", &self.domains)
            .finish_non_exhaustive()
    }
}

/// What is known once the credentials were found right.
struct Verified {
    principal: Principal,
    payload: Payload,
    signer: Option<ChunkSigner>,
}

impl Authenticator {
    /// Without `jwt` no token opens anything; without `root` only stored access keys sign.
    pub fn new(
        metadata: Arc<dyn MetadataStore>,
        master: MasterKey,
        jwt: Option<JwtConfig>,
        region: String,
        root: Option<RootCredentials>,
    ) -> Self {
        let keys = keys::KeyRing::new(metadata, master, root);
        Self { keys, jwt: jwt.map(jwt::Tokens::new), region, domains: Vec::new() }
    }

    /// Under these domains `bucket.DOMAIN` names a bucket.
    #[must_use]
    pub fn with_domains(mut self, domains: Vec<String>) -> Self {
        self.domains = domains;
        self
    }

    /// How much a user may store whom the identity service vouches for first; without a limit unless told.
    #[must_use]
    pub fn with_newcomer_quota(mut self, quota: ByteCount) -> Self {
        self.keys.set_newcomer_quota(quota);
        self
    }

    /// Asks this identity service what its accounts may store, and believes an answer for so long. Only where there are
    /// tokens at all: it is asked with one.
    #[must_use]
    pub fn with_identity_service(
        mut self,
        client: cyxwiz_client::Client,
        jwt: JwtConfig,
        believed: Duration,
    ) -> Self {
        self.keys.set_accounts(accounts::Accounts::new(client, jwt, believed));
        self
    }

    /// Lets a request in as what it proves to be, or says why not. Reads no byte of the body.
    pub async fn authenticate<B>(
        &self,
        request: Request<B>,
        mount: Mount,
    ) -> Result<Request<S3Body>, AuthError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.authenticate_at(request, mount, now()).await
    }

    /// [`Self::authenticate`] at another time than now.
    pub async fn authenticate_at<B>(
        &self,
        request: Request<B>,
        mount: Mount,
        now: Timestamp,
    ) -> Result<Request<S3Body>, AuthError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (mut parts, body) = request.into_parts();
        let query = query::parse(parts.uri.query())?;
        signature::check_single(&parts.headers)?;
        let verified = match credentials::find(&parts, &query, mount != Mount::Plain)? {
            Presented::Nothing => {
                return Err(AuthError::denied(
                    "there are no credentials; sign the request, or send a token as Authorization: Bearer",
                ));
            }
            Presented::Bearer(token) => self.bearer(&token, &parts, now).await?,
            Presented::Signature(claim) => {
                let hash =
                    payload_hash(&parts, &query, claim.expires_secs.is_some(), body.size_hint().exact())?;
                self.signature(&claim, &parts, &query, &hash, now).await?
            }
        };
        let Verified { principal, payload, signer } = verified;
        let announced = Announced {
            exact: body.size_hint().exact(),
            // Who signs a request knows its body; a token goes with anything, as from a pipe.
            lengthless: principal.scheme == Scheme::Bearer,
        };
        let framing = payload::framing(payload, &parts.method, &parts.headers, signer, announced)?;
        let length = match &framing {
            Framing::Plain { length, .. } => *length,
            Framing::Chunked(chunked) => {
                parts.extensions.extend(extension(chunked.trailers.clone()));
                Some(chunked.decoded_len)
            }
        };
        let bucket = match mount {
            Mount::Plain => None,
            _ => signature::host(&parts)?.and_then(|host| virtual_host_bucket(host, &self.domains)),
        };
        let path = rewrite::plain_path(parts.uri.path(), mount, bucket.as_ref())?;
        let presigned = principal.scheme == Scheme::Presigned;
        rewrite::head(&mut parts, &path, &query, presigned, payload.is_chunked(), length)?;
        parts.extensions.insert(principal);
        Ok(Request::from_parts(parts, S3Body::new(body, framing)))
    }

    /// Who calls by gRPC: whose the token in the `authorization` metadata is.
    pub async fn authenticate_metadata(&self, metadata: &MetadataMap) -> Result<Principal, AuthError> {
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let token = header
            .and_then(|header| header.strip_prefix("Bearer "))
            .ok_or_else(|| AuthError::bad_token("send `authorization: Bearer <token>`"))?;
        self.token(token, now()).await
    }

    /// Who operates a node, by an access token of theirs.
    pub async fn operator(&self, token: &str) -> Result<OwnerId, AuthError> {
        let now = now();
        // Keys for programs are limited to what is stored; nodes are not among that.
        let token = self.tokens()?.verify(token, now, &[TokenKind::Access])?;
        if token.session.is_some() || token.version.is_some() {
            return Err(AuthError::denied(
                "this is a log-in at a gateway, which anybody may have; nodes' operators log in at the CyxWiz API",
            ));
        }
        // First, since it is the clearer answer.
        match self.keys.known_elsewhere(token.owner).await {
            Some(Known::Account(Account { suspended: true, .. })) => {
                return Err(AuthError::denied("the operator's account is suspended; ask an administrator"));
            }
            Some(Known::Nobody) => {
                return Err(AuthError::denied("the CyxWiz API knows no such account; make one there"));
            }
            Some(Known::Account(_) | Known::Nothing) | None => {}
        }
        Ok(self.holder(token, now).await?.owner)
    }

    /// Whether an operator may do nothing now, here or at the identity service; `None` where that cannot be found out.
    pub async fn is_suspended(&self, operator: OwnerId) -> Option<bool> {
        match self.keys.suspended_here(operator).await {
            Ok(true) => Some(true),
            Ok(false) => self.keys.suspended_elsewhere(operator).await,
            Err(_) => None,
        }
    }

    /// Looks keys and users up anew on their next use: to be called where one is revoked or changed.
    pub fn forget_all(&self) {
        self.keys.forget_all();
    }

    /// Says whether the news of what other gateways end or change are heard: without them nothing is remembered.
    pub fn hears(&self, news: bool) {
        self.keys.hears(news);
    }

    /// Refuses a token or a session from now on, whatever is remembered of it. The store must know already.
    pub async fn refuse(&self, id: &str) {
        self.keys.refuse(id).await;
    }

    /// Records now and then which keys were used; never ends.
    pub async fn record_use(&self) {
        self.keys.record_use().await;
    }

    /// Records which keys were used since it was last asked to.
    pub async fn record_used(&self) {
        self.keys.record_used().await;
    }

    /// Somebody who was let in, as they would be now by the same credentials: for what lasts longer than a request.
    pub async fn still(&self, who: &Principal) -> Result<Principal, AuthError> {
        let (now, scheme) = (now(), who.scheme);
        if let Some(token) = &who.token {
            // As long as it would open the door.
            if now >= token.expires_at.plus(Duration::from_secs(LEEWAY_SECS)) {
                return Err(AuthError::bad_token("the token has expired; log in again"));
            }
            let holder = self.holder(token.clone(), now).await?;
            return Ok(Principal { scheme, ..holder });
        }
        let id =
            who.access_key.as_ref().ok_or_else(|| AuthError::denied("there are no credentials any more"))?;
        let key = self.keys.key(id, now, None).await?;
        Ok(Principal::of_key(&key, scheme))
    }

    /// When an access key ends, if it does.
    pub async fn access_key_expiry(&self, id: &str) -> Result<Option<Timestamp>, AuthError> {
        Ok(self.keys.key(id, now(), None).await?.expires_at)
    }

    /// Whether this is the root user's key, which is in the configuration and not in the store.
    pub fn is_root_key(&self, id: &str) -> bool {
        self.keys.is_root(id)
    }

    /// A token that says this of itself, issued now.
    pub fn issue(
        &self,
        token: &Token,
        wallet: Option<&str>,
        now: Timestamp,
    ) -> Result<SecretString, AuthError> {
        self.tokens()?.issue(token, wallet, now)
    }

    /// A token for a node's heartbeats, and when it ends.
    pub fn issue_node(&self, node: NodeId, now: Timestamp) -> Result<SecretString, AuthError> {
        let token = Token {
            owner: OwnerId::from_uuid(node.as_uuid()),
            kind: TokenKind::Node,
            id: Uuid::new_v4().to_string(),
            session: None,
            key: None,
            version: Some(0),
            issued_at: now,
            expires_at: now.plus(TokenKind::Node.lifetime()),
        };
        self.issue(&token, None, now)
    }

    /// Whether a token is this node's; and whether it is half through, so that another is due.
    pub fn node_token(&self, token: &str, node: NodeId, now: Timestamp) -> Result<bool, AuthError> {
        let token = self.tokens()?.verify(token, now, &[TokenKind::Node])?;
        if token.owner.as_uuid() != node.as_uuid() {
            return Err(AuthError::bad_token("the token is another node's; register again"));
        }
        Ok(token.expires_at <= now.plus(TokenKind::Node.lifetime() / 2))
    }

    /// A refresh token whose user may still do something. Whether it was exchanged before is for the store to say.
    pub async fn refresh_token(&self, token: &str, now: Timestamp) -> Result<Token, AuthError> {
        let token = self.tokens()?.verify(token, now, &[TokenKind::Refresh])?;
        self.standing(&token).await?;
        Ok(token)
    }

    fn tokens(&self) -> Result<&jwt::Tokens, AuthError> {
        self.jwt.as_ref().ok_or_else(|| {
            AuthError::bad_token("this server takes no tokens; sign the request with an access key")
        })
    }

    /// What the user of a token may do, if the token is none of a former version.
    async fn standing(&self, token: &Token) -> Result<keys::Standing, AuthError> {
        let mut standing = self.keys.owner(token.owner).await?;
        // Ours carry a session and a version: without them it is the identity service that vouches for the user.
        let is_the_service_s =
            token.kind == TokenKind::Access && token.session.is_none() && token.version.is_none();
        if standing.is_none() && is_the_service_s {
            standing = self.keys.welcome(token.owner).await?;
        }
        let standing = standing.ok_or_else(no_such_user)?;
        // After the user was looked up, which takes over what the service says of the quota, beside this.
        if is_the_service_s && let Some(Known::Account(account)) = self.keys.said_elsewhere(token.owner).await
        {
            if account.suspended {
                return Err(no_such_user());
            }
            if account.tokens_after.is_some_and(|after| token.issued_at < after) {
                return Err(AuthError::bad_token("another password was set since; log in again"));
            }
        }
        // The service knows of no versions, so that its next token would be refused like the last. Role and status are
        // looked up for every token.
        if !is_the_service_s && token.version.unwrap_or(0) != standing.token_version {
            return Err(AuthError::bad_token("the token was ended; log in again"));
        }
        Ok(standing)
    }

    async fn token(&self, token: &str, now: Timestamp) -> Result<Principal, AuthError> {
        let token = self.tokens()?.verify(token, now, &[TokenKind::Access, TokenKind::ApiKey])?;
        self.holder(token, now).await
    }

    /// Who a token makes its bearer, now.
    async fn holder(&self, token: Token, now: Timestamp) -> Result<Principal, AuthError> {
        let owner = token.owner;
        let standing = match token.key {
            // A key outlives log-ins; its own row says whether it holds.
            Some(_) => self.keys.owner(owner).await?,
            None => Some(self.standing(&token).await?),
        };
        let standing = standing.ok_or_else(no_such_user)?;
        self.keys.check_token(&token).await?;
        let key = match &token.key {
            Some(id) => {
                let key = self.keys.key(id, now, None).await.map_err(AuthError::into_bad_token)?;
                if key.owner != owner {
                    return Err(AuthError::bad_token("the token is not one of ours; log in again"));
                }
                self.keys.used(id);
                Some(key)
            }
            None => None,
        };
        let limits = key.as_ref().and_then(|key| key.limits.clone());
        Ok(Principal {
            owner,
            admin: standing.admin && limits.is_none(),
            access_key: key.map(|key| key.id.clone()),
            scheme: Scheme::Bearer,
            limits,
            token: Some(token),
        })
    }

    async fn bearer(&self, token: &str, parts: &Parts, now: Timestamp) -> Result<Verified, AuthError> {
        let principal = self.token(token, now).await?;
        let payload = match only(&parts.headers, "x-amz-content-sha256")? {
            Some(text) => Payload::parse(text)?,
            None => Payload::Unsigned,
        };
        Ok(Verified { principal, payload, signer: None })
    }

    async fn signature(
        &self,
        claim: &Claim,
        parts: &Parts,
        query: &Query,
        hash: &str,
        now: Timestamp,
    ) -> Result<Verified, AuthError> {
        let presigned = claim.expires_secs.is_some();
        signature::check_region(claim, &self.region)?;
        signature::check_time(claim, now)?;
        let payload = Payload::parse(hash)?;
        let token = query.iter().any(|(name, _)| name.eq_ignore_ascii_case("x-amz-security-token"));
        if token || parts.headers.contains_key("x-amz-security-token") {
            return Err(AuthError::invalid(
                "InvalidToken",
                "there are no session tokens here; sign with an access key and no x-amz-security-token",
            ));
        }
        signature::check_coverage(claim, parts)?;
        let from = parts.extensions.get::<ClientAddress>().map(|ClientAddress(from)| *from);
        let key = self.keys.key(&claim.access_key, now, from).await.map_err(keys::unproven)?;
        let signing_key = key.signing_key(&claim.scope);
        signature::check(claim, &signing_key, parts, query, hash)?;
        self.keys.used(&key.id);
        if presigned && payload.is_chunked() {
            return Err(AuthError::new(
                "NotImplemented",
                http::StatusCode::NOT_IMPLEMENTED,
                "a presigned URL takes plain bodies only; send the body without aws-chunked",
            ));
        }
        let scheme = if presigned { Scheme::Presigned } else { Scheme::Header };
        let principal = Principal::of_key(&key, scheme);
        let (date, scope, seed) = (claim.amz_date.clone(), claim.scope.clone(), claim.signature.clone());
        let signer = Some(ChunkSigner::new(signing_key, date, scope, seed));
        Ok(Verified { principal, payload, signer })
    }
}

fn no_such_user() -> AuthError {
    AuthError::bad_token("the user of this token does not exist or is suspended; log in again")
}

/// By this machine's clock.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_unix_millis(faults::wall_clock(chrono::Utc::now().timestamp_millis()))
}

/// The payload hash as it stands in the canonical request.
fn payload_hash(
    parts: &Parts,
    query: &Query,
    presigned: bool,
    length: Option<u64>,
) -> Result<String, AuthError> {
    if let Some(hash) = only(&parts.headers, "x-amz-content-sha256")? {
        return Ok(hash.to_owned());
    }
    let in_query = query.iter().find(|(name, _)| name == "X-Amz-Content-Sha256");
    match (presigned, in_query) {
        (true, Some((_, hash))) => Ok(hash.clone()),
        (true, None) => Ok(sigv4::UNSIGNED_PAYLOAD.to_owned()),
        // As other services than S3 have it, and older curls everywhere; the body is then held to be empty.
        (false, _) if length == Some(0) => Ok(sigv4::EMPTY_SHA256.to_owned()),
        (false, _) => Err(AuthError::invalid(
            "MissingSecurityHeader",
            "the header x-amz-content-sha256 is missing; send the body's SHA-256 or UNSIGNED-PAYLOAD",
        )),
    }
}

/// A value as extensions, or none.
fn extension<T: Clone + Send + Sync + 'static>(value: Option<T>) -> http::Extensions {
    let mut extensions = http::Extensions::new();
    if let Some(value) = value {
        extensions.insert(value);
    }
    extensions
}

#[cfg(test)]
mod tests;
