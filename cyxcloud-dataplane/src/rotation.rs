//! Rotating the key that tokens for nodes are signed with, and looking at how far that is.

use cyxcloud_core::Timestamp;
use cyxcloud_core::token_keys::{KeyState, KeyTimes, RotationRefused, Wanted, plan, state};
use cyxcloud_metadata::model::TokenKey;
use tracing::warn;

use crate::DataPlane;
use crate::node::issuer::{new_seed, open};

/// A key that tokens are signed with, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningKey {
    /// Its public half: what nodes have in their file `trust`.
    pub public: [u8; 32],
    /// Its place in the schedule.
    pub times: KeyTimes,
    /// What it is for now.
    pub state: KeyState,
    /// By the database's clock.
    pub created_at: Timestamp,
}

/// Why there was no rotation.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// Not now, or not so.
    #[error(transparent)]
    Refused(#[from] RotationRefused),
    /// `Stale` where somebody else has just rotated.
    #[error("the keys could not be rotated")]
    Metadata(#[from] cyxcloud_metadata::Error),
}

fn times(keys: &[TokenKey]) -> Vec<KeyTimes> {
    keys.iter().map(|key| key.times).collect()
}

impl DataPlane {
    /// The keys that nodes believe now or will, oldest first.
    pub async fn signing_keys(&self) -> cyxcloud_metadata::Result<Vec<SigningKey>> {
        let plane = &self.0;
        let rows = plane.metadata.token_keys(&new_seed(&plane.master)).await?;
        let (all, now) = (times(&rows), plane.metadata.now().await?);
        let shown = |row: &TokenKey| {
            let public = open(&plane.master, &row.wrapped_seed)?.public();
            let state = state(&all, &row.times, now);
            Ok(SigningKey { public, times: row.times, state, created_at: row.created_at })
        };
        rows.iter().map(shown).collect()
    }

    /// Makes a new key, which every server goes over to when its time has come; answers how it stands then.
    pub async fn rotate_signing_key(&self, wanted: Wanted) -> Result<Vec<SigningKey>, RotateError> {
        let plane = &self.0;
        let rows = plane.metadata.token_keys(&new_seed(&plane.master)).await?;
        let rotation = plan(&times(&rows), wanted, plane.metadata.now().await?)?;
        let added = plane.metadata.add_token_key(&rotation, &new_seed(&plane.master)).await?;
        warn!(
            number = added.times.number,
            overlap_secs = wanted.overlap.as_secs(),
            revoke = wanted.revoke,
            "the key that tokens for nodes are signed with is rotated"
        );
        // Others read it within seconds; here there is no reason to wait.
        plane.pool.issuer.read_keys(&*plane.metadata, &plane.master).await?;
        Ok(self.signing_keys().await?)
    }
}
