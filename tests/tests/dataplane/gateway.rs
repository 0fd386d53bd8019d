//! A gateway of [`Site`] with the data plane opened in this process, and packets sent through it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};

use gateway_user::{
    config::Config,
    dataplane::{self, Live},
    kernel::{Assignment, HookPoint, Kernel, ReadBack},
    model::{PoolId, SessionId},
};
use lazaret_tests::{
    netns::{Namespace, Tun},
    packets::{self, Watcher},
    scratch::Scratch,
    site::Site,
};

pub(crate) const QUARANTINE: PoolId = PoolId(1);
pub(crate) const STAFF: PoolId = PoolId(2);

pub(crate) struct Gateway {
    pub(crate) site: Site,
    pub(crate) config: Config,
    pub(crate) live: Option<Live>,
    /// That leads to devices.
    interface: String,
    // Last, so that pins outlive what uses them.
    pub(crate) scratch: Scratch,
}

impl Gateway {
    /// `interface` leads to devices; `change` edits the configuration's text.
    pub(crate) fn new(interface: &str, change: impl Fn(String) -> String) -> Self {
        let site = Site::new().unwrap();
        let mut scratch = Scratch::new("dataplane").unwrap();
        scratch.bpffs("bpf").unwrap();
        let config = configuration(interface, &scratch, change);
        Self {
            site,
            config,
            live: None,
            interface: interface.to_owned(),
            scratch,
        }
    }

    /// With a tun device `vpn0` to devices.
    pub(crate) fn tun(change: impl Fn(String) -> String) -> (Self, Tun) {
        let gateway = Self::new("vpn0", change);
        let tun = gateway.make_tun();
        (gateway, tun)
    }

    pub(crate) fn make_tun(&self) -> Tun {
        let tun = Tun::new(&self.site.gw, "vpn0").unwrap();
        for pool in ["10.66.0.0/24", "10.67.0.0/24", "fd00:66::/64", "fd00:67::/64"] {
            self.site.gw.ip(&format!("route replace {pool} dev vpn0")).unwrap();
        }
        tun
    }

    pub(crate) fn try_open(&mut self) -> Result<(), dataplane::Error> {
        let config = &self.config;
        self.live = Some(self.site.gw.run(|| Live::open(config))?);
        Ok(())
    }

    pub(crate) fn open(&mut self) {
        self.try_open().unwrap();
        self.set_links();
    }

    pub(crate) fn live<T: Send>(&mut self, f: impl FnOnce(&mut Live) -> T + Send) -> T {
        let live = self.live.as_mut().unwrap();
        self.site.gw.run(|| f(live))
    }

    pub(crate) fn set_links(&mut self) {
        self.live(|l| l.set_links());
    }

    pub(crate) fn assign(&mut self, address: IpAddr, pool: PoolId) {
        let to = Assignment {
            pool,
            session: SessionId(7),
            interface: self.interface.parse().unwrap(),
            lease: None,
        };
        self.live(|l| l.assign(address, to)).unwrap();
    }

    /// Addresses of sessions, in their order.
    pub(crate) fn assigned(&mut self) -> Vec<IpAddr> {
        let all: BTreeSet<IpAddr> = self.live(|l| l.assigned()).unwrap().into_iter().map(|(a, _)| a).collect();
        all.into_iter().collect()
    }

    pub(crate) fn read_back(&mut self, address: IpAddr) -> Vec<ReadBack> {
        self.live(|l| l.read_back(&[address])).unwrap().remove(0)
    }

    /// The pool that each hook's program sees, where one of ours is attached.
    pub(crate) fn pools(&mut self, address: IpAddr) -> Vec<(String, HookPoint, Option<PoolId>)> {
        let all = self.read_back(address);
        all.into_iter()
            .map(|r| (r.interface.to_string(), r.hook, r.reading.and_then(|r| r.pool)))
            .collect()
    }

    /// Problems of every hook.
    pub(crate) fn problems(&mut self) -> Vec<String> {
        let all = self.live(|l| l.interfaces()).unwrap();
        all.iter()
            .flat_map(|i| i.hooks.iter().map(|h| h.problem.clone()))
            .filter(|p| !p.is_empty())
            .collect()
    }

    pub(crate) fn floor(&mut self) -> String {
        self.live(|l| l.floor())
    }

