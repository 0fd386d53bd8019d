//! The core's servers, real ones: HTTP by Python's http.server, DNS by dnsmasq.

use std::{
    fs,
    net::{IpAddr, TcpListener},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    netns::Namespace,
    process::{Process, output, until},
    site,
};

const LIMIT: Duration = Duration::from_secs(60);

/// An HTTP server on port 80 that serves `page` as `/` and a file of `mib` MiB of zeros as `/big`.
///
/// # Errors
/// It does not answer.
pub fn http(core: &Namespace, at: IpAddr, page: &str, mib: u64, folder: &Path) -> Result<Process> {
    let documents = folder.join(format!("http-{at}"));
    fs::create_dir_all(&documents)?;
    fs::write(documents.join("index.html"), format!("{page}\n"))?;
    fs::File::create(documents.join("big"))?.set_len(mib << 20)?;
    let mut server = core.command("python3");
    server.args([
        "-m",
        "http.server",
        "80",
        "--protocol",
        "HTTP/1.1",
        "--bind",
        &at.to_string(),
        "--directory",
    ]);
    let process = Process::spawn(server.arg(&documents), &folder.join(format!("http-{at}.log")))?;
    answers(core, at, 80).with_context(|| process.log())?;
    Ok(process)
}

/// A resolver that knows the DM server's name and nothing else.
///
/// # Errors
/// It does not start.
pub fn resolver(core: &Namespace, folder: &Path) -> Result<Process> {
    let mut server = core.command("dnsmasq");
    server.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--user=root",
    ]);
    server.args(["--log-facility=-", "--log-queries", "--pid-file=", "--local=/#/"]);
    server.arg(format!("--listen-address={}", site::RESOLVER));
    server.arg(format!("--host-record={},{},{}", site::DM_NAME, site::DM, site::DM6));
    let mut process = Process::spawn(&mut server, &folder.join("dnsmasq.log"))?;
    process.prints("started", LIMIT)?;
    Ok(process)
}

/// `curl` on the device, with the core's resolver as its only one. Other arguments go before the URL.
///
/// The device's shell has a mount namespace of its own, in which the resolver's address lies over the host's.
///
/// # Errors
/// The files cannot be written.
pub fn curl(device: &Namespace, folder: &Path) -> Result<Command> {
    let (resolvers, services) = (folder.join("resolv.conf"), folder.join("nsswitch.conf"));
    fs::write(
        &resolvers,
        format!("nameserver {}\noptions timeout:1 attempts:1\n", site::RESOLVER),
    )?;
    fs::write(&services, "hosts: dns\n")?;
    let mut command = device.command("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-c"]);
    command.arg("mount --bind \"$1\" /etc/resolv.conf && mount --bind \"$2\" /etc/nsswitch.conf && shift 2 && exec curl \"$@\"");
    command
        .arg("sh")
        .arg(resolvers)
        .arg(services)
        .args(["--silent", "--show-error", "--noproxy", "*"]);
    Ok(command)
}

/// Gets a page from the device, within `limit`.
///
/// # Errors
/// curl's, with what it says.
pub fn fetch(device: &Namespace, url: &str, limit: Duration, folder: &Path) -> Result<String> {
    let seconds = limit.as_secs_f32().to_string();
    output(curl(device, folder)?.args(["--fail", "--max-time", &seconds, url]))
}

/// Takes TCP connections inside `at`'s namespace for as long as this process lives, and closes each.
///
/// # Errors
/// The port is taken.
pub fn listen(of: &Namespace, at: IpAddr, port: u16) -> Result<()> {
    let listener = of.run(|| TcpListener::bind((at, port)))?;
    thread::spawn(move || listener.incoming().for_each(drop));
    Ok(())
}

/// Waits until a TCP port answers, asked from inside `from`.
///
/// # Errors
/// It does not within ten seconds.
pub fn answers(from: &Namespace, at: IpAddr, port: u16) -> Result<()> {
    until(LIMIT, &format!("{at} port {port} answers"), || {
        Ok(reaches(from, at, port, Duration::from_secs(1)))
    })
}

/// Whether a TCP connection can be made from inside `from` within `limit`.
#[must_use]
pub fn reaches(from: &Namespace, at: IpAddr, port: u16, limit: Duration) -> bool {
    from.run(|| std::net::TcpStream::connect_timeout(&(at, port).into(), limit))
        .is_ok()
}
