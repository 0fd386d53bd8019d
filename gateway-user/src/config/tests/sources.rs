//! `[[source]]`: what belongs to a VPN server alone.

use super::*;
use crate::model::prefix;

fn head(section: &str) -> String {
    GOOD.text().replacen(GOOD.head, section, 1)
}

const TWO: &str = r#"[[source]]
name = "a"
interfaces = ["tun0", "tun1*"]
prefixes = ["10.66.0.0/24"]
[[source]]
name = "b"
heartbeat = "5m"
interfaces = ["tun2"]
"#;

#[test]
fn what_one_lists_is_its_own() {
    let config = parse(&head(TWO)).unwrap();
    let own = |source: &str, interface: &str| config.may_be_on(&source.parse().unwrap(), &interface.parse().unwrap());
    let not = |other: &str| Err(NotIts(Some(other.parse().unwrap())));
    assert_eq!(
        [own("a", "tun0"), own("a", "tun17"), own("b", "tun2")],
        [Ok(true), Ok(true), Ok(true)]
    );
    assert_eq!(
        [own("b", "tun0"), own("c", "tun1"), own("a", "tun2")],
        [not("a"), not("a"), not("b")]
    );
    assert_eq!([own("a", "tun3"), own("b", "tun3")], [Err(NotIts(None)), Err(NotIts(None))]);
    assert_eq!(own("c", "tun3"), Ok(false));
    let has = |source: &str, hold: &str| config.may_have(&source.parse().unwrap(), hold.parse().unwrap());
    assert_eq!([has("a", "10.66.0.9"), has("b", "10.66.0.9")], [Ok(true), not("a")]);
    assert_eq!([has("a", "10.66.1.9"), has("b", "10.66.1.9")], [Err(NotIts(None)), Ok(false)]);
}

#[test]
fn a_whole_64_is_a_sources_if_all_of_it_is() {
    let with = |prefix: &str| {
        let section = format!("[[source]]\nname = \"a\"\nprefixes = [\"{prefix}\"]\n");
        let text = head(&section).replace("fd00:66::/64", "fd00:66::/48");
        let config = parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let whole = prefix::whole("fd00:66:0:7::".parse().unwrap());
        ["a", "b"].map(|source| config.may_have(&source.parse().unwrap(), whole).is_ok())
    };
    assert_eq!(with("fd00:66:0:7::/64"), [true, false]);
    assert_eq!(with("fd00:66::/60"), [true, false]);
    assert_eq!(with("fd00:66:0:7::/80"), [false, false], "some of it is");
    assert_eq!(with("fd00:66:0:8::/64"), [false, true]);
}

#[test]
fn what_is_wrong_is_named() {
    at(
        &head("[[source]]\nname = \"a\"\n"),
        1,
        &[
            "source.heartbeat",
            "[source] has no heartbeat",
            "heartbeat = \"5m\"",
            "interfaces",
        ],
    );
    for (from, to, line, parts) in [
        (
            "[\"tun2\"]",
            "[\"tun10\"]",
            8,
            &[
                "source.interfaces",
                "\"tun10\" overlaps \"tun1*\" of source \"a\" in line 3",
                "one name",
            ][..],
        ),
        ("[\"tun2\"]", "[\"tun*\"]", 8, &["\"tun*\" overlaps \"tun0\" of source \"a\""]),
        (
            "[\"tun2\"]",
            "[]",
            8,
            &["source.interfaces", "the list is empty", "leave interfaces out"],
        ),
        ("[\"tun2\"]", "[\"wg0\"]", 8, &["no [[interface]] of role device is \"wg0\""]),
        ("\"tun1*\"", "\"tun0\"", 3, &["\"tun0\" overlaps \"tun0\" of source \"a\""]),
        (
            "interfaces = [\"tun2\"]",
            "prefixes = [\"10.66.0.128/25\"]",
            8,
            &["source.prefixes", "10.66.0.128/25 overlaps 10.66.0.0/24"],
        ),
        (
            "10.66.0.0/24",
            "192.0.2.0/24",
            4,
            &["source.prefixes", "192.0.2.0/24 is in no pool"],
        ),
        (
            "name = \"b\"",
            "name = \"a\"",
            6,
            &["source.name", "stands twice, first in line 2"],
        ),
    ] {
        at(&head(&TWO.replace(from, to)), line, parts);
    }
}

#[test]
fn several_that_list_nothing_are_warned_of() {
    let warned = |text: &str| parse(&head(text)).unwrap().warnings().join("\n");
    assert!(!warned(TWO).contains("several sources"));
    assert!(warned(&TWO.replace("interfaces = [\"tun2\"]\n", "")).contains("several sources, and b list(s) no interfaces"));
    assert!(!warned("[[source]]\nname = \"a\"\nheartbeat = \"5m\"\n").contains("several sources"));
}
