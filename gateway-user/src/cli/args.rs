//! What can be typed: subcommands, options and their help.

mod life;
mod seen;
mod stored;

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

pub(super) use self::life::{
    AcknowledgeArgs, AppliedArgs, DriftArgs, EndArgs, ExceptionCommand, GrantArgs, Kind, LedgerArgs, OfferArgs, PolicyCommand,
    ProgressArgs, PublishArgs, Reference, RenewArgs, WhyArgs,
};
pub(super) use self::seen::{CaptureArgs, CountersArgs, DenialsArgs, ExplainArgs, Protocol, ReasonArgs, Which};
pub(super) use self::stored::{
    AuditCommand, BackupArgs, DatabaseArgs, ExportArgs, ListArgs, RestoreArgs, ShowArgs, StoreCheckArgs, StoreCommand, VerifyArgs,
};
use crate::{config::Socket, model};

/// Network quarantine gateway for VPN hosts.
#[derive(Debug, Parser)]
#[command(
    name = "lazaret",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = EXIT_CODES
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

const EXIT_CODES: &str = "\
Examples:
  lazaret check /etc/lazaret/lazaret.toml
  lazaret status
  lazaret device release phone-17 --for 8h --reason 'the MDM is down, ticket 4711'
  lazaret why phone-17
  lazaret explain --from 10.66.0.5 --to 10.9.0.20 --proto tcp --port 25
  lazaret denials --follow --device phone-17

Exit codes:
  0  done; for `status`: the gateway does its work
  1  refused, or failed; the sentence on stderr says why
  2  the command line is wrong
  3  the daemon cannot be reached, or does not answer in time
  4  not enforced: committed but not in force everywhere, or in force but not durable; for `status`: degraded, or in observe mode
  5  not allowed in the caller's role";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon in the foreground
    #[command(after_help = "Example:\n  lazaret run --config /etc/lazaret/lazaret.toml")]
    Run(ConfigArgs),
    /// Check a configuration without running it: every mistake with its line, and what may not be meant
    #[command(
        after_help = "Exit codes: 0 it can be run (there may be warnings), 1 it cannot.\n\nExample:\n  lazaret check /etc/lazaret/lazaret.toml"
    )]
    Check(CheckArgs),
    /// Close the floor and nothing else, at boot: the kernel itself denies what no program grants
    #[command(after_help = "Example:\n  lazaret floor --config /etc/lazaret/lazaret.toml")]
    Floor(ConfigArgs),
    #[command(flatten)]
    Ask(Ask),
    /// What a reason means and what to do about it; without a name, all of them
    #[command(after_help = "Examples:\n  lazaret reason no_rule\n  lazaret reason 23")]
    Reason(ReasonArgs),
    /// Take Lazaret out of the kernel, with the daemon stopped; the floor stays closed
    #[command(after_help = DETACH_EXAMPLES)]
    Detach(DetachArgs),
    /// A small certificate authority for the gRPC API, so that nobody starts with plaintext
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Who did what: verify, show, list and export the audit, read from the database itself
    #[command(subcommand)]
    Audit(AuditCommand),
    /// The database: check, backup, restore
    #[command(subcommand)]
    Store(StoreCommand),
    /// Take a VPN server's calls
    #[command(subcommand)]
    Hook(HookCommand),
}

