//! The BPF object, embedded by `build.rs`. It is always the one that this binary was written against.

/// The ELF file with programs and maps, aligned for the loader.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lazaret.bpf.o"));
