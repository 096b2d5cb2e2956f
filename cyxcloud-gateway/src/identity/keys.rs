//! API keys: a token and an S3 access key in one, made and revoked.
//!
//! A key never allows more than what it was made with: fewer or the same buckets, prefixes and rights, no longer life
//! (it ends with the key that made it, by time or by being revoked), the same owner. Its secret is shown once and kept wrapped.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cyxcloud_core::claims::TokenKind;
use cyxcloud_core::{OwnerId, Timestamp};
use cyxcloud_metadata::identity::model::ApiKey;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{Identity, Refusal};
use crate::auth::{Principal, Token, access_key_context, now};
use crate::limits::Limits;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Longest life of a key, and what it gets where nothing is said.
const DAYS_MAX: u32 = 365;
/// Keys in use that an owner made itself.
const KEYS_MAX: u32 = 100;
/// Keys in use that come of each of those: who has a key may make others, and takes no room for them from its owner.
const KEYS_OF_KEY_MAX: u32 = 10;
/// Keys listed at most: all that can be in use, and some that were.
const LISTED_MAX: usize = 2000;
const NAME_MAX: usize = 64;
/// Buckets and prefixes of one key, each.
const NAMED_MAX: usize = 100;
const PREFIX_MAX: usize = 1024;

/// A key as it is asked for.
#[derive(Clone, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WantedKey {
    /// What its owner calls it.
    pub name: String,
    /// 1 to 365; 365 where nothing is said.
    pub expires_in_days: Option<u32>,
    /// Only these buckets.
    pub buckets: Option<Vec<String>>,
    /// Only keys that begin with one of these.
    pub prefixes: Option<Vec<String>>,
    /// Changes nothing.
    pub read_only: Option<bool>,
}

/// A key just made, with what is shown once.
#[derive(Debug)]
pub struct MadeKey {
    /// The row.
    pub key: ApiKey,
    /// Its token.
    pub token: SecretString,
    /// Its secret.
    pub secret: SecretString,
}

impl WantedKey {
    fn check(&self) -> Result<(), Refusal> {
        if self.name.trim().is_empty()
            || self.name.len() > NAME_MAX
            || self.name.chars().any(char::is_control)
        {
            return Err(Refusal::Invalid("give the key a name of 1 to 64 printable bytes"));
        }
        if self.expires_in_days.is_some_and(|days| !(1..=DAYS_MAX).contains(&days)) {
            return Err(Refusal::Invalid("expires_in_days lies between 1 and 365"));
        }
        let named = |names: &Option<Vec<String>>| {
            names.as_ref().is_none_or(|names| !names.is_empty() && names.len() <= NAMED_MAX)
        };
        if !named(&self.buckets) || !named(&self.prefixes) {
            return Err(Refusal::Invalid("name 1 to 100 buckets or prefixes, or leave them out for all"));
        }
        let is_bucket = |name: &String| name.parse::<cyxcloud_core::name::BucketName>().is_ok();
        if !self.buckets.iter().flatten().all(is_bucket) {
            return Err(Refusal::Invalid("buckets must hold names of buckets"));
        }
        let is_prefix =
            |prefix: &String| !prefix.is_empty() && prefix.len() <= PREFIX_MAX && !prefix.contains('\0');
        if !self.prefixes.iter().flatten().all(is_prefix) {
            return Err(Refusal::Invalid("prefixes have 1 to 1024 bytes"));
        }
        Ok(())
    }

    /// The limits of a key made with these limits; what is not said is as there. Never more than there.
    fn limits(&self, maker: &Limits) -> Result<Limits, Refusal> {
        let wanted = Limits {
            buckets: self.buckets.clone().or_else(|| maker.buckets.clone()),
            prefixes: self.prefixes.clone().or_else(|| maker.prefixes.clone()),
            read_only: self.read_only.unwrap_or(maker.read_only),
        };
        if wanted.within(maker) {
            Ok(wanted)
        } else {
            Err(Refusal::Exceeds("a key cannot allow more than the one it is made with"))
        }
    }
}

