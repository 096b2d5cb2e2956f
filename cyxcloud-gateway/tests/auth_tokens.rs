//! Bearer tokens that must not open anything, each different from a good one in a single respect.

mod auth_support;

use auth_support::{Door, JWT_SECRET, amazon_time, draft};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cyxcloud_gateway::auth::Mount;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

const SECONDS: u64 = 1_369_353_600;

async fn verdict(door: &Door, token: &str) -> &'static str {
    let mut request = draft("GET", "/").bare();
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    assert_eq!(u64::try_from(amazon_time().unix_millis()).expect("after 1970"), SECONDS * 1000);
    door.verdict(request, Mount::Root).await
}

fn with(door: &Door, claim: &str, value: Value) -> String {
    let mut claims = door.claims();
    claims[claim] = value;
    door.token(&claims)
}

/// A token put together by hand.
fn raw(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    format!(
        "{}.{}.{}",
        part(header.to_string().as_bytes()),
        part(claims.to_string().as_bytes()),
        part(signature)
    )
}

#[tokio::test]
async fn adv_21_algorithms_are_pinned() {
    let door = Door::open().await;
    let claims = door.claims();
    let kid = door.jwt.key_id();
    assert_eq!(verdict(&door, &door.token(&claims)).await, "OK");
    let key = EncodingKey::from_secret(JWT_SECRET.as_bytes());
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        let token = encode(&door.header(algorithm), &claims, &key).expect("encodes");
        assert_eq!(verdict(&door, &token).await, "InvalidToken", "{algorithm:?}");
    }
    let good = door.token(&claims);
    let signature = URL_SAFE_NO_PAD.decode(good.rsplit('.').next().expect("three parts")).expect("base64");
    for alg in ["none", "None", "NONE", "RS256", "ES256", "EdDSA", "HS384", "hs256", ""] {
        for signature in [&signature[..], &[]] {
            let token = raw(&json!({"alg": alg, "typ": "JWT", "kid": kid}), &claims, signature);
            assert_eq!(verdict(&door, &token).await, "InvalidToken", "{alg}");
        }
    }
    let unsigned = good.rsplit_once('.').expect("three parts").0;
    for token in [
        format!("{unsigned}."),
        unsigned.to_owned(),
        format!("{good}.x"),
        "a.b.c".to_owned(),
        "..".to_owned(),
    ] {
        assert_eq!(verdict(&door, &token).await, "InvalidToken", "{token}");
    }
    let other = encode(&door.header(Algorithm::HS256), &claims, &EncodingKey::from_secret(b"another secret"));
    assert_eq!(verdict(&door, &other.expect("encodes")).await, "InvalidToken");
    // No kid, an unknown kid, and a header that brings its own key.
    let no_kid = encode(&Header::new(Algorithm::HS256), &claims, &key).expect("encodes");
    assert_eq!(verdict(&door, &no_kid).await, "InvalidToken");
    let unknown = Header { kid: Some("1".to_owned()), ..Header::new(Algorithm::HS256) };
    assert_eq!(verdict(&door, &encode(&unknown, &claims, &key).expect("encodes")).await, "InvalidToken");
}

#[tokio::test]
async fn adv_21_claims_are_there_and_of_their_type() {
    let door = Door::open().await;
    for claim in ["sub", "typ", "iat", "exp", "jti", "iss", "aud"] {
        let mut claims = door.claims();
        claims.as_object_mut().expect("an object").remove(claim);
        assert_eq!(verdict(&door, &door.token(&claims)).await, "InvalidToken", "without {claim}");
        for value in [Value::Null, json!({}), json!([]), json!(true)] {
            assert_eq!(
                verdict(&door, &with(&door, claim, value.clone())).await,
                "InvalidToken",
                "{claim} {value}"
            );
        }
    }
    for claim in ["exp", "iat", "nbf"] {
        for value in [json!("9999999999"), json!("str"), json!(1e30), json!(-1), json!(1.5), Value::Null] {
            assert_eq!(
                verdict(&door, &with(&door, claim, value.clone())).await,
                "InvalidToken",
                "{claim} {value}"
            );
        }
    }
    for (claim, value) in [
        ("iss", json!("cyxwiz2")),
        ("iss", json!(["cyxwiz"])),
        ("aud", json!("other")),
        ("aud", json!(["cyxcloud", "other"])),
        ("typ", json!("refresh")),
        ("typ", json!("node")),
        ("typ", json!("ACCESS")),
        ("typ", json!("")),
        ("jti", json!("")),
        ("sub", json!("root")),
    ] {
        assert_eq!(
            verdict(&door, &with(&door, claim, value.clone())).await,
            "InvalidToken",
            "{claim} {value}"
        );
    }
}

