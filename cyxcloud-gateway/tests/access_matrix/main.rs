//! Every route of the table, and every method of gRPC, with every kind of credentials, and what each gets.

mod methods;
#[path = "../objects_support/mod.rs"]
mod objects_support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use cyxcloud_core::claims::TokenKind;
use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::stripe::INLINE_MAX;
use cyxcloud_core::{ByteCount, OwnerId, Timestamp};
use cyxcloud_gateway::api::{self, Access, Api, Route};
use cyxcloud_gateway::auth::{Authenticator, ClientAddress, JwtConfig, Principal, Scheme, Token};
use cyxcloud_gateway::documents::Documents;
use cyxcloud_gateway::ephemeral::InProcess;
use cyxcloud_gateway::identity::challenge::{Binding, Wallet};
use cyxcloud_gateway::identity::{Config, Identity, Issued, Refusal, WantedKey};
use cyxcloud_gateway::journal::Denials;
use cyxcloud_gateway::websocket::Sockets;
use cyxcloud_metadata::identity::model::PersonChange;
use ed25519_dalek::{Signer as _, SigningKey};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use objects_support::Gateway;
use secrecy::ExposeSecret as _;
use uuid::Uuid;

const JWT_SECRET: &str = "0123456789abcdef0123456789abcdef";
const MASTER_KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
/// Users that may be made from one address in an hour.
const SIGNUPS: u8 = 10;
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct House {
    gateway: Gateway,
    auth: Arc<Authenticator>,
    identity: Arc<Identity>,
    router: axum::Router,
}

fn now() -> Timestamp {
    Timestamp::from_unix_millis(chrono::Utc::now().timestamp_millis())
}

impl House {
    async fn open() -> Self {
        let gateway = Gateway::start(INLINE_MAX).await.with_bucket().await;
        let master: MasterKey = MASTER_KEY.parse().expect("a key");
        let jwt = JwtConfig {
            previous: None,
            secret: JWT_SECRET.into(),
            issuer: "cyxcloud".to_owned(),
            audience: "cyxcloud".to_owned(),
        };
        let auth = Authenticator::new(
            gateway.metadata.clone(),
            master.clone(),
            Some(jwt),
            "us-east-1".to_owned(),
            None,
        );
        let auth = Arc::new(auth);
        let binding = Binding { domain: "test.example".to_owned(), chain: "solana:devnet".to_owned() };
        let identity = Arc::new(Identity::new(
            gateway.metadata.clone(),
            Arc::new(InProcess::default()),
            auth.clone(),
            master,
            Config { binding, quota: Some(ByteCount::mib(1)), signups_per_hour: SIGNUPS.into() },
        ));
        let api = Api {
            objects: gateway.objects.clone(),
            metadata: gateway.metadata.clone(),
            identity: identity.clone(),
            sockets: Arc::new(Sockets::new(
                auth.clone(),
                gateway.events.clone(),
                Arc::new(InProcess::default()),
                Default::default(),
            )),
            documents: Documents::new(&prometheus::Registry::new()).expect("registers"),
            ephemeral: Arc::new(InProcess::default()),
            denials: Denials::default(),
            registry: prometheus::Registry::new(),
        };
        Self { gateway, auth, identity, router: api::router(api) }
    }

