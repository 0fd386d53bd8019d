//! `lazaret hook openvpn`: the script that OpenVPN 2.6 calls. What it is called for stands in `script_type`:
//!
//! * `up`, `down`: the server starts or ends, so no session of it is live: those that the gateway still has are ended.
//! * `client-connect`: opens a session on the addresses that the client gets, or refuses the client.
//! * `learn-address add|update`: the address is final now: it must be one on which this client's session was opened, else OpenVPN is told
//!   not to learn it, and drops the client's packets.
//! * `client-disconnect`: closes the session by its id.
//!
//! Addresses are bound, not assigned: pinning a pool's address with `ifconfig-push` in client-connect makes OpenVPN 2.6 release it to the
//! pool, and the next client gets it too (seen with 2.6.14).
//!
//! OpenVPN stands still until the script ends, so it ends within two seconds, whatever happens. Exit code 1 refuses.

mod environment;
mod state;

use std::{ffi::OsString, net::IpAddr, path::PathBuf, time::Duration};

use clap::Args;
use lazaret_proto::v1;

use self::{
    environment::{Action, Client, Trouble},
    state::{Entry, States},
};
use crate::{
    cli::{
        client::{self, Failure},
        escaped,
    },
    config::Socket,
    model::SourceName,
};

/// Arguments of `lazaret hook openvpn`.
#[derive(Debug, Args)]
#[command(after_help = "\
In the server's configuration (deploy/openvpn-server.conf has the whole):
  script-security 2
  client-connect    \"/usr/bin/lazaret hook openvpn\"
  client-disconnect \"/usr/bin/lazaret hook openvpn\"
  learn-address     \"/usr/bin/lazaret hook openvpn\"
  up                \"/usr/bin/lazaret hook openvpn\"

