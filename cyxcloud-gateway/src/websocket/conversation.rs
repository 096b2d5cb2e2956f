//! One open socket: events go out, little comes in, and it ends when it must.
//!
//! It ends with its credentials, with the server, with a peer that is silent, takes nothing or sends too much; whatever
//! happens, nothing waits for it longer than [`SEND_TIMEOUT`] and [`GOODBYE`] together.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tracing::debug;

use super::seats::Seat;
use super::view::may_know;
use crate::auth::{Authenticator, Principal};
use crate::events::{Heard, Listener, Metrics, Notice, Topic};
use crate::serve::Held;

/// A peer may take nothing of a message for this long.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer may take this long to say goodbye, too.
const GOODBYE: Duration = Duration::from_secs(2);
/// How often it is looked at whether the credentials still hold.
const CHECK_EVERY: Duration = Duration::from_secs(3);
/// For a look.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// A socket whose credentials cannot be looked at goes on for so long.
const UNCHECKED_MAX: Duration = Duration::from_secs(60);
/// Intervals between pings in which a peer may be silent.
const SILENT_PINGS: u32 = 2;
/// The credentials have ended; the application's own range of codes.
const CREDENTIALS_ENDED: u16 = 4001;
/// Longest message that may ask for an answer.
const ASKING_MAX: usize = 256;
/// Events told before an answer, at most.
const CATCH_UP_MAX: usize = 2_048;

/// What a socket is opened with.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) who: Principal,
    pub(super) topics: BTreeSet<Topic>,
    pub(super) news: Listener,
    pub(super) auth: Arc<Authenticator>,
    pub(super) metrics: Metrics,
    pub(super) ping_every: Duration,
    /// The connection below.
    pub(super) held: Held,
    /// Among the owner's sockets.
    pub(super) seat: Seat,
}

/// Why a socket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The peer closed it, or is not there any more.
    Gone,
    /// The peer did not answer pings, or takes nothing.
    Silent,
    /// The server stops.
    Stopping,
    /// The credentials do not hold any more.
    Credentials,
    /// Whether they hold cannot be found out.
    Unchecked,
    /// What came in is nothing that may come in.
    Fault(u16),
}

impl Ending {
    fn frame(self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            Self::Gone | Self::Silent => return None,
            Self::Stopping => (close_code::AWAY, "the server stops; connect again"),
            Self::Credentials => (CREDENTIALS_ENDED, "the session has ended; log in again"),
            Self::Unchecked => (close_code::AGAIN, "credentials cannot be checked just now; try again"),
            Self::Fault(close_code::SIZE) => (close_code::SIZE, "a message may have 64 KiB"),
            Self::Fault(code) => (code, ""),
        };
        Some(CloseFrame { code, reason: Utf8Bytes::from_static(reason) })
    }
}

/// What is wrong with what came in.
fn fault(error: axum::Error) -> Ending {
    use tungstenite::Error;
    match error.into_inner().downcast_ref::<Error>() {
        Some(Error::Capacity(_)) => Ending::Fault(close_code::SIZE),
        Some(Error::Utf8(_)) => Ending::Fault(close_code::INVALID),
        Some(Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
            Ending::Gone
        }
        Some(Error::Protocol(_)) => Ending::Fault(close_code::PROTOCOL),
        _ => Ending::Gone,
    }
}

/// The code that a peer is told when nothing more is read of it for this reason, if it is there to be told.
pub(crate) fn code_of(error: tungstenite::Error) -> Option<u16> {
    fault(axum::Error::new(error)).frame().map(|frame| frame.code)
}

/// Whether a message is `{"type": "ping"}`, for clients that cannot send the protocol's own.
pub(crate) fn asks(text: &str) -> bool {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asking<'a> {
        r#type: &'a str,
    }
    // A list of the fields is read as well where a struct is.
    text.len() <= ASKING_MAX
        && text.trim_start().starts_with('{')
        && serde_json::from_str::<Asking<'_>>(text).is_ok_and(|asking| asking.r#type == "ping")
}

fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn send(socket: &mut WebSocket, message: Message) -> Result<(), Ending> {
    match timeout(SEND_TIMEOUT, socket.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ending::Gone),
        Err(_) => Err(Ending::Silent),
    }
}

async fn say_goodbye(mut socket: WebSocket, ending: Ending) {
    let frame = ending.frame();
    let goodbye = async {
        if let Some(frame) = frame {
            let _ = socket.send(Message::Close(Some(frame))).await;
        }
        while let Some(Ok(_)) = socket.recv().await {}
        if let Ending::Fault(_) = ending {
            // What is wrong is not read any further, and a connection with unread bytes is torn down: the peer first gets
            // a moment to read why.
            std::future::pending::<()>().await;
        }
    };
    let _ = timeout(GOODBYE, goodbye).await;
}

impl Conversation {
    /// Until it ends.
    pub(super) async fn hold(mut self, mut socket: WebSocket) {
        self.metrics.connections.inc();
        let ending = match self.converse(&mut socket).await {
            Err(ending) => ending,
            Ok(never) => match never {},
        };
        debug!(owner = %self.who.owner, ?ending, "a socket ends");
        if ending != Ending::Silent {
            say_goodbye(socket, ending).await;
        }
        self.metrics.connections.dec();
        drop((self.seat, self.held));
    }

