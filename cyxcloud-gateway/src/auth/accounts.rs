//! What the identity service says of its accounts: how much they may store, whether they may do anything, which of their
//! tokens hold no more.
//!
//! An answer is believed for as long as the configuration says. Where the service does not answer, what it said last
//! holds, here and in the metadata store, and for who was never asked about, the configured default; and it is left
//! alone for a moment, so that nobody's request waits for it again and again.
//!
//! Which tokens it has ended is kept nowhere but here, so that after a start the first request of each account waits for
//! an answer. While there is none, a token that it has ended opens until it expires.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cyxcloud_core::OwnerId;
use cyxwiz_client::{Account, Client, Error};
use moka::future::Cache;
use tracing::warn;

use super::jwt::{JwtConfig, Tokens};
use super::now;

/// After a failure the service is not asked for so long.
const QUIET: Duration = Duration::from_secs(10);
/// Accounts remembered at most.
const REMEMBERED_MAX: u64 = 10_000;

/// What is known of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// The service said so, now or the last time that it said anything.
    Account(Account),
    /// The service knows no such account: the user is somebody else's.
    Nobody,
    /// It never said anything.
    Nothing,
}

impl From<Option<Account>> for Known {
    fn from(answer: Option<Account>) -> Self {
        answer.map_or(Self::Nobody, Self::Account)
    }
}

/// Asks the identity service.
#[derive(Debug)]
pub(crate) struct Accounts {
    client: Client,
    tokens: Tokens,
    fresh: Cache<OwnerId, Option<Account>>,
    last: Cache<OwnerId, Option<Account>>,
    quiet_until: Mutex<Option<Instant>>,
}

impl Accounts {
    pub(crate) fn new(client: Client, jwt: JwtConfig, believed: Duration) -> Self {
        Self {
            client,
            tokens: Tokens::new(jwt),
            fresh: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(believed).build(),
            last: Cache::builder().max_capacity(REMEMBERED_MAX).build(),
            quiet_until: Mutex::default(),
        }
    }

    /// Whether an answer is still believed, so that asking again would tell nothing new.
    pub(crate) fn is_fresh(&self, id: OwnerId) -> bool {
        self.fresh.contains_key(&id)
    }

    /// What is known now. Waits for the service, for seconds at most.
    pub(crate) async fn known(&self, id: OwnerId) -> Known {
        if self.is_quiet() {
            return self.remembered(id).await;
        }
        match self.fresh.try_get_with(id, self.ask(id)).await {
            Ok(answer) => {
                self.last.insert(id, answer).await;
                answer.into()
            }
            Err(error) => {
                warn!(
                    error = &*error as &dyn std::error::Error,
                    api = self.client.url(),
                    owner = %id,
                    "the CyxWiz API does not say what an account may store; what it said last holds"
                );
                *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Instant::now() + QUIET);
                self.remembered(id).await
            }
        }
    }

    /// Whether the service said that this account may do nothing, when it last said anything. Waits for nobody.
    pub(crate) async fn said_suspended(&self, id: OwnerId) -> bool {
        matches!(self.remembered(id).await, Known::Account(Account { suspended: true, .. }))
    }

    /// What the service said when it last said anything. Waits for it, as [`Self::known`] does, where that is nothing.
    pub(crate) async fn said(&self, id: OwnerId) -> Known {
        match self.remembered(id).await {
            Known::Nothing => self.known(id).await,
            said => said,
        }
    }

    async fn ask(&self, id: OwnerId) -> Result<Option<Account>, Error> {
        let token =
            self.tokens.service_token(id, now()).map_err(|error| Error::Garbled(error.to_string()))?;
        self.client.account(id, &token).await
    }

    async fn remembered(&self, id: OwnerId) -> Known {
        self.last.get(&id).await.map_or(Known::Nothing, Known::from)
    }

    fn is_quiet(&self) -> bool {
        let until = *self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::{ByteCount, Timestamp};

    use super::*;

    #[tokio::test]
    async fn what_was_said_last_holds_while_nobody_answers() {
        let client = Client::new("http://127.0.0.1:1", "test").expect("an address");
        let text = |text: &str| text.to_owned();
        let jwt = JwtConfig {
            secret: "k".repeat(32).into(),
            previous: None,
            issuer: text("i"),
            audience: text("a"),
        };
        let accounts = Accounts::new(client, jwt, Duration::from_secs(60));
        let (known, unknown) = (OwnerId::from_random([1; 16]), OwnerId::from_random([2; 16]));
        let account =
            Account { storage_quota: Some(ByteCount::mib(1)), suspended: false, tokens_after: None };
        accounts.last.insert(known, Some(account)).await;
        assert_eq!(accounts.known(known).await, Known::Account(account));
        assert!(accounts.is_quiet(), "it is not asked again for each");
        assert_eq!(accounts.known(known).await, Known::Account(account));
        assert_eq!(accounts.known(unknown).await, Known::Nothing);
        assert!(!accounts.is_fresh(known));
        accounts.last.insert(unknown, Some(Account { suspended: true, ..account })).await;
        assert!(accounts.said_suspended(unknown).await && !accounts.said_suspended(known).await);
        let tokens_after = Some(Timestamp::from_unix_millis(5_000));
        accounts.last.insert(known, Some(Account { tokens_after, ..account })).await;
        assert_eq!(accounts.said(known).await, Known::Account(Account { tokens_after, ..account }));
        assert_eq!(accounts.said(OwnerId::from_random([3; 16])).await, Known::Nothing);
    }
}