impl Identity {
    /// Makes a key for the caller, within the caller's own limits and life.
    pub async fn create_key(
        &self,
        caller: &Principal,
        wanted: WantedKey,
        from: IpAddr,
    ) -> Result<MadeKey, Refusal> {
        wanted.check()?;
        let limits = wanted.limits(&caller.limits.as_deref().cloned().unwrap_or_default())?;
        let now = now();
        let mut expires_at = now.plus(DAY * wanted.expires_in_days.unwrap_or(DAYS_MAX));
        if let Some(key) = &caller.access_key
            && let Some(end) = self.auth.access_key_expiry(key).await?
        {
            if wanted.expires_in_days.is_some() && expires_at > end {
                return Err(Refusal::Exceeds("a key cannot live longer than the one it is made with"));
            }
            expires_at = expires_at.min(end);
        }
        let id = new_id();
        let secret: SecretString = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 30]>()).into();
        let wrapped_secret =
            self.master.wrap(&access_key_context(&id), secret.expose_secret().as_bytes(), rand::random());
        let key = ApiKey {
            id: id.clone(),
            owner: caller.owner,
            name: wanted.name,
            wrapped_secret,
            buckets: limits.buckets,
            prefixes: limits.prefixes,
            read_only: limits.read_only,
            expires_at: Some(expires_at),
            made_by: caller.access_key.clone().filter(|id| !self.auth.is_root_key(id)),
            created_at: Timestamp::default(),
            last_used_at: None,
            revoked_at: None,
        };
        let person = self.metadata.person(caller.owner).await?.ok_or(Refusal::Unavailable)?;
        let token = Token {
            owner: caller.owner,
            kind: TokenKind::ApiKey,
            id: id.clone(),
            session: None,
            key: Some(id.clone()),
            version: Some(person.token_version),
            issued_at: now,
            expires_at,
        };
        let token = self.auth.issue(&token, person.owner.wallet_address.as_deref(), now)?;
        let most = if key.made_by.is_some() { KEYS_OF_KEY_MAX } else { KEYS_MAX };
        let key = self.metadata.create_api_key(&key, most).await?;
        self.audit(Some(caller.owner), &actor(caller), "api-key.create", &id, from, "ok").await;
        Ok(MadeKey { key, token, secret })
    }

    /// The owner's keys, newest first: those in use, then those revoked or expired.
    pub async fn keys(&self, owner: OwnerId) -> Result<Vec<ApiKey>, Refusal> {
        Ok(self.metadata.api_keys(owner, LISTED_MAX).await?)
    }

    /// Revokes the caller's key and those that were made with it; false if there is none of this id.
    pub async fn revoke_key(&self, caller: &Principal, id: &str, from: IpAddr) -> Result<bool, Refusal> {
        let revoked = self.metadata.revoke_api_key(caller.owner, id).await?;
        if revoked {
            self.changed().await;
            self.audit(Some(caller.owner), &actor(caller), "api-key.revoke", id, from, "ok").await;
        }
        Ok(revoked)
    }
}

/// Who acts: the user, and by which key.
pub(crate) fn actor(caller: &Principal) -> String {
    match &caller.access_key {
        Some(key) => format!("{} by key {key}", caller.owner),
        None => caller.owner.to_string(),
    }
}

/// An id such as S3 clients know them: 20 capital letters and digits.
fn new_id() -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let random: [u8; 17] = rand::random();
    let digits = random.iter().map(|byte| char::from(DIGITS[usize::from(byte % 32)]));
    "CYX".chars().chain(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adv_16_what_is_not_said_is_as_in_the_key_it_is_made_with() {
        let maker =
            Limits { buckets: Some(vec!["one".into()]), prefixes: Some(vec!["a/".into()]), read_only: true };
        let wanted = |buckets: Option<&str>, prefix: Option<&str>, read_only| WantedKey {
            name: "x".into(),
            expires_in_days: None,
            buckets: buckets.map(|name| vec![name.into()]),
            prefixes: prefix.map(|prefix| vec![prefix.into()]),
            read_only,
        };
        assert_eq!(wanted(None, None, None).limits(&maker).expect("the same"), maker);
        assert!(wanted(Some("one"), Some("a/b"), Some(true)).limits(&maker).is_ok());
        for more in [
            wanted(Some("two"), None, None),
            wanted(None, Some("b"), None),
            wanted(None, Some("a"), None),
            wanted(None, None, Some(false)),
        ] {
            assert!(matches!(more.limits(&maker), Err(Refusal::Exceeds(_))), "{more:?}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let good = WantedKey { name: "x".into(), ..WantedKey::default() };
        assert!(good.check().is_ok());
        for bad in [
            WantedKey { name: " ".into(), ..good.clone() },
            WantedKey { name: "x".repeat(65), ..good.clone() },
            WantedKey { expires_in_days: Some(0), ..good.clone() },
            WantedKey { expires_in_days: Some(366), ..good.clone() },
            WantedKey { buckets: Some(vec![]), ..good.clone() },
            WantedKey { buckets: Some(vec!["No Bucket".into()]), ..good.clone() },
            WantedKey { prefixes: Some(vec![String::new()]), ..good.clone() },
        ] {
            assert!(matches!(bad.check(), Err(Refusal::Invalid(_))), "{bad:?}");
        }
    }
}