    async fn ask(
        &self,
        method: &Method,
        uri: &str,
        token: Option<&str>,
        body: &str,
    ) -> (StatusCode, serde_json::Value) {
        let mut request = Request::builder().method(method).uri(uri).extension(ClientAddress(HOME));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        let request = request.header("content-type", "application/json").body(body).expect("is a request");
        let response: http::Response<Body> =
            api::answer(&self.auth, &self.identity, &self.router, request).await;
        let status = response.status();
        let is_problem =
            response.headers().get("content-type").is_some_and(|kind| kind == "application/problem+json");
        let bytes = response.into_body().collect().await.expect("ends").to_bytes();
        assert!(
            is_problem || status.is_success() || status.is_redirection(),
            "{method} {uri}: {status} {bytes:?}"
        );
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    fn token(&self, owner: OwnerId, kind: TokenKind, version: i64, life: Duration) -> String {
        // A while ago, so that a short one is over.
        let issued_at = Timestamp::from_unix_millis(now().unix_millis() - 600_000);
        let token = Token {
            owner,
            kind,
            id: Uuid::new_v4().to_string(),
            session: None,
            key: None,
            version: Some(version),
            issued_at,
            // Two minutes ago, beyond what clocks may differ by, unless it is to live.
            expires_at: match life.as_millis() {
                0 => Timestamp::from_unix_millis(now().unix_millis() - 120_000),
                _ => now().plus(life),
            },
        };
        self.auth.issue(&token, None, issued_at).expect("issues").expose_secret().to_owned()
    }

    async fn key(&self, owner: OwnerId, wanted: WantedKey) -> String {
        let caller = Principal {
            owner,
            admin: false,
            access_key: None,
            scheme: Scheme::Bearer,
            limits: None,
            token: None,
        };
        let made = self.identity.create_key(&caller, wanted, HOME).await.expect("makes a key");
        made.token.expose_secret().to_owned()
    }

    async fn log_in(&self, key: &SigningKey) -> Issued {
        let address = bs58::encode(key.verifying_key().as_bytes()).into_string();
        let wallet = Wallet::parse(&address).expect("an address");
        let given = self.identity.challenge(&wallet, HOME).await.expect("a challenge");
        let signature = bs58::encode(key.sign(given.text.as_bytes()).to_bytes()).into_string();
        self.identity.log_in(&wallet, &signature, Some(&given.nonce), None, HOME).await.expect("let in")
    }
}

fn limited() -> WantedKey {
    WantedKey { name: "limited".to_owned(), read_only: Some(true), ..WantedKey::default() }
}

/// Whether an answer is what the description says that this route may answer.
fn described(
    document: &serde_json::Value,
    method: &Method,
    path: &str,
    status: StatusCode,
    body: &serde_json::Value,
) {
    let operation = &document["paths"][path.replace("{*", "{")][method.as_str().to_lowercase()];
    let said = &operation["responses"][status.as_str()];
    assert!(said.is_object(), "{method} {path} answers {status}, which is not described: {body}");
    if !status.is_success() {
        let types =
            &said["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"]["type"]["enum"];
        let types = types.as_array().expect("kinds");
        assert!(types.contains(&body["type"]), "{method} {path} answers {body}, which is not described");
        return;
    }
    let reference = &said["content"]["application/json"]["schema"]["$ref"];
    assert_eq!(reference.is_null(), body.is_null(), "{method} {path} answers {body}");
    let Some(pointer) = reference.as_str().and_then(|reference| reference.strip_prefix('#')) else { return };
    let schema = document.pointer(pointer).expect("leads somewhere");
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(
            body.get(name.as_str().expect("a name")).is_some(),
            "{method} {path} leaves {name} out: {body}"
        );
    }
    let Some(known) = schema["properties"].as_object() else { return };
    for (name, _) in body.as_object().expect("an object") {
        assert!(known.contains_key(name), "{method} {path} answers {name}, which is not described");
    }
}

