//! Requests with something missing or wrong.

use super::*;
use crate::model::{Identity, Role};

fn by() -> Caller {
    Caller {
        by: Identity::unlimited(Role::Mdm, "test"),
        digest: [0; 32],
        acknowledge: 0,
        deadline: std::time::Duration::ZERO,
        place: crate::model::Place::default(),
    }
}
fn context() -> Option<v1::SignalContext> {
    Some(v1::SignalContext {
        request_id: "r-1".into(),
        observed_at: Some(Timestamp {
            seconds: 1,
            nanos: 2_999_999,
        }),
        ..Default::default()
    })
}
fn report(prefixes: &[&str]) -> v1::SessionReport {
    v1::SessionReport {
        device_name: "d-1".into(),
        prefixes: prefixes.iter().map(ToString::to_string).collect(),
        interface: "tun0".into(),
        ..Default::default()
    }
}
fn open(report: v1::SessionReport) -> Result<SessionReport, Invalid> {
    let r = v1::OpenSessionRequest {
        context: context(),
        source: "vpn-1".into(),
        session: Some(report),
    };
    open_session(r, by()).map(|r| r.2)
}
fn device(id: &str) -> v1::DeviceRegistration {
    v1::DeviceRegistration {
        device_id: id.into(),
        ..Default::default()
    }
}
fn registering(devices: Vec<v1::DeviceRegistration>) -> Result<Vec<Registration>, Invalid> {
    register(
        v1::RegisterDevicesRequest {
            context: context(),
            devices,
        },
        by(),
    )
    .map(|r| r.1)
}
/// The field that a request was refused for.
fn field<T: std::fmt::Debug>(r: Result<T, Invalid>) -> String {
    r.expect_err("must be refused").field().to_owned()
}

#[test]
fn a_context_is_required_whole() {
    let applied = |context| {
        policy_applied(
            v1::ReportPolicyAppliedRequest {
                context,
                device_id: "d".into(),
                policy_revision: "1".into(),
                policy_key: String::new(),
            },
            by(),
        )
    };
    assert_eq!(applied(context()).unwrap().0.observed_at, Some(WallTime(1002)));
    assert_eq!(field(applied(None)), "context");
    assert_eq!(field(applied(Some(v1::SignalContext::default()))), "context.request_id");
    let with = |t| {
        Some(v1::SignalContext {
            request_id: "r".into(),
            observed_at: t,
            ..Default::default()
        })
    };
    assert_eq!(field(applied(with(None))), "context.observed_at");
    for (seconds, nanos) in [
        (i64::MAX, 0),
        (i64::MIN, 0),
        (0, -1),
        (0, 1_000_000_000),
        (253_402_300_800, 0),
    ] {
        assert_eq!(
            field(applied(with(Some(Timestamp { seconds, nanos })))),
            "context.observed_at",
            "{seconds} {nanos}"
        );
    }
    let revoked = v1::ReportPolicyRevokedRequest {
        context: with(None),
        device_id: "d".into(),
        ..Default::default()
    };
    assert!(policy_revoked(revoked, by()).is_ok(), "a restriction needs no time");
}

#[test]
fn a_restriction_is_not_refused_for_its_decoration() {
    let revoked = v1::ReportPolicyRevokedRequest {
        context: Some(v1::SignalContext {
            request_id: "r".into(),
            observed_at: Some(Timestamp {
                seconds: i64::MAX,
                nanos: 0,
            }),
            ..Default::default()
        }),
        device_id: "d".into(),
        policy_revision: "no revision".into(),
        reason: format!("lock off\nno PIN \u{202e}{}", "é".repeat(MAX_TEXT)),
    };
    let (context, _, reason) = policy_revoked(revoked, by()).unwrap();
    assert_eq!(context.observed_at, None);
    assert!(reason.starts_with("lock off\u{fffd}no PIN \u{fffd}éé"), "{reason}");
    assert_eq!(reason.chars().count(), MAX_TEXT);
}

#[test]
fn sessions() {
    let r = open(report(&["10.66.0.5/32", "fd00:66::5", "10.66.0.6"])).unwrap();
    let want: Vec<IpAddr> = ["10.66.0.5", "fd00:66::5", "10.66.0.6"].map(|a| a.parse().unwrap()).to_vec();
    assert_eq!(r.addresses, want);
    let r = open(report(&["fd00:66:1::/64", "fd00:66::5"])).unwrap();
    assert_eq!(r.addresses[0], prefix::whole("fd00:66:1::".parse().unwrap()));
    for (other, bad) in [
        ("fd00:66::5", "fd00:66::/64"),
        ("fd00:66::/64", "fd00:66::5"),
        ("10.66.0.6", "fd00:66::5/64"),
        ("10.66.0.6", "10.66.0.0/64"),
        ("10.66.0.6", "fd00:66::/63"),
        ("10.66.0.6", "fd00:66::fdff:ffff:ffff:ff80"),
        ("10.66.0.6", "fd00:66::fdff:ffff:ffff:ff80/128"),
    ] {
        assert!(open(report(&[other, bad])).is_err(), "{other} {bad}");
    }
    for bad in [
        "",
        "10.66.0.0/24",
        "10.66.0.5/",
        "10.66.0.5/032",
        "fd00::5/32",
        "::ffff:10.66.0.5",
        "10.66.0.5 ",
        "mail",
        "1/2/3",
    ] {
        assert_eq!(field(open(report(&["10.66.0.4", bad]))), "session.prefixes[1]", "{bad:?}");
    }
    assert_eq!(field(open(report(&["10.66.0.4", "10.66.0.4/32"]))), "session.prefixes[1]");
    assert_eq!(field(open(report(&[]))), "session.prefixes");
    assert_eq!(field(open(report(&["10.66.0.4"; MAX_ADDRESSES + 1]))), "session.prefixes");
    let bad = v1::SessionReport {
        device_name: "../../etc/passwd".into(),
        ..report(&["10.66.0.4"])
    };
    assert_eq!(field(open(bad)), "session.device_name");
    let bad = v1::SessionReport {
        interface: "tun0\n".into(),
        ..report(&["10.66.0.4"])
    };
    assert_eq!(field(open(bad)), "session.interface");
    let bad = v1::SessionReport {
        certificate_sha256: "ab".into(),
        ..report(&["10.66.0.4"])
    };
    assert_eq!(field(open(bad)), "session.certificate_sha256");
}

