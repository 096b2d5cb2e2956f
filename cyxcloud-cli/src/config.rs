//! Where the gateway is and who we are: command line, then environment, then the config file, then defaults.

use std::fmt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use cyxcloud_core::secret::{SecretError, Strength};
use cyxcloud_core::sigv4::Signer;
use reqwest::Url;
use serde::Deserialize;

use crate::args::{Args, Command};
use crate::private;
use crate::progress::Output;

/// Where the gateway is unless somebody says otherwise.
const GATEWAY: &str = "http://localhost:8080";
/// The region that signatures name unless somebody says otherwise.
const REGION: &str = "us-east-1";

/// A configuration that cannot be used; all of it is for people to correct.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read the config file {}: {reason}; correct its path or permissions, or use --config", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("the config file {} is not valid: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error("cannot write the config file {}: {reason}; correct its path or permissions, or use --config", path.display())]
    Unwritable { path: PathBuf, reason: String },
    #[error("{url:?} is not the URL of a server ({reason}); write it like {GATEWAY}")]
    Gateway { url: String, reason: String },
    #[error("{set} is set and {unset} is not; set both, or neither")]
    HalfCredentials { set: &'static str, unset: &'static str },
    #[error(
        "no credentials; run `cyxcloud-cli login`, or set CYXCLOUD_ACCESS_KEY and CYXCLOUD_SECRET_KEY, or access_key and \
         secret_key under [auth] in {}",
        path.display()
    )]
    NoCredentials { path: PathBuf },
    #[error("the session in {} expired at {at}; run `cyxcloud-cli login`", path.display())]
    Expired { path: PathBuf, at: String },
    #[error(
        "nobody is logged in at {ours}: the session in {} is for {theirs}, and no other gateway is shown it; run \
         `cyxcloud-cli --gateway {ours} login`, or use --gateway {theirs}",
        path.display()
    )]
    OtherGateway { path: PathBuf, theirs: String, ours: String },
    #[error("the session in {} does not say which gateway it is for; run `cyxcloud-cli login`", path.display())]
    UnknownGateway { path: PathBuf },
    #[error("no bucket; name one with --bucket, or set bucket under [defaults] in {}", path.display())]
    NoBucket { path: PathBuf },
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{0}")]
    Usage(String),
}

/// The file, as it is written. Entries that we do not know are left alone: other versions may.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    gateway: GatewayTable,
    auth: AuthTable,
    defaults: DefaultsTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GatewayTable {
    url: Option<String>,
    region: Option<String>,
    tls_ca: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthTable {
    access_key: Option<String>,
    secret_key: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    wallet_address: Option<String>,
    expires_at: Option<String>,
    /// The gateway that is shown the tokens; in files of older versions, the one of `[gateway]`.
    gateway: Option<String>,
    /// The identity service that gave the tokens; a gateway did if there is none.
    api_url: Option<String>,
}

impl fmt::Debug for AuthTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthTable(..)")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DefaultsTable {
    bucket: Option<String>,
}

/// Who we are.
#[derive(Clone, Debug)]
pub(crate) enum Credentials {
    /// An access key, which signs requests.
    Key(Signer),
    /// A log-in, whose token is sent.
    Session(Saved),
}

/// A log-in, as the file keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) access_token: Token,
    pub(crate) refresh_token: Option<Token>,
    /// When the access token ends, if that is known.
    pub(crate) expires_at: Option<DateTime<Utc>>,
    /// The wallet that logged in, if one did.
    pub(crate) wallet_address: Option<String>,
    /// The gateway that was logged in to, and the only one that is shown the tokens. An older version may not have kept it.
    pub(crate) gateway: Option<Url>,
    /// The identity service that renews it; the gateway does if there is none.
    pub(crate) api_url: Option<Url>,
}

/// A bearer token; does not print.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What was decided.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The gateway's URL, without a slash at its end.
    pub(crate) gateway: Url,
    /// Authorities that servers' certificates may come from; the system's if there is none.
    pub(crate) tls_ca: Option<PathBuf>,
    credentials: Option<Credentials>,
    default_bucket: Option<String>,
    /// The config file, whether there is one or not.
    pub(crate) path: PathBuf,
}

