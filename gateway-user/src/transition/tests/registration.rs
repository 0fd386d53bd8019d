//! Registering: aliases of every kind belong to one device, and again is the same.

use super::*;
use crate::model::Aliases;

#[test]
fn registering_again_is_no_change() {
    let mut desk = Desk::new("lab");
    desk.connect().proof("r1");
    let again = desk.register(&registration("phone", "lab")).unwrap();
    assert!(!again.changed);
    desk.window(None, Some(HOUR));
    let lost = desk.register(&registration("phone", "lab")).unwrap();
    assert_eq!(lost.device.enrolment.window, Window::default(), "all of it is replaced");
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
        register(&Known(None, false), &both, &context).unwrap_err().name(),
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
    let moved = register(&known, &[registration("phone", "lab"), with_key("tablet")], &desk.context()).unwrap();
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
    let list = |one: Registration| register(&Known(Some(&desk.device), false), &[one], &desk.context());
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
