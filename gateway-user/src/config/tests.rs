//! Every mistake with its line, and the example.

mod example;
mod files;
mod life;
mod metrics;
mod sources;
mod verdict;
mod warnings;

use std::path::Path;

use super::*;
use crate::model::Trust;

/// Line 1 is `mode`; the parts are put together so that a test can replace one.
struct File {
    head: &'static str,
    interfaces: &'static str,
    quarantine: &'static str,
    full: &'static str,
    policies: &'static str,
}

const GOOD: File = File {
    head: "mode = \"enforce\"\n",
    interfaces: "[[interface]]\nname = \"tun*\"\nrole = \"device\"\n[[interface]]\nname = \"eth1\"\nrole = \"core\"\n",
    quarantine: "[[pool]]\nname = \"q\"\nkind = \"quarantine\"\nprefixes = [\"10.66.0.0/16\", \"fd00:66::/64\"]\nreserved = [\"10.66.0.1\"]\npolicy = \"dm\"\ngateway_uri = \"q.example.org\"\n",
    full: "[[pool]]\nname = \"staff\"\nkind = \"full-service\"\nprefixes = [\"10.67.0.0/16\"]\npolicy = \"everything\"\nfallback = \"q\"\ngateway_uri = \"vpn.example.org\"\nlease = \"24h\"\n",
    policies: "[[policy]]\nname = \"everything\"\nallow = \"all\"\n[[policy]]\nname = \"dm\"\n[[policy.rule]]\nto = [\"10.1.0.5/32\"]\nprotocol = \"tcp\"\nports = [\"443\"]\n",
};

impl File {
    fn text(&self) -> String {
        [self.head, self.interfaces, self.quarantine, self.full, self.policies].concat()
    }
}

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(Path::new("f"), text)
}

/// The mistakes of a file, one a line.
fn errors(text: &str) -> String {
    parse(text).map(|_| ()).unwrap_err().to_string()
}

/// Asserts that a file has exactly one mistake, in this line, with `parts` in its message.
#[track_caller]
fn at(text: &str, line: usize, parts: &[&str]) {
    let all = errors(text);
    assert_eq!(all.lines().count(), 1, "one mistake in:\n{text}\nfound:\n{all}");
    assert!(all.starts_with(&format!("f:{line}: ")), "line {line}: {all}");
    for part in parts {
        assert!(all.contains(part), "{part:?} in: {all}");
    }
}

/// As [`at`], in the line that holds `marker`.
#[track_caller]
fn one(text: &str, marker: &str, parts: &[&str]) {
    let line = text
        .lines()
        .position(|l| l.contains(marker))
        .expect("the marker is in the text")
        + 1;
    at(text, line, parts);
}

/// The good file with one text replaced by another.
#[track_caller]
fn with(from: &str, to: &str) -> String {
    let text = GOOD.text();
    assert_eq!(text.matches(from).count(), 1, "{from:?} stands once");
    text.replace(from, to)
}

#[test]
fn a_good_file() {
    let config = parse(&GOOD.text()).unwrap();
    assert_eq!(config.mode, Mode::Enforce);
    assert_eq!(config.paths, Paths::default());
    assert_eq!(config.socket.path, Path::new(Socket::PATH));
    assert_eq!(config.tables, Tables::default());
    assert!(config.api.is_none());
    assert_eq!(config.pools[0].id, PoolId(1));
    assert_eq!(config.pools[1].fallback, Some(PoolId(1)));
    assert_eq!(config.pools[1].lease, Some(Duration::from_secs(86_400)));
    assert_eq!(config.resting(&config.pools[1]), PoolId(1));
    assert_eq!(config.home("10.66.0.1".parse().unwrap()), None);
    assert_eq!(config.home("10.66.0.2".parse().unwrap()).unwrap().name.as_str(), "q");
    assert_eq!(config.role(&"tun7".parse().unwrap()), Some(InterfaceRole::Device));
    let Allow::Rules(rules) = &config.policies[1].allow else {
        panic!("rules")
    };
    assert_eq!(
        (rules[0].id, rules[0].protocol, &rules[0].ports[..]),
        (1, Protocol::Tcp, &[443..=443][..])
    );
}

