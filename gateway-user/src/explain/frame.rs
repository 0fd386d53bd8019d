//! A question as a frame. Pure. Checksums are zero, for nothing that judges looks at them, and the frame is never sent.

use std::{fmt, net::IpAddr};

use gateway_ebpf::headers::protocol::{ICMP, ICMPV6, TCP, UDP};

/// A packet that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Of the same family as `destination`.
    pub source: IpAddr,
    /// See `source`.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP and UDP; else 0.
    pub source_port: u16,
    /// TCP and UDP; else 0.
    pub destination_port: u16,
    /// TCP flags, as the header has them; else 0.
    pub flags: u8,
    /// ICMP, ICMPv6: an echo reply, not a request.
    pub reply: bool,
    /// VLAN ids, outermost first.
    pub vlans: Vec<u16>,
}

/// The flags' letters, from bit 0 on.
pub const FLAGS: &str = "FSRPAU";
/// Bytes behind the IP header: enough for any header that is made here, and for the kernel, which runs no frame of less than 14 bytes, and
/// none with less than an IP header behind an ethertype of IP.
const PAYLOAD: usize = 44;

impl Question {
    /// The packet that answers it: ends exchanged; what opens a connection is acknowledged, an echo request replied to.
    #[must_use]
    pub fn answer(&self) -> Self {
        let (syn, ack) = (2, 16);
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            flags: match self.flags {
                0 => 0,
                f if f & (syn | ack) == syn => syn | ack,
                _ => ack,
            },
            reply: !self.reply,
            ..self.clone()
        }
    }

    /// It has ports.
    #[must_use]
    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, TCP | UDP)
    }

    /// ICMP of the addresses' family.
    #[must_use]
    pub fn is_echo(&self) -> bool {
        self.protocol == if self.source.is_ipv4() { ICMP } else { ICMPV6 }
    }

    /// The packet, from the Ethernet header or from the IP header on.
    #[must_use]
    pub fn frame(&self, ethernet: bool) -> Vec<u8> {
        let mut frame = Vec::with_capacity(128);
        if ethernet {
            // Two locally administered addresses: nobody's.
            frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
            for vlan in &self.vlans {
                frame.extend(0x8100_u16.to_be_bytes());
                frame.extend(vlan.to_be_bytes());
            }
            let ethertype: u16 = if self.source.is_ipv4() { 0x0800 } else { 0x86dd };
            frame.extend(ethertype.to_be_bytes());
        }
        let payload = self.payload();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = (20 + payload.len() as u16).to_be_bytes();
                frame.extend([0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, self.protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            (source, destination) => {
                let length = (payload.len() as u16).to_be_bytes();
                frame.extend([0x60, 0, 0, 0, length[0], length[1], self.protocol, 64]);
                for address in [source, destination] {
                    let v6 = match address {
                        IpAddr::V4(a) => a.to_ipv6_mapped(),
                        IpAddr::V6(a) => a,
                    };
                    frame.extend(v6.octets());
                }
            }
        }
        frame.extend(payload);
        frame
    }

    fn payload(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(PAYLOAD);
        let ports = [self.source_port.to_be_bytes(), self.destination_port.to_be_bytes()].concat();
        match self.protocol {
            TCP => {
                payload.extend(ports);
                payload.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, self.flags, 0xff, 0xff]);
            }
            UDP => {
                payload.extend(ports);
                payload.extend((PAYLOAD as u16).to_be_bytes());
            }
            _ if self.is_echo() => payload.push(match (self.protocol, self.reply) {
                (ICMP, false) => 8,
                (ICMP, true) => 0,
                (_, false) => 128,
                (_, true) => 129,
            }),
            _ => {}
        }
        payload.resize(PAYLOAD, 0);
        payload
    }
}

