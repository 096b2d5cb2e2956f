//! The gateway: S3 and REST over HTTP, node and data services over gRPC, and the watch over the nodes.
//!
//! A request comes in through [`serve`], is verified once in [`auth`] whatever its scheme, and reaches either [`s3`]
//! (translation) or [`rest`]; both speak to [`objects`], which gives an upload or a read its meaning and tells [`events`]
//! what came of it, which [`websocket`] sends to whom they concern.
//! [`nodes`] is the other side: registration, heartbeats, life cycle. The gateway keeps no state that a restart would miss.

pub mod admin;
pub mod api;
mod assemble;
pub mod auth;
pub mod body;
pub mod config;
pub mod data_service;
pub mod documents;
pub mod ephemeral;
pub mod events;
#[doc(hidden)]
pub mod fuzzing;
pub mod identity;
pub mod incoming;
pub mod journal;
pub mod limits;
pub mod nodes;
pub mod objects;
mod outgoing;
pub mod problem;
pub mod readiness;
pub mod rest;
pub mod run;
pub mod s3;
pub mod serve;
mod signing;
pub mod websocket;

pub use config::Config;
pub use run::{Error, Listeners, Options, run};