#[test]
fn every_section_can_be_written() {
    let head = r#"mode = "observe"
[paths]
state = "/tmp/s"
pins = "/tmp/p"
[api]
listen = "[::1]:9443"
certificate = "/c"
key = "/k"
client_ca = ["/a", "/b"]
retiring_ca = "/old"
crl = ["/c1", "/c2"]
vpn_without_source = "allow"
renewal_days = 60
warn_days = 7
max_message = 1_048_576
max_connections = 8
max_connections_per_client = 4
idle_timeout = "1m"
max_streams = 9
handshake_timeout = "2s"
[socket]
path = "/tmp/x.sock"
vpn_group = "vpn"
viewer_group = "adm"
[process]
user = "lazaret"
[log]
level = "info,gateway_user=debug"
format = "json"
[devices]
unknown = "quarantine"
sessions_per_device = 2
outside_window = "block"
quarantine_deadline = "off"
max_exception = "1d"
limited_mdm = 500
[proof]
direct_signal = false
max_signal_age = "1h"
offer_ttl = "1m"
[[source]]
name = "vpn-1"
heartbeat = "30s"
[[source]]
name = "vpn-2"
heartbeat = "1h"
interfaces = ["tun2", "tun3*"]
prefixes = ["10.66.1.0/24"]
[store]
request_memory = "2h"
audit_entries = 5_000
audit_log = "/var/log/audit.jsonl"
[tables]
addresses = 1000
buckets6 = 1024
denials_bytes = 0x10_0000
fragments = 128
"#;
    let text = File { head, ..GOOD }.text().replace(
        "lease = \"24h\"\n",
        "lease = \"24h\"\nmin_trust = \"certificate\"\ntable = 1066\n[[pool.route]]\nto = \"0.0.0.0/0\"\nvia = \"192.0.2.1\"\n",
    );
    let config = parse(&text).unwrap();
    let api = config.api.as_ref().unwrap();
    assert_eq!((api.max_message, api.max_connections, api.max_streams), (1 << 20, 8, 9));
    assert_eq!(api.handshake_timeout, Duration::from_secs(2));
    assert_eq!((api.client_ca.len(), api.retiring_ca.len(), api.crl.len()), (2, 1, 2));
    assert_eq!((api.renewal_days, api.warn_days, api.max_connections_per_client), (60, 7, 4));
    assert_eq!((api.vpn_without_source, api.idle_timeout), (true, Duration::from_mins(1)));
    assert_eq!(
        (config.tables.addresses, config.tables.buckets6, config.tables.denials_bytes),
        (1000, 1024, 1 << 20)
    );
    let devices = Devices {
        unknown: UnknownDevice::Quarantine,
        sessions: 2,
        outside_window: OutsideWindow::Block,
        deadline: None,
        after_deadline: AfterDeadline::Block,
        max_exception: Duration::from_secs(86_400),
        limited_mdm: 500,
    };
    assert_eq!(config.devices, devices);
    let proofs = Proofs {
        direct_signal: false,
        max_signal_age: Duration::from_secs(3600),
        offer_ttl: Duration::from_secs(60),
    };
    assert_eq!(config.proofs, proofs);
    let sources: Vec<_> = config
        .sources
        .iter()
        .map(|s| (s.name.as_str(), s.heartbeat.unwrap().as_secs()))
        .collect();
    assert_eq!(sources, [("vpn-1", 30), ("vpn-2", 3600)]);
    let lists = config
        .sources
        .iter()
        .map(|s| (s.interfaces.as_ref().map(Vec::len), s.prefixes.as_ref().map(Vec::len)));
    assert_eq!(lists.collect::<Vec<_>>(), [(None, None), (Some(2), Some(1))]);
    let keep = Keep {
        requests: Duration::from_secs(7200),
        audit: 5000,
        audit_log: Some("/var/log/audit.jsonl".into()),
    };
    assert_eq!(config.keep, keep);
    assert_eq!(config.pools[1].min_trust, Trust::Certificate);
    assert_eq!(config.pools[1].table.as_ref().unwrap().routes.len(), 1);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.socket.vpn_group.as_deref(), Some("vpn"));
    assert_eq!(config.user.as_deref(), Some("lazaret"));
}

