//! What a correct file is warned of.

use super::*;

#[test]
fn warnings() {
    let warned = |text: &str| parse(text).unwrap().warnings().join("\n");
    let only_api = warned(&GOOD.text());
    assert_eq!(only_api.lines().count(), 1, "{only_api}");
    assert!(only_api.contains("no [api]"));
    for (from, to, part) in [
        ("\"enforce\"", "\"observe\"", "NOTHING is denied"),
        ("lease = \"24h\"\n", "", "no lease"),
        ("\"tun*\"", "\"tap0\"", "dev tap"),
        ("ports = [\"443\"]", "ports = [\"50-60\"]", ""),
        (
            "to = [\"10.1.0.5/32\"]\nprotocol = \"tcp\"\nports = [\"443\"]",
            "to = [\"10.0.0.0/8\"]\nprotocol = \"udp\"\nports = [\"53\"]",
            "any resolver in 10.0.0.0/8",
        ),
        (
            "to = [\"10.1.0.5/32\"]\nprotocol = \"tcp\"\nports = [\"443\"]",
            "to = [\"::/0\"]\nprotocol = \"tcp\"\nports = [\"443\"]",
            "every address there is",
        ),
        (
            "to = [\"10.1.0.5/32\"]\nprotocol = \"tcp\"\nports = [\"443\"]",
            "from = [\"10.0.0.0/8\"]\nprotocol = \"udp\"\nports = [\"161\"]",
            "can send to 10.0.0.0/8 from its ports",
        ),
        (
            "to = [\"10.1.0.5/32\"]\nprotocol = \"tcp\"\nports = [\"443\"]",
            "from = [\"10.0.0.0/8\"]\nprotocol = \"tcp\"\nports = [\"161\"]",
            "",
        ),
        ("role = \"core\"", "role = \"device\"", "no [[interface]] has role = \"core\""),
    ] {
        let all = warned(&with(from, to));
        assert!(all.contains(part), "{from} -> {to}: {all}");
        assert_eq!(all.lines().count(), if part.is_empty() { 1 } else { 2 }, "{all}");
    }
}
