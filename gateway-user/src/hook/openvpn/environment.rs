//! What OpenVPN says, as an action. Pure but for the server's configuration, which is read to find `client-to-client`.
//!
//! Names of variables as OpenVPN 2.6.14 sets them. Values can be a client's choice: each has its type, and none is repeated in a message.

use std::{
    ffi::{OsStr, OsString},
    fs::OpenOptions,
    io::Read as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::model::{DeviceId, Fingerprint, InterfaceName};

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The server starts or ends.
    Reset { device: InterfaceName },
    /// A client has authenticated.
    Open(Client),
    /// OpenVPN is about to take packets from this address as the client's.
    Learn { client: Client, address: IpAddr },
    /// A client has left.
    Close(Client),
    /// An address is no longer learned: late, and without a name. The session ends by client-disconnect.
    Nothing,
}

/// A connected client.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) name: DeviceId,
    pub(super) certificate: Option<Fingerprint>,
    /// IPv4, then IPv6; not empty.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) device: InterfaceName,
    /// When it connected, seconds since 1970.
    connected_at: u64,
    config: Option<PathBuf>,
    server_pid: Option<u32>,
}

impl Client {
    /// A file's name for this connection: the same in each call for it, and no other's. Its characters are those of the types.
    pub(super) fn key(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        format!("{},{},{},{}", self.device, self.connected_at, self.name, addresses.join(","))
    }

    /// Whether the server forwards between clients by itself, past every program on its interface, as far as its configuration file and
    /// command line tell.
    pub(super) fn server_forwards_itself(&self) -> bool {
        let file = self
            .config
            .as_deref()
            .and_then(read)
            .is_some_and(|text| says_client_to_client(&text));
        let typed = self
            .server_pid
            .and_then(|pid| read(Path::new(&format!("/proc/{pid}/cmdline"))));
        file || typed.is_some_and(|line| line.split(|b| *b == 0).any(|arg| arg == b"--client-to-client"))
    }
}

/// What is wrong with what OpenVPN says.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{0} is not set; this is to be called by OpenVPN as a script, with script-security 2")]
    Missing(&'static str),
    #[error("{0} is not {1}")]
    Bad(&'static str, &'static str),
    #[error("script_type is none of client-connect, client-disconnect, learn-address, up, down")]
    Script,
    #[error(
        "the client has no address: neither ifconfig_pool_remote_ip nor ifconfig_pool_remote_ip6 is set; with `server ... nopool`, add ifconfig-pool or a client-config-dir"
    )]
    NoAddress,
    #[error("dev tap does not bind a client to its source address, so one device could pose as another; use dev tun")]
    Tap,
    #[error("the server's configuration has client-to-client, which forwards between devices past every check; take it out")]
    ClientToClient,
    #[error("{0} is not an address that this client's session was opened on")]
    NoSession(IpAddr),
    #[error("networks behind a client (iroute) are not supported: a session has addresses")]
    Network,
    #[error("no source name can be made of the interface's name; name it with --source")]
    Source,
}