#[test]
fn unknown_keys_and_wrong_types() {
    one(
        &with("mode = ", "mod = "),
        "mod = ",
        &["mod: unknown key", "did you mean mode?"],
    );
    one(
        &with("lease = \"24h\"", "leas = 1"),
        "leas",
        &["pool.leas: unknown key", "did you mean lease?"],
    );
    one(
        &with("reserved = [\"10.66.0.1\"]", "colour = 1"),
        "colour",
        &["pool.colour", "known here: name, kind, prefixes"],
    );
    one(
        &with("kind = \"quarantine\"", "kind = 3"),
        "kind = 3",
        &["pool.kind", "type is integer"],
    );
    one(
        &with("[\"443\"]", "[\"443\", 80]"),
        "80]",
        &["policy.rule.ports", "integer", "string, in quotes"],
    );
    one(
        &with("[\"443\"]", "\"443\""),
        "ports = \"443\"",
        &["policy.rule.ports", "array"],
    );
    one(
        &with("mode = \"enforce\"", "mode = \"open\""),
        "open",
        &["\"enforce\" or \"observe\""],
    );
    one(&with("mode = \"enforce\"\n", "api = 1\n"), "api = 1", &["[api]"]);
    let bare = errors("pool = []\ninterface = 1");
    assert_eq!(bare.lines().count(), 2, "{bare}");
    assert!(bare.contains("f:2: interface: ") && bare.contains("[[interface]]"), "{bare}");
}

#[test]
fn syntax() {
    one(&with("mode = \"enforce\"", "mode = "), "mode = ", &[]);
    one(
        &with("mode = \"enforce\"\n", "mode = \"enforce\"\nmode = \"observe\"\n"),
        "observe",
        &["duplicate"],
    );
    assert!(errors("\u{1b}[31m = 1").lines().all(|l| l.chars().all(|c| !c.is_control())));
}

#[test]
fn all_mistakes_at_once() {
    let text = GOOD
        .text()
        .replace("lease", "leese")
        .replace("\"443\"", "\"0\"")
        .replace("10.66.0.0/16", "10.66.0.1/16")
        .replace("tun*", "*");
    let all = errors(&text);
    let lines: Vec<usize> = all.lines().map(|l| l.split(':').nth(1).unwrap().parse().unwrap()).collect();
    assert_eq!(lines, [3, 11, 12, 22, 31], "{all}");
}

#[test]
fn prefixes() {
    one(
        &with("10.67.0.0/16", "10.66.4.0/24"),
        "10.66.4.0/24",
        &["10.66.4.0/24 of pool \"staff\" overlaps 10.66.0.0/16 of pool \"q\" in line 11"],
    );
    one(
        &with("10.67.0.0/16", "10.0.0.0/8"),
        "10.0.0.0/8",
        &["overlaps 10.66.0.0/16 of pool \"q\" in line 11"],
    );
    one(
        &with("\"10.67.0.0/16\"", "\"10.67.0.0/16\", \"10.67.0.0/17\""),
        "10.67.0.0/17",
        &["of pool \"staff\" overlaps 10.67.0.0/16 of pool \"staff\" in line 18"],
    );
    one(
        &with("10.67.0.0/16", "10.67.0.1/16"),
        "10.67.0.1/16",
        &["host bits", "10.67.0.0/16"],
    );
    one(&with("10.67.0.0/16", "::ffff:10.67.0.0/112"), "::ffff", &["v4-mapped"]);
    for (bad, why) in [
        ("224.1.0.0/16", "multicast"),
        ("ff02::/64", "multicast"),
        ("::/64", "unspecified"),
        ("127.0.0.0/24", "loopback"),
        ("0.0.0.0/32", "unspecified"),
        ("169.254.1.0/24", "link local"),
        ("fe80::/64", "link local"),
        ("64.0.0.0/6", "shorter than /8"),
    ] {
        at(&with("10.67.0.0/16", bad), 18, &["pool.prefixes", why]);
    }
    let many: Vec<String> = (0..64).map(|i| format!("\"fd01:{i:x}::/64\"")).collect();
    one(
        &with("\"10.67.0.0/16\"", &many.join(", ")),
        "fd01:3f::",
        &["65 IPv6 prefixes", "room for 64"],
    );
    one(
        &with(
            "prefixes = [\"10.66.0.0/16\", \"fd00:66::/64\"]\nreserved = [\"10.66.0.1\"]",
            "prefixes = []",
        ),
        "[[pool]]",
        &["pool.prefixes", "holds no device"],
    );
}

