//! The operator's account at the CyxWiz API: logs in, lists the machine there, and keeps an access token at hand for
//! registrations at the gateway (specification, sections 4.5 and 15.3).
//!
//! A log-in outlives the process: while its tokens live no other is made. A service that is away is waited for, and so
//! is a right password, and the node serves its chunks all the while. Not here: what the gateway makes of the token.

mod kept;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cyxcloud_core::Timestamp;
use cyxwiz_client::{Client, Error as ApiError, Machine};
use secrecy::SecretString;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{Config, ConfigError};
use crate::service::now;
use kept::{FILE, Kept};

const AGENT: &str = concat!("cyxcloud-node/", env!("CARGO_PKG_VERSION"));
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Wrong passwords are counted over all machines of an account, so a wrong one is not to be tried often.
const REFUSED_RETRY_MIN: Duration = Duration::from_secs(60);
const REFUSED_RETRY_MAX: Duration = Duration::from_secs(900);
/// Between two steps that go well.
const AGAIN_MIN: Duration = Duration::from_millis(100);
/// Time is looked at this often, for clocks are set and machines sleep.
const LOOK: Duration = Duration::from_secs(30);

/// The access token of the moment, if there is one.
pub(crate) type AccessToken = watch::Receiver<Option<SecretString>>;

/// Keeps a log-in.
#[derive(Debug)]
pub(crate) struct Account {
    api: Client,
    dir: PathBuf,
    email: Option<String>,
    password: Option<SecretString>,
    machine: Machine,
    kept: Option<Kept>,
    tokens: watch::Sender<Option<SecretString>>,
}

/// What a log-in needs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing, for so long.
    Wait(Duration),
    /// Its refresh token is due.
    Renew,
    /// There is none, or none that holds.
    LogIn,
}

