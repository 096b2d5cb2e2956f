//! WebSockets: whose pages may open one, credentials in its address, what is listened to, and what comes in. Pages of strangers open
//! none, an address keeps no credential, and messages arrive as they were sent or end the socket with the right code.

use cyxcloud_core::name::{BucketName, ObjectKey};
use cyxcloud_core::{NodeId, OwnerId};
use cyxcloud_gateway::events::{Event, Topic};
use cyxcloud_gateway::fuzzing;
use cyxcloud_gateway::limits::{Caller, Limits};
use cyxcloud_gateway::websocket::origin::{Origin, Origins};
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Uri};
use serde_json::{Value, json};
use tungstenite::Message;

use super::input::{Draft, Input};

/// Largest message, and largest of the protocol's own.
const MESSAGE_MAX: usize = 64 << 10;
const CONTROL_MAX: usize = 125;
/// Codes with which a socket is closed: what came is no WebSocket, no text, or too much.
const PROTOCOL: u16 = 1002;
const INVALID: u16 = 1007;
const SIZE: u16 = 1009;
/// Opcodes.
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const PING: u8 = 9;
const PONG: u8 = 10;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 6 {
        0 => origins(input),
        1 => credentials(input),
        2 => words(input.rest()),
        3 => messages(input),
        4 => noise(input),
        _ => known(input),
    }
}

/// Scheme, host and port, of a text that was read as an origin.
fn place(text: &str) -> Option<(bool, String, u16)> {
    let (scheme, authority) = text.split_once("://")?;
    let secure = scheme.eq_ignore_ascii_case("https");
    let (host, port) = host_and_port(authority, secure)?;
    Some((secure, host, port))
}

fn host_and_port(authority: &str, secure: bool) -> Option<(String, u16)> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (authority, if secure { 443 } else { 80 }),
    };
    Some((host.trim_end_matches('.').to_ascii_lowercase(), port))
}

fn origins(mut input: Input<'_>) {
    let any = input.u8() & 1 != 0;
    let listed = input.text(200);
    let named: Vec<&str> = listed.split(',').filter(|text| text.parse::<Origin>().is_ok()).collect();
    let parsed: Vec<Origin> = named.iter().filter_map(|text| text.parse().ok()).collect();
    let origins = Origins { named: parsed, any };
    for text in &named {
        assert!(!text.contains(['@', '*', '?', '#']) && text.matches('/').count() == 2, "{text}");
        assert_eq!(text.to_ascii_uppercase().parse::<Origin>(), text.parse::<Origin>(), "{text}");
        assert!(origins.allow(&headers(None, &[HeaderValue::from_str(text).expect("is plain")])));
    }
    let host = HeaderValue::from_bytes(input.some(100)).ok();
    let sent: Vec<HeaderValue> =
        (0..input.u8() % 3).filter_map(|_| HeaderValue::from_bytes(input.some(100)).ok()).collect();
    let allowed = origins.allow(&headers(host.as_ref(), &sent));
    let [origin] = sent.as_slice() else {
        return assert_eq!(allowed, sent.is_empty(), "two origins are none, and no origin is no page");
    };
    assert!(allowed || !any);
    if !allowed || any {
        return;
    }
    let origin = place(origin.to_str().expect("is text")).expect("is an origin");
    let own = host.as_ref().and_then(|host| host_and_port(host.to_str().ok()?, origin.0));
    let is_own = own.is_some_and(|(host, port)| host == origin.1 && port == origin.2);
    assert!(
        is_own || named.iter().any(|text| place(text).as_ref() == Some(&origin)),
        "{origin:?} at {host:?}"
    );
}

fn headers(host: Option<&HeaderValue>, origins: &[HeaderValue]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(host) = host {
        headers.insert(HOST, host.clone());
    }
    for origin in origins {
        headers.append(ORIGIN, origin.clone());
    }
    headers
}

/// What is a credential is taken out, one at most, and all else stays.
fn credentials(mut input: Input<'_>) {
    let header = (input.u8() & 1 != 0).then(|| input.some(100));
    let header = header.and_then(|value| HeaderValue::from_bytes(value).ok());
    let Ok(uri) = String::from_utf8_lossy(input.rest()).parse::<Uri>() else { return };
    let (left, ticket, set) = match fuzzing::take_credentials(&uri, header.as_ref()) {
        Ok(taken) => taken,
        Err(error) => return assert!(error.status().is_client_error(), "{error}"),
    };
    let pairs = |uri: &Uri| fuzzing::query_pairs(uri.query().unwrap_or_default()).expect("was read");
    let (mut given, mut kept): (Vec<_>, Vec<_>) =
        pairs(&uri).into_iter().partition(|(name, _)| ["token", "ticket"].contains(&name.as_str()));
    let Some((name, value)) = given.pop() else {
        return assert_eq!((left, ticket, set), (uri, None, header));
    };
    assert!(given.is_empty() && header.is_none(), "one of several was taken: {uri}");
    // A pair of nothing is nothing.
    kept.retain(|(name, value)| !name.is_empty() || !value.is_empty());
    assert_eq!((left.path(), pairs(&left)), (uri.path(), kept), "{uri}");
    let bearer = set.as_ref().map(|set| String::from_utf8_lossy(set.as_bytes()).into_owned());
    let want = if name == "ticket" { (Some(value), None) } else { (None, Some(format!("Bearer {value}"))) };
    assert_eq!((ticket, bearer), want, "{uri}");
}

fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert_eq!(fuzzing::topics(None).as_deref(), Some(Topic::ALL.as_slice()));
    if let Some(topics) = fuzzing::topics(Some(text)) {
        let topics: Vec<&str> = topics.iter().map(|topic| topic.as_str()).collect();
        let named: Vec<&str> = text.split(',').map(str::trim).collect();
        assert!(named.iter().all(|name| topics.contains(name)), "{text:?}");
        assert!(topics.iter().all(|topic| named.contains(topic)), "{text:?}");
    }
    let value = serde_json::from_str::<Value>(text);
    let is_ping = value.is_ok_and(|value| value == json!({ "type": "ping" }));
    let plain = text.len() <= 256 && !text.contains('\\') && text.matches("type").count() == 1;
    let asks = fuzzing::asks(text);
    assert!(is_ping || !asks, "{text:?} asks");
    assert!(asks || !is_ping || !plain, "{text:?} does not ask");
}

/// What a client says, in frames as it may write them.
fn messages(mut input: Input<'_>) {
    let at_a_time = 16 + input.below(5_000);
    let (mut sent, mut told, mut end) = (Vec::new(), Vec::new(), Vec::new());
    while !input.is_empty() && told.len() < 8 {
        let opcode = [TEXT, BINARY, PING, PONG][usize::from(input.u8()) % 4];
        let mut payload = input.some(300).to_vec();
        if input.u8() % 4 == 1 {
            payload.resize(input.below(70_000), b'x');
        }
        let pieces = if opcode < PING { 1 + usize::from(input.u8() % 3) } else { 1 };
        write(&mut sent, opcode, &payload, pieces, input.array());
        match read(opcode, payload) {
            Ok(message) => told.push(message),
            Err(codes) => {
                end = codes;
                break;
            }
        }
    }
    let (heard, code) = fuzzing::messages(&sent, at_a_time);
    assert_eq!(heard, told);
    assert!(code.map_or(end.is_empty(), |code| end.contains(&code)), "{code:?} and not one of {end:?}");
}