/// `Layout4` counts on it.
#[test]
fn the_directory_of_slash16s_cannot_overflow() {
    let usable = (1..224_u32).filter(|n| *n != 127).count() * 256;
    assert!(usable < usize::from(u16::MAX));
}

#[test]
fn pools() {
    at(&with("policy = \"dm\"\n", ""), 8, &["pool.policy", "has no policy"]);
    at(
        &with("policy = \"dm\"", "policy = \"nix\""),
        13,
        &["no policy \"nix\"", "everything, dm"],
    );
    at(
        &with("fallback = \"q\"\n", ""),
        15,
        &["pool.fallback", "full-service pool has no fallback"],
    );
    at(
        &with("fallback = \"q\"", "fallback = \"staff\""),
        20,
        &["not of kind quarantine", "quarantine pools of this file: q"],
    );
    at(&with("fallback = \"q\"", "fallback = \"nix\""), 20, &["does not exist"]);
    at(
        &with("policy = \"dm\"", "policy = \"dm\"\nfallback = \"staff\""),
        14,
        &["pool.fallback", "full-service"],
    );
    at(
        &with("policy = \"dm\"", "policy = \"dm\"\nlease = \"1h\""),
        14,
        &["pool.lease"],
    );
    at(
        &with("policy = \"dm\"", "policy = \"everything\""),
        13,
        &["quarantine pool's policy allows everything"],
    );
    at(
        &with("name = \"staff\"", "name = \"q\""),
        16,
        &["pool.name", "\"q\" is taken, in line 9"],
    );
    at(
        &with("name = \"staff\"", "name = \"st aff\""),
        16,
        &["pool.name", "A-Z a-z 0-9"],
    );
    at(&with("gateway_uri = \"q.example.org\"\n", ""), 8, &["pool.gateway_uri"]);
    at(&with("q.example.org", "q example"), 14, &["pool.gateway_uri"]);
    at(&with("q.example.org", "q\\u0007.org"), 14, &["pool.gateway_uri"]);
    at(&with("\"24h\"", "\"24\""), 22, &["pool.lease", "duration", "24h"]);
    at(&with("\"10.66.0.1\"", "\"10.99.0.1\""), 12, &["outside the pool's prefixes"]);
    at(&with("\"10.66.0.1\"", "\"10.66.0.1\", \"10.66.0.1\""), 12, &["twice"]);
    at(&with("\"10.66.0.1\"", "\"10.66.0.1/32\""), 12, &["not an IP address"]);
    at(
        &with("kind = \"full-service\"", "kind = \"full\""),
        17,
        &["\"quarantine\" or \"full-service\" or \"blocked\""],
    );
    // Of kind blocked: nothing else may be allowed, and nobody is released to it.
    let blocked = |policy: &str| {
        let pool = "[[pool]]\nname = \"b\"\nkind = \"blocked\"\ngateway_uri = \"q.example.org\"\npolicy = ";
        GOOD.text() + "[[policy]]\nname = \"none\"\nallow = \"nothing\"\n" + pool + policy
    };
    assert!(parse(&blocked("\"none\"")).is_ok());
    at(
        &blocked("\"dm\""),
        39,
        &["blocked pool's policy allows something", "allow = \"nothing\""],
    );
    at(&blocked("\"everything\""), 39, &["blocked pool's policy allows something"]);
}

