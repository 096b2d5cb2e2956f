//! Which web pages may open a socket: those of this host, and those that the operator named.
//!
//! A browser says whose page it is, and no page can make it say otherwise. Whoever sends no origin is no browser; what it
//! may do its credentials decide, as they do here too: an origin opens nothing.

use std::str::FromStr;

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Uri};

/// Where a web page is from: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

/// A text that is no origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an origin is written like https://app.example or http://localhost:3000, without a path")]
pub struct NoOrigin;

fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

impl FromStr for Origin {
    type Err = NoOrigin;

    fn from_str(text: &str) -> Result<Self, NoOrigin> {
        let (scheme, rest) = text.split_once("://").ok_or(NoOrigin)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(NoOrigin),
        };
        let uri: Uri = text.parse().map_err(|_| NoOrigin)?;
        let authority = uri.authority().ok_or(NoOrigin)?;
        if authority.as_str() != rest || rest.contains(['@', '*']) {
            return Err(NoOrigin);
        }
        let (host, port) = host_and_port(authority, secure).ok_or(NoOrigin)?;
        Ok(Self { secure, host, port })
    }
}

fn host_and_port(authority: &Authority, secure: bool) -> Option<(String, u16)> {
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let port = match authority.as_str().strip_prefix(authority.host())? {
        "" => default_port(secure),
        port => port.strip_prefix(':')?.parse().ok()?,
    };
    (!host.is_empty()).then_some((host, port))
}

/// Whose pages may open sockets here, beside this host's own.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    /// These.
    pub named: Vec<Origin>,
    /// All.
    pub any: bool,
}

impl Origins {
    /// Whether a request comes from such a page, or from no page.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(ORIGIN).iter();
        let Some(origin) = origins.next() else { return true };
        if origins.next().is_some() {
            return false;
        }
        if self.any {
            return true;
        }
        let Some(origin) = origin.to_str().ok().and_then(|text| text.parse::<Origin>().ok()) else {
            return false;
        };
        self.named.contains(&origin) || is_own(&origin, headers)
    }
}

/// Whether a page is from the host that is asked. By which scheme it came is not compared: a proxy may have taken TLS off.
fn is_own(origin: &Origin, headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let host = host.and_then(|host| host_and_port(&host, origin.secure));
    host.is_some_and(|(host, port)| host == origin.host && port == origin.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &str, origins: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().expect("a header"));
        for origin in origins {
            headers.append(ORIGIN, origin.parse().expect("a header"));
        }
        headers
    }

    #[test]
    fn adv_33_pages_of_others_open_nothing() {
        let named = vec!["https://app.example".parse().expect("an origin")];
        let origins = Origins { named, any: false };
        for (host, origin) in [
            ("gateway.example", "https://gateway.example"),
            ("gateway.example", "http://gateway.example"),
            ("gateway.example:443", "https://gateway.example"),
            ("Gateway.Example", "https://gateway.example:443"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
            ("gateway.example", "https://app.example"),
            ("gateway.example", "https://APP.example:443"),
        ] {
            assert!(origins.allow(&asked(host, &[origin])), "{host} {origin}");
        }
        for (host, origin) in [
            ("gateway.example", "https://evil.example"),
            ("gateway.example", "https://gateway.example.evil.example"),
            ("gateway.example", "https://evil-gateway.example"),
            ("gateway.example", "https://gateway.example:8443"),
            ("gateway.example:8080", "http://gateway.example"),
            ("gateway.example", "http://app.example"),
            ("gateway.example", "https://sub.app.example"),
            ("gateway.example", "https://gateway.example@evil.example"),
            ("gateway.example", "https://evil.example/https://gateway.example"),
            ("gateway.example", "https://gateway.example/"),
            ("gateway.example", "file://gateway.example"),
            ("gateway.example", "null"),
            ("gateway.example", ""),
            ("gateway.example", "*"),
        ] {
            assert!(!origins.allow(&asked(host, &[origin])), "{host} {origin}");
        }
        assert!(origins.allow(&asked("gateway.example", &[])), "no browser");
        let both = ["https://gateway.example", "https://evil.example"];
        assert!(!origins.allow(&asked("gateway.example", &both)));
        let any = Origins { any: true, ..Origins::default() };
        assert!(
            any.allow(&asked("gateway.example", &["null"])) && !any.allow(&asked("gateway.example", &both))
        );
    }

    #[test]
    fn what_is_no_origin_cannot_be_named() {
        for text in [
            "app.example",
            "https://",
            "https://app.example/",
            "https://app.example/x",
            "https://*",
            "",
            "*",
            "ws://app.example",
            "https://u@app.example",
            "https://app.example:port",
            "https://app.example:",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
