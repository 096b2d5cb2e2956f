//! Tokens: none opens anything that we did not sign, and what we signed is judged as the claims say, read by another reader.

use cyxcloud_core::Timestamp;
use cyxcloud_core::claims::{LEEWAY_SECS, TokenKind, key_id};
use cyxcloud_gateway::auth::{JwtConfig, Token};
use cyxcloud_gateway::fuzzing::verify_token;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::input::{Draft, Input, edited};

const SECRET: &str = "0123456789abcdef0123456789abcdef-fuzz";
const NOW_SECS: u64 = 1_703_808_000;
const KINDS: [TokenKind; 2] = [TokenKind::Access, TokenKind::ApiKey];

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 3 {
        0 => {
            let Ok(text) = std::str::from_utf8(input.rest()) else { return };
            assert!(verify(text).is_none(), "a token was forged");
        }
        1 => changed(input),
        _ => claimed(input.rest()),
    }
}

fn verify(token: &str) -> Option<Token> {
    let config = JwtConfig {
        secret: SECRET.into(),
        issuer: "cyxwiz".into(),
        audience: "cyxcloud".into(),
        previous: None,
    };
    let now = Timestamp::from_unix_millis((NOW_SECS * 1000) as i64);
    verify_token(&config, token, now, &KINDS).ok()
}

fn sign(header: &Header, claims: &impl serde::Serialize) -> String {
    encode(header, claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("encodes")
}

fn header(algorithm: Algorithm) -> Header {
    Header { kid: Some(key_id(SECRET.as_bytes())), ..Header::new(algorithm) }
}

fn good() -> Value {
    json!({
        "sub": "6b1ee5b8-5d7c-4f6c-9d4c-6f0e4c1e0a01", "typ": "access", "iat": NOW_SECS - 5,
        "exp": NOW_SECS + 3600, "jti": "a1", "iss": "cyxwiz", "aud": "cyxcloud",
    })
}

/// A true token, and what becomes of it on its way.
fn changed(mut input: Input<'_>) {
    let token = sign(&header(Algorithm::HS256), &good());
    assert!(verify(&token).is_some());
    let Ok(text) = String::from_utf8(edited(token.as_bytes(), &mut input)) else { return };
    assert_eq!(verify(&text).is_some(), text == token, "a changed token was believed: {text}");
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        assert!(verify(&sign(&header(algorithm), &good())).is_none());
    }
    assert!(verify(&sign(&Header::new(Algorithm::HS256), &good())).is_none(), "no key is named");
}

/// Any claims under a right signature.
fn claimed(data: &[u8]) {
    let Ok(claims) = serde_json::from_slice::<Value>(data) else { return };
    let Some(token) = verify(&sign(&header(Algorithm::HS256), &claims)) else {
        assert_ne!(claims, good());
        return;
    };
    let text = |name: &str| claims[name].as_str().expect("is text");
    let secs = |name: &str| claims[name].as_u64().expect("is a number of seconds");
    assert_eq!((text("iss"), text("aud")), ("cyxwiz", "cyxcloud"));
    assert!(["access", "api_key"].contains(&text("typ")));
    assert_eq!((token.id.as_str(), Ok(token.owner)), (text("jti"), text("sub").parse()));
    assert!(!token.id.is_empty());
    assert!(secs("exp").saturating_add(LEEWAY_SECS) > NOW_SECS);
    assert!(secs("iat") <= NOW_SECS + LEEWAY_SECS && secs("iat") < secs("exp"));
    assert!(claims.get("nbf").is_none() || secs("nbf") <= NOW_SECS + LEEWAY_SECS);
    assert_eq!(token.session.is_some(), claims.get("sid").is_some());
    assert_eq!(token.key.as_deref(), claims.get("key").map(|key| key.as_str().expect("is text")));
    assert_eq!(token.version, claims.get("ver").map(|version| version.as_i64().expect("is a number")));
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut full = good();
    for (name, value) in [
        ("wallet", json!(null)),
        ("nbf", json!(NOW_SECS)),
        ("sid", json!("6b1ee5b8-5d7c-4f6c-9d4c-6f0e4c1e0a02")),
        ("key", json!("AKEXAMPLE")),
        ("ver", json!(3)),
    ] {
        full[name] = value;
    }
    let other = encode(&Header::default(), &good(), &EncodingKey::from_secret(b"another")).expect("encodes");
    let claims = |claims: &Value| Draft::default().u8(2).rest(claims.to_string());
    vec![
        Draft::default().u8(0).rest(other),
        Draft::default().u8(0).rest("eyJhbGciOiJub25lIn0.e30."),
        Draft::default().u8(1).u32(0).u32(90).u8(1).rest([b'x']),
        claims(&good()),
        claims(&full),
    ]
}
