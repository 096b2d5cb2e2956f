//! Who may do what here: the door in front of the node's services.
//!
//! Whether callers must show tokens, and whose tokens, the gateway says at registration; that is kept in the data directory, so
//! that a node which starts while its gateway is away knows it too. A node that was told nothing yet refuses everybody. Session
//! tokens are verified once and then known; what changes something by a chunk token is done once, and never by one that was
//! made before this start. Time is the gateway's, counted on since it was told, so that a wrong clock here opens and
//! closes nothing. Not here: what a token is (`cyxcloud_core::token`), asking the gateway (`gateway`).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cyxcloud_core::token::{Operation, SKEW, Token, TokenError, key_id};
use cyxcloud_core::{ChunkId, Timestamp};
use prometheus::IntCounter;
use tonic::Status;
use tracing::{info, warn};

// By `super`: the fuzz targets include this file, too.
use super::service::now;
use super::store::write_file;

const FILE: &str = "trust";
/// Session tokens known at a time; a caller has three, and callers are few.
const SESSIONS_MAX: usize = 4_096;
/// Chunk tokens remembered until they cannot come back. When there are so many, none is taken.
const SPENT_MAX: usize = 65_536;
/// Signing keys that a gateway may name.
const KEYS_MAX: usize = 8;

/// Whom this node trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// Whether callers must show a token. `None`: nobody said so yet.
    required: Option<bool>,
    keys: Vec<[u8; 32]>,
}

impl Trust {
    /// What a gateway said. Keys that are none are left out.
    pub(crate) fn told<K: AsRef<[u8]>>(required: bool, keys: &[K]) -> Self {
        let keys = keys.iter().take(KEYS_MAX).filter_map(|key| key.as_ref().try_into().ok()).collect();
        Self { required: Some(required), keys }
    }

    /// Tells the operator what is different from now on.
    fn say_what_changes(&self, next: &Self) {
        if next.required == Some(false) {
            warn!("the gateway wants no tokens: whoever reaches this node's port may read and delete");
            return;
        }
        let named = |key: &[u8; 32]| hex::encode(key_id(key));
        let keys: Vec<String> = next.keys.iter().map(named).collect();
        if !self.keys.is_empty() && !self.keys.iter().any(|key| next.keys.contains(key)) {
            warn!(
                keys = keys.join(" "),
                "the gateway names none of the keys that tokens were signed with before: they were revoked, or rotated while \
                 this node was away; if it is neither, another gateway answers at CENTRAL_SERVER_ADDR"
            );
            return;
        }
        info!(keys = keys.join(" "), "calls must carry tokens signed with one of these keys");
    }

    /// `required` or `open`, and a key on each further line.
    fn text(&self) -> String {
        let first = if self.required == Some(false) { "open" } else { "required" };
        let keys = self.keys.iter().map(|key| format!("{}\n", hex::encode(key)));
        std::iter::once(format!("{first}\n")).chain(keys).collect()
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let required = match lines.next()? {
            "required" => true,
            "open" => false,
            _ => return None,
        };
        let key = |line| {
            let mut key = [0; 32];
            hex::decode_to_slice(line, &mut key).ok().map(|()| key)
        };
        Some(Self { required: Some(required), keys: lines.map(key).collect::<Option<_>>()? })
    }
}

/// The door.
#[derive(Debug)]
pub(crate) struct Gate {
    node: [u8; 32],
    dir: PathBuf,
    trust: RwLock<Trust>,
    /// What the gateway's clock said, and when.
    told: Mutex<Option<(Instant, Timestamp)>>,
    started: Instant,
    sessions: Mutex<HashMap<[u8; 32], Token>>,
    spent: Mutex<HashMap<[u8; 16], Timestamp>>,
    refused: IntCounter,
}