impl Config {
    /// Puts together what the command line, the environment and the file say.
    pub(crate) fn load(args: &Args, output: &Output) -> Result<Self, Error> {
        // Who logs in makes the file.
        let explicit = args.config.is_some() && !matches!(args.command, Command::Login(_));
        let path = args.config.clone().unwrap_or_else(default_path);
        let file = read(&path, explicit)?;
        if let Some(warning) = warning(&file, &path) {
            output.note(&warning);
        }
        let given = args.tls_ca.clone().filter(|path| !path.as_os_str().is_empty());
        let tls_ca = given.or_else(|| file.gateway.tls_ca.clone());
        Ok(Self { tls_ca, ..Self::resolve(args.gateway.clone(), path, file, variable)? })
    }

    fn resolve(
        gateway: Option<String>,
        path: PathBuf,
        file: File,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        let configured = file.gateway.url;
        let url = gateway
            .filter(|url| !url.is_empty())
            .or_else(|| configured.clone())
            .unwrap_or_else(|| GATEWAY.to_owned());
        let region = env("CYXCLOUD_REGION").or(file.gateway.region).unwrap_or_else(|| REGION.to_owned());
        Ok(Self {
            gateway: parse_url(&url)?,
            tls_ca: None,
            credentials: credentials(file.auth, configured.as_deref(), env, region, &path)?,
            default_bucket: file.defaults.bucket,
            path,
        })
    }

    /// Who we are, if we are somebody at this gateway now.
    pub(crate) fn credentials(&self, now: DateTime<Utc>) -> Result<&Credentials, Error> {
        match &self.credentials {
            None => Err(Error::NoCredentials { path: self.path.clone() }),
            Some(credentials @ Credentials::Key(_)) => Ok(credentials),
            Some(credentials @ Credentials::Session(saved)) => {
                self.admits(saved)?;
                match saved.expires_at {
                    Some(at) if at <= now && saved.refresh_token.is_none() => {
                        Err(Error::Expired { path: self.path.clone(), at: at.to_rfc3339() })
                    }
                    _ => Ok(credentials),
                }
            }
        }
    }

    /// That a session is for the gateway that is asked. Any other one could use what it is shown.
    pub(crate) fn admits(&self, saved: &Saved) -> Result<(), Error> {
        let (path, ours) = (self.path.clone(), url_text(&self.gateway).to_owned());
        match &saved.gateway {
            Some(theirs) if *theirs == self.gateway => Ok(()),
            Some(theirs) => Err(Error::OtherGateway { path, theirs: url_text(theirs).to_owned(), ours }),
            None => Err(Error::UnknownGateway { path }),
        }
    }

    /// The bucket that was named, or else the file's.
    pub(crate) fn bucket(&self, named: Option<String>) -> Result<String, Error> {
        let bucket = named
            .or_else(|| self.default_bucket.clone())
            .ok_or_else(|| Error::NoBucket { path: self.path.clone() })?;
        match bucket.parse::<cyxcloud_core::name::BucketName>() {
            Ok(_) => Ok(bucket),
            Err(error) => Err(Error::Usage(format!("{bucket:?} cannot be a bucket: {error}"))),
        }
    }
}

fn default_path() -> PathBuf {
    std::env::home_dir().unwrap_or_default().join(".cyxcloud").join("config.toml")
}

/// The file; an empty one where there is none and nobody asked for it.
fn read(path: &Path, explicit: bool) -> Result<File, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !explicit => return Ok(File::default()),
        Err(error) => return Err(Error::Unreadable { path: path.to_owned(), reason: error.to_string() }),
    };
    parse(&text).map_err(|reason| Error::Invalid { path: path.to_owned(), reason })
}

/// What to say of a file that keeps secrets where others can read them.
fn warning(file: &File, path: &Path) -> Option<String> {
    let AuthTable { secret_key, access_token, refresh_token, .. } = &file.auth;
    let secrets = [secret_key, access_token, refresh_token];
    secrets.iter().any(|secret| secret.is_some()).then(|| private::warning(path)).flatten()
}

/// One line about what is wrong, without the lines around it: they may hold secrets.
fn parse(text: &str) -> Result<File, String> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
        match line {
            Some(line) => format!("line {line}: {}", error.message()),
            None => error.message().to_owned(),
        }
    })
}

/// The session in the text of a file.
pub(crate) fn saved_in(text: &str) -> Result<Option<Saved>, String> {
    let file = parse(text)?;
    session(&file.auth, file.gateway.url.as_deref())
}