    async fn converse(&mut self, socket: &mut WebSocket) -> Result<std::convert::Infallible, Ending> {
        let (mut pings, mut checks) = (every(self.ping_every), every(CHECK_EVERY));
        let (mut heard_at, mut checked_at) = (Instant::now(), Instant::now());
        let stop = self.held.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Err(Ending::Stopping),
                came = socket.recv() => {
                    heard_at = Instant::now();
                    match came {
                        None => return Err(Ending::Gone),
                        Some(Err(error)) => return Err(fault(error)),
                        Some(Ok(Message::Text(text))) if asks(&text) => {
                            self.catch_up(socket).await?;
                            send(socket, Message::Text(json!({ "type": "pong" }).to_string().into())).await?;
                        }
                        // The protocol's pings and closings are answered below us.
                        Some(Ok(_)) => {}
                    }
                }
                heard = self.news.next() => self.tell(socket, heard).await?,
                _ = pings.tick() => {
                    if heard_at.elapsed() >= self.ping_every * SILENT_PINGS {
                        return Err(Ending::Silent);
                    }
                    send(socket, Message::Ping(Default::default())).await?;
                }
                _ = checks.tick() => self.check(&mut checked_at).await?,
            }
        }
    }

    /// Tells what waits to be told: who asks is answered when it has heard all that happened before.
    async fn catch_up(&mut self, socket: &mut WebSocket) -> Result<(), Ending> {
        for _ in 0..CATCH_UP_MAX {
            let Some(heard) = self.news.told() else { break };
            self.tell(socket, heard).await?;
        }
        Ok(())
    }

    async fn tell(&self, socket: &mut WebSocket, heard: Heard) -> Result<(), Ending> {
        match heard {
            Heard::Notice(notice) if self.sees(&notice) => {
                send(socket, Message::Text(notice.text(self.who.admin))).await?;
                self.metrics.sent.with_label_values(&[notice.event.topic().as_str()]).inc();
                Ok(())
            }
            Heard::Notice(_) => Ok(()),
            Heard::Missed(missed) => {
                self.metrics.dropped_for_reader(missed);
                let lagged = json!({ "type": "lagged", "data": { "missed": missed } });
                send(socket, Message::Text(lagged.to_string().into())).await
            }
        }
    }

    fn sees(&self, notice: &Notice) -> bool {
        self.topics.contains(&notice.event.topic()) && may_know(&notice.event, &self.who.caller())
    }

    /// Whether the credentials still hold, and for what.
    async fn check(&mut self, checked_at: &mut Instant) -> Result<(), Ending> {
        match timeout(CHECK_TIMEOUT, self.auth.still(&self.who)).await {
            Ok(Ok(who)) => {
                self.who = who;
                *checked_at = Instant::now();
                Ok(())
            }
            Ok(Err(error)) if !error.status().is_server_error() => Err(Ending::Credentials),
            Ok(Err(_)) | Err(_) if checked_at.elapsed() < UNCHECKED_MAX => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Ending::Unchecked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ping_asks() {
        assert!(asks(r#"{"type":"ping"}"#) && asks(r#" {"type" : "ping"} "#));
        let long = format!(r#"{{"type":"ping","data":"{}"}}"#, "x".repeat(ASKING_MAX));
        for other in [
            "",
            "ping",
            "{}",
            r#"{"data": 1, "type": "ping"}"#,
            "[]",
            r#"["ping"]"#,
            r#"{"type":"pong"}"#,
            r#"{"type":1}"#,
            r#"{"type":"p\u0069ng"}"#,
            &long,
        ] {
            assert!(!asks(other), "{other}");
        }
    }

    #[test]
    fn a_peer_is_told_why_in_as_much_as_a_frame_holds() {
        for (ending, code) in [
            (Ending::Stopping, Some(1001)),
            (Ending::Credentials, Some(4001)),
            (Ending::Unchecked, Some(1013)),
            (Ending::Fault(close_code::SIZE), Some(1009)),
            (Ending::Fault(close_code::PROTOCOL), Some(1002)),
            (Ending::Gone, None),
            (Ending::Silent, None),
        ] {
            let frame = ending.frame();
            assert_eq!(frame.as_ref().map(|frame| frame.code), code);
            assert!(frame.is_none_or(|frame| frame.reason.len() <= 123));
        }
    }

    #[test]
    fn what_is_too_long_is_told_from_what_is_wrong() {
        use tungstenite::Error;
        use tungstenite::error::{CapacityError, ProtocolError};
        let code = |error: Error| fault(axum::Error::new(error));
        let long = Error::Capacity(CapacityError::MessageTooLong { size: 65_537, max_size: 65_536 });
        assert_eq!(code(long), Ending::Fault(1009));
        assert_eq!(code(Error::Protocol(ProtocolError::UnmaskedFrameFromClient)), Ending::Fault(1002));
        assert_eq!(code(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)), Ending::Gone);
        assert_eq!(code(Error::Io(std::io::ErrorKind::ConnectionReset.into())), Ending::Gone);
    }
}
