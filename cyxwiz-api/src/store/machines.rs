//! Machines: which storage nodes an account says are its own.

use chrono::{DateTime, Utc};
use cyxcloud_core::{ByteCount, OwnerId};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{Result, Store, failed};

/// Most machines of one account.
const MACHINES_MAX: i64 = 1_000;

/// A machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) peer_id: String,
    pub(crate) storage: Option<ByteCount>,
    pub(crate) region: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) registered_at: DateTime<Utc>,
    pub(crate) last_seen_at: DateTime<Utc>,
}

/// What is said of a machine when it is registered, and each time it starts again.
#[derive(Clone, Debug)]
pub(crate) struct NewMachine<'a> {
    pub(crate) name: &'a str,
    pub(crate) peer_id: &'a str,
    pub(crate) storage: Option<ByteCount>,
    pub(crate) region: Option<&'a str>,
    pub(crate) version: Option<&'a str>,
}

fn machine(row: &PgRow) -> std::result::Result<Machine, sqlx::Error> {
    Ok(Machine {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        peer_id: row.try_get("peer_id")?,
        storage: row.try_get::<Option<i64>, _>("storage_bytes")?.map(ByteCount::from_i64),
        region: row.try_get("region")?,
        version: row.try_get("version")?,
        registered_at: row.try_get("registered_at")?,
        last_seen_at: row.try_get("last_seen_at")?,
    })
}

impl Store {
    /// Registers a machine, or brings up to date what is known of it: its id stays. Nothing if there are too many.
    pub(crate) async fn register_machine(
        &self,
        user: OwnerId,
        new: &NewMachine<'_>,
    ) -> Result<Option<Machine>> {
        const DOING: &str = "register a machine";
        const REGISTER: &str = "INSERT INTO machines (id, user_id, name, peer_id, storage_bytes, region, version)
            SELECT $1, $2, $3, $4, $5, $6, $7
            WHERE (SELECT count(*) FROM machines WHERE user_id = $2) < $8
                OR EXISTS (SELECT 1 FROM machines WHERE user_id = $2 AND peer_id = $4)
            ON CONFLICT (user_id, peer_id) DO UPDATE SET name = excluded.name, storage_bytes = excluded.storage_bytes,
                region = excluded.region, version = excluded.version, last_seen_at = now()
            RETURNING *";
        let query = sqlx::query(REGISTER)
            .bind(Uuid::new_v4())
            .bind(user.as_uuid())
            .bind(new.name)
            .bind(new.peer_id)
            .bind(new.storage.map(|bytes| bytes.as_i64()))
            .bind(new.region)
            .bind(new.version)
            .bind(MACHINES_MAX);
        let row = query.fetch_optional(&self.pool).await.map_err(failed(DOING))?;
        row.as_ref().map(machine).transpose().map_err(failed(DOING))
    }

    /// All machines of an account, the oldest first.
    pub(crate) async fn machines(&self, user: OwnerId) -> Result<Vec<Machine>> {
        const DOING: &str = "list machines";
        const LIST: &str = "SELECT * FROM machines WHERE user_id = $1 ORDER BY registered_at, id";
        let rows =
            sqlx::query(LIST).bind(user.as_uuid()).fetch_all(&self.pool).await.map_err(failed(DOING))?;
        rows.iter().map(machine).collect::<std::result::Result<_, _>>().map_err(failed(DOING))
    }

    /// Forgets a machine of an account; whether there was one.
    pub(crate) async fn remove_machine(&self, user: OwnerId, id: Uuid) -> Result<bool> {
        let query = sqlx::query("DELETE FROM machines WHERE user_id = $1 AND id = $2").bind(user.as_uuid());
        let done = query.bind(id).execute(&self.pool).await.map_err(failed("remove a machine"))?;
        Ok(done.rows_affected() > 0)
    }
}
