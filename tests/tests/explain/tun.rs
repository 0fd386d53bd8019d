//! Without an Ethernet header, and with more than one device interface: two tuns.

use lazaret_tests::{
    gateway::Gateway,
    netns::Tun,
    require,
    site::{DEVICE, DM, MAIL, Site},
};

use crate::stage::json;

#[test]
fn on_tuns_the_session_says_where() {
    require!(Root, Bpf, Tun);
    let site = Site::new().unwrap();
    let tuns = ["vpn0", "vpn1"].map(|name| Tun::new(&site.gw, name).unwrap());
    let mut gateway = Gateway::new(&site, "vpn0").unwrap();
    gateway.configure("name = \"vpn0\"", "name = \"vpn*\"").unwrap();
    gateway.start().unwrap();
    for tun in &tuns {
        gateway.attached(tun.name()).unwrap();
    }
    let local = gateway.local().unwrap();
    local.register("phone", "staff").unwrap();
    let packet = format!("--from {DEVICE} --to {DM} --proto tcp --port 80");

    let refused = gateway.cli(&format!("explain {packet}")).unwrap_err().to_string();
    for part in ["AMBIGUOUS_INTERFACE", "has no live session", "vpn0, vpn1"] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    let e = &json(&gateway, &format!("{packet} --in vpn1"))[0];
    assert_eq!((&e["passes"], &e["place"]["link"]), (&true.into(), &"ip".into()), "{e:#}");
    assert_eq!(e["place"]["program"], "tc_device_ip");

    local.open("lab", "phone", &["10.66.0.5"], "vpn1").unwrap();
    let both = json(&gateway, &format!("{packet} --both"));
    let places: Vec<_> = both.iter().map(|e| e["place"]["interface"].as_str().unwrap()).collect();
    assert_eq!(places, ["vpn1", "core0", "vpn1"], "{both:#?}");
    assert!(both.iter().all(|e| e["passes"] == true), "{both:#?}");
    // The other tun is the wrong one for it.
    let e = &json(&gateway, &format!("{packet} --in vpn0"))[0];
    assert_eq!(e["reason"], "wrong_interface", "{e:#}");
    assert!(e["changes"].to_string().contains("the packet on vpn1"), "{e:#}");
    let e = &json(&gateway, &format!("--from {DEVICE} --to {MAIL} --proto 47"))[0];
    assert_eq!(e["reason"], "no_rule", "{e:#}");
    assert!(e["changes"].to_string().contains("protocol = \\\"47\\\""), "{e:#}");

    let refused = gateway.cli(&format!("explain {packet} --vlan 7")).unwrap_err().to_string();
    assert!(refused.contains("no Ethernet header"), "{refused}");
}
