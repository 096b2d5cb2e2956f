//! Staying logged in: each refresh token once, a lost answer again, a stolen one never.

use serde_json::Value;

use crate::database::Database;
use crate::server::Server;

const LONG_AGO: &str =
    "UPDATE cyxwiz.refresh_tokens SET used_at = used_at - interval '61 s' WHERE used_at IS NOT NULL";

fn token(body: &Value) -> String {
    body["refresh_token"].as_str().expect("a refresh token").to_owned()
}

#[tokio::test]
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

#[tokio::test]
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

#[tokio::test]
async fn reuse_after_that_ends_the_session_for_all() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    let elsewhere = server.login("ann@example.org", crate::server::PASSWORD).await.session();
    let next = token(&server.refresh(&ann.refresh).await.expect(200));
    server.database.run(LONG_AGO).await;
    server.refresh(&ann.refresh).await.refused(401, "not-authorized");
    server.refresh(&next).await.refused(401, "not-authorized");
    server.refresh(&elsewhere.refresh).await.expect(200);
}

#[tokio::test]
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

#[tokio::test]
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