impl Gate {
    /// The door of the node with this public key, as it was left in this data directory.
    pub(crate) fn open(node: [u8; 32], dir: &Path, refused: IntCounter) -> Self {
        let trust = match std::fs::read_to_string(dir.join(FILE)) {
            Ok(text) => Trust::parse(&text).unwrap_or_else(|| {
                warn!(file = FILE, "damaged; everybody is refused until the gateway has been asked");
                Trust::default()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(file = FILE, %error, "not readable; everybody is refused until the gateway has been asked");
                }
                Trust::default()
            }
        };
        Self {
            node,
            dir: dir.to_owned(),
            trust: RwLock::new(trust),
            told: Mutex::default(),
            started: Instant::now(),
            sessions: Mutex::default(),
            spent: Mutex::default(),
            refused,
        }
    }

    /// Takes over what a gateway said. Blocks for a moment where it is new.
    pub(crate) fn told(&self, trust: Trust, gateway_now: Timestamp) {
        if gateway_now > Timestamp::default() {
            *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), gateway_now));
        }
        if *self.trust.read().unwrap_or_else(PoisonError::into_inner) == trust {
            return;
        }
        if let Err(error) = write_file(&self.dir, FILE, trust.text().as_bytes()) {
            warn!(file = FILE, %error, "not written: after a restart the gateway must be asked first");
        }
        self.trust.read().unwrap_or_else(PoisonError::into_inner).say_what_changes(&trust);
        // What was verified may have been signed by a key that counts no more.
        let mut now_trusted = self.trust.write().unwrap_or_else(PoisonError::into_inner);
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *now_trusted = trust;
    }

    /// Whether callers must show tokens, as far as is known.
    pub(crate) fn wants_tokens(&self) -> bool {
        self.trust.read().unwrap_or_else(PoisonError::into_inner).required != Some(false)
    }

    /// Lets a call pass, or says why not. `peer`: the key that the caller has proven to have.
    pub(crate) fn check(
        &self,
        presented: &[u8],
        operation: Operation,
        chunk: Option<&ChunkId>,
        peer: Option<[u8; 32]>,
    ) -> Result<(), Status> {
        let trust = self.trust.read().unwrap_or_else(PoisonError::into_inner);
        let required = match trust.required {
            Some(required) => required,
            None => return Err(self.refuse(Status::unavailable("this node waits for its gateway"))),
        };
        if !required {
            return Ok(());
        }
        self.judge(presented, &trust.keys, operation, chunk, peer.as_ref()).map_err(|error| {
            self.refuse(match error {
                TokenError::Malformed | TokenError::BadSignature | TokenError::NotNow => {
                    Status::unauthenticated(error.to_string())
                }
                other => Status::permission_denied(other.to_string()),
            })
        })
    }

    fn refuse(&self, status: Status) -> Status {
        self.refused.inc();
        status
    }

    fn judge(
        &self,
        presented: &[u8],
        keys: &[[u8; 32]],
        operation: Operation,
        chunk: Option<&ChunkId>,
        peer: Option<&[u8; 32]>,
    ) -> Result<(), TokenError> {
        let now = self.now();
        let name = *blake3::hash(presented).as_bytes();
        if let Some(token) = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
            return token.check(&self.node, operation, chunk, peer, now);
        }
        let token = Token::open(presented, keys)?;
        token.check(&self.node, operation, chunk, peer, now)?;
        if token.chunk.is_some() {
            return if operation.changes() { self.spend(&token, now) } else { Ok(()) };
        }
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SESSIONS_MAX {
            sessions.retain(|_, token| now < token.expires.plus(SKEW));
        }
        // Where there are too many all the same, they are verified each time.
        if sessions.len() < SESSIONS_MAX {
            sessions.insert(name, token);
        }
        Ok(())
    }

    /// Takes note that a token was used; each is good once. One that may have been used before this start is not good.
    fn spend(&self, token: &Token, now: Timestamp) -> Result<(), TokenError> {
        let running =
            Timestamp::from_unix_millis(now.unix_millis().saturating_sub(millis(self.started.elapsed())));
        if token.issued < running {
            return Err(TokenError::NotNow);
        }
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.len() >= SPENT_MAX {
            spent.retain(|_, until| now < *until);
        }
        if spent.len() >= SPENT_MAX || spent.contains_key(&token.id) {
            return Err(TokenError::NotNow);
        }
        spent.insert(token.id, token.expires.plus(SKEW));
        Ok(())
    }

    /// By the gateway's clock; by ours as long as it was not heard.
    fn now(&self) -> Timestamp {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.map_or_else(now, |(at, then)| then.plus(at.elapsed()))
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use cyxcloud_core::receipt::NodeKey;
    use cyxcloud_core::token::{CHUNK_LIFETIME, Operations, SESSION_LIFETIME, countersign};
    use tonic::Code;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_millis(1_800_000_000_000);

    fn key(seed: u8) -> NodeKey {
        NodeKey::from_seed([seed; 32])
    }

    fn gate(dir: &Path) -> Gate {
        Gate::open(key(2).public(), dir, IntCounter::new("refused", "x").expect("a counter"))
    }

    fn told(gate: &Gate) {
        gate.told(Trust::told(true, &[key(1).public()]), NOW);
    }

    fn session(operations: &[Operation]) -> Token {
        Token {
            id: rand::random(),
            node: key(2).public(),
            operations: Operations::of(operations),
            holder: None,
            issued: NOW,
            expires: NOW.plus(SESSION_LIFETIME),
            chunk: None,
        }
    }

    fn to_store(chunk: ChunkId) -> Token {
        Token {
            holder: Some(key(3).public()),
            chunk: Some(chunk),
            issued: NOW.plus(Duration::from_secs(1)),
            expires: NOW.plus(CHUNK_LIFETIME),
            ..session(&[Operation::Store])
        }
    }

    fn presented(token: &Token) -> Vec<u8> {
        countersign(&token.sign(&key(1)), &key(3))
    }

    #[test]
    fn nobody_passes_before_the_gateway_has_spoken() {
        let dir = tempfile::tempdir().expect("made");
        let gate = gate(dir.path());
        let token = session(&[Operation::Get]).sign(&key(1));
        let refused = gate.check(&token, Operation::Get, None, None).expect_err("not yet");
        assert_eq!((refused.code(), gate.refused.get()), (Code::Unavailable, 1));
        told(&gate);
        assert!(gate.check(&token, Operation::Get, None, None).is_ok());
        assert_eq!(
            gate.check(b"", Operation::Get, None, None).expect_err("none").code(),
            Code::Unauthenticated
        );
        gate.told(Trust::told::<[u8; 32]>(false, &[]), NOW);
        assert!(gate.check(b"", Operation::Delete, None, None).is_ok(), "a gateway that knows no tokens");
    }

    #[test]
    fn what_the_gateway_said_outlives_a_restart() {
        let dir = tempfile::tempdir().expect("made");
        told(&gate(dir.path()));
        let again = gate(dir.path());
        let fresh =
            Token { issued: now(), expires: now().plus(SESSION_LIFETIME), ..session(&[Operation::Get]) };
        assert!(again.check(&fresh.sign(&key(1)), Operation::Get, None, None).is_ok());
        assert!(again.check(b"", Operation::Get, None, None).is_err());
        std::fs::write(dir.path().join(FILE), "required\nxyz\n").expect("written");
        assert!(gate(dir.path()).check(&fresh.sign(&key(1)), Operation::Get, None, None).is_err());
    }

    #[test]
    fn a_known_session_is_judged_each_time_and_forgotten_with_its_key() {
        let dir = tempfile::tempdir().expect("made");
        let gate = gate(dir.path());
        told(&gate);
        let token = session(&[Operation::Get]).sign(&key(1));
        for _ in 0..3 {
            assert!(gate.check(&token, Operation::Get, None, None).is_ok());
            let refused = gate.check(&token, Operation::Delete, None, None).expect_err("for reading");
            assert_eq!(refused.code(), Code::PermissionDenied);
        }
        gate.told(Trust::told(true, &[key(1).public()]), NOW.plus(SESSION_LIFETIME + SKEW));
        assert!(gate.check(&token, Operation::Get, None, None).is_err(), "it is over");
        told(&gate);
        assert!(gate.check(&token, Operation::Get, None, None).is_ok());
        gate.told(Trust::told(true, &[key(7).public()]), NOW);
        assert!(gate.check(&token, Operation::Get, None, None).is_err(), "its key counts no more");
    }

    /// Over a rotation: both keys count while both are named, and a token of the old one opens nothing once it is not.
    #[test]
    fn an_old_key_is_believed_for_as_long_as_it_is_named() {
        let dir = tempfile::tempdir().expect("made");
        let gate = gate(dir.path());
        told(&gate);
        let (old, new) = (session(&[Operation::Get]).sign(&key(1)), session(&[Operation::Get]).sign(&key(9)));
        let opens = |token: &[u8]| gate.check(token, Operation::Get, None, None).is_ok();
        assert!(opens(&old) && !opens(&new));
        gate.told(Trust::told(true, &[key(9).public(), key(1).public()]), NOW);
        assert!(opens(&old) && opens(&new));
        gate.told(Trust::told(true, &[key(9).public()]), NOW);
        assert!(!opens(&old) && opens(&new));
        let kept = std::fs::read_to_string(dir.path().join(FILE)).expect("written");
        assert_eq!(kept, format!("required\n{}\n", hex::encode(key(9).public())), "nor after a restart");
    }

    #[test]
    fn a_session_of_a_key_is_that_key_s_alone() {
        let dir = tempfile::tempdir().expect("made");
        let gate = gate(dir.path());
        told(&gate);
        let bound = Token { holder: Some(key(6).public()), ..session(&[Operation::Get]) }.sign(&key(1));
        for _ in 0..2 {
            let by = |peer| gate.check(&bound, Operation::Get, None, peer).map_err(|refused| refused.code());
            assert_eq!(by(Some(key(7).public())), Err(Code::PermissionDenied));
            assert_eq!(by(None), Err(Code::PermissionDenied));
            assert_eq!(by(Some(key(6).public())), Ok(()));
        }
    }

    #[test]
    fn a_chunk_token_stores_one_chunk_once() {
        let dir = tempfile::tempdir().expect("made");
        let (x, y) = (ChunkId::of(b"x"), ChunkId::of(b"y"));
        let gate = gate(dir.path());
        told(&gate);
        let token = presented(&to_store(x));
        assert!(gate.check(&token, Operation::Get, Some(&x), None).is_err());
        assert!(gate.check(&token, Operation::Delete, Some(&x), None).is_err());
        assert!(gate.check(&token, Operation::Store, Some(&y), None).is_err());
        assert!(gate.check(&token, Operation::Store, Some(&x), None).is_ok());
        assert!(gate.check(&token, Operation::Store, Some(&x), None).is_err(), "once");
        // Neither one of before a restart: who knows whether it was used.
        let older = Token { issued: NOW.plus(Duration::ZERO), ..to_store(x) };
        let older =
            Token { issued: Timestamp::from_unix_millis(older.issued.unix_millis() - 30_000), ..older };
        assert!(gate.check(&presented(&older), Operation::Store, Some(&x), None).is_err());
    }

    #[test]
    fn when_too_many_tokens_are_remembered_none_is_taken() {
        let dir = tempfile::tempdir().expect("made");
        let gate = gate(dir.path());
        told(&gate);
        let x = ChunkId::of(b"x");
        let spent = (0..SPENT_MAX as u128).map(|id| (id.to_be_bytes(), NOW.plus(CHUNK_LIFETIME)));
        gate.spent.lock().expect("free").extend(spent);
        assert!(gate.check(&presented(&to_store(x)), Operation::Store, Some(&x), None).is_err());
        gate.spent.lock().expect("free").values_mut().for_each(|until| *until = NOW);
        assert!(gate.check(&presented(&to_store(x)), Operation::Store, Some(&x), None).is_ok(), "they ended");
    }
}
