//! `cargo xtask demo`: the whole mission in network namespaces of its own. The outer process only waits and cleans up, so that nothing is
//! left behind however the inner one, which tells the story, comes to its end.

mod mission;
mod story;

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lazaret_tests::{
    netns,
    require::Need::{self, Bpf, Program, Root, Tun},
    scratch,
};
use nix::sys::{prctl, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

const NEEDS: &[Need] = &[
    Root,
    Bpf,
    Tun,
    Program("openvpn"),
    Program("nft"),
    Program("ip"),
    Program("dnsmasq"),
    Program("python3"),
    Program("curl"),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let hold = arguments.iter().any(|a| a == "--hold");
    if let Some(unknown) = arguments.iter().find(|a| !["--hold", "--inner"].contains(&a.as_str())) {
        eprintln!("error: there is no option {unknown}; usage: demo [--hold]");
        return ExitCode::from(2);
    }
    let done = if arguments.iter().any(|a| a == "--inner") {
        return mission::tell(hold);
    } else if let Some(missing) = Need::missing(NEEDS) {
        Err(anyhow::anyhow!("the demo {missing}"))
    } else {
        outer(hold)
    };
    done.unwrap_or_else(|e| {
        eprintln!("error: {e:#}");
        ExitCode::FAILURE
    })
}

/// Runs the inner process to its end, or to Ctrl-C, and sweeps up after it.
fn outer(hold: bool) -> Result<ExitCode> {
    for signal in [signal::SIGINT, signal::SIGTERM, signal::SIGHUP] {
        let action = signal::SigAction::new(
            signal::SigHandler::Handler(interrupted),
            signal::SaFlags::SA_RESTART,
            signal::SigSet::empty(),
        );
        // SAFETY: the handler stores to an atomic and does nothing else, which is safe at any point of the program.
        unsafe { signal::sigaction(signal, &action) }.context("cannot take signals")?;
    }
    let mut inner = Command::new(std::env::current_exe()?);
    inner.arg("--inner").args(hold.then_some("--hold"));
    // A group of its own: a Ctrl-C reaches this process alone, and `finish` decides.
    inner.process_group(0);
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { inner.pre_exec(|| Ok(prctl::set_pdeathsig(signal::SIGKILL)?)) };
    let mut inner = inner.spawn().context("cannot start the inner process")?;
    let ended = loop {
        if let Some(status) = inner.try_wait()? {
            break Some(status);
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            let _gone_already = inner.kill();
            inner.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    // Its children die with it; what is left has its process id in its name.
    netns::sweep();
    scratch::sweep();
    Ok(match ended {
        Some(status) if status.success() => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
        None => {
            println!("\ninterrupted; namespaces, processes and files are removed");
            ExitCode::from(130)
        }
    })
}

extern "C" fn interrupted(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}