/// Reads the environment and the arguments that OpenVPN appended.
pub(super) fn action(variable: impl Fn(&str) -> Option<OsString>, args: &[OsString]) -> Result<Action, Trouble> {
    let text = |name: &'static str| match variable(name) {
        Some(value) if value.len() > MOST => Err(Trouble::Bad(name, "short enough to be true")),
        Some(value) => value.into_string().map(Some).map_err(|_| Trouble::Bad(name, "UTF-8")),
        None => Ok(None),
    };
    let required = |name: &'static str| text(name)?.filter(|t| !t.is_empty()).ok_or(Trouble::Missing(name));
    let script = required("script_type")?;
    let arg = |i: usize| args.get(i).and_then(|a| a.to_str()).unwrap_or("");
    let learns = script == "learn-address";
    if learns && arg(0) == "delete" {
        return Ok(Action::Nothing);
    }

    match required("dev_type")?.as_str() {
        "tun" => {}
        "tap" => return Err(Trouble::Tap),
        _ => return Err(Trouble::Bad("dev_type", "tun")),
    }
    let device: InterfaceName = required("dev")?
        .parse()
        .map_err(|_| Trouble::Bad("dev", "an interface name"))?;
    if matches!(script.as_str(), "up" | "down") {
        return Ok(Action::Reset { device });
    }

    let address = |name: &'static str, v4: bool| match text(name)? {
        Some(value) => match value.parse::<IpAddr>() {
            Ok(a) if a.is_ipv4() == v4 && !a.is_unspecified() && !a.is_multicast() && a.to_canonical() == a => Ok(Some(a)),
            _ => Err(Trouble::Bad(name, "an address of a client")),
        },
        None => Ok(None),
    };
    let addresses: Vec<IpAddr> = [
        address("ifconfig_pool_remote_ip", true)?,
        address("ifconfig_pool_remote_ip6", false)?,
    ]
    .into_iter()
    .flatten()
    .collect();
    let client = Client {
        name: required("common_name")?.parse().map_err(|_| {
            Trouble::Bad(
                "common_name",
                "1 to 128 characters of A-Z a-z 0-9 . _ : @ -, the first a letter or digit",
            )
        })?,
        certificate: match text("tls_digest_sha256_0")? {
            Some(digest) => Some(
                digest
                    .parse()
                    .map_err(|_| Trouble::Bad("tls_digest_sha256_0", "a SHA-256 fingerprint"))?,
            ),
            None => None,
        },
        addresses,
        device,
        connected_at: required("time_unix")?
            .parse()
            .map_err(|_| Trouble::Bad("time_unix", "a time"))?,
        config: variable("config").filter(|c| c.len() <= MOST).map(PathBuf::from),
        server_pid: text("daemon_pid")?.and_then(|p| p.parse().ok()),
    };
    if client.addresses.is_empty() {
        return Err(Trouble::NoAddress);
    }
    match script.as_str() {
        "client-connect" => Ok(Action::Open(client)),
        "client-disconnect" => Ok(Action::Close(client)),
        "learn-address" => match (arg(0), arg(1)) {
            ("add" | "update", text) if text.contains('/') => Err(Trouble::Network),
            ("add" | "update", text) => {
                let address = text.parse().map_err(|_| Trouble::Bad("the second argument", "an address"))?;
                Ok(Action::Learn { client, address })
            }
            _ => Err(Trouble::Bad("the first argument", "add, update or delete")),
        },
        _ => Err(Trouble::Script),
    }
}

/// Longest value that is looked at, bytes: more than any of them needs.
const MOST: usize = 4096;

/// Whether an OpenVPN configuration has the directive. Files that it includes are not followed.
fn says_client_to_client(config: &[u8]) -> bool {
    let directive = |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        let first = line.split_whitespace().next().unwrap_or("").trim_matches(['"', '\'']);
        first.strip_prefix("--").unwrap_or(first) == "client-to-client"
    };
    config.split(|b| *b == b'\n').any(directive)
}

