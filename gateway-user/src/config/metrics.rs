//! `[metrics]`: where the exporter listens. Only this host can be answered: figures are no secrets, but nobody else's business.

use super::{
    Metrics,
    read::{At, Notes, Section, Wrong},
    values,
};

/// As the file has it.
pub(super) struct RawMetrics {
    listen: Option<At<Metrics>>,
    group: Option<At<String>>,
}

impl RawMetrics {
    pub(super) fn read(s: &Section<'_, '_>) -> Self {
        s.require(
            "listen",
            "write listen = \"127.0.0.1:9464\" or listen = \"/run/lazaret/metrics.sock\"",
        );
        Self {
            listen: s.parsed("listen", place),
            group: s.parsed("group", values::group),
        }
    }

    pub(super) fn check(&self, notes: &Notes<'_>) {
        let port = matches!(self.listen.as_ref().map(|l| &l.value), Some(Metrics::Port(_)));
        if let Some(group) = self.group.as_ref().filter(|_| port) {
            let remedy = "leave it out: whoever is on this host reaches a port";
            notes.note(group.at, "metrics.group", Wrong::new("only a socket has a group", remedy));
        }
    }

    /// `None`: a value that must be there is not.
    pub(super) fn build(self) -> Option<Metrics> {
        Some(match self.listen?.value {
            Metrics::Socket { path, .. } => Metrics::Socket {
                path,
                group: self.group.map(|g| g.value),
            },
            port => port,
        })
    }
}

/// A path, or a loopback address.
fn place(text: &str) -> Result<Metrics, Wrong> {
    if text.starts_with('/') {
        return Ok(Metrics::Socket {
            path: values::socket_path(text)?,
            group: None,
        });
    }
    let at = values::listen(text)?;
    if at.ip().is_loopback() {
        return Ok(Metrics::Port(at));
    }
    let problem = format!("{} is reached from elsewhere", at.ip());
    Err(Wrong::new(
        problem,
        "listen on 127.0.0.1 or [::1], or on a socket; a collector on this host, or a proxy with authentication, hands it on",
    ))
}
