//! Every route under `/api/v1`, `/ws` and `/metrics`, and what opens each: the one table that the router, the door and the OpenAPI
//! description are made from.
//!
//! A route without a decision cannot be written down here, and there is no other way in. Not here: what routes do.

mod openapi;
pub(crate) mod path;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRef, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, delete, get, patch, post};
use cyxcloud_core::OwnerId;
use cyxcloud_metadata::MetadataStore;
use prometheus::Registry;
use secrecy::ExposeSecret as _;
use tower::ServiceExt as _;

use crate::auth::{AuthError, Authenticator, ClientAddress, Mount, Principal, rewrite};
use crate::documents::Documents;
use crate::ephemeral::Ephemeral;
use crate::events::Event;
use crate::identity::{Identity, actor, routes as people};
use crate::journal::Denials;
use crate::objects::ObjectService;
use crate::problem::{FOR_ADMINISTRATORS, Kind, Problem};
use crate::websocket::{self, Sockets};
use crate::{admin, rest, signing};
use openapi::{Answer, Content, accepted, body, created, document, exposition, messages, nothing, ok};
use utoipa::{IntoParams, ToSchema};

/// Where Prometheus asks, with an administrator's key: what it asks at a port of its own needs none.
pub(crate) const METRICS: &str = "/metrics";
/// Largest body of a request here.
pub(crate) const BODY_MAX: usize = 64 << 10;

/// What routes work with.
#[derive(Clone, Debug)]
pub struct Api {
    /// Buckets and objects.
    pub objects: Arc<ObjectService>,
    /// Nodes, users, the audit log.
    pub metadata: Arc<dyn MetadataStore>,
    /// Log-ins and keys.
    pub identity: Arc<Identity>,
    /// Events.
    pub sockets: Arc<Sockets>,
    /// Room for bodies.
    pub documents: Documents,
    /// What nodes are to be told with their next heartbeat.
    pub ephemeral: Arc<dyn Ephemeral>,
    /// What people are refused, here and where objects are.
    pub denials: Denials,
    /// What is counted.
    pub registry: Registry,
}

impl FromRef<Api> for Registry {
    fn from_ref(api: &Api) -> Self {
        api.registry.clone()
    }
}

impl FromRef<Api> for Arc<dyn Ephemeral> {
    fn from_ref(api: &Api) -> Self {
        api.ephemeral.clone()
    }
}

impl FromRef<Api> for Arc<ObjectService> {
    fn from_ref(api: &Api) -> Self {
        api.objects.clone()
    }
}

impl FromRef<Api> for Arc<dyn MetadataStore> {
    fn from_ref(api: &Api) -> Self {
        api.metadata.clone()
    }
}

impl FromRef<Api> for Arc<Identity> {
    fn from_ref(api: &Api) -> Self {
        api.identity.clone()
    }
}

impl FromRef<Api> for Documents {
    fn from_ref(api: &Api) -> Self {
        api.documents.clone()
    }
}

impl FromRef<Api> for Arc<Sockets> {
    fn from_ref(api: &Api) -> Self {
        api.sockets.clone()
    }
}

/// What opens a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is needed and nothing looked at.
    Public,
    /// A refresh token, which opens nothing else; the route looks at it.
    Refresh,
    /// Any credentials; what they are limited to is judged where it is used.
    Any,
    /// Credentials with all of their owner's rights: a limited key would get beyond its limits.
    Account,
    /// An administrator's, with all rights.
    Admin,
}

/// A route.
#[derive(Debug)]
pub struct Route {
    /// GET answers HEAD too.
    pub method: Method,
    /// With `{name}` for what varies.
    pub path: &'static str,
    /// What opens it.
    pub access: Access,
    /// What it does, in a line.
    pub summary: &'static str,
    asks: Option<Content>,
    /// Whether the body may be left out.
    asks_little: bool,
    /// Parameters of the query, described.
    query: Vec<serde_json::Value>,
    answers: Answer,
    /// What else may go wrong than what any such route refuses.
    fails: &'static [Kind],
    handler: MethodRouter<Api>,
}

