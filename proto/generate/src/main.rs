//! Writes the Rust types of the messages in `proto/` and the descriptors of the services, which reflection answers.
//!
//! Usage: `sluicegate-proto PROTO_DIR OUT_DIR`.

use prost::Message;
use std::error::Error;
use std::path::PathBuf;

/// The files with services, and those whose messages are used on their own.
const FILES: [&str; 5] = [
    "inference/grpc_service.proto",
    "tensorflow_serving/apis/prediction_service.proto",
    "tensorflow_serving/apis/model_service.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let (Some(protos), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err("usage: sluicegate-proto PROTO_DIR OUT_DIR".into());
    };
    let mut descriptors = protox::compile(FILES, [&protos])?;
    std::fs::create_dir_all(&out)?;
    prost_build::Config::new()
        // Bytes of a message are views into the body that was read.
        .bytes(["."])
        // Maps are written in the order of their keys.
        .btree_map(["."])
        // No crate for the well-known types: three of them are used.
        .compile_well_known_types()
        // Names of types, for `google.protobuf.Any`.
        .enable_type_names()
        .disable_comments(["."])
        .out_dir(&out)
        .include_file("mod.rs")
        .compile_fds(descriptors.clone())?;
    // Comments are not part of the interface.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    Ok(())
}
