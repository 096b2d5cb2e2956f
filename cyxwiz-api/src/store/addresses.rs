//! Where somebody logged in from, for as long as that says anything.

use cyxcloud_core::OwnerId;

use super::{Result, Store, failed};

impl Store {
    /// Whether somebody logged in to the account from this address not long ago.
    pub(crate) async fn is_known(&self, user: OwnerId, address: &str) -> Result<bool> {
        const KNOWN: &str =
            "SELECT EXISTS (SELECT 1 FROM known_addresses WHERE user_id = $1 AND address = $2)";
        let query = sqlx::query_scalar(KNOWN).bind(user.as_uuid()).bind(address);
        query.fetch_one(&self.pool).await.map_err(failed("look for an address"))
    }

    /// Remembers that somebody logged in to the account from this address.
    pub(crate) async fn know(&self, user: OwnerId, address: &str) -> Result<()> {
        const KNOW: &str = "INSERT INTO known_addresses (user_id, address) VALUES ($1, $2)
            ON CONFLICT (user_id, address) DO UPDATE SET seen_at = now()";
        let query = sqlx::query(KNOW).bind(user.as_uuid()).bind(address);
        query.execute(&self.pool).await.map(|_| ()).map_err(failed("remember an address"))
    }
}
