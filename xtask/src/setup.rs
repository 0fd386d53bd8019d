//! What the build, the tests, the demo and the benchmark need of the machine. `plan` (pure) says what is missing and what would mend it;
//! `install` does it, `report` only tells. Everything that exists already is left as it is.

use std::{
    env,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::{
    bpf::{self, Compiler},
    run::{check, shown},
};

/// Version of bpf-linker that is installed where there is none.
const LINKER_VERSION: &str = "0.13.0";

/// How much is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Tests and demo.
    Test,
    /// Also what the benchmark needs beyond.
    Bench,
}

/// A program: its name, the Debian package that has it, and why it is needed.
type Program = (&'static str, &'static str, &'static str);

const FOR_TESTS: &[Program] = &[
    ("openvpn", "openvpn", "the VPN of the demo and the end-to-end tests"),
    ("nft", "nftables", "the floor is made with it, and tests look at it"),
    ("ip", "iproute2", "makes the namespaces of tests and demo"),
    (
        "bpftool",
        "bpftool",
        "the tests detach programs behind the daemon's back with it",
    ),
    ("dnsmasq", "dnsmasq-base", "the demo's resolver"),
    (
        "python3",
        "python3",
        "the gRPC client that is not ours, and the demo's HTTP servers",
    ),
    ("openssl", "openssl", "the CAs that are not ours"),
    ("curl", "curl", "the device's HTTP client"),
    ("tshark", "tshark", "the tests read captures with it"),
    (
        "systemctl",
        "systemd",
        "the tests boot the unit files under it, in namespaces",
    ),
];
const FOR_BENCH: &[Program] = &[
    ("ethtool", "ethtool", "sets up the benchmark's interfaces"),
    ("ipset", "ipset", "the benchmark measures against it"),
    ("iptables-legacy", "iptables", "the benchmark measures against it"),
    ("xdp-filter", "xdp-tools", "the benchmark measures against it"),
];

/// Installs what is missing, saying what and why. Fails, naming the commands to run, where it may not or cannot.
pub(crate) fn install(scope: Scope) -> Result<()> {
    // Planned anew after each step: the linker follows the LLVM of the compiler that was just installed.
    let mut tried = Vec::new();
    while let Some(step) = plan(&Machine, scope).into_iter().find(|s| !tried.contains(&s.what)) {
        eprintln!("missing: {}: {}", step.what, step.why);
        let _installed = step.ways.iter().any(perform);
        tried.push(step.what);
    }
    let left = plan(&Machine, scope);
    if left.is_empty() {
        return Ok(());
    }
    let mut text = String::from("this machine lacks what Lazaret is built or tested with:");
    for step in &left {
        text.push_str(&format!("\n  {} ({})", step.what, step.why));
        for (i, way) in step.ways.iter().enumerate() {
            text.push_str(&format!("\n    {} {}", if i == 0 { "run:" } else { "or: " }, way.text()));
        }
    }
    bail!(text)
}

/// Tells what is there and what is missing; how many are missing.
pub(crate) fn report(scope: Scope) -> usize {
    match Compiler::find() {
        Some(c) => println!(
            "ok       BPF compiler: {c}, LLVM {}",
            c.llvm().map_or_else(|| "?".into(), |v| v.to_string())
        ),
        None => println!("missing  BPF compiler"),
    }
    if let Some(path) = bpf::linker() {
        println!("ok       bpf-linker: {}", path.display());
    }
    for (program, ..) in programs(scope).filter(|p| Machine.has(p.0)) {
        println!("ok       {program}");
    }
    let steps = plan(&Machine, scope);
    for step in &steps {
        println!("missing  {}: {}", step.what, step.why);
        for way in &step.ways {
            println!("           {}", way.text());
        }
    }
    steps.len()
}

/// Something that is missing, with the ways to get it, best first.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    what: String,
    why: &'static str,
    ways: Vec<Way>,
}

/// Commands that must all succeed.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    commands: Vec<Vec<String>>,
    /// Variables for the last command.
    variables: Vec<(String, String)>,
    /// May be run here and now; otherwise it is only shown.
    allowed: bool,
}

