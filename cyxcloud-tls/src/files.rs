//! A certificate and its key in PEM files, read at start and again whenever they change or the process is told to (SIGHUP).
//!
//! At start a pair that cannot be used stops the server. Later it does not: the pair in use stays, and the log says what is wrong.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode, SliceReader, Tag};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::metrics::Metrics;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest file that is read: a chain of certificates has a few kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// A certificate that ends sooner is warned about.
const EXPIRY_WARNING: Duration = Duration::from_secs(7 * 86_400);

/// Where the certificate and its key are. None of both is plain text.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Certificate chain (PEM), the server's own first; with it the ports speak TLS. Read again when it changes and at SIGHUP
    #[arg(long, env = "TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of the certificate
    #[arg(long, env = "TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

/// Why a certificate cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One of the two is missing.
    #[error("{given} is set and {missing} is not: set both for TLS, or neither for plain text")]
    Half {
        /// The variable that is set.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// The file cannot be read.
    #[error("could not read {path}, which {variable} names; it must be a PEM file that this user may read")]
    Unreadable {
        /// Which variable named it.
        variable: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path}, which {variable} names, holds no {wanted}: {why}")]
    NotPem {
        /// Which variable named it.
        variable: &'static str,
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
        /// What was found.
        why: String,
    },
    /// Key and certificate are not a pair.
    #[error(
        "the key in {key} (TLS_KEY) does not belong to the first certificate in {cert} (TLS_CERT): {why}"
    )]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls says.
        why: rustls::Error,
    },
    /// rustls refuses the configuration.
    #[error("could not set up TLS")]
    Setup(#[from] rustls::Error),
    /// A metric could not be registered.
    #[error("could not set up the metrics of TLS")]
    Metrics(#[from] prometheus::Error),
    /// SIGHUP cannot be listened for.
    #[error("could not listen for SIGHUP")]
    Signal(#[source] io::Error),
}

impl TlsArgs {
    /// Both paths, or nothing.
    pub fn pair(&self) -> Result<Option<Pair>, TlsError> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Ok(Some(Pair { cert: cert.clone(), key: key.clone() })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(TlsError::Half { given: "TLS_CERT", missing: "TLS_KEY" }),
            (None, Some(_)) => Err(TlsError::Half { given: "TLS_KEY", missing: "TLS_CERT" }),
        }
    }

    /// Loads the certificate, if one is named. From then on it is kept fresh by [`ServerCertificate::keep_fresh`].
    pub fn load(&self, metrics: &Metrics) -> Result<Option<Arc<ServerCertificate>>, TlsError> {
        let loaded = self.pair()?.map(|pair| ServerCertificate::load(pair, metrics.clone()));
        Ok(loaded.transpose()?.map(Arc::new))
    }
}

/// The two files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Of the certificate chain.
    pub cert: PathBuf,
    /// Of the key.
    pub key: PathBuf,
}

/// What was read from the files.
#[derive(Debug)]
struct Loaded {
    key: Arc<CertifiedKey>,
    /// When it ends, in seconds since the Unix epoch.
    not_after: i64,
}

/// The certificate that new connections are shown.
#[derive(Debug)]
pub struct ServerCertificate {
    pair: Pair,
    /// What the files looked like before they were read first.
    began_with: [Mark; 2],
    current: RwLock<Arc<CertifiedKey>>,
    metrics: Metrics,
}

impl ServerCertificate {
    fn load(pair: Pair, metrics: Metrics) -> Result<Self, TlsError> {
        let began_with = pair.marks();
        let loaded = pair.load()?;
        metrics.show_expiry(loaded.not_after)?;
        Ok(Self { pair, began_with, current: RwLock::new(loaded.key), metrics })
    }

    fn reload(&self) {
        match self.pair.load() {
            Ok(loaded) => {
                self.metrics.reloads.with_label_values(&["ok"]).inc();
                self.metrics.expiry.set(loaded.not_after);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded.key;
                info!(cert = %self.pair.cert.display(), not_after = loaded.not_after, "the certificate was loaded again");
            }
            Err(error) => {
                self.metrics.reloads.with_label_values(&["failed"]).inc();
                error!(
                    error = &error as &dyn std::error::Error,
                    "the new certificate cannot be used; the one before stays in use"
                );
            }
        }
    }

