//! What can go wrong between us and the gateway, and what to do about it.

use std::time::Duration;

use super::Server;
use crate::progress::printable;

/// Why a request failed. Printed, it is one line that says what to do next.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Not even connected.
    #[error("{}", unreachable(*.server, .url, .reason))]
    Unreachable { server: Server, url: String, reason: String },
    /// Connected, and then not any more.
    #[error("the connection to the gateway broke ({0}); try again")]
    Broken(String),
    /// Connected, and then silence.
    #[error("the gateway did not answer for {} s; try again, or look at its log", .0.as_secs())]
    Silent(Duration),
    /// The gateway answered no.
    #[error("{}", refusal(.code, .message, *.status))]
    Refused { status: u16, code: String, message: String, retry_after: Option<Duration> },
    /// The gateway answered something else.
    #[error("the gateway's answer is not understood ({0}); is the address that of a CyxCloud gateway?")]
    Garbled(String),
    /// Nobody is logged in any more.
    #[error("the session has expired ({}); run `cyxcloud-cli login`", printable(.0))]
    LoggedOut(String),
    /// Whoever wanted to log in may not.
    #[error("could not log in: {}", printable(.0))]
    NotLetIn(String),
    /// The session cannot be kept.
    #[error("could not renew the session: {0}")]
    Session(String),
    /// A key that the address cannot carry.
    #[error("{0:?} cannot be sent as part of an address")]
    Address(String),
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// See `exit_code` in `main`.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => 5,
            Self::Interrupted => 130,
            Self::Refused { status: 404, .. } => 3,
            Self::Refused { status: 401 | 403, .. } | Self::LoggedOut(_) | Self::NotLetIn(_) => 4,
            Self::Session(_) => 2,
            Self::Broken(_)
            | Self::Silent(_)
            | Self::Refused { .. }
            | Self::Garbled(_)
            | Self::Address(_) => 1,
        }
    }

    /// Whether the same request may well succeed a little later.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken(_) | Self::Silent(_) => true,
            Self::Refused { status, code, .. } => {
                matches!(status, 429 | 500 | 502 | 503 | 504)
                    // Damaged on its way.
                    || matches!(code.as_str(), "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" | "RequestTimeout")
            }
            Self::Garbled(_)
            | Self::LoggedOut(_)
            | Self::NotLetIn(_)
            | Self::Session(_)
            | Self::Address(_)
            | Self::Interrupted => false,
        }
    }

    /// Whether the gateway cannot have acted on the request.
    pub(crate) fn never_arrived(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => matches!(status, 429 | 503),
            Self::Broken(_)
            | Self::Silent(_)
            | Self::Garbled(_)
            | Self::LoggedOut(_)
            | Self::NotLetIn(_)
            | Self::Session(_)
            | Self::Address(_)
            | Self::Interrupted => false,
        }
    }

    /// Whether every other request would fail the same way.
    pub(crate) fn concerns_all(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::LoggedOut(_)
            | Self::NotLetIn(_)
            | Self::Session(_)
            | Self::Interrupted => true,
            Self::Refused { code, .. } => {
                matches!(
                    code.as_str(),
                    "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "RequestTimeTooSkewed" | "NoSuchBucket"
                )
            }
            Self::Broken(_) | Self::Silent(_) | Self::Garbled(_) | Self::Address(_) => false,
        }
    }

    /// Whether this is the answer with this S3 code.
    pub(crate) fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }
}

fn unreachable(server: Server, url: &str, reason: &str) -> String {
    let (name, option) = match server {
        Server::Gateway => ("gateway", "--gateway (or CYXCLOUD_GATEWAY)"),
        Server::Identity => ("identity service", "--api-url (or CYXWIZ_API_URL)"),
    };
    format!("cannot reach the {name} at {url} ({reason}); is it running, and is {option} right?")
}

fn refusal(code: &str, message: &str, status: u16) -> String {
    let advice = match (code, status) {
        ("NoSuchBucket", _) => "; `cyxcloud-cli list` shows the buckets there are",
        ("NoSuchKey", _) => "; `cyxcloud-cli list --bucket BUCKET` shows the keys there are",
        ("RequestTimeTooSkewed", _) => "; correct this machine's clock",
        ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AccessDenied", _) | (_, 401 | 403) => {
            "; check who you are with `cyxcloud-cli whoami`, or CYXCLOUD_ACCESS_KEY and CYXCLOUD_SECRET_KEY"
        }
        ("BucketNotEmpty", _) => {
            "; empty it first with `cyxcloud-cli delete --bucket BUCKET --key '' --recursive`"
        }
        ("PreconditionFailed", _) => "; the object was changed meanwhile, try again",
        ("EntityTooLarge", _) => "",
        (_, 429 | 500..) => "; try again later, or look at the gateway's log",
        _ => "",
    };
    let text = match (code, message) {
        ("", "") => format!("the gateway answered HTTP {status}"),
        ("", message) => message.to_owned(),
        (code, "") => code.to_owned(),
        (code, message) => format!("{} ({code})", message.trim_end_matches('.')),
    };
    format!("{}{advice}", printable(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str, message: &str) -> Error {
        Error::Refused { status, code: code.into(), message: message.into(), retry_after: None }
    }

    #[test]
    fn refusals_are_one_line_with_advice() {
        let text = refused(404, "NoSuchKey", "no such\nkey.").to_string();
        assert_eq!(
            text,
            "no such\\nkey (NoSuchKey); `cyxcloud-cli list --bucket BUCKET` shows the keys there are"
        );
        assert_eq!(
            refused(502, "", "").to_string(),
            "the gateway answered HTTP 502; try again later, or look at the gateway's log"
        );
    }

    #[test]
    fn what_passes_is_tried_again() {
        assert!(refused(503, "SlowDown", "").passes());
        assert!(refused(400, "BadDigest", "").passes());
        assert!(!refused(400, "InvalidRequest", "").passes());
        assert!(!refused(404, "NoSuchKey", "").passes());
        assert!(refused(503, "SlowDown", "").never_arrived());
        assert!(!refused(500, "InternalError", "").never_arrived());
    }

    #[test]
    fn exit_codes_tell_apart() {
        assert_eq!(refused(404, "NoSuchKey", "").exit_code(), 3);
        assert_eq!(refused(403, "AccessDenied", "").exit_code(), 4);
        assert_eq!(refused(500, "", "").exit_code(), 1);
        assert_eq!(Error::Interrupted.exit_code(), 130);
    }
}
