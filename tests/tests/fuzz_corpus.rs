//! The fuzzer's corpus, replayed: what `cargo xtask fuzz` once found worth keeping is tried by every build, without libFuzzer.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{fs, path::Path};

use lazaret_tests::{differential::random::Random, fuzz};

type Target = fn(&[u8]);
const TARGETS: [(&str, Target); 4] = [
    ("parser", fuzz::parser),
    ("decision", fuzz::decision),
    ("fragments", fuzz::fragments),
    ("events", fuzz::events),
];

#[test]
fn the_corpus_is_replayed() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut files: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            .map(|f| f.unwrap().path())
            .collect();
        files.sort();
        assert!(files.len() >= 10, "{}: {} files", folder.display(), files.len());
        for file in &files {
            // If it panics, the file's name stands above the reason.
            println!("{}", file.display());
            target(&fs::read(file).unwrap());
        }
    }
}

/// Bytes that nobody chose, and the corpus with single bytes changed.
#[test]
fn neighbours_of_the_corpus() {
    let mut r = Random::new(7);
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        for file in fs::read_dir(folder).unwrap() {
            let mut bytes = fs::read(file.unwrap().path()).unwrap();
            for _ in 0..3 {
                let at = r.below(bytes.len().max(1));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = r.byte();
                }
                target(&bytes);
            }
        }
        for length in 0..60 {
            let bytes: Vec<u8> = (0..length).map(|_| r.byte()).collect();
            target(&bytes);
        }
    }
}
