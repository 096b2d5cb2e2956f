//! Signs claims and opens what was signed: HS256 and nothing else, by the key that `kid` names.
//!
//! The algorithm is pinned here and never taken from a token.

use std::fmt;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};

use super::{Claims, ClaimsError, TOKEN_MAX, Wanted, key_id};
use crate::Timestamp;

/// No token could be made of the claims.
#[derive(Debug, thiserror::Error)]
#[error("the token cannot be signed")]
pub struct SignError(#[source] jsonwebtoken::errors::Error);

/// Signs under one secret, and opens what was signed under that or the one before.
pub struct Signer {
    key_id: String,
    signs: EncodingKey,
    /// By the `kid` that says so.
    opens: Vec<(String, DecodingKey)>,
    validation: Validation,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl Signer {
    /// What is signed with the `previous` secret holds too, and no more is: what was the secret before, or will be when all
    /// have it.
    pub fn new(secret: &[u8], previous: Option<&[u8]>) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // Names and times are judged by `Claims::check`, with strict types and the caller's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let known = std::iter::once(secret).chain(previous);
        Self {
            key_id: key_id(secret),
            signs: EncodingKey::from_secret(secret),
            opens: known.map(|secret| (key_id(secret), DecodingKey::from_secret(secret))).collect(),
            validation,
        }
    }

    /// A token that says this.
    pub fn sign(&self, claims: &Claims) -> Result<String, SignError> {
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::HS256) };
        encode(&header, claims, &self.signs).map_err(SignError)
    }

    /// What a token says that is one of ours, opens this door, and holds now. Whether it was revoked is for others to say.
    pub fn open(&self, token: &str, wanted: &Wanted<'_>, now: Timestamp) -> Result<Claims, ClaimsError> {
        if token.is_empty() || token.len() > TOKEN_MAX {
            return Err(ClaimsError::NotOurs);
        }
        let header = decode_header(token).map_err(|_| ClaimsError::NotOurs)?;
        let key = self.opens.iter().find(|(id, _)| header.kid.as_ref() == Some(id));
        let Some((_, key)) = key.filter(|_| header.alg == Algorithm::HS256) else {
            return Err(ClaimsError::NotOurs);
        };
        let claims = decode::<Claims>(token, key, &self.validation).map_err(|_| ClaimsError::NotOurs)?.claims;
        claims.check(wanted, now)?;
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::super::TokenKind;
    use super::*;

    const NOW: i64 = 1_800_000_000;
    const DOOR: Wanted<'_> = Wanted { issuer: "us", audience: "ours", kinds: &[TokenKind::Access] };

    fn claims() -> Claims {
        let [sub, jti, iss, aud] = ["user", "1", "us", "ours"].map(str::to_owned);
        let (iat, exp) = (NOW as u64, NOW as u64 + 60);
        let (wallet, nbf, sid, key, ver) = (None, None, None, None, None);
        Claims { sub, wallet, typ: TokenKind::Access, iat, exp, jti, iss, aud, nbf, sid, key, ver }
    }

    fn opens(signer: &Signer, token: &str) -> Result<Claims, ClaimsError> {
        signer.open(token, &DOOR, Timestamp::from_unix_millis(NOW * 1000))
    }

    #[test]
    fn what_was_signed_with_the_secret_before_holds_and_no_more_is() {
        let signer = |secret: u8, previous: Option<u8>| {
            let previous = previous.map(|secret| [secret; 32]);
            Signer::new(&[secret; 32], previous.as_ref().map(<[u8; 32]>::as_slice))
        };
        let (old, both, new) = (signer(1, None), signer(2, Some(1)), signer(2, None));
        let by = |signer: &Signer| signer.sign(&claims()).expect("signs");
        assert_eq!(opens(&both, &by(&old)), Ok(claims()));
        assert!(opens(&both, &by(&both)).is_ok() && opens(&new, &by(&both)).is_ok());
        assert!(opens(&old, &by(&both)).is_err() && opens(&new, &by(&old)).is_err());
        assert!(opens(&signer(1, Some(2)), &by(&both)).is_ok(), "before all have it");
    }

    #[test]
    fn adv_21_no_other_algorithm_key_or_door() {
        let signer = Signer::new(&[1; 32], None);
        let signed = |algorithm, kid: Option<String>| {
            let header = Header { kid, ..Header::new(algorithm) };
            encode(&header, &claims(), &EncodingKey::from_secret(&[1; 32])).expect("signs")
        };
        let kid = || Some(key_id(&[1; 32]));
        assert!(opens(&signer, &signed(Algorithm::HS256, kid())).is_ok());
        assert_eq!(opens(&signer, &signed(Algorithm::HS512, kid())), Err(ClaimsError::NotOurs));
        assert_eq!(opens(&signer, &signed(Algorithm::HS256, None)), Err(ClaimsError::NotOurs));
        assert_eq!(
            opens(&signer, &signed(Algorithm::HS256, Some("other".to_owned()))),
            Err(ClaimsError::NotOurs)
        );
        for junk in ["", "a.b.c", &"x".repeat(TOKEN_MAX + 1)] {
            assert_eq!(opens(&signer, junk), Err(ClaimsError::NotOurs));
        }
        let others = Claims { aud: "theirs".to_owned(), ..claims() };
        assert_eq!(opens(&signer, &signer.sign(&others).expect("signs")), Err(ClaimsError::NotOurs));
    }
}