fn route(
    method: Method,
    path: &'static str,
    access: Access,
    summary: &'static str,
    answers: Answer,
    handler: MethodRouter<Api>,
) -> Route {
    let (asks, asks_little, query, fails) = (None, false, Vec::new(), [].as_slice());
    Route { method, path, access, summary, asks, asks_little, query, answers, fails, handler }
}

impl Route {
    fn asks<T: ToSchema>(self) -> Self {
        Self { asks: Some(body::<T>()), ..self }
    }

    fn may_ask<T: ToSchema>(self) -> Self {
        Self { asks_little: true, ..self.asks::<T>() }
    }

    fn query<T: IntoParams>(self) -> Self {
        Self { query: openapi::query::<T>(), ..self }
    }

    fn fails(self, fails: &'static [Kind]) -> Self {
        Self { fails, ..self }
    }
}

/// Every route there is.
pub fn table() -> Vec<Route> {
    public().into_iter().chain(own()).chain(administrators()).collect()
}

const G: Method = Method::GET;
const P: Method = Method::POST;

/// What anybody may ask, and what refresh tokens are for.
fn public() -> Vec<Route> {
    use Access::{Public, Refresh};
    vec![
        route(G, "/api/v1/openapi.json", Public, "This description", document(), get(openapi::serve)),
        route(
            P,
            "/api/v1/auth/challenge",
            Public,
            "A text for a wallet to sign",
            ok::<people::ChallengeBody>(),
            post(people::challenge),
        )
        .asks::<people::WalletBody>()
        .fails(&[Kind::TooManyRequests]),
        route(
            G,
            "/api/v1/auth/challenge",
            Public,
            "The same, for ?wallet_address=",
            ok::<people::ChallengeBody>(),
            get(people::challenge_by_query),
        )
        .query::<people::WalletBody>()
        .fails(&[Kind::TooManyRequests]),
        route(
            P,
            "/api/v1/auth/wallet",
            Public,
            "Logs a wallet in that signed",
            ok::<people::TokensBody>(),
            post(people::log_in),
        )
        .asks::<people::LogInBody>()
        .fails(&[Kind::LoginRefused, Kind::Suspended, Kind::TooManyRequests]),
        route(
            P,
            "/api/v1/auth/refresh",
            Refresh,
            "Exchanges a refresh token for new tokens",
            ok::<people::TokensBody>(),
            post(people::refresh),
        )
        .fails(&[Kind::LoginRefused]),
    ]
}

