//! `lazaret capture`: denied packets into a pcapng file, each with its reason, pool and device as its comment.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufWriter, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use lazaret_proto::v1;

use super::{
    Outcome,
    args::CaptureArgs,
    client::Failure,
    commands::connect,
    pcapng::{ETHERNET, Packet, RAW, Writer},
};

/// Captures until the time is up, the size is reached, or it is interrupted; what was captured is in the file in each case.
pub(super) async fn run(a: &CaptureArgs) -> Result<Outcome, Failure> {
    let to_stdout = a.write == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::Local(
            "standard output is a terminal: name a file, or pipe it, as in `lazaret capture --denied -w - | tshark -r -`".into(),
        ));
    }
    let client = connect(&a.connection).await?;
    let text = |o: Option<String>| o.unwrap_or_default();
    let request = v1::CaptureDeniedRequest {
        device_id: text(a.which.device.as_ref().map(ToString::to_string)),
        address: text(a.which.address.map(|i| i.to_string())),
        reason: text(a.which.reason.clone()),
        pool: text(a.which.pool.as_ref().map(ToString::to_string)),
        seconds: u32::try_from(a.time.as_secs()).unwrap_or(u32::MAX),
        max_bytes: a.max_bytes,
    };
    let mut stream = client.answer(client.inspect().capture_denied(request)).await?;
    let out: Box<dyn Write> = if to_stdout {
        Box::new(io::stdout())
    } else {
        let made = make(&a.write, a.force);
        Box::new(made.map_err(|e| Failure::Local(format!("{}: {e}", a.write.display())))?)
    };
    let written = |e: io::Error| Failure::Local(format!("{}: {e}", a.write.display()));
    let application = concat!("lazaret ", env!("CARGO_PKG_VERSION"));
    let mut file = Writer::new(BufWriter::new(out), application).map_err(written)?;
    file.flush().map_err(written)?;
    let mut done = Done::default();
    let ended = loop {
        let message = tokio::select! {
            message = stream.message() => message,
            _ = tokio::signal::ctrl_c() => break "interrupted".to_owned(),
        };
        let message = match message {
            Ok(Some(m)) => m,
            Ok(None) => break "the daemon ended it".to_owned(),
            Err(e) => {
                file.flush().map_err(written)?;
                done.say("broken off");
                return Err(client.failure(&e));
            }
        };
        done.missed += message.missed;
        if let Some(packet) = &message.packet {
            write(&mut file, packet).map_err(written)?;
            done.packets += 1;
            // A reader of a pipe sees packets as they come.
            if to_stdout {
                file.flush().map_err(written)?;
            }
        }
        if !message.ended.is_empty() {
            done.lost = message.lost;
            break match message.ended.as_str() {
                "time" => "the time is up".to_owned(),
                "bytes" => "the size is reached".to_owned(),
                other => other.to_owned(),
            };
        }
    };
    file.flush().map_err(written)?;
    done.say(&ended);
    Ok(Outcome::Done)
}

/// What was captured, and what was not.
#[derive(Default)]
struct Done {
    packets: u64,
    missed: u64,
    lost: u64,
}

impl Done {
    /// To standard error, for the packets may go to standard output.
    fn say(&self, ended: &str) {
        let Self { packets, missed, lost } = self;
        let mut text = format!("{packets} packets; {ended}");
        if missed + lost > 0 {
            text += &format!(
                "; not captured: {missed} because this reader was too slow, {lost} by the rate limit or to a full buffer in the kernel"
            );
        }
        let _ = writeln!(io::stderr(), "lazaret: {}", super::escaped(&text));
    }
}

/// A new file for its owner only; one that is there is left alone, or removed first with `force`.
fn make(path: &Path, force: bool) -> io::Result<fs::File> {
    if force {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => io::Error::new(e.kind(), "it exists already; --force replaces it"),
        _ => e,
    })
}

fn write(file: &mut Writer<impl Write>, p: &v1::CapturedPacket) -> io::Result<()> {
    let denial = p.denial.clone().unwrap_or_default();
    file.packet(&Packet {
        interface: &denial.interface,
        link: if p.ethernet { ETHERNET } else { RAW },
        at_ns: p.at_ns,
        length: p.length,
        data: &p.data,
        comment: &comment(&denial),
    })
}

/// "no_rule (16): ...; pool quarantine; device phone-17; tc device of tun0".
fn comment(d: &v1::Denial) -> String {
    let mut text = format!("{} ({}): {}", d.reason, d.reason_number, d.sentence);
    for (name, value) in [("pool", &d.pool), ("device", &d.device_id)] {
        let value = if value.is_empty() { "none" } else { value };
        text += &format!(" {name} {value};");
    }
    text += &format!(" judged at {}, {}", d.interface, d.hook);
    if d.observed {
        text += "; let through: observe mode";
    }
    super::escaped(&text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_that_is_there_stays_unless_forced_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("denied.pcapng");
        let made = make(&path, false).unwrap();
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let refused = make(&path, false).unwrap_err();
        assert!(refused.to_string().contains("--force"), "{refused}");
        let (other, link) = (dir.path().join("other"), dir.path().join("link"));
        fs::write(&other, "mine").unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert!(make(&link, false).is_err());
        make(&link, true).unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "mine");
        make(&path, true).unwrap();
    }

    #[test]
    fn a_comment_says_why_and_whose() {
        let d = v1::Denial {
            reason: "no_rule".into(),
            reason_number: 16,
            sentence: "S.".into(),
            pool: "quarantine".into(),
            interface: "tun0".into(),
            hook: "tc device".into(),
            ..v1::Denial::default()
        };
        assert_eq!(
            comment(&d),
            "no_rule (16): S. pool quarantine; device none; judged at tun0, tc device"
        );
    }
}
