//! Every route under `/api/v1`, and what opens it: the one table that the router, the door and the OpenAPI
//! description are made from.
//!
//! A route without a decision cannot be written down here, and there is no other way in. Not here: what routes do.

mod openapi;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRef, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, delete, get, patch, post};
use cyxcloud_metadata::MetadataStore;
use tower::ServiceExt as _;

use crate::auth::{Authenticator, Mount, Principal};
use crate::identity::Identity;
use crate::identity::routes::{self as people, ClientAddress};
use crate::objects::ObjectService;
use crate::rest::Problem;
use crate::{admin, rest};
use openapi::{Content, body};

/// Largest body of a request here.
const BODY_MAX: usize = 64 << 10;

/// What routes work with.
#[derive(Clone, Debug)]
pub struct Api {
    /// Buckets and objects.
    pub objects: Arc<ObjectService>,
    /// Nodes, users, the audit log.
    pub metadata: Arc<dyn MetadataStore>,
    /// Log-ins and keys.
    pub identity: Arc<Identity>,
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
    answers: Option<Content>,
    handler: MethodRouter<Api>,
}

fn route(
    method: Method,
    path: &'static str,
    access: Access,
    summary: &'static str,
    handler: MethodRouter<Api>,
) -> Route {
    Route { method, path, access, summary, asks: None, answers: None, handler }
}

impl Route {
    fn asks(self, asks: Content) -> Self {
        Self { asks: Some(asks), ..self }
    }

    fn answers(self, answers: Content) -> Self {
        Self { answers: Some(answers), ..self }
    }
}

/// Every route there is.
pub fn table() -> Vec<Route> {
    use Access::{Account, Admin, Any, Public, Refresh};
    const G: Method = Method::GET;
    const P: Method = Method::POST;
    vec![
        route(G, "/api/v1/openapi.json", Public, "This description", get(openapi::serve)),
        // People.
        route(P, "/api/v1/auth/challenge", Public, "A text for a wallet to sign", post(people::challenge))
            .asks(body::<people::WalletBody>())
            .answers(body::<people::ChallengeBody>()),
        route(
            G,
            "/api/v1/auth/challenge",
            Public,
            "The same, for ?wallet_address=",
            get(people::challenge_by_query),
        )
        .answers(body::<people::ChallengeBody>()),
        route(P, "/api/v1/auth/wallet", Public, "Logs a wallet in that signed", post(people::log_in))
            .asks(body::<people::LogInBody>())
            .answers(body::<people::TokensBody>()),
        route(
            P,
            "/api/v1/auth/refresh",
            Refresh,
            "Exchanges a refresh token for new tokens",
            post(people::refresh),
        )
        .answers(body::<people::TokensBody>()),
        route(P, "/api/v1/auth/logout", Any, "Ends the session of an access token", post(people::log_out)),
        route(G, "/api/v1/auth/me", Any, "Whose credentials these are", get(people::me))
            .answers(body::<people::MeBody>()),
        route(P, "/api/v1/auth/api-keys", Any, "Makes an API key", post(people::create_key))
            .asks(body::<crate::identity::WantedKey>())
            .answers(body::<people::MadeKeyBody>()),
        route(G, "/api/v1/auth/api-keys", Account, "Lists API keys", get(people::list_keys))
            .answers(body::<people::KeysBody>()),
        route(
            Method::DELETE,
            "/api/v1/auth/api-keys/{id}",
            Account,
            "Revokes an API key",
            delete(people::revoke_key),
        ),
        route(P, "/api/v1/ws-ticket", Account, "A ticket for one WebSocket, soon", post(people::ticket))
            .answers(body::<people::TicketBody>()),
        route(G, "/api/v1/audit-log", Account, "What was done to this account", get(people::own_log))
            .answers(body::<people::AuditLogBody>()),
        // What they keep.
        route(G, "/api/v1/account", Any, "What the account stores", get(rest::account)),
        route(G, "/api/v1/buckets/{bucket}", Any, "What a bucket stores", get(rest::bucket)),
        route(G, "/api/v1/buckets/{bucket}/objects/{*key}", Any, "How an object is kept", get(rest::object)),
        // Administrators.
        route(G, "/api/v1/admin/users", Admin, "Lists users", get(people::users))
            .answers(body::<people::UsersBody>()),
        route(
            Method::PATCH,
            "/api/v1/admin/users/{id}",
            Admin,
            "Changes a user's quota, role or status",
            patch(people::change_user),
        )
        .asks(body::<people::ChangeUserBody>())
        .answers(body::<people::UserBody>()),
        route(G, "/api/v1/admin/audit-log", Admin, "What everybody did", get(people::whole_log))
            .answers(body::<people::AuditLogBody>()),
        route(G, "/api/v1/admin/status", Admin, "Nodes, repairs and garbage in numbers", get(admin::status)),
        route(G, "/api/v1/admin/nodes", Admin, "Lists nodes", get(admin::nodes)),
        route(
            P,
            "/api/v1/admin/nodes/{id}/drain",
            Admin,
            "Moves everything away from a node",
            post(admin::drain),
        ),
        route(
            P,
            "/api/v1/admin/nodes/{id}/reconcile",
            Admin,
            "Compares a node's inventory",
            post(admin::reconcile),
        ),
        route(G, "/api/v1/admin/repairs", Admin, "The queue of repairs", get(admin::repairs)),
        route(G, "/api/v1/admin/audits", Admin, "Proofs of storage, newest first", get(admin::audits)),
        route(G, "/api/v1/admin/gc", Admin, "What waits to be collected", get(admin::gc)),
        route(P, "/api/v1/admin/gc/freeze", Admin, "Stops garbage collection", post(admin::freeze)),
        route(P, "/api/v1/admin/gc/thaw", Admin, "Lets garbage collection go on", post(admin::thaw)),
    ]
}

