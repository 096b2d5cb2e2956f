//! Tokens: HS256 and nothing else, every claim of the right type, issued for us. Issued and verified here.
//!
//! The algorithm is pinned here and never taken from the token. Not here: whether a token was revoked and whether its
//! user may still do anything ([`super::keys`]).

use cyxcloud_core::claims::{Claims, IDENTITY_AUDIENCE, TOKEN_MAX, TokenKind, Wanted, key_id};
use cyxcloud_core::{OwnerId, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

use super::AuthError;

/// Which tokens are ours.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    /// Shared with the other service that issues them; at least 32 bytes.
    pub secret: SecretString,
    /// Under which tokens hold too, and none is issued: what was the secret before, or will be when all have it.
    pub previous: Option<SecretString>,
    /// `iss` they must carry.
    pub issuer: String,
    /// `aud` they must carry.
    pub audience: String,
}

impl JwtConfig {
    /// The `kid` that tokens signed with this secret must carry in their header.
    pub fn key_id(&self) -> String {
        key_id(self.secret.expose_secret().as_bytes())
    }
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Opens S3 and REST.
    Access,
    /// Is exchanged for other tokens and opens nothing else.
    Refresh,
    /// Opens what its key opens.
    ApiKey,
    /// A storage node's heartbeats; `owner` is then the node's id.
    Node,
}

impl Kind {
    /// As `typ` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Refresh => "refresh",
            Self::ApiKey => "api_key",
            Self::Node => "node",
        }
    }

    fn claimed(self) -> TokenKind {
        match self {
            Self::Access => TokenKind::Access,
            Self::Refresh => TokenKind::Refresh,
            Self::ApiKey => TokenKind::ApiKey,
            Self::Node => TokenKind::Node,
        }
    }
}

/// A token that was issued for us and is in its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The user's token version when we issued it; another service knows of none.
    pub version: Option<i64>,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// Issues and verifies tokens.
pub(crate) struct Tokens {
    config: JwtConfig,
    key_id: String,
    /// What tokens may be signed with, by the `kid` that says so.
    keys: Vec<(String, DecodingKey)>,
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
        let known = std::iter::once(&config.secret).chain(&config.previous);
        let keys = known.map(|secret| secret.expose_secret().as_bytes());
        let keys = keys.map(|secret| (key_id(secret), DecodingKey::from_secret(secret))).collect();
        let signing_key = EncodingKey::from_secret(config.secret.expose_secret().as_bytes());
        Self { key_id: config.key_id(), config, keys, signing_key, validation }
    }

    /// A token that says this of itself, issued now.
    pub(crate) fn issue(
        &self,
        token: &Token,
        wallet: Option<&str>,
        now: Timestamp,
    ) -> Result<SecretString, AuthError> {
        let claims = Claims {
            sub: token.owner.to_string(),
            wallet: wallet.map(str::to_owned),
            typ: token.kind.claimed(),
            iat: seconds(now),
            exp: seconds(token.expires_at),
            jti: token.id.clone(),
            iss: self.config.issuer.clone(),
            aud: self.config.audience.clone(),
            nbf: None,
            sid: token.session,
            key: token.key.clone(),
            ver: token.version,
        };
        self.encode(&claims)
    }

    /// What the identity service is asked with about this account, and nothing else.
    pub(crate) fn service_token(&self, account: OwnerId, now: Timestamp) -> Result<SecretString, AuthError> {
        let kind = TokenKind::Service;
        self.encode(&Claims {
            sub: account.to_string(),
            wallet: None,
            typ: kind,
            iat: seconds(now),
            exp: seconds(now.plus(kind.lifetime())),
            jti: Uuid::new_v4().to_string(),
            iss: self.config.issuer.clone(),
            aud: IDENTITY_AUDIENCE.to_owned(),
            nbf: None,
            sid: None,
            key: None,
            ver: None,
        })
    }

    fn encode(&self, claims: &Claims) -> Result<SecretString, AuthError> {
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::HS256) };
        let text = encode(&header, claims, &self.signing_key).map_err(|_| AuthError::internal())?;
        Ok(text.into())
    }

    /// What a token of one of these kinds says. Whether it still holds is for the caller to find out.
    pub(crate) fn verify(&self, token: &str, now: Timestamp, kinds: &[Kind]) -> Result<Token, AuthError> {
        let claimed: Vec<TokenKind> = kinds.iter().map(|kind| kind.claimed()).collect();
        let claims = self.open(token, &claimed, now)?;
        let kind = kinds.iter().copied().find(|kind| kind.claimed() == claims.typ).ok_or_else(malformed)?;
        Ok(Token {
            owner: claims.sub.parse().map_err(|_| malformed())?,
            kind,
            expires_at: end(&claims),
            id: claims.jti,
            session: claims.sid,
            key: claims.key,
            version: claims.ver,
        })
    }

    /// The claims of a token of one of these kinds, if it is one of ours and in its time.
    fn open(&self, token: &str, kinds: &[TokenKind], now: Timestamp) -> Result<Claims, AuthError> {
        if token.is_empty() || token.len() > TOKEN_MAX {
            return Err(AuthError::bad_token("there is no token, or it is too long; log in again"));
        }
        let header = decode_header(token).map_err(|_| malformed())?;
        let key = self.keys.iter().find(|(id, _)| header.kid.as_ref() == Some(id));
        let Some((_, key)) = key.filter(|_| header.alg == Algorithm::HS256) else { return Err(malformed()) };
        let claims = decode::<Claims>(token, key, &self.validation).map_err(|_| malformed())?.claims;
        // Said again, because the library skips claims that it does not find.
        let wanted = Wanted { issuer: &self.config.issuer, audience: &self.config.audience, kinds };
        claims.check(&wanted, now).map_err(|error| AuthError::bad_token(error.to_string()))?;
        Ok(claims)
    }
}

