//! The rules, as functions of a path and its text. No I/O.

use std::fmt;

/// Something that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    path: String,
    /// From 1; 0: the file as a whole.
    line: usize,
    what: String,
}

impl Finding {
    pub(super) fn new(path: &str, line: usize, what: String) -> Self {
        Self {
            path: path.to_owned(),
            line,
            what,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// What code under `within`, other than under `except`, never names.
struct Arrow {
    within: &'static [&'static str],
    except: &'static [&'static str],
    never: &'static [&'static str],
    why: &'static str,
}

const USER: &str = "gateway-user/src/";

const ARROWS: &[Arrow] = &[
    Arrow {
        within: &["gateway-user/src/api"],
        except: &[],
        never: &["dataplane", "reconcile", "store", "floor", "routes"],
        why: "api turns messages into commands to the controller and knows nothing behind it",
    },
    Arrow {
        within: &["gateway-user/src/transition", "gateway-user/src/reconcile/plan"],
        except: &[],
        never: &[
            "tokio",
            "tonic",
            "aya",
            "rtnetlink",
            "rusqlite",
            "SystemTime",
            "Instant",
            "dataplane",
            "api",
            "controller::",
        ],
        why: "transition and plan are pure: no clock, no I/O",
    },
    Arrow {
        within: &["gateway-ebpf/src/"],
        except: &[
            "gateway-ebpf/src/main.rs",
            "gateway-ebpf/src/access",
            "gateway-ebpf/src/account",
            "gateway-ebpf/src/answer",
            "gateway-ebpf/src/capture",
            "gateway-ebpf/src/rate",
            "gateway-ebpf/src/report",
            "gateway-ebpf/src/hooks",
            "gateway-ebpf/src/maps",
            "gateway-ebpf/src/note",
            "gateway-ebpf/src/short",
            "gateway-ebpf/src/bench",
        ],
        never: &["tokio", "tonic", "aya", "aya_ebpf", "rtnetlink", "gateway_user"],
        why: "the parser and the decision are the same code on the host",
    },
    Arrow {
        within: &[USER],
        except: &["gateway-user/src/dataplane"],
        never: &["aya"],
        why: "only dataplane names aya",
    },
    Arrow {
        within: &[USER],
        except: &["gateway-user/src/store"],
        never: &["rusqlite"],
        why: "only store names SQLite",
    },
    Arrow {
        within: &[USER],
        except: &[
            "gateway-user/src/links",
            "gateway-user/src/netlink",
            "gateway-user/src/routes",
            "gateway-user/src/dataplane/filter.rs",
        ],
        never: &["rtnetlink", "netlink_packet_route"],
        why: "only links, routes and filters speak netlink",
    },
    Arrow {
        within: &[USER],
        except: &["gateway-user/src/controller", "gateway-user/src/store"],
        never: &[".commit("],
        why: "only the controller commits",
    },
    Arrow {
        within: &[USER],
        except: &["gateway-user/src/reconcile", "gateway-user/src/dataplane"],
        never: &[".assign("],
        why: "only reconcile::apply changes the kernel's tables",
    },
    Arrow {
        within: &["gateway-user/src/metrics"],
        except: &[],
        never: &["store", "dataplane", "reconcile", "floor", "tonic", "api"],
        why: "metrics shows what the controller and the access layer say",
    },
    Arrow {
        within: &["gateway-user/src/events"],
        except: &[],
        never: &["controller", "store", "dataplane", "reconcile", "transition"],
        why: "events reports and never decides",
    },
    Arrow {
        within: &["gateway-user/src/explain"],
        except: &[],
        never: &["tokio", "tonic", "aya", "dataplane", "api", "store", "SystemTime", "Instant"],
        why: "explain is pure: the kernel judges, by a prober that is handed in",
    },
    Arrow {
        within: &["gateway-user/src/config", "gateway-user/src/model"],
        except: &[],
        never: &["tokio", "tonic", "aya", "rtnetlink", "controller", "dataplane", "api"],
        why: "config and model touch nothing",
    },
    Arrow {
        within: &[
            "gateway-user/src/dataplane",
            "gateway-user/src/store",
            "gateway-user/src/floor",
            "gateway-user/src/routes",
        ],
        except: &[],
        never: &["tonic", "lazaret_proto", "api", "controller"],
        why: "arrows never run back",
    },
];

