//! The gRPC API: code generated from `lazaret/v1/*.proto`, which document it field by field.

pub mod codec;

/// Version 1.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("lazaret.v1");
}

/// The descriptors of all files, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lazaret.binpb"));
