//! What the service answers to nodes and gateways, or whoever is in its place: only one word lets in, and errors say nothing that was
//! secret.

use cyxcloud_core::ByteCount;
use cyxwiz_client::{Error, fuzzing};
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, StatusCode};
use secrecy::ExposeSecret as _;
use serde_json::Value;

use super::super::input::{Draft, Input};

pub fn run(mut input: Input<'_>) {
    let status = StatusCode::from_u16(100 + input.u16() % 900).expect("has three digits");
    let mut headers = HeaderMap::new();
    if let Ok(after) = HeaderValue::from_bytes(input.some(30)) {
        headers.insert(RETRY_AFTER, after);
    }
    let choice = input.u8() % 3;
    let body = input.rest();
    // What is passed over may be more than can be read whole.
    let value = serde_json::from_slice::<Value>(body).ok();
    let failed = match choice {
        0 => account(status, &headers, body, value.as_ref()),
        1 => tokens(status, &headers, body, value.as_ref()),
        _ => machine(status, &headers, body, value.as_ref()),
    };
    if let Err(error) = failed {
        judge(status, &error);
    }
}

/// A field by its name, or by its place in a list.
fn field<'a>(value: &'a Value, name: &str, place: usize) -> Option<&'a Value> {
    value.get(name).or_else(|| value.get(place))
}

fn account(status: StatusCode, headers: &HeaderMap, body: &[u8], value: Option<&Value>) -> Result<(), Error> {
    let account = fuzzing::account(status, headers, body)?;
    let Some(account) = account else {
        assert_eq!(status, StatusCode::NOT_FOUND);
        let kind = value.map(|value| field(value, "type", 0).and_then(Value::as_str));
        assert!(kind.is_none_or(|kind| kind == Some("urn:cyxwiz:problem:not-found")));
        return Ok(());
    };
    assert!(status.is_success());
    let Some(value) = value else { return Ok(()) };
    let quota = field(value, "storage_quota", 0).expect("is there");
    assert_eq!(account.storage_quota.map(ByteCount::get), quota.as_u64());
    let word = field(value, "status", 1).expect("is there");
    assert_eq!(account.suspended, word.as_str() != Some("active"));
    Ok(())
}

fn tokens(status: StatusCode, headers: &HeaderMap, body: &[u8], value: Option<&Value>) -> Result<(), Error> {
    let tokens = fuzzing::tokens(status, headers, body)?;
    assert!(status.is_success());
    let Some(value) = value else { return Ok(()) };
    let text = |name, place| field(value, name, place).and_then(Value::as_str);
    assert_eq!(text("access_token", 0), Some(tokens.access_token.expose_secret()));
    assert_eq!(text("refresh_token", 1), Some(tokens.refresh_token.expose_secret()));
    assert_eq!(field(value, "expires_in", 2).and_then(Value::as_u64), Some(tokens.expires_in));
    Ok(())
}

fn machine(status: StatusCode, headers: &HeaderMap, body: &[u8], value: Option<&Value>) -> Result<(), Error> {
    let id = fuzzing::machine(status, headers, body)?;
    assert!(status.is_success());
    assert!(value.is_none_or(|value| field(value, "id", 0).and_then(Value::as_str) == Some(id.as_str())));
    Ok(())
}

/// What is asked again, what is given up, and what is said of it.
pub fn judge(status: StatusCode, error: &Error) {
    let said = error.to_string();
    assert!(!said.chars().any(char::is_control) && said.chars().count() <= 400, "{said:?}");
    let passes = status.is_server_error()
        || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
    match error {
        Error::Refused { status: told, .. } => {
            assert!(*told == status.as_u16() && !passes && !status.is_success());
        }
        Error::Busy { .. } => assert!(passes),
        // Where it is wrong, and not what is there.
        Error::Garbled(why) => {
            assert!(status.is_success() && why.starts_with("JSON, line ") && why.len() < 60, "{why}");
        }
        Error::Url { .. } | Error::Tls(_) | Error::Unreachable(_) => panic!("nothing was asked: {said}"),
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    // A status is 100 and what the input says.
    let one = |status: u16, after: &str, choice: u8, body: &str| {
        let [high, low] = (status - 100).to_be_bytes();
        Draft::default().u8(high).u8(low).some(after).u8(choice).rest(body)
    };
    vec![
        one(200, "", 0, "{\"id\":\"x\",\"storage_quota\":5,\"status\":\"active\"}"),
        one(200, "", 0, "{\"storage_quota\":null,\"status\":\"suspended\"}"),
        one(404, "", 0, "{\"type\":\"urn:cyxwiz:problem:not-found\",\"status\":404}"),
        one(503, "7", 0, "{\"detail\":\"busy\\u001b[2J\"}"),
        one(200, "", 1, "{\"access_token\":\"a\",\"refresh_token\":\"r\",\"expires_in\":3600,\"user\":{}}"),
        one(200, "", 1, "{\"access_token\":\"hush\",\"expires_in\":\"hush\"}"),
        one(201, "", 2, "{\"id\":\"m\"}"),
        one(301, "18446744073709551615", 2, "<html>"),
    ]
}
