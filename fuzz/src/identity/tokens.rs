//! Tokens of the service: each opens the door of its kind, and what nobody signed opens none.

use cyxcloud_core::claims::{IDENTITY_AUDIENCE, LEEWAY_SECS, TokenKind, key_id};
use cyxcloud_core::{OwnerId, Timestamp};
use cyxwiz_api::fuzzing as api;
use http::{HeaderMap, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::input::{Draft, Input, edited};

pub const SECRET: &str = "0123456789abcdef0123456789abcdef-fuzz";
pub const KINDS: [TokenKind; 5] =
    [TokenKind::Access, TokenKind::Refresh, TokenKind::Service, TokenKind::Node, TokenKind::ApiKey];
const NOW_SECS: u64 = 1_703_808_000;

pub fn run(mut input: Input<'_>) {
    match input.u8() % 3 {
        0 => {
            let Ok(text) = std::str::from_utf8(input.rest()) else { return };
            assert_eq!(opened(text), None, "a token was forged");
        }
        1 => pair(input),
        _ => claimed(input),
    }
}

/// The door that a token opens.
fn opened(token: &str) -> Option<TokenKind> {
    let now = Timestamp::from_unix_millis((NOW_SECS * 1000) as i64);
    let mut kinds = KINDS.into_iter().filter(|kind| api::open(SECRET, token, *kind, now).is_some());
    let kind = kinds.next();
    assert_eq!(kinds.next(), None, "it opens two doors");
    kind
}

/// The audience of tokens of a kind.
pub fn audience(kind: TokenKind) -> &'static str {
    if kind == TokenKind::Access { api::NAME } else { IDENTITY_AUDIENCE }
}

/// A token with any claims.
pub fn sign(claims: &Value) -> String {
    let header = Header { kid: Some(key_id(SECRET.as_bytes())), ..Header::new(Algorithm::HS256) };
    encode(&header, claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("encodes")
}

/// A log-in's tokens as they come out of the answer, and what becomes of them on their way.
fn pair(mut input: Input<'_>) {
    let user = OwnerId::from_random(input.array());
    let ids = [Uuid::from_bytes(input.array()), Uuid::from_bytes(input.array())];
    let answer = api::pair(SECRET, user, ids, NOW_SECS - input.below(3_000) as u64).to_string();
    let read = cyxwiz_client::fuzzing::tokens(StatusCode::OK, &HeaderMap::new(), answer.as_bytes());
    let read = read.expect("is an answer");
    assert_eq!(read.expires_in, api::ACCESS_SECS);
    let (access, refresh) = (read.access_token.expose_secret(), read.refresh_token.expose_secret());
    assert_eq!((opened(access), opened(refresh)), (Some(TokenKind::Access), Some(TokenKind::Refresh)));
    for token in [access, refresh] {
        let Ok(text) = String::from_utf8(edited(token.as_bytes(), &mut input)) else { continue };
        assert!(text == *token || opened(&text).is_none(), "a changed token was believed: {text}");
    }
}

/// Any claims under a right signature.
fn claimed(mut input: Input<'_>) {
    let kind = KINDS[usize::from(input.u8()) % KINDS.len()];
    let Ok(claims) = serde_json::from_slice::<Value>(input.rest()) else { return };
    if !claims.is_object() || opened(&sign(&claims)) != Some(kind) {
        return;
    }
    let secs = |name: &str| claims[name].as_u64().expect("is a number of seconds");
    assert_eq!(claims["typ"], serde_json::to_value(kind).expect("is JSON"));
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!(api::NAME), &json!(audience(kind))));
    assert!(claims["sub"].is_string() && claims["jti"].as_str().is_some_and(|id| !id.is_empty()));
    assert!(secs("exp").saturating_add(LEEWAY_SECS) > NOW_SECS && secs("iat") < secs("exp"));
    assert!(secs("iat") <= NOW_SECS + LEEWAY_SECS);
    assert!(claims.get("nbf").is_none() || secs("nbf") <= NOW_SECS + LEEWAY_SECS);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let claims = |kind: u8, typ: &str, aud: &str| {
        let text = format!(
            "{{\"sub\":\"6b1ee5b8-5d7c-4f6c-9d4c-6f0e4c1e0a01\",\"typ\":\"{typ}\",\"iat\":1703807995,\"exp\":1703811600,\
             \"jti\":\"a1\",\"iss\":\"cyxcloud\",\"aud\":\"{aud}\",\"nbf\":1703808000}}"
        );
        Draft::default().u8(2).u8(kind).rest(text)
    };
    let pair = [7; 48].into_iter().fold(Draft::default().u8(1), Draft::u8);
    vec![
        Draft::default().u8(0).rest("eyJhbGciOiJub25lIn0.e30."),
        pair.u32(5).u32(0).u32(90).u8(1).u8(b'x').u32(0).u32(40).u8(0).u8(1).rest([]),
        claims(0, "access", "cyxcloud"),
        claims(2, "service", "cyxwiz-api"),
    ]
}
