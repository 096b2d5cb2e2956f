//! Takes whole documents in: JSON and XML that is read before anything is done with it.
//!
//! All of them together have [`ROOM`], paid for as bytes come and given back with the document, and each has so long to come
//! to its end. Nobody waits for room: who finds none is told to come back. Strangers have a part of it, and everybody a share, so
//! that neither takes it from the others; what is small needs none. Not here: bodies of objects, which stream and are paid for by the data plane.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cyxcloud_core::OwnerId;
use cyxcloud_tls::client::address_group;
use http::Extensions;
use http_body::Body;
use http_body_util::BodyExt as _;
use prometheus::{IntCounter, Registry};

use crate::auth::{ClientAddress, Principal};

/// Bytes of all documents together.
const ROOM: usize = 64 << 20;
/// Of those that come without credentials.
const STRANGERS_MAX: usize = 16 << 20;
/// Of one owner: two of the longest.
const OWNER_MAX: usize = 16 << 20;
/// Of one address, without credentials.
const ADDRESS_MAX: usize = 4 << 20;
/// So much is not paid for: a stream takes up more by itself, and who logs in needs no more.
const FREE: usize = 1 << 10;

/// Whose a document is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// Who has proven to be.
    Owner(OwnerId),
    /// Anybody, from there; the text is empty where that is not known.
    Stranger(String),
}

impl Sender {
    /// The sender of a request with these extensions.
    pub fn of(extensions: &Extensions) -> Self {
        if let Some(principal) = extensions.get::<Principal>() {
            return Self::Owner(principal.owner);
        }
        let from = extensions.get::<ClientAddress>();
        Self::Stranger(from.map(|ClientAddress(from)| address_group(*from)).unwrap_or_default())
    }
}

/// How much a document may be.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Its length.
    pub bytes_max: usize,
    /// From its first byte to its last.
    pub time_max: Duration,
}

/// Why a document was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum Error<E> {
    /// It is longer than it may be.
    #[error("the document is longer than it may be")]
    TooLong,
    /// It did not come to its end in time.
    #[error("the document took too long to come")]
    Late,
    /// Others take up the room that there is.
    #[error("there is no room for another document just now")]
    NoRoom,
    /// It could not be read.
    #[error("the document could not be read")]
    Body(#[source] E),
}

/// The room for documents. A clone is the same.
#[derive(Clone, Debug)]
pub struct Documents {
    taken: Arc<Mutex<Taken>>,
    refused: IntCounter,
}

#[derive(Debug, Default)]
struct Taken {
    bytes: usize,
    by_strangers: usize,
    by_sender: HashMap<Sender, usize>,
}

/// A document, or what is there of it.
struct Document {
    bytes: Vec<u8>,
    paid: Paid,
}

impl AsRef<[u8]> for Document {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Room that is taken, until it is dropped.
struct Paid {
    documents: Documents,
    sender: Sender,
    bytes: usize,
}

impl Documents {
    /// Room that nobody has taken yet; refusals are counted in this registry.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let refused = IntCounter::new(
            "cyxcloud_gateway_documents_refused_total",
            "JSON and XML bodies that were refused because others took up the room that there is",
        )?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { taken: Arc::default(), refused })
    }

    /// Takes a document in. What it takes up is free again when the bytes are dropped.
    pub async fn take_in<B>(&self, sender: Sender, body: B, terms: Terms) -> Result<Bytes, Error<B::Error>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let coming = self.read(sender, body, terms.bytes_max);
        tokio::time::timeout(terms.time_max, coming).await.unwrap_or(Err(Error::Late))
    }

    async fn read<B>(&self, sender: Sender, mut body: B, bytes_max: usize) -> Result<Bytes, Error<B::Error>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let paid = Paid { documents: self.clone(), sender, bytes: 0 };
        let mut document = Document { bytes: Vec::new(), paid };
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(Error::Body)?.into_data() else { continue };
            let length = document.bytes.len() + data.len();
            if length > bytes_max {
                return Err(Error::TooLong);
            }
            if !document.reserve(length) {
                self.refused.inc();
                return Err(Error::NoRoom);
            }
            // Copied: what came in is a piece of a larger buffer, which would stay as long as the piece.
            document.bytes.extend_from_slice(&data);
        }
        Ok(Bytes::from_owner(document))
    }

    fn take(&self, sender: &Sender, bytes: usize) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by_sender.get(sender).copied().unwrap_or_default() + bytes;
        let (stranger, own_max) = match sender {
            Sender::Owner(_) => (0, OWNER_MAX),
            Sender::Stranger(_) => (bytes, ADDRESS_MAX),
        };
        if own > own_max || taken.by_strangers + stranger > STRANGERS_MAX || taken.bytes + bytes > ROOM {
            return false;
        }
        taken.bytes += bytes;
        taken.by_strangers += stranger;
        taken.by_sender.insert(sender.clone(), own);
        true
    }
}