/// What people do with what is theirs.
fn own() -> Vec<Route> {
    use Access::{Account, Any};
    vec![
        route(
            P,
            "/api/v1/auth/logout",
            Any,
            "Ends the session of an access token",
            nothing(),
            post(people::log_out),
        )
        .fails(&[Kind::InvalidRequest]),
        route(
            G,
            "/api/v1/auth/me",
            Any,
            "Whose credentials these are",
            ok::<people::MeBody>(),
            get(people::me),
        )
        .fails(&[Kind::NoSuchUser]),
        route(
            P,
            "/api/v1/auth/api-keys",
            Any,
            "Makes an API key",
            created::<people::MadeKeyBody>(),
            post(people::create_key),
        )
        .asks::<crate::identity::WantedKey>()
        .fails(&[Kind::ExceedsKey, Kind::TooManyKeys]),
        route(
            G,
            "/api/v1/auth/api-keys",
            Account,
            "Lists API keys",
            ok::<people::KeysBody>(),
            get(people::list_keys),
        ),
        route(
            Method::DELETE,
            "/api/v1/auth/api-keys/{id}",
            Account,
            "Revokes an API key",
            nothing(),
            delete(people::revoke_key),
        )
        .fails(&[Kind::NoSuchKey]),
        route(
            P,
            "/api/v1/ws-ticket",
            Account,
            "A ticket for one WebSocket, soon",
            ok::<people::TicketBody>(),
            post(people::ticket),
        )
        .fails(&[Kind::TooManyRequests]),
        route(
            G,
            "/api/v1/audit-log",
            Account,
            "What was done to this account",
            ok::<people::AuditLogBody>(),
            get(people::own_log),
        )
        .query::<people::PageQuery>(),
        route(
            G,
            websocket::PATH,
            Any,
            "Events as they happen, over a WebSocket",
            messages::<Event>(),
            get(websocket::open),
        )
        .query::<websocket::SocketQuery>()
        .fails(&[Kind::ForeignOrigin, Kind::UpgradeRequired, Kind::TooManySockets]),
        route(
            G,
            "/api/v1/account",
            Any,
            "What the account stores",
            ok::<rest::AccountBody>(),
            get(rest::account),
        )
        .fails(&[Kind::AccessDenied]),
        route(
            G,
            "/api/v1/buckets/{bucket}",
            Any,
            "What a bucket stores",
            ok::<rest::BucketBody>(),
            get(rest::bucket),
        )
        .fails(&[Kind::NoSuchBucket, Kind::AccessDenied]),
        route(
            G,
            "/api/v1/buckets/{bucket}/objects/{*key}",
            Any,
            "How an object is kept",
            ok::<rest::ObjectBody>(),
            get(rest::object),
        )
        .fails(&[Kind::NoSuchBucket, Kind::NoSuchKey, Kind::AccessDenied]),
    ]
}

/// What administrators see and do.
fn administrators() -> Vec<Route> {
    use Access::Admin;
    vec![
        route(G, "/api/v1/admin/users", Admin, "Lists users", ok::<people::UsersBody>(), get(people::users))
            .query::<people::PageQuery>(),
        route(
            Method::PATCH,
            "/api/v1/admin/users/{id}",
            Admin,
            "Changes a user's quota, role or status",
            ok::<people::UserBody>(),
            patch(people::change_user),
        )
        .asks::<people::ChangeUserBody>()
        .fails(&[Kind::NoSuchUser, Kind::RootUser]),
        route(
            G,
            "/api/v1/admin/audit-log",
            Admin,
            "What everybody did",
            ok::<people::AuditLogBody>(),
            get(people::whole_log),
        )
        .query::<people::PageQuery>(),
        route(
            G,
            "/api/v1/admin/status",
            Admin,
            "Nodes, repairs and garbage in numbers",
            ok::<admin::StatusBody>(),
            get(admin::status),
        ),
        route(G, "/api/v1/admin/nodes", Admin, "Lists nodes", ok::<admin::NodesBody>(), get(admin::nodes)),
        route(
            P,
            "/api/v1/admin/nodes/{id}/drain",
            Admin,
            "Moves everything away from a node",
            accepted::<admin::Done>(),
            post(admin::drain),
        )
        .fails(&[Kind::NoSuchNode]),
        route(
            P,
            "/api/v1/admin/nodes/{id}/resume",
            Admin,
            "Ends a drain that was asked for, or else forgives a node what it failed to prove",
            accepted::<admin::Done>(),
            post(admin::resume),
        )
        .fails(&[Kind::NoSuchNode, Kind::NotNow]),
        route(
            P,
            "/api/v1/admin/nodes/{id}/scrub",
            Admin,
            "Has a node read and check all that it holds",
            accepted::<admin::Done>(),
            post(admin::scrub),
        )
        .fails(&[Kind::NoSuchNode]),
        route(
            P,
            "/api/v1/admin/nodes/{id}/reconcile",
            Admin,
            "Compares a node's inventory",
            accepted::<admin::Done>(),
            post(admin::reconcile),
        )
        .fails(&[Kind::NoSuchNode, Kind::Stale]),
        route(
            G,
            "/api/v1/admin/repairs",
            Admin,
            "The queue of repairs",
            ok::<admin::RepairsStatus>(),
            get(admin::repairs),
        ),
        route(
            G,
            "/api/v1/admin/audits",
            Admin,
            "Proofs of storage, newest first",
            ok::<admin::AuditsBody>(),
            get(admin::audits),
        )
        .query::<admin::AuditsQuery>(),
        route(
            G,
            "/api/v1/admin/gc",
            Admin,
            "What waits to be collected",
            ok::<admin::GcStatus>(),
            get(admin::gc),
        ),
        route(
            P,
            "/api/v1/admin/gc/freeze",
            Admin,
            "Stops garbage collection",
            ok::<admin::Done>(),
            post(admin::freeze),
        )
        .may_ask::<admin::Freeze>(),
        route(
            P,
            "/api/v1/admin/gc/thaw",
            Admin,
            "Lets garbage collection go on, past a brake too",
            ok::<admin::Done>(),
            post(admin::thaw),
        ),
        route(
            G,
            METRICS,
            Admin,
            "What this gateway counts, for Prometheus",
            exposition(),
            get(async |State(registry): State<Registry>| cyxcloud_telemetry::port::exposition(&registry)),
        ),
        route(
            G,
            "/api/v1/admin/token-keys",
            Admin,
            "What tokens for nodes are signed with, and when",
            ok::<signing::SigningKeysBody>(),
            get(signing::list),
        ),
        route(
            P,
            "/api/v1/admin/token-keys/rotate",
            Admin,
            "Goes over to a new key for tokens",
            accepted::<signing::SigningKeysBody>(),
            post(signing::rotate),
        )
        .may_ask::<signing::RotateBody>()
        .fails(&[Kind::NotNow, Kind::Stale]),
    ]
}

