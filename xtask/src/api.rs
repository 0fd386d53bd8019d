//! The API's form, by buf: its rules of style and documentation (`proto/buf.yaml`), and that nothing is taken away from what was released
//! (`proto/released.binpb`, the descriptors of the last release; `cargo xtask api --release` writes it).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{run, run::check};

/// buf's package on PyPI, which brings the program.
const PACKAGE: &str = "buf-bin==1.75.0";
/// Descriptors of the last release.
const RELEASED: &str = "released.binpb";

/// Lints the API, and compares it to what was released.
pub(crate) fn run(root: &Path) -> Result<()> {
    let buf = buf(root)?;
    let proto = root.join("proto");
    check(command(&buf, root).args(["lint"]).arg(&proto))?;
    let broken = broken(&buf, root, &proto)?;
    ensure!(
        broken.is_empty(),
        "the API no longer has what was released; clients in the field break:\n{broken}"
    );
    Ok(())
}

/// Makes what the API is now the release that later ones are compared to.
pub(crate) fn release(root: &Path) -> Result<()> {
    let buf = buf(root)?;
    let proto = root.join("proto");
    check(
        command(&buf, root)
            .args(["build", "--exclude-source-info", "-o"])
            .arg(proto.join(RELEASED))
            .arg(&proto),
    )
}

/// What the API in `proto` has taken away or changed, one finding a line; empty: nothing.
fn broken(buf: &Path, root: &Path, proto: &Path) -> Result<String> {
    let mut compare = command(buf, root);
    compare
        .arg("breaking")
        .arg(proto)
        .arg("--against")
        .arg(root.join("proto").join(RELEASED));
    let shown = run::shown(&compare);
    let out = compare.output().with_context(|| format!("cannot start `{shown}`"))?;
    // 100: it found something, and says what on standard output.
    match out.status.code() {
        Some(0) => Ok(String::new()),
        Some(100) => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        _ => anyhow::bail!("`{shown}` failed: {}", String::from_utf8_lossy(&out.stderr).trim()),
    }
}

fn command(buf: &Path, root: &Path) -> Command {
    let mut c = Command::new(buf);
    c.current_dir(root).env("BUF_CACHE_DIR", root.join("target/buf/cache"));
    c
}

/// buf, in a Python environment under `target`; made when it is not there.
pub(crate) fn buf(root: &Path) -> Result<PathBuf> {
    if let Some(found) = found(root) {
        return Ok(found);
    }
    let venv = root.join("target/buf/venv");
    eprintln!("making {} with {PACKAGE}: it checks the API's form", venv.display());
    check(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    check(
        Command::new(venv.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .arg(PACKAGE),
    )?;
    found(root).context("buf-bin was installed and brought no buf")
}

fn found(root: &Path) -> Option<PathBuf> {
    Some(root.join("target/buf/venv/bin/buf")).filter(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A copy of the API with something changed in it.
    fn changed(root: &Path, name: &str, file: &str, from: &str, to: &str) -> PathBuf {
        let copy = root.join("target/buf").join(format!("planted-{name}-{}", std::process::id()));
        let folder = copy.join("lazaret/v1");
        fs::create_dir_all(&folder).unwrap();
        fs::copy(root.join("proto/buf.yaml"), copy.join("buf.yaml")).unwrap();
        for entry in fs::read_dir(root.join("proto/lazaret/v1")).unwrap() {
            let path = entry.unwrap().path();
            let mut text = fs::read_to_string(&path).unwrap();
            if path.ends_with(file) {
                assert_eq!(text.matches(from).count(), 1, "{from}");
                text = text.replace(from, to);
            }
            fs::write(folder.join(path.file_name().unwrap()), text).unwrap();
        }
        copy
    }

    #[test]
    fn a_planted_break_is_found() {
        let root = crate::root();
        let Some(buf) = found(&root) else {
            assert!(std::env::var_os("CI").is_none(), "there is no buf: `cargo xtask api` gets it");
            eprintln!("SKIPPED a_planted_break_is_found: needs buf (`cargo xtask api` gets it)");
            return;
        };
        assert_eq!(broken(&buf, &root, &root.join("proto")).unwrap(), "", "as it is");
        for (name, file, from, to, want) in [
            (
                "removed",
                "device.proto",
                "  string policy_revision = 3;\n  // The final key",
                "  // The final key",
                "\"policy_revision\"",
            ),
            (
                "renumbered",
                "session.proto",
                "string interface = 4;",
                "string interface = 9;",
                "\"interface\"",
            ),
            (
                "retyped",
                "session.proto",
                "  uint64 session_id = 2;",
                "  string session_id = 2;",
                "\"session_id\"",
            ),
            (
                "rpc",
                "device.proto",
                "rpc RetireDevice(RetireDeviceRequest)",
                "rpc Retire(RetireDeviceRequest)",
                "\"RetireDevice\"",
            ),
            (
                "answer",
                "device.proto",
                "rpc RetireDevice(RetireDeviceRequest) returns (SignalResponse)",
                "rpc RetireDevice(RetireDeviceRequest) returns (GetDeviceResponse)",
                "RetireDevice",
            ),
            (
                "value",
                "types.proto",
                "DEVICE_STATE_RETIRED = 5;",
                "DEVICE_STATE_RETIRED = 9;",
                "\"DeviceState\"",
            ),
        ] {
            let copy = changed(&root, name, file, from, to);
            let found = broken(&buf, &root, &copy);
            fs::remove_dir_all(&copy).unwrap();
            let found = found.unwrap();
            assert!(found.contains(want), "{name}: {found:?}");
        }
    }
}
