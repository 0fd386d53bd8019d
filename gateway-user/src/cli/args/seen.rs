//! What can be typed about packets: explain, denials, capture, counters, reason.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::Args;

use super::Connection;
use crate::model;

#[derive(Debug, Args)]
pub(in crate::cli) struct ExplainArgs {
    /// Source: an address, with a port for TCP and UDP if it matters
    #[arg(long, value_name = "IP[:PORT]")]
    pub(in crate::cli) from: End,
    /// Destination, likewise
    #[arg(long, value_name = "IP[:PORT]")]
    pub(in crate::cli) to: End,
    /// tcp, udp, icmp (an echo request, IPv6 too), or an IP protocol number
    #[arg(long, value_name = "PROTOCOL")]
    pub(in crate::cli) proto: Protocol,
    /// Destination port, where --to has none
    #[arg(long)]
    pub(in crate::cli) port: Option<u16>,
    /// The interface at which it is judged; needed where the addresses do not say
    #[arg(long = "in", value_name = "INTERFACE")]
    pub(in crate::cli) interface: Option<model::InterfaceName>,
    /// On its way out through a device interface, not in
    #[arg(long)]
    pub(in crate::cli) out: bool,
    /// A VLAN id; twice: the outer one first
    #[arg(long, value_name = "ID")]
    pub(in crate::cli) vlan: Vec<u16>,
    /// TCP flags, of SAFRPU; otherwise S, a new connection
    #[arg(long)]
    pub(in crate::cli) flags: Option<String>,
    /// Explain the answer, too: where it comes in, and on its way out to the device
    #[arg(long)]
    pub(in crate::cli) both: bool,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

/// An address, perhaps with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct End {
    pub(in crate::cli) address: IpAddr,
    pub(in crate::cli) port: Option<u16>,
}

impl FromStr for End {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self { address, port: None });
        }
        let both: SocketAddr = text
            .parse()
            .map_err(|_| "write an address, 10.66.0.5 or fd00::5, or with a port 10.66.0.5:443 or [fd00::5]:443")?;
        Ok(Self {
            address: both.ip(),
            port: Some(both.port()),
        })
    }
}

/// An IP protocol, by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Protocol {
    Number(u8),
    /// Of the addresses' family.
    Icmp,
}

impl FromStr for Protocol {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Number(6)),
            "udp" => Ok(Self::Number(17)),
            "icmp" | "icmpv6" | "ping" => Ok(Self::Icmp),
            n => n
                .parse()
                .map(Self::Number)
                .map_err(|_| "write tcp, udp, icmp, or an IP protocol number, 0 to 255"),
        }
    }
}

/// Which denied packets.
#[derive(Debug, Args)]
pub(in crate::cli) struct Which {
    /// Only with this source or destination
    #[arg(long, value_name = "IP")]
    pub(in crate::cli) address: Option<IpAddr>,
    /// Only of this device's live sessions
    #[arg(long, value_name = "ID")]
    pub(in crate::cli) device: Option<model::DeviceId>,
    /// Only those that this pool's policy denied
    #[arg(long)]
    pub(in crate::cli) pool: Option<model::PoolName>,
    /// Only with this reason's name
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DenialsArgs {
    /// At most so many of the last ones; with --follow 10 otherwise, else 50
    #[arg(long)]
    pub(in crate::cli) limit: Option<u32>,
    /// Go on with those that happen, until interrupted; with --json one object a line
    #[arg(long, short)]
    pub(in crate::cli) follow: bool,
    #[command(flatten)]
    pub(in crate::cli) which: Which,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct CaptureArgs {
    /// Denied packets; there is nothing else to capture yet
    #[arg(long, required = true)]
    pub(in crate::cli) denied: bool,
    /// The file, made with mode 0600; - is standard output
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    pub(in crate::cli) write: PathBuf,
    /// How long
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub(in crate::cli) time: Duration,
    /// How many bytes of packets, at most; K, M and G are powers of 1,024
    #[arg(long, value_name = "BYTES", default_value = "10M", value_parser = size)]
    pub(in crate::cli) max_bytes: u64,
    /// Replace the file if there is one
    #[arg(long)]
    pub(in crate::cli) force: bool,
    #[command(flatten)]
    pub(in crate::cli) which: Which,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct CountersArgs {
    /// Only this pool
    #[arg(long)]
    pub(in crate::cli) pool: Option<model::PoolName>,
    /// By rule, with its text, in place of by reason
    #[arg(long, conflicts_with_all = ["shadow", "pool"])]
    pub(in crate::cli) rules: bool,
    /// Where the shadow policy would have dropped or passed what the policy in force did not
    #[arg(long, conflicts_with = "pool")]
    pub(in crate::cli) shadow: bool,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ReasonArgs {
    /// Its name or number; all of them otherwise
    #[arg(value_name = "NAME|NUMBER")]
    pub(in crate::cli) reason: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse()
        .map(Duration::from_secs)
        .or_else(|_| humantime::parse_duration(text));
    match seconds {
        Ok(d) if (1..=3600).contains(&d.as_secs()) => Ok(d),
        _ => Err("write 90s or 5m, at most 1h".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'k', 'M', 'm', 'G', 'g']) {
        Some(digits) => (digits, text.as_bytes().last().map_or(b' ', u8::to_ascii_uppercase)),
        None => (text, b' '),
    };
    let shift = match unit {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        _ => 0,
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    bytes
        .filter(|n| (1..=1 << 30).contains(n))
        .ok_or_else(|| "write 4096, 10M or the like, at most 1G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!("[fd00::5]:443".parse::<End>().unwrap().port, Some(443));
        assert_eq!("fd00::5".parse::<End>().unwrap().port, None);
        assert!("10.0.0.1:x".parse::<End>().is_err() && "host".parse::<End>().is_err());
        assert_eq!("TCP".parse(), Ok(Protocol::Number(6)));
        assert!("256".parse::<Protocol>().is_err());
        assert_eq!((size("10M"), size("1G"), size("7")), (Ok(10 << 20), Ok(1 << 30), Ok(7)));
        for bad in ["", "M", "2G", "0", "-1", "18446744073709551615K", "1.5M", "1\u{7c}M"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert!(duration("2h").is_err() && duration("0s").is_err() && duration("x").is_err());
    }
}
