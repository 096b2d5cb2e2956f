//! `login`, `logout`, `whoami`.

use std::io::Write;
use std::path::Path;

use chrono::Utc;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::info::{bytes, row, text};
use crate::challenge::{Asked, LogIn};
use crate::client::{Client, Error, Server};
use crate::config::{Config, Credentials, Error as ConfigError, Saved, parse_url};
use crate::progress::Output;
use crate::session::Issued;
use crate::wallet::Wallet;
use crate::{Context, args, config_file, password};

/// What a wallet is asked to sign.
#[derive(Deserialize)]
struct Challenge {
    challenge: String,
    nonce: String,
}

pub(crate) async fn login(
    config: &Config,
    output: &Output,
    interrupt: &CancellationToken,
    args: args::Login,
) -> anyhow::Result<()> {
    let work = async {
        let known_as = args.auth_domain.as_deref();
        match (&args.keypair, &args.new_wallet, &args.email) {
            (Some(path), ..) => by_wallet(config, output, &Wallet::read(path, output)?, known_as).await,
            (None, Some(path), _) => by_wallet(config, output, &new_wallet(path, output)?, known_as).await,
            (None, None, email) => {
                let email = email.as_deref().unwrap_or_default();
                let password = password::obtain(args.password_stdin, email, interrupt).await?;
                by_password(config, output, &args.api_url, email, &password).await
            }
        }
    };
    let (who, saved) = tokio::select! {
        biased;
        () = interrupt.cancelled() => return Err(Error::Interrupted.into()),
        done = work => done?,
    };
    // Whoever renews the session that was there before is not to write over this one.
    let lock = config_file::lock(&config.path).await?;
    config_file::save(&config.path, Some(&saved))?;
    drop(lock);
    output.note(&format!("logged in as {who}; the session is kept in {}", config.path.display()));
    if matches!(config.credentials(Utc::now()), Ok(Credentials::Key(_))) {
        output.note("an access key is set as well and comes first: unset CYXCLOUD_ACCESS_KEY, or access_key in the config file");
    }
    Ok(())
}

fn new_wallet(path: &Path, output: &Output) -> anyhow::Result<Wallet> {
    let wallet = Wallet::make(path, rand::random())?;
    output.note(&format!(
        "made the wallet {}: whoever has this file is you, and without it nobody is",
        path.display()
    ));
    Ok(wallet)
}

async fn by_wallet(
    config: &Config,
    output: &Output,
    wallet: &Wallet,
    known_as: Option<&str>,
) -> anyhow::Result<(String, Saved)> {
    let gateway = Client::stranger(config, Server::Gateway, &config.gateway, output.clone())?;
    let address = wallet.address();
    let body = json!({ "wallet_address": address });
    let given: Challenge =
        gateway.post_json("/api/v1/auth/challenge", None, Some(&body)).await.map_err(refused)?;
    let asked = Asked { gateway: &config.gateway, known_as, wallet: &address, nonce: &given.nonce };
    let log_in = LogIn::accept(&given.challenge, &asked)?;
    output.note(&format!("signing a log-in to {} ({})", log_in.domain(), log_in.chain()));
    let signature = wallet.answer(&log_in);
    let body = json!({
        "wallet_address": address,
        "signature": signature,
        "challenge": given.challenge,
        "nonce": given.nonce,
    });
    let asked = Utc::now();
    let issued: Issued =
        gateway.post_json("/api/v1/auth/wallet", None, Some(&body)).await.map_err(refused)?;
    let gateway = Some(config.gateway.clone());
    let saved = Saved { gateway, wallet_address: Some(address.clone()), ..issued.saved(None, asked) };
    Ok((address, saved))
}

async fn by_password(
    config: &Config,
    output: &Output,
    api_url: &str,
    email: &str,
    password: &str,
) -> anyhow::Result<(String, Saved)> {
    let url = parse_url(api_url)?;
    let service = Client::stranger(config, Server::Identity, &url, output.clone())?;
    let body = json!({ "email": email, "password": password });
    let asked = Utc::now();
    let issued: Issued = service.post_json("/api/auth/login", None, Some(&body)).await.map_err(refused)?;
    let gateway = Some(config.gateway.clone());
    let saved = Saved { gateway, api_url: Some(url), ..issued.saved(None, asked) };
    Ok((email.to_owned(), saved))
}

/// A refusal here is about who wants to log in, not about credentials that are set somewhere.
fn refused(error: Error) -> Error {
    match error {
        Error::Refused { status: 400 | 401 | 403, message, .. } => Error::NotLetIn(message),
        other => other,
    }
}