impl Way {
    fn text(&self) -> String {
        self.commands().iter().map(shown).collect::<Vec<_>>().join(" && ")
    }

    fn commands(&self) -> Vec<Command> {
        let mut commands: Vec<Command> = (self.commands.iter())
            .map(|words| {
                let mut c = Command::new(&words[0]);
                c.args(&words[1..]);
                c
            })
            .collect();
        if let Some(last) = commands.last_mut() {
            last.envs(self.variables.iter().map(|(k, v)| (k, v)));
        }
        commands
    }
}

/// What the plan asks of the machine.
trait Probe {
    fn has(&self, program: &str) -> bool;
    fn compiler(&self) -> Option<(Compiler, Option<u32>)>;
    fn linker(&self) -> bool;
    /// Whether Python can make environments; Debian has that in a package of its own.
    fn venv(&self) -> bool;
    fn root(&self) -> bool;
}

struct Machine;

impl Probe for Machine {
    fn has(&self, program: &str) -> bool {
        let path = env::var_os("PATH").unwrap_or_default();
        // A user's path often lacks sbin, where half of these live.
        let sbin = ["/usr/sbin", "/sbin"].map(Into::into);
        env::split_paths(&path).chain(sbin).any(|d| d.join(program).is_file())
    }
    fn compiler(&self) -> Option<(Compiler, Option<u32>)> {
        Compiler::find().map(|c| (c, c.llvm()))
    }
    fn linker(&self) -> bool {
        bpf::linker().is_some()
    }
    fn venv(&self) -> bool {
        let mut python = Command::new("python3");
        python
            .args(["-c", "import ensurepip, venv"])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        python.status().is_ok_and(|s| s.success())
    }
    fn root(&self) -> bool {
        nix::unistd::geteuid().is_root()
    }
}

fn programs(scope: Scope) -> impl Iterator<Item = &'static Program> {
    FOR_TESTS
        .iter()
        .chain(FOR_BENCH.iter().filter(move |_| scope >= Scope::Bench))
}