/// `configured` is the gateway that the same file names.
fn session(auth: &AuthTable, configured: Option<&str>) -> Result<Option<Saved>, String> {
    let Some(token) = auth.access_token.clone() else { return Ok(None) };
    let expires_at = auth.expires_at.as_deref().map(|at| {
        DateTime::parse_from_rfc3339(at).map(|at| at.to_utc()).map_err(|_| {
            format!("expires_at under [auth] is {at:?} and not a time like 2030-01-01T00:00:00Z")
        })
    });
    let url = |text: &str| parse_url(text).map_err(|error| error.to_string());
    let gateway = match auth.gateway.as_deref() {
        Some(gateway) => Some(url(gateway)?),
        None => configured.and_then(|gateway| url(gateway).ok()),
    };
    let api_url = auth.api_url.as_deref().map(url);
    Ok(Some(Saved {
        access_token: Token(token),
        refresh_token: auth.refresh_token.clone().map(Token),
        expires_at: expires_at.transpose()?,
        wallet_address: auth.wallet_address.clone(),
        gateway,
        api_url: api_url.transpose()?,
    }))
}

/// The URL of a server, without a slash at its end.
pub(crate) fn parse_url(text: &str) -> Result<Url, Error> {
    // A password that somebody put there is not repeated.
    let shown = text.rsplit('@').next().unwrap_or(text);
    let error = |reason: &str| Error::Gateway { url: shown.to_owned(), reason: reason.to_owned() };
    let mut url = Url::parse(text).map_err(|reason| error(&reason.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(error("neither http nor https"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(error("no host"));
    }
    if url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
    {
        return Err(error("it has more than a host, a port and a path"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// The URL of a server as people write it: without a slash at its end.
pub(crate) fn url_text(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}

/// A secret of the environment: the variable, or the file that the variable with `_FILE` added names.
pub(crate) fn secret(
    name: &'static str,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, SecretError> {
    let (value, file) = (env(name), env(&format!("{name}_FILE")).map(PathBuf::from));
    let read = |path: &Path| std::fs::read_to_string(path);
    // It belongs to a server, which has judged it.
    cyxcloud_core::secret::obtain(name, value.as_deref(), file.as_deref(), Strength::Any, read)
}

/// What the environment has under a name; an empty variable is as good as none.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn credentials(
    auth: AuthTable,
    configured: Option<&str>,
    env: impl Fn(&str) -> Option<String>,
    region: String,
    path: &Path,
) -> Result<Option<Credentials>, Error> {
    let signer = |access_key, secret_key| {
        Some(Credentials::Key(Signer {
            access_key,
            secret_key,
            region: region.clone(),
            service: "s3".to_owned(),
        }))
    };
    match (env("CYXCLOUD_ACCESS_KEY"), secret("CYXCLOUD_SECRET_KEY", &env)?) {
        (Some(access), Some(secret)) => return Ok(signer(access, secret)),
        (Some(_), None) => {
            return Err(Error::HalfCredentials { set: "CYXCLOUD_ACCESS_KEY", unset: "CYXCLOUD_SECRET_KEY" });
        }
        (None, Some(_)) => {
            return Err(Error::HalfCredentials { set: "CYXCLOUD_SECRET_KEY", unset: "CYXCLOUD_ACCESS_KEY" });
        }
        (None, None) => {}
    }
    let saved =
        session(&auth, configured).map_err(|reason| Error::Invalid { path: path.to_owned(), reason })?;
    match (auth.access_key, auth.secret_key) {
        (Some(access), Some(secret)) => Ok(signer(access, secret)),
        (Some(_), None) => Err(Error::HalfCredentials { set: "access_key", unset: "secret_key" }),
        (None, Some(_)) => Err(Error::HalfCredentials { set: "secret_key", unset: "access_key" }),
        (None, None) => Ok(saved.map(Credentials::Session)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Section 5.4 of the specification.
    const EXAMPLE: &str = r#"
        [gateway]
        url = "http://files.example:8080/"
        [auth]
        access_token = "eyJ"
        refresh_token = "eyK"
        wallet_address = "5xK4gM..."
        expires_at = "2024-12-29T00:00:00Z"
        [defaults]
        bucket = "default"
    "#;

    fn resolve(gateway: Option<&str>, text: &str, env: &[(&str, &str)]) -> Result<Config, Error> {
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Config::resolve(gateway.map(str::to_owned), "c.toml".into(), parse(text).expect("valid"), env)
    }

    /// A moment after the example's session has ended.
    fn later() -> DateTime<Utc> {
        "2025-01-01T00:00:00Z".parse().expect("a time")
    }

    const KEYS: [(&str, &str); 2] = [("CYXCLOUD_ACCESS_KEY", "A"), ("CYXCLOUD_SECRET_KEY", "S")];

    #[test]
    fn the_specification_s_file_is_understood() {
        let config = resolve(None, EXAMPLE, &[]).expect("valid");
        assert_eq!(config.gateway.as_str(), "http://files.example:8080/");
        // Over, but to be renewed.
        let Ok(Credentials::Session(saved)) = config.credentials(later()) else { panic!("{config:?}") };
        assert_eq!(
            (saved.access_token.0.as_str(), saved.wallet_address.as_deref()),
            ("eyJ", Some("5xK4gM..."))
        );
        assert_eq!(config.bucket(None).expect("the default"), "default");
        assert_eq!(config.bucket(Some("other".into())).expect("named"), "other");
        let alone = EXAMPLE.replace("refresh_token = \"eyK\"", "");
        let config = resolve(None, &alone, &[]).expect("valid");
        assert!(matches!(config.credentials(later()), Err(Error::Expired { .. })));
        config.credentials("2024-12-28T00:00:00Z".parse().expect("a time")).expect("not yet over");
    }

    #[test]
    fn a_session_is_shown_to_its_gateway_only() {
        let file = |entries: &str| format!("[auth]\naccess_token = 't'\nrefresh_token = 'r'\n{entries}");
        let kept = file("gateway = 'https://files.example/base'");
        let configured = file("gateway = 'https://files.example'\n[gateway]\nurl = 'https://cloud.example'");
        let before = file("[gateway]\nurl = 'https://files.example/'");
        let broken = file("[gateway]\nurl = 'files.example'");
        let identity = file("gateway = 'https://files.example'\napi_url = 'https://cloud.example'");
        let is = |gateway: Option<&str>, text: &str| {
            let config = resolve(gateway, text, &[]).expect("valid");
            match config.credentials(later()) {
                Ok(_) => "shown",
                Err(Error::OtherGateway { .. }) => "another's",
                Err(Error::UnknownGateway { .. }) => "nobody's",
                Err(error) => panic!("{error}"),
            }
        };
        for (gateway, text, wanted) in [
            (Some("https://files.example/base"), &kept, "shown"),
            (Some("HTTPS://Files.Example:443/base/"), &kept, "shown"),
            (Some("https://files.example"), &kept, "another's"),
            (Some("http://files.example/base"), &kept, "another's"),
            (Some("https://files.example:8443/base"), &kept, "another's"),
            (Some("https://files.example.evil.example/base"), &kept, "another's"),
            (None, &kept, "another's"),
            // What is configured counts only where nothing else is known.
            (Some("https://files.example"), &configured, "shown"),
            (Some("https://cloud.example"), &configured, "another's"),
            (None, &configured, "another's"),
            (None, &before, "shown"),
            (Some("https://files.example"), &before, "shown"),
            (Some("https://cloud.example"), &before, "another's"),
            (None, &file(""), "nobody's"),
            (Some("https://files.example"), &file(""), "nobody's"),
            (Some("https://files.example"), &broken, "nobody's"),
            // The identity service gave it, and is no gateway for that.
            (Some("https://files.example"), &identity, "shown"),
            (Some("https://cloud.example"), &identity, "another's"),
        ] {
            assert_eq!(is(gateway, text), wanted, "{gateway:?}\n{text}");
        }
        let config = resolve(Some("https://cloud.example/"), &kept, &[]).expect("valid");
        let said = config.credentials(later()).expect_err("another's").to_string();
        for part in [
            "at https://cloud.example:",
            "for https://files.example/base,",
            "--gateway https://cloud.example login",
        ] {
            assert!(said.contains(part), "{said}");
        }
        // An access key is shown to nobody: it signs.
        let config = resolve(Some("https://cloud.example"), &kept, &KEYS).expect("valid");
        assert!(matches!(config.credentials(later()), Ok(Credentials::Key(_))));
    }

    #[test]
    fn nearer_sources_win() {
        let config = resolve(Some("https://cli/base/"), EXAMPLE, &KEYS).expect("valid");
        assert_eq!(config.gateway.as_str(), "https://cli/base");
        let is_key = |config: &Config, key: &str| matches!(config.credentials(later()), Ok(Credentials::Key(signer)) if signer.access_key == key);
        assert!(is_key(&config, "A"));
        let both = EXAMPLE.replace("[auth]", "[auth]\naccess_key = 'F'\nsecret_key = 'F'");
        assert!(is_key(&resolve(None, &both, &[]).expect("valid"), "F"));
        let config = resolve(None, "", &KEYS).expect("valid");
        assert_eq!(config.gateway.as_str(), "http://localhost:8080/");
        assert!(matches!(config.bucket(None), Err(Error::NoBucket { .. })));
        assert!(matches!(config.bucket(Some("NO".into())), Err(Error::Usage(_))));
    }

    #[test]
    fn a_secret_key_may_be_in_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        std::fs::write(&path, "S3cret\n").expect("written");
        let path = path.to_str().expect("plain path");
        let file = [("CYXCLOUD_ACCESS_KEY", "A"), ("CYXCLOUD_SECRET_KEY_FILE", path)];
        let config = resolve(None, "", &file).expect("valid");
        let Ok(Credentials::Key(signer)) = config.credentials(later()) else { panic!("{config:?}") };
        assert_eq!(signer.secret_key, "S3cret");
        let twice = [file[0], file[1], KEYS[1]];
        assert!(matches!(resolve(None, "", &twice), Err(Error::Secret(_))));
        let absent = [file[0], ("CYXCLOUD_SECRET_KEY_FILE", "/nonexistent")];
        let error = anyhow::Error::new(resolve(None, "", &absent).expect_err("not there"));
        let error = format!("{error:#}");
        assert!(error.contains("CYXCLOUD_SECRET_KEY_FILE") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn half_and_missing_credentials_are_said() {
        let config = resolve(None, "", &[]).expect("valid");
        assert!(matches!(config.credentials(later()), Err(Error::NoCredentials { .. })));
        assert!(matches!(resolve(None, "", &KEYS[..1]), Err(Error::HalfCredentials { .. })));
        assert!(matches!(resolve(None, "", &KEYS[1..]), Err(Error::HalfCredentials { .. })));
        assert!(matches!(resolve(None, "[auth]\naccess_key = 'A'", &[]), Err(Error::HalfCredentials { .. })));
        for session in ["expires_at = 'soon'", "api_url = 'ftp://h'", "gateway = 'h'"] {
            let file = format!("[auth]\naccess_token = 'hush'\n{session}");
            let error = resolve(None, &file, &[]).expect_err("not valid").to_string();
            assert!(error.contains("not valid") && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn wrong_gateways_are_refused() {
        for url in ["localhost:8080", "ftp://h", "http://", "http://u:p@h", "http://h/?q", "not a url"] {
            assert!(matches!(parse_url(url), Err(Error::Gateway { .. })), "{url}");
        }
    }

    #[test]
    fn a_broken_file_is_one_line_and_tells_no_secret() {
        let reason = parse("[auth]\nsecret_key = \"hush\nx = 1").expect_err("broken");
        assert!(
            reason.starts_with("line 2: ") && !reason.contains('\n') && !reason.contains("hush"),
            "{reason}"
        );
        let reason = parse("[auth]\nsecret_key = 7").expect_err("broken");
        assert!(!reason.contains('\n'), "{reason}");
    }

    #[cfg(unix)]
    #[test]
    fn secrets_that_others_can_read_are_said() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.toml");
        let said = |text: &str, mode: u32| {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            warning(&read(&path, true).expect("valid"), &path)
        };
        for secret in ["access_key = 'A'\nsecret_key = 'S'", "access_token = 't'", "refresh_token = 'r'"] {
            let text = format!("[auth]\n{secret}");
            let warning = said(&text, 0o644).expect("is open");
            assert!(warning.starts_with("others can read ") && !warning.contains(secret), "{warning}");
            assert_eq!(said(&text, 0o600), None);
        }
        assert_eq!(said("[auth]\naccess_key = 'A'\n[defaults]\nbucket = 'b'", 0o644), None);
    }

    #[test]
    fn unreadable_files_are_refused_and_absent_ones_only_when_named() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(matches!(read(dir.path(), false), Err(Error::Unreadable { .. })));
        assert!(matches!(read(&dir.path().join("none"), true), Err(Error::Unreadable { .. })));
        assert!(read(&dir.path().join("none"), false).is_ok());
    }
}
