//! The kernel's own filters behind our programs: they drop what has no grant's mark, and stay when our programs, links and pins are gone. At
//! egress, netfilter lets unmarked packets through to interfaces where one stands, since they are judged after netfilter; without a judge
//! they end here. At ingress, netfilter sees another interface where this one is part of a bridge or carries VLANs, so that its rules do not
//! hold. Not here: which interface has which, and what the floor makes of that.
//!
//! It is a classic filter of a few instructions of its own (`cls_bpf` with bytecode), on the queueing discipline `clsact`: nothing that has a
//! file descriptor, an id or a pin. TCX comes before it, so our programs have marked what they let pass.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use gateway_ebpf::abi::{MARK_GRANT, MARK_GRANT_MASK};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};
use rtnetlink::packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};

use crate::{
    floor::Changes,
    links::{self, LinkNow},
    netlink::{self, Kept, Requests},
};

const CLSACT: &str = "clsact";
/// Our place among the filters of an interface, lower ones first, and our number there: 76 is what our routes carry, too.
const PREFERENCE: u16 = 76;
const NUMBER: u32 = 76;

/// linux/pkt_cls.h.
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;

/// At which end of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Ingress,
    Egress,
}

/// The filters of device interfaces, as they were left.
pub(super) struct Filters {
    kept: Kept,
    /// `None`: nobody tells of changes, so that each is looked at each time.
    changes: Option<Changes>,
    /// Of the places that are to have one: it is there, or why not.
    places: HashMap<(u32, Side), Result<(), String>>,
    /// Interfaces that have it from another run have been looked for.
    begun: bool,
}

impl Filters {
    pub(super) fn new() -> Self {
        let changes = Changes::listen_for_filters()
            .inspect_err(|e| tracing::warn!("filters cannot be listened to: {e}; they are looked at every second"))
            .ok();
        Self {
            kept: Kept::default(),
            changes,
            places: HashMap::new(),
            begun: false,
        }
    }

    /// Puts filters at the sides of interfaces that are to have one, and takes them from others.
    pub(super) fn set(&mut self, links: &[LinkNow], wanted: impl Fn(&LinkNow, Side) -> bool) {
        let changed = self.changes.as_ref().is_none_or(Changes::any);
        let there: HashSet<u32> = links.iter().map(|l| l.link.ifindex).collect();
        self.places.retain(|(index, _), _| there.contains(index));
        for (now, side) in links.iter().flat_map(|now| [(now, Side::Ingress), (now, Side::Egress)]) {
            let (index, name) = (now.link.ifindex, &now.link.name);
            let place = (index, side);
            let before = self.places.get(&place);
            if !wanted(now, side) {
                if before.is_some() || !self.begun {
                    match self.kept.ask(async move |r| remove(r, index, side).await) {
                        Ok(()) => drop(self.places.remove(&place)),
                        Err(e) => {
                            tracing::warn!(interface = %name, ?side, "the kernel's own filter stays: {e}");
                            self.places.insert(place, Err(e.to_string()));
                        }
                    }
                }
            } else if changed || !matches!(before, Some(Ok(()))) {
                let put = self
                    .kept
                    .ask(async move |r| put(r, index, side).await)
                    .map_err(|e| e.to_string());
                match (&put, before) {
                    (Err(e), Some(Err(last))) if e == last => {}
                    (Err(e), _) => tracing::warn!(interface = %name, ?side, "the kernel's own filter: {e}"),
                    (Ok(()), _) => tracing::debug!(interface = %name, ?side, "the kernel's own filter stands"),
                }
                self.places.insert(place, put);
            }
        }
        self.begun = true;
    }

    /// Why a filter does not stand; `None`: it does.
    pub(super) fn missing(&self, ifindex: u32, side: Side) -> Option<&str> {
        match self.places.get(&(ifindex, side)) {
            Some(Ok(())) => None,
            Some(Err(e)) => Some(e),
            None => Some("not put yet"),
        }
    }
}

