//! Staying logged in: each refresh token once, a lost answer again, a stolen one never.

use std::pin::pin;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Executor;

use crate::database::Database;
use crate::server::{Answer, PASSWORD, Server};

const LONG_AGO: &str =
    "UPDATE cyxwiz.refresh_tokens SET used_at = used_at - interval '61 s' WHERE used_at IS NOT NULL";

fn token(body: &Value) -> String {
    body["refresh_token"].as_str().expect("a refresh token").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_followed_by_another() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    let first = server.refresh(&ann.refresh).await.expect(200);
    assert_ne!(token(&first), ann.refresh);
    assert_eq!(first["expires_in"], 3_600);
    let access = first["access_token"].as_str().expect("an access token");
    assert_eq!(server.get("/api/users/me", access).await.expect(200)["id"], ann.id);
    let second = server.refresh(&token(&first)).await.expect(200);
    assert_ne!(token(&second), token(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn for_a_minute_the_old_one_gets_the_same_answer() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    let answers = tokio::join!(
        server.refresh(&ann.refresh),
        server.refresh(&ann.refresh),
        server.refresh(&ann.refresh),
        server.refresh(&ann.refresh),
    );
    let first = answers.0.expect(200);
    for other in [answers.1, answers.2, answers.3] {
        assert_eq!(other.expect(200), first);
    }
    assert_eq!(server.refresh(&ann.refresh).await.expect(200), first);
    server.refresh(&token(&first)).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn reuse_after_that_ends_the_session_for_all() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    let elsewhere = server.login("ann@example.org", PASSWORD).await.session();
    let next = token(&server.refresh(&ann.refresh).await.expect(200));
    server.database.run(LONG_AGO).await;
    server.refresh(&ann.refresh).await.refused(401, "not-authorized");
    server.refresh(&next).await.refused(401, "not-authorized");
    server.refresh(&elsewhere.refresh).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_ends_the_session() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    let next = token(&server.refresh(&ann.refresh).await.expect(200));
    server.post("/api/auth/logout", &ann.access, Value::Null).await.refused(401, "not-authorized");
    // With any token of the session, used or not.
    server.post("/api/auth/logout", &ann.refresh, Value::Null).await.expect(204);
    server.refresh(&next).await.refused(401, "not-authorized");
    server.refresh(&ann.refresh).await.refused(401, "not-authorized");
    server.post("/api/auth/logout", &next, Value::Null).await.expect(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_the_service() {
    let Some(database) = Database::make().await else { return };
    let first = Server::start_on(database, &[]).await;
    let ann = first.register("ann").await;
    let second = Server::start_on(Database::at(&first.database), &[]).await;
    let next = token(&first.refresh(&ann.refresh).await.expect(200));
    assert_eq!(token(&second.refresh(&ann.refresh).await.expect(200)), next, "two instances agree");
    first.database.run(LONG_AGO).await;
    second.refresh(&ann.refresh).await.refused(401, "not-authorized");
    first.refresh(&next).await.refused(401, "not-authorized");
}

/// What is answered to a request that was right by the password before, where another one is set just before it does what it is for.
async fn overtaken(server: &Server, request: impl Future<Output = Answer>) -> Answer {
    const WAITS: &str = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let mut beside = server.database.beside().await;
    for sql in [
        "BEGIN",
        "UPDATE cyxwiz.users SET password_hash = 'another'",
        "UPDATE cyxwiz.sessions SET revoked_at = now()",
    ] {
        beside.execute(sql).await.expect("changes");
    }
    let mut request = pin!(request);
    let waits = async { while server.database.count(WAITS).await == 0 {} };
    let early = tokio::select! {
        answer = &mut request => Some(answer),
        () = waits => None,
    };
    beside.execute("COMMIT").await.expect("is changed");
    match early {
        Some(answer) => answer,
        None => request.await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_42_a_new_password_ends_log_ins_under_way() {
    let Some(server) = Server::start(&[]).await else { return };
    server.register("ann").await;
    let answer = overtaken(&server, server.login("ann@example.org", PASSWORD)).await;
    answer.refused(401, "wrong-credentials");
    let left = "SELECT count(*) FROM cyxwiz.sessions WHERE revoked_at IS NULL";
    assert_eq!(server.database.count(left).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_42_of_two_changes_by_one_password_the_first_holds() {
    for change in [
        json!({"password": "another one of a thief", "current_password": PASSWORD}),
        json!({"email": "thief@example.org", "current_password": PASSWORD}),
    ] {
        let Some(server) = Server::start(&[]).await else { return };
        let ann = server.register("ann").await;
        let request = server.call(Method::PUT, "/api/users/me", &ann.access, change);
        overtaken(&server, request).await.refused(401, "wrong-credentials");
        let theirs =
            "SELECT count(*) FROM cyxwiz.users WHERE password_hash = 'another' AND email LIKE 'ann@%'";
        assert_eq!(server.database.count(theirs).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_42_refreshes_from_one_address_are_counted() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    let next = token(&server.refresh(&ann.refresh).await.expect(200));
    // As if all of this minute and more had been taken.
    server
        .database
        .run("UPDATE cyxwiz.limits SET full_at = full_at + interval '120 s' WHERE key LIKE 'refresh %'")
        .await;
    server.refresh(&next).await.refused(429, "too-many-requests");
}
