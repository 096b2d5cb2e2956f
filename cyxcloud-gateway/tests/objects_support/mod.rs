//! A gateway without a network: the S3 surface over SQLite in memory and a data plane without nodes, in which bodies
//! live in the metadata store.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(unreachable_pub, reason = "shared by test files")]

use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::address::AddressPolicy;
use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::{ByteCount, OwnerId, Timestamp};
use cyxcloud_dataplane::DataPlane;
use cyxcloud_gateway::api::{self, Api};
use cyxcloud_gateway::auth::{Authenticator, Principal, Scheme};
use cyxcloud_gateway::body::S3Body;
use cyxcloud_gateway::documents::Documents;
use cyxcloud_gateway::ephemeral::InProcess;
use cyxcloud_gateway::events::Events;
use cyxcloud_gateway::identity::challenge::Binding;
use cyxcloud_gateway::identity::{self, Identity};
use cyxcloud_gateway::journal::Denials;
use cyxcloud_gateway::objects::{Config, ObjectService, OwnerSecrets};
use cyxcloud_gateway::s3::{self, Options, S3Service};
use cyxcloud_gateway::websocket::Sockets;
use cyxcloud_metadata::MetadataStore;
use cyxcloud_metadata::model::Owner;
use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;

/// The S3 surface and who asks.
#[derive(Clone)]
pub struct Gateway {
    pub service: S3Service,
    pub objects: Arc<ObjectService>,
    pub metadata: Arc<dyn MetadataStore>,
    pub events: Events,
    pub caller: OwnerId,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("answer is text")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("header is text"))
    }

    /// Content of the first element of that name, unescaped.
    pub fn element(&self, name: &str) -> Option<String> {
        self.elements(name).into_iter().next()
    }

    /// Contents of all elements of that name, unescaped.
    pub fn elements(&self, name: &str) -> Vec<String> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let pieces = self.text().split(&open).skip(1);
        pieces
            .filter_map(|rest| rest.split_once(&close))
            .map(|(content, _)| {
                content
                    .replace("&quot;", "\"")
                    .replace("&lt;", "<")
                    .replace("&gt;", ">")
                    .replace("&amp;", "&")
            })
            .collect()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    #[track_caller]
    pub fn error(self, status: u16, code: &str) -> Self {
        let reply = self.expect(status);
        assert_eq!(reply.element("Code").as_deref(), Some(code), "{}", reply.text());
        assert!(reply.element("Message").is_some_and(|message| !message.is_empty()));
        assert_eq!(reply.element("RequestId").as_deref(), reply.header("x-amz-request-id"));
        assert!(reply.element("Resource").is_some());
        reply
    }
}

fn owner(master: &MasterKey, seed: u8) -> Owner {
    let id = OwnerId::from_random([seed; 16]);
    Owner {
        id,
        username: Some(format!("user-{seed}")),
        email: None,
        wallet_address: None,
        admin: false,
        storage_quota: None,
        wrapped_secret: OwnerSecrets::wrap_new(master, id),
        created_at: Timestamp::default(),
    }
}

impl Gateway {
    /// Bodies up to `inline_max` need no nodes, of which there are none.
    pub async fn start(inline_max: ByteCount) -> Self {
        let metadata: Arc<dyn MetadataStore> =
            Arc::new(SqliteStore::open(&SqliteConfig::Memory).expect("opens in memory"));
        let master = MasterKey::from_bytes([9; 32]);
        for seed in [1, 2] {
            metadata.ensure_owner(&owner(&master, seed)).await.expect("makes an owner");
        }
        let plane_config = cyxcloud_dataplane::Config {
            inline_max,
            small_max: inline_max.max(cyxcloud_core::stripe::SMALL_MAX),
            ..cyxcloud_dataplane::Config::default()
        };
        let registry = prometheus::Registry::new();
        let plane = DataPlane::new(
            plane_config,
            metadata.clone(),
            AddressPolicy::default(),
            master.clone(),
            &registry,
        );
        let secrets = OwnerSecrets::new(metadata.clone(), master);
        let config = Config { inline_max, ..Config::default() };
        let events = Events::new(&registry).expect("registers");
        let documents = Documents::new(&registry).expect("registers");
        let objects = ObjectService::new(metadata.clone(), plane, secrets, config);
        let objects = Arc::new(objects.with_events(events.clone()));
        let service =
            s3::service(objects.clone(), documents, Options { cors_permissive: true, ..Options::default() });
        Self { service, objects, metadata, events, caller: OwnerId::from_random([1; 16]) }
    }