/// "tcp 10.66.0.5:49152 to 10.9.0.10:443, flags S".
impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: IpAddr, port: u16| match (self.has_ports(), address) {
            (false, _) => address.to_string(),
            (true, IpAddr::V4(_)) => format!("{address}:{port}"),
            (true, IpAddr::V6(_)) => format!("[{address}]:{port}"),
        };
        let name = match self.protocol {
            TCP => "tcp".to_owned(),
            UDP => "udp".to_owned(),
            _ if self.is_echo() && self.reply => "icmp echo reply".to_owned(),
            _ if self.is_echo() => "icmp echo request".to_owned(),
            n => format!("protocol {n}"),
        };
        let (from, to) = (
            end(self.source, self.source_port),
            end(self.destination, self.destination_port),
        );
        write!(f, "{name} {from} to {to}")?;
        if self.protocol == TCP {
            let set = FLAGS.chars().enumerate().filter(|(i, _)| self.flags >> i & 1 == 1);
            write!(f, ", flags {}", set.map(|(_, c)| c).collect::<String>())?;
        }
        for vlan in &self.vlans {
            write!(f, ", vlan {vlan}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use gateway_ebpf::{
        headers::{Headers, Rare},
        parse::parse_full,
    };

    use super::*;

    fn question(source: &str, destination: &str, protocol: u8) -> Question {
        let ports = matches!(protocol, TCP | UDP);
        Question {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            source_port: if ports { 49152 } else { 0 },
            destination_port: if ports { 443 } else { 0 },
            flags: if protocol == TCP { 2 } else { 0 },
            reply: false,
            vlans: vec![],
        }
    }

    /// The gateway's own parser finds in the frame what was asked.
    #[test]
    fn a_frame_says_what_was_asked() {
        for (source, destination, protocols) in [
            ("10.66.0.5", "10.9.0.10", [TCP, UDP, ICMP, 47]),
            ("fd66::5", "fd09::10", [TCP, UDP, ICMPV6, 47]),
        ] {
            for protocol in protocols {
                for asked in [
                    question(source, destination, protocol),
                    question(source, destination, protocol).answer(),
                ] {
                    for ethernet in [false, true] {
                        let (frame, mut h) = (asked.frame(ethernet), Headers::default());
                        assert!(frame.len() >= 64, "{asked}: {} bytes", frame.len());
                        if ethernet {
                            parse_full::<_, true>(&frame[..], None, &mut h, &mut Rare::default());
                        } else {
                            parse_full::<_, false>(&frame[..], None, &mut h, &mut Rare::default());
                        }
                        assert_eq!(h.problem, None, "{asked}");
                        assert_eq!(
                            (h.protocol, h.source_port, h.destination_port, h.tcp_flags),
                            (asked.protocol, asked.source_port, asked.destination_port, asked.flags),
                            "{asked}"
                        );
                        assert_eq!(h.version, if asked.source.is_ipv4() { 4 } else { 6 });
                        if asked.is_echo() {
                            let want = match (asked.source.is_ipv4(), asked.reply) {
                                (true, false) => 8,
                                (true, true) => 0,
                                (false, false) => 128,
                                (false, true) => 129,
                            };
                            assert_eq!(h.icmp_type, want, "{asked}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn tags_stand_in_the_frame_outermost_first() {
        let tagged = Question {
            vlans: vec![7, 300],
            ..question("10.66.0.5", "10.9.0.10", UDP)
        };
        assert_eq!(tagged.frame(true)[12..22], [0x81, 0, 0, 7, 0x81, 0, 1, 44, 8, 0]);
        assert_eq!(tagged.frame(false)[0], 0x45, "without Ethernet there is no tag");
    }

    #[test]
    fn questions_and_their_answers_as_text() {
        let q = question("10.66.0.5", "10.9.0.10", TCP);
        assert_eq!(q.to_string(), "tcp 10.66.0.5:49152 to 10.9.0.10:443, flags S");
        assert_eq!(q.answer().to_string(), "tcp 10.9.0.10:443 to 10.66.0.5:49152, flags SA");
        assert_eq!(
            q.answer().answer().to_string(),
            "tcp 10.66.0.5:49152 to 10.9.0.10:443, flags A"
        );
        let q = question("fd66::5", "fd09::10", ICMPV6);
        assert_eq!(q.answer().to_string(), "icmp echo reply fd09::10 to fd66::5");
    }
}
