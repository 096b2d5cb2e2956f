//! All that the service can be told. Read once, in `main`; nothing else looks at the environment.
//!
//! A secret comes from its variable or from the file that its `_FILE` variable names, never from both, and has no default.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use cyxcloud_core::ByteCount;
use cyxcloud_core::claims::TokenKind;
use cyxcloud_core::secret::{self, SecretError, Strength};
use cyxcloud_tls::TlsArgs;
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
    /// Secret under which tokens hold too (or JWT_SECRET_PREVIOUS_FILE): the one before, or the next, until all have it
    #[arg(env = "JWT_SECRET_PREVIOUS", long = "jwt-secret-previous", hide = true, hide_env_values = true)]
    pub jwt_secret_previous: Option<SecretString>,
    #[allow(missing_docs)]
    #[arg(long, env = "JWT_SECRET_PREVIOUS_FILE", value_name = "PATH", hide = true)]
    pub jwt_secret_previous_file: Option<PathBuf>,
    /// `iss` of tokens, as the gateways want it
    #[arg(long, env = "JWT_ISSUER", value_name = "NAME", default_value = "cyxcloud")]
    pub jwt_issuer: String,
    /// `aud` of access tokens, as the gateways want it
    #[arg(long, env = "JWT_AUDIENCE", value_name = "NAME", default_value = "cyxcloud")]
    pub jwt_audience: String,
    /// How long access tokens hold; who has a session gets others for seven days
    #[arg(long, env = "ACCESS_TOKEN_SECS", value_name = "SECONDS", default_value_t = TokenKind::Access.lifetime().as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub access_token_secs: u64,
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
    /// Open connections from one address (one /64 of IPv6), at most, of 1,024 in all; trusted proxies have no limit
    #[arg(long, env = "CONNECTIONS_PER_ADDRESS", value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections_per_address: u32,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub tls: TlsArgs,
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

/// The secrets, wherever they came from.
#[derive(Debug)]
pub(crate) struct Secrets {
    pub(crate) database_url: SecretString,
    pub(crate) jwt_secret: SecretString,
    pub(crate) jwt_secret_previous: Option<SecretString>,
    pub(crate) registration_token: Option<SecretString>,
}

impl Config {
    /// Reads the secrets and refuses weak ones.
    pub(crate) fn secrets(&self) -> Result<Secrets, SecretError> {
        let database_url =
            obtain("DATABASE_URL", &self.database_url, &self.database_url_file, Strength::Any)?
                .ok_or(SecretError::Missing("DATABASE_URL", "postgres://USER:PASSWORD@HOST/DATABASE"))?;
        let jwt_secret = obtain("JWT_SECRET", &self.jwt_secret, &self.jwt_secret_file, Strength::Key)?
            .ok_or(SecretError::Missing(
                "JWT_SECRET",
                "the gateways' own: at least 32 random bytes, e.g. openssl rand -hex 32",
            ))?;
        let (value, file) = (&self.jwt_secret_previous, &self.jwt_secret_previous_file);
        let jwt_secret_previous = obtain("JWT_SECRET_PREVIOUS", value, file, Strength::Key)?;
        let invitation = Strength::AtLeast(INVITATION_MIN);
        let registration_token = obtain(
            "REGISTRATION_TOKEN",
            &self.registration_token,
            &self.registration_token_file,
            invitation,
        )?;
        let password = secret::url_password(database_url.expose_secret());
        let all = [
            Some(("JWT_SECRET", jwt_secret.expose_secret())),
            jwt_secret_previous.as_ref().map(|secret| ("JWT_SECRET_PREVIOUS", secret.expose_secret())),
            registration_token.as_ref().map(|token| ("REGISTRATION_TOKEN", token.expose_secret())),
            password.as_deref().map(|password| ("the password in DATABASE_URL", password)),
        ];
        secret::distinct(&all.into_iter().flatten().collect::<Vec<_>>())?;
        Ok(Secrets { database_url, jwt_secret, jwt_secret_previous, registration_token })
    }
}

fn obtain(
    name: &'static str,
    value: &Option<SecretString>,
    file: &Option<PathBuf>,
    strength: Strength,
) -> Result<Option<SecretString>, SecretError> {
    let value = value.as_ref().map(|value| value.expose_secret());
    let found = secret::obtain(name, value, file.as_deref(), strength, |path| std::fs::read_to_string(path))?;
    Ok(found.map(SecretString::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn secrets(args: &[&str]) -> Result<Secrets, SecretError> {
        Config::try_parse_from([&["cyxwiz-api"], args].concat()).expect("the flags exist").secrets()
    }

    #[test]
    fn missing_weak_and_doubled_secrets_are_refused() {
        let url = ["--database-url", "postgres://u:hush@h/d"];
        let with = |args: &[&'static str]| secrets(&[&url[..], args].concat());
        assert!(matches!(secrets(&["--jwt-secret", SECRET]), Err(SecretError::Missing("DATABASE_URL", _))));
        assert!(matches!(with(&[]), Err(SecretError::Missing("JWT_SECRET", _))));
        for weak in ["", "short", "your-secret-here"] {
            assert!(
                matches!(with(&["--jwt-secret", weak]), Err(SecretError::Weak("JWT_SECRET", _))),
                "{weak}"
            );
        }
        let twice = with(&["--jwt-secret", SECRET, "--jwt-secret-file", "/dev/null"]);
        assert!(matches!(twice, Err(SecretError::Twice("JWT_SECRET"))));
        let empty = with(&["--jwt-secret-file", "/dev/null"]);
        assert!(matches!(empty, Err(SecretError::Weak("JWT_SECRET", _))));
        let absent = with(&["--jwt-secret-file", "/nonexistent"]);
        assert!(matches!(absent, Err(SecretError::File("JWT_SECRET", _))));
        let invitation = with(&["--jwt-secret", SECRET, "--registration-token", "short"]);
        assert!(matches!(invitation, Err(SecretError::Weak("REGISTRATION_TOKEN", _))));
        let one = with(&["--jwt-secret", SECRET, "--registration-token", SECRET]);
        assert!(matches!(one, Err(SecretError::Same("JWT_SECRET", "REGISTRATION_TOKEN"))));
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