/// The router of the table, each route behind what opens it.
pub fn router(api: Api) -> Router {
    let mut router = Router::new();
    for Route { method, path, access, handler, .. } in table() {
        let (identity, denials) = (api.identity.clone(), api.denials.clone());
        let guarded = Guarded { access, method, path, identity, denials };
        router = router.route(path, handler.layer(from_fn_with_state(guarded, guard)));
    }
    let nowhere = async || {
        let detail = "there is nothing at this address; GET /api/v1/openapi.json says what there is";
        Problem::new(Kind::NotFound, detail)
    };
    let not_so = async || {
        let detail = "this address does not take this method; GET /api/v1/openapi.json says which it takes";
        Problem::new(Kind::MethodNotAllowed, detail)
    };
    router
        .fallback(nowhere)
        .method_not_allowed_fallback(not_so)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(api)
}

/// Answers a request as it came in: its path is read once, for the door and for the router alike; who sends it is found out
/// first, also where there is nothing at the address, so that strangers do not learn what there is.
pub async fn answer<B>(
    auth: &Authenticator,
    identity: &Identity,
    router: &Router,
    request: axum::http::Request<B>,
) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = match path::plain(request.uri().path()) {
        Ok(path) => path,
        Err(problem) => return problem.into_response(),
    };
    let request = if is_open(request.method(), &path) {
        at(request, &path).map(|request| request.map(Body::new)).map_err(|error| Problem::of_auth(&error))
    } else {
        let_in(auth, identity, request, &path).await
    };
    let request = match request {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    match router.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The request at this path.
fn at<B>(request: axum::http::Request<B>, path: &str) -> Result<axum::http::Request<B>, AuthError> {
    let (mut parts, body) = request.into_parts();
    parts.uri = rewrite::address(path, parts.uri.query().unwrap_or_default())?;
    Ok(axum::http::Request::from_parts(parts, body))
}

/// Finds out who sends a request to this path. A socket's credentials may be in its address.
async fn let_in<B>(
    auth: &Authenticator,
    identity: &Identity,
    request: axum::http::Request<B>,
    path: &str,
) -> Result<Request, Problem>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let refused = |error| Problem::of_auth(&error);
    let (mut parts, body) = request.into_parts();
    let ticket = match path {
        websocket::PATH => websocket::credentials::take(&mut parts).map_err(refused)?,
        _ => None,
    };
    let Some(ticket) = ticket else {
        // Makes the path as plain as it is here, once the signature was held against what was sent.
        let request = auth.authenticate(Request::from_parts(parts, body), Mount::Plain).await;
        return request.map(|request| request.map(Body::new)).map_err(refused);
    };
    let caller = identity.redeem_ticket(ticket.expose_secret()).await?.ok_or_else(|| {
        let detail = "the ticket is not one of ours, was used, or is older than 30 s; ask for one: POST /api/v1/ws-ticket";
        refused(AuthError::bad_token(detail))
    })?;
    parts.extensions.insert(caller);
    at(Request::from_parts(parts, Body::new(body)), path).map_err(refused)
}