Exit codes: 0 go on, 1 refuse; a line on stderr says why. It ends within two seconds.")]
pub struct HookArgs {
    /// The daemon's Unix socket
    #[arg(long, value_name = "PATH", env = "LAZARET_SOCKET", default_value = Socket::PATH)]
    socket: PathBuf,
    /// The name of this VPN server; each OpenVPN process needs one of its own [default: openvpn-DEV, e.g. openvpn-tun0]
    #[arg(long, value_name = "NAME")]
    source: Option<SourceName>,
    /// Directory of a file for each connected client; owned by the user that OpenVPN runs scripts as, made if missing
    #[arg(long, value_name = "DIR", default_value = "/run/lazaret-openvpn")]
    state: PathBuf,
    /// What OpenVPN appends
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Does what OpenVPN asks for. False: refuse; the reason was written to standard error.
#[must_use]
pub fn run(args: &HookArgs) -> bool {
    watch_over_time();
    match answer(args) {
        Ok(remark) => {
            remark.into_iter().for_each(|text| log(&text));
            true
        }
        Err(refusal) => {
            log(&refusal.to_string());
            false
        }
    }
}

/// Why OpenVPN is told to refuse.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("refused: {0}")]
    Environment(#[from] Trouble),
    #[error("refused: {0}")]
    State(#[from] state::StateError),
    #[error("refused: the gateway cannot record it: {0}")]
    Gateway(String),
    #[error("refused: the session is in force but not durable; the gateway's store cannot be written, see `lazaret status`")]
    NotDurable,
    #[error("refused: {0}")]
    Runtime(#[from] std::io::Error),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Gateway(failure.to_string())
    }
}

/// `Ok`: go on, with a remark for the log.
fn answer(args: &HookArgs) -> Result<Option<String>, Refusal> {
    let action = environment::action(|name| std::env::var_os(name), &args.args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let done = tokio::time::timeout(DEADLINE, perform(args, action)).await;
        done.unwrap_or_else(|_| Err(Failure::Deadline(DEADLINE).into()))
    })
}

async fn perform(args: &HookArgs, action: Action) -> Result<Option<String>, Refusal> {
    match action {
        Action::Nothing => Ok(None),
        Action::Reset { device } => {
            let source = source(args, device.as_str())?;
            let client = client::Client::connect(&args.socket, DEADLINE).await?;
            let request = v1::SynchroniseSessionsRequest {
                context: Some(client::context(PREFIX)?),
                source: source.to_string(),
                sessions: Vec::new(),
            };
            let answer = client.answer(client.sessions().synchronise_sessions(request)).await?;
            States::open(&args.state)?.forget_all(device.as_str());
            Ok((answer.ended > 0).then(|| format!("{source}: ended {} session(s) of an earlier run", answer.ended)))
        }
        Action::Open(client) => open(args, &client).await,
        Action::Learn { client, address } => {
            // The session was opened on the addresses of the file's name; if OpenVPN changed them since, there is none.
            match States::open(&args.state)?.read(&client.key())? {
                Some(_) if client.addresses.contains(&address) => Ok(None),
                _ => Err(Trouble::NoSession(address).into()),
            }
        }
        Action::Close(client) => close(args, &client).await,
    }
}

async fn open(args: &HookArgs, who: &Client) -> Result<Option<String>, Refusal> {
    if who.server_forwards_itself() {
        return Err(Trouble::ClientToClient.into());
    }
    let source = source(args, who.device.as_str())?;
    let states = States::open(&args.state)?;
    // Before the session: where it cannot be remembered, none is opened.
    let entry = states.create(&who.key())?.unless_kept();
    let remark = try_open(args, who, &source, &states, &entry).await?;
    entry.keep();
    Ok(remark)
}

async fn try_open(
    args: &HookArgs,
    who: &Client,
    source: &SourceName,
    states: &States,
    entry: &Entry,
) -> Result<Option<String>, Refusal> {
    let client = client::Client::connect(&args.socket, DEADLINE).await?;
    // Sessions that could not be closed when their clients left would stand in the way of the same device's next one.
    for late in states.to_be_closed(who.device.as_str()) {
        if let Some(session) = late.session {
            close_by_id(&client, session).await?;
        }
        late.entry.remove();
    }
    let request = v1::OpenSessionRequest {
        context: Some(client::context(PREFIX)?),
        source: source.to_string(),
        session: Some(v1::SessionReport {
            device_name: who.name.to_string(),
            certificate_sha256: who.certificate.map(|c| c.to_string()).unwrap_or_default(),
            prefixes: who.addresses.iter().map(IpAddr::to_string).collect(),
            interface: who.device.to_string(),
            vpn_public_key: String::new(),
        }),
    };
    let answer = client.answer(client.sessions().open_session(request)).await?;
    let session = answer.session.ok_or(Failure::Answer("session"))?;
    let recorded = match v1::Enforcement::try_from(answer.enforcement) {
        Ok(v1::Enforcement::Enforced) => Ok(None),
        // Recorded; until the programs are attached the floor is closed.
        Ok(v1::Enforcement::Committed | v1::Enforcement::NoSession) => Ok(Some(format!(
            "{}: session {} is recorded but not in force everywhere; see `lazaret status`",
            who.name, session.session_id
        ))),
        Ok(v1::Enforcement::EnforcedNotDurable | v1::Enforcement::Unspecified) | Err(_) => Err(Refusal::NotDurable),
    };
    let remembered = match recorded {
        Ok(remark) => entry.write(session.session_id).map(|()| remark).map_err(Refusal::from),
        Err(refusal) => Err(refusal),
    };
    if remembered.is_err() {
        close_by_id(&client, session.session_id).await?;
    }
    remembered
}

async fn close(args: &HookArgs, who: &Client) -> Result<Option<String>, Refusal> {
    let states = States::open(&args.state)?;
    let key = who.key();
    let Some(session) = states.read(&key)? else {
        // OpenVPN says goodbye to clients that client-connect refused, too.
        return Ok(None);
    };
    // From here on the client is gone: if the gateway cannot be told now, the next connection tells it.
    let late = states.set_aside(&key)?;
    let client = client::Client::connect(&args.socket, DEADLINE).await?;
    close_by_id(&client, session).await?;
    late.remove();
    Ok(None)
}

async fn close_by_id(client: &client::Client, session_id: u64) -> Result<(), Refusal> {
    let request = v1::CloseSessionRequest {
        context: Some(client::context(PREFIX)?),
        session_id,
    };
    client.answer(client.sessions().close_session(request)).await?;
    Ok(())
}

fn source(args: &HookArgs, device: &str) -> Result<SourceName, Trouble> {
    match &args.source {
        Some(source) => Ok(source.clone()),
        None => format!("openvpn-{device}").parse().map_err(|_| Trouble::Source),
    }
}

/// Of all that is asked of the daemon in one call of the script.
const DEADLINE: Duration = Duration::from_millis(1800);
/// Of the whole process, file systems that hang included.
const END: Duration = Duration::from_millis(1950);
/// Of request ids.
const PREFIX: &str = "openvpn";

fn watch_over_time() {
    std::thread::spawn(|| {
        std::thread::sleep(END);
        log("refused: it took too long");
        std::process::exit(1);
    });
}

fn log(text: &str) {
    use std::io::Write as _;
    // OpenVPN's log takes standard error; without one there is nowhere to say it.
    let _ = writeln!(std::io::stderr(), "lazaret: {}", escaped(text));
}
