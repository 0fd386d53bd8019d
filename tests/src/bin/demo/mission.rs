//! The mission, step by step: a device connects, is quarantined, released, and put back in the middle of a download; the daemon dies.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use lazaret_proto::v1::{self as pb, Enforcement};
use lazaret_tests::{
    api::{Client, read_back_everywhere},
    gateway::Gateway,
    openvpn,
    packets::{Seen, Watcher},
    process::{Process, until},
    services, site,
    site::Site,
};

use crate::story::Story;

const DEVICE: &str = "phone-17";
/// Size of the download, and how fast the device reads it: it would last 50 s.
const DOWNLOAD_MIB: u64 = 400;
const RATE: &str = "8M";
/// How long a denied connection is waited for.
const PATIENCE: Duration = Duration::from_millis(1200);
const LIMIT: Duration = Duration::from_secs(10);

/// Tells it; the exit code says whether everything was as it should be.
pub(crate) fn tell(hold: bool) -> ExitCode {
    let mut story = Story::new();
    let mut stage = None;
    match mission(&mut story, &mut stage) {
        Ok(()) => {
            story.end();
            if let Some(stage) = stage.as_ref().filter(|_| hold) {
                stage.invite(&story);
                loop {
                    thread::park();
                }
            }
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("\nerror: {e:#}");
            if let Some(log) = stage
                .as_ref()
                .and_then(|s| fs::read_to_string(s.gateway.folder().join("lazaret.log")).ok())
            {
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                eprintln!("\nlast lines of the daemon's log:");
                tail.iter().rev().for_each(|line| eprintln!("  {line}"));
            }
            ExitCode::FAILURE
        }
    }
}

/// Everything that runs, in the order in which it should end.
struct Stage {
    client: Option<Process>,
    addresses: Vec<IpAddr>,
    mdm: Client,
    gateway: Gateway,
    vpn: openvpn::Authority,
    _processes: Vec<Process>,
    site: Site,
}

fn mission(story: &mut Story, stage: &mut Option<Stage>) -> Result<()> {
    let stage = stage.insert(open(story)?);
    connect(story, stage)?;
    quarantine(story, stage)?;
    release(story, stage)?;
    revoke_while_downloading(story, stage)?;
    kill_the_daemon(story, stage)?;
    show_the_end(story, stage)
}

fn open(story: &mut Story) -> Result<Stage> {
    story.step("A gateway: three namespaces, a DM server, a mail server, a resolver, and Lazaret before the VPN");
    story.note("device 10.8.0.2 -- 10.8.0.1 gw 10.9.0.1 -- core: DM 10.9.0.10, mail 10.9.0.20, resolver 10.9.0.53");
    let site = Site::new()?;
    site.underlay()?;
    let mut gateway = Gateway::new(&site, "tun0")?;
    let folder = gateway.folder().to_owned();
    let processes = vec![
        services::http(&site.core, site::DM, "DM server: here is your profile", 1, &folder)?,
        services::http(&site.core, site::MAIL, "mail server: you have mail", DOWNLOAD_MIB, &folder)?,
        services::http(&site.core, site::MAIL6, "mail server: you have mail, by IPv6", 1, &folder)?,
        services::resolver(&site.core, &folder)?,
    ];
    let check = format!("check {}", gateway.config().display());
    story.command("gw", "lazaret check lazaret.toml", &gateway.cli(&check)?);
    gateway.start()?;
    story.note("`lazaret run` is up: the floor is closed, tun0 is waited for. Now OpenVPN starts, with `lazaret hook openvpn`.");
    let vpn = openvpn::Authority::new(&folder)?;
    let mut processes = processes;
    processes.push(openvpn::server(&site.gw, &vpn, 99, &openvpn::hooks(&gateway))?);
    gateway.attached("tun0")?;
    gateway.attached("core0")?;
    story.command("gw", "lazaret status", &gateway.cli("status")?);
    story.check(
        "programs are attached to tun0 and core0, and the floor is closed",
        gateway.local()?.status()?.floor == "closed",
    )?;
    let mdm = gateway.mdm()?;
    let registered = mdm.register(DEVICE, "staff")?;
    story.note(&format!(
        "The MDM, over mTLS with a certificate of `lazaret pki`, registers {DEVICE}."
    ));
    story.check(
        "it is registered",
        registered
            .devices
            .first()
            .is_some_and(|d| d.state() == pb::DeviceState::Registered),
    )?;
    Ok(Stage {
        client: None,
        addresses: Vec::new(),
        mdm,
        gateway,
        vpn,
        _processes: processes,
        site,
    })
}

