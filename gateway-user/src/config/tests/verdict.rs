//! The keys behind docs/verdict.md: interfaces' pools and VLANs, denials, shadows, rules of either direction, special addresses.

use super::*;

#[test]
fn interfaces_have_pools_and_vlans() {
    let text = with(
        "role = \"device\"\n",
        "role = \"device\"\npools = [\"staff\"]\nvlans = [100, 0xc8, \"200.30\"]\n",
    );
    let config = parse(&text).unwrap();
    let device = &config.interfaces[0];
    assert_eq!(device.pools, Some(vec![PoolId(2)]));
    assert_eq!((device.pools_mask(), config.interfaces[1].pools_mask()), (1 << 2, u64::MAX));
    let vlan = |outer, inner| Vlan { outer, inner };
    assert_eq!(device.vlans, [vlan(100, None), vlan(200, None), vlan(200, Some(30))]);
    let device = |more: &str| with("role = \"device\"\n", &format!("role = \"device\"\n{more}\n"));
    one(
        &device("pools = [\"nix\"]"),
        "nix",
        &["interface.pools", "no pool \"nix\"", "q, staff"],
    );
    one(&device("pools = []"), "pools = []", &["interface.pools", "empty"]);
    one(
        &device("pools = [\"q\", \"q\"]"),
        "pools = ",
        &["interface.pools", "is taken"],
    );
    for bad in [
        "0",
        "4095",
        "-1",
        "\"1.0\"",
        "\"1.2.3\"",
        "\"+5\"",
        "\"\"",
        "\".5\"",
        "99999999999999999999",
    ] {
        one(
            &device(&format!("vlans = [{bad}]")),
            "vlans",
            &["interface.vlans", "is not a VLAN"],
        );
    }
    one(&device("vlans = [true]"), "vlans", &["interface.vlans", "type is boolean"]);
    one(&device("vlans = 5"), "vlans", &["interface.vlans", "write an array"]);
    one(
        &device("vlans = [7, \"7\"]"),
        "vlans",
        &["interface.vlans", "VLAN 7 stands twice"],
    );
    let many: Vec<String> = (1..=17).map(|n| n.to_string()).collect();
    one(
        &device(&format!("vlans = [{}]", many.join(", "))),
        "vlans",
        &["interface.vlans", "17 VLANs", "16 at most"],
    );
    one(
        &with("role = \"core\"\n", "role = \"core\"\npools = [\"q\"]\n"),
        "pools = ",
        &["interface.pools", "only a device interface"],
    );
}

#[test]
fn pools_deny_and_have_shadows() {
    let config = parse(&with(
        "lease = \"24h\"\n",
        "lease = \"24h\"\ndeny = \"reject\"\nshadow_policy = \"dm\"\n",
    ))
    .unwrap();
    assert_eq!((config.pools[0].deny, config.pools[1].deny), (Deny::Drop, Deny::Reject));
    assert_eq!(config.pools[1].shadow_policy, Some("dm".parse().unwrap()));
    one(
        &with("lease = \"24h\"\n", "lease = \"24h\"\nshadow_policy = \"nix\"\n"),
        "nix",
        &["pool.shadow_policy", "no policy \"nix\""],
    );
    one(
        &with("lease = \"24h\"\n", "lease = \"24h\"\ndeny = \"silently\"\n"),
        "silently",
        &["pool.deny", "\"drop\" or \"reject\""],
    );
}

#[test]
fn a_rule_has_either_direction() {
    let config = parse(&with("to = [\"10.1.0.5/32\"]", "from = [\"10.1.0.5/32\"]")).unwrap();
    let Allow::Rules(rules) = &config.policies[1].allow else {
        panic!("rules")
    };
    assert_eq!(rules[0].direction, RuleDirection::ToDevice);
    assert_eq!(rules[0].peers, ["10.1.0.5/32".parse().unwrap()]);
    one(
        &with("to = [\"10.1.0.5/32\"]", "to = [\"10.1.0.5/32\"]\nfrom = [\"10.1.0.6\"]"),
        "from",
        &["policy.rule.from", "write two rules"],
    );
    one(
        &with("to = [\"10.1.0.5/32\"]\n", ""),
        "[[policy.rule]]",
        &["policy.rule.to", "from = [...]"],
    );
    one(
        &with("to = [\"10.1.0.5/32\"]", "from = []"),
        "from",
        &["policy.rule.from", "empty"],
    );
}

#[test]
fn rules_name_special_addresses_only_on_purpose() {
    for bad in ["0.0.0.0/32", "127.0.0.0/8", "127.0.0.53", "::", "::1"] {
        one(
            &with("10.1.0.5/32", bad),
            &format!("\"{bad}\""),
            &["policy.rule.to", "no packet of it passes"],
        );
    }
    let warnings = |prefix: &str| parse(&with("10.1.0.5/32", prefix)).unwrap().warnings().join("\n");
    for (prefix, name) in [
        ("224.0.0.251", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("fe80::/10", "link_local"),
        ("2002::/16", "six_to_four"),
        ("64:ff9b::/96", "nat64"),
    ] {
        let found = warnings(prefix);
        assert!(found.contains(&format!("which is {name}: ")), "{prefix}: {found}");
    }
    assert!(!warnings("10.0.0.0/8").contains("which is"));
    let all = File {
        policies: "[[policy]]\nname = \"everything\"\nallow = \"all\"\n[[policy]]\nname = \"dm\"\n[[policy.rule]]\nfrom = [\"0.0.0.0/0\"]\nprotocol = \"any\"\n",
        ..GOOD
    };
    let found = parse(&all.text()).unwrap().warnings().join("\n");
    assert!(
        found.contains("rule 1 lets 0.0.0.0/0, every address there is, connect"),
        "{found}"
    );
}
