//! Why a packet passed or was dropped. The list is public, numbered and append-only: a number never changes its meaning.
//! Counters, events, API, CLI and documentation take number, name, sentence and remedy from here.

macro_rules! reasons {
    ($( $number:literal $name:ident $text:literal $verdict:ident : $sentence:literal, $remedy:literal; )*) => {
        /// A reason, with its number.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $( #[doc = $sentence] $name = $number, )*
        }

        impl Reason {
            /// Every reason, in order of number.
            pub const ALL: &'static [Self] = &[$( Self::$name ),*];

            /// The reason with this number.
            #[must_use]
            pub const fn from_number(n: u8) -> Option<Self> {
                match n { $( $number => Some(Self::$name), )* _ => None }
            }
            /// Its name, as counters, API and CLI show it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Self::$name => $text, )* }
            }
            /// What happened, as a sentence.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $( Self::$name => $sentence, )* }
            }
            /// What to do about it.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $( Self::$name => $remedy, )* }
            }
            /// Whether the packet passes.
            #[inline(always)]
            #[must_use]
            pub const fn passes(self) -> bool {
                match self { $( Self::$name => reasons!(@ $verdict), )* }
            }
        }
    };
    (@ pass) => { true };
    (@ drop) => { false };
}

reasons! {
    1 Rule "rule" pass: "A rule of the pool's policy names the pair.", "";
    2 Reply "reply" pass: "It answers what a rule of the pool's policy names.", "";
    3 All "all" pass: "The pool's policy allows everything.", "";
    4 Arp "arp" pass: "Address resolution on an Ethernet interface (RFC 826).", "";
    5 NeighbourDiscovery "neighbour_discovery" pass: "IPv6 address resolution on its own link (RFC 4861).", "";
    6 NotOurs "not_ours" pass: "Neither end is in a pool, on a core interface.", "";
    7 Related "related" pass: "An ICMP error about a packet that the policy allows.", "";

    16 NoRule "no_rule" drop: "The policy of the address's pool does not name this destination, protocol and port.",
        "If the device should reach it, add a rule to the pool's policy, or release the device.";
    17 Blocked "blocked" drop: "The address is in a pool of kind blocked.", "Have the MDM report its policy applied, or move the device with `lazaret device`.";
    18 NewToDevice "new_to_device" drop: "A new TCP connection to a device whose policy only allows answers.",
        "Release the device if others should reach it; a rule allows connections from the device only.";
    19 LeaseEnded "lease_ended" drop: "The release was not renewed in time, and the fallback pool's policy does not name the pair.",
        "Have the MDM report its policy applied again; see `lazaret device show`.";
    20 NotInPool "not_in_pool" drop: "The source of a packet on a device interface is in no pool.",
        "Add the prefix to a pool if the VPN server gives out this address; else it is spoofed.";
    21 DestinationNotInPool "destination_not_in_pool" drop: "A packet leaves through a device interface to an address in no pool.",
        "Add the prefix to a pool, or mend the host's route.";
    22 PoolSourceFromCore "pool_source_from_core" drop: "A pool address arrives as the source on a core interface.",
        "Mend the network behind the interface: it has a route loop, or someone spoofs.";
    23 WrongInterface "wrong_interface" drop: "The address belongs to a session on another interface, or its pool is not among the interface's.",
        "Have the VPN server report the session with the interface it is on; else it is spoofed.";

    32 Truncated "truncated" drop: "The packet ends before the headers do.",
        "See who sends it with a capture on the interface; if long IPv6 packets are hit, turn BIG TCP off there (gso_max_size, gro_max_size 65536).";
    33 Ethertype "ethertype" drop: "Neither IPv4, IPv6 nor ARP.", "Devices may send IP only.";
    34 Llc "llc" drop: "An IEEE 802.3 length in place of an ethertype.", "Turn spanning tree or IPX off on the device side.";
    35 Vlan "vlan" drop: "A VLAN tag that the interface's configuration does not name.", "Name the VLAN in the interface's `vlans`, or untag the port.";
    36 Version "version" drop: "The IP version is neither 4 nor 6, or not the ethertype's.", "See who sends it with a capture on the interface.";
    37 HeaderLength "header_length" drop: "The IPv4 or the TCP header length is below 20 bytes.", "See who sends it with a capture on the interface.";
    38 TotalLength "total_length" drop: "The IP length is longer than the packet or shorter than the header.",
        "If legitimate packets are hit, turn BIG TCP off on the interface (gso_ipv4_max_size, gro_ipv4_max_size 65536).";
    39 IpOptions "ip_options" drop: "IPv4 options that are malformed or not known to be harmless.", "Have the sender leave them out.";
    40 ExtensionHeader "extension_header" drop: "An IPv6 extension header that is unknown, for experiments or mobility, or out of its place.", "Have the sender leave it out.";
    41 Fragment "fragment" drop: "A later fragment whose first one has not passed here, or too long ago.", "If it repeats, fragments take several ways or come late: lower the device's MTU.";
    42 IcmpError "icmp_error" drop: "An ICMP error of an unknown kind, in fragments, or about a packet that the policy does not allow.", "Allow the packet that it quotes, if the device should reach it.";
    43 ArpMalformed "arp_malformed" drop: "Not an ARP request or reply for IPv4 over Ethernet.", "See who sends it with a capture on the interface.";
    44 NeighbourUnsafe "neighbour_unsafe" drop: "Neighbour discovery with a hop limit below 255 or a wrong code, on a link without Ethernet, a router's message in any direction, or a redirect.",
        "Mend the sender; only solicitations and advertisements of neighbours pass. SLAAC cannot work towards devices: give them addresses another way.";
    45 UdpLength "udp_length" drop: "The UDP length does not fit the packet.", "See who sends it with a capture on the interface.";

    46 Unjudged "unjudged" drop: "A packet left through a device interface without having been judged: a program is not attached there.",
        "Start the daemon, or see `lazaret status`; it attaches the program again.";

    47 SourceRoute "source_route" drop: "An IPv4 source route (RFC 791).", "Have the sender leave it out: it is a way around.";
    48 RoutingHeader "routing_header" drop: "An IPv6 routing header with segments left (RFC 5095, RFC 8754).", "Have the sender leave it out: it is a way around.";
    49 ExtensionDepth "extension_depth" drop: "More than six IPv6 extension headers.", "See who sends it with a capture on the interface.";
    50 FragmentTiny "fragment_tiny" drop: "A first fragment without the whole transport header, or a TCP fragment at offset 8 (RFC 3128).",
        "See who sends it: no system makes such fragments by itself.";
    51 FragmentOverlap "fragment_overlap" drop: "A fragment covers what an earlier one of its datagram has brought, and is no duplicate (RFC 5722); the datagram is lost.",
        "See who sends it: neither a system nor a network makes such fragments by itself.";
    52 FragmentMalformed "fragment_malformed" drop: "A fragment that is empty, not a multiple of 8 bytes, beyond 65,535 bytes, or in another.",
        "See who sends it with a capture on the interface.";
    53 FragmentTableFull "fragment_table_full" drop: "More datagrams in fragments at a time than there is room for, more than 8 separate pieces of one, or its place is busy on another CPU.",
        "Lower the devices' MTU so that fewer packets are fragmented; if many datagrams are, raise `tables.fragments`, which helps in the first case only.";
    54 IcmpQuote "icmp_quote" drop: "An ICMP error whose quoted packet is cut short, a later fragment, behind other IPv6 extension headers or an error itself, or is not one that its receiver sent.",
        "See who sends it with a capture on the interface.";
    55 Redirect "redirect" drop: "An ICMP redirect.", "Mend the routes of the sender; redirects never pass.";

    60 Internal "internal" drop: "A table of the program could not be read; it fails closed.", "Restart the daemon, and report it.";

    64 Multicast "multicast" drop: "A multicast address.", "If devices should send there, name it in a rule with a prefix within 224.0.0.0/4 or ff00::/8.";
    65 Broadcast "broadcast" drop: "The broadcast address.", "If devices should send there, name 255.255.255.255 in a rule.";
    66 LinkLocal "link_local" drop: "A link-local address.", "If devices should reach it, name it in a rule with a prefix within 169.254.0.0/16 or fe80::/10.";
    67 Loopback "loopback" drop: "A loopback address.", "Mend the sender: it means nothing on a network.";
    68 Unspecified "unspecified" drop: "The unspecified address.", "Mend the sender; DHCP is the VPN server's business.";
    69 Mapped "mapped" drop: "An IPv6 address that holds an IPv4 one (::ffff:0:0/96, ::/96).", "Use the IPv4 address.";
    70 SixToFour "six_to_four" drop: "A 6to4 address (2002::/16, 192.88.99.0/24): a tunnel to an IPv4 address.",
        "If devices should reach it, name it in a rule with a prefix within that range.";
    71 Nat64 "nat64" drop: "A NAT64 address (64:ff9b::/96, 64:ff9b:1::/48): it stands for an IPv4 address.",
        "If devices should reach it, name it in a rule with a prefix within that range.";
    72 ReservedAddress "reserved_address" drop: "An address that no host has (0.0.0.0/8, 240.0.0.0/4).", "Mend the sender.";
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::Reason;

    #[test]
    fn numbers_are_unique_small_and_found_again() {
        let mut last = 0;
        for r in Reason::ALL {
            assert!(*r as u8 > last && (*r as usize) < crate::abi::REASONS, "{r:?}");
            last = *r as u8;
            assert_eq!(Reason::from_number(last), Some(*r));
            assert_eq!(r.passes(), r.remedy().is_empty(), "{r:?}: a drop has a remedy");
        }
    }

    /// The list is append-only: all these numbers and names have been published. One that is new comes at its place here, and no other changes.
    const PUBLISHED: [(u8, &str); 49] = [
        (1, "rule"),
        (2, "reply"),
        (3, "all"),
        (4, "arp"),
        (5, "neighbour_discovery"),
        (6, "not_ours"),
        (7, "related"),
        (16, "no_rule"),
        (17, "blocked"),
        (18, "new_to_device"),
        (19, "lease_ended"),
        (20, "not_in_pool"),
        (21, "destination_not_in_pool"),
        (22, "pool_source_from_core"),
        (23, "wrong_interface"),
        (32, "truncated"),
        (33, "ethertype"),
        (34, "llc"),
        (35, "vlan"),
        (36, "version"),
        (37, "header_length"),
        (38, "total_length"),
        (39, "ip_options"),
        (40, "extension_header"),
        (41, "fragment"),
        (42, "icmp_error"),
        (43, "arp_malformed"),
        (44, "neighbour_unsafe"),
        (45, "udp_length"),
        (46, "unjudged"),
        (47, "source_route"),
        (48, "routing_header"),
        (49, "extension_depth"),
        (50, "fragment_tiny"),
        (51, "fragment_overlap"),
        (52, "fragment_malformed"),
        (53, "fragment_table_full"),
        (54, "icmp_quote"),
        (55, "redirect"),
        (60, "internal"),
        (64, "multicast"),
        (65, "broadcast"),
        (66, "link_local"),
        (67, "loopback"),
        (68, "unspecified"),
        (69, "mapped"),
        (70, "six_to_four"),
        (71, "nat64"),
        (72, "reserved_address"),
    ];

    #[test]
    fn published_numbers_keep_their_names() {
        let now: Vec<_> = Reason::ALL.iter().map(|r| (*r as u8, r.name())).collect();
        assert_eq!(now, PUBLISHED);
    }
}
