//! A running gateway whose device is one by Ethernet, with TCP servers for DM and mail in the core: for whole connections what [`crate::lab`] is
//! for single packets.

use std::{net::IpAddr, time::Duration};

use anyhow::Result;
use lazaret_proto::v1::OpenSessionResponse;
use serde_json::Value;

use crate::{
    api::{Answer, Client},
    gateway::Gateway,
    services,
    site::{self, Site},
};

/// How long something that must not arrive is waited for.
pub const PATIENCE: Duration = Duration::from_millis(400);
/// How long something that must.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A gateway between a device and a core.
#[derive(Debug)]
pub struct Desk {
    /// A local operator.
    pub local: Client,
    /// The gateway.
    pub gateway: Gateway,
    /// The site.
    pub site: Site,
}

impl Desk {
    /// With the gateway running and attached. `change` edits its configuration before.
    ///
    /// # Errors
    /// No privilege, or the daemon does not start.
    pub fn new(change: impl FnOnce(&Gateway) -> Result<()>) -> Result<Self> {
        let site = Site::new()?;
        site.by_ethernet()?;
        for at in [site::DM, site::DM6, site::MAIL, site::MAIL6] {
            services::listen(&site.core, at, 80)?;
        }
        let mut gateway = Gateway::new(&site, "dev0")?;
        change(&gateway)?;
        gateway.start()?;
        ["dev0", "core0"].into_iter().try_for_each(|i| gateway.attached(i))?;
        Ok(Self {
            local: gateway.local()?,
            gateway,
            site,
        })
    }

    /// Connects `phone`, with both addresses of the device.
    ///
    /// # Errors
    /// The gateway's.
    pub fn open(&self) -> Answer<OpenSessionResponse> {
        self.local.open("lab", "phone", &["10.66.0.5", "fd00:66::5"], "dev0")
    }

    /// Whether the device gets a TCP connection to port 80 there.
    pub fn reaches(&self, at: IpAddr, limit: Duration) -> bool {
        services::reaches(&self.site.device, at, 80, limit)
    }

    /// Runs `lazaret` with these words and `--json`.
    ///
    /// # Errors
    /// It does not succeed.
    pub fn json(&self, words: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.gateway.cli(&format!("{words} --json"))?)?)
    }
}
