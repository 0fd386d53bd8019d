//! A running gateway whose devices are the test itself: what they send is written to the far end of a tun, and seen arriving in the core.

use std::net::{IpAddr, UdpSocket};

use anyhow::Result;

use crate::{
    api::Client,
    gateway::Gateway,
    netns::Tun,
    packets::Watcher,
    site::{self, Site},
};

/// Where [`Lab`]'s core swallows datagrams, so that no ICMP error answers them.
const SINKS: [(IpAddr, u16); 6] = [
    (site::RESOLVER, 53),
    (site::MAIL, 53),
    (site::MAIL6, 53),
    (site::MAIL, 5001),
    (site::MAIL6, 5001),
    (site::DM6, 53),
];

/// A site, a tun to its devices, and a gateway on it.
#[derive(Debug)]
pub struct Lab {
    /// `tun0`; dropped, it is gone.
    pub tun: Tun,
    /// A local operator.
    pub local: Client,
    /// The gateway.
    pub gateway: Gateway,
    /// The site.
    pub site: Site,
    _sinks: Vec<UdpSocket>,
}

impl Lab {
    /// With the gateway running and attached. `change` edits its configuration before.
    ///
    /// # Errors
    /// No privilege, or the daemon does not start.
    pub fn new(change: impl FnOnce(&mut Gateway) -> Result<()>) -> Result<Self> {
        let (mut gateway, sinks) = Self::prepare()?;
        change(&mut gateway)?;
        let tun = Self::tun(&gateway.site)?;
        gateway.start()?;
        let this = Self {
            tun,
            local: gateway.local()?,
            site: gateway.site.clone(),
            gateway,
            _sinks: sinks,
        };
        this.attached()?;
        Ok(this)
    }

    /// The same with nothing running yet, and without a tun: the gateway, and the sinks of the core.
    ///
    /// # Errors
    /// No privilege.
    pub fn prepare() -> Result<(Gateway, Vec<UdpSocket>)> {
        let site = Site::new()?;
        let bind = |at: &(IpAddr, u16)| site.core.run(|| UdpSocket::bind(at));
        let sinks = SINKS.iter().map(bind).collect::<std::io::Result<_>>()?;
        Ok((Gateway::new(&site, "tun0")?, sinks))
    }

    /// A tun to the devices of a site, with the gateway's address and the pools' routes.
    ///
    /// # Errors
    /// No privilege, or there is one already.
    pub fn tun(site: &Site) -> Result<Tun> {
        let tun = Tun::new(&site.gw, "tun0")?;
        site.gw.address("tun0", &format!("{}/24", site::TUNNEL))?;
        site.gw.address("tun0", &format!("{}/64", site::TUNNEL6))?;
        Ok(tun)
    }

    /// Waits until the programs are attached on both sides.
    ///
    /// # Errors
    /// Not in time.
    pub fn attached(&self) -> Result<()> {
        ["tun0", "core0"].into_iter().try_for_each(|i| self.gateway.attached(i))
    }

    /// Ends the daemon at once, and starts it again.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.gateway.kill()?;
        self.gateway.start()?;
        self.local = self.gateway.local()?;
        self.attached()
    }

    /// Starts after [`Gateway::lose_power`]: with a new tun, as the VPN server makes it.
    ///
    /// # Errors
    /// It does not start.
    pub fn boot(&mut self) -> Result<()> {
        self.site.gw.ip("link delete tun0")?;
        self.tun = Self::tun(&self.site)?;
        self.gateway.start()?;
        self.local = self.gateway.local()?;
        self.attached()
    }

    /// Packets that arrive in the core from one address, for another.
    ///
    /// # Errors
    /// No privilege.
    pub fn arrivals(&self, from: IpAddr, to: IpAddr) -> Result<Watcher> {
        arrivals(&self.site, from, to)
    }
}

/// Packets that arrive in a site's core from one address, for another.
///
/// # Errors
/// No privilege.
pub fn arrivals(site: &Site, from: IpAddr, to: IpAddr) -> Result<Watcher> {
    Watcher::new(&site.core, move |p| !p.outgoing && p.from == from && p.to == to)
}
