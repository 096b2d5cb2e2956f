//! What is answered at which address, and what a request must prove first.

mod auth;
pub mod fuzzing;
mod machines;
mod status;
mod users;
mod wallets;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, FromRequestParts, Path, Request};
use axum::routing::{delete, get, post};
use chrono::{DateTime, Utc};
use cyxcloud_core::claims::{Claims, TokenKind};
use cyxcloud_core::{OwnerId, Timestamp};
use cyxcloud_tls::client;
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use crate::App;
use crate::error::Problem;
use crate::limit::Limit;
use crate::store::{Status, Taken, User};

/// Longest body of a request.
const BODY_MAX: usize = 16 << 10;

/// All routes. What is not listed is not there.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/version", get(status::version))
        .route("/api/auth/register", post(auth::register))
        .route("/api/auth/login", post(auth::login))
        .route("/api/auth/refresh", post(auth::refresh))
        .route("/api/auth/logout", post(auth::logout))
        .route("/api/users/me", get(users::me).put(users::change))
        .route("/api/users/{id}/quota", get(users::quota))
        .route("/api/machines/register", post(machines::register))
        .route("/api/machines", get(machines::list))
        .route("/api/machines/{id}", delete(machines::remove))
        .route("/api/wallets/me", get(wallets::me))
        .route("/api/wallets/challenge", post(wallets::challenge))
        .route("/api/wallets/verify", post(wallets::verify))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || {
            let detail = "this address does not answer this method";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(app)
}

/// A JSON body of exactly this form.
struct Json<T>(T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        use axum::extract::rejection::JsonRejection;
        match axum::Json::<T>::from_request(request, app).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not-json",
                "send JSON, with Content-Type: application/json",
            )),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let detail = format!("the body has more than {BODY_MAX} bytes");
                Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail))
            }
            // Its text may repeat what was sent, which may be a password.
            Err(JsonRejection::JsonDataError(_)) => Err(Problem::invalid(
                "the body lacks a field, has one that is not known here, or one of another type; see docs/cyxwiz-api.md",
            )),
            Err(_) => Err(Problem::invalid("the body is not JSON")),
        }
    }
}

/// What stands in an address where an id belongs. What is not even text is nobody's id.
struct Id(String);

impl FromRequestParts<Arc<App>> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, app).await;
        id.map(|Path(id)| Self(id)).map_err(|_| Problem::not_found())
    }
}

/// The client's address, as limits count it.
struct Client(String);

impl FromRequestParts<Arc<App>> for Client {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        let peer = peer.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let client = client::of_request(&parts.headers, peer, &app.config.trusted_proxies);
        Ok(Self(client::address_group(client)))
    }
}

/// The account in whose name a request comes: proven by an access token, existing, and not suspended.
struct Caller(User);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let claims = opened(app, &parts.headers, TokenKind::Access)?;
        let user = match claims.sub.parse::<OwnerId>() {
            Ok(id) => app.store.user(id).await?,
            Err(_) => None,
        };
        let user =
            user.ok_or_else(|| Problem::unauthorized("this account is not known here; log in here"))?;
        if user.has_ended(claims.iat) {
            return Err(Problem::unauthorized("another password was set since; log in again"));
        }
        active(user).map(Self)
    }
}

fn active(user: User) -> Result<User, Problem> {
    match user.status {
        Status::Active => Ok(user),
        Status::Suspended => Err(Problem::suspended()),
    }
}

/// The claims of the request's only bearer token, which is of this kind.
fn opened(app: &App, headers: &HeaderMap, kind: TokenKind) -> Result<Claims, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let token = match (values.next().map(|value| value.to_str()), values.next()) {
        (Some(Ok(value)), None) => value
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim()),
        _ => None,
    };
    let token = token
        .ok_or_else(|| Problem::unauthorized("send a token as Authorization: Bearer; log in for one"))?;
    let now = Timestamp::from_unix_millis(Utc::now().timestamp_millis());
    app.tokens.open(token, kind, now).map_err(|error| Problem::unauthorized(error.to_string()))
}

/// Takes one of an allowance, or refuses with how long to wait.
async fn allow(app: &App, limit: &Limit, whom: &str) -> Result<(), Problem> {
    match app.store.take(limit, whom).await? {
        Taken::Yes => Ok(()),
        Taken::Wait(secs) => Err(Problem::too_many(secs)),
    }
}

/// A time as all answers give it.
fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}
