//! Wallets: an account proves that it holds one by signing a text that names the service, the account and the wallet.
//!
//! The text is ours and is used once, so that no signature made for anything else proves anything here.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{TimeDelta, Utc};
use cyxcloud_core::receipt::verify_signature;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::{Caller, Json, allow, rfc3339, users};
use crate::App;
use crate::error::Problem;
use crate::limit::{CHALLENGE, WALLET};
use crate::store::{Challenge, User};

/// A challenge is to be answered within this time.
const CHALLENGE_MINUTES: i64 = 5;

/// A wallet's address: an Ed25519 key in Base58, of 32 to 44 characters.
pub(super) fn public_key(address: &str) -> Result<[u8; 32], Problem> {
    let mut key = [0; 32];
    match bs58::decode(address).onto(&mut key) {
        Ok(32) if (32..=44).contains(&address.len()) => Ok(key),
        _ => Err(Problem::invalid("wallet_address is not a Solana address: 32 bytes in Base58")),
    }
}

/// A signature: 64 bytes in Base58.
pub(super) fn signature(text: &str) -> Result<[u8; 64], Problem> {
    let mut bytes = [0; 64];
    match bs58::decode(text).onto(&mut bytes) {
        Ok(64) => Ok(bytes),
        _ => Err(Problem::invalid("signature is not 64 bytes in Base58")),
    }
}

fn shown(user: &User) -> Value {
    json!({
        "wallet_address": user.wallet_address,
        "verified": user.wallet_address.is_some(),
        "verified_at": user.wallet_verified_at.map(rfc3339),
    })
}

pub(super) async fn me(Caller(user): Caller) -> axum::Json<Value> {
    axum::Json(shown(&user))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    wallet_address: String,
}

/// Gives the text to sign.
pub(super) async fn challenge(
    State(app): State<Arc<App>>,
    Caller(user): Caller,
    Json(body): Json<Wanted>,
) -> Result<Response, Problem> {
    allow(&app, &CHALLENGE, &user.id.to_string()).await?;
    public_key(&body.wallet_address)?;
    let nonce = hex::encode(rand::random::<[u8; 16]>());
    let now = Utc::now();
    let expires_at = now + TimeDelta::minutes(CHALLENGE_MINUTES);
    let text = format!(
        "CyxWiz wallet verification\nService: {}\nAccount: {}\nWallet: {}\nNonce: {nonce}\nTime: {}\nExpires: {}",
        app.config.public_url,
        user.id,
        body.wallet_address,
        rfc3339(now),
        rfc3339(expires_at),
    );
    let challenge = Challenge { nonce, wallet_address: body.wallet_address, text, expires_at };
    app.store.keep_challenge(user.id, &challenge).await?;
    let body = json!({
        "challenge": challenge.text,
        "nonce": challenge.nonce,
        "expires": rfc3339(challenge.expires_at),
    });
    Ok(axum::Json(body).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Answer {
    wallet_address: String,
    /// Over the challenge's bytes, in Base58.
    signature: String,
    nonce: String,
}

pub(super) async fn verify(
    State(app): State<Arc<App>>,
    Caller(user): Caller,
    Json(body): Json<Answer>,
) -> Result<Response, Problem> {
    allow(&app, &WALLET, &user.id.to_string()).await?;
    let key = public_key(&body.wallet_address)?;
    let signature = signature(&body.signature)?;
    let now = Utc::now();
    let challenge = app.store.take_challenge(user.id, &body.nonce).await?;
    let challenge = challenge.filter(|challenge| challenge.expires_at > now).ok_or_else(|| {
        Problem::invalid("the nonce is unknown, used or too old; ask for another challenge")
    })?;
    let signed = verify_signature(&key, challenge.text.as_bytes(), &signature);
    if challenge.wallet_address != body.wallet_address || signed.is_err() {
        let detail = "the signature is not this wallet's over this challenge; ask for another challenge";
        return Err(Problem::new(StatusCode::FORBIDDEN, "bad-signature", detail));
    }
    let user = app.store.set_wallet(user.id, &body.wallet_address, now).await?.map_err(users::taken)?;
    info!(user = %user.id, "verified a wallet");
    Ok(axum::Json(shown(&user)).into_response())
}