fn connect(story: &mut Story, stage: &mut Stage) -> Result<()> {
    story.step("The device connects, and lands in quarantine");
    let (client, addresses) = openvpn::connect(&stage.site.device, &stage.vpn, DEVICE)?;
    (stage.client, stage.addresses) = (Some(client), addresses);
    story.command(
        "device",
        "ip -brief address show dev tun0",
        &stage.site.device.ip("-brief address show dev tun0 scope global")?,
    );
    story.command("gw", "lazaret sessions", &stage.gateway.cli("sessions")?);
    story.command("gw", "lazaret addresses", &stage.gateway.cli("addresses")?);
    for address in &stage.addresses {
        let pool = stage.kernel_address(*address)?.current_pool;
        story.check(
            &format!("the kernel judges {address} by the pool quarantine"),
            pool == "quarantine",
        )?;
    }
    Ok(())
}

fn quarantine(story: &mut Story, stage: &mut Stage) -> Result<()> {
    story.step("In quarantine: the DM server and nothing else");
    stage.expect_dm(story)?;

    let other = stage.curl(story, "http://mail.example.test/", LIMIT);
    story.check(
        "no other name resolves",
        other.is_err_and(|e| e.to_string().contains("resolve host")),
    )?;
    let inside = Watcher::new(&stage.site.core, |p| !p.outgoing && [site::MAIL, site::MAIL6].contains(&p.to))?;
    let before = stage.gateway.local()?.counted("no_rule")?;
    stage.expect_no_mail(story, site::MAIL)?;
    stage.expect_no_mail(story, site::MAIL6)?;
    story.command("gw", "lazaret denials --limit 4", &stage.gateway.cli("denials --limit 4")?);
    let denied = stage.gateway.local()?.counted("no_rule")? - before;
    story.check(&format!("the counter no_rule went up by {denied}"), denied > 0)?;
    story.check(
        "not one packet to the mail server arrived in the core",
        inside.seen().is_empty(),
    )
}

fn release(story: &mut Story, stage: &mut Stage) -> Result<()> {
    story.step("The MDM reports: policy applied");
    let before = stage.mdm.device(DEVICE)?.gateway_uri;
    let sent = SystemTime::now();
    let answer = stage.mdm.applied(DEVICE)?;
    let took = sent.elapsed().unwrap_or_default();
    story.note(&format!(
        "ReportPolicyApplied {DEVICE}: {:?} after {:.1} ms",
        answer.enforcement(),
        millis(took)
    ));
    for prefix in &answer.prefixes {
        for r in &prefix.read_backs {
            let place = format!("{} {} (program {}, map {})", r.interface, r.hook, r.program_id, r.map_id);
            story.note(&format!("  {} read back at {place}: {}", prefix.prefix, r.pool));
        }
    }
    story.check(
        "it is durable, and read back at every hook",
        answer.enforcement() == Enforcement::Enforced && read_back_everywhere(&answer.prefixes),
    )?;
    story.note(&format!("GatewayURI before: {before}"));
    story.note(&format!("GatewayURI after:  {}", answer.gateway_uri));
    story.check(
        "the GatewayURI is the full-service pool's",
        before == "enrol.vpn.example.test" && answer.gateway_uri == "vpn.example.test",
    )?;
    for mail in [site::MAIL, site::MAIL6] {
        let page = stage.curl(story, &url(mail), LIMIT);
        story.check(
            &format!("the mail server answers at {mail}"),
            page.is_ok_and(|p| p.contains("you have mail")),
        )?;
    }
    Ok(())
}

