//! Tokens: HS256 and nothing else, every claim of the right type, issued for us. Issued and verified here.
//!
//! The algorithm is pinned here and never taken from the token. Not here: whether a token was revoked and whether its
//! user may still do anything ([`super::keys`]).

use aws_lc_rs::hmac;
use cyxcloud_core::{OwnerId, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

use super::AuthError;

/// Clocks may differ by this many seconds.
const LEEWAY_SECS: u64 = 60;
/// Longest token looked at.
const TOKEN_MAX: usize = 8 << 10;

/// Which tokens are ours.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    /// Shared with the other service that issues them; at least 32 bytes.
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

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Opens S3 and REST.
    Access,
    /// Is exchanged for other tokens and opens nothing else.
    Refresh,
    /// Opens what its key opens.
    ApiKey,
}

impl Kind {
    /// As `typ` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Refresh => "refresh",
            Self::ApiKey => "api_key",
        }
    }

    fn of(typ: &str) -> Option<Self> {
        [Self::Access, Self::Refresh, Self::ApiKey].into_iter().find(|kind| kind.as_str() == typ)
    }
}

/// A token that was issued for us and is in its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose.
    pub owner: OwnerId,
    /// What it is for.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// The session that it came from, if we issued it.
    pub session: Option<Uuid>,
    /// The access key that it is the other face of.
    pub key: Option<String>,
    /// The user's token version when it was issued; zero where another service issued it.
    pub version: i64,
    /// When it ends.
    pub expires_at: Timestamp,
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
    /// May be absent, but not `null`, like all below.
    #[serde(default, deserialize_with = "present")]
    nbf: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    sid: Option<Uuid>,
    #[serde(default, deserialize_with = "present")]
    key: Option<String>,
    #[serde(default, deserialize_with = "present")]
    ver: Option<i64>,
}

fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Serialize)]
struct NewClaims<'a> {
    sub: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    wallet: Option<&'a str>,
    typ: &'static str,
    iat: u64,
    exp: u64,
    jti: &'a str,
    iss: &'a str,
    aud: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    ver: i64,
}

/// Issues and verifies tokens.
pub(crate) struct Tokens {
    config: JwtConfig,
    key_id: String,
    key: DecodingKey,
    signing_key: EncodingKey,
    validation: Validation,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("config", &self.config).finish_non_exhaustive()
    }
}

fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.unix_millis() / 1000).unwrap_or(0)
}

impl Tokens {
    pub(crate) fn new(config: JwtConfig) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[&config.audience]);
        validation.set_issuer(&[&config.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // Times are judged below, against the caller's clock and with strict types.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let key = DecodingKey::from_secret(config.secret.expose_secret().as_bytes());
        let signing_key = EncodingKey::from_secret(config.secret.expose_secret().as_bytes());
        Self { key_id: config.key_id(), config, key, signing_key, validation }
    }

    /// A token that says this of itself, issued now.
    pub(crate) fn issue(
        &self,
        token: &Token,
        wallet: Option<&str>,
        now: Timestamp,
    ) -> Result<SecretString, AuthError> {
        let claims = NewClaims {
            sub: token.owner.to_string(),
            wallet,
            typ: token.kind.as_str(),
            iat: seconds(now),
            exp: seconds(token.expires_at),
            jti: &token.id,
            iss: &self.config.issuer,
            aud: &self.config.audience,
            sid: token.session,
            key: token.key.as_deref(),
            ver: token.version,
        };
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::HS256) };
        let text = encode(&header, &claims, &self.signing_key).map_err(|_| AuthError::internal())?;
        Ok(text.into())
    }

    /// What a token of one of these kinds says. Whether it still holds is for the caller to find out.
    pub(crate) fn verify(&self, token: &str, now: Timestamp, kinds: &[Kind]) -> Result<Token, AuthError> {
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
        let now = seconds(now);
        if now >= claims.exp.saturating_add(LEEWAY_SECS) {
            return Err(AuthError::bad_token("the token has expired; log in again"));
        }
        let begins = claims.nbf.unwrap_or(0).max(claims.iat);
        if begins > now.saturating_add(LEEWAY_SECS) || claims.iat >= claims.exp {
            return Err(AuthError::bad_token("the token is not valid yet; check the clocks"));
        }
        let kind = Kind::of(&claims.typ).filter(|kind| kinds.contains(kind));
        let kind = kind.ok_or_else(|| {
            AuthError::bad_token("a token of this kind opens nothing here; use an access token")
        })?;
        let expires = i64::try_from(claims.exp).unwrap_or(i64::MAX).saturating_mul(1000);
        Ok(Token {
            owner: claims.sub.parse().map_err(|_| malformed())?,
            kind,
            id: claims.jti,
            session: claims.sid,
            key: claims.key,
            version: claims.ver.unwrap_or(0),
            expires_at: Timestamp::from_unix_millis(expires),
        })
    }
}
