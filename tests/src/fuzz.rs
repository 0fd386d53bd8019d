//! What the fuzzer does with its bytes. Plain functions: `cargo xtask fuzz` calls them from libFuzzer, an ordinary test with the corpus.
//! They panic where something is wrong.

use std::{cell::RefCell, sync::LazyLock};

use gateway_ebpf::{
    abi::{Captured, Denial, SNAP},
    headers::{ArpForm, Headers, Rare},
    parse::{Parsed, parse_common, parse_common6, parse_fast, parse_full},
    reason::Reason,
};
use gateway_user::{api, config::Config};

use crate::{
    differential::{
        self,
        host::Host,
        scenario::{self, Scenario, Step},
    },
    reference::{Place, Reference, read},
};

/// The parser: its two forms agree with each other, and with the reference about what is wrong and who the ends are.
///
/// # Panics
/// If not.
pub fn parser(data: &[u8]) {
    let Some((ethernet, bytes)) = data.split_first() else { return };
    let ethernet = ethernet & 1 == 1;
    let (full, fast) = if ethernet {
        forms::<true>(bytes)
    } else {
        forms::<false>(bytes)
    };
    if let Some(fast) = fast {
        assert_eq!(fast, full, "the fast form");
    }
    let packet = read(bytes, ethernet, None);
    // What is wrong with an ARP packet is told apart from other problems: such a packet has no addresses.
    let arp = (full.arp == Some(ArpForm::Malformed)).then_some(Reason::ArpMalformed);
    let problem = full.problem.or(arp).map(Reason::name);
    assert_eq!(problem, packet.problem, "{full:?}\n{packet:?}");
    assert_eq!(full.version != 0, packet.addresses.is_some(), "{full:?}\n{packet:?}");
}

fn forms<const ETHERNET: bool>(bytes: &[u8]) -> (Headers, Option<Headers>) {
    let (mut full, mut fast) = (Headers::default(), Headers::default());
    parse_full::<_, ETHERNET>(bytes, None, &mut full, &mut Rare::default());
    let done = parse_fast::<_, ETHERNET>(bytes, &mut fast) == Parsed::Done;
    for common in [parse_common::<_, ETHERNET>(bytes), parse_common6::<_, ETHERNET>(bytes)]
        .into_iter()
        .flatten()
    {
        assert_eq!(common, full, "the common form");
    }
    (full, done.then_some(fast))
}

/// A gateway with everything that a packet can meet, and its two judges.
fn with_judges<R>(each: impl FnOnce(&mut Host, &mut Reference) -> R) -> R {
    static SCENARIO: LazyLock<Scenario> = LazyLock::new(|| scenario::scenario(2, 0));
    thread_local! {
        static JUDGES: RefCell<(Host, Reference)> = RefCell::new({
            let host = Host::new(&SCENARIO).unwrap_or_else(|e| panic!("{e}"));
            (host, differential::reference(&SCENARIO))
        });
    }
    JUDGES.with_borrow_mut(|(host, reference)| each(host, reference))
}

/// One packet: the shipping decision agrees with the reference.
///
/// # Panics
/// If not.
pub fn decision(data: &[u8]) {
    let Some((place, bytes)) = data.split_first() else { return };
    let step = Step {
        place: place_of(*place),
        tag: None,
        bytes: bytes.to_vec(),
        wait: 0,
    };
    with_judges(|host, reference| {
        host.forget();
        reference.forget();
        both(host, reference, &step);
    });
}

/// Datagrams in fragments, eight bytes of data each: the same.
///
/// # Panics
/// If not.
pub fn fragments(data: &[u8]) {
    with_judges(|host, reference| {
        host.forget();
        reference.forget();
        for piece in data.chunks_exact(4).take(64) {
            let step = fragment([piece[0], piece[1], piece[2], piece[3]]);
            if both(host, reference, &step) == "fragment_table_full" {
                return;
            }
        }
    });
}

