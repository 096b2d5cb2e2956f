//! All that the service can be told. Read once, in `main`; nothing else looks at the environment.
//!
//! A secret comes from its variable or from the file that its `_FILE` variable names, never from both, and has no default.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use cyxcloud_core::ByteCount;
use cyxcloud_core::claims::check_secret;
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};

/// Shortest invitation, in characters.
const INVITATION_MIN: usize = 16;

/// A self-hosted identity service with the CyxWiz endpoints: accounts, machines, wallets.
#[derive(Clone, Debug, Parser)]
#[command(name = "cyxwiz-api", version, about, max_term_width = 110)]
pub struct Config {
    /// HTTP listen address
    #[arg(long, env = "HTTP_ADDR", value_name = "ADDR", default_value = "0.0.0.0:3002")]
    pub http_addr: SocketAddr,
    /// PostgreSQL connection URL, or DATABASE_URL_FILE; the tables are in the schema cyxwiz, made if it is missing
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<SecretString>,
    #[allow(missing_docs)]
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "PATH", hide = true)]
    pub database_url_file: Option<PathBuf>,
    /// Connections to PostgreSQL, at most
    #[arg(long, env = "DATABASE_CONNECTIONS", value_name = "N", default_value_t = 16)]
    pub database_connections: u32,
    /// Secret that tokens are signed with, shared with the gateways (or JWT_SECRET_FILE); at least 32 bytes
    #[arg(env = "JWT_SECRET", long = "jwt-secret", hide = true, hide_env_values = true)]
    pub jwt_secret: Option<SecretString>,
    #[allow(missing_docs)]
    #[arg(long, env = "JWT_SECRET_FILE", value_name = "PATH", hide = true)]
    pub jwt_secret_file: Option<PathBuf>,
    /// `iss` of tokens, as the gateways want it
    #[arg(long, env = "JWT_ISSUER", value_name = "NAME", default_value = "cyxcloud")]
    pub jwt_issuer: String,
    /// `aud` of access tokens, as the gateways want it
    #[arg(long, env = "JWT_AUDIENCE", value_name = "NAME", default_value = "cyxcloud")]
    pub jwt_audience: String,
    /// The service's own address, which people see in what their wallets sign
    #[arg(long, env = "PUBLIC_URL", value_name = "URL", default_value = "http://localhost:3002")]
    pub public_url: String,
    /// Storage quota of new accounts, e.g. 50GB; `none` is no limit
    #[arg(long, env = "DEFAULT_STORAGE_QUOTA", value_name = "SIZE", default_value = "10GiB", value_parser = quota)]
    pub default_storage_quota: Quota,
    /// What who registers must know (or REGISTRATION_TOKEN_FILE); without it anybody who reaches the port may register
    #[arg(env = "REGISTRATION_TOKEN", long = "registration-token", hide = true, hide_env_values = true)]
    pub registration_token: Option<SecretString>,
    #[allow(missing_docs)]
    #[arg(long, env = "REGISTRATION_TOKEN_FILE", value_name = "PATH", hide = true)]
    pub registration_token_file: Option<PathBuf>,
    /// Accounts that may be registered from one address in an hour
    #[arg(long, env = "REGISTRATIONS_PER_HOUR", value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub registrations_per_hour: u32,
    /// Networks of proxies whose X-Forwarded-For is believed, e.g. 10.0.0.0/8
    #[arg(long, env = "TRUSTED_PROXIES", value_name = "CIDR,...", value_delimiter = ',')]
    pub trusted_proxies: Vec<IpNet>,
}

/// How much an account may store; nothing is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota(pub Option<ByteCount>);

fn quota(text: &str) -> Result<Quota, String> {
    match text {
        "none" => Ok(Quota(None)),
        _ => text.parse().map(|bytes| Quota(Some(bytes))).map_err(|error| format!("{error}")),
    }
}

