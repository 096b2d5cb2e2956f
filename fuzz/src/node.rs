//! Of the node, which is built on RocksDB and libp2p: the file that says who may do what there.

#[path = "../../cyxcloud-node/src/gate.rs"]
pub mod gate;

/// As the node has it.
pub mod service {
    use std::time::UNIX_EPOCH;

    use cyxcloud_core::Timestamp;

    pub fn now() -> Timestamp {
        let since = UNIX_EPOCH.elapsed().expect("after 1970");
        Timestamp::from_unix_millis(since.as_millis() as i64)
    }
}

/// As the node has it, but for what a crash would leave.
pub mod store {
    use std::io;
    use std::path::Path;

    pub fn write_file(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
        std::fs::write(dir.join(name), bytes)
    }
}
