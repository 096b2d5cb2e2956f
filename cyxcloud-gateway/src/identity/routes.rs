//! The HTTP side of [`super`]: `/api/v1/auth`, the audit log, and what administrators do to users.

use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::{Extension, Json};
use cyxcloud_core::{ByteCount, OwnerId, Timestamp};
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::identity::model::{ApiKey, AuditCursor, AuditEntry, Person, PersonChange};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::challenge::Wallet;
use super::keys::{WantedKey, actor};
use super::{Identity, Issued, Refusal};
use crate::auth::{ClientAddress, Principal};
use crate::problem::{Kind, Problem};
use crate::rest::{Raw, known, rfc3339};
use crate::run::ROOT_OWNER;

/// Rows on a page, at most and where nothing is said.
const PAGE_MAX: usize = 1000;
const PAGE: usize = 100;

type Service = State<Arc<Identity>>;
type Metadata = State<Arc<dyn MetadataStore>>;
type Caller = Option<Extension<Principal>>;
type From = Extension<ClientAddress>;
pub(crate) type Asked<T> = Result<Query<T>, QueryRejection>;

impl std::convert::From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        let kind = match &refusal {
            Refusal::NotLetIn(_) => Kind::LoginRefused,
            Refusal::Suspended => Kind::Suspended,
            Refusal::TooMany { .. } => Kind::TooManyRequests,
            Refusal::Exceeds(_) => Kind::ExceedsKey,
            Refusal::Invalid(_) => Kind::InvalidRequest,
            Refusal::TooManyKeys(_) => Kind::TooManyKeys,
            Refusal::Auth(error) => return Self::of_auth(error),
            Refusal::Unavailable => Kind::Unavailable,
        };
        let problem = Self::new(kind, detail);
        match refusal {
            Refusal::TooMany { after } => problem.retry_after(after),
            _ => problem,
        }
    }
}

pub(crate) fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(Kind::InvalidRequest, detail)
}

pub(crate) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| invalid(format!("the body is not the JSON that belongs here: {error}")))
}

pub(crate) fn asked<T>(query: Asked<T>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|rejection| invalid(rejection.body_text()))
}

fn wallet(address: &str) -> Result<Wallet, Problem> {
    Wallet::parse(address).ok_or_else(|| invalid("wallet_address is not a Solana address in base58"))
}

fn unavailable(error: cyxcloud_metadata::Error) -> Problem {
    Refusal::from(error).into()
}

/// Who wants to log in.
#[derive(Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct WalletBody {
    /// Base58.
    wallet_address: String,
}

/// What to sign, by when.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChallengeBody {
    challenge: String,
    nonce: String,
    expires: String,
}

async fn challenged(
    identity: &Identity,
    address: &str,
    from: IpAddr,
) -> Result<Json<ChallengeBody>, Problem> {
    let given = identity.challenge(&wallet(address)?, from).await?;
    Ok(Json(ChallengeBody { challenge: given.text, nonce: given.nonce, expires: rfc3339(given.expires) }))
}

pub(crate) async fn challenge(
    State(identity): Service,
    Extension(ClientAddress(from)): From,
    Raw(body): Raw,
) -> Result<Json<ChallengeBody>, Problem> {
    challenged(&identity, &parse::<WalletBody>(&body)?.wallet_address, from).await
}

pub(crate) async fn challenge_by_query(
    State(identity): Service,
    Extension(ClientAddress(from)): From,
    query: Asked<WalletBody>,
) -> Result<Json<ChallengeBody>, Problem> {
    let query = asked(query)?;
    challenged(&identity, &query.wallet_address, from).await
}

/// A signed challenge.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogInBody {
    wallet_address: String,
    /// Ed25519, in base58.
    signature: String,
    /// The text that was signed.
    challenge: Option<String>,
    /// The nonce in it; without it the latest challenge is meant that was asked for from the same address.
    nonce: Option<String>,
}

/// Tokens.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokensBody {
    access_token: String,
    refresh_token: String,
    /// Seconds until the access token ends.
    expires_in: u64,
}

impl std::convert::From<Issued> for TokensBody {
    fn from(issued: Issued) -> Self {
        let Issued { access_token, refresh_token, expires_in } = issued;
        Self { access_token, refresh_token, expires_in }
    }
}

