//! Copies the sources and plants the faults.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/mutants.toml");

/// A fault.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mutant {
    /// What is wrong then.
    pub(crate) name: String,
    /// Where, from the repository's root.
    pub(crate) file: String,
    /// Text that occurs once in the file, with `«what is there ==> what is planted»` in it.
    at: String,
}

#[derive(Deserialize)]
struct Table {
    mutant: Vec<Mutant>,
}

impl Mutant {
    pub(crate) fn all() -> Vec<Self> {
        let text = fs::read_to_string(DATA).unwrap();
        toml::from_str::<Table>(&text)
            .unwrap_or_else(|e| panic!("{DATA}: {e}"))
            .mutant
    }

    /// The text as it is, and with the switch.
    fn texts(&self, number: usize) -> (String, String) {
        let parts = self.at.split_once('«').and_then(|(before, rest)| {
            let (change, after) = rest.split_once('»')?;
            let (there, planted) = change.split_once(" ==> ")?;
            Some((before, there.trim(), planted.trim(), after))
        });
        let (before, there, planted, after) = parts.unwrap_or_else(|| panic!("{}: `at` has no «a ==> b»", self.name));
        let switch = format!("(if crate::on({number}) {{ {planted} }} else {{ {there} }})");
        (format!("{before}{there}{after}"), format!("{before}{switch}{after}"))
    }
}

/// What of the repository goes where in the scratch workspace. Of `gateway-user`, what turns a configuration into tables.
const COPIED: &[(&str, &str)] = &[
    ("gateway-ebpf/src", "gateway-ebpf/src"),
    ("gateway-user/src/config", "gateway-user/src/config"),
    ("gateway-user/src/model.rs", "gateway-user/src/model.rs"),
    ("gateway-user/src/model", "gateway-user/src/model"),
    ("gateway-user/src/dataplane/layout.rs", "gateway-user/src/dataplane/layout.rs"),
    ("gateway-user/src/dataplane/policy.rs", "gateway-user/src/dataplane/policy.rs"),
    ("tests/src/reference", "mutants/src/reference"),
    ("tests/src/differential", "mutants/src/differential"),
    ("tests/tests/mutants/scratch/main.rs", "mutants/src/main.rs"),
    ("Cargo.lock", "Cargo.lock"),
];

const WRITTEN: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("scratch/workspace.toml")),
    ("gateway-ebpf/Cargo.toml", include_str!("scratch/ebpf.toml")),
    ("gateway-user/Cargo.toml", include_str!("scratch/user.toml")),
    (
        "gateway-user/src/lib.rs",
        "pub mod config;\npub mod dataplane;\npub mod model;\npub(crate) use gateway_ebpf::on;\n",
    ),
    (
        "gateway-user/src/dataplane/mod.rs",
        "mod layout;\npub mod policy;\npub use layout::{AtRest, lay_out};\npub use policy::{CompileError, compile};\n",
    ),
    ("mutants/Cargo.toml", include_str!("scratch/mutants.toml")),
];

/// Appended to the decision's library.
const SWITCH: &str = "
static ACTIVE: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);
pub fn switch(number: usize) { ACTIVE.store(number, core::sync::atomic::Ordering::Relaxed) }
pub fn on(number: usize) -> bool { ACTIVE.load(core::sync::atomic::Ordering::Relaxed) == number }
";

/// Makes the scratch workspace. A file that is as it should be already stays untouched, so that it is not compiled again.
pub(crate) fn plant(root: &Path, scratch: &Path, mutants: &[Mutant]) {
    let mut files: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (from, to) in COPIED {
        copy(&root.join(from), Path::new(to), &mut files);
    }
    for (to, text) in WRITTEN {
        files.insert(to.into(), (*text).to_owned());
    }
    files.get_mut(Path::new("gateway-ebpf/src/lib.rs")).unwrap().push_str(SWITCH);
    // The switch is no constant.
    for (path, text) in &mut files {
        if path.starts_with("gateway-ebpf/src") && !path.ends_with("abi.rs") {
            *text = text.replace("const fn ", "fn ");
        }
    }
    for (number, mutant) in (1..).zip(mutants) {
        let text = files
            .get_mut(Path::new(&mutant.file))
            .unwrap_or_else(|| panic!("no file {}", mutant.file));
        let (there, planted) = mutant.texts(number);
        let found = text.matches(&there).count();
        assert_eq!(
            found, 1,
            "{}: its text occurs {found} times in {}:\n{there}",
            mutant.name, mutant.file
        );
        *text = text.replace(&there, &planted);
    }
    for (path, text) in &files {
        let path = scratch.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if fs::read_to_string(&path).ok().as_ref() != Some(text) && !path.ends_with("Cargo.lock") || !path.exists() {
            fs::write(&path, text).unwrap();
        }
    }
}

fn copy(from: &Path, to: &Path, files: &mut BTreeMap<PathBuf, String>) {
    if from.is_dir() {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()), files);
        }
    } else {
        files.insert(
            to.into(),
            fs::read_to_string(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())),
        );
    }
}
