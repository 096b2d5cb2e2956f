//! Passes events between gateways, by Redis: at most once, never waited for, and lost without a word to whoever listens
//! where Redis is away for longer than what may wait lasts. Its owner's listeners at this gateway heard them already.

use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::OwnerId;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{Event, Events};
use crate::ephemeral::{self, Ephemeral, Topic};

/// Events that wait to be passed on, at most.
pub(super) const WAITING_MAX: usize = 4_096;
/// Events in one message, at most.
const BATCH_MAX: usize = 64;
/// Pause before a subscription that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// An event on its way to other gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Passed {
    pub(super) owner: OwnerId,
    pub(super) event: Event,
}

/// A message between gateways.
#[derive(Serialize)]
struct Batch<'a> {
    from: Uuid,
    events: &'a [Passed],
}

/// The same as it comes in. A newer gateway may tell of what this one does not know.
#[derive(Deserialize)]
struct Received {
    from: Uuid,
    events: Vec<serde_json::Value>,
}

fn write(from: Uuid, events: &[Passed]) -> String {
    serde_json::to_string(&Batch { from, events }).expect("events are JSON")
}

/// What another gateway told; nothing of what was our own.
fn read(me: Uuid, message: &str) -> Vec<Passed> {
    let received = match serde_json::from_str::<Received>(message) {
        Ok(received) if received.from == me => return Vec::new(),
        Ok(received) => received,
        Err(error) => {
            debug!(%error, "a message about events could not be read");
            return Vec::new();
        }
    };
    received.events.into_iter().filter_map(|event| serde_json::from_value(event).ok()).collect()
}

/// Passes events on, and takes those of others.
#[derive(Debug)]
pub struct Relay {
    me: Uuid,
    ephemeral: Arc<dyn Ephemeral>,
    events: Events,
    waiting: mpsc::Receiver<Passed>,
}

impl Relay {
    pub(super) fn new(
        ephemeral: Arc<dyn Ephemeral>,
        events: Events,
        waiting: mpsc::Receiver<Passed>,
    ) -> Self {
        Self { me: Uuid::new_v4(), ephemeral, events, waiting }
    }

    /// Until it is dropped.
    pub async fn run(self) {
        let Self { me, ephemeral, events, waiting } = self;
        tokio::join!(pass(me, &*ephemeral, &events, waiting), listen(me, &*ephemeral, &events));
    }
}

async fn pass(me: Uuid, ephemeral: &dyn Ephemeral, events: &Events, mut waiting: mpsc::Receiver<Passed>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut away = false;
    while waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
        match ephemeral.publish(Topic::Events, &write(me, &batch)).await {
            Ok(()) => {
                if std::mem::take(&mut away) {
                    info!("other gateways hear of events again");
                }
            }
            Err(error) => {
                events.metrics().dropped_for_gateways(batch.len());
                if !std::mem::replace(&mut away, true) {
                    warn!(%error, "other gateways do not hear of events for now");
                }
            }
        }
        batch.clear();
    }
}

async fn listen(me: Uuid, ephemeral: &dyn Ephemeral, events: &Events) {
    loop {
        match ephemeral.subscribe(Topic::Events).await {
            Ok(mut news) => {
                while let Some(heard) = news.next().await {
                    // What was missed meanwhile nobody tells again.
                    let ephemeral::Heard::Message(message) = heard else { continue };
                    for Passed { owner, event } in read(me, &message) {
                        events.deliver(owner, event);
                    }
                }
            }
            Err(error) => warn!(%error, "no events of other gateways for now"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;
    use serde_json::json;

    use super::super::Heard;
    use super::*;
    use crate::ephemeral::InProcess;

    fn passed(key: &str) -> Passed {
        let event = Event::FileDeleted { bucket: "photos".to_owned(), key: key.to_owned() };
        Passed { owner: OwnerId::from_random([1; 16]), event }
    }

    #[test]
    fn what_is_passed_arrives_and_what_is_ones_own_does_not_come_back() {
        let (me, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let message = write(other, &[passed("a"), passed("b")]);
        assert_eq!(read(me, &message), [passed("a"), passed("b")]);
        assert_eq!(read(other, &message), []);
    }

    #[test]
    fn what_is_not_known_is_passed_over() {
        let mut message: serde_json::Value =
            serde_json::from_str(&write(Uuid::from_u128(2), &[passed("a"), passed("b")])).expect("is JSON");
        message["events"][0]["event"]["type"] = json!("file.eaten");
        assert_eq!(read(Uuid::from_u128(1), &message.to_string()), [passed("b")]);
        for junk in ["", "{}", "[]", "\"x\"", "{\"from\":\"x\",\"events\":[]}"] {
            assert_eq!(read(Uuid::from_u128(1), junk), [], "{junk}");
        }
    }

    /// Two gateways over one place for news.
    #[tokio::test]
    async fn an_owner_hears_at_one_gateway_what_happens_at_another() {
        let ephemeral: Arc<dyn Ephemeral> = Arc::new(InProcess::default());
        let (here, relay) = Events::among_gateways(&Registry::new(), ephemeral.clone()).expect("registers");
        let (there, other) = Events::among_gateways(&Registry::new(), ephemeral).expect("registers");
        let _running = tokio::spawn(async move { tokio::join!(relay.run(), other.run()) });
        let Passed { owner, event } = passed("a");
        let (mut listener, mut stranger) = (there.listen(owner), there.listen(OwnerId::from_random([2; 16])));
        let mut own = here.listen(owner);
        // Told again until the other has subscribed.
        let heard = loop {
            here.tell(owner, event.clone());
            let next = tokio::time::timeout(Duration::from_millis(50), listener.next()).await;
            if let Ok(heard) = next {
                break heard;
            }
        };
        assert!(matches!(heard, Heard::Notice(notice) if notice.event == event));
        // A last one behind all others: who told hears each once, and who is somebody else none.
        let Passed { event: last, .. } = passed("last");
        here.tell(owner, last.clone());
        while !matches!(listener.next().await, Heard::Notice(notice) if notice.event == last) {}
        while !matches!(own.next().await, Heard::Notice(notice) if notice.event == last) {}
        for listener in [&mut own, &mut stranger] {
            assert!(tokio::time::timeout(Duration::from_millis(20), listener.next()).await.is_err());
        }
    }

    #[tokio::test]
    async fn nothing_waits_for_a_relay_that_does_not_go_on() {
        let ephemeral: Arc<dyn Ephemeral> = Arc::new(InProcess::default());
        let (events, _stuck) = Events::among_gateways(&Registry::new(), ephemeral).expect("registers");
        let Passed { owner, event } = passed("a");
        for _ in 0..WAITING_MAX + 3 {
            events.tell(owner, event.clone());
        }
        assert_eq!(events.metrics().dropped.with_label_values(&["gateways"]).get(), 3);
    }
}
