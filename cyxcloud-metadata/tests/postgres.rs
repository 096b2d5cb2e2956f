//! The metadata store on PostgreSQL: the conformance suite, and what only PostgreSQL can get wrong.
//!
//! Needs `CYXCLOUD_TEST_POSTGRES`, the URL of a server and a user who may create databases; `=omit` leaves it out.

#![allow(clippy::print_stderr, reason = "says what is left out, and what was measured")]

#[path = "postgres/commits.rs"]
mod commits;
#[path = "postgres/database.rs"]
mod database;
#[path = "postgres/fixture.rs"]
mod fixture;
#[path = "postgres/lists.rs"]
mod lists;
#[path = "postgres/operators.rs"]
mod operators;
#[path = "postgres/proxy.rs"]
mod proxy;
#[path = "postgres/server.rs"]
mod server;

mod conformance {
    use cyxcloud_metadata::conformance::Opened;

    use std::sync::{Arc, Weak};

    use tokio::sync::Mutex;

    use super::database::Database;

    /// The promises look at nothing but their own, so those that are tested at the same time share a database.
    static SHARED: Mutex<Weak<Database>> = Mutex::const_new(Weak::new());

    async fn open() -> Option<Opened> {
        let mut shared = SHARED.lock().await;
        let database = match shared.upgrade() {
            Some(database) => database,
            None => Arc::new(Database::make().await?),
        };
        *shared = Arc::downgrade(&database);
        drop(shared);
        Some(Opened::with(database.store().await, database))
    }

    cyxcloud_metadata::conformance_suite!(open);
}