/// Most lines of a source file, and those with a reason to be longer.
const MOST_LINES: usize = 600;
const LONGER: &[(&str, &str)] = &[];

/// Words that say "not done" or name one person's machine. In two halves, so that this file does not hold them.
const WORDS: &[(&str, &str)] = &[
    ("todo", "!("),
    ("unimplemented", "!("),
    ("FIX", "ME"),
    ("To be ", "written."),
    ("/work", "/"),
    ("/home", "/"),
    ("/root", "/"),
    ("/tmp/", "lz"),
];

/// Words that no text of the repository holds.
pub(super) fn words(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in WORDS
            .iter()
            .map(|(a, b)| format!("{a}{b}"))
            .filter(|w| line.contains(w.as_str()))
        {
            findings.push(Finding::new(path, number + 1, format!("holds `{word}`")));
        }
    }
    findings
}

/// Arrows, module documentation and size of a Rust source.
pub(super) fn source(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
    if !first.starts_with("//! ") {
        findings.push(Finding::new(path, 1, "does not open by saying what it is (`//! ...`)".into()));
    }
    let lines = text.lines().count();
    if lines > MOST_LINES && !LONGER.iter().any(|(p, _)| *p == path) {
        findings.push(Finding::new(
            path,
            0,
            format!("{lines} lines, above {MOST_LINES}, without a reason in xtask's LONGER"),
        ));
    }
    for arrow in ARROWS.iter().filter(|a| a.holds(path)) {
        for (number, line) in code(text).iter().enumerate() {
            for word in arrow.never.iter().filter(|w| names(line, w)) {
                findings.push(Finding::new(path, number + 1, format!("names `{word}`: {}", arrow.why)));
            }
        }
    }
    findings
}

/// Every crate of the workspace takes its lints from it; they say the rest, that every exception has a reason among it.
pub(super) fn manifest(path: &str, text: &str) -> Option<Finding> {
    let found = text
        .split_once("[lints]")
        .is_some_and(|(_, rest)| rest.trim_start().starts_with("workspace = true"));
    (!found).then(|| Finding::new(path, 0, "does not take the workspace's lints".into()))
}

/// The README's tasks exist, and its two commands are there.
pub(super) fn readme(path: &str, text: &str, tasks: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for rest in line.split("cargo xtask ").skip(1) {
            let task: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            if !tasks.contains(&task) {
                findings.push(Finding::new(path, number + 1, format!("there is no `cargo xtask {task}`")));
            }
        }
    }
    for command in ["cargo xtask demo", "cargo xtask test"]
        .iter()
        .filter(|c| !text.contains(**c))
    {
        findings.push(Finding::new(path, 0, format!("does not name `{command}`")));
    }
    findings
}

impl Arrow {
    fn holds(&self, path: &str) -> bool {
        let under = |prefixes: &[&str]| {
            prefixes.iter().any(|p| {
                // `.../api` means api.rs and api/, not apix.rs.
                path.strip_prefix(p)
                    .is_some_and(|rest| p.ends_with('/') || rest.is_empty() || rest.starts_with(['/', '.']))
            })
        };
        // Tests of a module may use what the module must not.
        let test = path.ends_with("/tests.rs") || path.contains("/tests/");
        under(self.within) && !under(self.except) && !test
    }
}

/// The lines of a source without comments, strings and what follows `#[cfg(test)] mod`.
fn code(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut test_next = false;
    for line in text.lines() {
        if test_next && (line.starts_with("mod ") || line.starts_with("pub mod ")) && line.trim_end().ends_with('{') {
            break;
        }
        test_next = line.trim() == "#[cfg(test)]";
        lines.push(bare(line));
    }
    lines
}

/// A line without strings and line comments. A string over several lines stays; it would have to name a crate to matter.
fn bare(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => drop(chars.next()),
            '"' => quoted = !quoted,
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            _ if quoted => {}
            c => out.push(c),
        }
    }
    out
}