/// Takes the filters from every interface of this network namespace. The queueing discipline stays: it may be another's, and does nothing.
///
/// # Errors
/// Those of netlink; other interfaces may have it still.
pub(super) fn remove_all() -> io::Result<()> {
    for now in links::now()? {
        let index = now.link.ifindex;
        let both = async move |r: &mut Requests| {
            remove(r, index, Side::Ingress).await?;
            remove(r, index, Side::Egress).await
        };
        match netlink::ask(both) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
            done => done?,
        }
    }
    Ok(())
}

async fn put(requests: &mut Requests, ifindex: u32, side: Side) -> io::Result<()> {
    match held(requests, ifindex, side).await? {
        Some(held) if is_ours(&held, side) => Ok(()),
        Some(_) => Err(io::Error::other(format!(
            "a foreign filter has the preference {PREFERENCE} and the number {NUMBER}"
        ))),
        None => {
            require_clsact(requests, ifindex).await?;
            let mut message = place(ifindex, side);
            let code = code(side);
            message.attributes.push(TcAttribute::Options(vec![
                option(TCA_BPF_OPS_LEN, ((code.len() / 8) as u16).to_ne_bytes().to_vec()),
                option(TCA_BPF_OPS, code),
                TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
            ]));
            let add = RouteNetlinkMessage::NewTrafficFilter(message);
            requests.change(add, NLM_F_CREATE | NLM_F_EXCL).await
        }
    }
}

async fn remove(requests: &mut Requests, ifindex: u32, side: Side) -> io::Result<()> {
    match held(requests, ifindex, side).await? {
        Some(held) if is_ours(&held, side) => {
            let delete = RouteNetlinkMessage::DelTrafficFilter(place(ifindex, side));
            requests.change(delete, 0).await
        }
        _ => Ok(()),
    }
}

/// The queueing discipline of our filter; another's of that kind serves as well.
async fn require_clsact(requests: &mut Requests, ifindex: u32) -> io::Result<()> {
    let message = || {
        let mut message = message(ifindex, TcHandle::CLSACT);
        message.header.handle = TcHandle {
            major: u16::MAX,
            minor: 0,
        };
        message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
        RouteNetlinkMessage::NewQueueDiscipline(message)
    };
    match requests.change(message(), NLM_F_CREATE | NLM_F_EXCL).await {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
        done => return done,
    }
    // Asked for by a change that changes nothing: it is refused if what is there is of another kind. (An answer to a question would go to
    // every listener, and to us only as one of them.)
    requests.change(message(), 0).await.map_err(|e| match e.raw_os_error() {
        // With "ingress", a filter for egress would judge what comes in.
        Some(libc::EINVAL) => io::Error::other(format!("the queueing discipline \"ingress\" has the place of \"{CLSACT}\"")),
        _ => e,
    })
}

/// The filter in our place.
async fn held(requests: &mut Requests, ifindex: u32, side: Side) -> io::Result<Option<TcMessage>> {
    match requests
        .one(RouteNetlinkMessage::GetTrafficFilter(place(ifindex, side)))
        .await
    {
        Ok(RouteNetlinkMessage::NewTrafficFilter(found)) => Ok(Some(found)),
        Ok(_) => Err(io::Error::other("the kernel's answer is of another kind")),
        // EINVAL: no filter was ever there.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_ours(found: &TcMessage, side: Side) -> bool {
    let code = code(side);
    let options = found.attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let kind = found.attributes.iter().find_map(|a| match a {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    });
    let has = |wanted: TcOption| options.is_some_and(|o| o.contains(&wanted));
    kind == Some(TcFilterBpf::KIND)
        && has(option(TCA_BPF_OPS, code))
        && has(TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)))
}

fn place(ifindex: u32, side: Side) -> TcMessage {
    let mut message = message(
        ifindex,
        TcHandle {
            major: u16::MAX,
            minor: match side {
                Side::Ingress => TcHandle::MIN_INGRESS,
                Side::Egress => TcHandle::MIN_EGRESS,
            },
        },
    );
    message.header.handle = NUMBER.into();
    // All protocols, in network byte order.
    message.header.info = u32::from(PREFERENCE) << 16 | u32::from((libc::ETH_P_ALL as u16).to_be());
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    message
}

