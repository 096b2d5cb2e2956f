//! The metadata store on PostgreSQL: the conformance suite, and what only PostgreSQL can get wrong.
//!
//! Needs `CYXCLOUD_TEST_POSTGRES`, the URL of a server and a user who may create databases; `=omit` leaves it out.

#![allow(clippy::print_stderr, reason = "says what is left out, and what was measured")]

#[path = "postgres/commits.rs"]
mod commits;
#[path = "postgres/cost.rs"]
mod cost;
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
#[path = "postgres/upkeep.rs"]
mod upkeep;

mod conformance {
    use cyxcloud_metadata::conformance::Opened;

    use super::database::Database;

    async fn open() -> Option<Opened> {
        let database = Database::make().await?;
        Some(Opened::with(database.store().await, database))
    }

    cyxcloud_metadata::conformance_suite!(open);
}