fn revoke_while_downloading(story: &mut Story, stage: &mut Stage) -> Result<()> {
    story.step("A download runs; the MDM reports: policy revoked");
    let device = *stage
        .addresses
        .iter()
        .find(|a| a.is_ipv4())
        .context("the device has an IPv4 address")?;
    let tun = stage.site.gw.ifindex("tun0")?;
    let up = Watcher::new(&stage.site.core, move |p| {
        !p.outgoing && p.from == device && p.to == site::MAIL
    })?;
    let down = Watcher::new(&stage.site.gw, move |p| {
        p.outgoing && p.ifindex == tun && p.to == device && p.from == site::MAIL
    })?;
    let file = stage.gateway.folder().join("download");
    let mut curl = services::curl(&stage.site.device, stage.gateway.folder())?;
    let address = format!("http://{}/big", site::MAIL);
    let mut download = Process::spawn(
        curl.args(["--limit-rate", RATE, "--output"]).arg(&file).arg(&address),
        &stage.gateway.folder().join("curl.log"),
    )?;
    let size = || fs::metadata(&file).map_or(0, |m| m.len());
    until(LIMIT, "the download runs", || Ok(size() > 8 << 20))?;
    story.command(
        "device",
        &format!("curl --limit-rate {RATE} --output download {address}"),
        &format!("{} MiB so far ...", size() >> 20),
    );

    let sent = SystemTime::now();
    let answer = stage.mdm.revoked(DEVICE)?;
    let acknowledged = SystemTime::now();
    thread::sleep(PATIENCE);
    let (up, down) = (up.seen(), down.seen());
    let packets: Vec<&Seen> = up.iter().chain(&down).collect();
    let last = packets
        .iter()
        .map(|p| p.at)
        .max()
        .context("no packet of the download was seen")?;
    let late = packets.iter().filter(|p| p.at > acknowledged).count();
    story.note(&format!(
        "ReportPolicyRevoked {DEVICE}: {:?}, acknowledged after {:.1} ms",
        answer.enforcement(),
        since(sent, acknowledged)
    ));
    story.note(&format!(
        "{} packets of the download passed ({} from the device, seen in the core; {} to it, seen leaving by tun0)",
        packets.len(),
        up.len(),
        down.len()
    ));
    story.note(&format!(
        "the last one passed {:+.2} ms after the signal was sent",
        since(sent, last)
    ));
    story.check(
        "the restriction is in force and durable",
        answer.enforcement() == Enforcement::Enforced,
    )?;
    story.check(&format!("packets that passed after the acknowledgement: {late}"), late == 0)?;
    let cut = size();
    thread::sleep(Duration::from_millis(500));
    let grows = size() > cut;
    let running = download.ended()?.is_none();
    let unfinished = size() < DOWNLOAD_MIB << 20;
    story.check(
        &format!("the download stays unfinished at {} of {DOWNLOAD_MIB} MiB", size() >> 20),
        running && unfinished && !grows,
    )?;
    story.check(
        &format!("the GatewayURI is back: {}", answer.gateway_uri),
        answer.gateway_uri == "enrol.vpn.example.test",
    )?;
    stage.expect_no_mail(story, site::MAIL)?;
    stage.expect_dm(story)
}

fn kill_the_daemon(story: &mut Story, stage: &mut Stage) -> Result<()> {
    story.step("The daemon is killed: the kernel goes on enforcing");
    let counted = stage.gateway.local()?.counted("no_rule")?;
    let map = stage.kernel_address(stage.addresses[0])?.map_id;
    let id = stage.gateway.daemon()?.id();
    stage.gateway.kill()?;
    story.command("gw", &format!("kill -9 {id}    # lazaret"), "");
    stage.expect_no_mail(story, site::MAIL)?;
    stage.expect_dm(story)?;
    stage.gateway.start()?;
    stage.gateway.attached("tun0")?;
    story.note("`lazaret run` again: it adopts what is in the kernel, and reconciles.");
    stage.mdm = stage.gateway.mdm()?;
    let adopted = stage.kernel_address(stage.addresses[0])?.map_id == map;
    story.check(
        &format!("map {map} is still the one, and its counters have gone on"),
        adopted && stage.gateway.local()?.counted("no_rule")? > counted,
    )?;
    stage.expect_no_mail(story, site::MAIL)?;
    let device = stage.mdm.device(DEVICE)?;
    story.check(
        "the device is still known, quarantined, with its session",
        device.state() == pb::DeviceState::Quarantined && device.sessions.len() == 1,
    )
}

