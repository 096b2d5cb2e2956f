//! Allowances: how much of each is used, as the time at which it will be full again (GCRA).
//!
//! By the database's clock, so that several instances count together.

use sqlx::Row;

use super::{Result, Store, failed};
use crate::limit::Limit;

/// Whether one was to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Yes,
    /// Not before so many seconds have passed.
    Wait(u64),
}

fn key(limit: &Limit, whom: &str) -> String {
    format!("{} {whom}", limit.name)
}

impl Store {
    /// Takes one, if there is one left.
    pub(crate) async fn take(&self, limit: &Limit, whom: &str) -> Result<Taken> {
        const DOING: &str = "count a request";
        // A row that comes back was changed: one was left.
        const TAKE: &str = "INSERT INTO limits AS l (key, full_at)
            VALUES ($1, clock_timestamp() + make_interval(secs => $2))
            ON CONFLICT (key) DO UPDATE SET full_at = greatest(l.full_at, clock_timestamp()) + make_interval(secs => $2)
                WHERE l.full_at + make_interval(secs => $2) <= clock_timestamp() + make_interval(secs => $3)
            RETURNING key";
        const WAIT: &str = "SELECT extract(epoch FROM full_at + make_interval(secs => $2) - clock_timestamp()
                - make_interval(secs => $3))::float8 AS wait FROM limits WHERE key = $1";
        let (key, every) = (key(limit, whom), limit.every.as_secs_f64());
        let most = every * f64::from(limit.burst);
        let take = sqlx::query(TAKE).bind(&key).bind(every).bind(most);
        if take.fetch_optional(&self.pool).await.map_err(failed(DOING))?.is_some() {
            return Ok(Taken::Yes);
        }
        let wait = sqlx::query(WAIT).bind(&key).bind(every).bind(most);
        let row = wait.fetch_optional(&self.pool).await.map_err(failed(DOING))?;
        let secs = row.map_or(Ok(1.0), |row| row.try_get::<f64, _>("wait")).map_err(failed(DOING))?;
        Ok(Taken::Wait(secs.ceil().clamp(1.0, 86_400.0) as u64))
    }

    /// Gives back one that turned out not to count.
    pub(crate) async fn give_back(&self, limit: &Limit, whom: &str) -> Result<()> {
        const GIVE: &str = "UPDATE limits SET full_at = full_at - make_interval(secs => $2) WHERE key = $1";
        let query = sqlx::query(GIVE).bind(key(limit, whom)).bind(limit.every.as_secs_f64());
        query.execute(&self.pool).await.map(|_| ()).map_err(failed("give back an allowance"))
    }
}
