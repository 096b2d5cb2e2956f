//! Machines: each account's own.

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::server::Server;

fn node(name: &str, peer: &str) -> Value {
    json!({"name": name, "peer_id": peer, "storage_bytes": 500_000_000_000_u64, "region": "eu", "version": "0.1.0"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_registered_once_and_brought_up_to_date() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    let register = async |body: Value| server.post("/api/machines/register", &ann.access, body).await;
    let first = register(node("one", "12D3KooWone")).await.expect(201);
    let again = register(node("renamed", "12D3KooWone")).await.expect(200);
    assert_eq!(first["id"], again["id"]);
    assert_eq!(again["name"], "renamed");
    register(json!({"name": "two", "peer_id": "12D3KooWtwo"})).await.expect(201);
    let list = server.get("/api/machines", &ann.access).await.expect(200);
    let names: Vec<&str> =
        list["machines"].as_array().expect("a list").iter().filter_map(|m| m["name"].as_str()).collect();
    assert_eq!(names, ["renamed", "two"]);
    assert_eq!(list["machines"][0]["storage_bytes"], 500_000_000_000_u64);
    let path = format!("/api/machines/{}", first["id"].as_str().expect("an id"));
    server.call(Method::DELETE, &path, &ann.access, Value::Null).await.expect(204);
    server.call(Method::DELETE, &path, &ann.access, Value::Null).await.refused(404, "not-found");
    assert_eq!(
        server.get("/api/machines", &ann.access).await.expect(200)["machines"].as_array().map(Vec::len),
        Some(1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn adv_15_another_s_machine_is_as_little_there_as_none() {
    let Some(server) = Server::start(&[]).await else { return };
    let (ann, bob) = (server.register("ann").await, server.register("bob").await);
    let machine = server.post("/api/machines/register", &ann.access, node("one", "peer")).await.expect(201);
    let path = format!("/api/machines/{}", machine["id"].as_str().expect("an id"));
    let hers = server.call(Method::DELETE, &path, &bob.access, Value::Null).await;
    let none = format!("/api/machines/{}", Uuid::new_v4());
    let none = server.call(Method::DELETE, &none, &bob.access, Value::Null).await;
    hers.refused(404, "not-found");
    assert_eq!((hers.status, hers.text), (none.status, none.text));
    assert_eq!(server.get("/api/machines", &bob.access).await.expect(200), json!({"machines": []}));
    // Naming her machine first does not keep her from registering it.
    server.post("/api/machines/register", &bob.access, node("mine", "other peer")).await.expect(201);
    server.post("/api/machines/register", &ann.access, node("hers", "other peer")).await.expect(201);
    assert_eq!(
        server.get("/api/machines", &ann.access).await.expect(200)["machines"].as_array().map(Vec::len),
        Some(2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_make_no_sense_are_refused() {
    let Some(server) = Server::start(&[]).await else { return };
    let ann = server.register("ann").await;
    for body in [
        json!({"name": "one"}),
        json!({"name": "", "peer_id": "p"}),
        json!({"name": "x".repeat(129), "peer_id": "p"}),
        json!({"name": "\u{1b}[31m", "peer_id": "p"}),
        json!({"name": "one", "peer_id": "p", "storage_bytes": -1}),
        json!({"name": "one", "peer_id": "p", "storage_bytes": u64::MAX}),
        json!({"name": "one", "peer_id": "p", "owner": ann.id}),
    ] {
        let answer = server.post("/api/machines/register", &ann.access, body.clone()).await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
    }
    server
        .call(Method::DELETE, "/api/machines/not-an-id", &ann.access, Value::Null)
        .await
        .refused(404, "not-found");
}