/// The beginning of a regular file, or of one of /proc; `None`: it cannot be read, as with a user that OpenVPN has changed to.
fn read(path: &Path) -> Option<Vec<u8>> {
    const MOST: u64 = 1 << 20;
    if path.as_os_str() == OsStr::new("") {
        return None;
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const DIGEST: &str = "08:da:7f:3e:75:6a:a2:38:a7:c0:50:84:6e:a8:2e:e2:b5:b5:89:f1:75:d9:cd:1a:ac:ca:71:c9:51:13:a5:a6";

    /// As OpenVPN 2.6.14 set it for a client-connect script.
    fn client_connect() -> HashMap<&'static str, OsString> {
        [
            ("script_type", "client-connect"),
            ("common_name", "phone-1"),
            ("dev", "tun0"),
            ("dev_type", "tun"),
            ("ifconfig_pool_netmask", "255.255.0.0"),
            ("ifconfig_pool_remote_ip", "10.66.0.2"),
            ("ifconfig_pool_remote_ip6", "fd00:66::1000"),
            ("time_unix", "1795314052"),
            ("tls_digest_sha256_0", DIGEST),
            ("trusted_ip", "192.0.2.2"),
            ("trusted_port", "58101"),
        ]
        .map(|(k, v)| (k, v.into()))
        .into()
    }

    fn act(env: &HashMap<&'static str, OsString>, args: &[&str]) -> Result<Action, Trouble> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        action(|name| env.get(name).cloned(), &args)
    }

    fn with(name: &'static str, value: &str) -> HashMap<&'static str, OsString> {
        let mut env = client_connect();
        env.insert(name, value.into());
        env
    }

    fn without(name: &str) -> HashMap<&'static str, OsString> {
        let mut env = client_connect();
        env.remove(name);
        env
    }

    #[test]
    fn a_client_connects_is_learned_and_leaves() {
        let Ok(Action::Open(open)) = act(&client_connect(), &["/tmp/openvpn_cc_1.tmp"]) else {
            panic!("open")
        };
        assert_eq!(open.name.as_str(), "phone-1");
        assert_eq!(open.certificate.unwrap().to_string(), DIGEST.replace(':', ""));
        assert_eq!(open.key(), "tun0,1795314052,phone-1,10.66.0.2,fd00:66::1000");
        for address in ["10.66.0.2", "fd00:66::1000"] {
            let learned = act(&with("script_type", "learn-address"), &["add", address, "phone-1"]);
            let Ok(Action::Learn { client, address: a }) = learned else {
                panic!("learn")
            };
            assert_eq!((client.key(), a.to_string()), (open.key(), address.to_owned()));
        }
        // The digest is not there any more when it leaves.
        let mut leaving = with("script_type", "client-disconnect");
        leaving.remove("tls_digest_sha256_0");
        let Ok(Action::Close(close)) = act(&leaving, &[]) else {
            panic!("close")
        };
        assert_eq!(close.key(), open.key());
    }

    #[test]
    fn a_delete_has_no_name_and_nothing_is_done() {
        let env = [("script_type", OsString::from("learn-address"))].into();
        assert_eq!(act(&env, &["delete", "10.66.0.2"]), Ok(Action::Nothing));
    }

    #[test]
    fn the_server_starts_and_ends() {
        let device: InterfaceName = "tun0".parse().unwrap();
        for script in ["up", "down"] {
            let env = [("script_type", script), ("dev", "tun0"), ("dev_type", "tun")]
                .map(|(k, v)| (k, v.into()))
                .into();
            assert_eq!(
                act(&env, &["tun0", "1500", "0", "10.66.0.1", "255.255.0.0", "init"]),
                Ok(Action::Reset { device: device.clone() })
            );
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for name in ["script_type", "common_name", "dev", "dev_type", "time_unix"] {
            assert_eq!(act(&without(name), &[]), Err(Trouble::Missing(name)));
            assert_eq!(act(&with(name, ""), &[]), Err(Trouble::Missing(name)));
        }
        let mut env = without("ifconfig_pool_remote_ip");
        env.remove("ifconfig_pool_remote_ip6");
        assert_eq!(act(&env, &[]), Err(Trouble::NoAddress));
        assert!(act(&without("ifconfig_pool_remote_ip6"), &[]).is_ok(), "IPv4 only");
        assert!(act(&without("ifconfig_pool_remote_ip"), &[]).is_ok(), "IPv6 only");
        assert!(act(&without("tls_digest_sha256_0"), &[]).is_ok(), "without certificates");
    }

    #[test]
    fn hostile_values_are_refused_and_not_repeated() {
        let long = "a".repeat(1 << 20);
        let hostile = [
            "a\nb",
            "a\u{1b}[2J",
            "../../etc/passwd",
            "/etc/passwd",
            "$(reboot)",
            "`id`",
            "a;b",
            "a|b",
            "a b",
            "-x",
            ".",
            "..",
            "a\u{202e}b",
            "'",
            "\"",
            "ä",
            &long,
        ];
        for bad in hostile {
            for name in [
                "common_name",
                "dev_type",
                "time_unix",
                "tls_digest_sha256_0",
                "ifconfig_pool_remote_ip",
                "ifconfig_pool_remote_ip6",
            ] {
                let trouble = act(&with(name, bad), &[]).unwrap_err().to_string();
                assert!(trouble.contains(name), "{trouble}");
                assert!(bad.len() < 5 || !trouble.contains(bad), "{trouble}");
            }
        }
        for bad in ["a/b", "..", "sixteen-letters-", "a b", "tun*", &long] {
            assert!(act(&with("dev", bad), &[]).is_err(), "{bad:?}");
        }
        let mut env = client_connect();
        env.insert("common_name", std::os::unix::ffi::OsStringExt::from_vec(vec![b'a', 0xff]));
        assert_eq!(act(&env, &[]), Err(Trouble::Bad("common_name", "UTF-8")));
        assert_eq!(act(&with("script_type", "tls-verify"), &[]), Err(Trouble::Script));
    }

    #[test]
    fn addresses_that_are_no_clients() {
        for bad in [
            "10.66.0.2/32",
            "0.0.0.0",
            "224.0.0.1",
            "10.66.0",
            "10.66.0.2 ",
            "010.066.000.002",
            "fd00::1",
            "::ffff:10.66.0.2",
        ] {
            assert!(act(&with("ifconfig_pool_remote_ip", bad), &[]).is_err(), "{bad}");
        }
        for bad in [
            "10.66.0.2",
            "::",
            "ff02::1",
            "::ffff:10.66.0.2",
            "fd00::1/128",
            "fe80::1%tun0",
        ] {
            assert!(act(&with("ifconfig_pool_remote_ip6", bad), &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn learn_address_takes_addresses_of_the_client_only() {
        let env = with("script_type", "learn-address");
        assert_eq!(act(&env, &["add", "10.99.0.0/24", "phone-1"]), Err(Trouble::Network));
        for bad in [
            &["add"][..],
            &[],
            &["add", "$(id)"],
            &["drop", "10.66.0.2"],
            &["add", "--socket=/tmp/x"],
        ] {
            assert!(act(&env, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tap_is_refused() {
        let trouble = act(&with("dev_type", "tap"), &[]).unwrap_err();
        assert_eq!(trouble, Trouble::Tap);
        assert!(trouble.to_string().contains("use dev tun"));
    }

    #[test]
    fn client_to_client_is_found() {
        for yes in [
            "client-to-client",
            "dev tun\n  client-to-client # why\n",
            "\"client-to-client\"",
            "--client-to-client",
        ] {
            assert!(says_client_to_client(yes.as_bytes()), "{yes}");
        }
        for no in [
            "",
            "# client-to-client",
            ";client-to-client",
            "push \"client-to-client\"",
            "client-to-clients",
        ] {
            assert!(!says_client_to_client(no.as_bytes()), "{no}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("server.conf");
        std::fs::write(&file, "dev tun\nclient-to-client\n").unwrap();
        let env = with("config", file.to_str().unwrap());
        let Ok(Action::Open(client)) = act(&env, &[]) else {
            panic!("open")
        };
        assert!(client.server_forwards_itself());
        for unreadable in ["/nonexistent", "/dev/zero", ""] {
            let Ok(Action::Open(client)) = act(&with("config", unreadable), &[]) else {
                panic!("open")
            };
            assert!(!client.server_forwards_itself(), "{unreadable}");
        }
    }
}
