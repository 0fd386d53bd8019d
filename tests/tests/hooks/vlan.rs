//! XDP, its companion and VLAN tags: where the tags are in the frame, both see the same; where the card has taken one off, only the companion
//! sees it. Either way a packet passes only in a VLAN that the interface has, and what passes is counted once. What XDP has counted as passed without
//! the tag that it could not see, and the companion drops for it, is counted by both: as passed, and as `vlan`.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use gateway_ebpf::reason::Reason;
use lazaret_tests::{
    require::{Need, or_skip},
    wire::push_tag,
};

use crate::{link::Link, world::RULE};

/// Behind our programs, a counter of what they let through with a grant.
struct Site {
    link: Link,
    sender: UdpSocket,
}

/// What has happened.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// By the rule.
    rule: u64,
    /// Dropped for its VLAN.
    vlan: u64,
    /// Come through with a grant.
    granted: u64,
}

impl Site {
    fn new() -> Self {
        let link = Link::addressed(true, false);
        let (device, gateway) = (&link.device, &link.gateway);
        // Address resolution would be tagged as well, and nobody answers in a VLAN.
        let shown = gateway.ip("-o link show inside").unwrap();
        let mac = shown.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        for neighbour in ["10.66.0.1", "fd66::1"] {
            device
                .ip(&format!("neighbour replace {neighbour} lladdr {mac} dev vpn nud permanent"))
                .unwrap();
        }
        gateway.exec("nft add table netdev seen").unwrap();
        gateway
            .exec("nft add chain netdev seen in { type filter hook ingress device inside priority 0 ; }")
            .unwrap();
        gateway
            .exec("nft add rule netdev seen in meta mark & 0xff000000 == 0x1a000000 counter")
            .unwrap();

        let sender = device.run(|| UdpSocket::bind("[::]:0")).unwrap();
        Self { link, sender }
    }

    /// Sends a packet of each family that the rule allows, with these tags, outermost first, the last in the buffer's own field if the card takes
    /// tags; and tells what came of it.
    fn send(&self, tags: &[u16]) -> Seen {
        let push = |tci: &u16| push_tag(&self.link.device, "vpn", *tci).unwrap();
        let pushers: Vec<_> = tags.iter().rev().map(push).collect();
        let before = self.seen();
        for to in ["::ffff:10.77.0.53", "fd77::53"] {
            self.sender
                .send_to(b"who", (to.parse::<std::net::Ipv6Addr>().unwrap(), 53))
                .unwrap();
        }
        // A packet over veth takes a softirq, not more.
        let limit = Instant::now() + Duration::from_secs(2);
        loop {
            let now = self.seen();
            let seen = Seen {
                rule: now.rule - before.rule,
                vlan: now.vlan - before.vlan,
                granted: now.granted - before.granted,
            };
            if seen.granted + seen.vlan >= 2 || Instant::now() > limit {
                drop(pushers);
                return seen;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn seen(&self) -> Seen {
        let listed = self.link.gateway.exec("nft list table netdev seen").unwrap();
        let packets = listed.split("counter packets ").nth(1).unwrap().split(' ').next().unwrap();
        let counted = |reason| (0..4).map(|pool| self.link.kernel.counted(pool, reason).packets).sum();
        assert_eq!(
            self.link.kernel.by_rule(RULE)[0],
            self.link.kernel.counted(1, Reason::Rule).packets
        );
        Seen {
            rule: counted(Reason::Rule),
            vlan: counted(Reason::Vlan),
            granted: packets.parse().unwrap(),
        }
    }

    /// Whether the card of the device adds the tags, so that they do not lie in the frame.
    fn offload(&self, on: bool) {
        let on = if on { "on" } else { "off" };
        self.link.device.exec(&format!("ethtool -K vpn txvlan {on}")).unwrap();
    }
}

const GRANTED: Seen = Seen {
    rule: 2,
    vlan: 0,
    granted: 2,
};
/// For its tags.
const DROPPED: Seen = Seen {
    rule: 0,
    vlan: 2,
    granted: 0,
};
/// For a tag that the card took off: passed, and counted, by XDP.
const DROPPED_BEHIND_XDP: Seen = Seen { rule: 2, ..DROPPED };

#[test]
fn tags_in_the_frame() {
    if !or_skip("tags_in_the_frame", &[Need::Root, Need::Bpf]) {
        return;
    }
    let site = Site::new();
    site.offload(false);
    assert_eq!(site.send(&[]), GRANTED);
    assert_eq!(site.send(&[7]), GRANTED);
    // A priority tag, and a priority in a tag.
    assert_eq!(site.send(&[5 << 13]), GRANTED);
    assert_eq!(site.send(&[5 << 13 | 7]), GRANTED);
    assert_eq!(site.send(&[100, 9]), GRANTED);
    assert_eq!(site.send(&[7, 5]), GRANTED);
    for foreign in [
        &[8][..],
        &[100],
        &[9],
        &[5],
        &[9, 100],
        &[7, 7],
        &[7, 7, 7],
        &[7, 7, 5],
        &[7, 5, 5],
        &[4095],
    ] {
        assert_eq!(site.send(foreign), DROPPED, "{foreign:?}");
    }
}

/// XDP judges what it sees, an untagged frame; the companion has the last word about the tag.
#[test]
fn a_tag_that_the_card_took_off() {
    if !or_skip("a_tag_that_the_card_took_off", &[Need::Root, Need::Bpf]) {
        return;
    }
    let site = Site::new();
    site.offload(true);
    assert_eq!(site.send(&[]), GRANTED);
    assert_eq!(site.send(&[7]), GRANTED);
    assert_eq!(site.send(&[5 << 13]), GRANTED);
    assert_eq!(site.send(&[5 << 13 | 7]), GRANTED);
    for foreign in [8, 100, 9, 4095] {
        assert_eq!(site.send(&[foreign]), DROPPED_BEHIND_XDP, "{foreign}");
    }
    // XDP sees the inner tag alone, which the interface has not, and leaves the frame to its companion, which sees both.
    assert_eq!(site.send(&[100, 9]), GRANTED);
    assert_eq!(site.send(&[7, 5]), GRANTED);
    for foreign in [&[7, 9][..], &[100, 5], &[9, 9], &[5, 9], &[8, 7, 7]] {
        assert_eq!(site.send(foreign), DROPPED, "{foreign:?}");
    }
    // It sees what the interface has; with the tag that the card has taken off it has not, also where that is the same as the one behind.
    for foreign in [&[100, 7][..], &[7, 7], &[7, 7, 5], &[100, 7, 5]] {
        assert_eq!(site.send(foreign), DROPPED_BEHIND_XDP, "{foreign:?}");
    }
}
