//! Tokens of this gateway and those that it takes, issued and verified.
//!
//! Not here: how they are signed (`core::claims`), whether a token was revoked, and whether its user may still do anything
//! ([`super::keys`]).

use cyxcloud_core::claims::{Claims, ClaimsError, IDENTITY_AUDIENCE, Signer, TokenKind, Wanted, key_id};
use cyxcloud_core::{OwnerId, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
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

/// A token that was issued for us and is in its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Whose.
    pub owner: OwnerId,
    /// What it is for. Of a node's, `owner` is the node's id.
    pub kind: TokenKind,
    /// Its id.
    pub id: String,
    /// The session that it came from, if we issued it.
    pub session: Option<Uuid>,
    /// The access key that it is the other face of.
    pub key: Option<String>,
    /// The user's token version when we issued it; another service knows of none.
    pub version: Option<i64>,
    /// When it was issued. Tickets of gateways of before do not say so.
    #[serde(default)]
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// Issues and verifies tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    config: JwtConfig,
    signer: Signer,
}

fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.unix_millis() / 1000).unwrap_or(0)
}

impl Tokens {
    pub(crate) fn new(config: JwtConfig) -> Self {
        let previous = config.previous.as_ref().map(|secret| secret.expose_secret().as_bytes());
        let signer = Signer::new(config.secret.expose_secret().as_bytes(), previous);
        Self { config, signer }
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
            typ: token.kind,
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
        self.sign(&claims)
    }

    /// What the identity service is asked with about this account, and nothing else.
    pub(crate) fn service_token(&self, account: OwnerId, now: Timestamp) -> Result<SecretString, AuthError> {
        let kind = TokenKind::Service;
        self.sign(&Claims {
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

    fn sign(&self, claims: &Claims) -> Result<SecretString, AuthError> {
        self.signer.sign(claims).map(SecretString::from).map_err(|_| AuthError::internal())
    }

    /// What a token of one of these kinds says. Whether it still holds is for the caller to find out.
    pub(crate) fn verify(
        &self,
        token: &str,
        now: Timestamp,
        kinds: &[TokenKind],
    ) -> Result<Token, AuthError> {
        let wanted = Wanted { issuer: &self.config.issuer, audience: &self.config.audience, kinds };
        let claims = self.signer.open(token, &wanted, now).map_err(refused)?;
        Ok(Token {
            owner: claims.sub.parse().map_err(|_| refused(ClaimsError::NotOurs))?,
            kind: claims.typ,
            issued_at: at(claims.iat),
            expires_at: at(claims.exp),
            id: claims.jti,
            session: claims.sid,
            key: claims.key,
            version: claims.ver,
        })
    }
}

fn refused(error: ClaimsError) -> AuthError {
    AuthError::bad_token(error.to_string())
}

fn at(secs: u64) -> Timestamp {
    Timestamp::from_unix_millis(i64::try_from(secs).unwrap_or(i64::MAX).saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_issued_is_what_is_verified() {
        let (issuer, audience) = ("cyxcloud".to_owned(), "cyxcloud".to_owned());
        let secret = "0123456789abcdef0123456789abcdef".into();
        let ours = Tokens::new(JwtConfig { secret, previous: None, issuer, audience });
        let now = Timestamp::from_unix_millis(1_800_000_000_000);
        let token = Token {
            owner: OwnerId::from_random([7; 16]),
            kind: TokenKind::Access,
            id: "id".to_owned(),
            session: None,
            key: None,
            version: None,
            issued_at: now,
            expires_at: now.plus(std::time::Duration::from_secs(60)),
        };
        let issued = ours.issue(&token, None, now).expect("signs");
        assert_eq!(ours.verify(issued.expose_secret(), now, &[TokenKind::Access]).expect("holds"), token);
    }

    #[test]
    fn what_the_identity_service_is_asked_with_opens_nothing_here() {
        let (issuer, audience) = ("cyxcloud".to_owned(), "cyxcloud".to_owned());
        let secret = "0123456789abcdef0123456789abcdef".into();
        let ours = Tokens::new(JwtConfig { secret, previous: None, issuer, audience });
        let now = Timestamp::from_unix_millis(1_800_000_000_000);
        let token = ours.service_token(OwnerId::from_random([7; 16]), now).expect("signs");
        for kind in [TokenKind::Access, TokenKind::ApiKey, TokenKind::Refresh, TokenKind::Node] {
            assert!(ours.verify(token.expose_secret(), now, &[kind]).is_err(), "{kind:?}");
        }
    }
}