/// What the daemon is asked.
#[derive(Debug, Subcommand)]
pub(super) enum Ask {
    /// Whether the gateway does its work: mode, floor, store, interfaces and hooks
    #[command(
        after_help = "Exit codes: 0 it does, 3 the daemon cannot be reached, 4 degraded or in observe mode, 5 not allowed.\n\nExample:\n  lazaret status --json"
    )]
    Status(Connection),
    /// The pools: what they hold, and what passed and was dropped under each
    #[command(after_help = "Example:\n  lazaret pools")]
    Pools(Connection),
    /// Addresses of live sessions, or one address, as the kernel's map has them
    #[command(after_help = "Examples:\n  lazaret addresses\n  lazaret addresses 10.66.0.5")]
    Addresses(AddressesArgs),
    /// The registered devices
    #[command(after_help = "Examples:\n  lazaret devices --state quarantined\n  lazaret devices --state stale")]
    Devices(DevicesArgs),
    /// One device: show, register, release, quarantine, retire
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Why a device is in its state: since when, by whom, what is required and what was found, what comes next, what to do
    #[command(after_help = life::WHY_EXAMPLES)]
    Why(WhyArgs),
    /// Devices that are expected and have not come, came outside their window, or are stuck in quarantine
    #[command(after_help = life::LEDGER_EXAMPLES)]
    Ledger(LedgerArgs),
    /// Policy keys, proof and policy revisions: offer, acknowledge, applied, publish, pause, resume, progress
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Release or block a device by hand, for a time: grant, end
    #[command(subcommand)]
    Exception(ExceptionCommand),
    /// Renew the leases of devices that are released by proof: for an MDM's certificate (--api)
    #[command(after_help = "Example:\n  lazaret renew phone-17 phone-18")]
    Renew(RenewArgs),
    /// Whether the kernel has what the store says: what was found to differ, and repaired
    #[command(after_help = "Examples:\n  lazaret drift\n  lazaret drift --check")]
    Drift(DriftArgs),
    /// The live sessions
    #[command(after_help = "Example:\n  lazaret sessions --json")]
    Sessions(Connection),
    /// One session: open, close
    #[command(subcommand)]
    Session(SessionCommand),
    /// Why a packet passes or not: runs it in the kernel on the live tables, and says what would change the verdict
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),
    /// Exact packets and bytes by pool and reason; by rule; by shadow policy
    #[command(
        after_help = "Examples:\n  lazaret counters --pool quarantine\n  lazaret counters --rules\n  lazaret counters --shadow"
    )]
    Counters(CountersArgs),
    /// The last denied packets, newest last, each with its reason and what to do about it
    #[command(
        after_help = "Examples:\n  lazaret denials --limit 10\n  lazaret denials --address 10.66.0.5 --reason no_rule\n  lazaret denials --follow --device phone-17"
    )]
    Denials(DenialsArgs),
    /// Denied packets into a pcapng file, for Wireshark, with the reason, pool and device as each one's comment
    #[command(after_help = CAPTURE_EXAMPLES)]
    Capture(CaptureArgs),
}

const EXPLAIN_EXAMPLES: &str = "\
Nothing is sent, counted or remembered. Without --in, the packet is judged at the interface of the source's session, or at the only
device interface; at the only core interface if the source is in no pool.

Examples:
  lazaret explain --from 10.66.0.5 --to 10.9.0.10 --proto tcp --port 443
  lazaret explain --from 10.66.0.5 --to 10.9.0.10 --proto tcp --port 443 --both
  lazaret explain --from 10.9.0.20 --to 10.66.0.5:22 --proto tcp --in core0
  lazaret explain --from 10.9.0.20 --to 10.66.0.5 --proto icmp --out";

const CAPTURE_EXAMPLES: &str = "\
The first 256 bytes of each packet are kept. The programs copy packets only while a capture runs. It takes an operator.

Examples:
  lazaret capture --denied -w denied.pcapng --for 5m
  lazaret capture --denied --device phone-17 -w - | tshark -r -";

/// The daemon's configuration.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct DetachArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// Open the floor, too: nothing is denied any more
    #[arg(long)]
    pub(super) open: bool,
}

const DETACH_EXAMPLES: &str = "\
In observe mode the floor is open, and stays so.

Examples:
  systemctl stop lazaret && lazaret detach --config /etc/lazaret/lazaret.toml          devices reach nothing
  systemctl stop lazaret && lazaret detach --open --config /etc/lazaret/lazaret.toml   everything passes, as without Lazaret";

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration file
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// How to reach the daemon.
#[derive(Clone, Debug, Args)]
pub(super) struct Connection {
    /// The daemon's Unix socket
    #[arg(long, value_name = "PATH", env = "LAZARET_SOCKET", default_value = Socket::PATH)]
    pub(super) socket: PathBuf,
    /// How long to wait for an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(super) timeout: u64,
    /// Print JSON, with stable keys
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) network: Network,
}

