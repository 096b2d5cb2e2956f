//! The service as its clients meet it: over HTTP, on a real PostgreSQL.
//!
//! Needs `CYXCLOUD_TEST_POSTGRES`, the URL of a server and a user who may create databases; `=omit` leaves it out.

#![allow(clippy::print_stderr, reason = "says what is left out")]

#[path = "api/accounts.rs"]
mod accounts;
#[path = "api/database.rs"]
mod database;
#[path = "api/doors.rs"]
mod doors;
#[path = "api/machines.rs"]
mod machines;
#[path = "api/server.rs"]
mod server;
#[path = "api/sessions.rs"]
mod sessions;
#[path = "api/wallets.rs"]
mod wallets;