#[tokio::test]
async fn tokens_live_from_their_beginning_to_their_end() {
    let door = Door::open().await;
    for (claim, value, wanted) in [
        ("exp", SECONDS + 1, "OK"),
        ("exp", SECONDS - 9, "OK"),
        ("exp", SECONDS - 60, "InvalidToken"),
        ("iat", SECONDS + 60, "OK"),
        ("iat", SECONDS + 61, "InvalidToken"),
        ("nbf", SECONDS + 60, "OK"),
        ("nbf", SECONDS + 61, "InvalidToken"),
        ("exp", u64::MAX, "OK"),
    ] {
        assert_eq!(verdict(&door, &with(&door, claim, json!(value))).await, wanted, "{claim} {value}");
    }
}

#[tokio::test]
async fn every_flip_in_a_token_is_refused() {
    let door = Door::open().await;
    let good = door.token(&door.claims());
    for at in 0..good.len() {
        let mut wrong = good.clone().into_bytes();
        wrong[at] = if wrong[at] == b'A' { b'Q' } else { b'A' };
        let wrong = String::from_utf8(wrong).expect("text");
        assert_eq!(verdict(&door, &wrong).await, "InvalidToken", "byte {at}");
    }
}

#[tokio::test]
async fn without_a_secret_no_token_opens_anything() {
    let door = Door::open().await;
    let auth = cyxcloud_gateway::auth::Authenticator::new(
        door.metadata.clone(),
        door.master.clone(),
        None,
        "us-east-1".to_owned(),
        None,
    );
    let mut metadata = tonic::metadata::MetadataMap::new();
    let bearer = format!("Bearer {}", door.token(&door.claims()));
    metadata.insert("authorization", bearer.parse().expect("is text"));
    let error = auth.authenticate_metadata(&metadata).await.expect_err("no secret");
    assert_eq!((error.code(), error.status().as_u16()), ("InvalidToken", 401));
}

/// It knows of no versions either, so that whoever was suspended or made an administrator logs in there as before.
#[tokio::test]
async fn tokens_of_the_identity_service_outlive_changes_of_their_user() {
    use cyxcloud_metadata::identity::model::PersonChange;

    let door = Door::open().await;
    let theirs = door.token(&door.claims());
    let ours = with(&door, "ver", json!(0));
    let change = async |change: PersonChange| {
        let user = auth_support::user();
        door.metadata.change_person(user, &change).await.expect("changed").expect("is there");
        door.auth.forget_all();
        (verdict(&door, &theirs).await, verdict(&door, &ours).await)
    };
    let suspended = |suspended| PersonChange { suspended: Some(suspended), ..PersonChange::default() };
    assert_eq!(verdict(&door, &ours).await, "OK");
    assert_eq!(change(suspended(true)).await, ("InvalidToken", "InvalidToken"));
    assert_eq!(change(suspended(false)).await, ("OK", "InvalidToken"));
    let admin = PersonChange { admin: Some(true), ..PersonChange::default() };
    assert_eq!(change(admin).await, ("OK", "InvalidToken"));
}

/// The identity service knows its users before the gateway does.
#[tokio::test]
async fn a_user_is_made_by_the_first_token_of_the_identity_service() {
    let door = Door::open().await;
    let token = with(&door, "sub", json!("00000000-0000-4000-8000-000000000009"));
    assert_eq!(verdict(&door, &token).await, "OK");
    assert_eq!(verdict(&door, &token).await, "OK");
    // What claims to be of a session of ours, of a key, or of a later version is not believed to be new.
    for (claim, value) in
        [("sid", json!("00000000-0000-4000-8000-000000000001")), ("ver", json!(1)), ("typ", json!("api_key"))]
    {
        let mut claims = door.claims();
        claims["sub"] = json!("00000000-0000-4000-8000-00000000000a");
        claims[claim] = value;
        let verdict = verdict(&door, &door.token(&claims)).await;
        assert_eq!(verdict, "InvalidToken", "{claim}");
    }
}
