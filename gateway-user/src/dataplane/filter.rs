//! The kernel's own filter behind our programs at the egress of device interfaces: it drops what has no grant's mark, and it stays when our
//! programs, links and pins are gone. netfilter lets unmarked packets through to interfaces where it stands, since they are judged after
//! netfilter; without a judge they end here. Not here: which interface has it, and what the floor makes of that.
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

/// The filters of device interfaces, as they were left.
pub(super) struct Filters {
    kept: Kept,
    /// `None`: nobody tells of changes, so that each is looked at each time.
    changes: Option<Changes>,
    /// By index, of the interfaces that are to have it: it is there, or why not.
    places: HashMap<u32, Result<(), String>>,
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

    /// Puts the filter on those of the interfaces that are to have it, and takes it from others.
    pub(super) fn set(&mut self, links: &[LinkNow], wanted: impl Fn(&LinkNow) -> bool) {
        let changed = self.changes.as_ref().is_none_or(Changes::any);
        let there: HashSet<u32> = links.iter().map(|l| l.link.ifindex).collect();
        self.places.retain(|index, _| there.contains(index));
        for now in links {
            let index = now.link.ifindex;
            let before = self.places.get(&index);
            if !wanted(now) {
                if before.is_some() || !self.begun {
                    match self.kept.ask(async move |r| remove(r, index).await) {
                        Ok(()) => drop(self.places.remove(&index)),
                        Err(e) => {
                            tracing::warn!(interface = %now.link.name, "the kernel's own filter stays: {e}");
                            self.places.insert(index, Err(e.to_string()));
                        }
                    }
                }
            } else if changed || !matches!(before, Some(Ok(()))) {
                let put = self.kept.ask(async move |r| put(r, index).await).map_err(|e| e.to_string());
                match (&put, before) {
                    (Err(e), Some(Err(last))) if e == last => {}
                    (Err(e), _) => tracing::warn!(interface = %now.link.name, "the kernel's own filter: {e}"),
                    (Ok(()), None) => {}
                    (Ok(()), Some(_)) => tracing::debug!(interface = %now.link.name, "the kernel's own filter stands"),
                }
                self.places.insert(index, put);
            }
        }
        self.begun = true;
    }

    /// Why an interface does not have it; `None`: it does.
    pub(super) fn missing(&self, ifindex: u32) -> Option<&str> {
        match self.places.get(&ifindex) {
            Some(Ok(())) => None,
            Some(Err(e)) => Some(e),
            None => Some("not put yet"),
        }
    }
}

/// Takes the filter from every interface of this network namespace. The queueing discipline stays: it may be another's, and does nothing.
///
/// # Errors
/// Those of netlink; other interfaces may have it still.
pub(super) fn remove_all() -> io::Result<()> {
    for now in links::now()? {
        let index = now.link.ifindex;
        match netlink::ask(async move |r| remove(r, index).await) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
            done => done?,
        }
    }
    Ok(())
}

async fn put(requests: &mut Requests, ifindex: u32) -> io::Result<()> {
    match held(requests, ifindex).await? {
        Some(held) if is_ours(&held) => Ok(()),
        Some(_) => Err(io::Error::other(format!(
            "a foreign filter has the preference {PREFERENCE} and the number {NUMBER}"
        ))),
        None => {
            require_clsact(requests, ifindex).await?;
            let mut message = place(ifindex);
            let (count, code) = code();
            message.attributes.push(TcAttribute::Options(vec![
                option(TCA_BPF_OPS_LEN, count.to_ne_bytes().to_vec()),
                option(TCA_BPF_OPS, code),
                TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
            ]));
            let add = RouteNetlinkMessage::NewTrafficFilter(message);
            requests.change(add, NLM_F_CREATE | NLM_F_EXCL).await
        }
    }
}

async fn remove(requests: &mut Requests, ifindex: u32) -> io::Result<()> {
    match held(requests, ifindex).await? {
        Some(held) if is_ours(&held) => {
            let delete = RouteNetlinkMessage::DelTrafficFilter(place(ifindex));
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
async fn held(requests: &mut Requests, ifindex: u32) -> io::Result<Option<TcMessage>> {
    match requests.one(RouteNetlinkMessage::GetTrafficFilter(place(ifindex))).await {
        Ok(RouteNetlinkMessage::NewTrafficFilter(found)) => Ok(Some(found)),
        Ok(_) => Err(io::Error::other("the kernel's answer is of another kind")),
        // EINVAL: no filter was ever there.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_ours(found: &TcMessage) -> bool {
    let (_, code) = code();
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

fn place(ifindex: u32) -> TcMessage {
    let mut message = message(
        ifindex,
        TcHandle {
            major: u16::MAX,
            minor: TcHandle::MIN_EGRESS,
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

/// `skb->mark & MARK_GRANT_MASK == MARK_GRANT`: the next filter, or out; otherwise dropped. With its number of instructions.
fn code() -> (u16, Vec<u8>) {
    /// Direct action: goes on, and drops (linux/pkt_cls.h).
    const TC_ACT_UNSPEC: u32 = u32::MAX;
    const TC_ACT_SHOT: u32 = 2;
    // `struct sock_filter`: code, jump if true, jump if false, operand.
    let code = [
        (
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            0,
            (libc::SKF_AD_OFF + libc::SKF_AD_MARK).cast_unsigned(),
        ),
        (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, MARK_GRANT_MASK),
        (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, MARK_GRANT),
        (libc::BPF_RET | libc::BPF_K, 0, TC_ACT_UNSPEC),
        (libc::BPF_RET | libc::BPF_K, 0, TC_ACT_SHOT),
    ];
    let bytes = code.iter().flat_map(|(code, otherwise, operand)| {
        let code = (*code as u16).to_ne_bytes();
        [code[0], code[1], 0, *otherwise].into_iter().chain(operand.to_ne_bytes())
    });
    (code.len() as u16, bytes.collect())
}