/// Why a configuration cannot be run. Each says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A secret is missing.
    #[error("{0} is required: set it, or {0}_FILE to the path of a file that holds it ({1})")]
    Missing(&'static str, &'static str),
    /// A secret is there and worthless.
    #[error("{0} is not usable: {1}")]
    Weak(&'static str, &'static str),
    /// Two places name a secret.
    #[error("{0} and {0}_FILE are both set; set one of them")]
    Twice(&'static str),
    /// The file that holds a secret cannot be read.
    #[error("could not read the file that {0}_FILE names")]
    File(&'static str, #[source] std::io::Error),
}

/// The secrets, wherever they came from.
#[derive(Debug)]
pub(crate) struct Secrets {
    pub(crate) database_url: SecretString,
    pub(crate) jwt_secret: SecretString,
    pub(crate) registration_token: Option<SecretString>,
}

impl Config {
    /// Reads the secrets and refuses weak ones.
    pub(crate) fn secrets(&self) -> Result<Secrets, ConfigError> {
        let database_url = secret("DATABASE_URL", &self.database_url, &self.database_url_file)?
            .ok_or(ConfigError::Missing("DATABASE_URL", "postgres://USER:PASSWORD@HOST/DATABASE"))?;
        let jwt_secret =
            secret("JWT_SECRET", &self.jwt_secret, &self.jwt_secret_file)?.ok_or(ConfigError::Missing(
                "JWT_SECRET",
                "the gateways' own: at least 32 random bytes, e.g. openssl rand -hex 32",
            ))?;
        check_secret(jwt_secret.expose_secret())
            .map_err(|weak| ConfigError::Weak("JWT_SECRET", weak.reason()))?;
        let registration_token =
            secret("REGISTRATION_TOKEN", &self.registration_token, &self.registration_token_file)?;
        if registration_token.as_ref().is_some_and(|token| token.expose_secret().len() < INVITATION_MIN) {
            return Err(ConfigError::Weak("REGISTRATION_TOKEN", "it has fewer than 16 characters"));
        }
        Ok(Secrets { database_url, jwt_secret, registration_token })
    }
}

/// The value itself, or the first line's worth of the file: editors end files with a line break.
fn secret(
    name: &'static str,
    value: &Option<SecretString>,
    file: &Option<PathBuf>,
) -> Result<Option<SecretString>, ConfigError> {
    match (value, file) {
        (Some(_), Some(_)) => Err(ConfigError::Twice(name)),
        (Some(value), None) => Ok(Some(value.clone())),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File(name, source))?;
            Ok(Some(SecretString::from(text.trim_end_matches(['\r', '\n']))))
        }
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn secrets(args: &[&str]) -> Result<Secrets, ConfigError> {
        Config::try_parse_from([&["cyxwiz-api"], args].concat()).expect("the flags exist").secrets()
    }

    #[test]
    fn missing_weak_and_doubled_secrets_are_refused() {
        let url = ["--database-url", "postgres://h/d"];
        let with = |args: &[&'static str]| secrets(&[&url[..], args].concat());
        assert!(matches!(secrets(&["--jwt-secret", SECRET]), Err(ConfigError::Missing("DATABASE_URL", _))));
        assert!(matches!(with(&[]), Err(ConfigError::Missing("JWT_SECRET", _))));
        for weak in ["", "short", "your-secret-here"] {
            assert!(
                matches!(with(&["--jwt-secret", weak]), Err(ConfigError::Weak("JWT_SECRET", _))),
                "{weak}"
            );
        }
        let twice = with(&["--jwt-secret", SECRET, "--jwt-secret-file", "/dev/null"]);
        assert!(matches!(twice, Err(ConfigError::Twice("JWT_SECRET"))));
        let empty = with(&["--jwt-secret-file", "/dev/null"]);
        assert!(matches!(empty, Err(ConfigError::Weak("JWT_SECRET", _))));
        let absent = with(&["--jwt-secret-file", "/nonexistent"]);
        assert!(matches!(absent, Err(ConfigError::File("JWT_SECRET", _))));
        let invitation = with(&["--jwt-secret", SECRET, "--registration-token", "short"]);
        assert!(matches!(invitation, Err(ConfigError::Weak("REGISTRATION_TOKEN", _))));
        let good = with(&["--jwt-secret", SECRET]).expect("enough");
        assert!(!format!("{good:?}").contains(SECRET));
    }

    #[test]
    fn quotas_are_sizes_or_none() {
        assert_eq!(quota("none"), Ok(Quota(None)));
        assert_eq!(quota("2GiB"), Ok(Quota(Some(ByteCount::gib(2)))));
        assert!(quota("much").is_err());
    }
}
