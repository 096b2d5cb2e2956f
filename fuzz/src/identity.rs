//! Who people are, by the identity service: what strangers send it, and what nodes, gateways and the command line read of it. What is
//! taken has its form and its bounds, and one spelling; both sides read the same; and no door opens but by the right token.
//!
//! Of the service only the database is missing: who gets as far as that is told that it does not answer.

mod answers;
mod requests;
mod tokens;
mod wallets;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cyxcloud_core::receipt::is_usable_key;
use cyxcloud_core::sigv4::uri_encode;
use cyxcloud_gateway::identity::challenge::Wallet;
use cyxcloud_tls::client;
use cyxwiz_api::fuzzing as api;
use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use serde_json::Value;

use super::input::{Draft, Input};

const FORWARDED: &str = "x-forwarded-for";

/// Fields of each form of body: those that must be there, and those that may.
const FIELDS: &[(&str, &[&str], &[&str])] = &[
    ("register", &["email", "password"], &["username", "registration_token"]),
    ("login", &["email", "password"], &[]),
    ("change", &[], &["email", "username", "password", "current_password"]),
    ("machine", &["name", "peer_id"], &["storage_bytes", "region", "version"]),
    ("challenge", &["wallet_address"], &[]),
    ("verify", &["wallet_address", "signature", "nonce"], &[]),
];

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 8 {
        0 => addresses(input),
        1 => names(input.rest()),
        2 => bodies(input),
        3 => machines(input),
        4 => tokens::run(input),
        5 => answers::run(input),
        6 => wallets::run(input),
        _ => requests::run(input),
    }
}

/// Nobody but a proxy is believed, and what stands before the client in the chain, which anybody may have written, changes nothing.
fn addresses(mut input: Input<'_>) {
    let trusted: Vec<IpNet> = input.text(100).split(',').filter_map(|net| net.trim().parse().ok()).collect();
    let peer = match input.u8() % 2 {
        0 => IpAddr::V4(Ipv4Addr::from(input.array::<4>())),
        _ => IpAddr::V6(Ipv6Addr::from(input.array::<16>())),
    };
    let forged = HeaderValue::from_bytes(input.some(100)).ok();
    let mut headers = HeaderMap::new();
    for _ in 0..input.u8() % 4 {
        if let Ok(line) = HeaderValue::from_bytes(input.some(100)) {
            headers.append(FORWARDED, line);
        }
    }
    let found = client::of_request(&headers, peer, &trusted);
    let is_proxy = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    assert!(found == peer.to_canonical() || is_proxy(peer.to_canonical()), "a stranger was believed");
    assert_eq!(client::address_group(found), client::address_group(found.to_canonical()));
    let Some(forged) = forged.filter(|_| !is_proxy(found)) else { return };
    let mut longer = HeaderMap::new();
    longer.append(FORWARDED, forged);
    for line in headers.get_all(FORWARDED) {
        longer.append(FORWARDED, line.clone());
    }
    assert_eq!(client::of_request(&longer, peer, &trusted), found, "{longer:?}");
}

fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(email) = api::email(text) {
        let (name, domain) = email.split_once('@').expect("has both");
        assert!(!name.is_empty() && domain.len() > 1 && !domain.contains('@') && email.len() <= 254);
        assert!(!email.contains(|c: char| c.is_whitespace() || c.is_control()), "{email:?}");
        assert_eq!(api::email(&email).as_ref(), Some(&email), "kept in another form");
        assert!(!text.is_ascii() || api::email(&text.to_ascii_uppercase()) == Some(email));
    }
    if let Some(name) = api::username(text) {
        assert_eq!((name, uri_encode(name, true).as_str()), (text, text));
        assert!((3..=32).contains(&name.len()));
    }
    assert_eq!(api::is_password(text), text.chars().count() >= 12 && text.len() <= 1024);
    let key = api::wallet(text);
    assert!(key.is_none_or(|key| bs58::encode(key).into_string() == text), "another spelling of a wallet");
    assert_eq!(Wallet::parse(text).is_some(), key.is_some_and(|key| is_usable_key(&key)));
    let signature = api::signature(text);
    assert!(signature.is_none_or(|signature| bs58::encode(signature).into_string() == text));
}

