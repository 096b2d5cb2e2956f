//! The storage nodes as the gateway sees them: registration with a call-back, heartbeats, and the life cycle.
//!
//! [`service`] answers nodes, [`callback`] calls them back at the address they claim, [`monitor`] moves them
//! through their life as long as it is [`listening`], [`suspensions`] drains those whose operator may do nothing. What a
//! node may do in which state is decided in `cyxcloud_core::node`.

pub mod callback;
mod changes;
pub mod heartbeats;
pub mod listening;
pub mod monitor;
pub mod service;
pub mod suspensions;

pub use heartbeats::Heartbeats;
pub use monitor::Monitor;
pub(crate) use service::scrub_wanted;
pub use service::{NodeApi, Operators};
pub use suspensions::Suspensions;
