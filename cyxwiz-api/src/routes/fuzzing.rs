//! What the fuzz targets in `fuzz/` reach of this crate's inside: what is made of a stranger's words.
//!
//! No interface: nothing else may use it, and it may change at any time.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use clap::Parser as _;
use cyxcloud_core::claims::{Claims, TokenKind};
use cyxcloud_core::{OwnerId, Timestamp};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use tower::ServiceExt as _;
use uuid::Uuid;

use super::{auth, machines, router, users, wallets};
use crate::password::{self, Passwords};
use crate::store::Store;
use crate::token::{PairSeed, Tokens};
use crate::{App, Config};

/// `iss` of tokens, and `aud` of those for gateways.
pub const NAME: &str = "cyxcloud";
/// Seconds that access tokens hold.
pub const ACCESS_SECS: u64 = 3_600;

/// A form's name, and whether a body is of it.
pub type Form = (&'static str, fn(&[u8]) -> bool);

/// Forms of bodies, each by what it is sent for.
pub const BODIES: &[Form] = &[
    ("register", is::<auth::Register>),
    ("login", is::<auth::Login>),
    ("change", is::<users::Changes>),
    ("machine", is::<machines::Register>),
    ("challenge", is::<wallets::Wanted>),
    ("verify", is::<wallets::Answer>),
];

fn is<T: DeserializeOwned>(body: &[u8]) -> bool {
    axum::Json::<T>::from_bytes(body).is_ok()
}

/// An email address as it is kept.
pub fn email(text: &str) -> Option<String> {
    users::email(text).ok()
}

/// A user name.
pub fn username(text: &str) -> Option<&str> {
    users::username(text).ok()
}

/// Whether this may be a new password.
pub fn is_password(text: &str) -> bool {
    password::check(&SecretString::from(text)).is_ok()
}

/// The key of a wallet.
pub fn wallet(address: &str) -> Option<[u8; 32]> {
    wallets::public_key(address).ok()
}

/// A signature of a wallet.
pub fn signature(text: &str) -> Option<[u8; 64]> {
    wallets::signature(text).ok()
}

/// What is kept of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub name: String,
    pub peer_id: String,
    pub storage_bytes: Option<u64>,
    pub region: Option<String>,
    pub version: Option<String>,
}

/// The machine that a body describes.
pub fn machine(body: &[u8]) -> Option<Machine> {
    let axum::Json(body) = axum::Json::<machines::Register>::from_bytes(body).ok()?;
    let new = body.machine().ok()?;
    Some(Machine {
        name: new.name.to_owned(),
        peer_id: new.peer_id.to_owned(),
        storage_bytes: new.storage.map(|bytes| bytes.get()),
        region: new.region.map(str::to_owned),
        version: new.version.map(str::to_owned),
    })
}

fn tokens(secret: &str) -> Tokens {
    Tokens::new(&SecretString::from(secret), None, NAME, NAME, ACCESS_SECS)
}

/// What a log-in answers with: tokens with these ids.
pub fn pair(secret: &str, user: OwnerId, [access, refresh]: [Uuid; 2], issued_at: u64) -> serde_json::Value {
    let pair = tokens(secret).pair(&PairSeed { user, wallet: None, access, refresh, issued_at });
    serde_json::to_value(pair.expect("signs")).expect("is JSON")
}

/// What a token says, if it is one of ours, of this kind, and holds.
pub fn open(secret: &str, token: &str, kind: TokenKind, now: Timestamp) -> Option<Claims> {
    tokens(secret).open(token, kind, now).ok()
}

/// The service, with a database that answers nothing. Proxies are in 10.0.0.0/8.
#[derive(Clone, Debug)]
pub struct Service {
    router: Router,
}

impl Service {
    /// With this secret for tokens.
    pub async fn open(secret: &str) -> Self {
        let flags =
            ["cyxwiz-api", "--jwt-issuer", NAME, "--jwt-audience", NAME, "--trusted-proxies", "10.0.0.0/8"];
        let app = App {
            store: Store::closed().await,
            passwords: Passwords::new().expect("argon2"),
            tokens: tokens(secret),
            certificate: None,
            tls: None,
            config: Config::try_parse_from(flags).expect("the flags exist"),
        };
        Self { router: router(Arc::new(app)) }
    }

    /// Its answer to whoever is at this address.
    pub async fn answer(&self, request: Request<Bytes>, peer: SocketAddr) -> Response<Bytes> {
        let mut request = request.map(Body::from);
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("is in memory").to_bytes();
        Response::from_parts(parts, body)
    }
}