/// What is taken has all fields that it needs, no others, and each of its type.
fn bodies(mut input: Input<'_>) {
    let (form, is_one) = api::BODIES[usize::from(input.u8()) % api::BODIES.len()];
    let body = input.rest();
    if !is_one(body) {
        return;
    }
    let value: Value = serde_json::from_slice(body).expect("is JSON");
    let Value::Object(fields) = &value else {
        // A list of the fields in their order is read as well.
        return assert!(value.is_array(), "{value}");
    };
    let (_, must, may) = FIELDS.iter().find(|(name, ..)| *name == form).expect("is known");
    assert!(must.iter().all(|name| fields.get(*name).is_some_and(Value::is_string)), "{form}: {value}");
    for (name, field) in fields {
        let right = if name == "storage_bytes" { field.is_u64() } else { field.is_string() };
        let optional = may.contains(&name.as_str());
        assert!(must.contains(&name.as_str()) || optional, "{form}: {value}");
        assert!(right || optional && field.is_null(), "{form}: {value}");
    }
}

/// What a node says of itself arrives whole, or not at all.
fn machines(mut input: Input<'_>) {
    let machine = cyxwiz_client::Machine {
        name: input.text(300),
        peer_id: input.text(300),
        storage_bytes: input.u64(),
        region: (input.u8() & 1 != 0).then(|| input.text(300)),
        version: input.text(300),
    };
    let plain =
        |text: &String| (1..=128).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    let texts = [&machine.name, &machine.peer_id, &machine.version];
    let fits =
        texts.into_iter().chain(&machine.region).all(plain) && i64::try_from(machine.storage_bytes).is_ok();
    let kept = api::machine(&serde_json::to_vec(&machine).expect("is JSON"));
    let told = api::Machine {
        name: machine.name,
        peer_id: machine.peer_id,
        storage_bytes: Some(machine.storage_bytes),
        region: machine.region,
        version: Some(machine.version),
    };
    assert_eq!(kept, fits.then_some(told));
}

pub fn seeds() -> Vec<Vec<u8>> {
    let chain = |trusted: &str, peer: [u8; 4], forged: &str, lines: &[&str]| {
        let draft = Draft::default().u8(0).some(trusted).u8(0);
        let draft = peer.into_iter().fold(draft, Draft::u8).some(forged).u8(lines.len() as u8);
        lines.iter().fold(draft, |draft, line| draft.some(line)).rest([])
    };
    let name = |text: &str| Draft::default().u8(1).rest(text);
    let body = |form: u8, text: &str| Draft::default().u8(2).u8(form).rest(text);
    let machine = Draft::default().u8(3).some("node-1").some("12D3KooWPeer").u64(1 << 40).u8(1).some("eu");
    let mut all = vec![
        chain("10.0.0.0/8", [10, 0, 0, 1], "6.6.6.6", &["203.0.113.7, 198.51.100.1, 10.2.3.4"]),
        chain("10.0.0.0/8,fd00::/8", [10, 0, 0, 1], "\u{fc}", &["198.51.100.1", "::ffff:10.0.0.2", "\u{fc}"]),
        chain("", [192, 0, 2, 9], "x", &["198.51.100.1"]),
        name(" Node@Example.ORG "),
        name("a.b-c_9"),
        name("So11111111111111111111111111111111111111112"),
        name("5J3mBbAH58CpQ3Y5RNJpUKPE62SQ5tfcvU2JpbnkeyhfsYB1Jcn9Zr2nGrc7Kd1uPjHk8wZ6KqX3t9vYfLmN4aTs"),
        body(0, "{\"email\":\"a@b.de\",\"password\":\"correct horse\",\"username\":null}"),
        body(1, "[\"a@b.de\",\"correct horse\"]"),
        body(2, "{\"password\":\"correct horse\",\"current_password\":\"x\"}"),
        body(3, "{\"name\":\"n\",\"peer_id\":\"p\",\"storage_bytes\":5,\"region\":null}"),
        body(5, "{\"wallet_address\":\"w\",\"signature\":\"s\",\"nonce\":\"n\"}"),
        machine.some("0.1.0").rest([]),
    ];
    for (choice, seeds) in
        [(4, tokens::seeds()), (5, answers::seeds()), (6, wallets::seeds()), (7, requests::seeds())]
    {
        all.extend(seeds.into_iter().map(|seed| Draft::default().u8(choice).rest(seed)));
    }
    all
}
