//! What tokens say: what the gateway and the identity service must agree on.
//!
//! Pure: whoever signs or verifies brings the secret and a `now`. [`Signer`] looks at the signature first, and
//! [`Claims::check`] judges what a right one stands under. Not here: revocation, which secrets may sign (`secret`).

mod signer;

use std::time::Duration;

use aws_lc_rs::hmac;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::Timestamp;

pub use signer::{SignError, Signer};

/// Clocks may differ by this many seconds.
pub const LEEWAY_SECS: u64 = 60;
/// Longest token looked at, in bytes.
pub const TOKEN_MAX: usize = 8 << 10;
/// For this long a refresh token that was used gets the same answer again; after that its use revokes its family.
pub const REFRESH_GRACE: Duration = Duration::from_secs(60);
/// `aud` of tokens that open nothing but the identity service.
pub const IDENTITY_AUDIENCE: &str = "cyxwiz-api";

/// What a token is for; claim `typ`. Every door names the kinds that open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Calls in a person's name.
    Access,
    /// A new access token, and nothing else.
    Refresh,
    /// A storage node's calls.
    Node,
    /// A program's calls in a person's name.
    ApiKey,
    /// One question of one of our servers to another, about the user that `sub` names.
    Service,
}

impl TokenKind {
    /// How long one holds: section 8.2 of the specification.
    pub const fn lifetime(self) -> Duration {
        const HOUR: u64 = 3_600;
        Duration::from_secs(match self {
            Self::Access => HOUR,
            Self::Refresh => 7 * 24 * HOUR,
            Self::Node => 24 * HOUR,
            Self::ApiKey => 365 * 24 * HOUR,
            Self::Service => 60,
        })
    }
}

/// Claims of section 8.3 of the specification, and `iss`, `aud`, `nbf`. A claim of another type is refused, and so is
/// one that is `null`, but for `wallet`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The user's id.
    pub sub: String,
    /// The user's proven wallet address, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wallet: Option<String>,
    /// What the token is for.
    pub typ: TokenKind,
    /// Issued at, in seconds.
    pub iat: u64,
    /// Ends at, in seconds.
    pub exp: u64,
    /// The token's own id.
    pub jti: String,
    /// Who issued it.
    pub iss: String,
    /// Whom it is for.
    pub aud: String,
    /// Begins at, in seconds; otherwise at `iat`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub nbf: Option<u64>,
    /// The session that it came from, if a gateway issued it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub sid: Option<Uuid>,
    /// The access key that it is the other face of.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub key: Option<String>,
    /// The user's token version when a gateway issued it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub ver: Option<i64>,
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// What a door takes.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// `iss` that tokens must carry.
    pub issuer: &'a str,
    /// `aud` that tokens must carry.
    pub audience: &'a str,
    /// Kinds that open the door.
    pub kinds: &'a [TokenKind],
}

/// Why claims under a right signature open nothing. Each says what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// Issued by or for somebody else, or without an id.
    #[error("the token is not one of ours; log in again")]
    NotOurs,
    /// Over.
    #[error("the token has expired; log in again")]
    Expired,
    /// Begins later, or ends before it begins.
    #[error("the token is not valid yet; check the clocks")]
    NotYet,
    /// Good for another door.
    #[error("a token of this kind opens nothing here; use an access token")]
    Kind,
}

impl Claims {
    /// Whether they open the door, now.
    pub fn check(&self, wanted: &Wanted<'_>, now: Timestamp) -> Result<(), ClaimsError> {
        if self.iss != wanted.issuer || self.aud != wanted.audience || self.jti.is_empty() {
            return Err(ClaimsError::NotOurs);
        }
        let now = u64::try_from(now.unix_millis() / 1000).unwrap_or(0);
        if now >= self.exp.saturating_add(LEEWAY_SECS) {
            return Err(ClaimsError::Expired);
        }
        let begins = self.nbf.unwrap_or(0).max(self.iat);
        if begins > now.saturating_add(LEEWAY_SECS) || self.iat >= self.exp {
            return Err(ClaimsError::NotYet);
        }
        if wanted.kinds.contains(&self.typ) { Ok(()) } else { Err(ClaimsError::Kind) }
    }
}

/// The `kid` that tokens signed with this secret carry in their header: it follows from the secret, so that the
/// services agree without being told, and tells nothing about it.
pub fn key_id(secret: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hex::encode(&hmac::sign(&key, b"cyxcloud/jwt/kid/v1").as_ref()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_703_808_000;
    const DOOR: Wanted<'_> =
        Wanted { issuer: "us", audience: "ours", kinds: &[TokenKind::Access, TokenKind::ApiKey] };

    fn claims() -> Claims {
        let text = |text: &str| text.to_owned();
        let (sub, jti, iss, aud) = (text("user"), text("1"), text("us"), text("ours"));
        let exp = NOW + TokenKind::Access.lifetime().as_secs();
        let (wallet, nbf, sid, key, ver) = (None, None, None, None, None);
        Claims { sub, wallet, typ: TokenKind::Access, iat: NOW, exp, jti, iss, aud, nbf, sid, key, ver }
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_unix_millis(i64::try_from(secs * 1000).expect("small"))
    }

    #[test]
    fn claims_open_their_door_in_their_time() {
        let claims = claims();
        let end = claims.exp + LEEWAY_SECS;
        for (secs, verdict) in [
            (NOW, Ok(())),
            (NOW - LEEWAY_SECS, Ok(())),
            (NOW - LEEWAY_SECS - 1, Err(ClaimsError::NotYet)),
            (end - 1, Ok(())),
            (end, Err(ClaimsError::Expired)),
        ] {
            assert_eq!(claims.check(&DOOR, at(secs)), verdict, "{secs}");
        }
        let later = Claims { nbf: Some(NOW + 100), ..claims.clone() };
        assert_eq!(later.check(&DOOR, at(NOW)), Err(ClaimsError::NotYet));
        let backwards = Claims { iat: claims.exp, ..claims };
        assert_eq!(backwards.check(&DOOR, at(NOW + 3_600)), Err(ClaimsError::NotYet));
    }

    #[test]
    fn claims_open_no_other_door() {
        let other = |change: fn(&mut Claims)| {
            let mut claims = claims();
            change(&mut claims);
            claims.check(&DOOR, at(NOW))
        };
        assert_eq!(other(|claims| claims.iss.clear()), Err(ClaimsError::NotOurs));
        assert_eq!(other(|claims| claims.aud.push('x')), Err(ClaimsError::NotOurs));
        assert_eq!(other(|claims| claims.jti.clear()), Err(ClaimsError::NotOurs));
        assert_eq!(other(|claims| claims.typ = TokenKind::ApiKey), Ok(()));
        for kind in [TokenKind::Refresh, TokenKind::Node, TokenKind::Service] {
            assert_eq!(Claims { typ: kind, ..claims() }.check(&DOOR, at(NOW)), Err(ClaimsError::Kind));
        }
    }

    #[test]
    fn key_ids_follow_from_the_secret() {
        let secret = [b'x'; 32];
        assert_eq!(key_id(&secret), key_id(&secret));
        assert_eq!(key_id(&secret).len(), 16);
        assert_ne!(key_id(&secret), key_id(&[b'y'; 32]));
    }
}