/// A message in some frames, masked.
fn write(sent: &mut Vec<u8>, opcode: u8, payload: &[u8], pieces: usize, mask: [u8; 4]) {
    let size = payload.len().div_ceil(pieces).max(1);
    let count = payload.len().div_ceil(size).max(1);
    for place in 0..count {
        let piece = &payload[place * size..payload.len().min((place + 1) * size)];
        let last = if place + 1 == count { 0x80 } else { 0 };
        sent.push(last | if place == 0 { opcode } else { 0 });
        match piece.len() {
            len @ 0..126 => sent.push(0x80 | len as u8),
            len @ 126..0x1_0000 => {
                sent.push(0x80 | 126);
                sent.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                sent.push(0x80 | 127);
                sent.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        sent.extend_from_slice(&mask);
        sent.extend(piece.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
}

/// The message that it is, or the codes one of which ends the socket.
fn read(opcode: u8, payload: Vec<u8>) -> Result<Message, Vec<u16>> {
    let mut codes = Vec::new();
    if payload.len() > MESSAGE_MAX {
        codes.push(SIZE);
    }
    if payload.len() > CONTROL_MAX && opcode >= PING {
        codes.push(PROTOCOL);
    }
    if opcode == TEXT && std::str::from_utf8(&payload).is_err() {
        codes.push(INVALID);
    }
    if !codes.is_empty() {
        return Err(codes);
    }
    Ok(match opcode {
        TEXT => Message::text(String::from_utf8(payload).expect("was looked at")),
        BINARY => Message::binary(payload),
        PING => Message::Ping(payload.into()),
        _ => Message::Pong(payload.into()),
    })
}

/// Anything at all: read the same however it comes, and never more than a message may have.
fn noise(mut input: Input<'_>) {
    let at_a_time = 1 + usize::from(input.u8());
    let sent = input.rest();
    let read = fuzzing::messages(sent, at_a_time);
    assert_eq!(read, fuzzing::messages(sent, sent.len().max(1)), "the pieces matter");
    let (heard, code) = read;
    for message in &heard {
        let most = if message.is_text() || message.is_binary() { MESSAGE_MAX } else { CONTROL_MAX };
        assert!(message.len() <= most, "{} bytes", message.len());
    }
    assert!(code.is_none_or(|code| [PROTOCOL, INVALID, SIZE].contains(&code)), "{code:?}");
}

/// A limited key hears of what it may read, and of nothing else.
fn known(mut input: Input<'_>) {
    let (kind, limited) = (input.u8() % 4, input.u8());
    let (bucket, key) = (input.text(70), input.text(100));
    let list = |text: String| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let buckets = (limited & 1 != 0).then(|| list(input.text(100)));
    let prefixes = (limited & 2 != 0).then(|| list(input.text(100)));
    let limits = Limits::of(buckets.clone(), prefixes.clone(), limited & 4 != 0);
    let caller = Caller { owner: OwnerId::from_random([1; 16]), limits };
    let named =
        buckets.is_none_or(|buckets| buckets.contains(&bucket)) && bucket.parse::<BucketName>().is_ok();
    let covers = |prefixes: Vec<String>| prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()));
    let covered = prefixes.is_none_or(covers) && ObjectKey::new(key.as_str()).is_ok();
    let (event, readable) = match kind {
        0 => (Event::FileCreated { bucket, key, size: 1 }, named && covered),
        1 => (Event::FileDeleted { bucket, key }, named && covered),
        2 => (Event::BucketCreated { bucket }, named),
        _ => (Event::NodeLeft { node_id: NodeId::from_random([2; 16]) }, true),
    };
    assert_eq!(fuzzing::may_know(&event, &caller), caller.limits.is_none() || readable, "{event:?}");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let origin = |listed: &str, host: &str, origins: &[&str]| {
        let draft = Draft::default().u8(0).u8(0).some(listed).some(host).u8(origins.len() as u8);
        origins.iter().fold(draft, |draft, origin| draft.some(origin)).rest([])
    };
    let address = |uri: &str| Draft::default().u8(1).u8(0).rest(uri);
    let words = |text: &str| Draft::default().u8(2).rest(text);
    let ping = "{\"type\":\"ping\"}";
    let said = |size: u32, said: &[(u8, &str, u8, u8)]| {
        let draft = Draft::default().u8(3).u32(size);
        let one = |draft: Draft, (opcode, text, long, pieces): &(u8, &str, u8, u8)| {
            let draft = draft.u8(*opcode).some(text).u8(*long);
            // The protocol's own have one piece, and nobody asks.
            let draft = if *opcode < 2 { draft.u8(*pieces) } else { draft };
            draft.u32(0x1234_5678)
        };
        said.iter().fold(draft, one).rest([])
    };
    let mut raw = Vec::new();
    write(&mut raw, TEXT, ping.as_bytes(), 2, [1, 2, 3, 4]);
    write(&mut raw, 8, &[0x03, 0xe8], 1, [5, 6, 7, 8]);
    let known = |kind: u8, limited: u8, bucket: &str, key: &str, buckets: &str, prefixes: &str| {
        let draft = Draft::default().u8(5).u8(kind).u8(limited).some(bucket).some(key);
        draft.some(buckets).some(prefixes).rest([])
    };
    vec![
        origin("https://app.example,http://localhost:3000", "gateway.example", &["https://APP.example:443"]),
        origin("", "[::1]:8080", &["http://[::1]:8080"]),
        origin("", "gateway.example", &["https://gateway.example.evil.example"]),
        origin("", "gateway.example", &["null", "https://gateway.example"]),
        address("/ws?topics=file&token=a.b-_c"),
        address("http://gateway.example/ws?%74icket=0f&x=%20&=&y"),
        address("/ws?token=a%0d%0ahost:%20x"),
        words("file, node"),
        words(ping),
        words("[\"ping\"]"),
        said(2, &[(0, ping, 0, 1), (2, "x", 0, 0), (1, "\u{fc}", 0, 2)]),
        said(4_000, &[(1, "", 0, 0), (0, "\u{20ac}uro", 0, 2), (3, "", 0, 0)]),
        Draft::default().u8(4).u8(0).rest(raw),
        Draft::default().u8(4).u8(7).rest([0x81, 0x05, b'h', b'e', b'l', b'l', b'o']),
        known(0, 7, "photos", "2024/a", "photos", "2024/,2025/"),
        known(2, 2, "photos", "", "", ""),
        known(3, 4, "", "", "", ""),
    ]
}
