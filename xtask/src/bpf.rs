//! The BPF object: finds a compiler that can make it, builds it, and knows whether it is fresh. Nothing else.
//!
//! Standard library only, since `gateway-user/build.rs` includes this file: plain cargo commands then build the object by themselves. It is
//! built in a target directory of its own, so that the outer cargo's lock is not waited for.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What rustc calls the target.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Flags of the build: BTF comes from debug information; the third version of the instruction set (kernel 5.1) has 32-bit operations and
/// jumps, without which every comparison of a word takes two shifts more.
const RUSTFLAGS: &str = "-C link-arg=--btf -C debuginfo=2 -C target-cpu=v3";
/// Where the distribution puts its compiler.
const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";

/// A compiler with a core library for BPF, or with the sources to make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// rustup's nightly with rust-src: builds the core library itself.
    Nightly,
    /// The distribution's, with a core library made before.
    Distribution,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nightly => "rustup's nightly with rust-src",
            Self::Distribution => "the distribution's rustc with its BPF core library",
        })
    }
}

impl Compiler {
    /// The first that is usable here.
    pub(crate) fn find() -> Option<Self> {
        [Self::Nightly, Self::Distribution].into_iter().find(|c| c.usable())
    }

    /// The major version of its LLVM; bpf-linker must read its bitcode.
    pub(crate) fn llvm(self) -> Option<u32> {
        let mut rustc = match self {
            Self::Nightly => nightly("rustc"),
            Self::Distribution => command(DISTRIBUTION_RUSTC),
        };
        let text = output(rustc.arg("-vV"))?;
        text.lines()
            .find_map(|l| l.strip_prefix("LLVM version: "))?
            .split('.')
            .next()?
            .trim()
            .parse()
            .ok()
    }

    fn usable(self) -> bool {
        match self {
            Self::Nightly => output(nightly("rustc").args(["--print", "sysroot"])).is_some_and(|s| {
                Path::new(s.trim())
                    .join("lib/rustlib/src/rust/library/core/Cargo.toml")
                    .exists()
            }),
            Self::Distribution => output(command(DISTRIBUTION_RUSTC).args(["--print", "target-libdir", "--target", TARGET]))
                .is_some_and(|dir| {
                    fs::read_dir(dir.trim())
                        .is_ok_and(|d| d.flatten().any(|e| e.file_name().to_string_lossy().starts_with("libcore-")))
                }),
        }
    }

    fn cargo(self) -> Command {
        match self {
            Self::Nightly => {
                let mut c = nightly("cargo");
                c.args(["build", "-Z", "build-std=core"]);
                c
            }
            Self::Distribution => {
                let mut c = command("/usr/bin/cargo");
                // aya-ebpf uses an unstable feature.
                c.env("RUSTC", DISTRIBUTION_RUSTC).env("RUSTC_BOOTSTRAP", "1").arg("build");
                c
            }
        }
    }
}

/// bpf-linker, on the path or where `cargo install` puts it.
pub(crate) fn linker() -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home.map(|h| h.join("bin")))
        .map(|d| d.join("bpf-linker"))
        .find(|p| p.is_file())
}

/// Where the object lies; its stamp is beside it.
pub(crate) fn object(root: &Path) -> PathBuf {
    root.join("target/bpf/lazaret.bpf.o")
}

/// The benchmark's own programs, made beside it.
pub(crate) fn bench_object(root: &Path) -> PathBuf {
    root.join("target/bpf").join(TARGET).join("bpf/gateway-bench")
}

/// What the object is made from: cargo should look again when one of these changes.
pub(crate) fn inputs(root: &Path) -> [PathBuf; 4] {
    ["gateway-ebpf/src", "gateway-ebpf/Cargo.toml", "Cargo.lock", "Cargo.toml"].map(|p| root.join(p))
}

/// Whether the object was made from the sources as they are.
pub(crate) fn fresh(root: &Path) -> Result<bool, Error> {
    let wanted = digest(root)?;
    let stamp = fs::read_to_string(stamp_path(root)).unwrap_or_default();
    Ok(object(root).is_file() && stamp.lines().next() == Some(&wanted))
}