    /// With room for parts of multipart uploads.
    pub async fn roomy() -> Self {
        Self::start(ByteCount::mib(8)).await
    }

    /// The same gateway, asked by somebody else.
    pub fn as_somebody_else(&self) -> Self {
        Self { caller: OwnerId::from_random([2; 16]), ..self.clone() }
    }

    pub fn principal(&self) -> Principal {
        Principal {
            owner: self.caller,
            admin: false,
            access_key: None,
            scheme: Scheme::Header,
            limits: None,
            token: None,
        }
    }

    /// The routes under `/api/v1`.
    pub fn rest(&self) -> axum::Router {
        let master = MasterKey::from_bytes([9; 32]);
        let auth = Authenticator::new(self.metadata.clone(), master, None, "us-east-1".to_owned(), None);
        self.rest_behind(Arc::new(auth)).0
    }

    /// The same, with log-ins that this door knows of.
    pub fn rest_behind(&self, auth: Arc<Authenticator>) -> (axum::Router, Arc<Identity>) {
        let binding = Binding { domain: "test".to_owned(), chain: "test".to_owned() };
        let identity = Identity::new(
            self.metadata.clone(),
            Arc::new(InProcess::default()),
            auth.clone(),
            MasterKey::from_bytes([9; 32]),
            identity::Config { binding, quota: None, signups_per_hour: 10 },
        );
        let identity = Arc::new(identity);
        let ephemeral = Arc::new(InProcess::default());
        let api = Api {
            objects: self.objects.clone(),
            metadata: self.metadata.clone(),
            identity: identity.clone(),
            sockets: Arc::new(Sockets::new(auth, self.events.clone(), ephemeral.clone(), Default::default())),
            documents: Documents::new(&prometheus::Registry::new()).expect("registers"),
            ephemeral,
            denials: Denials::default(),
            registry: prometheus::Registry::new(),
        };
        (api::router(api), identity)
    }

    pub async fn send(&self, method: Method, uri: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let body = S3Body::from_bytes(Bytes::copy_from_slice(body));
        let mut request = Request::builder().method(method.clone()).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let names_length = headers.iter().any(|(name, _)| *name == "content-length");
        if matches!(method, Method::PUT | Method::POST) && !names_length {
            request =
                request.header("content-length", http_body::Body::size_hint(&body).exact().unwrap_or(0));
        }
        let request = request.extension(self.principal()).body(body).expect("is a request");
        self.call(request).await
    }

    pub async fn call(&self, request: Request<S3Body>) -> Reply {
        let (parts, body) = self.service.call(request).await.into_parts();
        let body = body.collect().await.expect("the body comes to its end").to_bytes();
        if let Some(length) = parts.headers.get("content-length").filter(|_| !body.is_empty()) {
            assert_eq!(length.to_str().ok(), Some(body.len().to_string().as_str()));
        }
        assert!(parts.headers.contains_key("x-amz-id-2"));
        Reply { status: parts.status, headers: parts.headers, body }
    }

    pub async fn get(&self, uri: &str) -> Reply {
        self.send(Method::GET, uri, &[], b"").await
    }

    pub async fn get_with(&self, uri: &str, headers: &[(&str, &str)]) -> Reply {
        self.send(Method::GET, uri, headers, b"").await
    }

    pub async fn head(&self, uri: &str, headers: &[(&str, &str)]) -> Reply {
        let reply = self.send(Method::HEAD, uri, headers, b"").await;
        assert!(reply.body.is_empty(), "HEAD has no body");
        reply
    }

    pub async fn put(&self, uri: &str, body: &[u8]) -> Reply {
        self.send(Method::PUT, uri, &[], body).await
    }

    pub async fn put_with(&self, uri: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.send(Method::PUT, uri, headers, body).await
    }

    pub async fn delete(&self, uri: &str) -> Reply {
        self.send(Method::DELETE, uri, &[], b"").await
    }

    pub async fn post(&self, uri: &str, body: &str) -> Reply {
        self.send(Method::POST, uri, &[], body.as_bytes()).await
    }

    /// With a bucket `bucket`.
    pub async fn with_bucket(self) -> Self {
        self.put("/bucket", b"").await.expect(200);
        self
    }
}
