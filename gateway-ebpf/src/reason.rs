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

    32 Truncated "truncated" drop: "The packet ends before the headers do.", "See who sends it with a capture on the interface.";
    33 Ethertype "ethertype" drop: "Neither IPv4, IPv6 nor ARP.", "Devices may send IP only.";
    34 Llc "llc" drop: "An IEEE 802.3 length in place of an ethertype.", "Turn spanning tree or IPX off on the device side.";
    35 Vlan "vlan" drop: "A VLAN tag; tagged frames are not judged.", "Untag the port, or give Lazaret the VLAN's own interface.";
    36 Version "version" drop: "The IP version is neither 4 nor 6, or not the ethertype's.", "See who sends it with a capture on the interface.";
    37 HeaderLength "header_length" drop: "The IPv4 or the TCP header length is below 20 bytes.", "See who sends it with a capture on the interface.";
    38 TotalLength "total_length" drop: "The IP length is longer than the packet or shorter than the header.",
        "If legitimate packets are hit, turn BIG TCP off on the interface.";
    39 IpOptions "ip_options" drop: "IPv4 options; they are not judged.", "Have the sender leave them out.";
    40 ExtensionHeader "extension_header" drop: "An IPv6 extension header; it is not judged.", "Have the sender leave it out.";
    41 Fragment "fragment" drop: "A fragment; fragments are not judged.", "Lower the device's MTU, or use a transport that finds the path MTU.";
    42 IcmpError "icmp_error" drop: "An ICMP error, to or from a pool without policy `all`; the quoted packet is not judged.", "Clamp the TCP MSS on the VPN server.";
    43 ArpMalformed "arp_malformed" drop: "Not an ARP request or reply for IPv4 over Ethernet.", "See who sends it with a capture on the interface.";
    44 NeighbourUnsafe "neighbour_unsafe" drop: "Neighbour discovery with a hop limit below 255, a wrong code, a router's message from a device, or a redirect.",
        "Mend the sender; only solicitations and advertisements of neighbours pass.";
    45 UdpLength "udp_length" drop: "The UDP length does not fit the packet.", "See who sends it with a capture on the interface.";

    46 Unjudged "unjudged" drop: "A packet left through a device interface without having been judged: a program is not attached there.",
        "Start the daemon, or see `lazaret status`; it attaches the program again.";

    60 Internal "internal" drop: "A table of the program could not be read; it fails closed.", "Restart the daemon, and report it.";
}

#[cfg(test)]
mod tests {
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

    /// The list is append-only: these numbers and names have been published.
    #[test]
    fn published_numbers_keep_their_names() {
        for (n, name) in [
            (1, "rule"),
            (3, "all"),
            (16, "no_rule"),
            (20, "not_in_pool"),
            (41, "fragment"),
            (60, "internal"),
        ] {
            assert_eq!(Reason::from_number(n).map(Reason::name), Some(name));
        }
    }
}