/// Makes the object if it is not fresh, and says whether it did. What the compiler has to say goes to stderr.
pub(crate) fn build(root: &Path) -> Result<bool, Error> {
    if fresh(root)? {
        return Ok(false);
    }
    let compiler = Compiler::find().ok_or(Error::NoCompiler)?;
    let linker = linker().ok_or(Error::NoLinker)?;
    let target_dir = root.join("target/bpf");
    let digest = digest(root)?;

    let built = compiler
        .cargo()
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", RUSTFLAGS)
        .args([
            "--quiet",
            "--locked",
            "--package",
            "gateway-ebpf",
            "--bins",
            "--profile",
            "bpf",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|e| Error::Io(PathBuf::from("cargo"), e))?;
    if !built.success() {
        return Err(Error::Failed(compiler));
    }
    // Under a name of its own first: whoever reads the object meanwhile sees the old one or the new one.
    let part = target_dir.join(format!("lazaret.bpf.o.{}", std::process::id()));
    let made = target_dir.join(TARGET).join("bpf/gateway");
    fs::copy(&made, &part).map_err(|e| Error::Io(made, e))?;
    fs::rename(&part, object(root)).map_err(|e| Error::Io(part, e))?;
    let stamp = format!("{digest}\nmade by {compiler}\n");
    fs::write(stamp_path(root), stamp).map_err(|e| Error::Io(stamp_path(root), e))?;
    Ok(true)
}

/// Why there is no object.
#[derive(Debug)]
pub(crate) enum Error {
    /// No compiler knows the target.
    NoCompiler,
    /// bpf-linker is missing.
    NoLinker,
    /// The compiler refused.
    Failed(Compiler),
    /// A file could not be read or written, or a program not started.
    Io(PathBuf, io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCompiler => f.write_str("no compiler here can make the BPF object; run `cargo xtask setup`"),
            Self::NoLinker => f.write_str("bpf-linker is not installed; run `cargo xtask setup`"),
            Self::Failed(c) => write!(f, "the BPF object did not compile with {c}; `cargo xtask build` shows why"),
            Self::Io(path, e) => write!(f, "{}: {e}", path.display()),
        }
    }
}
impl std::error::Error for Error {}

fn stamp_path(root: &Path) -> PathBuf {
    root.join("target/bpf/lazaret.bpf.stamp")
}

/// FNV-1a over everything that the object depends on: sources, manifest, the versions of aya's crates, the profile and the flags.
fn digest(root: &Path) -> Result<String, Error> {
    let mut files = vec![root.join("gateway-ebpf/Cargo.toml")];
    collect(&root.join("gateway-ebpf/src"), &mut files)?;
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for b in bytes.iter().chain(&[0]) {
            hash = (hash ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for file in &files {
        add(file.strip_prefix(root).unwrap_or(file).as_os_str().as_encoded_bytes());
        add(&read(file)?);
    }
    let lock = String::from_utf8_lossy(&read(&root.join("Cargo.lock"))?).into_owned();
    for package in lock
        .split("[[package]]")
        .filter(|p| p.trim_start().starts_with("name = \"aya-ebpf"))
    {
        add(package.as_bytes());
    }
    let manifest = String::from_utf8_lossy(&read(&root.join("Cargo.toml"))?).into_owned();
    if let Some((_, profile)) = manifest.split_once("[profile.bpf]") {
        add(profile.split("\n[").next().unwrap_or_default().as_bytes());
    }
    add(RUSTFLAGS.as_bytes());
    Ok(format!("{hash:016x}"))
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) -> Result<(), Error> {
    let failed = |e| Error::Io(dir.to_path_buf(), e);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|e| Error::Io(path.to_path_buf(), e))
}

/// Variables that an outer cargo, rustup or clippy sets for its own compiler. The library path would give the distribution's compiler
/// rustup's libraries.
fn inherited_from_cargo(name: &str) -> bool {
    let kept = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "RUSTUP_HOME",
        "RUSTUP_DIST_SERVER",
        "RUSTUP_AUTO_INSTALL",
    ];
    let cargos = [
        "CARGO",
        "RUSTC",
        "RUSTFLAGS",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
        "CLIPPY",
        "LD_LIBRARY_PATH",
        "MAKEFLAGS",
    ];
    cargos.iter().any(|p| name.starts_with(p)) && !kept.iter().any(|p| name.starts_with(p))
}

fn nightly(program: &str) -> Command {
    let mut c = command("rustup");
    c.args(["run", "nightly", program]);
    c
}

fn command(program: &str) -> Command {
    let mut c = Command::new(program);
    for (name, _) in env::vars_os().filter(|(n, _)| inherited_from_cargo(&n.to_string_lossy())) {
        c.env_remove(name);
    }
    c
}

/// Standard output of a command that succeeded.
fn output(command: &mut Command) -> Option<String> {
    let out = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    out.status
        .success()
        .then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}