/// What was decided for every route. A new one must be added here.
const DECIDED: &[(&str, &str, Access)] = &[
    ("GET", "/api/v1/openapi.json", Access::Public),
    ("POST", "/api/v1/auth/challenge", Access::Public),
    ("GET", "/api/v1/auth/challenge", Access::Public),
    ("POST", "/api/v1/auth/wallet", Access::Public),
    ("POST", "/api/v1/auth/refresh", Access::Refresh),
    ("POST", "/api/v1/auth/logout", Access::Any),
    ("GET", "/api/v1/auth/me", Access::Any),
    ("POST", "/api/v1/auth/api-keys", Access::Any),
    ("GET", "/api/v1/auth/api-keys", Access::Account),
    ("DELETE", "/api/v1/auth/api-keys/{id}", Access::Account),
    ("POST", "/api/v1/ws-ticket", Access::Account),
    ("GET", "/ws", Access::Any),
    ("GET", "/api/v1/audit-log", Access::Account),
    ("GET", "/api/v1/account", Access::Any),
    ("GET", "/api/v1/buckets/{bucket}", Access::Any),
    ("GET", "/api/v1/buckets/{bucket}/objects/{*key}", Access::Any),
    ("GET", "/api/v1/admin/users", Access::Admin),
    ("PATCH", "/api/v1/admin/users/{id}", Access::Admin),
    ("GET", "/api/v1/admin/audit-log", Access::Admin),
    ("GET", "/api/v1/admin/status", Access::Admin),
    ("GET", "/api/v1/admin/nodes", Access::Admin),
    ("POST", "/api/v1/admin/nodes/{id}/drain", Access::Admin),
    ("POST", "/api/v1/admin/nodes/{id}/reconcile", Access::Admin),
    ("POST", "/api/v1/admin/nodes/{id}/resume", Access::Admin),
    ("POST", "/api/v1/admin/nodes/{id}/scrub", Access::Admin),
    ("GET", "/api/v1/admin/repairs", Access::Admin),
    ("GET", "/api/v1/admin/audits", Access::Admin),
    ("GET", "/api/v1/admin/gc", Access::Admin),
    ("POST", "/api/v1/admin/gc/freeze", Access::Admin),
    ("POST", "/api/v1/admin/gc/thaw", Access::Admin),
    ("GET", "/metrics", Access::Admin),
    ("GET", "/api/v1/admin/token-keys", Access::Admin),
    ("POST", "/api/v1/admin/token-keys/rotate", Access::Admin),
];

#[test]
fn every_route_was_decided_about() {
    let decided: BTreeSet<String> = DECIDED.iter().map(|decided| format!("{decided:?}")).collect();
    let there: BTreeSet<String> = api::table()
        .iter()
        .map(|route| format!("{:?}", (route.method.as_str(), route.path, route.access)))
        .collect();
    assert_eq!(there, decided);
}