pub(crate) async fn log_in(
    State(identity): Service,
    Extension(ClientAddress(from)): From,
    Raw(body): Raw,
) -> Result<Json<TokensBody>, Problem> {
    let body: LogInBody = parse(&body)?;
    let (nonce, text) = (body.nonce.as_deref(), body.challenge.as_deref());
    let issued = identity.log_in(&wallet(&body.wallet_address)?, &body.signature, nonce, text, from).await?;
    Ok(Json(issued.into()))
}

pub(crate) async fn refresh(
    State(identity): Service,
    Extension(ClientAddress(from)): From,
    headers: HeaderMap,
) -> Result<Json<TokensBody>, Problem> {
    let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = text
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let (_, token) = token.ok_or_else(|| {
        let detail = "send the refresh token as Authorization: Bearer";
        Problem::new(Kind::Unauthenticated, detail)
    })?;
    Ok(Json(identity.refresh(token.trim(), from).await?.into()))
}

pub(crate) async fn log_out(
    State(identity): Service,
    Extension(ClientAddress(from)): From,
    caller: Caller,
) -> Result<StatusCode, Problem> {
    identity.log_out(&known(caller)?, from).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whose credentials these are.
#[derive(Serialize, ToSchema)]
pub(crate) struct MeBody {
    id: String,
    wallet_address: Option<String>,
    email: Option<String>,
    username: Option<String>,
    role: &'static str,
    /// Bytes; `null` is no limit.
    storage_quota: Option<u64>,
    /// Bytes; like the next `null` for a limited key, which learns at `/api/v1/account` of the buckets that it opens.
    storage_used: Option<u64>,
    object_count: Option<u64>,
    created_at: String,
    /// The key that was used, if one was.
    access_key_id: Option<String>,
}

fn role(admin: bool) -> &'static str {
    if admin { "admin" } else { "user" }
}

fn no_such_user() -> Problem {
    let detail = "GET /api/v1/admin/users lists the users there are";
    Problem::new(Kind::NoSuchUser, detail)
}

pub(crate) async fn me(State(metadata): Metadata, caller: Caller) -> Result<Json<MeBody>, Problem> {
    let caller = known(caller)?;
    let owner = metadata.owner(caller.owner).await.map_err(unavailable)?.ok_or_else(no_such_user)?;
    // Who may see some of it is not told of the rest.
    let whole = caller.limits.is_none();
    let usage = match whole {
        true => Some(metadata.owner_usage(caller.owner).await.map_err(unavailable)?),
        false => None,
    };
    Ok(Json(MeBody {
        id: owner.id.to_string(),
        wallet_address: owner.wallet_address,
        email: owner.email.filter(|_| whole),
        username: owner.username,
        role: role(owner.admin && whole),
        storage_quota: owner.storage_quota.map(ByteCount::get),
        storage_used: usage.map(|usage| usage.bytes.get()),
        object_count: usage.map(|usage| usage.objects),
        created_at: rfc3339(owner.created_at),
        access_key_id: caller.access_key,
    }))
}

/// An API key without its secrets.
#[derive(Serialize, ToSchema)]
pub(crate) struct KeyBody {
    id: String,
    name: String,
    access_key_id: String,
    /// `null` is all, like the next.
    buckets: Option<Vec<String>>,
    prefixes: Option<Vec<String>>,
    read_only: bool,
    created_at: String,
    expires_at: Option<String>,
    last_used_at: Option<String>,
    revoked_at: Option<String>,
}

impl std::convert::From<ApiKey> for KeyBody {
    fn from(key: ApiKey) -> Self {
        Self {
            access_key_id: key.id.clone(),
            id: key.id,
            name: key.name,
            buckets: key.buckets,
            prefixes: key.prefixes,
            read_only: key.read_only,
            created_at: rfc3339(key.created_at),
            expires_at: key.expires_at.map(rfc3339),
            last_used_at: key.last_used_at.map(rfc3339),
            revoked_at: key.revoked_at.map(rfc3339),
        }
    }
}