/// Whether the door lets a request through to the router without looking at credentials.
fn is_open(method: &Method, path: &str) -> bool {
    static OPEN: std::sync::LazyLock<Vec<(Method, &'static str)>> = std::sync::LazyLock::new(|| {
        let open =
            table().into_iter().filter(|route| matches!(route.access, Access::Public | Access::Refresh));
        open.map(|route| (route.method, route.path)).collect()
    });
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    OPEN.iter().any(|(open, at)| open == method && *at == path)
}

#[derive(Clone)]
struct Guarded {
    access: Access,
    method: Method,
    path: &'static str,
    identity: Arc<Identity>,
    denials: Denials,
}

impl Guarded {
    /// Writes down that somebody was refused.
    async fn denied(
        &self,
        owner: Option<OwnerId>,
        caller: &Principal,
        target: &str,
        from: Option<ClientAddress>,
        status: StatusCode,
    ) {
        let Some(ClientAddress(from)) = from else { return };
        let Some(target) = self.denials.tell(caller.owner, target) else { return };
        let (action, outcome) = (format!("{} {}", self.method, self.path), status.as_u16().to_string());
        self.identity.audit(owner, &actor(caller), &action, &target, from, &outcome).await;
    }
}

/// Lets through who may; what administrators change is written down, and who was refused.
async fn guard(State(guarded): State<Guarded>, request: Request, next: Next) -> Response {
    let principal = request.extensions().get::<Principal>().cloned();
    let Some(caller) = principal else {
        return match guarded.access {
            Access::Public | Access::Refresh => next.run(request).await,
            Access::Any | Access::Account | Access::Admin => match rest::known(None) {
                Err(problem) => problem.into_response(),
                Ok(_) => StatusCode::UNAUTHORIZED.into_response(),
            },
        };
    };
    let from = request.extensions().get::<ClientAddress>().copied();
    let refused = match guarded.access {
        Access::Admin if !caller.admin => Some((Kind::NotAdmin, FOR_ADMINISTRATORS)),
        Access::Account if caller.limits.is_some() => {
            Some((Kind::LimitedKey, "use credentials without limits for this"))
        }
        _ => None,
    };
    if let Some((kind, detail)) = refused {
        let (response, target) =
            (Problem::new(kind, detail).into_response(), request.uri().path().to_owned());
        // What is an administrator's is about nobody's account; a limited key is its owner's business.
        let owner = (guarded.access == Access::Account).then_some(caller.owner);
        guarded.denied(owner, &caller, &target, from, response.status()).await;
        return response;
    }
    let target = request.uri().path().to_owned();
    let changes = guarded.access == Access::Admin && guarded.method != Method::GET;
    let response = next.run(request).await;
    if !changes && response.status() == StatusCode::FORBIDDEN {
        guarded.denied(Some(caller.owner), &caller, &target, from, response.status()).await;
    }
    if let (true, Some(ClientAddress(from))) = (changes, from) {
        let action = format!("admin {} {}", guarded.method, guarded.path);
        let outcome = response.status().as_u16().to_string();
        guarded.identity.audit(None, &caller.owner.to_string(), &action, &target, from, &outcome).await;
    }
    response
}