#[tokio::test]
async fn every_route_opens_to_what_was_decided_and_to_nothing_else() {
    let house = House::open().await;
    let metadata = &house.gateway.metadata;
    let change = async |seed: u8, change: PersonChange| {
        let id = OwnerId::from_random([seed; 16]);
        metadata.change_person(id, &change).await.expect("changes").expect("is there");
        id
    };
    let user = OwnerId::from_random([1; 16]);
    let admin = change(2, PersonChange { admin: Some(true), ..PersonChange::default() }).await;
    let hour = Duration::from_secs(3600);
    let suspended_wallet = SigningKey::from_bytes(&[5; 32]);
    let suspended = house.log_in(&suspended_wallet).await;
    let (_, me) = house.ask(&Method::GET, "/api/v1/auth/me", Some(&suspended.access_token), "").await;
    let suspended_id: OwnerId = me["id"].as_str().expect("an id").parse().expect("an id");
    let suspended_key =
        house.key(suspended_id, WantedKey { name: "k".to_owned(), ..WantedKey::default() }).await;
    let suspend = PersonChange { suspended: Some(true), ..PersonChange::default() };
    house.identity.change_user(suspended_id, &suspend).await.expect("suspends");
    let logged_out = house.log_in(&SigningKey::from_bytes(&[6; 32])).await;
    house.ask(&Method::POST, "/api/v1/auth/logout", Some(&logged_out.access_token), "").await;

    let strangers = [
        ("nothing", None),
        ("junk", Some("a.b.c".to_owned())),
        ("a refresh token", Some(house.log_in(&SigningKey::from_bytes(&[7; 32])).await.refresh_token)),
        ("an old token", Some(house.token(user, TokenKind::Access, 0, Duration::ZERO))),
        ("a token of a former version", Some(house.token(admin, TokenKind::Access, 0, hour))),
        // One without a version would be the first of a user that the identity service knows.
        ("a token of nobody", Some(house.token(OwnerId::from_random([77; 16]), TokenKind::Access, 1, hour))),
        ("a suspended user", Some(suspended.access_token)),
        ("a suspended user's key", Some(suspended_key)),
        ("a session that ended", Some(logged_out.access_token)),
    ];
    let user_token = house.token(user, TokenKind::Access, 0, hour);
    let user_key = house.key(user, WantedKey { name: "k".to_owned(), ..WantedKey::default() }).await;
    let user_limited = house.key(user, limited()).await;
    let admin_token = house.token(admin, TokenKind::Access, 1, hour);
    let admin_limited = house.key(admin, limited()).await;
    let (_, document) = house.ask(&Method::GET, "/api/v1/openapi.json", None, "").await;
    for Route { method, path, access, .. } in api::table() {
        let uri = path
            .replace("{id}", "00000000-0000-4000-8000-000000000000")
            .replace("{bucket}", "bucket")
            .replace("{*key}", "key");
        let ask = async |token: Option<&str>| {
            let (status, body) = house.ask(&method, &uri, token, "{}").await;
            described(&document, &method, path, status, &body);
            let kind =
                body["type"].as_str().unwrap_or_default().rsplit(':').next().unwrap_or_default().to_owned();
            (status.as_u16(), kind)
        };
        for (what, token) in &strangers {
            let (status, kind) = ask(token.as_deref()).await;
            match access {
                Access::Public => assert_ne!(kind, "unauthenticated", "{method} {path} with {what}"),
                Access::Refresh if *what == "a refresh token" => assert_eq!(status, 200),
                Access::Refresh => assert_eq!(status, 401, "{method} {path} with {what}"),
                Access::Any | Access::Account | Access::Admin => {
                    assert_eq!(
                        (status, kind.as_str()),
                        (401, "unauthenticated"),
                        "{method} {path} with {what}"
                    );
                }
            }
        }
        // Looked at one by one: the last would log the others out.
        for (what, token, is_admin, is_limited) in [
            ("a key", &user_key, false, false),
            ("a limited key", &user_limited, false, true),
            ("an administrator's limited key", &admin_limited, false, true),
            ("a user", &user_token, false, false),
            ("an administrator", &admin_token, true, false),
        ] {
            if path == "/api/v1/auth/logout" {
                continue;
            }
            let (status, kind) = ask(Some(token)).await;
            match access {
                Access::Admin if !is_admin => assert_eq!(kind, "not-admin", "{method} {path} with {what}"),
                Access::Account if is_limited => {
                    assert_eq!(kind, "limited-key", "{method} {path} with {what}")
                }
                Access::Refresh => assert_eq!(status, 401, "{method} {path} with {what}"),
                // Somebody else's bucket stays shut to an administrator, too.
                _ => assert!(
                    status != 401 && (status != 403 || kind == "access-denied"),
                    "{method} {path} with {what}: {status} {kind}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn strangers_do_not_learn_what_there_is() {
    let house = House::open().await;
    let token = house.token(OwnerId::from_random([1; 16]), TokenKind::Access, 0, Duration::from_secs(60));
    for uri in ["/api/v1/nothing", "/api/v1/admin/nothing", "/api/v1/auth/nothing", "/api/v1/buckets/none"] {
        let (status, body) = house.ask(&Method::GET, uri, None, "").await;
        assert_eq!(
            (status.as_u16(), &body["type"]),
            (401, &"urn:cyxcloud:problem:unauthenticated".into()),
            "{uri}"
        );
        assert_eq!(house.ask(&Method::GET, uri, Some(&token), "").await.0, 404, "{uri}");
    }
    assert_eq!(house.ask(&Method::DELETE, "/api/v1/auth/me", Some(&token), "").await.0, 405);
}

#[tokio::test]
async fn adv_23_a_nonce_lets_in_once_and_only_its_wallet() {
    let house = House::open().await;
    let (mine, other) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let wallet = |key: &SigningKey| {
        Wallet::parse(&bs58::encode(key.verifying_key().as_bytes()).into_string()).expect("an address")
    };
    let sign =
        |key: &SigningKey, text: &str| bs58::encode(key.sign(text.as_bytes()).to_bytes()).into_string();
    let given = house.identity.challenge(&wallet(&mine), HOME).await.expect("a challenge");
    let refused = async |key: &SigningKey, signature: &str, nonce: &str| {
        let tried = house.identity.log_in(&wallet(key), signature, Some(nonce), None, HOME).await;
        assert!(matches!(tried, Err(Refusal::NotLetIn(_))), "{tried:?}");
    };
    // Another wallet's nonce, and what its wallet never signed: neither uses it up.
    refused(&other, &sign(&other, &given.text), &given.nonce).await;
    refused(&mine, &sign(&mine, "another text"), &given.nonce).await;
    refused(&mine, "junk", &given.nonce).await;
    refused(&mine, &sign(&mine, &given.text), "unknown").await;
    let signature = sign(&mine, &given.text);
    // Of many who show the same proof at once, one is let in.
    let me = wallet(&mine);
    let tries = (0..4).map(|_| house.identity.log_in(&me, &signature, Some(&given.nonce), None, HOME));
    let let_in = futures::future::join_all(tries).await;
    assert_eq!(let_in.iter().filter(|tried| tried.is_ok()).count(), 1, "{let_in:?}");
    // The signature alone is enough, of the latest challenge, where it was asked for.
    let given = house.identity.challenge(&wallet(&mine), HOME).await.expect("a challenge");
    let signature = sign(&mine, &given.text);
    let alone =
        async |from| house.identity.log_in(&wallet(&mine), &signature, None, Some(&given.text), from).await;
    let elsewhere = "192.0.2.1".parse().expect("an address");
    assert!(matches!(alone(elsewhere).await, Err(Refusal::NotLetIn(_))));
    alone(HOME).await.expect("let in");
    assert!(alone(HOME).await.is_err());
}

#[tokio::test]
async fn adv_42_strangers_lock_nobody_out() {
    let house = House::open().await;
    let key = SigningKey::from_bytes(&[1; 32]);
    let wallet =
        Wallet::parse(&bs58::encode(key.verifying_key().as_bytes()).into_string()).expect("an address");
    let stranger: IpAddr = "192.0.2.1".parse().expect("an address");
    let junk =
        async |nonce: Option<&str>, from| house.identity.log_in(&wallet, "junk", nonce, None, from).await;
    let given = house.identity.challenge(&wallet, HOME).await.expect("a challenge");
    // Its challenges take the place of no other, and its tries are counted for it alone.
    for _ in 0..3 {
        house.identity.challenge(&wallet, stranger).await.expect("a challenge");
    }
    for _ in 0..5 {
        assert!(matches!(junk(None, stranger).await, Err(Refusal::NotLetIn(_))));
    }
    assert!(matches!(junk(None, stranger).await, Err(Refusal::TooMany { .. })));
    // Not even tries at home keep the owner out.
    for _ in 0..5 {
        assert!(matches!(junk(Some(&given.nonce), HOME).await, Err(Refusal::NotLetIn(_))));
    }
    assert!(matches!(junk(Some(&given.nonce), HOME).await, Err(Refusal::TooMany { .. })));
    let signature = bs58::encode(key.sign(given.text.as_bytes()).to_bytes()).into_string();
    house.identity.log_in(&wallet, &signature, None, None, HOME).await.expect("let in");
    // A wallet's own log-ins are counted wherever they come from.
    for _ in 0..4 {
        house.log_in(&key).await;
    }
    let given = house.identity.challenge(&wallet, stranger).await.expect("a challenge");
    let signature = bs58::encode(key.sign(given.text.as_bytes()).to_bytes()).into_string();
    let sixth = house.identity.log_in(&wallet, &signature, Some(&given.nonce), None, stranger).await;
    assert!(matches!(sixth, Err(Refusal::TooMany { .. })), "{sixth:?}");
}

#[tokio::test]
async fn adv_42_challenges_and_log_ins_are_counted() {
    let house = House::open().await;
    let wallet = bs58::encode(SigningKey::from_bytes(&[1; 32]).verifying_key().as_bytes()).into_string();
    let wallet = Wallet::parse(&wallet).expect("an address");
    for _ in 0..10 {
        house.identity.challenge(&wallet, HOME).await.expect("a challenge");
    }
    let more = house.identity.challenge(&wallet, HOME).await;
    assert!(matches!(more, Err(Refusal::TooMany { after }) if after <= Duration::from_secs(60)), "{more:?}");
    let elsewhere = "192.0.2.1".parse().expect("an address");
    house.identity.challenge(&wallet, elsewhere).await.expect("counts are per address");
}

#[tokio::test]
async fn adv_42_users_made_from_one_address_are_counted() {
    let house = House::open().await;
    let elsewhere = "192.0.2.1".parse().expect("an address");
    let key = |seed: u8| SigningKey::from_bytes(&[seed; 32]);
    let wallet = |seed: u8| {
        let address = bs58::encode(key(seed).verifying_key().as_bytes()).into_string();
        Wallet::parse(&address).expect("an address")
    };
    let log_in = async |seed: u8, from: IpAddr| {
        // Challenges are counted, too.
        let asked = IpAddr::from([10, 0, 0, seed]);
        let given = house.identity.challenge(&wallet(seed), asked).await.expect("a challenge");
        let signature = bs58::encode(key(seed).sign(given.text.as_bytes()).to_bytes()).into_string();
        house.identity.log_in(&wallet(seed), &signature, Some(&given.nonce), None, from).await
    };
    // Who proves nothing takes nobody's place.
    for seed in 100..100 + SIGNUPS {
        let junk = house.identity.log_in(&wallet(seed), "junk", None, None, HOME).await;
        assert!(matches!(junk, Err(Refusal::NotLetIn(_))), "{junk:?}");
    }
    for seed in 1..=SIGNUPS {
        log_in(seed, HOME).await.expect("let in");
    }
    let last = SIGNUPS + 1;
    let refused = log_in(last, HOME).await;
    assert!(matches!(refused, Err(Refusal::TooMany { .. })), "{refused:?}");
    let nobody = house.gateway.metadata.wallet_owner(wallet(last).address()).await.expect("looked");
    assert_eq!(nobody, None);
    // Whoever was here before is let in, and somebody new from elsewhere.
    log_in(1, HOME).await.expect("let in");
    log_in(last, elsewhere).await.expect("let in");
    log_in(last, HOME).await.expect("let in");
}

#[tokio::test]
async fn adv_16_a_key_mints_nothing_beyond_itself() {
    let house = House::open().await;
    let user = OwnerId::from_random([1; 16]);
    let wanted = WantedKey {
        name: "narrow".to_owned(),
        expires_in_days: Some(2),
        buckets: Some(vec!["bucket".to_owned()]),
        ..WantedKey::default()
    };
    let narrow = house.key(user, wanted).await;
    let ask = async |body: &str| house.ask(&Method::POST, "/api/v1/auth/api-keys", Some(&narrow), body).await;
    for beyond in [r#"{"name": "x", "buckets": ["other"]}"#, r#"{"name": "x", "expires_in_days": 3}"#] {
        let (status, body) = ask(beyond).await;
        assert_eq!(
            (status.as_u16(), &body["type"]),
            (403, &"urn:cyxcloud:problem:exceeds-key".into()),
            "{beyond}"
        );
    }
    for nonsense in [r#"{"name": ""}"#, r#"{"name": "x", "owner": "me"}"#, "[]", ""] {
        assert_eq!(ask(nonsense).await.0, 400, "{nonsense}");
    }
    let (status, made) = ask(r#"{"name": "child"}"#).await;
    assert_eq!((status.as_u16(), &made["buckets"]), (201, &serde_json::json!(["bucket"])));
    let keys = house.identity.keys(user).await.expect("lists");
    let end = |name: &str| keys.iter().find(|key| key.name == name).expect("is listed").expires_at;
    assert!(end("child").is_some() && end("child") <= end("narrow"));
    // Nor do its children outlive its revocation, or theirs.
    let child = made["token"].as_str().expect("a token").to_owned();
    let (_, made) =
        house.ask(&Method::POST, "/api/v1/auth/api-keys", Some(&child), r#"{"name": "grandchild"}"#).await;
    let grandchild = made["token"].as_str().expect("a token").to_owned();
    let me = async |token: &str| house.ask(&Method::GET, "/api/v1/auth/me", Some(token), "").await.0.as_u16();
    assert_eq!((me(&child).await, me(&grandchild).await), (200, 200));
    let narrow_id = keys.iter().find(|key| key.name == "narrow").expect("is listed").id.clone();
    let owner = house.token(user, TokenKind::Access, 0, Duration::from_secs(3600));
    let uri = format!("/api/v1/auth/api-keys/{narrow_id}");
    assert!(house.ask(&Method::DELETE, &uri, Some(&owner), "").await.0.is_success());
    assert_eq!((me(&narrow).await, me(&child).await, me(&grandchild).await), (401, 401, 401));
}

#[tokio::test]
async fn a_refresh_token_is_exchanged_once_and_its_reuse_ends_the_session() {
    let house = House::open().await;
    let first = house.log_in(&SigningKey::from_bytes(&[1; 32])).await;
    let second = house.identity.refresh(&first.refresh_token, HOME).await.expect("exchanged");
    let again = house.identity.refresh(&first.refresh_token, HOME).await.expect("a moment ago");
    assert_eq!((&again.access_token, &again.refresh_token), (&second.access_token, &second.refresh_token));
    let third = house.identity.refresh(&second.refresh_token, HOME).await.expect("exchanged");
    let me = async |token: &str| house.ask(&Method::GET, "/api/v1/auth/me", Some(token), "").await.0.as_u16();
    assert_eq!((me(&first.access_token).await, me(&third.access_token).await), (200, 200));
    let reused = house.identity.refresh(&first.refresh_token, HOME).await;
    assert!(matches!(reused, Err(Refusal::NotLetIn(_))), "{reused:?}");
    assert_eq!((me(&first.access_token).await, me(&third.access_token).await), (401, 401));
    assert!(house.identity.refresh(&third.refresh_token, HOME).await.is_err());
}

#[tokio::test]
async fn adv_33_a_ticket_is_good_once_and_for_what_it_was_given_for() {
    let house = House::open().await;
    let tokens = house.log_in(&SigningKey::from_bytes(&[8; 32])).await;
    let ticket = async || {
        let (status, body) =
            house.ask(&Method::POST, "/api/v1/ws-ticket", Some(&tokens.access_token), "").await;
        assert_eq!((status, &body["expires_in"]), (StatusCode::OK, &30.into()));
        body["ticket"].as_str().expect("a ticket").to_owned()
    };
    let (_, me) = house.ask(&Method::GET, "/api/v1/auth/me", Some(&tokens.access_token), "").await;
    let redeem = async |ticket: &str| house.identity.redeem_ticket(ticket).await;
    let first = ticket().await;
    let caller = redeem(&first).await.expect("asked").expect("is good");
    assert_eq!((me["id"].as_str(), caller.scheme), (Some(&*caller.owner.to_string()), Scheme::Ticket));
    assert!(!caller.admin && caller.token.is_some(), "it ends with the token: {caller:?}");
    assert_eq!(redeem(&first).await.expect("asked"), None);
    for junk in ["", "x", &"0".repeat(64), &"é".repeat(32)] {
        assert_eq!(redeem(junk).await.expect("asked"), None);
    }
    let unused = ticket().await;
    let open = async |ticket: &str| {
        let (status, body) = house.ask(&Method::GET, &format!("/ws?ticket={ticket}"), None, "").await;
        (status.as_u16(), body["type"].as_str().unwrap_or_default().to_owned())
    };
    let fine = ticket().await;
    assert_eq!(open(&fine).await, (426, "urn:cyxcloud:problem:upgrade-required".to_owned()));
    assert_eq!(open(&fine).await.0, 401);
    house.ask(&Method::POST, "/api/v1/auth/logout", Some(&tokens.access_token), "").await;
    assert_eq!(open(&unused).await.0, 401, "the session has ended");
}

#[tokio::test]
async fn adv_33_an_owner_gets_so_many_tickets_a_minute() {
    let house = House::open().await;
    let [one, other] = [1, 2].map(|seed| {
        house.token(OwnerId::from_random([seed; 16]), TokenKind::Access, 0, Duration::from_secs(60))
    });
    let ask = async |token: &str| house.ask(&Method::POST, "/api/v1/ws-ticket", Some(token), "").await;
    for number in 0..60 {
        assert_eq!(ask(&one).await.0, 200, "{number}");
    }
    let (status, refused) = ask(&one).await;
    assert_eq!((status.as_u16(), &refused["type"]), (429, &"urn:cyxcloud:problem:too-many-requests".into()));
    assert_eq!(ask(&other).await.0, 200);
}

#[tokio::test]
async fn adv_33_what_may_open_no_socket() {
    let house = House::open().await;
    let token = house.token(OwnerId::from_random([1; 16]), TokenKind::Access, 0, Duration::from_secs(60));
    let ask = async |uri: &str, headers: &[(&str, &str)]| {
        let mut request = Request::builder().uri(uri).extension(ClientAddress(HOME));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::<Bytes>::default()).expect("is a request");
        api::answer(&house.auth, &house.identity, &house.router, request).await
    };
    let bearer = format!("Bearer {token}");
    let (auth, host) = (("authorization", bearer.as_str()), ("host", "gateway.example"));
    for (uri, headers, status) in [
        ("/ws", &[host][..], 401),
        ("/ws?topics=nonsense", &[host], 401),
        ("/ws", &[host, ("origin", "https://evil.example")], 401),
        (&format!("/ws?token={token}x"), &[host], 401),
        ("/ws?ticket=x", &[host], 401),
        (&format!("/ws?token={token}"), &[host, auth], 400),
        (&format!("/ws?token={token}&ticket=x"), &[host], 400),
        ("/ws", &[host, auth, ("origin", "https://evil.example")], 403),
        ("/ws?topics=file,nonsense", &[host, auth], 400),
        ("/ws?topics=", &[host, auth], 400),
        ("/ws?topic=file", &[host, auth], 400),
        ("/ws", &[host, auth, ("origin", "https://gateway.example")], 426),
        (&format!("/ws?topics=file,bucket,node&token={token}"), &[host], 426),
    ] {
        let response = ask(uri, headers).await;
        assert_eq!(response.status().as_u16(), status, "{uri} {headers:?}");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{uri}");
        let wants = response.headers().get("upgrade").map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(wants.as_deref(), (status == 426).then_some("websocket"));
        let body = response.into_body().collect().await.expect("ends").to_bytes();
        let body = String::from_utf8(body.to_vec()).expect("text");
        assert!(!body.contains(&token), "{body}");
        if status == 400 && uri.contains("nonsense") {
            assert!(["file", "bucket", "node"].iter().all(|topic| body.contains(topic)), "{body}");
        }
    }
}