fn message(ifindex: u32, parent: TcHandle) -> TcMessage {
    let header = TcHeader {
        index: ifindex.cast_signed(),
        parent,
        ..TcHeader::default()
    };
    TcMessage::from_parts(header, Vec::new())
}

fn option(kind: u16, value: Vec<u8>) -> TcOption {
    TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(kind, value)))
}

/// The instructions, each a `struct sock_filter` of eight bytes. What has a grant's mark goes to the next filter, or on; other things are
/// dropped. At ingress ARP and what looks like neighbour discovery go on too, in up to two VLANs: our programs give them no mark.
fn code(side: Side) -> Vec<u8> {
    use libc::{
        BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_LEN,
        BPF_RET, BPF_W, SKF_AD_MARK, SKF_AD_OFF, SKF_AD_PROTOCOL,
    };
    /// Direct action: goes on, and drops (linux/pkt_cls.h). A packet that is too short for a load goes on: 0, TC_ACT_OK.
    const PASS: u32 = u32::MAX;
    const DROP: u32 = 2;
    const EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
    /// Ethernet, IPv6, and the shortest message (RFC 4861, 4.3).
    const SHORTEST: u32 = 14 + 40 + 24;
    let extra = |what: i32| (SKF_AD_OFF + what).cast_unsigned();
    // Code, how many to skip if true and if false, operand.
    let mut code = vec![
        (BPF_LD | BPF_W | BPF_ABS, 0, 0, extra(SKF_AD_MARK)),
        (BPF_ALU | BPF_AND | BPF_K, 0, 0, MARK_GRANT_MASK),
    ];
    match side {
        Side::Egress => code.push((EQUAL, 1, 0, MARK_GRANT)),
        Side::Ingress => code.extend([
            (EQUAL, 18, 0, MARK_GRANT),
            (BPF_LD | BPF_H | BPF_ABS, 0, 0, extra(SKF_AD_PROTOCOL)),
            // X is where IPv6 begins. A first tag is off already; if a second one is there, it is a protocol.
            (BPF_LDX | BPF_W | BPF_IMM, 0, 0, 14),
            (EQUAL, 1, 0, libc::ETH_P_8021Q.cast_unsigned()),
            (EQUAL, 0, 2, libc::ETH_P_8021AD.cast_unsigned()),
            (BPF_LDX | BPF_W | BPF_IMM, 0, 0, 18),
            (BPF_LD | BPF_H | BPF_ABS, 0, 0, 16),
            (EQUAL, 11, 0, libc::ETH_P_ARP.cast_unsigned()),
            (EQUAL, 0, 9, libc::ETH_P_IPV6.cast_unsigned()),
            (BPF_LD | BPF_W | BPF_LEN, 0, 0, 0),
            (BPF_JMP | BPF_JGE | BPF_K, 0, 7, SHORTEST),
            (BPF_LD | BPF_B | BPF_IND, 0, 0, 6),
            (EQUAL, 0, 5, libc::IPPROTO_ICMPV6.cast_unsigned()),
            (BPF_LD | BPF_B | BPF_IND, 0, 0, 7),
            (EQUAL, 0, 3, 255),
            (BPF_LD | BPF_B | BPF_IND, 0, 0, 40),
            (EQUAL, 2, 0, 135),
            (EQUAL, 1, 0, 136),
        ]),
    }
    // In this order: a jump over one ends at the other.
    code.extend([(BPF_RET | BPF_K, 0, 0, DROP), (BPF_RET | BPF_K, 0, 0, PASS)]);
    let bytes = code.iter().flat_map(|(code, yes, no, operand)| {
        let code = (*code as u16).to_ne_bytes();
        [code[0], code[1], *yes, *no].into_iter().chain(operand.to_ne_bytes())
    });
    bytes.collect()
}