/// The network API, in place of the Unix socket.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Over the network, with the role of a certificate")]
pub(super) struct Network {
    /// Ask a gateway's network API, not the Unix socket
    #[arg(long, value_name = "HOST:PORT", env = "LAZARET_API")]
    pub(super) api: Option<String>,
    /// The CA of the gateway's certificate, PEM
    #[arg(long, value_name = "FILE", env = "LAZARET_API_CA")]
    pub(super) api_ca: Option<PathBuf>,
    /// The certificate to ask with, PEM
    #[arg(long, value_name = "FILE", env = "LAZARET_API_CERTIFICATE")]
    pub(super) api_certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", env = "LAZARET_API_KEY")]
    pub(super) api_key: Option<PathBuf>,
    /// The name in the gateway's certificate, if it is not HOST
    #[arg(long, value_name = "NAME", env = "LAZARET_API_NAME")]
    pub(super) api_name: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct AddressesArgs {
    /// Only this one
    #[arg(value_name = "IP")]
    pub(super) address: Option<IpAddr>,
    /// At most so many
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: u32,
    #[command(flatten)]
    pub(super) connection: Connection,
}

#[derive(Debug, Args)]
pub(super) struct DevicesArgs {
    /// Only those in this state
    #[arg(long)]
    pub(super) state: Option<State>,
    #[command(flatten)]
    pub(super) connection: Connection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum State {
    Registered,
    Quarantined,
    PolicyPending,
    Released,
    Stale,
    Blocked,
    Retired,
}

#[derive(Debug, Subcommand)]
pub(super) enum DeviceCommand {
    /// Everything that the registry holds of a device, and its live sessions
    #[command(after_help = "Example:\n  lazaret device show phone-17")]
    Show(DeviceArgs),
    /// Add a device to the registry, or change its owner, pool and aliases; what is not named stays as it is
    #[command(
        after_help = "Example:\n  lazaret device register phone-17 --owner 'A. Person' --common-name a.person --not-after 2d"
    )]
    Register(RegisterArgs),
    /// Release a device by hand, by an exception: for a time, and with a reason
    #[command(after_help = RELEASE_EXAMPLES)]
    Release(ReleaseArgs),
    /// Put a device back into quarantine; its live connections are cut at the next packet
    #[command(after_help = "Example:\n  lazaret device quarantine phone-17 --reason 'reported stolen'")]
    Quarantine(QuarantineArgs),
    /// End a device's management, for good: no new session of it opens
    #[command(after_help = "Example:\n  lazaret device retire phone-17")]
    Retire(DeviceArgs),
}

const RELEASE_EXAMPLES: &str = "\
It is `lazaret exception grant --release`. It ends when its time is over, by `lazaret exception end`, and with the device's next proof or
revocation. Proof is the MDM's to give: `lazaret policy applied`, with its certificate.

Prints each address with the interface, hook and map where it was read back.

Example:
  lazaret device release phone-17 --for 8h --reason 'the MDM is down, ticket 4711'";

#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    /// The device
    #[arg(value_name = "ID")]
    pub(super) device: model::DeviceId,
    #[command(flatten)]
    pub(super) connection: Connection,
}

#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// The device
    #[arg(value_name = "ID")]
    pub(super) device: model::DeviceId,
    /// How long, like 8h or 2d
    #[arg(long = "for", value_name = "TIME", value_parser = life::span)]
    pub(super) length: std::time::Duration,
    /// Why, for the audit
    #[arg(long)]
    pub(super) reason: String,
    #[command(flatten)]
    pub(super) connection: Connection,
}

#[derive(Debug, Args)]
pub(super) struct QuarantineArgs {
    /// The device
    #[arg(value_name = "ID")]
    pub(super) device: model::DeviceId,
    /// Why, for people and logs
    #[arg(long, default_value = "by an operator")]
    pub(super) reason: String,
    #[command(flatten)]
    pub(super) connection: Connection,
}

#[derive(Debug, Args)]
pub(super) struct RegisterArgs {
    /// The device
    #[arg(value_name = "ID")]
    pub(super) device: model::DeviceId,
    /// Who uses it
    #[arg(long)]
    pub(super) owner: Option<String>,
    /// The full-service pool that a release moves it to; needed if there are several
    #[arg(long)]
    pub(super) pool: Option<model::PoolName>,
    /// Another name that it authenticates with; may be repeated, and stands in place of those it had
    #[arg(long, value_name = "NAME")]
    pub(super) common_name: Vec<model::DeviceId>,
    /// SHA-256 of its VPN certificate, 64 hexadecimal digits; may be repeated, and stands in place of those it had
    #[arg(long, value_name = "SHA256")]
    pub(super) certificate: Vec<model::Fingerprint>,
    /// Its VPN public key (WireGuard), base64; may be repeated, and stands in place of those it had
    #[arg(long, value_name = "BASE64")]
    pub(super) vpn_key: Vec<model::VpnKey>,
    /// It may enrol from then on: a time like 2026-11-30T18:00:00Z, or a span from now on like 2h
    #[arg(long, value_name = "TIME", value_parser = life::moment)]
    pub(super) not_before: Option<std::time::SystemTime>,
    /// It may enrol until then; another window than before begins another enrolment
    #[arg(long, value_name = "TIME", value_parser = life::moment)]
    pub(super) not_after: Option<std::time::SystemTime>,
    /// Forget what is not named here
    #[arg(long)]
    pub(super) replace: bool,
    #[command(flatten)]
    pub(super) connection: Connection,
}