    /// Loads the files again at SIGHUP, and when they have changed and then stood still for a moment: two files are not
    /// replaced in one instant. Never ends.
    pub async fn keep_fresh(self: Arc<Self>) -> Result<(), TlsError> {
        let mut hangup = signal(SignalKind::hangup()).map_err(TlsError::Signal)?;
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        let mut watch = Watch::new(self.began_with);
        loop {
            let load = tokio::select! {
                _ = ticks.tick() => watch.look(self.pair.marks()),
                _ = hangup.recv() => {
                    watch = Watch::new(self.pair.marks());
                    true
                }
            };
            if load {
                self.reload();
            }
        }
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// By what a file is known to be another one than before; nothing where it cannot be seen.
type Mark = Option<(u64, u64, i64, i64)>;

fn mark(path: &Path) -> Mark {
    let of = |meta: Metadata| (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
    std::fs::metadata(path).ok().map(of)
}

/// Decides when changed files are loaded.
#[derive(Debug)]
struct Watch {
    loaded: [Mark; 2],
    seen: [Mark; 2],
}

impl Watch {
    fn new(marks: [Mark; 2]) -> Self {
        Self { loaded: marks, seen: marks }
    }

    /// Whether to load now: they are others than those loaded, and the same as at the look before.
    fn look(&mut self, marks: [Mark; 2]) -> bool {
        let settled = std::mem::replace(&mut self.seen, marks) == marks;
        let load = settled && marks != self.loaded;
        if load {
            self.loaded = marks;
        }
        load
    }
}

impl Pair {
    fn marks(&self) -> [Mark; 2] {
        [mark(&self.cert), mark(&self.key)]
    }

    fn load(&self) -> Result<Loaded, TlsError> {
        let chain = certificates(&read("TLS_CERT", &self.cert)?, "TLS_CERT", &self.cert)?;
        let key = self.key()?;
        let not_after = not_after(&chain[0]).map_err(|error| TlsError::NotPem {
            variable: "TLS_CERT",
            path: self.cert.clone(),
            wanted: "certificate",
            why: error.to_string(),
        })?;
        let mismatch = |why| TlsError::Mismatch { cert: self.cert.clone(), key: self.key.clone(), why };
        let signer = crate::provider().key_provider.load_private_key(key).map_err(mismatch)?;
        let certified = CertifiedKey::new(chain, signer);
        certified.keys_match().map_err(mismatch)?;
        warn_of_expiry(&self.cert, not_after);
        Ok(Loaded { key: Arc::new(certified), not_after })
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let pem = read("TLS_KEY", &self.key)?;
        warn_if_others_can_read(&self.key);
        PrivateKeyDer::from_pem_slice(&pem).map_err(|error| TlsError::NotPem {
            variable: "TLS_KEY",
            path: self.key.clone(),
            wanted: "private key",
            why: match String::from_utf8_lossy(&pem).contains("ENCRYPTED PRIVATE KEY") {
                true => "it is encrypted; write it without a passphrase (openssl pkey -in FILE -out FILE)"
                    .to_owned(),
                false => error.to_string(),
            },
        })
    }
}

fn read(variable: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { variable, path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(unreadable(io::Error::other("it is longer than 1 MiB")));
    }
    std::fs::read(path).map_err(unreadable)
}

/// All certificates of a PEM file; at least one.
pub(crate) fn certificates(
    pem: &[u8],
    variable: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let wrong = |why| TlsError::NotPem { variable, path: path.to_owned(), wanted: "certificate", why };
    let found = found.map_err(|error| wrong(error.to_string()))?;
    match found.is_empty() {
        true => Err(wrong("there is no BEGIN CERTIFICATE in it".to_owned())),
        false => Ok(found),
    }
}

/// Certificates of authorities, for whoever dials.
pub(crate) fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates(&read("TLS_CA", path)?, "TLS_CA", path)
}

/// When a certificate ends, in seconds since the Unix epoch (RFC 5280, section 4.1).
fn not_after(certificate: &CertificateDer<'_>) -> der::Result<i64> {
    let certificate = AnyRef::from_der(certificate)?;
    let to_be_signed = AnyRef::decode(&mut SliceReader::new(certificate.value())?)?;
    let mut fields = SliceReader::new(to_be_signed.value())?;
    if Tag::peek(&fields)?.is_context_specific() {
        AnyRef::decode(&mut fields)?; // version
    }
    for _serial_algorithm_issuer in 0..3 {
        AnyRef::decode(&mut fields)?;
    }
    let validity = AnyRef::decode(&mut fields)?;
    let mut dates = SliceReader::new(validity.value())?;
    AnyRef::decode(&mut dates)?; // not before
    let ends = match Tag::peek(&dates)? {
        Tag::UtcTime => UtcTime::decode(&mut dates)?.to_unix_duration(),
        _ => GeneralizedTime::decode(&mut dates)?.to_unix_duration(),
    };
    Ok(i64::try_from(ends.as_secs()).unwrap_or(i64::MAX))
}

fn warn_of_expiry(path: &Path, not_after: i64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let left = not_after.saturating_sub(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    let cert = path.display();
    if left <= 0 {
        warn!(%cert, "the certificate has expired; clients will refuse it");
    } else if left < EXPIRY_WARNING.as_secs() as i64 {
        warn!(%cert, hours_left = left / 3600, "the certificate expires soon");
    }
}

/// Only warned about: who mounts secrets into containers cannot always choose.
fn warn_if_others_can_read(path: &Path) {
    let Ok(meta) = std::fs::metadata(path) else { return };
    if meta.mode() & 0o004 != 0 {
        let mode = format!("{:o}", meta.mode() & 0o777);
        warn!(key = %path.display(), mode, "every user of this machine can read the TLS key; chmod 600 it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(cert: i64, key: i64) -> [Mark; 2] {
        [Some((1, 1, cert, 0)), Some((2, 1, key, 0))]
    }

    #[test]
    fn changed_files_are_loaded_once_they_stand_still() {
        let mut watch = Watch::new(marks(1, 1));
        assert!(!watch.look(marks(1, 1)));
        assert!(!watch.look(marks(2, 1)), "the key may follow");
        assert!(!watch.look(marks(2, 2)));
        assert!(watch.look(marks(2, 2)));
        assert!(!watch.look(marks(2, 2)), "once");
        assert!(!watch.look([None, marks(2, 2)[1]]));
        assert!(watch.look([None, marks(2, 2)[1]]), "that it is gone is worth an error");
    }

    #[test]
    fn half_a_pair_is_refused_with_the_name_of_the_other_half() {
        let half = TlsArgs { tls_cert: Some("c.pem".into()), tls_key: None };
        assert!(half.pair().expect_err("half").to_string().contains("TLS_KEY is not"));
        let half = TlsArgs { tls_cert: None, tls_key: Some("k.pem".into()) };
        assert!(half.pair().expect_err("half").to_string().contains("TLS_CERT is not"));
        assert_eq!(TlsArgs::default().pair().expect("nothing"), None);
    }

    #[test]
    fn the_end_of_a_certificate_is_found_in_both_ways_of_writing_it() {
        let key = rcgen::KeyPair::generate().expect("a key");
        // Dates from 2050 on are written otherwise.
        for (year, want) in [(2030, 1_893_456_000), (2060, 2_840_140_800)] {
            let mut params = rcgen::CertificateParams::default();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&key).expect("a certificate");
            assert_eq!(not_after(certificate.der()), Ok(want), "{year}");
        }
        assert!(not_after(&CertificateDer::from(vec![0x30, 3, 1, 2])).is_err());
    }

    #[test]
    fn what_is_no_certificate_is_refused_with_its_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let pair = Pair { cert: cert.clone(), key };
        let said = |error: TlsError| error.to_string();
        assert!(said(pair.load().expect_err("absent")).contains("could not read"));
        std::fs::write(&cert, "nonsense").expect("written");
        let error = said(pair.load().expect_err("nonsense"));
        assert!(error.contains("holds no certificate") && error.contains("cert.pem"), "{error}");
    }
}
