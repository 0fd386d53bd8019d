//! What can be typed about a device's life: why, ledger, policy, exception, drift, renew.

use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args, Subcommand};

use super::Connection;
use crate::model;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["device", "reference"]))]
pub(in crate::cli) struct WhyArgs {
    /// The device
    #[arg(value_name = "DEVICE")]
    pub(in crate::cli) device: Option<model::DeviceId>,
    /// A reference code out of a refusal, like A1234 or R1234
    #[arg(long, value_name = "CODE", value_parser = reference)]
    pub(in crate::cli) reference: Option<Reference>,
    /// So many of its last events
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(in crate::cli) events: u32,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

pub(in crate::cli) const WHY_EXAMPLES: &str = "\
Examples:
  lazaret why phone-17
  lazaret why --reference A1234     what was refused, when, to whom, and why";

#[derive(Debug, Args)]
pub(in crate::cli) struct LedgerArgs {
    /// List those of this kind
    #[arg(long)]
    pub(in crate::cli) kind: Option<Kind>,
    /// List those of at least this age, like 8h or 2d
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    pub(in crate::cli) older: Option<Duration>,
    /// List all of them, not only their numbers
    #[arg(long)]
    pub(in crate::cli) list: bool,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

pub(in crate::cli) const LEDGER_EXAMPLES: &str = "\
Kinds: expected (never arrived, its window open or to come), missed (never arrived, its window over), outside (arrived outside its
window), stuck (in quarantine, its deadline runs or has passed), placeholder (no owner yet).

Examples:
  lazaret ledger
  lazaret ledger --kind stuck --older 8h";

/// As `v1::LedgerKind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Kind {
    Expected,
    Missed,
    Outside,
    Stuck,
    Placeholder,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum PolicyCommand {
    /// Offer a policy to a device: prints the temporary key. For an MDM's certificate (--api)
    #[command(after_help = "Example:\n  lazaret policy offer phone-17 --revision baseline-8")]
    Offer(OfferArgs),
    /// Take the temporary key when the device has the policy: prints the final key. For an MDM's certificate (--api)
    #[command(
        after_help = "The final key goes with the proof: lazaret policy applied phone-17 --revision baseline-8 --key KEY\n\nExample:\n  lazaret policy acknowledge phone-17 --key 8f0e0c52cc1e4ab1a3a8c5b1d9c0f3d7"
    )]
    Acknowledge(AcknowledgeArgs),
    /// Report a policy as applied, which releases the device. For an MDM's certificate (--api)
    #[command(after_help = APPLIED_EXAMPLES)]
    Applied(AppliedArgs),
    /// Require a policy revision; devices released by another become stale, in waves
    #[command(after_help = PUBLISH_EXAMPLES)]
    Publish(PublishArgs),
    /// Let no further wave come
    #[command(after_help = "Example:\n  lazaret policy pause")]
    Pause(Connection),
    /// Let the waves come again
    #[command(after_help = "Example:\n  lazaret policy resume")]
    Resume(Connection),
    /// How far the publication in force has got
    #[command(after_help = "Examples:\n  lazaret policy progress\n  lazaret policy progress --follow")]
    Progress(ProgressArgs),
}

const APPLIED_EXAMPLES: &str = "\
Only an MDM can say so. An operator releases by hand, for a time: lazaret device release.

Prints each address with the interface, hook and map where it was read back.

Example:
  lazaret policy applied phone-17 --revision baseline-8 --key KEY \
    --api gw.example.org:9443 --api-ca ca.pem --api-certificate mdm.pem --api-key mdm.key";

const PUBLISH_EXAMPLES: &str = "\
A wave takes connected devices: who is not connected keeps a release that reaches nothing, until it connects and there is room.
Published again, the revision in force gets other terms: that is how a ceiling is raised.

Examples:
  lazaret policy publish baseline-8 --ceiling 50 --rate 20
  lazaret policy publish baseline-8 --urgent              everyone at once";

