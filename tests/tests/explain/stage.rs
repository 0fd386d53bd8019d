//! A running gateway between a device by Ethernet and a core with TCP listeners, and the command line that asks it.

use std::{net::TcpListener, process::Stdio, thread, time::Duration};

use lazaret_proto::v1;
use lazaret_tests::{
    api::Client,
    gateway::Gateway,
    process, services,
    site::{self, Site},
};
use serde_json::Value;

/// How long something that must not arrive is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_millis(300);
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct Stage {
    pub(crate) local: Client,
    pub(crate) gateway: Gateway,
    pub(crate) site: Site,
}

impl Stage {
    /// With `phone` registered, and no session.
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(configure: impl FnOnce(&Gateway)) -> Self {
        let site = Site::new().unwrap();
        site.by_ethernet().unwrap();
        for at in [site::DM, site::DM6, site::MAIL, site::MAIL6] {
            let listener = site.core.run(|| TcpListener::bind((at, 80))).unwrap();
            thread::spawn(move || listener.incoming().for_each(drop));
        }
        let mut gateway = Gateway::new(&site, "dev0").unwrap();
        configure(&gateway);
        gateway.start().unwrap();
        gateway.attached("dev0").unwrap();
        gateway.attached("core0").unwrap();
        let local = gateway.local().unwrap();
        local.register("phone", "staff").unwrap();
        Self { local, gateway, site }
    }

    pub(crate) fn open(&self) -> u64 {
        let opened = self.local.open("lab", "phone", &["10.66.0.5", "fd00:66::5"], "dev0").unwrap();
        opened.session.unwrap().session_id
    }

    /// `lazaret explain` with `--json`: its explanations.
    pub(crate) fn explain(&self, words: &str) -> Vec<Value> {
        json(&self.gateway, words)
    }

    /// As [`Stage::explain`], of which there is one.
    pub(crate) fn one(&self, words: &str) -> Value {
        let mut all = self.explain(words);
        assert_eq!(all.len(), 1, "{words}");
        all.remove(0)
    }

    /// What `lazaret` says on standard error, and its exit code, when it does not succeed.
    pub(crate) fn refused(&self, words: &str) -> (i32, String) {
        let mut command = self.gateway.lazaret();
        let output = command.args(words.split_whitespace()).stdout(Stdio::null()).output().unwrap();
        assert!(!output.status.success(), "{words}");
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Whether the device gets a TCP connection to port 80 there.
    pub(crate) fn reaches(&self, at: std::net::IpAddr, limit: Duration) -> bool {
        services::reaches(&self.site.device, at, 80, limit)
    }

    /// Every counter, those of rules included, and the last denials.
    pub(crate) fn all_counted(&self) -> (Value, Vec<v1::Denial>) {
        let text = process::output(self.gateway.lazaret().args(["counters", "--json"])).unwrap();
        (serde_json::from_str(&text).unwrap(), self.local.denials().unwrap())
    }
}

/// `lazaret explain` with `--json`: its explanations.
pub(crate) fn json(gateway: &Gateway, words: &str) -> Vec<Value> {
    let text = gateway.cli(&format!("explain --json {words}")).unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    answer["explanations"].as_array().unwrap().clone()
}
