//! Talking to storage nodes: one connection each, what they answered lately, and which of them there are.

pub(crate) mod connect;
pub(crate) mod health;
mod inventory;
pub(crate) mod issuer;
pub(crate) mod pool;
pub(crate) mod raw;
pub(crate) mod view;

pub use pool::{Deleted, ListedChunk, NodePool};