/// What is due of a log-in of this account.
fn step(kept: Option<&Kept>, api_url: &str, email: Option<&str>, now: Timestamp) -> Step {
    match kept {
        Some(kept) if kept.api_url == api_url && email.is_none_or(|email| email == kept.email) => {
            match kept.renew_at.since(now) {
                due if due.is_zero() => Step::Renew,
                // A clock that was set back must not make a token last for ever.
                due => Step::Wait(due.min(LOOK)),
            }
        }
        _ => Step::LogIn,
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The service says so, or nothing.
    #[error("{0}")]
    Api(#[from] ApiError),
    /// There is nothing to log in with.
    #[error("the log-in has ended and there is nothing to make another with")]
    NoPassword,
    /// Tokens must not be used before they are kept: the one that they replace is used up.
    #[error("the log-in could not be written to {FILE}")]
    Disk(#[source] std::io::Error),
}

impl Account {
    /// The account that the configuration names, if it names one, and where its tokens will be.
    pub(crate) fn open(config: &Config, peer_id: &str) -> Result<Option<(Self, AccessToken)>, ConfigError> {
        let Some(url) = &config.cyxwiz_api_url else { return Ok(None) };
        let api = Client::new(url, AGENT)
            .map_err(|error| ConfigError::Unusable(format!("CYXWIZ_API_URL: {error}")))?;
        let email = config.cyxwiz_email.clone();
        let kept = Kept::read(&config.storage_path);
        let known = step(kept.as_ref(), api.url(), email.as_deref(), now()) != Step::LogIn;
        if !known && (email.is_none() || config.cyxwiz_password.is_none()) {
            return Err(ConfigError::Missing {
                name: "CYXWIZ_EMAIL and CYXWIZ_PASSWORD (or CYXWIZ_PASSWORD_FILE)",
                what: "CYXWIZ_API_URL is set, and nobody has logged in there from this data directory",
            });
        }
        let (tokens, token) = watch::channel(None);
        let region = Some(config.node_region.clone()).filter(|region| !region.is_empty());
        let machine = Machine {
            name: config.node_name.clone(),
            peer_id: peer_id.to_owned(),
            storage_bytes: config.storage_capacity_gb.get(),
            region,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let password = config.cyxwiz_password.clone();
        let dir = config.storage_path.clone();
        Ok(Some((Self { api, dir, email, password, machine, kept, tokens }, token)))
    }

    /// Keeps a token at hand, until it is dropped.
    pub(crate) async fn keep(mut self) {
        self.publish();
        let (mut listed, mut failures) = (false, 0);
        loop {
            let outcome = match step(self.kept.as_ref(), self.api.url(), self.email.as_deref(), now()) {
                Step::Wait(due) if listed => {
                    tokio::time::sleep(due).await;
                    continue;
                }
                Step::Wait(_) => self.list_machine().await.map(|()| listed = true),
                Step::Renew => self.renew().await,
                Step::LogIn => self.log_in().await,
            };
            match outcome {
                // A token is not made twice in an instant, whatever its life is said to be.
                Ok(()) => {
                    failures = 0;
                    tokio::time::sleep(AGAIN_MIN).await;
                }
                Err(error) => {
                    let mut pause = pause(&error, failures).mul_f64(1.0 + rand::random::<f64>() / 2.0);
                    failures += 1;
                    // Whatever else is refused, what is there is renewed in time.
                    if let Step::Wait(due) =
                        step(self.kept.as_ref(), self.api.url(), self.email.as_deref(), now())
                    {
                        pause = pause.min(due);
                    }
                    self.explain(&error, pause);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    fn publish(&self) {
        let token = self.kept.as_ref().filter(|kept| kept.expires_at > now());
        self.tokens.send_replace(token.map(|kept| kept.access_token.clone()));
    }

    async fn log_in(&mut self) -> Result<(), Error> {
        let (Some(email), Some(password)) = (self.email.clone(), &self.password) else {
            return Err(Error::NoPassword);
        };
        let asked = now();
        let tokens = self.api.log_in(&email, password).await?;
        info!(email, api = self.api.url(), "logged in at the CyxWiz API");
        self.take(Kept::new(self.api.url(), &email, tokens, asked))
    }

    async fn renew(&mut self) -> Result<(), Error> {
        let Some(kept) = self.kept.clone() else { return Ok(()) };
        let asked = now();
        match self.api.renew(&kept.refresh_token).await {
            Ok(tokens) => {
                info!(email = kept.email, "renewed the log-in at the CyxWiz API");
                self.take(Kept::new(&kept.api_url, &kept.email, tokens, asked))
            }
            Err(ApiError::Refused { status: 401, detail, .. }) => {
                info!(why = detail, "the log-in at the CyxWiz API has ended; the node makes another");
                Kept::remove(&self.dir).map_err(Error::Disk)?;
                self.kept = None;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn take(&mut self, kept: Kept) -> Result<(), Error> {
        kept.write(&self.dir).map_err(Error::Disk)?;
        self.kept = Some(kept);
        self.publish();
        Ok(())
    }

    async fn list_machine(&self) -> Result<(), Error> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let machine = self.api.register_machine(&kept.access_token, &self.machine).await?;
        info!(machine, "the CyxWiz API lists this node");
        Ok(())
    }

    /// Says what an operator can do about it.
    fn explain(&self, error: &Error, pause: Duration) {
        let email = self.email.as_deref().or(self.kept.as_ref().map(|kept| kept.email.as_str()));
        let (api, retry_secs) = (self.api.url(), pause.as_secs());
        match error {
            Error::Api(error @ ApiError::Refused { status: 401, .. }) => warn!(
                %error, api, email, retry_secs,
                "the CyxWiz API refuses the log-in: correct CYXWIZ_EMAIL and CYXWIZ_PASSWORD (or the file of \
                 CYXWIZ_PASSWORD_FILE), and start the node again"
            ),
            Error::Api(error) if error.is_refusal() => {
                warn!(%error, api, email, retry_secs, "the CyxWiz API refuses this node");
            }
            Error::NoPassword => warn!(
                %error, api, email, retry_secs,
                "set CYXWIZ_EMAIL and CYXWIZ_PASSWORD (or CYXWIZ_PASSWORD_FILE), and start the node again"
            ),
            error => warn!(
                error = error as &dyn std::error::Error,
                api, retry_secs, "no log-in at the CyxWiz API for now"
            ),
        }
    }
}

/// How long after a failure the next attempt comes, after so many before it.
fn pause(error: &Error, failures: u32) -> Duration {
    let (least, most, asked) = match error {
        Error::Api(ApiError::Busy { after, .. }) => (RETRY_MIN, RETRY_MAX, after.unwrap_or_default()),
        Error::Api(error) if error.is_refusal() => (REFUSED_RETRY_MIN, REFUSED_RETRY_MAX, Duration::ZERO),
        Error::NoPassword => (REFUSED_RETRY_MAX, REFUSED_RETRY_MAX, Duration::ZERO),
        Error::Api(_) | Error::Disk(_) => (RETRY_MIN, RETRY_MAX, Duration::ZERO),
    };
    least.saturating_mul(2u32.saturating_pow(failures)).max(asked).min(most)
}

/// Forgets the log-in of a data directory, and tells the service; what was forgotten, for its operator.
pub async fn log_out(dir: &Path) -> std::io::Result<String> {
    let path = dir.join(FILE);
    let kept = Kept::read(dir);
    // Forgotten here in any case, and first.
    let removed = Kept::remove(dir)?;
    let Some(kept) = kept else {
        return Ok(match removed {
            true => format!("forgot a damaged log-in ({})", path.display()),
            false => format!("nobody is logged in: there is no {}", path.display()),
        });
    };
    let forgot = format!("forgot the log-in of {} at {} ({})", kept.email, kept.api_url, path.display());
    let told = match Client::new(&kept.api_url, AGENT) {
        Ok(api) => api.log_out(&kept.refresh_token).await,
        Err(error) => Err(error),
    };
    Ok(match told {
        // A session that has ended is as good as one that ends now.
        Ok(()) | Err(ApiError::Refused { status: 401, .. }) => forgot,
        Err(error) => format!("{forgot}; the service was not told, and keeps it until it expires: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use cyxwiz_client::Tokens;

    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_unix_millis(secs * 1000)
    }

    #[test]
    fn a_log_in_is_used_renewed_and_replaced_in_time() {
        let tokens = Tokens { access_token: "a".into(), refresh_token: "r".into(), expires_in: 100 };
        let kept = Kept::new("http://h", "a@b.c", tokens, at(1000));
        let due = |email, secs| step(Some(&kept), "http://h", email, at(secs));
        assert_eq!(due(Some("a@b.c"), 1070), Step::Wait(Duration::from_secs(10)));
        assert_eq!(due(None, 1000), Step::Wait(LOOK));
        assert_eq!(due(None, 1), Step::Wait(LOOK), "a clock that was set back");
        assert_eq!(due(Some("a@b.c"), 1080), Step::Renew);
        // Its refresh token may live long after it.
        assert_eq!(due(Some("a@b.c"), 90_000), Step::Renew);
        assert_eq!(due(Some("d@b.c"), 1000), Step::LogIn);
        assert_eq!(step(Some(&kept), "http://i", None, at(1000)), Step::LogIn);
        assert_eq!(step(None, "http://h", None, at(1000)), Step::LogIn);
    }

    #[test]
    fn wrong_passwords_are_not_tried_often() {
        let refused =
            Error::Api(ApiError::Refused { status: 401, kind: String::new(), detail: String::new() });
        assert_eq!(pause(&refused, 0), REFUSED_RETRY_MIN);
        assert_eq!(pause(&refused, 40), REFUSED_RETRY_MAX);
        let busy = |secs| {
            Error::Api(ApiError::Busy { detail: String::new(), after: Some(Duration::from_secs(secs)) })
        };
        assert_eq!(pause(&busy(5), 0), Duration::from_secs(5));
        assert_eq!(pause(&busy(5_000), 0), RETRY_MAX);
        assert_eq!(pause(&Error::Disk(std::io::ErrorKind::StorageFull.into()), 3), Duration::from_secs(8));
    }

    #[test]
    fn an_account_needs_something_to_log_in_with() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let config = Config {
            storage_path: dir.path().to_owned(),
            cyxwiz_api_url: Some("http://127.0.0.1:1".to_owned()),
            ..Config::default()
        };
        assert!(matches!(Account::open(&config, "p"), Err(ConfigError::Missing { .. })));
        assert!(
            Account::open(&Config { cyxwiz_api_url: None, ..config.clone() }, "p").expect("fine").is_none()
        );
        let wrong = Config { cyxwiz_api_url: Some("cyxwiz:3002".to_owned()), ..config.clone() };
        assert!(matches!(Account::open(&wrong, "p"), Err(ConfigError::Unusable(_))));
        // Whoever logged in once needs no password until that ends.
        let tokens = Tokens { access_token: "a".into(), refresh_token: "r".into(), expires_in: 100 };
        Kept::new("http://127.0.0.1:1", "a@b.c", tokens, now()).write(dir.path()).expect("written");
        assert!(Account::open(&config, "p").expect("fine").is_some());
    }
}
