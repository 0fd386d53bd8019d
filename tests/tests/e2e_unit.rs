//! The unit files and the example configuration that are shipped, under a systemd that runs: a boot, the daemon's life in the unit's confinement,
//! its death, a firewall that is loaded anew, and a host that comes back.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use lazaret_proto::v1::Enforcement;
use lazaret_tests::{api::Client, machine::Machine, process::until, require};

const LIMIT: Duration = Duration::from_secs(60);
const SOCKET: &str = "/run/lazaret/lazaret.sock";
/// What a VPN server and the host's network are: they come when the network may, and note whether the floor was closed by then.
const NETWORK: &str = "[Unit]
Wants=network-pre.target
After=network-pre.target
Before=lazaret.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -euc 'nft list table inet lazaret > /run/floor-at-boot; ip link set lo up; ip link add eth1 type veth peer name core; ip link set eth1 up; ip link set core up; ip tuntap add tun0 mode tun; ip link set tun0 up'
";

/// The package's files, where a package puts them, and what README has the administrator do.
fn install(root: &Path) -> Result<()> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let units = root.join("etc/systemd/system");
    for unit in ["lazaret.service", "lazaret-floor.service"] {
        fs::copy(deploy.join(unit), units.join(unit)).with_context(|| unit.to_owned())?;
    }
    let wants = |target: &str, unit: &str| {
        let directory = units.join(format!("{target}.wants"));
        fs::create_dir_all(&directory)?;
        std::os::unix::fs::symlink(units_path(unit), directory.join(unit))
    };
    fs::write(units.join("network.service"), NETWORK)?;
    wants("gateway.target", "network.service")?;
    wants("gateway.target", "lazaret.service")?;
    wants("sysinit.target", "lazaret-floor.service")?;
    wants("sysinit.target", "nftables.service")?;
    let folder = root.join("etc/lazaret");
    fs::create_dir_all(&folder)?;
    let example = fs::read_to_string(deploy.join("lazaret.toml"))?;
    let with_log = example.replacen("\n[store]\n", "\n[store]\naudit_log = \"/var/log/lazaret/audit.jsonl\"\n", 1);
    assert_ne!(with_log, example);
    fs::write(folder.join("lazaret.toml"), with_log)?;
    Ok(())
}

fn units_path(unit: &str) -> String {
    let folder = if unit == "nftables.service" { "/lib" } else { "/etc" };
    format!("{folder}/systemd/system/{unit}")
}

fn certificates(machine: &Machine) {
    let made = machine.run(
        "cd /etc/lazaret; lazaret pki init --dir pki; \
         lazaret pki issue --dir pki --server --dns gw.example.test --name gateway --out /etc/lazaret; cp pki/ca.pem ca.pem",
    );
    made.unwrap();
}

/// Waits until the unit says so.
fn unit(machine: &Machine, wanted: &str) {
    let found = until(LIMIT, wanted, || {
        let shown = machine.run("systemctl show lazaret --property ActiveState,NRestarts");
        Ok(wanted
            .split(' ')
            .all(|w| shown.as_ref().is_ok_and(|s| s.lines().any(|l| l == w))))
    });
    found.unwrap_or_else(|e| panic!("{e}\n{}", machine.run("journalctl --no-pager -n 40").unwrap_or_default()));
}

/// All programs are attached, and nothing is wrong.
fn serves(machine: &Machine) -> Client {
    let client = Client::local(&machine.path(SOCKET)).unwrap();
    until(LIMIT, "all programs are attached", || {
        let status = client.status()?;
        let names: Vec<&str> = status
            .interfaces
            .iter()
            .filter(|i| !i.hooks.is_empty() && i.hooks.iter().all(|h| h.program_id != 0))
            .map(|i| i.name.as_str())
            .collect();
        Ok(["eth1", "tun0"].iter().all(|n| names.contains(n)) && status.floor == "closed")
    })
    .unwrap();
    client
}

#[test]
fn the_shipped_units() {
    require!(Root, Bpf, Tun, Program("systemctl"), Program("nft"));
    let mut machine = Machine::new(install).unwrap();
    machine.boot().unwrap();
    // No certificates yet: it does not serve, is tried again for as long as it takes, and the floor is closed since before there was a network.
    unit(&machine, "NRestarts=2");
    assert!(machine.run("cat /run/floor-at-boot").unwrap().contains("table inet lazaret"));
    let said = machine.run("journalctl --no-pager -u lazaret").unwrap();
    assert!(said.contains("/etc/lazaret/gateway.pem"), "{said}");
    certificates(&machine);
    unit(&machine, "ActiveState=active");

    // Its life, in the unit's confinement.
    let client = serves(&machine);
    client.register("phone", "staff").unwrap();
    let opened = client.open("vpn", "phone", &["10.66.0.5"], "tun0").unwrap();
    assert_eq!(opened.enforcement(), Enforcement::Enforced);
    assert_eq!(client.revoked("phone").unwrap().enforcement(), Enforcement::Enforced);
    let explained = machine
        .run("lazaret explain --from 10.66.0.5 --to 192.0.2.53 --proto udp --port 53")
        .unwrap();
    assert!(explained.contains("PASS: rule"), "{explained}");
    let modes = machine
        .run("stat -c %a /var/lib/lazaret /var/log/lazaret /var/lib/lazaret/lazaret.db")
        .unwrap();
    assert_eq!(modes.split_whitespace().collect::<Vec<_>>(), ["700", "700", "600"]);
    until(LIMIT, "the audit is in the log's directory", || {
        let log = machine.run("cat /var/log/lazaret/audit.jsonl || true")?;
        Ok(log.contains("RegisterDevices"))
    })
    .unwrap();
    machine.run("systemctl reload lazaret").unwrap();
    until(LIMIT, "certificates are read again", || {
        Ok(machine.run("journalctl --no-pager -u lazaret")?.contains("were read again"))
    })
    .unwrap();

    // Killed, it comes back and knows who is there.
    let before: u64 = machine
        .run("systemctl show lazaret --property NRestarts --value")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    machine
        .run("kill -KILL $(systemctl show lazaret --property MainPID --value)")
        .unwrap();
    unit(&machine, &format!("NRestarts={} ActiveState=active", before + 1));
    assert_eq!(serves(&machine).status().unwrap().sessions, 1);

    // Stopped, its programs go on judging. A firewall that is loaded anew takes the floor along, and it is closed again.
    machine.run("systemctl stop lazaret").unwrap();
    let attached = machine.run("ip -details link show eth1; bpftool link show").unwrap();
    assert!(attached.contains("prog/xdp"), "{attached}");
    for what in ["restart", "reload"] {
        machine.run(&format!("systemctl {what} nftables")).unwrap();
        // It is closed by another job of the same transaction, after the one that is waited for.
        let closed = until(LIMIT, what, || {
            let tables = machine.run("nft list tables")?;
            Ok(["inet lazaret", "inet filter"].iter().all(|t| tables.contains(t)))
        });
        closed.unwrap_or_else(|e| panic!("{e}\n{}", machine.run("journalctl --no-pager -n 20").unwrap_or_default()));
    }
    machine.run("systemctl start lazaret").unwrap();
    assert_eq!(serves(&machine).status().unwrap().sessions, 1);

    // The host comes back after a cut of power.
    machine.switch_off().unwrap();
    machine.boot().unwrap();
    assert!(machine.run("cat /run/floor-at-boot").unwrap().contains("table inet lazaret"));
    unit(&machine, "ActiveState=active");
    assert_eq!(serves(&machine).status().unwrap().devices, 1);
}
