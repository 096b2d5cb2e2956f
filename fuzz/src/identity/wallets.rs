//! Log-ins by wallet. The command line signs a log-in to the gateway that it asks and nothing else, whatever that is called; and what a
//! gateway asks for under its own name is signed.

use std::net::IpAddr;
use std::time::Duration;

use cyxcloud_core::Timestamp;
use cyxcloud_core::receipt::NodeKey;
use cyxcloud_gateway::identity::challenge::{Binding, Wallet};
use reqwest::Url;

use super::super::cli::challenge::{Asked, LogIn};
use super::super::input::{Draft, Input, edited};

const GATEWAYS: [&str; 5] = [
    "https://files.example",
    "http://files.example:8080/base",
    "http://127.0.0.1:8080",
    "https://[2001:db8::1]",
    "http://localhost",
];

pub fn run(mut input: Input<'_>) {
    let gateway = GATEWAYS[usize::from(input.u8()) % GATEWAYS.len()];
    let gateway: Url = gateway.parse().expect("a URL");
    let known_as = (input.u8() & 1 != 0).then(|| input.text(60));
    let nonce = input.text(60);
    let key = NodeKey::from_seed([3; 32]);
    let address = bs58::encode(key.public()).into_string();
    let asked = Asked { gateway: &gateway, known_as: known_as.as_deref(), wallet: &address, nonce: &nonce };
    if input.u8() & 1 == 0 {
        let Ok(text) = std::str::from_utf8(input.rest()) else { return };
        strange(&text.replace("{wallet}", &address), &asked);
    } else {
        ours(input, &key, &asked);
    }
}

/// Names of the gateway that is asked.
fn names(asked: &Asked<'_>) -> Vec<String> {
    let host = asked.gateway.host_str().expect("has one").to_owned();
    let port = asked.gateway.port_or_known_default().expect("is known");
    let here = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_loopback());
    let hosts = [Some(host), here.then(|| "localhost".to_owned())].into_iter().flatten();
    let both = hosts.flat_map(|host| [format!("{host}:{port}"), host]);
    both.chain(asked.known_as.map(str::to_owned)).collect()
}

fn is_name(asked: &Asked<'_>, domain: &str) -> bool {
    names(asked).iter().any(|name| name.eq_ignore_ascii_case(domain))
}

/// What is signed is a log-in from its first to its last byte, and to nobody else.
fn strange(text: &str, asked: &Asked<'_>) {
    let Ok(log_in) = LogIn::accept(text, asked) else { return };
    assert_eq!(log_in.text(), text);
    let lines: Vec<&str> = text.split('\n').collect();
    let [title, wallet, nonce, time, expires, domain, chain] = lines[..] else { panic!("{text:?}") };
    assert_eq!(title, "CyxCloud Auth");
    assert_eq!(wallet, format!("Wallet: {}", asked.wallet));
    assert_eq!(nonce, format!("Nonce: {}", asked.nonce));
    assert!(time.starts_with("Time: ") && expires.starts_with("Expires: "), "{text:?}");
    assert_eq!(domain, format!("Domain: {}", log_in.domain()));
    assert_eq!(chain, format!("Chain: {}", log_in.chain()));
    assert!(lines.iter().all(|line| line.bytes().all(|byte| matches!(byte, b' '..=b'~'))), "{text:?}");
    assert!(is_name(asked, log_in.domain()), "a log-in to {:?} was accepted", log_in.domain());
}

/// As a gateway writes it; and its signature is that of this text only.
fn ours(mut input: Input<'_>, key: &NodeKey, asked: &Asked<'_>) {
    let own = input.u8() & 1 != 0;
    let (domain, chain) = (input.text(400), input.text(400));
    let domain = if own { names(asked).swap_remove(0) } else { domain };
    let issued = Timestamp::from_unix_millis(i64::from(input.u32()) * 1000);
    let wallet = Wallet::parse(asked.wallet).expect("an address");
    let binding = Binding { domain: domain.clone(), chain: chain.clone() };
    let text = binding.challenge(&wallet, asked.nonce, issued, issued.plus(Duration::from_secs(300)));
    let plain = |value: &str| {
        let printable = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        (1..=300).contains(&value.len()) && value.trim() == value && printable
    };
    let right = plain(&domain) && plain(&chain) && plain(asked.nonce) && is_name(asked, &domain);
    assert_eq!(LogIn::accept(&text, asked).is_ok(), right, "{text:?} of {}", asked.gateway);
    strange(&text, asked);
    let signature = bs58::encode(key.sign(text.as_bytes())).into_string();
    assert!(wallet.signed(&text, &signature));
    let Ok(changed) = String::from_utf8(edited(text.as_bytes(), &mut input)) else { return };
    assert_eq!(wallet.signed(&changed, &signature), changed == text, "{changed:?}");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let text = |gateway: u8, domain: &str| {
        let text = format!(
            "CyxCloud Auth\nWallet: {{wallet}}\nNonce: n1\nTime: 2030-01-01T00:00:00.000Z\n\
             Expires: 2030-01-01T00:05:00.000Z\nDomain: {domain}\nChain: solana:mainnet"
        );
        Draft::default().u8(gateway).u8(0).some("n1").u8(0).rest(text)
    };
    let ours = |own: u8, domain: &str| {
        let draft = Draft::default().u8(1).u8(1).some("Cloud.example").some("n1").u8(1).u8(own);
        draft.some(domain).some("solana:mainnet").u32(1_900_000_000).u32(0).u32(20).u8(0).rest([1])
    };
    vec![
        text(0, "files.example"),
        text(1, "Files.EXAMPLE:8080"),
        text(2, "localhost:8080"),
        text(0, "evil.example"),
        ours(1, ""),
        ours(0, "cloud.example"),
        ours(0, "files.example\nChain: solana:devnet"),
    ]
}