#[test]
fn numbers_of_things() {
    let none = File {
        quarantine: "",
        full: "",
        ..GOOD
    }
    .text();
    at(&none, 1, &["pool", "kind = \"quarantine\""]);
    let no_device = with("role = \"device\"", "role = \"core\"");
    at(&no_device, 1, &["interface", "role = \"device\""]);
    let mut many = GOOD.text();
    for i in 3..=64 {
        let pool = format!(
            "[[pool]]\nname = \"s{i}\"\nkind = \"full-service\"\npolicy = \"everything\"\nfallback = \"q\"\ngateway_uri = \"v\"\n"
        );
        many += &pool;
        assert_eq!(parse(&many).is_ok(), i <= 63, "{i} pools");
    }
    at(&many, 32 + 61 * 6, &["more than 63 pools"]);
}

#[test]
fn policies() {
    at(
        &with("to = [\"10.1.0.5/32\"]", "to = []"),
        29,
        &["policy.rule.to", "the list is empty"],
    );
    at(&with("to = [\"10.1.0.5/32\"]\n", ""), 28, &["policy.rule.to"]);
    at(&with("protocol = \"tcp\"\n", ""), 28, &["policy.rule.protocol"]);
    at(
        &with("10.1.0.5/32", "10.1.0.5/24"),
        29,
        &["policy.rule.to", "10.1.0.0/24, or 10.1.0.5/32"],
    );
    at(&with("\"443\"", "\"0\""), 31, &["port 0"]);
    at(&with("\"443\"", "\"8100-8000\""), 31, &["reversed", "8000-8100"]);
    at(&with("\"443\"", "\"70000\""), 31, &["1 to 65535"]);
    at(
        &with("ports = [\"443\"]", "ports = []"),
        31,
        &["leave ports out for every port"],
    );
    at(&with("\"tcp\"", "\"icmp\""), 31, &["this protocol has no ports"]);
    at(&with("\"tcp\"", "\"any\""), 31, &["this protocol has no ports"]);
    at(&with("\"tcp\"", "\"6\""), 30, &["write \"tcp\""]);
    at(&with("\"tcp\"", "\"sctp\""), 30, &["not a protocol"]);
    at(&with("allow = \"all\"\n", ""), 23, &["says nothing of what it allows"]);
    at(
        &(GOOD.text() + "[[policy]]\nname = \"dm\"\nallow = \"all\"\n"),
        33,
        &["policy.name", "\"dm\" is taken, in line 27"],
    );
    at(
        &with("name = \"dm\"", "name = \"dm\"\nallow = \"nothing\""),
        26,
        &["both allow and rules"],
    );
    let alone = with("ports = [\"443\"]", "");
    assert!(parse(&alone).is_ok(), "without ports: every port");
    let icmp = with("protocol = \"tcp\"\nports = [\"443\"]", "protocol = \"icmp\"");
    assert!(parse(&icmp).is_ok());
}

#[test]
fn interfaces() {
    at(
        &with("\"eth1\"", "\"tun*\""),
        6,
        &["interface.name", "\"tun*\" can never match: \"tun*\" in line 3 comes first"],
    );
    at(&with("\"eth1\"", "\"tun0\""), 6, &["\"tun0\" can never match"]);
    at(&with("\"eth1\"", "\"tunnel*\""), 6, &["\"tunnel*\" can never match"]);
    assert!(parse(&with("\"eth1\"", "\"tu*\"")).is_ok(), "the wider may come second");
    at(&with("\"eth1\"", "\"lo\""), 6, &["loopback"]);
    at(&with("\"eth1\"", "\"eth1/../x\""), 6, &["an interface name"]);
    at(&with("role = \"core\"\n", ""), 5, &["interface.role"]);
    at(
        &with("role = \"core\"", "role = \"core\"\nxdp = \"on\""),
        8,
        &["\"auto\" or \"native\""],
    );
}

