//! A running gateway with a device behind it, by Ethernet or by OpenVPN, and the flows of that device.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, SystemTime},
};

use lazaret_proto::v1::Enforcement;
use lazaret_tests::{
    api::Client,
    flows::{self, Flow, Kind, Token},
    gateway::Gateway,
    openvpn::{self, Authority},
    packets::{Seen, Watcher},
    process::{Process, until},
    site::{self, Site},
};
use nix::sys::signal::Signal;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const MAIL: [IpAddr; 2] = [site::MAIL, site::MAIL6];

/// `phone`, registered and with a session.
pub(crate) struct Stage {
    pub(crate) local: Client,
    pub(crate) mdm: Client,
    // Before the gateway: the server's last words go to its socket.
    vpn: Option<Vpn>,
    pub(crate) gateway: Gateway,
    pub(crate) site: Site,
    pub(crate) interface: &'static str,
    /// IPv4, IPv6.
    pub(crate) addresses: [IpAddr; 2],
}

struct Vpn {
    client: Process,
    server: Process,
    authority: Authority,
}

impl Stage {
    /// By Ethernet. `change` edits the configuration.
    pub(crate) fn ethernet(change: impl FnOnce(&Gateway)) -> Self {
        let site = Site::new().unwrap();
        site.by_ethernet().unwrap();
        let mut gateway = Gateway::new(&site, "dev0").unwrap();
        change(&gateway);
        gateway.start().unwrap();
        let stage = Self {
            local: gateway.local().unwrap(),
            mdm: gateway.mdm().unwrap(),
            vpn: None,
            gateway,
            site,
            interface: "dev0",
            addresses: [site::DEVICE, site::DEVICE6],
        };
        stage.attached();
        stage.mdm.register("phone", "staff").unwrap();
        let addresses = stage.addresses.map(|a| a.to_string());
        stage
            .local
            .open("lab", "phone", &addresses.each_ref().map(String::as_str), "dev0")
            .unwrap();
        stage
    }

    /// By OpenVPN, which reports the session.
    pub(crate) fn openvpn(change: impl FnOnce(&Gateway)) -> Self {
        let site = Site::new().unwrap();
        site.underlay().unwrap();
        let mut gateway = Gateway::new(&site, "tun0").unwrap();
        change(&gateway);
        gateway.start().unwrap();
        let authority = Authority::new(gateway.folder()).unwrap();
        let server = openvpn::server(&site.gw, &authority, 9, &openvpn::hooks(&gateway)).unwrap();
        let mdm = gateway.mdm().unwrap();
        mdm.register("phone", "staff").unwrap();
        gateway.attached("tun0").unwrap();
        let (client, found) = openvpn::connect(&site.device, &authority, "phone").unwrap();
        let find = |v4: bool| *found.iter().find(|a| a.is_ipv4() == v4).unwrap();
        let stage = Self {
            local: gateway.local().unwrap(),
            mdm,
            vpn: Some(Vpn {
                server,
                client,
                authority,
            }),
            gateway,
            site,
            interface: "tun0",
            addresses: [find(true), find(false)],
        };
        stage.attached();
        stage
    }

    /// Kills the OpenVPN server, whose tun vanishes with it, and starts it again. The client would come back by itself, in a few
    /// seconds; it is told to.
    pub(crate) fn restart_the_vpn(&mut self) {
        let vpn = self.vpn.as_mut().unwrap();
        vpn.server.kill().unwrap();
        vpn.server = openvpn::server(&self.site.gw, &vpn.authority, 9, &openvpn::hooks(&self.gateway)).unwrap();
        vpn.client.signal(Signal::SIGUSR1).unwrap();
    }

    pub(crate) fn attached(&self) {
        for interface in [self.interface, "core0"] {
            self.gateway.attached(interface).unwrap();
        }
    }

    pub(crate) fn release(&self) {
        let released = self.mdm.applied("phone").unwrap();
        assert_eq!(released.enforcement(), Enforcement::Enforced, "{released:#?}");
    }

    /// A flow between the device and an address of the core of the same family.
    pub(crate) fn flow(&self, kind: Kind, to: IpAddr, port: u16, token: Token) -> Flow {
        let own = self.addresses[usize::from(to.is_ipv6())];
        Flow::start(kind, (&self.site.device, own), (&self.site.core, to), port, token).unwrap()
    }

    /// Flows of all kinds in both families between the device and the mail server.
    pub(crate) fn flows(&self) -> Flows {
        let kinds: Vec<_> = Kind::ALL.into_iter().flat_map(|k| MAIL.map(|to| (k, to, 5001))).collect();
        self.flows_to(&kinds)
    }

