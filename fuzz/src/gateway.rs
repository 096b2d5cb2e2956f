//! A whole gateway without a network and without nodes: bodies that would go to nodes are refused, smaller ones live in its
//! database, which is in memory.
//!
//! An input leaves no bucket behind, so that it does the same when it runs alone. What else it left (spent uploads, caches) is
//! forgotten with the gateway, now and then.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use cyxcloud_core::ByteCount;
use cyxcloud_core::seal::MasterKey;
use cyxcloud_gateway::auth::{Authenticator, JwtConfig};
use cyxcloud_gateway::ephemeral::InProcess;
use cyxcloud_gateway::readiness::Lookout;
use cyxcloud_gateway::serve::{App, Metrics};
use cyxcloud_tls::crowd::Crowd;
use http::{Method, StatusCode};

use super::objects_support::{Gateway, Reply};

/// Inputs that one gateway serves.
const LIFE: u32 = 2_000;
/// Parts of an upload but the last have 5 MiB; an input is shorter, so its uploads have one part.
const INLINE_MAX: ByteCount = ByteCount::kib(32);
pub const JWT_SECRET: &str = "0123456789abcdef0123456789abcdef-fuzz";

/// A gateway, and the HTTP port that it could be reached at.
#[derive(Clone)]
pub struct Served {
    pub gateway: Gateway,
    pub app: Arc<App>,
}

thread_local! {
    static SERVED: RefCell<Option<(Served, u32)>> = const { RefCell::new(None) };
}

/// The gateway for one input. Give it back with [`wipe`].
pub async fn served() -> Served {
    let known = SERVED.with_borrow_mut(|served| {
        let (served, left) = served.as_mut().filter(|(_, left)| *left > 0)?;
        *left -= 1;
        Some(served.clone())
    });
    if let Some(served) = known {
        return served;
    }
    let fresh = start().await;
    SERVED.set(Some((fresh.clone(), LIFE)));
    fresh
}

async fn start() -> Served {
    let gateway = Gateway::start(INLINE_MAX).await;
    let jwt = JwtConfig {
        secret: JWT_SECRET.into(),
        issuer: "cyxwiz".into(),
        audience: "cyxcloud".into(),
        previous: None,
    };
    let master = MasterKey::from_bytes([9; 32]);
    let auth = Authenticator::new(gateway.metadata.clone(), master, Some(jwt), "us-east-1".to_owned(), None);
    let (auth, domains) = (Arc::new(auth), vec!["s3.localhost".to_owned()]);
    let (rest, identity) = gateway.rest_behind(auth.clone());
    let app = App {
        auth,
        identity,
        s3: gateway.service.clone(),
        rest,
        trusted_proxies: vec!["10.0.0.0/8".parse().expect("a network")],
        objects: gateway.objects.clone(),
        lookout: Lookout::new(gateway.metadata.clone(), Arc::new(InProcess::default()), 2),
        domains,
        crowd: Crowd::new(64),
        tls: None,
        metrics: Metrics::new(&prometheus::Registry::new()).expect("registers"),
    };
    Served { gateway, app: Arc::new(app) }
}

/// Deletes all buckets of the caller, and what is in them.
pub async fn wipe(gateway: &Gateway) {
    let buckets = gateway.get("/").await;
    for bucket in buckets.elements("Name") {
        let listing = gateway.get(&format!("/{bucket}?uploads&encoding-type=url")).await;
        for (key, id) in listing.elements("Key").iter().zip(listing.elements("UploadId")) {
            gateway.delete(&format!("/{bucket}/{}?uploadId={id}", spaced(key))).await;
        }
        let listing = gateway.get(&format!("/{bucket}?list-type=2&encoding-type=url")).await;
        for key in listing.elements("Key") {
            gateway.delete(&format!("/{bucket}/{}", spaced(&key))).await;
        }
        let gone = gateway.delete(&format!("/{bucket}")).await;
        if gone.status != StatusCode::NO_CONTENT {
            // More than a page: whoever wrote so much is served by another gateway from now on.
            SERVED.set(None);
            return;
        }
    }
}

/// A key of a listing with `encoding-type=url`, as it stands in an address.
fn spaced(key: &str) -> String {
    key.replace('+', "%20")
}

/// What must hold of any answer: nothing broke inside, and what is said to be XML or JSON is.
pub fn check(method: &Method, reply: &Reply) {
    let text = String::from_utf8_lossy(&reply.body);
    assert_ne!(reply.status, StatusCode::INTERNAL_SERVER_ERROR, "{text}");
    let kind = reply.header("content-type").unwrap_or_default();
    if *method == Method::HEAD || reply.body.is_empty() {
        return;
    }
    let failed = reply.status.is_client_error() || reply.status.is_server_error();
    if failed && kind == "application/xml" {
        well_formed(&reply.body);
        assert!(reply.element("Code").is_some_and(|code| !code.is_empty()), "{text}");
        assert!(reply.element("Message").is_some_and(|message| !message.is_empty()), "{text}");
    }
    if failed && kind == "application/problem+json" {
        let problem: serde_json::Value = serde_json::from_slice(&reply.body).expect("is JSON");
        assert_eq!(problem["status"], reply.status.as_u16(), "{text}");
        assert!(problem["detail"].is_string(), "{text}");
    }
}

/// Whether a document is XML from its first to its last byte.
pub fn well_formed(document: &Bytes) {
    let text = std::str::from_utf8(document).expect("is text");
    let mut reader = quick_xml::Reader::from_str(text);
    let mut roots = 0;
    let mut depth = 0u32;
    loop {
        match reader.read_event().unwrap_or_else(|error| panic!("{error}: {text}")) {
            quick_xml::events::Event::Start(_) => {
                roots += u32::from(depth == 0);
                depth += 1;
            }
            quick_xml::events::Event::End(_) => depth -= 1,
            quick_xml::events::Event::Empty(_) => roots += u32::from(depth == 0),
            quick_xml::events::Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!((depth, roots), (0, 1), "{text}");
}