#[test]
fn routes() {
    let with_routes = |routes: &str| with("lease = \"24h\"\n", routes);
    let route = "[[pool.route]]\nto = \"0.0.0.0/0\"\nvia = \"192.0.2.1\"\n";
    assert!(parse(&with_routes(&format!("table = 1\n{route}"))).is_ok());
    for table in ["0", "-1", "4294967296"] {
        at(
            &with_routes(&format!("table = {table}\n{route}")),
            22,
            &["pool.table", "out of range"],
        );
    }
    for table in ["252", "253", "254", "255"] {
        at(
            &with_routes(&format!("table = {table}\n{route}")),
            22,
            &["pool.table", "system's"],
        );
    }
    at(&with_routes("table = 7\n"), 22, &["pool.table", "no routes"]);
    at(&with_routes(route), 22, &["pool.table", "routes without a table"]);
    at(
        &with_routes("table = 7\n[[pool.route]]\nto = \"10.0.0.0/8\"\n"),
        23,
        &["pool.route.via"],
    );
    at(
        &with_routes("table = 7\n[[pool.route]]\nto = \"10.0.0.0/8\"\nvia = \"fd00::1\"\n"),
        25,
        &["another IP version"],
    );
    at(
        &with_routes("table = 7\n[[pool.route]]\nto = \"10.0.0.0/8\"\nvia = \"0.0.0.0\"\n"),
        25,
        &["no router's address"],
    );
    at(
        &with_routes(&format!("table = 7\n{route}{route}")),
        27,
        &["has a route to 0.0.0.0/0 already, in line 24"],
    );
    let twice = with_routes(&format!("table = 7\n{route}")).replace(
        "gateway_uri = \"q.example.org\"\n",
        &format!("gateway_uri = \"q\"\ntable = 7\n{route}"),
    );
    at(&twice, 26, &["another pool's, in line 15"]);
}

#[test]
fn settings() {
    let head = |head: &'static str| File { head, ..GOOD }.text();
    at(&head("[paths]\nstate = \"lib\"\n"), 2, &["paths.state", "relative"]);
    at(&head("[paths]\npins = \"/a/../b\"\n"), 2, &["paths.pins"]);
    at(&head("[socket]\npath = \"x\"\n"), 2, &["socket.path"]);
    at(
        &head("[socket]\nvpn_group = \"a\"\nviewer_group = \"a\"\n"),
        3,
        &["socket.viewer_group", "same group"],
    );
    at(&head("[socket]\nvpn_group = \"a b\"\n"), 2, &["not a group's name"]);
    at(&head("[log]\nlevel = \"loud=very\"\n"), 2, &["log.level"]);
    at(
        &head("[devices]\nsessions_per_device = 0\n"),
        2,
        &["out of range", "1 to 1000"],
    );
    at(
        &head("[tables]\nbuckets6 = 1000\n"),
        2,
        &["not a power of two", "1024 or 512"],
    );
    at(&head("[tables]\ndenials_bytes = 5000\n"), 2, &["not a power of two"]);
    at(
        &head("[tables]\naddresses = 99999999999999999999999999999999999999999999\n"),
        2,
        &["out of range"],
    );
    let api = |listen: &str| {
        GOOD.text().replace(
            "mode = \"enforce\"\n",
            &format!("[api]\nlisten = \"{listen}\"\ncertificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/a\"\n"),
        )
    };
    assert!(parse(&api("[::]:9443")).is_ok());
    for bad in ["9443", "localhost:9443", "0.0.0.0:0", "0.0.0.0:65536", "224.0.0.1:9443"] {
        at(&api(bad), 2, &["api.listen", "[::]:9443"]);
    }
    let empty = errors(&head("[api]\n"));
    assert_eq!(empty.lines().count(), 4, "{empty}");
    assert!(empty.contains("f:1: api.client_ca: [api] has no client_ca"), "{empty}");
    let none = errors(&api("[::]:9443").replace("client_ca = \"/a\"", "client_ca = []"));
    assert!(none.contains("has no client_ca"), "{none}");
}