fn plan(probe: &impl Probe, scope: Scope) -> Vec<Step> {
    let mut steps = Vec::new();
    let compiler = probe.compiler();
    if compiler.is_none() {
        let mut ways = Vec::new();
        if probe.has("rustup") {
            for add in [
                "rustup component add rust-src --toolchain nightly",
                "rustup toolchain install nightly --profile minimal --component rust-src",
            ] {
                ways.push(Way {
                    commands: vec![words(add)],
                    variables: vec![],
                    allowed: true,
                });
            }
        }
        ways.push(apt(probe, &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"]));
        steps.push(Step {
            what: "a Rust compiler for bpfel-unknown-none".into(),
            why: "compiles the programs that judge packets",
            ways,
        });
    }
    if !probe.linker() {
        let llvm = compiler.and_then(|c| c.1).unwrap_or(22);
        let install = format!("cargo install bpf-linker --locked --version {LINKER_VERSION}");
        let mut ways = Vec::new();
        if probe.has("cargo-binstall") {
            let binary = format!("cargo binstall --no-confirm bpf-linker@{LINKER_VERSION}");
            ways.push(Way {
                commands: vec![words(&binary)],
                variables: vec![],
                allowed: true,
            });
        }
        let packages = [
            format!("llvm-{llvm}-dev"),
            format!("libpolly-{llvm}-dev"),
            "zlib1g-dev".into(),
        ];
        let mut way = apt(probe, &packages.each_ref().map(String::as_str));
        way.commands
            .push(words(&format!("{install} --no-default-features --features llvm-{llvm}")));
        way.variables = vec![("LLVM_PREFIX".into(), format!("/usr/lib/llvm-{llvm}"))];
        ways.push(way);
        steps.push(Step {
            what: "bpf-linker".into(),
            why: "links the BPF object; it must know the compiler's LLVM",
            ways,
        });
    }
    for (program, package, why) in programs(scope).filter(|p| !probe.has(p.0)) {
        steps.push(Step {
            what: (*program).into(),
            why,
            ways: vec![apt(probe, &[package])],
        });
    }
    if !probe.venv() {
        steps.push(Step {
            what: "Python's venv".into(),
            why: "holds the gRPC client that is not ours",
            ways: vec![apt(probe, &["python3-venv"])],
        });
    }
    steps
}

fn apt(probe: &impl Probe, packages: &[&str]) -> Way {
    let root = probe.root();
    let sudo = if root { "" } else { "sudo " };
    let install = format!("{sudo}apt-get install -y --no-install-recommends {}", packages.join(" "));
    Way {
        commands: vec![words(&install)],
        variables: vec![],
        allowed: root && probe.has("apt-get"),
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Whether it worked; a package list that is missing or old is fetched once.
fn perform(way: &Way) -> bool {
    way.allowed
        && way.commands().iter_mut().all(|command| {
            let text = shown(command);
            eprintln!("running: {text}");
            if command.get_program() == "apt-get" {
                command.env("DEBIAN_FRONTEND", "noninteractive");
            }
            check(command).is_ok()
                || command.get_program() == "apt-get"
                    && check(Command::new("apt-get").arg("update")).is_ok()
                    && check(command).is_ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        programs: &'static [&'static str],
        compiler: Option<(Compiler, Option<u32>)>,
        linker: bool,
        root: bool,
    }
    impl Probe for Fake {
        fn has(&self, program: &str) -> bool {
            self.programs.contains(&program)
        }
        fn compiler(&self) -> Option<(Compiler, Option<u32>)> {
            self.compiler
        }
        fn linker(&self) -> bool {
            self.linker
        }
        fn venv(&self) -> bool {
            self.has("python3")
        }
        fn root(&self) -> bool {
            self.root
        }
    }

    const ALL: &[&str] = &[
        "openvpn",
        "nft",
        "ip",
        "bpftool",
        "dnsmasq",
        "python3",
        "curl",
        "openssl",
        "tshark",
        "systemctl",
        "apt-get",
    ];

    #[test]
    fn a_complete_machine_needs_nothing() {
        let probe = Fake {
            programs: ALL,
            compiler: Some((Compiler::Distribution, Some(22))),
            linker: true,
            root: true,
        };
        assert_eq!(plan(&probe, Scope::Test), []);
        let missing: Vec<String> = plan(&probe, Scope::Bench).into_iter().map(|s| s.what).collect();
        assert_eq!(missing, ["ethtool", "ipset", "iptables-legacy", "xdp-filter"]);
    }

    #[test]
    fn rustup_comes_before_the_distribution() {
        let probe = Fake {
            programs: &["rustup", "apt-get"],
            compiler: None,
            linker: true,
            root: true,
        };
        let compiler = &plan(&probe, Scope::Test)[0];
        assert!(
            compiler.ways[0].text().starts_with("rustup component add rust-src"),
            "{compiler:?}"
        );
        assert!(compiler.ways[2].text().contains("libstd-rust-web-dev-bpf"), "{compiler:?}");
        assert!(compiler.ways.iter().all(|w| w.allowed));
    }

    #[test]
    fn the_linker_follows_the_compilers_llvm() {
        let probe = Fake {
            programs: ALL,
            compiler: Some((Compiler::Nightly, Some(23))),
            linker: false,
            root: true,
        };
        let text = plan(&probe, Scope::Test)[0].ways[0].text();
        assert!(
            text.contains("llvm-23-dev") && text.contains("LLVM_PREFIX=/usr/lib/llvm-23"),
            "{text}"
        );
        assert!(text.ends_with("--no-default-features --features llvm-23"), "{text}");
    }

    #[test]
    fn without_root_it_only_says_what_to_run() {
        let probe = Fake {
            programs: &["apt-get"],
            compiler: Some((Compiler::Nightly, Some(22))),
            linker: true,
            root: false,
        };
        for step in plan(&probe, Scope::Bench) {
            assert!(
                step.ways
                    .iter()
                    .all(|w| !w.allowed && w.text().starts_with("sudo apt-get install")),
                "{step:?}"
            );
        }
    }
}
