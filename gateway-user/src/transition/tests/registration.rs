//! Registering: aliases of every kind belong to one device, and again is the same.

use super::*;
use crate::model::{Aliases, Reach};

#[test]
fn registering_again_is_no_change() {
    let mut desk = Desk::new("lab");
    desk.connect().proof("r1");
    let again = desk.register(&registration("phone", "lab")).unwrap();
    assert!(!again.changed);
    desk.window(None, Some(HOUR));
    let lost = desk.register(&registration("phone", "lab")).unwrap();
    assert_eq!(*lost.device.enrolment.window, Window::default(), "all of it is replaced");
}

#[test]
fn a_vpn_key_belongs_to_one_device() {
    let key = VpnKey([7; 32]);
    let with_key = |id: &str| Registration {
        vpn_keys: vec![key, key],
        ..registration(id, "lab")
    };
    let mut desk = Desk::new("lab");
    let context = desk.context();
    let both = [with_key("phone"), with_key("tablet")];
    assert_eq!(
        register(&Known(None, false), &both, &None, &context).unwrap_err().name(),
        "ALIAS_TAKEN"
    );
    let step = desk.register(&with_key("phone")).unwrap();
    assert_eq!(&*step.device.aliases.vpn_keys, &[key]);
    desk.device = step.device;
    let refusal = desk.register(&with_key("tablet")).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::AliasTaken {
            alias: "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=".to_owned(),
            owner: Some("phone".parse().unwrap())
        }
    );
    // It may move within a list.
    let known = Known(Some(&desk.device), false);
    let moved = register(
        &known,
        &[registration("phone", "lab"), with_key("tablet")],
        &None,
        &desk.context(),
    )
    .unwrap();
    assert_eq!(
        moved.iter().map(|s| s.device.aliases.vpn_keys.len()).collect::<Vec<_>>(),
        [0, 1]
    );
}

#[test]
fn a_retired_device_is_not_registered_again() {
    let mut desk = Desk::new("lab");
    desk.tell(Signal::Retire);
    assert_eq!(
        desk.register(&registration("phone", "lab")).unwrap_err().name(),
        "DEVICE_RETIRED"
    );
}

#[test]
fn what_a_retired_device_was_known_by_may_be_anothers() {
    let key = VpnKey([7; 32]);
    let known_by = |id: &str| Registration {
        vpn_keys: vec![key],
        common_names: vec!["asset-7".parse().unwrap()],
        ..registration(id, "lab")
    };
    let mut desk = Desk::new("lab");
    desk.device = desk.register(&known_by("phone")).unwrap().device;
    assert_eq!(desk.register(&known_by("tablet")).unwrap_err().name(), "ALIAS_TAKEN");
    desk.tell(Signal::Retire);
    let list = |one: Registration| register(&Known(Some(&desk.device), false), &[one], &None, &desk.context());
    let steps = list(known_by("tablet")).unwrap();
    let after: Vec<_> = steps
        .iter()
        .map(|s| (s.device.id.as_str(), &*s.device.aliases, s.changed))
        .collect();
    let new = Aliases {
        common_names: ["asset-7".parse().unwrap()].into(),
        vpn_keys: [key].into(),
        ..Aliases::default()
    };
    // First, so that the alias is free when the other comes.
    assert_eq!(after, [("phone", &Aliases::default(), true), ("tablet", &new, true)]);
    assert_eq!(steps[0].device.state, DeviceState::Retired);
    assert_eq!(list(registration("asset-7", "lab")).unwrap().len(), 2, "a name may be an id");
    // Its id stays its own.
    let as_name = Registration {
        common_names: vec!["phone".parse().unwrap()],
        ..registration("tablet", "lab")
    };
    assert_eq!(list(as_name).unwrap_err().name(), "ALIAS_TAKEN");
}

/// What one registers who may act on some devices only is worth nothing for others: it neither keeps them from being registered, nor do they
/// keep it. Who may act on both has the last word.
#[test]
fn a_key_binds_only_those_whom_its_registrar_may_act_on() {
    let reach = |patterns: &[&str]| -> Reach { Some(patterns.iter().map(|p| p.parse().unwrap()).collect()) };
    let known_by = |id: &str| Registration {
        vpn_keys: vec![VpnKey([7; 32])],
        ..registration(id, "lab")
    };
    let mut desk = Desk::new("lab");
    let by = |desk: &Desk, id: &str, reach: &Reach| {
        let known = Known(Some(&desk.device), false);
        let steps = register(&known, &[known_by(id)], reach, &desk.context()).map_err(|e| e.name())?;
        let overruled = overruled(&known, &steps)
            .into_iter()
            .map(|o| o.device.to_string())
            .collect::<Vec<_>>();
        Ok((steps, overruled))
    };
    let name = |told: Result<(Vec<Step>, Vec<String>), &'static str>| told.map(|(_, overruled)| overruled);
    desk.device = by(&desk, "phone", &reach(&["p*", "q*"])).unwrap().0.remove(0).device;
    assert!(desk.device.aliases.bind(&"q-1".parse().unwrap()) && !desk.device.aliases.bind(&"tablet".parse().unwrap()));
    for (id, who, told) in [
        ("q-1", reach(&["p*", "q*"]), Err("ALIAS_TAKEN")),
        ("q-1", reach(&["q-1"]), Err("ALIAS_TAKEN")),
        ("q-1", None, Err("ALIAS_TAKEN")),
        ("tablet", reach(&["tablet"]), Ok(vec![])),
        ("tablet", reach(&["tablet", "p*"]), Ok(vec!["phone".to_owned()])),
        ("tablet", None, Ok(vec!["phone".to_owned()])),
        ("phone", None, Ok(vec![])),
    ] {
        assert_eq!(name(by(&desk, id, &who)), told, "{id} by {who:?}");
    }
    // By who may act on all, it binds all.
    desk.device = by(&desk, "phone", &None).unwrap().0.remove(0).device;
    assert_eq!(name(by(&desk, "tablet", &reach(&["tablet"]))), Err("ALIAS_TAKEN"));
    // A retired device binds nobody, and is not told of again.
    desk.tell(Signal::Retire);
    let (steps, overruled) = by(&desk, "tablet", &reach(&["tablet"])).unwrap();
    assert_eq!((steps.len(), overruled), (2, vec![]));
    // Without an alias there is nothing to be bound.
    let bare = register(
        &Known(None, false),
        &[registration("a", "lab")],
        &reach(&["a"]),
        &desk.context(),
    )
    .unwrap();
    assert_eq!(bare[0].device.aliases.reach, None);
}
