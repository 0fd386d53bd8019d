//! Packets as pcapng (draft-ietf-opsawg-pcapng), with interfaces and comments: what Wireshark, tshark and tcpdump open. Only what a capture
//! of ours needs of the format; the section is written in the machine's byte order, and says which that is.

use std::io::{self, Write};

/// LINKTYPE_ETHERNET (tcpdump.org/linktypes.html).
pub(super) const ETHERNET: u16 = 1;
/// LINKTYPE_RAW: begins with the IP header.
pub(super) const RAW: u16 = 101;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

const OPTION_COMMENT: u16 = 1;
const OPTION_APPLICATION: u16 = 4;
const OPTION_INTERFACE_NAME: u16 = 2;
const OPTION_TIME_RESOLUTION: u16 = 9;
/// 10 to the -9th of a second.
const NANOSECONDS: u8 = 9;
/// Longest text of an option here, bytes; the format allows 65,535.
const LONGEST: usize = 4096;

/// One packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    /// Name of the interface.
    pub(super) interface: &'a str,
    /// [`ETHERNET`] or [`RAW`].
    pub(super) link: u16,
    /// Nanoseconds since 1970-01-01 UTC.
    pub(super) at_ns: u64,
    /// Of the whole packet, bytes.
    pub(super) length: u32,
    /// Its beginning.
    pub(super) data: &'a [u8],
    /// For people.
    pub(super) comment: &'a str,
}

/// Writes one section.
pub(super) struct Writer<W> {
    out: W,
    interfaces: Vec<(String, u16)>,
}

impl<W: Write> Writer<W> {
    /// Begins the file.
    pub(super) fn new(mut out: W, application: &str) -> io::Result<Self> {
        let mut body = Vec::new();
        body.extend(BYTE_ORDER_MAGIC.to_ne_bytes());
        body.extend(1_u16.to_ne_bytes());
        body.extend(0_u16.to_ne_bytes());
        // The section's length is not known beforehand.
        body.extend(u64::MAX.to_ne_bytes());
        option(&mut body, OPTION_APPLICATION, application.as_bytes());
        end_of_options(&mut body);
        block(&mut out, SECTION_HEADER, &body)?;
        Ok(Self {
            out,
            interfaces: Vec::new(),
        })
    }

    /// Writes a packet; an interface is described before its first one.
    pub(super) fn packet(&mut self, p: &Packet<'_>) -> io::Result<()> {
        let known = self.interfaces.iter().position(|(n, l)| n == p.interface && *l == p.link);
        let number = match known {
            Some(number) => number,
            None => {
                self.describe(p.interface, p.link)?;
                self.interfaces.len() - 1
            }
        };
        let data = &p.data[..p.data.len().min(p.length as usize)];
        let mut body = Vec::with_capacity(data.len() + p.comment.len() + 48);
        body.extend((number as u32).to_ne_bytes());
        body.extend(((p.at_ns >> 32) as u32).to_ne_bytes());
        body.extend((p.at_ns as u32).to_ne_bytes());
        body.extend((data.len() as u32).to_ne_bytes());
        body.extend(p.length.to_ne_bytes());
        padded(&mut body, data);
        option(&mut body, OPTION_COMMENT, p.comment.as_bytes());
        end_of_options(&mut body);
        block(&mut self.out, ENHANCED_PACKET, &body)
    }

    /// What is written is handed on.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn describe(&mut self, name: &str, link: u16) -> io::Result<()> {
        let mut body = Vec::new();
        body.extend(link.to_ne_bytes());
        body.extend(0_u16.to_ne_bytes());
        // No limit: each packet says how much of it is there.
        body.extend(0_u32.to_ne_bytes());
        option(&mut body, OPTION_INTERFACE_NAME, name.as_bytes());
        option(&mut body, OPTION_TIME_RESOLUTION, &[NANOSECONDS]);
        end_of_options(&mut body);
        block(&mut self.out, INTERFACE_DESCRIPTION, &body)?;
        self.interfaces.push((name.to_owned(), link));
        Ok(())
    }
}

/// A block: type, length, body, length again.
fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let length = (body.len() as u32 + 12).to_ne_bytes();
    let mut all = Vec::with_capacity(body.len() + 12);
    all.extend(kind.to_ne_bytes());
    all.extend(length);
    all.extend(body);
    all.extend(length);
    out.write_all(&all)
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let mut end = value.len().min(LONGEST);
    // Not in the middle of a character.
    while end < value.len() && end > 0 && value[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    body.extend(code.to_ne_bytes());
    body.extend((end as u16).to_ne_bytes());
    padded(body, &value[..end]);
}

fn end_of_options(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the blocks: types, and that both lengths agree and are multiples of 4.
    fn blocks(file: &[u8]) -> Vec<(u32, &[u8])> {
        let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut all) = (0, Vec::new());
        while at < file.len() {
            let length = word(at + 4) as usize;
            assert_eq!((length % 4, word(at + length - 4) as usize), (0, length));
            all.push((word(at), &file[at + 8..at + length - 4]));
            at += length;
        }
        all
    }

    #[test]
    fn interfaces_are_described_once_before_their_first_packet() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "lazaret").unwrap();
        let packet = |interface, link, data| Packet {
            interface,
            link,
            at_ns: 0x0123_4567_89ab_cdef,
            length: 60,
            data,
            comment: "no_rule",
        };
        for (interface, link) in [
            ("tun0", RAW),
            ("tun0", RAW),
            ("core0", ETHERNET),
            ("tun0", RAW),
            ("tun0", ETHERNET),
        ] {
            writer.packet(&packet(interface, link, &[1, 2, 3, 4, 5])).unwrap();
        }
        writer.flush().unwrap();
        let all = blocks(&file);
        let kinds: Vec<u32> = all.iter().map(|(k, _)| *k).collect();
        let (i, p) = (INTERFACE_DESCRIPTION, ENHANCED_PACKET);
        assert_eq!(kinds, [SECTION_HEADER, i, p, p, i, p, p, i, p]);
        let numbers: Vec<u8> = all.iter().filter(|(k, _)| *k == p).map(|(_, b)| b[0]).collect();
        assert_eq!(numbers, [0, 0, 1, 0, 2]);
        let body = all[2].1;
        assert_eq!(body[4..8], 0x0123_4567_u32.to_ne_bytes());
        assert_eq!(body[8..12], 0x89ab_cdef_u32.to_ne_bytes());
        assert_eq!((body[12], body[16]), (5, 60), "captured and original length");
        assert_eq!(body[20..28], [1, 2, 3, 4, 5, 0, 0, 0]);
    }

    #[test]
    fn what_is_longer_than_its_packet_or_its_option_is_cut() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "lazaret").unwrap();
        let comment = "ä".repeat(LONGEST);
        let packet = Packet {
            interface: "i",
            link: RAW,
            at_ns: 0,
            length: 2,
            data: &[9; 8],
            comment: &comment,
        };
        writer.packet(&packet).unwrap();
        let all = blocks(&file);
        assert_eq!(all[2].1[12], 2);
        let text = &all[2].1[20 + 4 + 4..][..LONGEST];
        assert!(std::str::from_utf8(text).is_ok());
    }
}
