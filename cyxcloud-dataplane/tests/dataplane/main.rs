//! The data plane against storage nodes that misbehave.
//!
//! Nodes are real gRPC servers on loopback with faults that tests switch; the metadata store is the embedded one in memory.

mod cluster;
mod fake;
mod nodes;
mod reads;
mod repairs;
mod writes;
