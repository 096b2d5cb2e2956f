//! A whole node from outside: real servers on loopback, a stand-in for the gateway, restarts in between.

mod cluster;
#[cfg(feature = "faults")]
mod faults;
mod membership;
mod methods;
mod services;
mod tokens;
mod trash;