/// An API key just made; its token and secret are shown this once.
#[derive(Serialize, ToSchema)]
pub(crate) struct MadeKeyBody {
    #[serde(flatten)]
    key: KeyBody,
    token: String,
    secret_access_key: String,
}

pub(crate) async fn create_key(
    State(identity): Service,
    Extension(ClientAddress(from)): From,
    caller: Caller,
    Raw(body): Raw,
) -> Result<(StatusCode, Json<MadeKeyBody>), Problem> {
    let caller = known(caller)?;
    let made = identity.create_key(&caller, parse::<WantedKey>(&body)?, from).await?;
    let body = MadeKeyBody {
        key: made.key.into(),
        token: made.token.expose_secret().to_owned(),
        secret_access_key: made.secret.expose_secret().to_owned(),
    };
    Ok((StatusCode::CREATED, Json(body)))
}

/// The owner's API keys.
#[derive(Serialize, ToSchema)]
pub(crate) struct KeysBody {
    api_keys: Vec<KeyBody>,
}

pub(crate) async fn list_keys(State(identity): Service, caller: Caller) -> Result<Json<KeysBody>, Problem> {
    let keys = identity.keys(known(caller)?.owner).await?;
    Ok(Json(KeysBody { api_keys: keys.into_iter().map(KeyBody::from).collect() }))
}

pub(crate) async fn revoke_key(
    State(identity): Service,
    Extension(ClientAddress(from)): From,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    if identity.revoke_key(&known(caller)?, &id, from).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    let detail = "GET /api/v1/auth/api-keys lists yours";
    Err(Problem::new(Kind::NoSuchKey, detail))
}

/// A ticket for one WebSocket.
#[derive(Serialize, ToSchema)]
pub(crate) struct TicketBody {
    ticket: String,
    expires_in: u64,
}

pub(crate) async fn ticket(State(identity): Service, caller: Caller) -> Result<Json<TicketBody>, Problem> {
    let (ticket, life) = identity.ticket(&known(caller)?).await?;
    Ok(Json(TicketBody { ticket, expires_in: life.as_secs() }))
}

/// A page of something.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    /// `next` of the page before.
    after: Option<String>,
    /// Rows on it, 1 to 1000; 100 where nothing is said.
    limit: Option<usize>,
}

impl PageQuery {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX)
    }
}

/// Lines of the audit log, newest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct AuditLogBody {
    entries: Vec<AuditLine>,
    /// For `after`; `null` on the last page.
    next: Option<String>,
}

/// Who did what, on what, from where, when, and what came of it.
#[derive(Serialize, ToSchema)]
pub(crate) struct AuditLine {
    at: String,
    owner: Option<String>,
    actor: String,
    action: String,
    target: String,
    address: String,
    outcome: String,
}

async fn log_page(
    metadata: &dyn MetadataStore,
    owner: Option<OwnerId>,
    query: &PageQuery,
) -> Result<Json<AuditLogBody>, Problem> {
    let before = query.after.as_deref().map(|after| {
        let (at, id) = after.split_once('_')?;
        let at = Timestamp::from_unix_millis(at.parse().ok()?);
        Some(AuditCursor { at, id: Uuid::from_str(id).ok()? })
    });
    let before = match before {
        Some(None) => return Err(invalid("after is not the next of another page")),
        Some(cursor) => cursor,
        None => None,
    };
    let limit = query.limit();
    let mut lines = metadata.audit_log(owner, before, limit + 1).await.map_err(unavailable)?;
    let more = lines.len() > limit;
    lines.truncate(limit);
    let next = lines.last().filter(|_| more).map(AuditEntry::cursor);
    let entries = lines.into_iter().map(|line| AuditLine {
        at: rfc3339(line.at),
        owner: line.entry.owner.map(|owner| owner.to_string()),
        actor: line.entry.actor,
        action: line.entry.action,
        target: line.entry.target,
        address: line.entry.address,
        outcome: line.entry.outcome,
    });
    Ok(Json(AuditLogBody {
        entries: entries.collect(),
        next: next.map(|next| format!("{}_{}", next.at.unix_millis(), next.id)),
    }))
}

