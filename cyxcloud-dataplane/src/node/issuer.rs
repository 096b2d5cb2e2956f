//! Signs what nodes want to see before they do anything: tokens, in the name of the cluster.
//!
//! All our servers sign with the same keys. They are kept in the metadata store, wrapped under the master key, with a
//! schedule that says which one signs when; the first is made by whoever needs it first, others by a rotation. Nodes are
//! told the public halves when they register and with each heartbeat. Times are the database's, so that a server whose
//! clock is wrong signs nothing that nodes refuse. Not here: what a token is (`cyxcloud_core::token`), what a rotation is
//! (`cyxcloud_core::token_keys`), and who is asked for what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cyxcloud_core::receipt::NodeKey;
use cyxcloud_core::seal::MasterKey;
use cyxcloud_core::token::{CHUNK_LIFETIME, Operation, Operations, SESSION_LIFETIME, Token};
use cyxcloud_core::token_keys::{KeyTimes, signer};
use cyxcloud_core::{ChunkId, Timestamp};
use cyxcloud_metadata::{Error, MetadataStore, Result};
use prometheus::IntGauge;
use tracing::info;
use zeroize::Zeroizing;

use crate::metrics::Metrics;

/// In which context keys are wrapped.
const CONTEXT: &str = "cyxcloud token key";
/// How often the database is asked for the time; in between it is counted on.
const TIME_AGE_MAX: Duration = Duration::from_secs(60);
/// How often it is asked for the keys.
const KEYS_AGE_MAX: Duration = Duration::from_secs(5);

/// What goes together in one token: a stolen one is good for as little as possible.
const TOGETHER: [&[Operation]; 3] = [
    &[Operation::Get, Operation::Has],
    &[Operation::Store],
    &[Operation::Delete, Operation::Restore, Operation::List, Operation::Replicate, Operation::Verify],
];

/// Which node, what for, and who may show it.
type SessionName = ([u8; 32], usize, Option<[u8; 32]>);

/// A session token in use.
#[derive(Debug)]
struct Session {
    /// Number of the key that signed it.
    signed_by: i64,
    token: Bytes,
    /// When it is half through.
    renew_at: Timestamp,
}

/// A key and its place in the schedule.
#[derive(Clone, Debug)]
struct Scheduled {
    times: KeyTimes,
    key: Arc<NodeKey>,
}

/// Signs tokens, once it has learned how.
#[derive(Debug)]
pub(crate) struct Issuer {
    /// The keys as they were read last, and when.
    keys: Mutex<(Option<Instant>, Vec<Scheduled>)>,
    /// What the database's clock said, and when.
    time: Mutex<Option<(Instant, Timestamp)>>,
    /// Tokens in use, by node and by what they are good for.
    sessions: Mutex<HashMap<SessionName, Session>>,
    /// Number of the key that signs.
    signing: IntGauge,
}

