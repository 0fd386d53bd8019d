//! The systemd units of `deploy/`, as systemd-analyze reads them.

use std::{fs, path::Path, process::Command};

#[test]
fn the_units_are_what_systemd_understands() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        assert!(
            std::env::var_os("CI").is_none_or(|v| v != "true"),
            "systemd-analyze is missing"
        );
        eprintln!("skipped: the_units_are_what_systemd_understands: there is no systemd-analyze");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for unit in ["lazaret.service", "lazaret-floor.service"] {
        // It is verified that the program exists; here it is not installed.
        let text = fs::read_to_string(deploy.join(unit)).unwrap();
        assert!(text.contains("/usr/bin/lazaret "), "{unit}");
        let path = dir.path().join(unit);
        fs::write(&path, text.replace("/usr/bin/lazaret ", "/bin/true ")).unwrap();
        units.push(path);
    }
    let verified = Command::new("systemd-analyze").arg("verify").args(&units).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<&str> = said.lines().filter(|l| l.contains("lazaret")).collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");
}