fn show_the_end(story: &mut Story, stage: &mut Stage) -> Result<()> {
    story.step("The pools, the addresses in the kernel's map, and the counters");
    for command in ["pools", "addresses", "counters", "device show phone-17"] {
        story.command("gw", &format!("lazaret {command}"), &stage.gateway.cli(command)?);
    }
    story.command("gw", "lazaret status", &stage.gateway.cli("status")?);
    Ok(())
}

impl Stage {
    /// An address, as the kernel's map has it.
    fn kernel_address(&self, address: IpAddr) -> Result<pb::Address> {
        Ok(self.gateway.local()?.address(&address.to_string())?)
    }

    /// `curl` on the device, shown as typed.
    fn curl(&self, story: &Story, url: &str, limit: Duration) -> Result<String> {
        let page = services::fetch(&self.site.device, url, limit, self.gateway.folder());
        let shown = page.as_ref().map_or_else(
            |e| e.to_string().rsplit("curl: ").next().unwrap_or_default().to_owned(),
            Clone::clone,
        );
        story.command("device", &format!("curl {url}"), &shown);
        page
    }

    fn expect_dm(&self, story: &mut Story) -> Result<()> {
        let page = self.curl(story, &format!("http://{}/", site::DM_NAME), LIMIT);
        story.check(
            &format!("{} resolves, and the DM server answers", site::DM_NAME),
            page.is_ok_and(|p| p.contains("your profile")),
        )
    }

    fn expect_no_mail(&self, story: &mut Story, mail: IpAddr) -> Result<()> {
        let page = self.curl(story, &url(mail), PATIENCE);
        story.check(&format!("the mail server cannot be reached at {mail}"), page.is_err())
    }

    /// What to try while it stays up.
    fn invite(&self, story: &Story) {
        let (gw, device, core) = (&self.site.gw, &self.site.device, &self.site.core);
        let lazaret = lazaret_tests::gateway::binary();
        let environment = format!("LAZARET_SOCKET={}", self.gateway.socket().display());
        println!("\nIt stays up until Ctrl-C. To try, in other terminals:");
        let name = |p: PathBuf| p.display().to_string();
        for (what, line) in [
            ("a shell on the gateway", gw.entrance()),
            ("a shell on the device", device.entrance()),
            ("a shell in the core", core.entrance()),
            (
                "the gateway's state",
                format!("{environment} {} status", name(lazaret.clone())),
            ),
            (
                "release the device",
                format!(
                    "{environment} {} device release {DEVICE} --for 1h --reason demo",
                    name(lazaret.clone())
                ),
            ),
            (
                "the mail server, from the device",
                format!("{} curl --max-time 3 {}", device.entrance(), url(site::MAIL)),
            ),
            (
                "put it back",
                format!("{environment} {} device quarantine {DEVICE}", name(lazaret.clone())),
            ),
            (
                "what was denied, and why",
                format!("{environment} {} denials --limit 5", name(lazaret)),
            ),
            (
                "the daemon's log",
                format!("tail -f {}", Path::new(self.gateway.folder()).join("lazaret.log").display()),
            ),
        ] {
            story.command(what, &line, "");
        }
    }
}

fn url(at: IpAddr) -> String {
    if at.is_ipv6() {
        format!("http://[{at}]/")
    } else {
        format!("http://{at}/")
    }
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// Milliseconds from one time to another, which may be before it.
fn since(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).map_or_else(|e| -millis(e.duration()), millis)
}