impl Document {
    /// Makes room for so many bytes in all; `false` where there is none.
    fn reserve(&mut self, length: usize) -> bool {
        if length <= self.bytes.capacity() {
            return true;
        }
        // By doubling, so that what comes in many pieces is moved seldom.
        let wanted = length.next_power_of_two().max(FREE);
        if wanted > FREE {
            let more = wanted - self.paid.bytes;
            if !self.paid.documents.take(&self.paid.sender, more) {
                return false;
            }
            self.paid.bytes = wanted;
        }
        self.bytes.reserve_exact(wanted - self.bytes.len());
        true
    }
}

impl Drop for Paid {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut taken = self.documents.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.bytes -= self.bytes;
        if let Sender::Stranger(_) = self.sender {
            taken.by_strangers -= self.bytes;
        }
        if let Some(own) = taken.by_sender.get_mut(&self.sender) {
            *own -= self.bytes;
            if *own == 0 {
                taken.by_sender.remove(&self.sender);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{FutureExt as _, StreamExt as _};
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};

    use super::*;

    const TERMS: Terms = Terms { bytes_max: 64 << 10, time_max: Duration::from_secs(3_600) };

    fn documents() -> Documents {
        Documents::new(&Registry::new()).expect("registers")
    }

    fn owner(number: u8) -> Sender {
        Sender::Owner(OwnerId::from_random([number; 16]))
    }

    fn stranger(number: usize) -> Sender {
        Sender::Stranger(format!("192.0.2.{number}"))
    }

    fn whole(length: usize) -> Full<Bytes> {
        Full::new(vec![b'x'; length].into())
    }

    /// So much, and then nothing any more and no end.
    fn endless(length: usize) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let piece = Ok(Frame::data(Bytes::from(vec![b'x'; length])));
        StreamBody::new(futures::stream::iter([piece]).chain(futures::stream::pending()))
    }

    #[tokio::test]
    async fn a_document_is_taken_in_up_to_its_length() {
        let documents = documents();
        let taken = documents.take_in(owner(1), whole(64 << 10), TERMS).await.expect("is there");
        assert_eq!(taken, vec![b'x'; 64 << 10]);
        let none = documents.take_in(owner(1), whole(0), TERMS).await.expect("is there");
        assert!(none.is_empty());
        let long = documents.take_in(owner(1), whole((64 << 10) + 1), TERMS).await;
        assert!(matches!(long, Err(Error::TooLong)), "{long:?}");
        let pieces = (0..3_000).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"yz"))));
        let pieces = StreamBody::new(futures::stream::iter(pieces));
        let joined = documents.take_in(owner(1), pieces, TERMS).await.expect("is there");
        assert_eq!(joined, "yz".repeat(3_000));
    }

    #[tokio::test]
    async fn adv_31_what_never_ends_is_given_up() {
        let documents = documents();
        let terms = Terms { time_max: Duration::from_millis(10), ..TERMS };
        let late = documents.take_in(owner(1), endless(10), terms).await;
        assert!(matches!(late, Err(Error::Late)), "{late:?}");
        assert_eq!(documents.taken.lock().expect("not poisoned").bytes, 0);
    }

    #[tokio::test]
    async fn adv_31_documents_under_way_have_so_much_together_and_give_it_back() {
        let documents = documents();
        let mut under_way = Vec::new();
        let begin = |sender: Sender| {
            let mut coming = Box::pin(documents.take_in(sender, endless((32 << 10) + 1), TERMS));
            let waits = coming.as_mut().now_or_never().is_none();
            waits.then_some(coming)
        };
        for address in 0..10 {
            for _ in 0..100 {
                under_way.extend(begin(stranger(address)));
            }
        }
        assert_eq!(
            under_way.len(),
            STRANGERS_MAX / (64 << 10),
            "four addresses have taken what is for strangers"
        );
        assert_eq!(documents.refused.get(), 1_000 - 256);
        for number in 0..5 {
            for _ in 0..300 {
                under_way.extend(begin(owner(number)));
            }
        }
        assert_eq!(under_way.len(), ROOM / (64 << 10));
        assert_eq!(documents.taken.lock().expect("not poisoned").bytes, ROOM);
        let refused = documents.take_in(owner(9), whole(FREE + 1), TERMS).await;
        assert!(matches!(refused, Err(Error::NoRoom)), "{refused:?}");
        documents.take_in(stranger(1), whole(FREE), TERMS).await.expect("what is small needs no room");
        under_way.clear();
        let kept = documents.take_in(stranger(1), whole(FREE + 1), TERMS).await.expect("there is room again");
        assert_eq!(documents.taken.lock().expect("not poisoned").by_strangers, 2 * FREE);
        drop(kept);
        let taken = documents.taken.lock().expect("not poisoned");
        assert_eq!((taken.bytes, taken.by_strangers, taken.by_sender.len()), (0, 0, 0));
    }
}