#[derive(Debug, Args)]
pub(in crate::cli) struct OfferArgs {
    /// The device
    #[arg(value_name = "DEVICE")]
    pub(in crate::cli) device: model::DeviceId,
    /// The version of the policy
    #[arg(long, value_name = "REVISION")]
    pub(in crate::cli) revision: model::PolicyRevision,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct AcknowledgeArgs {
    /// The device
    #[arg(value_name = "DEVICE")]
    pub(in crate::cli) device: model::DeviceId,
    /// The temporary key, 32 hexadecimal digits
    #[arg(long, value_name = "KEY")]
    pub(in crate::cli) key: String,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct AppliedArgs {
    /// The device
    #[arg(value_name = "DEVICE")]
    pub(in crate::cli) device: model::DeviceId,
    /// The version of the policy that is applied
    #[arg(long, value_name = "REVISION")]
    pub(in crate::cli) revision: model::PolicyRevision,
    /// The final policy key, 32 hexadecimal digits; needed where the configuration takes no direct signal
    #[arg(long, value_name = "KEY")]
    pub(in crate::cli) key: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("terms").required(true).multiple(true).args(["ceiling", "urgent"]))]
pub(in crate::cli) struct PublishArgs {
    /// The version of the policy
    #[arg(value_name = "REVISION")]
    pub(in crate::cli) revision: model::PolicyRevision,
    /// No wave leaves more than so many connected devices stale, to spare the DM server
    #[arg(long, value_name = "DEVICES", requires = "rate", conflicts_with = "urgent", value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) ceiling: Option<u32>,
    /// At most so many devices a minute become stale
    #[arg(long, value_name = "DEVICES", requires = "ceiling", conflicts_with = "urgent", value_parser = clap::value_parser!(u32).range(1..))]
    pub(in crate::cli) rate: Option<u32>,
    /// All at once, connected or not
    #[arg(long)]
    pub(in crate::cli) urgent: bool,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ProgressArgs {
    /// Go on as it changes, until interrupted; with --json a line of JSON each
    #[arg(long)]
    pub(in crate::cli) follow: bool,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ExceptionCommand {
    /// Release or block a device by hand, for a time
    #[command(after_help = GRANT_EXAMPLES)]
    Grant(GrantArgs),
    /// End an exception now
    #[command(after_help = "Example:\n  lazaret exception end phone-17 --reason 'the replacement has arrived'")]
    End(EndArgs),
}

const GRANT_EXAMPLES: &str = "\
Reason and time are mandatory. A release ends with the device's next proof or revocation; a block holds against signals. Both are in the audit.

Examples:
  lazaret exception grant phone-17 --release --for 8h --reason 'the MDM is down, ticket 4711'
  lazaret exception grant phone-17 --block --for 2d --reason 'reported stolen'";

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("kind").required(true).args(["release", "block"]))]
pub(in crate::cli) struct GrantArgs {
    /// The device
    #[arg(value_name = "DEVICE")]
    pub(in crate::cli) device: model::DeviceId,
    /// Release it without proof
    #[arg(long)]
    pub(in crate::cli) release: bool,
    /// Block it, whatever is signalled
    #[arg(long)]
    pub(in crate::cli) block: bool,
    /// How long, like 8h or 2d
    #[arg(long = "for", value_name = "TIME", value_parser = span)]
    pub(in crate::cli) length: Duration,
    /// Why, for the audit
    #[arg(long)]
    pub(in crate::cli) reason: String,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

/// A length that the API can be told: whole seconds.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let length = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if length < Duration::from_secs(1) {
        return Err("at least a second, like 8h or 2d".to_owned());
    }
    Ok(length)
}

#[derive(Debug, Args)]
pub(in crate::cli) struct EndArgs {
    /// The device
    #[arg(value_name = "DEVICE")]
    pub(in crate::cli) device: model::DeviceId,
    /// Why, for the audit
    #[arg(long, default_value = "by an operator")]
    pub(in crate::cli) reason: String,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DriftArgs {
    /// Compare everything now, and repair what differs; it takes an operator
    #[arg(long)]
    pub(in crate::cli) check: bool,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RenewArgs {
    /// The devices, at most 1,000
    #[arg(value_name = "DEVICE", required = true, num_args = 1..=1000)]
    pub(in crate::cli) devices: Vec<model::DeviceId>,
    #[command(flatten)]
    pub(in crate::cli) connection: Connection,
}

/// A point of time: RFC 3339, or a span from now on like 2d.
pub(in crate::cli) fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(at) = humantime::parse_rfc3339_weak(text) {
        return Ok(at);
    }
    let ahead = humantime::parse_duration(text).ok();
    ahead
        .and_then(|d| SystemTime::now().checked_add(d))
        .ok_or_else(|| "neither a time like 2026-11-30T18:00:00Z nor a span from now on like 2d".to_owned())
}

/// What a reference code names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Reference {
    /// An entry of the audit.
    Audit(u64),
    /// What was refused without a decision.
    Recent(u64),
}

fn reference(text: &str) -> Result<Reference, String> {
    let (kind, digits): (fn(u64) -> Reference, &str) = match text.strip_prefix(['R', 'r']) {
        Some(digits) => (Reference::Recent, digits),
        None => (Reference::Audit, text.strip_prefix(['A', 'a']).unwrap_or(text)),
    };
    let number = digits.parse().ok().filter(|n| *n > 0);
    number
        .map(kind)
        .ok_or_else(|| "a reference code is A or R and a number, like A1234".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_codes_and_moments() {
        assert_eq!(reference("A1234"), Ok(Reference::Audit(1234)));
        assert_eq!(reference("1234"), Ok(Reference::Audit(1234)));
        assert_eq!(reference("r1234"), Ok(Reference::Recent(1234)));
        for bad in ["", "A", "A0", "B12", "A-1", "A1x", "AA1", "R", "R0", "RA1"] {
            assert!(reference(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            moment("1970-01-02T00:00:00Z").unwrap(),
            SystemTime::UNIX_EPOCH + Duration::from_secs(86_400)
        );
        let ahead = moment("2h").unwrap().duration_since(SystemTime::now()).unwrap();
        assert!((7_100..=7_200).contains(&ahead.as_secs()), "{ahead:?}");
        assert!(moment("tomorrow").is_err());
    }
}