impl Issuer {
    /// One that has learned nothing yet.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let signing = metrics.signing_key.clone();
        Self { keys: Mutex::default(), time: Mutex::default(), sessions: Mutex::default(), signing }
    }

    /// Makes sure of the keys and of the time. Cheap when it knows both.
    pub(crate) async fn learn(&self, metadata: &dyn MetadataStore, master: &MasterKey) -> Result<()> {
        let read = self.keys.lock().unwrap_or_else(PoisonError::into_inner).0;
        if read.is_none_or(|at| at.elapsed() > KEYS_AGE_MAX) {
            self.read_keys(metadata, master).await?;
        }
        let known = *self.time.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none_or(|(at, _)| at.elapsed() > TIME_AGE_MAX) {
            let (asked, now) = (Instant::now(), metadata.now().await?);
            *self.time.lock().unwrap_or_else(PoisonError::into_inner) = Some((asked, now));
        }
        self.show_signer();
        Ok(())
    }

    /// Reads the keys again.
    pub(crate) async fn read_keys(&self, metadata: &dyn MetadataStore, master: &MasterKey) -> Result<()> {
        let asked = Instant::now();
        let rows = metadata.token_keys(&new_seed(master)).await?;
        let known = self.keys.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
        let scheduled = |row: cyxcloud_metadata::model::TokenKey| {
            let times = row.times;
            let key = match known.iter().find(|known| known.times.number == times.number) {
                Some(known) => known.key.clone(),
                None => Arc::new(open(master, &row.wrapped_seed)?),
            };
            Ok(Scheduled { times, key })
        };
        let keys = rows.into_iter().map(scheduled).collect::<Result<Vec<_>>>()?;
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = (Some(asked), keys);
        Ok(())
    }

    /// Tells operators when another key begins to sign.
    fn show_signer(&self) {
        let Some((number, _)) = self.signer() else { return };
        if self.signing.get() != number {
            self.signing.set(number);
            info!(number, "tokens are signed with this key from now on");
        }
    }

    /// The time by the database's clock, once it was asked.
    pub(crate) fn now(&self) -> Option<Timestamp> {
        let known = *self.time.lock().unwrap_or_else(PoisonError::into_inner);
        known.map(|(at, then)| then.plus(at.elapsed()))
    }

    /// What nodes are to check our tokens by, newest first; none before anything was learned.
    pub(crate) fn public_keys(&self) -> Vec<[u8; 32]> {
        let Some(now) = self.now() else { return Vec::new() };
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let accepted = keys.1.iter().rev().filter(|scheduled| scheduled.times.is_accepted(now));
        accepted.map(|scheduled| scheduled.key.public()).collect()
    }

    /// The key that signs now, and its number.
    fn signer(&self) -> Option<(i64, Arc<NodeKey>)> {
        let now = self.now()?;
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let times: Vec<KeyTimes> = keys.1.iter().map(|scheduled| scheduled.times).collect();
        let number = signer(&times, now)?;
        let key = keys.1.iter().find(|scheduled| scheduled.times.number == number)?;
        Some((number, key.key.clone()))
    }

    /// A session token for an operation on the node with this key; empty before anything was learned. With a `holder` it is good
    /// only in connections in which that key was shown.
    pub(crate) fn session(&self, node: &[u8; 32], operation: Operation, holder: Option<[u8; 32]>) -> Bytes {
        let (Some((signed_by, key)), Some(now)) = (self.signer(), self.now()) else { return Bytes::new() };
        let Some(class) = TOGETHER.iter().position(|together| together.contains(&operation)) else {
            return Bytes::new();
        };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let in_use = |session: &Session| session.signed_by == signed_by && now < session.renew_at;
        if let Some(session) = sessions.get(&(*node, class, holder)).filter(|session| in_use(session)) {
            return session.token.clone();
        }
        let token = Token { holder, ..token(node, TOGETHER[class], now, SESSION_LIFETIME) };
        let signed = Bytes::from(token.sign(&key));
        sessions.retain(|_, session| in_use(session));
        let renew_at = now.plus(SESSION_LIFETIME / 2);
        sessions.insert((*node, class, holder), Session { signed_by, token: signed.clone(), renew_at });
        signed
    }

    /// A token with which one node may store this chunk on another, once; empty before anything was learned.
    pub(crate) fn to_store(&self, node: &[u8; 32], holder: &[u8; 32], chunk: ChunkId) -> Bytes {
        let (Some((_, key)), Some(now)) = (self.signer(), self.now()) else { return Bytes::new() };
        let plain = token(node, &[Operation::Store], now, CHUNK_LIFETIME);
        Token { holder: Some(*holder), chunk: Some(chunk), ..plain }.sign(&key).into()
    }
}

/// A token of whoever has it, for any chunk, from now on.
fn token(node: &[u8; 32], operations: &[Operation], now: Timestamp, lifetime: Duration) -> Token {
    Token {
        id: rand::random(),
        node: *node,
        operations: Operations::of(operations),
        holder: None,
        issued: now,
        expires: now.plus(lifetime),
        chunk: None,
    }
}

/// A new key as the metadata store keeps it.
pub(crate) fn new_seed(master: &MasterKey) -> Vec<u8> {
    let fresh: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
    master.wrap(CONTEXT, fresh.as_slice(), rand::random())
}

