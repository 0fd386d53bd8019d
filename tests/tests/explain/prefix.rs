//! A session with a whole IPv6 /64: every address of it is the device's, in what is denied, captured and explained.

use std::{net::UdpSocket, time::Duration};

use lazaret_tests::{
    process::{Process, until},
    require,
    site::{DEVICE6, MAIL6},
};

use crate::{
    capture::{start, tshark},
    stage::{LIMIT, Stage},
};

const WHOLE: &str = "fd00:66:0:7::/64";
const INSIDE: [&str; 2] = ["fd00:66:0:7::5", "fd00:66:0:7:8000::9"];
/// In the pool, and in nobody's session.
const OUTSIDE: &str = "fd00:66:0:8::5";

/// `tablet` with the /64, and `phone` with addresses of its own, both behind `dev0`.
fn stage() -> Stage {
    let stage = Stage::with(|g| g.configure("fd00:66::/64", "fd00:66::/48").unwrap());
    stage.open();
    for address in INSIDE.into_iter().chain([OUTSIDE]) {
        stage.site.device.address("eth0", &format!("{address}/64")).unwrap();
    }
    stage.local.register("tablet", "staff").unwrap();
    let opened = stage
        .gateway
        .cli(&format!(
            "session open --device tablet --address {WHOLE} --interface dev0 --source lab"
        ))
        .unwrap();
    assert!(opened.contains(WHOLE), "{opened}");
    stage
}

/// A datagram to the mail server, which nobody in quarantine may send.
fn send(stage: &Stage, from: &str, port: u16) {
    let socket = stage.site.device.run(|| UdpSocket::bind((from, 0))).unwrap();
    socket.send_to(b"?", (MAIL6, port)).unwrap();
}

#[test]
fn what_is_denied_to_addresses_of_a_whole_64_is_its_devices() {
    require!(Root, Bpf, Program("bpftool"), Program("tshark"));
    let stage = stage();
    let log = stage.gateway.folder().join("follow.log");
    let follow = |log| {
        let mut c = stage.gateway.lazaret();
        c.args(["denials", "--follow", "--device", "tablet", "--json"]);
        Process::spawn(&mut c, log).unwrap()
    };
    let mut live = follow(&log);
    let file = stage.gateway.folder().join("denied.pcapng");
    let mut capture = start(&stage, "--for 10s --device tablet", &file);
    let shown = |log: &std::path::Path, source: &str| {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        text.contains(&format!("\"source\":\"{source}\""))
    };
    // Each attempt is another flow, so that it is told again.
    let mut port = 2000;
    until(LIMIT, "both addresses are followed", || {
        port += 1;
        let others = [DEVICE6.to_string(), OUTSIDE.to_owned()];
        for from in INSIDE.into_iter().chain(others.iter().map(String::as_str)) {
            send(&stage, from, port);
        }
        Ok(INSIDE.iter().all(|from| shown(&log, from)))
    })
    .unwrap();
    live.kill().unwrap();

    // Those that were, listed and followed, are found among the others' however few are asked for.
    let listed = |words: &str| {
        stage
            .gateway
            .cli(&format!("denials --limit 2 --address {MAIL6} {words}"))
            .unwrap()
    };
    let mut seen = listed("--device tablet");
    for from in INSIDE {
        assert!(seen.contains(from), "{from} in\n{seen}");
    }
    assert!(!seen.contains(&DEVICE6.to_string()) && !seen.contains(OUTSIDE), "{seen}");
    seen = listed("--device phone");
    assert!(
        seen.contains(&DEVICE6.to_string()) && !INSIDE.iter().any(|a| seen.contains(a)),
        "{seen}"
    );
    let before = stage.gateway.folder().join("before.log");
    let mut past = follow(&before);
    until(LIMIT, "what was denied before is followed", || {
        Ok(INSIDE.iter().all(|from| shown(&before, from)))
    })
    .unwrap();
    past.kill().unwrap();
    for log in [&log, &before] {
        assert!(!shown(log, &DEVICE6.to_string()) && !shown(log, OUTSIDE));
    }

    assert!(capture.wait(Duration::from_secs(60)).unwrap().success(), "{}", capture.log());
    let packets = tshark(&file, &["frame.comment", "ipv6.src", "udp.dstport"]);
    for from in INSIDE {
        let own: Vec<_> = packets.iter().filter(|p| p[1] == from && !p[2].is_empty()).collect();
        assert!(
            !own.is_empty() && own.iter().all(|p| p[0].contains("device tablet")),
            "{from}: {packets:#?}"
        );
    }
    assert!(
        !packets.iter().any(|p| p[1] == OUTSIDE || p[1] == DEVICE6.to_string()),
        "{packets:#?}"
    );
}

#[test]
fn an_address_of_a_whole_64_is_explained_by_its_session() {
    require!(Root, Bpf);
    let stage = stage();
    for (released, reason, pool) in [(false, "no_rule", "quarantine"), (true, "all", "staff")] {
        if released {
            stage.gateway.applied("tablet").unwrap();
        }
        for from in INSIDE {
            // The packet, and its answer as it comes in and as it goes out.
            let all = stage.explain(&format!("--from {from} --to {MAIL6} --proto udp --port 2000 --both"));
            let e = &all[0];
            assert_eq!((&e["passes"], &e["reason"]), (&released.into(), &reason.into()), "{e:#}");
            assert_eq!(e["place"]["interface"], "dev0", "where the session is: {e:#}");
            for (e, end) in all.iter().zip(["source", "destination", "destination"]) {
                let end = &e[end];
                assert_eq!(
                    (&end["address"], &end["device_id"]),
                    (&from.into(), &"tablet".into()),
                    "{e:#}"
                );
                assert_eq!(end["current_pool"], pool, "{e:#}");
                assert_eq!(end["lease_ends_at"].is_string(), released, "{e:#}");
            }
            assert!(all.iter().all(|e| e["passes"] == released), "{all:#?}");
        }
        let e = stage.one(&format!("--from {OUTSIDE} --to {MAIL6} --proto udp --port 2000"));
        assert_eq!(
            (&e["passes"], &e["source"]["session_id"]),
            (&false.into(), &0.into()),
            "{e:#}"
        );
        let address = stage.local.address(INSIDE[1]).unwrap();
        assert_eq!((address.device_id.as_str(), address.current_pool.as_str()), ("tablet", pool));
    }
}
