//! Accounts as their owners and the gateways see them.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use cyxcloud_core::OwnerId;
use cyxcloud_core::claims::TokenKind;
use http::HeaderMap;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::{Caller, Client, Id, Json, allow, opened, rfc3339};
use crate::App;
use crate::error::Problem;
use crate::limit::{LOGIN_ACCOUNT, PASSWORDS};
use crate::password;
use crate::store::{Change, NameTaken, Unchanged, User};

/// Longest email address (RFC 5321, 4.5.3.1.3, without its brackets).
const EMAIL_MAX: usize = 254;

/// An email address as it is kept. Whether anybody reads mail there is not asked.
pub(super) fn email(text: &str) -> Result<String, Problem> {
    let email = text.trim().to_lowercase();
    let plain = |c: char| !c.is_whitespace() && !c.is_control();
    let parts = email.split_once('@').filter(|(name, domain)| {
        !name.is_empty() && domain.len() > 1 && !domain.contains('@') && !domain.starts_with('.')
    });
    match parts {
        Some(_) if email.len() <= EMAIL_MAX && email.chars().all(plain) => Ok(email),
        _ => Err(Problem::invalid("the email address is not one; write it like name@example.org")),
    }
}

/// A user name: letters, digits and `._-`, in 3 to 32 characters.
pub(super) fn username(text: &str) -> Result<&str, Problem> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (3..=32).contains(&text.len()) && text.chars().all(known) {
        return Ok(text);
    }
    Err(Problem::invalid("a username has 3 to 32 letters, digits, dots, dashes or underscores"))
}

pub(super) fn taken(what: NameTaken) -> Problem {
    match what {
        NameTaken::Email => {
            Problem::conflict("email-taken", "there is an account with this email address; log in")
        }
        NameTaken::Username => {
            Problem::conflict("username-taken", "somebody else has this username; choose another")
        }
        NameTaken::Wallet => Problem::conflict("wallet-taken", "this wallet belongs to another account"),
    }
}

/// An account as its owner sees it.
pub(super) fn shown(user: &User) -> Value {
    json!({
        "id": user.id.to_string(),
        "email": user.email,
        "username": user.username,
        "wallet_address": user.wallet_address,
        "storage_quota": user.storage_quota.map(|quota| quota.get()),
        "created_at": rfc3339(user.created_at),
    })
}

pub(super) async fn me(Caller(user): Caller) -> axum::Json<Value> {
    axum::Json(shown(&user))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Changes {
    email: Option<String>,
    username: Option<String>,
    password: Option<SecretString>,
    /// Needed for a new email address or password: a token alone must not take an account over.
    current_password: Option<SecretString>,
}

pub(super) async fn change(
    State(app): State<Arc<App>>,
    Client(client): Client,
    Caller(user): Caller,
    Json(body): Json<Changes>,
) -> Result<Response, Problem> {
    let email = body.email.as_deref().map(email).transpose()?;
    let username = body.username.as_deref().map(username).transpose()?;
    if let Some(new) = &body.password {
        password::check(new).map_err(Problem::invalid)?;
    }
    let needs_password = email.is_some() || body.password.is_some();
    if needs_password {
        check_password(&app, &user, &client, body.current_password).await?;
    }
    let password_hash = match body.password {
        Some(new) => Some(app.passwords.hash(new).await?),
        None => None,
    };
    let change = Change {
        email: email.as_deref(),
        username,
        password_hash: password_hash.as_deref(),
        checked: needs_password.then_some(user.password_hash.as_str()),
    };
    let user = app.store.change_user(user.id, &change).await?.map_err(|why| match why {
        Unchanged::Taken(what) => taken(what),
        Unchanged::OtherPassword => Problem::wrong_password(),
    })?;
    info!(user = %user.id, password = password_hash.is_some(), "changed an account");
    Ok(axum::Json(shown(&user)).into_response())
}

async fn check_password(
    app: &App,
    user: &User,
    client: &str,
    given: Option<SecretString>,
) -> Result<(), Problem> {
    let given = given
        .ok_or_else(|| Problem::invalid("a new email address or password needs current_password as well"))?;
    allow(app, &PASSWORDS, client).await?;
    allow(app, &LOGIN_ACCOUNT, &user.email).await?;
    if !app.passwords.verify(given, Some(&user.password_hash)).await? {
        return Err(Problem::wrong_password());
    }
    Ok(app.store.give_back(&LOGIN_ACCOUNT, &user.email).await?)
}

/// What a gateway looks up. Its token names the account, so that it opens no other one's.
pub(super) async fn quota(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Id(id): Id,
) -> Result<Response, Problem> {
    let claims = opened(&app, &headers, TokenKind::Service)?;
    if claims.sub != id {
        return Err(Problem::unauthorized("the token is for another account"));
    }
    let id = id.parse::<OwnerId>().map_err(|_| Problem::not_found())?;
    let user = app.store.user(id).await?.ok_or_else(Problem::not_found)?;
    let body = json!({
        "id": user.id.to_string(),
        "storage_quota": user.storage_quota.map(|quota| quota.get()),
        "status": user.status,
        "tokens_after": user.tokens_after.map(|after| after.timestamp()),
    });
    Ok(axum::Json(body).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn email_addresses_are_kept_in_one_form() {
        assert_eq!(email(" Node@Example.ORG ").expect("one"), "node@example.org");
        for bad in [
            "",
            "x",
            "@x",
            "x@",
            "x@y@z",
            "a b@c.de",
            "a@.de",
            "a\0@c.de",
            &format!("{}@c.de", "x".repeat(250)),
        ] {
            assert!(email(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn usernames_are_plain() {
        for good in ["ann", "a.b-c_9", &"x".repeat(32)] {
            assert!(username(good).is_ok(), "{good}");
        }
        for bad in ["", "ab", "a b c", "ünï", "<script>", &"x".repeat(33)] {
            assert!(username(bad).is_err(), "{bad}");
        }
    }
}