    /// Packets of one reason in one pool.
    pub(crate) fn counted(&mut self, pool: u8, reason: gateway_ebpf::reason::Reason) -> u64 {
        let all = self.live(|l| l.counters()).unwrap();
        all.iter().find(|(p, _)| *p == pool).unwrap().1[reason as usize].packets
    }

    /// Whether a UDP packet from the device through the tun arrives in the core.
    pub(crate) fn reaches(&self, tun: &Tun, from: IpAddr, to: IpAddr, port: u16) -> bool {
        let source = unique_port();
        let watcher = Watcher::new(&self.site.core, move |p| p.ports == (source, port) && !p.outgoing).unwrap();
        tun.send(&packets::udp((from, source), (to, port), b"?")).unwrap();
        !watcher.seen().is_empty()
    }

    /// Whether a UDP packet that the gateway itself sends leaves through the tun.
    pub(crate) fn host_sends(&self, tun: &Tun, to: IpAddr) -> bool {
        let source = unique_port();
        self.site.gw.run(|| {
            let any: IpAddr = if to.is_ipv4() {
                [0, 0, 0, 0].into()
            } else {
                [0_u16; 8].into()
            };
            let socket = UdpSocket::bind((any, source)).unwrap();
            // EPERM is how the floor's output chain answers.
            let _denied = socket.send_to(b"!", (to, 9));
        });
        arrives(tun, |p| p.ports == (source, 9))
    }

    /// Whether a UDP packet that the core sends leaves through the tun. From `from`'s port `port`.
    pub(crate) fn core_sends(&self, tun: &Tun, from: IpAddr, port: u16, to: IpAddr) -> bool {
        let destination = unique_port();
        self.site.core.run(|| {
            let socket = UdpSocket::bind((from, port)).unwrap();
            socket.send_to(b"!", (to, destination)).unwrap();
        });
        arrives(tun, |p| p.ports == (port, destination))
    }

    /// Whether a UDP packet from the device is delivered to the gateway itself.
    pub(crate) fn delivered(&self, tun: &Tun, from: IpAddr, to: IpAddr) -> bool {
        let socket = self.site.gw.run(|| {
            let any: IpAddr = if to.is_ipv4() {
                [0, 0, 0, 0].into()
            } else {
                [0_u16; 8].into()
            };
            UdpSocket::bind((any, 0)).unwrap()
        });
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let port = socket.local_addr().unwrap().port();
        tun.send(&packets::udp((from, unique_port()), (to, port), b"?")).unwrap();
        socket.recv(&mut [0; 16]).is_ok()
    }
}

/// Whether a UDP packet gets from one namespace to an address of the other (or the same), and the answer back.
pub(crate) fn talks(from: &Namespace, to: &Namespace, address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0_u16; 8].into()
    };
    let server = to.run(|| UdpSocket::bind((any, 0))).unwrap();
    let client = from.run(|| UdpSocket::bind((any, 0))).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    }
    let there = (address, server.local_addr().unwrap().port());
    let mut buffer = [0; 16];
    client.send_to(b"?", there).is_ok()
        && server
            .recv_from(&mut buffer)
            .is_ok_and(|(_, back)| server.send_to(b"!", back).is_ok())
        && client.recv(&mut buffer).is_ok()
}

/// What the configuration of [`Site`] says, edited.
pub(crate) fn configuration(interface: &str, scratch: &Scratch, change: impl Fn(String) -> String) -> Config {
    let text = change(Site::config(interface, scratch.path(), scratch.path()));
    // The API is not part of these tests.
    let (before, api) = text.split_once("[api]").unwrap();
    let text = format!("{before}[socket]{}", api.split_once("[socket]").unwrap().1);
    Config::parse("test.toml".as_ref(), &text).unwrap_or_else(|e| panic!("{e}"))
}

pub(crate) fn arrives(tun: &Tun, wanted: impl Fn(&packets::Seen) -> bool) -> bool {
    let limit = std::time::Instant::now() + Duration::from_millis(250);
    while let Some(left) = limit.checked_duration_since(std::time::Instant::now()) {
        let Some(packet) = tun.receive(left).unwrap() else {
            return false;
        };
        if packets::parse(&packet, std::time::SystemTime::now()).is_some_and(|p| wanted(&p)) {
            return true;
        }
    }
    false
}

/// Stops a thread when it goes, also when a test panics.
#[derive(Default)]
pub(crate) struct Stop(pub(crate) Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn unique_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
