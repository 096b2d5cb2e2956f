//! The log of every server: to standard error, as much of it as `RUST_LOG` asks for, and never a secret.
//!
//! Our own code logs no secret at any level; `tests/security/test_redaction.py` looks. Libraries that we are built on log what
//! they send and receive, so the list below says how much each may say, whatever `RUST_LOG` asks for.

pub mod port;

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Libraries by the targets that they log under, and the most verbose level that each may use. Anything below a target
/// (`h2` and `h2::codec`) is meant with it.
const CAPS: [(&str, LevelFilter); 16] = [
    // Whole requests with their signatures, and clients' mistakes as errors of ours; what failed here is logged where it is
    // handled.
    ("s3s", LevelFilter::OFF),
    // Frames, header lists and bodies: authorization headers, tokens in messages, passwords in JSON.
    ("h2", LevelFilter::INFO),
    ("hyper", LevelFilter::INFO),
    ("hyper_util", LevelFilter::INFO),
    ("reqwest", LevelFilter::INFO),
    ("tonic", LevelFilter::INFO),
    ("tower", LevelFilter::INFO),
    ("tower_http", LevelFilter::INFO),
    // What could not be read of a body, in its own words.
    ("axum", LevelFilter::INFO),
    ("serde", LevelFilter::INFO),
    // Handshakes, with what both sides sent.
    ("rustls", LevelFilter::INFO),
    ("tokio_rustls", LevelFilter::INFO),
    ("tungstenite", LevelFilter::INFO),
    ("tokio_tungstenite", LevelFilter::INFO),
    // Statements and commands, perhaps with their values; connection options, with their passwords.
    ("sqlx", LevelFilter::INFO),
    ("redis", LevelFilter::INFO),
];

/// The most verbose level that a target may use.
fn cap(target: &str) -> LevelFilter {
    let under = |name: &str| match target.strip_prefix(name) {
        // `h2` is not `h2spec`; but `sqlx_core` and `sqlx::query` are both `sqlx`.
        Some(rest) => rest.is_empty() || rest.starts_with("::") || rest.starts_with('_'),
        None => false,
    };
    CAPS.iter().filter(|(name, _)| under(name)).map(|(_, most)| *most).min().unwrap_or(LevelFilter::TRACE)
}

/// Begins the log. `unasked` is the filter where `RUST_LOG` names none.
pub fn init(unasked: &str) {
    let wanted = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(unasked));
    // Beside the other, not part of it: a directive for one target of a library would overrule one for all of it.
    let capped = filter_fn(|about| *about.level() <= cap(about.target()));
    let lines = fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(wanted).with(capped).with(lines).init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_capped_with_all_below_them_and_we_are_not() {
        for target in [
            "h2",
            "h2::codec::framed_read",
            "hyper::proto::h1::io",
            "sqlx_core::logger",
            "hyper_util::client",
        ] {
            assert_eq!(cap(target), LevelFilter::INFO, "{target}");
        }
        assert_eq!(cap("s3s::service"), LevelFilter::OFF);
        for target in ["cyxcloud_gateway::serve", "h2spec", "s3", "s3sx", "cyxwiz_client"] {
            assert_eq!(cap(target), LevelFilter::TRACE, "{target}");
        }
    }

    #[test]
    fn no_directive_overrules_a_cap() {
        use std::sync::{Arc, Mutex};

        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().expect("not poisoned").extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::registry()
            .with(EnvFilter::new("trace,h2::codec=trace,s3s=trace"))
            .with(filter_fn(|about| *about.level() <= cap(about.target())))
            .with(fmt::layer().with_writer(move || writer.clone()));
        tracing::subscriber::with_default(log, || {
            tracing::trace!(target: "h2::codec", "hush");
            tracing::error!(target: "s3s::service", "hush");
            tracing::info!(target: "h2::codec", "a library's news");
            tracing::trace!(target: "cyxcloud_node", "ours");
        });
        let text = String::from_utf8(lines.0.lock().expect("not poisoned").clone()).expect("text");
        assert!(!text.contains("hush"), "{text}");
        assert!(text.contains("a library's news") && text.contains("ours"), "{text}");
    }
}