/// The router of the table, each route behind what opens it.
pub fn router(api: Api) -> Router {
    let mut router = Router::new();
    for Route { method, path, access, handler, .. } in table() {
        let guarded = Guarded { access, method, path, identity: api.identity.clone() };
        router = router.route(path, handler.layer(from_fn_with_state(guarded, guard)));
    }
    let nowhere = async || {
        let detail = "there is nothing at this address; GET /api/v1/openapi.json says what there is";
        Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    };
    let not_so = async || {
        let detail = "this address does not take this method; GET /api/v1/openapi.json says which it takes";
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
    };
    router
        .fallback(nowhere)
        .method_not_allowed_fallback(not_so)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(api)
}

/// Answers a request as it came in: who sends it is found out first, also where there is nothing at the address, so
/// that strangers do not learn what there is.
pub async fn answer<B>(auth: &Authenticator, router: &Router, request: axum::http::Request<B>) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let request = if is_open(request.method(), request.uri().path()) {
        request.map(Body::new)
    } else {
        match auth.authenticate(request, Mount::Plain).await {
            Ok(request) => request.map(Body::new),
            Err(error) => return Problem::of_auth(&error).into_response(),
        }
    };
    match router.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
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
}

/// Lets through who may; what administrators change is written down.
async fn guard(State(guarded): State<Guarded>, request: Request, next: Next) -> Response {
    let refused =
        |kind, title, detail: &str| Problem::new(StatusCode::FORBIDDEN, kind, title, detail).into_response();
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
    if guarded.access == Access::Admin && !caller.admin {
        let detail = "this is for administrators; ask one, or use an administrator's credentials";
        return refused("not-admin", "Administrators only", detail);
    }
    if guarded.access == Access::Account && caller.limits.is_some() {
        return refused("limited-key", "Not with a limited key", "use credentials without limits for this");
    }
    let changes = guarded.access == Access::Admin && guarded.method != Method::GET;
    let target = changes.then(|| request.uri().path().to_owned());
    let from = request.extensions().get::<ClientAddress>().copied();
    let response = next.run(request).await;
    if let (Some(target), Some(ClientAddress(from))) = (target, from) {
        let action = format!("admin {} {}", guarded.method, guarded.path);
        let outcome = response.status().as_u16().to_string();
        guarded.identity.audit(None, &caller.owner.to_string(), &action, &target, from, &outcome).await;
    }
    response
}