fn fragment([what, offset, length, wait]: [u8; 4]) -> Step {
    let (v6, more, tcp) = (what & 1 != 0, what & 2 != 0, what & 4 != 0);
    let id = what >> 3 & 3;
    let mut data = vec![0; usize::from(length)];
    let transport: &[u8] = if tcp {
        &[0, 53, 1, 187, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 2, 0, 0, 0, 0, 0, 0]
    } else {
        &[0x9c, 0x40, 0, 53, 0, 200, 0, 0]
    };
    if offset == 0 {
        data.iter_mut().zip(transport).for_each(|(d, t)| *d = *t);
    }
    let protocol = if tcp { 6 } else { 17 };
    let mut bytes = Vec::new();
    if v6 {
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend((data.len() as u16 + 8).to_be_bytes());
        bytes.extend([44, 64]);
        for address in ["fd66::6", "2001:db8::53"] {
            bytes.extend(address.parse::<std::net::Ipv6Addr>().map(|a| a.octets()).unwrap_or_default());
        }
        bytes.extend([protocol, 0]);
        bytes.extend((u16::from(offset) << 3 | u16::from(more)).to_be_bytes());
        bytes.extend([0, 0, 0, id]);
    } else {
        bytes.extend([0x45, 0]);
        bytes.extend((data.len() as u16 + 20).to_be_bytes());
        bytes.extend([0, id]);
        bytes.extend((u16::from(offset) | u16::from(more) << 13).to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 10, 66, 0, 6, 192, 0, 2, 53]);
    }
    bytes.append(&mut data);
    Step {
        place: place_of(if wait & 0x10 == 0 { 0 } else { 4 }),
        tag: None,
        bytes,
        wait: u64::from(wait & 0xf) * 1_000_000_000,
    }
}

/// Records of the kernel's ring buffers, with anything in them: a client is told what they are, and no more bytes than there are.
///
/// # Panics
/// If not.
pub fn events(data: &[u8]) {
    let mut rest = data.iter().copied();
    let mut byte = || rest.next().unwrap_or(0);
    let mut address = || std::array::from_fn(|_| byte());
    let (src, dst) = (address(), address());
    let mut word = || u32::from_ne_bytes(std::array::from_fn(|_| byte()));
    let (length, captured, vlan, ethernet) = (word(), word(), word(), word());
    let packet = Captured {
        denial: Denial {
            at: u64::from(word()) << 32 | u64::from(word()),
            ifindex: word(),
            len: word(),
            src,
            dst,
            sport: word() as u16,
            dport: word() as u16,
            protocol: byte(),
            reason: byte(),
            pool: byte(),
            hook: byte(),
            version: byte(),
            icmp_type: byte(),
            observed: byte(),
            spare: [0; 5],
        },
        length,
        captured,
        ethernet,
        vlan,
        bytes: std::array::from_fn(|_| byte()),
    };
    static CONFIG: LazyLock<Config> = LazyLock::new(|| {
        let text = scenario::scenario(2, 0).configuration;
        Config::parse(std::path::Path::new("fuzz.toml"), &text).unwrap_or_else(|e| panic!("{e}"))
    });
    let (denial, bytes) = api::decoded(&CONFIG, &packet);
    assert!(
        bytes.len() <= (captured as usize).min(SNAP) + 4,
        "{} of {captured}",
        bytes.len()
    );
    assert_eq!(denial.reason_number, u32::from(packet.denial.reason));
    assert_eq!(denial.source.is_empty(), packet.denial.version == 0);
    let version = packet.denial.version;
    for text in [&denial.source, &denial.destination] {
        let of_ipv4 = text.parse().map(|a: std::net::IpAddr| a.is_ipv4());
        assert!(version == 0 || of_ipv4 == Ok(version == 4), "{text} of version {version}");
    }
    for text in [&denial.reason, &denial.pool, &denial.hook, &denial.protocol, &denial.source] {
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

/// Bits: 0 Ethernet, 1 core, 2 egress.
fn place_of(bits: u8) -> Place {
    let device = bits & 2 == 0;
    Place {
        device,
        egress: device && bits & 4 != 0,
        ethernet: bits & 1 != 0,
        interface: 1,
    }
}

fn both(host: &mut Host, reference: &mut Reference, step: &Step) -> &'static str {
    match differential::compare(host, reference, step) {
        Ok(judgment) => judgment.reason,
        Err((judgment, shipping)) => panic!("{step:x?}\nreference: {judgment:?}\nshipping:  {shipping}"),
    }
}
