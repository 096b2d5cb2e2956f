//! Empties the trash: deleted chunks that nobody restored in time are purged.
//!
//! How long is the operator's choice, by the node's own clock: a clock set forward shortens it, one set back lengthens
//! it. Nothing that is held depends on it. Not here: making room for stores (`store`).

use std::sync::Arc;
use std::time::Duration;

use cyxcloud_core::Timestamp;
use tracing::{debug, warn};

use crate::service::now;
use crate::store::{ChunkStore, Error};

/// Purged at a time; stores come in between.
const PIECES: usize = 256;
/// Longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_secs(300);
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Purges what is older than `period`, until it is dropped. A period of zero purges what an earlier setting left.
pub(crate) async fn empty(store: Arc<dyn ChunkStore>, period: Duration) {
    let pause = if period.is_zero() { PAUSE_MAX } else { (period / 10).clamp(PAUSE_MIN, PAUSE_MAX) };
    loop {
        match purge(&store, before(now(), period)).await {
            Ok(0) => {}
            Ok(chunks) => debug!(chunks, "purged trash"),
            Err(Error::Closed) => return,
            Err(error) => warn!(%error, "could not purge trash"),
        }
        tokio::time::sleep(pause).await;
    }
}

async fn purge(store: &Arc<dyn ChunkStore>, until: Timestamp) -> Result<usize, Error> {
    let mut all = 0;
    loop {
        let store = store.clone();
        let purged = tokio::task::spawn_blocking(move || store.purge_trash(until, PIECES)).await;
        let purged = purged.unwrap_or(Err(Error::Closed))?;
        all += purged;
        if purged < PIECES {
            return Ok(all);
        }
    }
}

fn before(now: Timestamp, period: Duration) -> Timestamp {
    let millis = i64::try_from(period.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_unix_millis(now.unix_millis().saturating_sub(millis))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cyxcloud_core::{ByteCount, ChunkId};
    use uuid::Uuid;

    use super::*;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn what_is_older_than_the_period_is_purged_however_much_it_is() {
        let store: Arc<dyn ChunkStore> = Arc::new(MemoryStore::new(ByteCount::mib(1), Uuid::nil()));
        let at = Timestamp::from_unix_millis;
        for n in 0..600u32 {
            let bytes = Bytes::from(n.to_be_bytes().to_vec());
            let id = ChunkId::of(&bytes);
            let stored = store.put(id, bytes, Bytes::new(), at(0)).expect("room");
            store.delete(id, stored.generation, Some(at(i64::from(n)))).expect("no error");
        }
        let until = before(at(10_000 + 549), Duration::from_secs(10));
        assert_eq!(purge(&store, until).await.expect("no error"), 550);
        assert_eq!(store.usage().trash_chunks, 50);
        assert_eq!(purge(&store, until).await.expect("no error"), 0);
        assert_eq!(before(at(5), Duration::MAX), at(i64::MIN + 6));
    }
}
