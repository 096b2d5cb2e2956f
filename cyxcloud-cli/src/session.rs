//! A log-in that renews itself: a little before its access token ends, or when a server refuses it.
//!
//! Several programs may share the config file. Whoever holds its lock renews; the others find the new tokens in the
//! file. What came back is written before it is used, so that no refresh token is lost that the server has given.

use std::path::PathBuf;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::client::{Client, Error};
use crate::config::{Saved, Token};
use crate::config_file;

/// An access token that ends within this time is renewed before it is used.
const EARLY: TimeDelta = TimeDelta::seconds(60);

/// Tokens as both servers answer them.
#[derive(Deserialize)]
pub(crate) struct Issued {
    access_token: String,
    refresh_token: Option<String>,
    expires_in: i64,
}

impl Issued {
    /// As the config file keeps them; a refresh token that was not replaced stays.
    pub(crate) fn saved(self, before: Option<&Saved>, now: DateTime<Utc>) -> Saved {
        let kept = before.and_then(|before| before.refresh_token.clone());
        Saved {
            access_token: Token(self.access_token),
            refresh_token: self.refresh_token.map(Token).or(kept),
            expires_at: Some(now + TimeDelta::seconds(self.expires_in.clamp(0, 400 * 86_400))),
            wallet_address: before.and_then(|before| before.wallet_address.clone()),
            gateway: before.and_then(|before| before.gateway.clone()),
            api_url: before.and_then(|before| before.api_url.clone()),
        }
    }
}

/// The session of the config file.
#[derive(Debug)]
pub(crate) struct Session {
    /// Who gave the tokens and renews them; asked without any.
    issuer: Client,
    path: PathBuf,
    current: Mutex<Saved>,
}

impl Session {
    pub(crate) fn new(issuer: Client, path: PathBuf, saved: Saved) -> Self {
        Self { issuer, path, current: Mutex::new(saved) }
    }

    /// A token to send.
    pub(crate) async fn token(&self) -> Result<String, Error> {
        let mut current = self.current.lock().await;
        if ends_soon(&current, Utc::now()) && current.refresh_token.is_some() {
            self.renew(&mut current).await?;
        }
        Ok(current.access_token.0.clone())
    }

    /// Another token in place of one that was refused.
    pub(crate) async fn instead_of(&self, refused: &str) -> Result<String, Error> {
        let mut current = self.current.lock().await;
        if current.access_token.0 == refused {
            self.renew(&mut current).await?;
        }
        Ok(current.access_token.0.clone())
    }

    async fn renew(&self, current: &mut Saved) -> Result<(), Error> {
        let unusable = |error: crate::config::Error| Error::Session(error.to_string());
        let _lock = config_file::lock(&self.path).await.map_err(unusable)?;
        // Another program may have renewed it, or logged out, or logged in as somebody else or elsewhere.
        let kept = config_file::session(&self.path).map_err(unusable)?;
        let kept = kept.ok_or_else(|| Error::LoggedOut("somebody logged out meanwhile".to_owned()))?;
        if kept.gateway != current.gateway
            || kept.api_url != current.api_url
            || kept.wallet_address != current.wallet_address
        {
            return Err(Error::LoggedOut("somebody else logged in meanwhile".to_owned()));
        }
        let renewed = kept.access_token != current.access_token;
        *current = kept;
        if renewed && !ends_soon(current, Utc::now()) {
            return Ok(());
        }
        let Some(Token(refresh)) = &current.refresh_token else {
            return Err(Error::LoggedOut("the access token is not accepted any more".to_owned()));
        };
        let asked = Utc::now();
        let path = if current.api_url.is_some() { "/api/auth/refresh" } else { "/api/v1/auth/refresh" };
        let issued: Issued = match self.issuer.post_json(path, Some(refresh), None).await {
            Ok(issued) => issued,
            Err(Error::Refused { status: 401 | 403, message, .. }) => return Err(Error::LoggedOut(message)),
            Err(error) => return Err(error),
        };
        let next = issued.saved(Some(current), asked);
        config_file::save(&self.path, Some(&next)).map_err(unusable)?;
        *current = next;
        Ok(())
    }
}

fn ends_soon(saved: &Saved, now: DateTime<Utc>) -> bool {
    saved.expires_at.is_some_and(|at| at <= now + EARLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_replaced_stays() {
        let now = "2030-01-01T00:00:00Z".parse().expect("a time");
        let issued: Issued =
            serde_json::from_str(r#"{"access_token": "a", "expires_in": 3600}"#).expect("an answer");
        let before = Saved {
            access_token: Token("old".into()),
            refresh_token: Some(Token("r".into())),
            expires_at: None,
            wallet_address: Some("W".into()),
            gateway: Some("http://h".parse().expect("a URL")),
            api_url: None,
        };
        let saved = issued.saved(Some(&before), now);
        assert_eq!(saved.access_token, Token("a".into()));
        assert_eq!(
            (saved.refresh_token, saved.wallet_address, saved.gateway),
            (before.refresh_token, before.wallet_address, before.gateway)
        );
        assert_eq!(saved.expires_at.map(|at| at.to_rfc3339()), Some("2030-01-01T01:00:00+00:00".to_owned()));
    }

    #[test]
    fn tokens_are_renewed_before_they_end() {
        let saved = |secs: i64| Saved { expires_at: DateTime::from_timestamp(secs, 0), ..Saved::default() };
        let now = DateTime::from_timestamp(1_000, 0).expect("a time");
        assert!(ends_soon(&saved(999), now) && ends_soon(&saved(1_060), now));
        assert!(!ends_soon(&saved(1_061), now) && !ends_soon(&Saved::default(), now));
    }
}
