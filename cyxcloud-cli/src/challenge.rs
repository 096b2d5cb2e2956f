//! What a gateway asks a wallet to sign, and whether it is signed.
//!
//! Pure. Every line of the text must be what it should be, and there are no others. A gateway may hand on what another
//! one asks, whose door the signature would open. So the text names a gateway, and is signed for no other than that.
//! Not here: the signature ([`crate::wallet`]).

use std::net::IpAddr;

use chrono::DateTime;
use reqwest::Url;

// By `super`: the fuzz targets include this file, too.
use super::config::url_text;

/// The first line.
const TITLE: &str = "CyxCloud Auth";
/// Longest value in a line; a domain has 253 characters at most.
const VALUE_MAX: usize = 300;
/// Characters of a text that is not understood which people are shown.
const SHOWN_MAX: usize = 400;

/// A text that is not signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "{gateway} asks the wallet to sign something other than a log-in with it: \"{text}\"; nothing was signed, is that the \
         URL of a CyxCloud gateway?"
    )]
    NotALogIn { gateway: String, text: String },
    #[error(
        "{gateway} asks the wallet to sign a log-in to {domain:?} ({chain}), which is not its name: with that signature it \
         could log in there as you; nothing was signed, check --gateway, or give the name with --auth-domain if you know that \
         it is this gateway's"
    )]
    Elsewhere { gateway: String, domain: String, chain: String },
}

/// Of whom a signature was wanted, and by whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) gateway: &'a Url,
    /// A name of the gateway that the user knows.
    pub(crate) known_as: Option<&'a str>,
    /// The wallet's address.
    pub(crate) wallet: &'a str,
    /// The nonce that came with the text.
    pub(crate) nonce: &'a str,
}

/// A log-in that may be signed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogIn<'a> {
    text: &'a str,
    domain: &'a str,
    chain: &'a str,
}

impl<'a> LogIn<'a> {
    /// The log-in that this text is, if it is one of this wallet to this gateway.
    pub(crate) fn accept(text: &'a str, asked: &Asked<'_>) -> Result<Self, Error> {
        let gateway = || url_text(asked.gateway).to_owned();
        let Some(log_in) = Self::parse(text, asked) else {
            return Err(Error::NotALogIn { gateway: gateway(), text: shown(text) });
        };
        let known = asked.known_as.is_some_and(|name| log_in.domain.eq_ignore_ascii_case(name));
        if known || is_name_of(log_in.domain, asked.gateway) {
            return Ok(log_in);
        }
        let (domain, chain) = (log_in.domain.to_owned(), log_in.chain.to_owned());
        Err(Error::Elsewhere { gateway: gateway(), domain, chain })
    }

    fn parse(text: &'a str, asked: &Asked<'_>) -> Option<Self> {
        let mut lines = text.split('\n');
        if lines.next() != Some(TITLE) {
            return None;
        }
        let mut value = |name: &str| {
            let value = lines.next()?.strip_prefix(name)?.strip_prefix(": ")?;
            let plain = value.bytes().all(|byte| matches!(byte, b' '..=b'~')) && value.trim() == value;
            (plain && (1..=VALUE_MAX).contains(&value.len())).then_some(value)
        };
        if value("Wallet")? != asked.wallet || value("Nonce")? != asked.nonce {
            return None;
        }
        let issued = DateTime::parse_from_rfc3339(value("Time")?).ok()?;
        let expires = DateTime::parse_from_rfc3339(value("Expires")?).ok()?;
        let log_in = Self { text, domain: value("Domain")?, chain: value("Chain")? };
        (issued < expires && lines.next().is_none()).then_some(log_in)
    }

    /// What is signed.
    pub(crate) const fn text(&self) -> &'a str {
        self.text
    }

    /// Who is logged in to.
    pub(crate) const fn domain(&self) -> &'a str {
        self.domain
    }

    /// The chain that the wallet is said to belong to.
    pub(crate) const fn chain(&self) -> &'a str {
        self.chain
    }
}

/// Whether a domain is the host of this URL, without a port or with the URL's. Gateways on this machine may be called
/// `localhost`, whichever of its addresses the URL has.
fn is_name_of(domain: &str, gateway: &Url) -> bool {
    let host = gateway.host_str().unwrap_or_default();
    let port = gateway.port_or_known_default().unwrap_or_default();
    let is = |name: &str| {
        domain.eq_ignore_ascii_case(name) || domain.eq_ignore_ascii_case(&format!("{name}:{port}"))
    };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    is(host) || (address.is_ok_and(|address| address.is_loopback()) && is("localhost"))
}