/// Whether code names a word: as a whole identifier, or, with punctuation, as it stands.
fn names(line: &str, word: &str) -> bool {
    let identifier = |c: char| c.is_alphanumeric() || c == '_';
    if !word.chars().all(identifier) {
        return line.contains(word);
    }
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        // A module or crate is named in a path: `aya::`, `use crate::{store, ...}`; a local variable `store` is not.
        let whole = !before.ends_with(identifier) && !after.starts_with(identifier);
        let path = after.starts_with("::") || before.ends_with("::") || line.trim_start().starts_with("use ");
        let member = before.ends_with('.');
        let capital = word.starts_with(char::is_uppercase);
        whole && !member && (path || capital)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOC: &str = "//! What it is.\n";

    fn found(path: &str, code: &str) -> Vec<String> {
        source(path, &format!("{DOC}{code}"))
            .into_iter()
            .map(|f| f.to_string())
            .collect()
    }

    #[test]
    fn arrows_are_seen() {
        for (path, code) in [
            ("gateway-user/src/api/device.rs", "use crate::dataplane::Maps;"),
            ("gateway-user/src/api.rs", "use crate::{config, dataplane};"),
            ("gateway-user/src/transition.rs", "use tokio::sync::mpsc;"),
            ("gateway-user/src/transition.rs", "    let now = SystemTime::now();"),
            ("gateway-user/src/reconcile/plan.rs", "fn f(p: &aya::programs::Xdp) {}"),
            ("gateway-user/src/floor.rs", "use aya::maps::Array;"),
            ("gateway-ebpf/src/decide.rs", "use aya_ebpf::helpers;"),
            ("gateway-user/src/hook/mod.rs", "    store.commit(changes)?;"),
            ("gateway-user/src/controller/write.rs", "    kernel.assign(address, to)?;"),
            ("gateway-user/src/events.rs", "use crate::controller::Controller;"),
            ("gateway-user/src/store/sqlite.rs", "use crate::controller::Refusal;"),
            ("gateway-user/src/cli/mod.rs", "use rusqlite::Connection;"),
        ] {
            assert_eq!(found(path, code).len().min(1), 1, "{path}: {code}");
        }
    }

    #[test]
    fn what_is_allowed_is_not_found() {
        for (path, code) in [
            ("gateway-user/src/apix.rs", "use crate::dataplane::Maps;"),
            ("gateway-user/src/api/mod.rs", "// use crate::dataplane: never"),
            ("gateway-user/src/api/mod.rs", "let text = \"crate::dataplane::x\";"),
            ("gateway-user/src/api/mod.rs", "let store = status.store; f(store);"),
            ("gateway-user/src/dataplane/load.rs", "use aya::Ebpf;"),
            ("gateway-user/src/controller/mod.rs", "self.store.commit(x)?;"),
            ("gateway-ebpf/src/main.rs", "use aya_ebpf::macros::xdp;"),
            (
                "gateway-user/src/transition.rs",
                "#[cfg(test)]\nmod tests {\n    use std::time::SystemTime;\n}",
            ),
        ] {
            assert_eq!(found(path, code), Vec::<String>::new(), "{path}: {code}");
        }
    }

    #[test]
    fn a_file_says_what_it_is_and_stays_readable() {
        assert_eq!(source("a.rs", "use std::fs;\n").len(), 1);
        assert_eq!(source("a.rs", &format!("{DOC}{}", "\n".repeat(MOST_LINES))).len(), 1);
        assert_eq!(source("a.rs", DOC), []);
    }

    #[test]
    fn words_are_seen_where_they_stand() {
        let left = format!("fine\n// {}{}: later\n", "FIX", "ME");
        assert_eq!(
            words("a.md", &left),
            [Finding::new("a.md", 2, format!("holds `{}{}`", "FIX", "ME"))]
        );
        assert_eq!(words("a.rs", &format!("{}{})", "todo", "!(")).len(), 1);
        assert_eq!(words("a.rs", "a home, work and todo list"), []);
    }

    #[test]
    fn the_readme_names_what_exists() {
        let tasks = ["demo".to_owned(), "test".to_owned()];
        assert_eq!(readme("README.md", "`cargo xtask demo` and `cargo xtask test`", &tasks), []);
        assert_eq!(
            readme("README.md", "cargo xtask demo, cargo xtask test, cargo xtask fly", &tasks).len(),
            1
        );
        assert_eq!(readme("README.md", "nothing", &tasks).len(), 2);
    }

    #[test]
    fn crates_take_the_workspaces_lints() {
        assert_eq!(manifest("a/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n"), None);
        assert!(manifest("a/Cargo.toml", "[package]\n").is_some());
    }
}
