//! What can be typed about the database and the audit in it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::{audit::Head, model::DeviceId};

#[derive(Debug, Subcommand)]
pub(in super::super) enum AuditCommand {
    /// Whether the chain is whole: finds what was edited, moved, removed, cut off or replaced, and where
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// One entry by its reference code, as refusals carry it
    #[command(after_help = "Example:\n  lazaret audit show A1234")]
    Show(ShowArgs),
    /// The last entries, newest first; all devices' or one's
    #[command(after_help = "Examples:\n  lazaret audit list\n  lazaret audit list --device phone-17 --limit 5")]
    List(ListArgs),
    /// Entries as lines of JSON, oldest first, and in the last line the chain's head
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(ExportArgs),
}

const VERIFY_EXAMPLES: &str = "\
The chain itself cannot say that its end is missing, or that all of it was made anew. A head from elsewhere can: from the daemon's log
(audit_head=...), from an earlier verify or export, or from status.

Exit codes: 0 the chain is whole, 1 it is not.

Examples:
  lazaret audit verify
  lazaret audit verify --head 1234:8832942dbdb601d2b309bc2ce7cba5acfa726c9c88c10de29844e2630b638876
  lazaret audit verify --lines /var/log/lazaret-audit.jsonl
  lazaret audit verify --database /backup/lazaret.db";

const EXPORT_EXAMPLES: &str = "\
Examples:
  lazaret audit export > audit.jsonl
  lazaret audit export --after 1234 | jq -r 'select(.result != \"done\")'";

#[derive(Debug, Subcommand)]
pub(in super::super) enum StoreCommand {
    /// Look at all of the database: pages, indexes, every row, and the audit's chain; beside the running daemon
    #[command(
        after_help = "Exit codes: 0 nothing is wrong, 1 something is.\n\nExamples:\n  lazaret store check\n  lazaret store check --database /backup/lazaret.db"
    )]
    Check(StoreCheckArgs),
    /// Copy the database to a new file, beside the running daemon
    #[command(after_help = BACKUP_EXAMPLES)]
    Backup(BackupArgs),
    /// Put a backup in the database's place, with the daemon stopped; every device needs fresh proof afterwards
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(RestoreArgs),
}

const BACKUP_EXAMPLES: &str = "\
The file holds names of people and devices: it is made readable for its owner alone. It has its name only once it is whole and on the disk.

Example:
  lazaret store backup /var/backups/lazaret-$(date +%F).db";

const RESTORE_EXAMPLES: &str = "\
The database that is replaced stays beside the new one. What tightens is taken over from it: publications, retirements, blocks, restrictions, narrower
enrolments, withdrawn names, certificates and keys, removals; nothing that loosens is. Where it is not there, damaged, or of another gateway, the output,
the audit and `lazaret status` say what is forgotten, until a policy is published. No device is released until the MDM reports anew that its policy is
applied; live sessions are not taken over, and return with the VPN server's next list.

A clock that ran ahead leaves restrictions dated ahead, which make each proof a STALE_SIGNAL, and a last commit that the clock stays behind. Set it
right, stop the daemon, back the database up, and restore it with --clock-was-ahead.

Example:
  systemctl stop lazaret && lazaret store restore /var/backups/lazaret-2026-11-22.db && systemctl start lazaret";

/// Which database.
#[derive(Debug, Args)]
pub(in super::super) struct DatabaseArgs {
    /// The daemon's configuration, which says where the database is
    #[arg(long, value_name = "FILE", default_value = "/etc/lazaret/lazaret.toml")]
    pub(in super::super) config: PathBuf,
    /// A database file, e.g. a backup, in place of the daemon's
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub(in super::super) database: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in super::super) struct VerifyArgs {
    /// An entry that is known from elsewhere; may be repeated
    #[arg(long, value_name = "NUMBER:HASH")]
    pub(in super::super) head: Vec<Head>,
    /// Lines of JSON, from an export or from [store] audit_log, in place of the database
    #[arg(long, value_name = "FILE", conflicts_with = "database")]
    pub(in super::super) lines: Option<PathBuf>,
    #[command(flatten)]
    pub(in super::super) database: DatabaseArgs,
    /// Print JSON, with stable keys
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct ShowArgs {
    /// The entry: its number, with or without the A
    #[arg(value_name = "CODE", value_parser = code)]
    pub(in super::super) code: u64,
    #[command(flatten)]
    pub(in super::super) database: DatabaseArgs,
    /// Print JSON, with stable keys
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct ListArgs {
    /// Only those of this device
    #[arg(long, value_name = "ID")]
    pub(in super::super) device: Option<DeviceId>,
    /// At most so many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub(in super::super) limit: u32,
    #[command(flatten)]
    pub(in super::super) database: DatabaseArgs,
    /// Print JSON, with stable keys
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct ExportArgs {
    /// Only what comes after this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(in super::super) after: u64,
    #[command(flatten)]
    pub(in super::super) database: DatabaseArgs,
}

#[derive(Debug, Args)]
pub(in super::super) struct StoreCheckArgs {
    #[command(flatten)]
    pub(in super::super) database: DatabaseArgs,
    /// Print JSON, with stable keys
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct BackupArgs {
    /// The file to be made; nothing may have that name
    #[arg(value_name = "FILE")]
    pub(in super::super) file: PathBuf,
    #[command(flatten)]
    pub(in super::super) database: DatabaseArgs,
}

#[derive(Debug, Args)]
pub(in super::super) struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub(in super::super) file: PathBuf,
    /// The clock is right now, and had run ahead: what it dated later than now counts as of now
    #[arg(long)]
    pub(in super::super) clock_was_ahead: bool,
    /// The daemon's configuration, which says where the database is
    #[arg(long, value_name = "FILE", default_value = "/etc/lazaret/lazaret.toml")]
    pub(in super::super) config: PathBuf,
}

fn code(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix(['A', 'a']).unwrap_or(text);
    digits
        .parse()
        .map_err(|_| "a reference code is A and a number, such as A1234".to_owned())
}
