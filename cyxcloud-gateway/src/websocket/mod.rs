//! `GET /ws`: events as they happen, to whom they concern.
//!
//! Whoever comes here was let in by [`crate::api`], like any other request; a browser, which can set no headers, by a ticket
//! or a token in the address, which [`credentials`] takes out of it first. What is told is in [`crate::events`]; an owner's
//! listeners hear of the owner's buckets, and everybody hears of nodes, administrators also where those are. A socket holds
//! its place among its address's connections and among its owner's sockets until it ends, and ends by what is said in
//! [`conversation`].

pub(crate) mod conversation;
pub(crate) mod credentials;
pub mod origin;
mod seats;
pub(crate) mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::http::header::{HeaderValue, SEC_WEBSOCKET_VERSION, UPGRADE};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::auth::{Authenticator, Principal};
use crate::ephemeral::Ephemeral;
use crate::events::Events;
use crate::problem::{Kind, Problem};
use crate::rest::known;
use crate::serve::Held;
use conversation::Conversation;
use origin::Origins;
use seats::Seats;

/// Where sockets are opened.
pub const PATH: &str = "/ws";
/// Sockets of one owner, at all gateways together (specification, 15.5).
const SOCKETS_MAX: usize = 10;
/// Largest message, and frame, that a client may send.
pub(crate) const MESSAGE_MAX: usize = 64 << 10;
/// Read at once; what comes in is small.
pub(crate) const READ_BUFFER: usize = 4 << 10;
/// Most that waits to be written: a message, of which the longest tells of a key, and what the protocol adds.
pub(crate) const WRITE_BUFFER_MAX: usize = 64 << 10;

/// What may be set about sockets.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose pages may open them.
    pub origins: Origins,
    /// Between two pings.
    pub ping_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { origins: Origins::default(), ping_every: Duration::from_secs(30) }
    }
}

/// What sockets are opened with.
#[derive(Debug)]
pub struct Sockets {
    auth: Arc<Authenticator>,
    events: Events,
    seats: Seats,
    config: Config,
}

impl Sockets {
    /// Sockets that tell these events to whom `auth` lets in; counted with those of other gateways by `ephemeral`.
    pub fn new(
        auth: Arc<Authenticator>,
        events: Events,
        ephemeral: Arc<dyn Ephemeral>,
        config: Config,
    ) -> Self {
        Self { auth, events, seats: Seats::new(SOCKETS_MAX, ephemeral), config }
    }
}

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    topics: Option<String>,
}

/// All that may be in a socket's address; [`credentials`] takes the latter two before [`Asked`] is read.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes an address")]
pub(crate) struct SocketQuery {
    /// Of `file`, `bucket` and `node`, between commas; all where it is left out.
    topics: Option<String>,
    /// From `POST /api/v1/ws-ticket`, instead of other credentials: for browsers.
    ticket: Option<String>,
    /// An access token instead of the `Authorization` header; addresses are written into logs, so prefer a ticket.
    token: Option<String>,
}

/// Opens a socket.
pub(crate) async fn open(
    State(sockets): State<Arc<Sockets>>,
    caller: Option<Extension<Principal>>,
    held: Option<Extension<Held>>,
    headers: HeaderMap,
    asked: Result<Query<Asked>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let who = known(caller)?;
    if !sockets.config.origins.allow(&headers) {
        let detail = "pages of this origin may open no sockets here; the operator can allow it: --ws-origins";
        return Err(Problem::new(Kind::ForeignOrigin, detail));
    }
    let invalid = |detail: String| Problem::new(Kind::InvalidRequest, detail);
    let Query(asked) = asked.map_err(|rejection| invalid(rejection.body_text()))?;
    let topics = view::topics(asked.topics.as_deref()).map_err(|error| invalid(error.to_string()))?;
    let (Ok(upgrade), Some(Extension(held))) = (upgrade, held) else { return Ok(upgrade_required()) };
    let Some(seat) = sockets.seats.take(who.owner).await else {
        let detail = format!("there are {SOCKETS_MAX} sockets of this user open already; close one first");
        // By then what nobody says is open any more has been given up.
        return Err(Problem::new(Kind::TooManySockets, detail).retry_after(seats::HELD));
    };
    let conversation = Conversation {
        // Before the answer: whoever has it misses nothing that happens from then on.
        news: sockets.events.listen(who.owner),
        who,
        topics,
        auth: sockets.auth.clone(),
        metrics: sockets.events.metrics().clone(),
        ping_every: sockets.config.ping_every,
        held,
        seat,
    };
    let upgrade = upgrade
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER_MAX);
    Ok(upgrade.on_upgrade(move |socket| conversation.hold(socket)))
}

/// Answers what is no request for a socket, in this protocol's only version.
fn upgrade_required() -> Response {
    let detail = "this address is for WebSockets, version 13, over HTTP/1.1; connect with a WebSocket client";
    let problem = Problem::new(Kind::UpgradeRequired, detail);
    let mut response = problem.into_response();
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}
