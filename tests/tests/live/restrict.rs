//! A restriction cuts every flow, both ways: after the acknowledgement nothing of it passes.

use std::time::{Duration, SystemTime};

use lazaret_proto::v1::{DeviceState, Enforcement};
use lazaret_tests::require;

use crate::stage::Stage;

/// Releases the device, lets flows of every kind run, restricts it in several ways, and counts what passes afterwards.
fn cut(stage: &Stage, grace: Duration) {
    stage.release();
    let flows = stage.flows();
    flows.run(50);

    let by_the_mdm = || {
        let revoked = stage.mdm.revoked("phone").unwrap();
        assert_eq!(revoked.enforcement(), Enforcement::Enforced, "{revoked:#?}");
    };
    let by_an_operator = || {
        stage.gateway.cli("device quarantine phone --reason stolen").unwrap();
    };
    let ways: [&dyn Fn(); 2] = [&by_the_mdm, &by_an_operator];
    for restrict in ways {
        restrict();
        let acknowledged = SystemTime::now();
        assert_eq!(stage.local.device("phone").unwrap().state(), DeviceState::Quarantined);
        flows.stay_cut(acknowledged, grace);
        // Every flow comes back with the release, TCP's connections too: the cut was the verdict's, and the ends were alive.
        stage.release();
        flows.run(20);
    }
    assert!(stage.local.counted("no_rule").unwrap() > 1000, "what was sent was denied");

    // The end of the session.
    let session = stage.local.list_sessions().unwrap().remove(0);
    assert!(stage.local.close(session.session_id).unwrap().ended);
    flows.stay_cut(SystemTime::now(), grace);
}

#[test]
fn a_restriction_cuts_every_flow_over_ethernet() {
    require!(Root, Bpf);
    cut(&Stage::ethernet(|_| ()), Duration::ZERO);
}

#[test]
fn a_restriction_cuts_every_flow_over_openvpn() {
    require!(Root, Bpf, Tun, Program("openvpn"));
    cut(&Stage::openvpn(|_| ()), Duration::from_millis(250));
}
