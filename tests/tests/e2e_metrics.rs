//! End to end: what a collector on the gateway's host gets, over a Unix socket and over a loopback port.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    time::Duration,
};

use lazaret_tests::{lab::Lab, packets, process::until, require, site};

/// Status line and head, and body.
fn exchange(mut stream: impl Read + Write, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    (head.to_owned(), body.to_owned())
}

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn samples(head: &str, body: &str) -> BTreeMap<String, f64> {
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(
        head.to_lowercase().contains("content-type: application/openmetrics-text"),
        "{head}"
    );
    let lines = body.strip_suffix("# EOF\n").unwrap().lines().filter(|l| !l.starts_with('#'));
    lines
        .map(|l| l.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[test]
fn a_collector_gets_the_figures_and_nobody_from_elsewhere() {
    require!(Root, Bpf, Tun);
    let mut lab = Lab::new(|g| {
        let socket = g.folder().join("metrics.sock");
        g.configure("[socket]", &format!("[metrics]\nlisten = \"{}\"\n[socket]", socket.display()))
    })
    .unwrap();
    let socket = lab.gateway.folder().join("metrics.sock");
    assert_eq!(fs::symlink_metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    let connect = || UnixStream::connect(&socket).unwrap();
    for name in ["phone", "tablet", "spare"] {
        lab.local.register(name, "staff").unwrap();
    }
    lab.local.open("lab", "phone", &["10.66.0.5"], "tun0").unwrap();
    lab.gateway.applied("phone").unwrap();
    for n in 0..7_u64 {
        lab.tun
            .send(&packets::udp((site::DEVICE, 4000), (site::MAIL, 53), &n.to_be_bytes()))
            .unwrap();
        // Of a device without a session.
        lab.tun
            .send(&packets::udp(
                ("10.66.0.9".parse().unwrap(), 4000),
                (site::MAIL, 53),
                &n.to_be_bytes(),
            ))
            .unwrap();
    }
    let mut last = BTreeMap::new();
    until(Duration::from_secs(60), "the packets are counted", || {
        let (head, body) = exchange(connect(), GET);
        last = samples(&head, &body);
        let denied = last
            .iter()
            .filter(|(k, _)| k.starts_with("lazaret_packets_total{pool=\"quarantine\"") && k.contains("no_rule"));
        // Until it is counted for the first time the ledger is left out.
        let counted = last.contains_key("lazaret_ledger_devices{kind=\"expected\"}");
        Ok(counted && denied.map(|(_, n)| *n).sum::<f64>() >= 7.0)
    })
    .unwrap_or_else(|e| panic!("{e}: {last:#?}"));
    let get = |name: &str| *last.get(name).unwrap_or_else(|| panic!("no {name} in {last:#?}"));
    assert_eq!(
        (get("lazaret_floor_closed"), get("lazaret_enforcing"), get("lazaret_sessions")),
        (1.0, 1.0, 1.0)
    );
    assert_eq!(get("lazaret_devices{state=\"released\"}"), 1.0);
    assert_eq!(get("lazaret_devices{state=\"registered\"}"), 2.0);
    assert_eq!(get("lazaret_ledger_devices{kind=\"expected\"}"), 2.0);
    assert_eq!(get("lazaret_hook_attached{interface=\"tun0\",hook=\"tc_egress\"}"), 1.0);
    assert!(get("lazaret_audit_head_number") >= 5.0 && get("lazaret_commit_seconds_count") >= 5.0);
    let days = last
        .iter()
        .find(|(k, _)| k.starts_with("lazaret_certificate_days_left{what=\"server\""))
        .unwrap();
    assert!(*days.1 > 1.0 && *days.1 < 10_000.0, "{days:?}");
    // The head that is exported verifies the chain.
    let head = last
        .keys()
        .find_map(|k| k.strip_prefix("lazaret_audit_head_info{head=\""))
        .unwrap();
    let verify = format!(
        "audit verify --config {} --head {}",
        lab.gateway.config().display(),
        head.trim_end_matches("\"}")
    );
    lab.gateway.cli(&verify).unwrap_or_else(|e| panic!("{verify}: {e}"));

    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
        ("GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let (head, _) = exchange(connect(), request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {head}");
    }
    // Whoever opens all places and says nothing is cut, and the API goes on.
    let idle: Vec<UnixStream> = (0..40).map(|_| connect()).collect();
    lab.local.status().unwrap();
    until(Duration::from_secs(60), "there is a place again", || {
        let mut stream = connect();
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut text = String::new();
        let _cut = stream
            .write_all(GET.as_bytes())
            .and_then(|()| stream.read_to_string(&mut text));
        Ok(text.starts_with("HTTP/1.1 200"))
    })
    .unwrap();
    drop(idle);

    lab.gateway.stop().unwrap();
    assert!(!socket.exists(), "the file goes with the daemon");
    let line = format!("listen = \"{}\"", socket.display());
    lab.gateway.configure(&line, "listen = \"127.0.0.1:9464\"").unwrap();
    lab.gateway.start().unwrap();
    let stream = lab.site.gw.run(|| TcpStream::connect("127.0.0.1:9464")).unwrap();
    let (head, body) = exchange(stream, GET);
    assert_eq!(samples(&head, &body)["lazaret_devices{state=\"released\"}"], 1.0);
    lab.gateway.stop().unwrap();
    lab.gateway
        .configure("listen = \"127.0.0.1:9464\"", "listen = \"10.1.0.1:9464\"")
        .unwrap();
    let check = lab
        .gateway
        .cli(&format!("check {}", lab.gateway.config().display()))
        .unwrap_err()
        .to_string();
    assert!(check.contains("reached from elsewhere"), "{check}");
}