#[test]
fn by_what_a_session_was_known_is_taken_over() {
    let known = |certificate: &str, key: &str| {
        open(v1::SessionReport {
            certificate_sha256: certificate.into(),
            vpn_public_key: key.into(),
            ..report(&["10.66.0.4"])
        })
    };
    let (certificate, key) = ("ab".repeat(32), "kJx3YxMPfHnOHvNW4mZ6zhU+oX8MAfKXxjMJ6l8Yp2s=");
    let r = known(&certificate, key).unwrap();
    assert_eq!(r.certificate, Some(certificate.parse().unwrap()));
    assert_eq!(r.vpn_key, Some(key.parse().unwrap()));
    let r = known("", "").unwrap();
    assert_eq!((r.certificate, r.vpn_key), (None, None));
    for bad in ["x", &key[1..], " ", "AAAA"] {
        assert_eq!(field(known("", bad)), "session.vpn_public_key", "{bad:?}");
    }
}

#[test]
fn a_whole_list_is_refused_for_one_element() {
    let list = |sessions| v1::SynchroniseSessionsRequest {
        context: context(),
        source: "vpn".into(),
        sessions,
    };
    let good = synchronise(list(vec![report(&["10.66.0.4"]), report(&["10.66.0.5"])]), by()).unwrap();
    assert_eq!(good.2.len(), 2);
    assert_eq!(
        field(synchronise(list(vec![report(&["10.66.0.4"]), report(&["x"])]), by())),
        "sessions[1].prefixes[0]"
    );
    assert_eq!(
        field(synchronise(
            list(vec![report(&["10.66.0.4"]), report(&["fd00::1", "10.66.0.4"])]),
            by()
        )),
        "sessions[1].prefixes[1]"
    );
    assert_eq!(
        field(synchronise(list(vec![v1::SessionReport::default(); MAX_REPORTS + 1]), by())),
        "sessions"
    );
}

#[test]
fn registrations() {
    assert_eq!(registering(vec![device("a"), device("b")]).unwrap().len(), 2);
    assert_eq!(field(registering(vec![])), "devices");
    assert_eq!(field(registering(vec![device("a"); MAX_REGISTRATIONS + 1])), "devices");
    assert_eq!(field(registering(vec![device("a"), device("a")])), "devices[1].device_id");
    assert_eq!(
        field(registering(vec![device("a"), device("a\u{7f}")])),
        "devices[1].device_id"
    );
    let aliases = |common_names: Vec<String>, certificate_sha256: Vec<String>| v1::DeviceRegistration {
        aliases: Some(v1::Aliases {
            common_names,
            certificate_sha256,
            vpn_public_keys: Vec::new(),
        }),
        ..device("a")
    };
    assert_eq!(
        field(registering(vec![aliases(vec!["a".into(), "a/b".into()], vec![])])),
        "devices[0].aliases.common_names[1]"
    );
    let twice = vec!["ab".repeat(32), "AB:".repeat(31) + "AB"];
    assert_eq!(
        field(registering(vec![aliases(vec![], twice)])),
        "devices[0].aliases.certificate_sha256[1]"
    );
    let many = (0..=MAX_ALIASES).map(|i| i.to_string()).collect();
    assert_eq!(
        field(registering(vec![aliases(many, vec![])])),
        "devices[0].aliases.common_names"
    );
    for owner in ["a\nb", "a\u{1b}[31m", "a\u{202e}b", "a\u{2028}", &"x".repeat(MAX_TEXT + 1)] {
        let d = v1::DeviceRegistration {
            owner: owner.into(),
            ..device("a")
        };
        assert_eq!(field(registering(vec![d])), "devices[0].owner", "{owner:?}");
    }
    let d = v1::DeviceRegistration {
        owner: "Zoë Müller, Büro 3".into(),
        ..device("a")
    };
    assert_eq!(registering(vec![d]).unwrap()[0].owner, "Zoë Müller, Büro 3");
}

#[test]
fn filters() {
    assert_eq!(state_filter(0), Ok(None));
    assert_eq!(state_filter(3), Ok(Some(DeviceState::Released)));
    assert_eq!(field(state_filter(99)), "state");
    assert_eq!(address_filter(""), Ok(None));
    assert_eq!(address_filter("10.0.0.1"), Ok(Some([10, 0, 0, 1].into())));
    for bad in ["10.0.0.1/32", "::ffff:10.0.0.1", "x", "\0"] {
        assert_eq!(address_filter(bad).unwrap_err().reason(), "INVALID_ADDRESS", "{bad:?}");
    }
}