#[derive(Debug, Subcommand)]
pub(super) enum SessionCommand {
    /// Report that a device has connected, as a VPN server does
    #[command(
        after_help = "Example:\n  lazaret session open --device phone-17 --address 10.66.0.5 --interface tun0 --source by-hand"
    )]
    Open(OpenArgs),
    /// Report that a session has ended
    #[command(after_help = "Example:\n  lazaret session close 42")]
    Close(CloseArgs),
}

#[derive(Debug, Args)]
pub(super) struct OpenArgs {
    /// The name that the device authenticated with
    #[arg(long, value_name = "NAME")]
    pub(super) device: model::DeviceId,
    /// Its address, or an IPv6 /64 that it has whole; may be repeated
    #[arg(long, value_name = "IP[/64]", required = true, value_parser = model::prefix::parse)]
    pub(super) address: Vec<IpAddr>,
    /// The interface on which its packets arrive
    #[arg(long)]
    pub(super) interface: model::InterfaceName,
    /// The VPN server that reports it
    #[arg(long)]
    pub(super) source: model::SourceName,
    /// SHA-256 of its certificate
    #[arg(long, value_name = "SHA256")]
    pub(super) certificate: Option<model::Fingerprint>,
    /// Its VPN public key (WireGuard), base64
    #[arg(long, value_name = "BASE64")]
    pub(super) vpn_key: Option<model::VpnKey>,
    #[command(flatten)]
    pub(super) connection: Connection,
}

#[derive(Debug, Args)]
pub(super) struct CloseArgs {
    /// The session's number, as `lazaret sessions` shows it
    #[arg(value_name = "ID")]
    pub(super) session: u64,
    #[command(flatten)]
    pub(super) connection: Connection,
}

#[derive(Debug, Subcommand)]
pub(super) enum PkiCommand {
    /// Make a CA
    #[command(after_help = "Example:\n  lazaret pki init --dir ~/lazaret-ca")]
    Init(crate::pki::InitArgs),
    /// Make a key, and a certificate that the CA signs, for a client's role or for the gateway itself
    #[command(after_help = PKI_EXAMPLES)]
    Issue(crate::pki::IssueArgs),
    /// Renew a certificate of this CA: same name, role and scope, a new key; the old one holds until it ends
    #[command(after_help = "Example:\n  lazaret pki renew --dir ~/lazaret-ca mdm-1.pem --out ~/for-the-mdm")]
    Renew(crate::pki::RenewArgs),
    /// What the running gateway trusts until when, which clients have shown which certificates, and who is to be renewed
    #[command(after_help = "Example:\n  lazaret pki status")]
    Status(Connection),
    /// End the trust in a retiring CA for good; refused while clients need it
    #[command(
        after_help = "Examples:\n  lazaret pki finish-retirement /etc/lazaret/old-ca.pem\n  lazaret pki finish-retirement /etc/lazaret/old-ca.pem --force --reason \"its key is lost\""
    )]
    FinishRetirement(super::access::FinishArgs),
}

const PKI_EXAMPLES: &str = "\
Examples:
  lazaret pki issue --dir ~/lazaret-ca --server --name gateway --dns gateway.example.org --out /etc/lazaret
  lazaret pki issue --dir ~/lazaret-ca --role mdm --name mdm-1 --out ~/for-the-mdm";

#[derive(Debug, Subcommand)]
pub(super) enum HookCommand {
    /// The script that OpenVPN calls: client-connect, client-disconnect, learn-address, up, down
    Openvpn(crate::hook::openvpn::HookArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent_and_every_subcommand_is_described_with_an_example() {
        fn walk(command: &clap::Command) {
            for sub in command.get_subcommands() {
                assert!(sub.get_about().is_some(), "{} has no description", sub.get_name());
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                let shown = help.contains("lazaret ") || sub.has_subcommands();
                assert!(shown, "{} has no example", sub.get_name());
                walk(sub);
            }
        }
        Cli::command().debug_assert();
        walk(&Cli::command());
    }
}