pub(crate) async fn own_log(
    State(metadata): Metadata,
    caller: Caller,
    query: Asked<PageQuery>,
) -> Result<Json<AuditLogBody>, Problem> {
    log_page(&*metadata, Some(known(caller)?.owner), &asked(query)?).await
}

pub(crate) async fn whole_log(
    State(metadata): Metadata,
    query: Asked<PageQuery>,
) -> Result<Json<AuditLogBody>, Problem> {
    log_page(&*metadata, None, &asked(query)?).await
}

/// Users, in order of id.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsersBody {
    users: Vec<UserBody>,
    /// For `after`; `null` on the last page.
    next: Option<String>,
}

/// A user, as administrators see it.
#[derive(Serialize, ToSchema)]
pub(crate) struct UserBody {
    id: String,
    wallet_address: Option<String>,
    email: Option<String>,
    username: Option<String>,
    role: &'static str,
    status: &'static str,
    storage_quota: Option<u64>,
    storage_used: u64,
    object_count: u64,
    created_at: String,
}

async fn user_body(metadata: &dyn MetadataStore, person: Person) -> Result<UserBody, Problem> {
    let usage = metadata.owner_usage(person.owner.id).await.map_err(unavailable)?;
    Ok(UserBody {
        id: person.owner.id.to_string(),
        wallet_address: person.owner.wallet_address,
        email: person.owner.email,
        username: person.owner.username,
        role: role(person.owner.admin),
        status: if person.suspended { "suspended" } else { "active" },
        storage_quota: person.owner.storage_quota.map(ByteCount::get),
        storage_used: usage.bytes.get(),
        object_count: usage.objects,
        created_at: rfc3339(person.owner.created_at),
    })
}

pub(crate) async fn users(
    State(metadata): Metadata,
    query: Asked<PageQuery>,
) -> Result<Json<UsersBody>, Problem> {
    let query = asked(query)?;
    let after = query.after.as_deref().map(str::parse::<OwnerId>).transpose();
    let after = after.map_err(|_| invalid("after is not the next of another page"))?;
    let limit = query.limit();
    let mut people = metadata.people(after, limit + 1).await.map_err(unavailable)?;
    let more = people.len() > limit;
    people.truncate(limit);
    let next = people.last().filter(|_| more).map(|last| last.owner.id.to_string());
    let mut users = Vec::with_capacity(people.len());
    for person in people {
        users.push(user_body(&*metadata, person).await?);
    }
    Ok(Json(UsersBody { users, next }))
}

/// What to change about a user; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeUserBody {
    /// Bytes; `null` is no limit.
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<u64>)]
    storage_quota: Option<Option<u64>>,
    role: Option<Role>,
    status: Option<Status>,
}

/// `null` is said, too.
fn said<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    User,
    Admin,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Active,
    Suspended,
}

pub(crate) async fn change_user(
    State(identity): Service,
    Extension(ClientAddress(from)): From,
    caller: Caller,
    Path(id): Path<String>,
    Raw(body): Raw,
) -> Result<Json<UserBody>, Problem> {
    let caller = known(caller)?;
    let body: ChangeUserBody = parse(&body)?;
    let id: OwnerId = id.parse().map_err(|_| no_such_user())?;
    let change = PersonChange {
        quota: body.storage_quota.map(|quota| quota.map(ByteCount::bytes)),
        admin: body.role.map(|role| role == Role::Admin),
        suspended: body.status.map(|status| status == Status::Suspended),
    };
    if id == ROOT_OWNER && change.ends_tokens() {
        let detail = "the root user is set by the configuration and stays as it is";
        return Err(Problem::new(Kind::RootUser, detail));
    }
    let person = identity.change_user(id, &change).await?.ok_or_else(no_such_user)?;
    let mut said = Vec::new();
    said.extend(
        change
            .quota
            .map(|quota| format!("quota={}", quota.map_or("none".to_owned(), |q| q.get().to_string()))),
    );
    said.extend(change.admin.map(|admin| format!("role={}", role(admin))));
    said.extend(change.suspended.map(|suspended| format!("suspended={suspended}")));
    identity
        .audit(Some(id), &actor(&caller), "user.change", &format!("{id} {}", said.join(" ")), from, "ok")
        .await;
    Ok(Json(user_body(identity.metadata(), person).await?))
}
