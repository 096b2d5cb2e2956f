//! Registering, logging in, staying logged in, logging out.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use cyxcloud_core::OwnerId;
use cyxcloud_core::claims::TokenKind;
use http::{HeaderMap, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use subtle::ConstantTimeEq;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{Client, Json, active, allow, opened, users};
use crate::App;
use crate::error::{Problem, chain};
use crate::limit::{LOGIN_ACCOUNT, LOGIN_ADDRESS, LOGIN_PAIR, Limit, PASSWORDS, REFRESH};
use crate::password;
use crate::store::{NewUser, NextIds, Refreshed, User};
use crate::token::{Pair, PairSeed};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Register {
    email: String,
    password: SecretString,
    username: Option<String>,
    /// What REGISTRATION_TOKEN says, where it is set.
    registration_token: Option<SecretString>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    email: String,
    password: SecretString,
}

/// Tokens, and whose they are.
#[derive(serde::Serialize)]
struct LoggedIn {
    #[serde(flatten)]
    pair: Pair,
    user: serde_json::Value,
}

pub(super) async fn register(
    State(app): State<Arc<App>>,
    Client(client): Client,
    Json(body): Json<Register>,
) -> Result<Response, Problem> {
    allow(&app, &Limit::registrations(app.config.registrations_per_hour), &client).await?;
    check_invitation(&app, body.registration_token.as_ref())?;
    let email = users::email(&body.email)?;
    let username = body.username.as_deref().map(users::username).transpose()?;
    password::check(&body.password).map_err(Problem::invalid)?;
    let password_hash = app.passwords.hash(body.password).await?;
    let new = NewUser {
        id: OwnerId::from_uuid(Uuid::new_v4()),
        email: &email,
        username,
        password_hash: &password_hash,
        storage_quota: app.config.default_storage_quota.0,
    };
    let user = app.store.make_user(&new).await?.map_err(users::taken)?;
    app.store.know(user.id, &client).await?;
    info!(user = %user.id, %client, "registered");
    let logged_in = begin(&app, &user).await?;
    Ok((StatusCode::CREATED, axum::Json(logged_in)).into_response())
}

/// Where there is an invitation to know, who registers knows it.
fn check_invitation(app: &App, given: Option<&SecretString>) -> Result<(), Problem> {
    let Some(wanted) = &app.config.registration_token else { return Ok(()) };
    let given = given.map_or("", |given| given.expose_secret());
    if bool::from(wanted.expose_secret().as_bytes().ct_eq(given.as_bytes())) {
        return Ok(());
    }
    let detail = "registering here needs a registration_token; ask the operator";
    Err(Problem::new(StatusCode::FORBIDDEN, "registration-closed", detail))
}

pub(super) async fn login(
    State(app): State<Arc<App>>,
    Client(client): Client,
    Json(body): Json<Login>,
) -> Result<Response, Problem> {
    // An address that nobody can have is nobody's: refused as late and in the same words.
    let email = users::email(&body.email).unwrap_or_default();
    let pair = format!("{client} {email}");
    allow(&app, &PASSWORDS, &client).await?;
    allow(&app, &LOGIN_ADDRESS, &client).await?;
    allow(&app, &LOGIN_PAIR, &pair).await?;
    let user = app.store.user_by_email(&email).await?;
    // Asked about nobody, too: an account is not to be told by the queries that it takes.
    let id = user.as_ref().map_or(OwnerId::from_uuid(Uuid::nil()), |user| user.id);
    let known = app.store.is_known(id, &client).await?;
    if !known {
        allow(&app, &LOGIN_ACCOUNT, &email).await?;
    }
    let kept = user.as_ref().map(|user| user.password_hash.as_str());
    let right = app.passwords.verify(body.password, kept).await?;
    let Some(user) = user.filter(|_| right) else {
        info!(%client, "refused a log-in");
        return Err(Problem::wrong_password());
    };
    // Of these only wrong ones count: many machines may share one account.
    app.store.give_back(&LOGIN_ADDRESS, &client).await?;
    app.store.give_back(&LOGIN_PAIR, &pair).await?;
    if !known {
        app.store.give_back(&LOGIN_ACCOUNT, &email).await?;
    }
    let user = active(user)?;
    app.store.know(user.id, &client).await?;
    info!(user = %user.id, %client, "logged in");
    Ok(axum::Json(begin(&app, &user).await?).into_response())
}

/// Begins a session, if the account still is as the caller was found to know it.
async fn begin(app: &App, user: &User) -> Result<LoggedIn, Problem> {
    let (ids, now) = (fresh_ids(), Utc::now());
    let pair = sign(app, user, ids, now)?;
    if !app.store.begin_session(user, ids.refresh, now).await? {
        info!(user = %user.id, "refused a log-in: the account was changed meanwhile");
        return Err(Problem::wrong_password());
    }
    Ok(LoggedIn { pair, user: users::shown(user) })
}

fn fresh_ids() -> NextIds {
    NextIds { access: Uuid::new_v4(), refresh: Uuid::new_v4() }
}

fn sign(app: &App, user: &User, ids: NextIds, at: DateTime<Utc>) -> Result<Pair, Problem> {
    // In the second of a new password, too, what comes after it holds.
    let at = user.tokens_after.map_or(at, |after| at.max(after));
    let seed = PairSeed {
        user: user.id,
        wallet: user.wallet_address.clone(),
        access: ids.access,
        refresh: ids.refresh,
        issued_at: u64::try_from(at.timestamp()).unwrap_or(0),
    };
    app.tokens.pair(&seed).map_err(|cause| {
        error!(error = %chain(&cause), "could not sign a token");
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "no token could be made; tell the operator",
        )
    })
}

/// Whose refresh token stands in the header, and which it is.
fn refresh_token(app: &App, headers: &HeaderMap) -> Result<(Uuid, OwnerId), Problem> {
    let claims = opened(app, headers, TokenKind::Refresh)?;
    match (claims.jti.parse(), claims.sub.parse()) {
        (Ok(token), Ok(user)) => Ok((token, user)),
        _ => Err(over()),
    }
}

fn over() -> Problem {
    Problem::unauthorized("the session has ended; log in again")
}

pub(super) async fn refresh(
    State(app): State<Arc<App>>,
    Client(client): Client,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (token, user) = refresh_token(&app, &headers)?;
    allow(&app, &REFRESH, &client).await?;
    let user = app.store.user(user).await?.ok_or_else(over)?;
    let user = active(user)?;
    match app.store.refresh(token, user.id, fresh_ids(), Utc::now()).await? {
        Refreshed::Next { ids, at } => Ok(axum::Json(sign(&app, &user, ids, at)?).into_response()),
        Refreshed::Reused => {
            warn!(user = %user.id, %client, "a refresh token was used again long after; its session ends");
            Err(over())
        }
        Refreshed::Over => Err(over()),
    }
}

/// Ends the session of the refresh token; its access tokens that are out end within the hour.
pub(super) async fn logout(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<StatusCode, Problem> {
    let (token, user) = refresh_token(&app, &headers)?;
    app.store.end_session(token, user).await?;
    Ok(StatusCode::NO_CONTENT)
}