pub(crate) async fn logout(
    config: &Config,
    output: &Output,
    interrupt: &CancellationToken,
) -> anyhow::Result<()> {
    let Some(saved) = config_file::session(&config.path)? else {
        output.note("nobody is logged in");
        return Ok(());
    };
    match config.admits(&saved) {
        Err(error @ ConfigError::OtherGateway { .. }) => {
            output.note(&error.to_string());
            return Ok(());
        }
        Err(_) if saved.api_url.is_none() => {
            forget(config).await?;
            output.note("forgot the session; which gateway it was for is not known, so none was told");
            return Ok(());
        }
        Ok(()) | Err(_) => {}
    }
    let told = tokio::select! {
        biased;
        () = interrupt.cancelled() => return Err(Error::Interrupted.into()),
        told = tell(config, output, &saved) => told,
    };
    // Forgotten here in any case.
    forget(config).await?;
    match told {
        // A session that the server has ended is as good as one that it ends now.
        Ok(()) | Err(Error::Refused { status: 401 | 403, .. } | Error::LoggedOut(_)) => {
            output.note("logged out")
        }
        Err(error) => {
            output.note(&format!(
                "forgot the session, but the server was not told and keeps it until it expires: {error}"
            ));
        }
    }
    Ok(())
}

async fn forget(config: &Config) -> Result<(), ConfigError> {
    let _lock = config_file::lock(&config.path).await?;
    config_file::save(&config.path, None)
}

/// Tells who gave the session that it is over: an identity service by its refresh token, the gateway by an access token.
async fn tell(config: &Config, output: &Output, saved: &Saved) -> Result<(), Error> {
    let unable = |error: anyhow::Error| Error::Session(error.to_string());
    match (&saved.api_url, &saved.refresh_token) {
        (Some(url), Some(refresh)) => {
            let client = Client::stranger(config, Server::Identity, url, output.clone()).map_err(unable)?;
            client.post_json::<Value>("/api/auth/logout", Some(&refresh.0), None).await.map(|_| ())
        }
        // Nothing there to be ended.
        (Some(_), None) => Ok(()),
        (None, _) => {
            let client = Client::of_session(config, saved.clone(), output.clone()).map_err(unable)?;
            client.post_json::<Value>("/api/v1/auth/logout", None, None).await.map(|_| ())
        }
    }
}

pub(crate) async fn whoami(context: &Context, args: args::Whoami) -> anyhow::Result<()> {
    let me = tokio::select! {
        biased;
        () = context.interrupt.cancelled() => return Err(Error::Interrupted.into()),
        me = context.client.get_json("/api/v1/auth/me") => me?,
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&me)?)?;
        return Ok(out.flush()?);
    }
    let by = match context.config.credentials(Utc::now())? {
        Credentials::Key(signer) => format!("access key {}", signer.access_key),
        Credentials::Session(Saved { api_url: Some(url), .. }) => format!("log-in at {url}"),
        Credentials::Session(_) => "log-in with a wallet".to_owned(),
    };
    for line in shown(&me).into_iter().chain([row("By", &by)]) {
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

fn shown(me: &Value) -> Vec<String> {
    let quota = match me.get("storage_quota") {
        None | Some(Value::Null) => "none".to_owned(),
        Some(_) => bytes(me, "storage_quota"),
    };
    vec![
        row("Id", &text(me, "id")),
        row("Wallet", &text(me, "wallet_address")),
        row("Email", &text(me, "email")),
        row("Username", &text(me, "username")),
        row("Role", &text(me, "role")),
        row("Stored", &bytes(me, "storage_used")),
        row("Quota", &quota),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_a_few_lines() {
        let me = json!({
            "id": "i", "wallet_address": "W", "email": null, "username": "\u{1b}[2J", "role": "user",
            "storage_quota": null, "storage_used": 2048,
        });
        let lines = shown(&me);
        assert!(
            lines.contains(&"Wallet        W".to_owned()) && lines.contains(&"Email         -".to_owned())
        );
        assert!(lines.contains(&"Username      \\u{1b}[2J".to_owned()));
        assert!(
            lines.contains(&"Stored        2.0 KiB (2048 B)".to_owned())
                && lines.contains(&"Quota         none".to_owned())
        );
    }

    #[test]
    fn a_refused_log_in_says_why_and_nothing_of_keys() {
        let refusal =
            Error::Refused { status: 401, code: String::new(), message: "wrong".into(), retry_after: None };
        let error = refused(refusal);
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("could not log in: wrong", 4));
    }
}