fn malformed() -> AuthError {
    AuthError::bad_token("the token is not one of ours; log in again")
}

fn end(claims: &Claims) -> Timestamp {
    Timestamp::from_unix_millis(i64::try_from(claims.exp).unwrap_or(i64::MAX).saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_signed_with_the_secret_before_holds_and_no_more_is() {
        let tokens = |secret: &str, previous: Option<&str>| {
            let (issuer, audience) = ("cyxcloud".to_owned(), "cyxcloud".to_owned());
            let (secret, previous) =
                (secret.repeat(32).into(), previous.map(|secret| secret.repeat(32).into()));
            Tokens::new(JwtConfig { secret, previous, issuer, audience })
        };
        let now = Timestamp::from_unix_millis(1_800_000_000_000);
        let token = Token {
            owner: OwnerId::from_random([7; 16]),
            kind: Kind::Access,
            id: "id".to_owned(),
            session: None,
            key: None,
            version: None,
            expires_at: now.plus(std::time::Duration::from_secs(60)),
        };
        let issued = |by: &Tokens| by.issue(&token, None, now).expect("signs");
        let holds = |at: &Tokens, issued: &SecretString| {
            at.verify(issued.expose_secret(), now, &[Kind::Access]).is_ok()
        };
        let (old, both, new) = (tokens("o", None), tokens("n", Some("o")), tokens("n", None));
        assert!(holds(&both, &issued(&old)) && holds(&both, &issued(&both)) && holds(&new, &issued(&both)));
        assert!(!holds(&old, &issued(&both)) && !holds(&new, &issued(&old)));
        assert!(holds(&tokens("o", Some("n")), &issued(&both)), "before all have it");
    }

    #[test]
    fn what_the_identity_service_is_asked_with_opens_nothing_here() {
        let (issuer, audience) = ("cyxcloud".to_owned(), "cyxcloud".to_owned());
        let secret = "0123456789abcdef0123456789abcdef".into();
        let ours = Tokens::new(JwtConfig { secret, previous: None, issuer, audience });
        let now = Timestamp::from_unix_millis(1_800_000_000_000);
        let token = ours.service_token(OwnerId::from_random([7; 16]), now).expect("signs");
        for kind in [Kind::Access, Kind::ApiKey, Kind::Refresh, Kind::Node] {
            assert!(ours.verify(token.expose_secret(), now, &[kind]).is_err(), "{kind:?}");
        }
    }
}