    /// Flows by kind, peer and port; one for each kind and peer.
    pub(crate) fn flows_to(&self, wanted: &[(Kind, IpAddr, u16)]) -> Flows {
        let observers = Observers::new(self);
        let flows = wanted
            .iter()
            .map(|(kind, to, port)| (*kind, *to, self.flow(*kind, *to, *port, observers.token)));
        Flows {
            flows: flows.collect(),
            observers,
        }
    }
}

/// Who sees what is marked, behind the gateway, in both directions.
pub(crate) struct Observers {
    pub(crate) token: Token,
    /// On the core's wire; what leaves the gateway for the device; what the device receives.
    watchers: [Watcher; 3],
}

impl Observers {
    pub(crate) fn new(stage: &Stage) -> Self {
        let (token, own) = (flows::token(), stage.addresses);
        let site = &stage.site;
        let up = Watcher::of(&site.core, token, move |p| !p.outgoing && own.contains(&p.from));
        // By whichever interface: it may have been made again.
        let down = Watcher::of(&site.gw, token, move |p| p.outgoing && own.contains(&p.to));
        let device = Watcher::of(&site.device, token, move |p| !p.outgoing && own.contains(&p.to));
        Self {
            token,
            watchers: [up, down, device].map(Result::unwrap),
        }
    }

    /// What each has seen of one flow.
    pub(crate) fn of(&self, kind: Kind, peer: IpAddr) -> [Vec<Seen>; 3] {
        let protocol = match (kind, peer) {
            (Kind::Tcp, _) => 6,
            (Kind::Udp, _) => 17,
            (Kind::Icmp, IpAddr::V4(_)) => 1,
            (Kind::Icmp, IpAddr::V6(_)) => 58,
        };
        let ours = |p: &Seen| p.protocol == protocol && [p.from, p.to].contains(&peer);
        self.watchers.each_ref().map(|w| w.seen().into_iter().filter(ours).collect())
    }

    /// How many marked packets each has seen.
    pub(crate) fn counts(&self) -> [usize; 3] {
        self.watchers.each_ref().map(|w| w.seen().len())
    }

    /// Nothing marked passed the gateway after `at`. What the VPN server held already may reach the device for `grace` longer.
    pub(crate) fn nothing_after(&self, at: SystemTime, grace: Duration) {
        let late = |w: &Watcher, at: SystemTime| w.seen().into_iter().filter(|p| p.at > at).collect::<Vec<_>>();
        assert_eq!(late(&self.watchers[0], at), [], "into the core");
        assert_eq!(late(&self.watchers[1], at), [], "to the device");
        assert_eq!(late(&self.watchers[2], at + grace), [], "at the device");
    }
}

/// Flows with their observers.
pub(crate) struct Flows {
    pub(crate) flows: Vec<(Kind, IpAddr, Flow)>,
    pub(crate) observers: Observers,
}

impl Flows {
    /// Waits until `n` more marked packets of each have arrived each way.
    pub(crate) fn run(&self, n: usize) {
        for (kind, peer, flow) in &self.flows {
            let counts = || self.observers.of(*kind, *peer).map(|seen| seen.len());
            let before = counts();
            let mut now = before;
            // The kernel may send what was written in many pieces as a few long segments, and after an outage waits for as long again.
            let (n, limit) = if *kind == Kind::Tcp { (1, LIMIT * 4) } else { (n, LIMIT) };
            let done = until(limit, "the flow runs", || {
                now = counts();
                Ok((0..3).all(|i| now[i] >= before[i] + n))
            });
            done.unwrap_or_else(|e| panic!("{e}: {kind:?} {peer}: {before:?}, {now:?}; sent {:?}", flow.sent()));
        }
    }

    /// After `at`, while both ends went on sending, nothing passed; see [`Observers::nothing_after`].
    pub(crate) fn stay_cut(&self, at: SystemTime, grace: Duration) {
        let sent = || self.flows.iter().map(|(.., flow)| flow.sent()).collect::<Vec<_>>();
        let before = sent();
        thread::sleep(Duration::from_millis(600));
        for (((kind, peer, _), before), now) in self.flows.iter().zip(before).zip(sent()) {
            // A kernel that is not answered soon takes no more of TCP.
            let least = if *kind == Kind::Tcp { 0 } else { 20 };
            assert!(
                now[0] >= before[0] + least && now[1] >= before[1] + least,
                "{kind:?} {peer}: {before:?}, {now:?}"
            );
        }
        self.observers.nothing_after(at, grace);
    }
}
