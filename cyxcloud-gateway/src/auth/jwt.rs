//! Bearer tokens: HS256 and nothing else, every claim of the right type, issued for us.
//!
//! The algorithm is pinned here and never taken from the token. Not here: issuing tokens.

use aws_lc_rs::hmac;
use cyxcloud_core::{OwnerId, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::fmt;

use super::AuthError;

/// Clocks may differ by this many seconds.
const LEEWAY_SECS: u64 = 60;
/// Longest token looked at.
const TOKEN_MAX: usize = 8 << 10;

/// Which tokens are ours.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    /// Shared with the service that issues them; at least 32 bytes.
    pub secret: SecretString,
    /// `iss` they must carry.
    pub issuer: String,
    /// `aud` they must carry.
    pub audience: String,
}

impl JwtConfig {
    /// The `kid` that tokens signed with this secret must carry in their header: it follows from the secret, so
    /// that both services agree without being told, and tells nothing about it.
    pub fn key_id(&self) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.expose_secret().as_bytes());
        hex::encode(&hmac::sign(&key, b"cyxcloud/jwt/kid/v1").as_ref()[..8])
    }
}

/// Claims of section 8.3 of the specification, and `iss`, `aud`, `nbf`. A claim of another type is refused.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    typ: String,
    iat: u64,
    exp: u64,
    jti: String,
    iss: String,
    aud: String,
    /// May be absent, but not `null`.
    #[serde(default, deserialize_with = "present")]
    nbf: Option<u64>,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    u64::deserialize(deserializer).map(Some)
}

/// Verifies tokens.
pub(crate) struct Verifier {
    config: JwtConfig,
    key_id: String,
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Verifier {
    pub(crate) fn new(config: JwtConfig) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[&config.audience]);
        validation.set_issuer(&[&config.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // Times are judged below, against the caller's clock and with strict types.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let key = DecodingKey::from_secret(config.secret.expose_secret().as_bytes());
        Self { key_id: config.key_id(), config, key, validation }
    }

    /// Whose the token is. That the owner exists is for the caller to check.
    pub(crate) fn verify(&self, token: &str, now: Timestamp) -> Result<OwnerId, AuthError> {
        if token.is_empty() || token.len() > TOKEN_MAX {
            return Err(AuthError::bad_token("there is no token, or it is too long; log in again"));
        }
        let malformed = || AuthError::bad_token("the token is not one of ours; log in again");
        let header = decode_header(token).map_err(|_| malformed())?;
        if header.alg != Algorithm::HS256 || header.kid.as_deref() != Some(self.key_id.as_str()) {
            return Err(malformed());
        }
        let claims = decode::<Claims>(token, &self.key, &self.validation).map_err(|_| malformed())?.claims;
        // Said again, because the library skips claims that it does not find.
        if claims.iss != self.config.issuer || claims.aud != self.config.audience || claims.jti.is_empty() {
            return Err(malformed());
        }
        let now = u64::try_from(now.unix_millis() / 1000).unwrap_or(0);
        if now >= claims.exp.saturating_add(LEEWAY_SECS) {
            return Err(AuthError::bad_token("the token has expired; log in again"));
        }
        let begins = claims.nbf.unwrap_or(0).max(claims.iat);
        if begins > now.saturating_add(LEEWAY_SECS) || claims.iat >= claims.exp {
            return Err(AuthError::bad_token("the token is not valid yet; check the clocks"));
        }
        if !matches!(claims.typ.as_str(), "access" | "api_key") {
            return Err(AuthError::bad_token("a token of this kind opens nothing here; use an access token"));
        }
        claims.sub.parse().map_err(|_| malformed())
    }
}
