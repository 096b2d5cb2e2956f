//! Compiles the .proto files without a system `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["cyxcloud/node/v1/node.proto", "cyxcloud/gateway/v1/gateway.proto"];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // `bytes` fields are slices of the received message: a chunk is never copied to be decoded.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
