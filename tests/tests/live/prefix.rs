//! A session with a whole IPv6 /64, by gRPC from its opening to its end: flows of two addresses of it run when it is released, and nothing
//! of them passes once a restriction is acknowledged.

use std::{
    net::{IpAddr, TcpListener},
    thread,
    time::{Duration, SystemTime},
};

use lazaret_proto::v1::Enforcement;
use lazaret_tests::{
    api::read_back_everywhere,
    flows::{self, Flow, Kind},
    require,
    site::{DM6, MAIL6},
};

use crate::stage::{Flows, Observers, Stage};

const WHOLE: &str = "fd00:66:0:7::/64";
/// Two addresses of it, each with a peer of its own, so that their flows can be told apart.
const INSIDE: [(&str, IpAddr); 2] = [("fd00:66:0:7::5", MAIL6), ("fd00:66:0:7:8000::9", DM6)];
/// Of the /64 beside it.
const OUTSIDE: &str = "fd00:66:0:8::5";

#[test]
fn a_whole_64_is_released_and_cut() {
    require!(Root, Bpf);
    let mut stage = Stage::ethernet(|g| g.configure("fd00:66::/64", "fd00:66::/48").unwrap());
    let own = INSIDE.map(|(a, _)| a.parse::<IpAddr>().unwrap());
    stage.addresses = own;
    let site = &stage.site;
    for address in INSIDE.map(|(a, _)| a).into_iter().chain([OUTSIDE]) {
        site.device.address("eth0", &format!("{address}/64")).unwrap();
    }
    site.gw.ip("route add fd00:66::/48 dev dev0").unwrap();
    site.core.route("fd00:66::/48", "fd00:9::1".parse().unwrap()).unwrap();
    stage.mdm.register("tablet", "staff").unwrap();
    let opened = stage.local.open("lab", "tablet", &[WHOLE], "dev0").unwrap();
    let session = opened.session.clone().unwrap();
    assert_eq!(
        (session.prefixes.as_slice(), opened.enforcement()),
        (&[WHOLE.to_owned()][..], Enforcement::Enforced)
    );
    assert!(read_back_everywhere(&opened.prefixes), "{opened:#?}");

    let release = || {
        let released = stage.mdm.applied("tablet").unwrap();
        assert_eq!(released.enforcement(), Enforcement::Enforced, "{released:#?}");
        assert!(read_back_everywhere(&released.prefixes), "{released:#?}");
        assert_eq!(
            released.prefixes.iter().map(|p| p.prefix.as_str()).collect::<Vec<_>>(),
            [WHOLE]
        );
    };
    release();
    let observers = Observers::new(&stage);
    let mut running = Vec::new();
    for kind in Kind::ALL {
        for (own, (_, peer)) in own.into_iter().zip(INSIDE) {
            let ends = ((&site.device, own), (&site.core, peer));
            running.push((kind, peer, Flow::start(kind, ends.0, ends.1, 5001, observers.token).unwrap()));
        }
    }
    let all = Flows {
        flows: running,
        observers,
    };
    all.run(50);
    let listener = site.core.run(|| TcpListener::bind((MAIL6, 80))).unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
    let connects = |from: IpAddr| {
        let connect = || flows::connect(from, (MAIL6, 80).into(), Duration::from_millis(500));
        site.device.run(connect).is_ok()
    };
    assert_eq!(
        (connects(own[1]), connects(OUTSIDE.parse().unwrap())),
        (true, false),
        "the next /64 is nobody's"
    );

    let revoked = stage.mdm.revoked("tablet").unwrap();
    let acknowledged = SystemTime::now();
    assert_eq!(revoked.enforcement(), Enforcement::Enforced, "{revoked:#?}");
    assert!(read_back_everywhere(&revoked.prefixes), "{revoked:#?}");
    all.stay_cut(acknowledged, Duration::ZERO);
    // The cut was the verdict's, and the ends were alive.
    release();
    all.run(20);
    assert!(stage.local.close(session.session_id).unwrap().ended);
    all.stay_cut(SystemTime::now(), Duration::ZERO);
}
