//! Accounts: made, opened, changed, and not told about.

use cyxcloud_core::Timestamp;
use cyxcloud_core::claims::{Claims, TokenKind, Wanted, key_id};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{PASSWORD, SECRET, Server, claims, sign};

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_made_opened_and_read() {
    let Some(server) = Server::start(&[]).await else { return };
    let new = server.register("ann").await;
    let answer = server.login(" Ann@Example.org ", PASSWORD).await;
    let body = answer.expect(200);
    assert_eq!((body["expires_in"].as_u64(), body["token_type"].as_str()), (Some(3_600), Some("Bearer")));
    let session = answer.session();
    assert_eq!((&session.id, session.email.as_str()), (&new.id, "ann@example.org"));
    let me = server.get("/api/users/me", &session.access).await.expect(200);
    assert_eq!(me["id"], session.id);
    assert_eq!(me["username"], "ann");
    assert_eq!(me["storage_quota"], 10_u64 << 30);
    assert_eq!(me["wallet_address"], Value::Null);
    assert!(!me.to_string().contains("argon2"));
}

/// What a gateway asks of an access token before it believes it.
#[tokio::test(flavor = "multi_thread")]
async fn access_tokens_are_what_gateways_want() {
    let Some(server) = Server::start(&[]).await else { return };
    let session = server.register("ann").await;
    let header = decode_header(&session.access).expect("a header");
    assert_eq!(header.kid, Some(key_id(SECRET.as_bytes())));
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_audience(&["cyxcloud"]);
    let key = DecodingKey::from_secret(SECRET.as_bytes());
    let claims = decode::<Claims>(&session.access, &key, &validation).expect("signed").claims;
    let wanted = Wanted { issuer: "cyxcloud", audience: "cyxcloud", kinds: &[TokenKind::Access] };
    let now = Timestamp::from_unix_millis(chrono::Utc::now().timestamp_millis());
    claims.check(&wanted, now).expect("opens a gateway");
    assert_eq!(claims.sub, session.id);
    assert!(decode::<Claims>(&session.refresh, &key, &validation).is_err(), "for another audience");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_users_and_wrong_passwords_get_the_same_answer() {
    let Some(server) = Server::start(&[]).await else { return };
    server.register("ann").await;
    let wrong = server.login("ann@example.org", "not the password").await;
    wrong.refused(401, "wrong-credentials");
    for nobody in ["bob@example.org", "no address", ""] {
        let unknown = server.login(nobody, "not the password").await;
        assert_eq!((wrong.status, &wrong.text), (unknown.status, &unknown.text), "{nobody}");
        assert_eq!(wrong.headers.len(), unknown.headers.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_42_guesses_are_counted_and_log_ins_are_not() {
    let Some(server) = Server::start(&[]).await else { return };
    server.register("ann").await;
    server.register("bob").await;
    for _ in 0..8 {
        server.login("ann@example.org", PASSWORD).await.expect(200);
    }
    // Whether the account exists or not.
    for email in ["ann@example.org", "nobody@example.org"] {
        for _ in 0..5 {
            server.login(email, "wrong").await.refused(401, "wrong-credentials");
        }
        let answer = server.login(email, PASSWORD).await;
        answer.refused(429, "too-many-requests");
        let wait: u64 = answer.headers["retry-after"].to_str().expect("text").parse().expect("seconds");
        assert!((1..=12).contains(&wait), "{wait}");
    }
    server.login("bob@example.org", PASSWORD).await.expect(200);
    // As time passes, one more is to be had.
    server.database.run("UPDATE cyxwiz.limits SET full_at = full_at - interval '12 s'").await;
    server.login("ann@example.org", PASSWORD).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_42_strangers_lock_nobody_out() {
    let Some(server) = Server::start(&["--trusted-proxies", "127.0.0.0/8"]).await else { return };
    server.register("ann").await;
    let login = async |address: &str, password: &str| {
        let body = json!({"email": "ann@example.org", "password": password});
        let request =
            server.request(Method::POST, "/api/auth/login").header("x-forwarded-for", address).json(&body);
        server.send(request).await
    };
    login("192.0.2.1", PASSWORD).await.expect(200);
    // One stranger has a few tries, and takes none from others.
    for _ in 0..5 {
        login("198.51.100.1", "wrong").await.refused(401, "wrong-credentials");
    }
    login("198.51.100.1", PASSWORD).await.refused(429, "too-many-requests");
    login("203.0.113.1", PASSWORD).await.expect(200);
    // Many together have some more, and then slow down who was never here, and nobody else.
    let mut wrong = 0;
    for stranger in 2..10 {
        for _ in 0..5 {
            let answer = login(&format!("198.51.100.{stranger}"), "wrong").await;
            wrong += u32::from(answer.status == 401);
        }
    }
    // As time passes, some more become due.
    assert!((15..30).contains(&wrong), "{wrong}");
    server
        .database
        .run("UPDATE cyxwiz.limits SET full_at = full_at + interval '9 s' WHERE key LIKE 'login-account %'")
        .await;
    login("203.0.113.2", PASSWORD).await.refused(429, "too-many-requests");
    for address in ["192.0.2.1", "203.0.113.1"] {
        login(address, PASSWORD).await.expect(200);
        for _ in 0..5 {
            login(address, "wrong").await.refused(401, "wrong-credentials");
        }
        login(address, PASSWORD).await.refused(429, "too-many-requests");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_42_addresses_are_counted_and_cannot_be_made_up() {
    let Some(server) = Server::start(&["--registrations-per-hour", "2"]).await else { return };
    server.register("ann").await;
    server.register("bob").await;
    let body = json!({"email": "cat@example.org", "password": PASSWORD});
    let request = server.request(Method::POST, "/api/auth/register").header("x-forwarded-for", "192.0.2.1");
    server.send(request.json(&body)).await.refused(429, "too-many-requests");
    // While they go on, some more become due: as many as are asked for at once must not be answered.
    let guess =
        async |number: u32| server.login(&format!("{number}@example.org"), "wrong").await.status.as_u16();
    let mut refused = false;
    for number in 0..300 {
        refused = guess(number).await == 429;
        if refused {
            assert!(number >= 30, "{number}");
            break;
        }
    }
    assert!(refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_42_right_passwords_are_not_checked_without_end() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    server.register("bob").await;
    server.login("ann@example.org", PASSWORD).await.expect(200);
    // As if all of this minute and the next had been taken.
    server
        .database
        .run("UPDATE cyxwiz.limits SET full_at = full_at + interval '120 s' WHERE key LIKE 'passwords %'")
        .await;
    server.login("bob@example.org", PASSWORD).await.refused(429, "too-many-requests");
    let body = json!({"email": "anna@example.org", "current_password": PASSWORD});
    let change = server.call(Method::PUT, "/api/users/me", &ann.access, body).await;
    change.refused(429, "too-many-requests");
    // Who is logged in stays so.
    server.refresh(&ann.refresh).await.expect(200);
    server.call(Method::PUT, "/api/users/me", &ann.access, json!({"username": "anna"})).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_tells_addresses_apart() {
    let args = ["--registrations-per-hour", "1", "--trusted-proxies", "127.0.0.0/8"];
    let Some(server) = Server::start(&args).await else { return };
    for (number, address, status) in
        [(1, "192.0.2.1", 201), (2, "192.0.2.1", 429), (3, "9.9.9.9, 192.0.2.2", 201)]
    {
        let body = json!({"email": format!("{number}@example.org"), "password": PASSWORD});
        let request = server.request(Method::POST, "/api/auth/register").header("x-forwarded-for", address);
        server.send(request.json(&body)).await.expect(status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_registered_is_said() {
    let Some(server) = Server::start(&[]).await else { return };
    server.register("ann").await;
    let register = async |body: Value| server.post("/api/auth/register", "", body).await;
    let taken = register(json!({"email": "ANN@example.org", "password": PASSWORD})).await;
    taken.refused(409, "email-taken");
    let named = register(json!({"email": "x@example.org", "password": PASSWORD, "username": "ann"})).await;
    named.refused(409, "username-taken");
    for body in [
        json!({"email": "x", "password": PASSWORD}),
        json!({"email": "x@example.org", "password": "short"}),
        json!({"email": "x@example.org", "password": PASSWORD, "username": "a b"}),
        json!({"email": "x@example.org", "password": PASSWORD, "role": "admin"}),
        json!({"email": "x@example.org", "password": PASSWORD, "storage_quota": 1_u64 << 50}),
        json!({"email": "x@example.org", "password": 123_456_789_012_u64}),
        json!({"email": "x@example.org"}),
        json!([]),
    ] {
        let answer = register(body.clone()).await;
        answer.refused(400, "invalid-request");
        assert!(!answer.text.contains(PASSWORD), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_may_need_an_invitation() {
    let invitation = "invitation-0123456789";
    let Some(server) = Server::start(&["--registration-token", invitation]).await else { return };
    let mut body = json!({"email": "ann@example.org", "password": PASSWORD});
    server.post("/api/auth/register", "", body.clone()).await.refused(403, "registration-closed");
    body["registration_token"] = json!("another-invitation-01");
    server.post("/api/auth/register", "", body.clone()).await.refused(403, "registration-closed");
    body["registration_token"] = json!(invitation);
    server.post("/api/auth/register", "", body).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_changed_by_who_knows_its_password() {
    let Some(server) = Server::start(&[]).await else { return };
    let (ann, bob) = (server.register("ann").await, server.register("bob").await);
    let change = async |body: Value| server.call(Method::PUT, "/api/users/me", &ann.access, body).await;
    assert_eq!(change(json!({"username": "anna"})).await.expect(200)["username"], "anna");
    change(json!({"username": "bob"})).await.refused(409, "username-taken");
    let new = "another good password";
    change(json!({"password": new})).await.refused(400, "invalid-request");
    change(json!({"email": "anna@example.org"})).await.refused(400, "invalid-request");
    change(json!({"password": new, "current_password": "wrong"})).await.refused(401, "wrong-credentials");
    change(json!({"storage_quota": 1_u64 << 50})).await.refused(400, "invalid-request");
    change(json!({"email": bob.email, "current_password": PASSWORD})).await.refused(409, "email-taken");
    let body = json!({"email": "Anna@example.org", "password": new, "current_password": PASSWORD});
    assert_eq!(change(body).await.expect(200)["email"], "anna@example.org");
    // Who had logged in with the old password is out, and the old one opens nothing.
    server.refresh(&ann.refresh).await.refused(401, "not-authorized");
    server.login("anna@example.org", PASSWORD).await.refused(401, "wrong-credentials");
    server.login("anna@example.org", new).await.expect(200);
    server.refresh(&bob.refresh).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_ends_access_tokens() {
    let Some(server) = Server::start(&[]).await else { return };
    let (ann, bob) = (server.register("ann").await, server.register("bob").await);
    let change = async |body: Value| server.call(Method::PUT, "/api/users/me", &ann.access, body).await;
    let me = async |token: &str| server.get("/api/users/me", token).await;
    let ended = async || {
        let service = sign(&claims(&ann.id, TokenKind::Service));
        server.get(&format!("/api/users/{}/quota", ann.id), &service).await.expect(200)["tokens_after"]
            .as_u64()
    };
    change(json!({"email": "anna@example.org", "current_password": PASSWORD})).await.expect(200);
    assert_eq!(ended().await, None);
    me(&ann.access).await.expect(200);
    let new = "another good password";
    change(json!({"password": new, "current_password": PASSWORD})).await.expect(200);
    me(&ann.access).await.refused(401, "not-authorized");
    change(json!({"username": "thief"})).await.refused(401, "not-authorized");
    me(&bob.access).await.expect(200);
    // Those that come next hold, in the same second, too; gateways tell them apart by what they are told.
    let next = server.login("anna@example.org", new).await.session();
    me(&next.access).await.expect(200);
    let renewed = server.refresh(&next.refresh).await.expect(200);
    let renewed = renewed["access_token"].as_str().expect("a token").to_owned();
    me(&renewed).await.expect(200);
    let after = ended().await.expect("is told");
    let holds = [&ann.access, &next.access, &renewed].map(|token| issued_at(token) >= after);
    assert_eq!(holds, [false, true, true]);
}

/// When a token says that it was issued.
fn issued_at(token: &str) -> u64 {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_audience(&["cyxcloud"]);
    let key = DecodingKey::from_secret(SECRET.as_bytes());
    decode::<Claims>(token, &key, &validation).expect("signed").claims.iat
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_account_does_nothing() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    server.database.run("UPDATE cyxwiz.users SET status = 'suspended'").await;
    server.login("ann@example.org", PASSWORD).await.refused(403, "account-suspended");
    server.login("ann@example.org", "wrong").await.refused(401, "wrong-credentials");
    server.get("/api/users/me", &ann.access).await.refused(403, "account-suspended");
    server.refresh(&ann.refresh).await.refused(403, "account-suspended");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_kept_as_argon2id_and_no_token_is_kept() {
    let Some(server) = Server::start(&[]).await else { return };
    server.register("ann").await;
    let hashed =
        "SELECT count(*) FROM cyxwiz.users WHERE password_hash LIKE '$argon2id$v=19$m=19456,t=2,p=1$%'";
    assert_eq!(server.database.count(hashed).await, 1);
    let elsewhere = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'";
    assert_eq!(server.database.count(elsewhere).await, 0, "the database may be another's as well");
}