/// The beginning of a text, so that it cannot be taken for something that we say.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_default).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALLET: &str = "5xK4gM";

    /// As a gateway writes it.
    fn text(domain: &str) -> String {
        format!(
            "CyxCloud Auth\nWallet: {WALLET}\nNonce: n1\nTime: 2030-01-01T00:00:00.000Z\n\
             Expires: 2030-01-01T00:05:00.000Z\nDomain: {domain}\nChain: solana:mainnet"
        )
    }

    /// The domain that is logged in to.
    fn judge(text: &str, gateway: &str, known_as: Option<&str>) -> Result<String, Error> {
        let gateway: Url = gateway.parse().expect("a URL");
        let asked = Asked { gateway: &gateway, known_as, wallet: WALLET, nonce: "n1" };
        LogIn::accept(text, &asked).map(|log_in| {
            assert_eq!((log_in.text(), log_in.chain()), (text, "solana:mainnet"));
            log_in.domain().to_owned()
        })
    }

    #[test]
    fn log_ins_to_the_gateway_that_is_asked_are_signed() {
        for (domain, gateway, known_as) in [
            ("files.example", "https://files.example", None),
            ("Files.EXAMPLE", "https://files.example/base", None),
            ("files.example", "http://FILES.example:8080", None),
            ("files.example:8080", "http://files.example:8080", None),
            ("files.example:443", "https://files.example", None),
            ("10.0.0.1", "http://10.0.0.1:8080", None),
            ("[2001:db8::1]", "https://[2001:db8::1]", None),
            ("[2001:db8::1]:443", "https://[2001:db8::1]", None),
            ("localhost", "http://localhost:8080", None),
            ("localhost", "http://127.0.0.1:8080", None),
            ("LOCALHOST:8080", "http://127.8.9.1:8080", None),
            ("localhost", "http://[::1]:8080", None),
            ("127.0.0.1", "http://127.0.0.1:8080", None),
            ("cloud.example", "https://files.example", Some("Cloud.example")),
            ("localhost", "https://files.example", Some("localhost")),
            ("The Cloud", "https://files.example", Some("The Cloud")),
            ("files.example", "https://files.example", Some("cloud.example")),
        ] {
            let judged = judge(&text(domain), gateway, known_as);
            assert_eq!(judged.ok().as_deref(), Some(domain), "{domain} at {gateway}");
        }
    }

    #[test]
    fn log_ins_elsewhere_are_not_signed() {
        for (domain, gateway, known_as) in [
            ("files.example", "https://evil.example", None),
            ("files.example", "http://127.0.0.1:8080", None),
            ("files.example", "https://files.example.evil.example", None),
            ("files.example", "https://evil-files.example", None),
            ("a.files.example", "https://files.example", None),
            ("files.example:444", "https://files.example", None),
            ("files.example:", "https://files.example", None),
            ("files.example.", "https://files.example", None),
            ("https://files.example", "https://files.example", None),
            ("files.example files.example", "https://files.example", None),
            ("localhost", "https://files.example", None),
            ("localhost", "http://10.0.0.1:8080", None),
            ("localhost", "http://localhost.evil.example", None),
            ("localhost:8081", "http://127.0.0.1:8080", None),
            ("127.0.0.1", "http://127.0.0.2:8080", None),
            ("files.example", "https://evil.example", Some("cloud.example")),
            ("files.example", "https://evil.example", Some("")),
            ("files.example", "https://evil.example", Some("files.example:443")),
        ] {
            let judged = judge(&text(domain), gateway, known_as);
            assert!(matches!(judged, Err(Error::Elsewhere { .. })), "{domain} at {gateway}: {judged:?}");
        }
    }

    #[test]
    fn texts_that_are_something_else_are_not_signed() {
        let good = text("files.example");
        let other = |from: &str, to: &str| {
            assert!(good.contains(from), "{from}");
            good.replacen(from, to, 1)
        };
        for bad in [
            String::new(),
            "\u{1}\u{0}\u{5}".to_owned(),
            format!("x{good}"),
            format!("\n{good}"),
            format!("{good}\n"),
            format!("{good}\nAmount: 1"),
            good.replace('\n', "\r\n"),
            other("CyxCloud Auth", "CyxWiz wallet verification"),
            other(WALLET, "5xK4gN"),
            other("Wallet: ", "wallet: "),
            other("n1", "n2"),
            other("Nonce: n1\n", ""),
            other("Nonce: n1\n", "Nonce: n1\nNonce: n1\n"),
            other("Time: 2030-01-01T00:00:00.000Z", "Time: now"),
            other("Time: 2030", "Time: 2031"),
            other("Domain: files.example", "Domain: "),
            other("Domain: files.example", "Domain:files.example"),
            other("Domain: files.example", "Domain:  files.example"),
            other("Domain: files.example", "Domain: files.example "),
            other("Domain: files.example\n", ""),
            other("Domain: files.example\n", "Domain: files.example\nDomain: files.example\n"),
            other(
                "Domain: files.example\nChain: solana:mainnet",
                "Chain: solana:mainnet\nDomain: files.example",
            ),
            other("\nChain: solana:mainnet", ""),
            text("files.ex\u{e4}mple"),
            text("files.\u{1b}[2Jexample"),
            text(&"a".repeat(VALUE_MAX + 1)),
        ] {
            let judged = judge(&bad, "https://files.example", Some("files.example"));
            assert!(matches!(judged, Err(Error::NotALogIn { .. })), "{bad:?}: {judged:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_was_asked_and_what_to_do() {
        let said =
            judge(&text("files.example"), "https://evil.example/", None).expect_err("elsewhere").to_string();
        for part in [
            "https://evil.example asks",
            "\"files.example\"",
            "solana:mainnet",
            "nothing was signed",
            "--auth-domain",
        ] {
            assert!(said.contains(part), "{said}");
        }
        let long = format!("pay\n\u{202e}{}", "x".repeat(1_000));
        let said = judge(&long, "https://evil.example", None).expect_err("no log-in").to_string();
        assert!(said.contains("\"pay\\n\\u{202e}xxx") && said.contains("xxx...\""), "{said}");
        assert!(said.contains("nothing was signed") && said.len() < 700, "{said}");
    }
}
