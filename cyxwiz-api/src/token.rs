//! Tokens under the secret that the gateways share, with core's claims.
//!
//! Access tokens are for the gateways' audience and open this service too. Refresh tokens, and what our own servers
//! ask with, are for this service's audience, so that neither opens anything elsewhere.

use cyxcloud_core::claims::{Claims, ClaimsError, IDENTITY_AUDIENCE, SignError, Signer, TokenKind, Wanted};
use cyxcloud_core::{OwnerId, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

/// Issues tokens and takes them apart.
#[derive(Debug)]
pub(crate) struct Tokens {
    signer: Signer,
    issuer: String,
    audience: String,
    access_secs: u64,
}

/// What a pair of tokens follows from: the same seed makes the same pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PairSeed {
    pub(crate) user: OwnerId,
    pub(crate) wallet: Option<String>,
    /// `jti` of the access token.
    pub(crate) access: Uuid,
    /// `jti` of the refresh token.
    pub(crate) refresh: Uuid,
    /// `iat` of both, in seconds.
    pub(crate) issued_at: u64,
}

/// An access token and the refresh token that renews it.
#[derive(serde::Serialize)]
pub(crate) struct Pair {
    access_token: String,
    refresh_token: String,
    token_type: &'static str,
    expires_in: u64,
}

impl Tokens {
    /// Signs with the secret, for gateways that are called so; access tokens hold for so long. What was signed with the
    /// `previous` secret holds too.
    pub(crate) fn new(
        secret: &SecretString,
        previous: Option<&SecretString>,
        issuer: &str,
        audience: &str,
        access_secs: u64,
    ) -> Self {
        let previous = previous.map(|secret| secret.expose_secret().as_bytes());
        Self {
            signer: Signer::new(secret.expose_secret().as_bytes(), previous),
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            access_secs,
        }
    }

    /// Signs a pair.
    pub(crate) fn pair(&self, seed: &PairSeed) -> Result<Pair, SignError> {
        let sign = |kind: TokenKind, secs: u64, jti: Uuid, audience: &str| {
            self.signer.sign(&Claims {
                sub: seed.user.to_string(),
                wallet: seed.wallet.clone(),
                typ: kind,
                iat: seed.issued_at,
                exp: seed.issued_at.saturating_add(secs),
                jti: jti.to_string(),
                iss: self.issuer.clone(),
                aud: audience.to_owned(),
                nbf: None,
                sid: None,
                key: None,
                ver: None,
            })
        };
        let refresh_secs = TokenKind::Refresh.lifetime().as_secs();
        Ok(Pair {
            access_token: sign(TokenKind::Access, self.access_secs, seed.access, &self.audience)?,
            refresh_token: sign(TokenKind::Refresh, refresh_secs, seed.refresh, IDENTITY_AUDIENCE)?,
            token_type: "Bearer",
            expires_in: self.access_secs,
        })
    }

    /// The claims of a token of this kind, if it is one of ours and holds now.
    pub(crate) fn open(&self, token: &str, kind: TokenKind, now: Timestamp) -> Result<Claims, ClaimsError> {
        let audience = if kind == TokenKind::Access { &self.audience } else { IDENTITY_AUDIENCE };
        self.signer.open(token, &Wanted { issuer: &self.issuer, audience, kinds: &[kind] }, now)
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::claims::TOKEN_MAX;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn tokens(secret: &str) -> Tokens {
        Tokens::new(&SecretString::from(secret), None, "cyxcloud", "cyxcloud", 3_600)
    }

    fn seed() -> PairSeed {
        let (access, refresh) = (Uuid::from_u128(1), Uuid::from_u128(2));
        PairSeed {
            user: OwnerId::from_random([7; 16]),
            wallet: Some("w".into()),
            access,
            refresh,
            issued_at: NOW,
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_unix_millis(NOW as i64 * 1000)
    }

    #[test]
    fn each_token_opens_its_own_door() {
        let ours = tokens("0123456789abcdef0123456789abcdef");
        let pair = ours.pair(&seed()).expect("signs");
        let claims = ours.open(&pair.access_token, TokenKind::Access, now()).expect("opens");
        assert_eq!((claims.sub, claims.wallet), (seed().user.to_string(), Some("w".to_owned())));
        assert_eq!(claims.exp - claims.iat, 3_600);
        let claims = ours.open(&pair.refresh_token, TokenKind::Refresh, now()).expect("opens");
        assert_eq!(claims.exp - claims.iat, 7 * 86_400);
        assert!(ours.open(&pair.refresh_token, TokenKind::Access, now()).is_err());
        assert!(ours.open(&pair.access_token, TokenKind::Refresh, now()).is_err());
        assert!(ours.open(&pair.access_token, TokenKind::Service, now()).is_err());
        let others = tokens("fedcba9876543210fedcba9876543210");
        assert!(others.open(&pair.access_token, TokenKind::Access, now()).is_err());
        for junk in ["", "a.b.c", &"x".repeat(TOKEN_MAX + 1)] {
            assert!(ours.open(junk, TokenKind::Access, now()).is_err());
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_pair() {
        let ours = tokens("0123456789abcdef0123456789abcdef");
        let (first, second) = (ours.pair(&seed()).expect("signs"), ours.pair(&seed()).expect("signs"));
        assert_eq!(first.access_token, second.access_token);
        assert_eq!(first.refresh_token, second.refresh_token);
    }
}
