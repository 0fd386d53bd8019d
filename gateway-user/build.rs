//! Makes the BPF object if it is not fresh, and hands it to `dataplane::object` for embedding. `LAZARET_BPF_OBJECT` names one made elsewhere.

#[allow(dead_code, reason = "xtask, whose file this is, uses the rest")]
#[path = "../xtask/src/bpf.rs"]
mod bpf;

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=LAZARET_BPF_OBJECT");
    let object = if let Some(path) = env::var_os("LAZARET_BPF_OBJECT") {
        PathBuf::from(path)
    } else {
        let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
        for input in bpf::inputs(&root) {
            println!("cargo::rerun-if-changed={}", input.display());
        }
        if let Err(e) = bpf::build(&root) {
            println!("cargo::error={e}");
            return Ok(());
        }
        bpf::object(&root)
    };
    println!(
        "cargo::rerun-if-changed={}",
        env::current_dir()?.join("../xtask/src/bpf.rs").display()
    );
    let embedded = PathBuf::from(env::var("OUT_DIR")?).join("lazaret.bpf.o");
    if let Err(e) = fs::copy(&object, embedded) {
        println!("cargo::error={}: {e}", object.display());
    }
    Ok(())
}