/// A key as the metadata store keeps it, opened.
pub(crate) fn open(master: &MasterKey, wrapped: &[u8]) -> Result<NodeKey> {
    let unreadable = |source: Box<dyn std::error::Error + Send + Sync>| Error::Unavailable {
        doing: "open a key that tokens are signed with",
        source,
    };
    let seed = Zeroizing::new(master.unwrap(CONTEXT, wrapped).map_err(|error| unreadable(error.into()))?);
    let seed: [u8; 32] = seed.as_slice().try_into().map_err(|_| unreadable("it is not 32 bytes".into()))?;
    Ok(NodeKey::from_seed(seed))
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::token_keys::{Wanted, plan};
    use cyxcloud_metadata::sqlite::{SqliteConfig, SqliteStore};

    use super::*;

    fn issuer() -> Issuer {
        Issuer::new(&Metrics::new(&prometheus::Registry::new()))
    }

    #[tokio::test]
    async fn two_servers_sign_with_one_key_and_the_database_s_time() {
        let metadata = SqliteStore::open(&SqliteConfig::Memory).expect("opens");
        let master = MasterKey::from_bytes([3; 32]);
        let (one, two) = (issuer(), issuer());
        assert!(one.session(&[1; 32], Operation::Get, None).is_empty() && one.public_keys().is_empty());
        one.learn(&metadata, &master).await.expect("learns");
        two.learn(&metadata, &master).await.expect("learns");
        let [key] = one.public_keys()[..] else { panic!("there is one") };
        assert_eq!(two.public_keys(), [key]);
        let token = Token::open(&two.session(&[1; 32], Operation::Store, None), &[key]).expect("is signed");
        let now = metadata.now().await.expect("now");
        assert_eq!(token.check(&[1; 32], Operation::Store, Some(&ChunkId::of(b"x")), None, now), Ok(()));
        for other in Operation::ALL.into_iter().filter(|operation| *operation != Operation::Store) {
            assert!(token.check(&[1; 32], other, None, None, now).is_err(), "{other:?}");
        }
        let other = MasterKey::from_bytes([4; 32]);
        assert!(issuer().learn(&metadata, &other).await.is_err(), "of another master key");
    }

    #[tokio::test]
    async fn a_token_is_used_again_until_it_is_half_through() {
        let metadata = SqliteStore::open(&SqliteConfig::Memory).expect("opens");
        let issuer = issuer();
        issuer.learn(&metadata, &MasterKey::from_bytes([3; 32])).await.expect("learns");
        let first = issuer.session(&[1; 32], Operation::Get, None);
        assert_eq!(issuer.session(&[1; 32], Operation::Has, None), first);
        assert_ne!(issuer.session(&[2; 32], Operation::Get, None), first);
        assert_ne!(issuer.session(&[1; 32], Operation::Delete, None), first);
        let later = issuer.now().expect("known").plus(SESSION_LIFETIME / 2);
        *issuer.time.lock().expect("held by nobody") = Some((Instant::now(), later));
        assert_ne!(issuer.session(&[1; 32], Operation::Get, None), first);
    }

    /// Tokens of before are not shown again, and what nodes are told follows the schedule.
    #[tokio::test]
    async fn at_its_time_the_next_key_signs() {
        let metadata = SqliteStore::open(&SqliteConfig::Memory).expect("opens");
        let master = MasterKey::from_bytes([3; 32]);
        let issuer = issuer();
        issuer.learn(&metadata, &master).await.expect("learns");
        let [old] = issuer.public_keys()[..] else { panic!("there is one") };
        let first = issuer.session(&[1; 32], Operation::Get, None);
        let times = metadata.token_keys(&[]).await.expect("read")[0].times;
        let wanted = Wanted { overlap: Duration::from_secs(60), revoke: false };
        let rotation = plan(&[times], wanted, metadata.now().await.expect("now")).expect("planned");
        metadata.add_token_key(&rotation, &new_seed(&master)).await.expect("added");
        issuer.read_keys(&metadata, &master).await.expect("read");
        let [new, also] = issuer.public_keys()[..] else { panic!("there are two") };
        assert_eq!(also, old);
        assert_eq!(issuer.session(&[1; 32], Operation::Get, None), first);
        assert!(Token::open(&issuer.session(&[1; 32], Operation::Store, None), &[old]).is_ok());

        let set = |time| *issuer.time.lock().expect("held by nobody") = Some((Instant::now(), time));
        set(rotation.signs_from);
        assert!(Token::open(&issuer.session(&[1; 32], Operation::Get, None), &[new]).is_ok());
        assert!(Token::open(&issuer.session(&[1; 32], Operation::Store, None), &[new]).is_ok());
        assert_eq!(issuer.public_keys(), [new, old]);
        set(rotation.previous_until);
        assert_eq!(issuer.public_keys(), [new]);
    }

    #[test]
    fn every_operation_has_a_token() {
        for operation in Operation::ALL {
            assert_eq!(TOGETHER.iter().filter(|together| together.contains(&operation)).count(), 1);
        }
    }
}
