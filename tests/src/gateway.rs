//! The gateway under test: `lazaret run` inside a site's gateway namespace, with its configuration, certificates, pins and database in a
//! scratch folder.

use std::{
    ffi::{CStr, CString},
    fs,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lazaret_proto::v1::SignalResponse;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tonic::Status;

use crate::{
    api::{Answer, Client, Credentials},
    differential::random::Random,
    lossy::{Loss, Lossy, Lost},
    netns::Namespace,
    process::{self, Process, until},
    scratch::Scratch,
    site::{self, Site},
};

/// The name in the server's certificate.
pub const SERVER_NAME: &str = "gw.example.test";
/// Longest wait for the daemon to start or to end: the verifier takes its time over the programs, more so on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(90);

/// A gateway; its daemon, pins and files go with it.
#[derive(Debug)]
pub struct Gateway {
    /// Where it stands.
    pub site: Site,
    daemon: Option<Process>,
    /// Dropped before the directory that it is mounted in.
    lossy: Option<Lossy>,
    /// How often its machine was started anew.
    boots: u32,
    scratch: Scratch,
}

impl Gateway {
    /// Prepares one whose device interface is `interface`; nothing runs yet.
    ///
    /// # Errors
    /// No privilege, or `lazaret pki` fails.
    pub fn new(site: &Site, interface: &str) -> Result<Self> {
        let mut scratch = Scratch::new("gateway")?;
        scratch.bpffs("bpf")?;
        let this = Self {
            site: site.clone(),
            daemon: None,
            lossy: None,
            boots: 0,
            scratch,
        };
        fs::write(
            this.config(),
            Site::config(interface, &this.folder().join("state"), this.folder()),
        )?;
        this.certificates()?;
        Ok(this)
    }

    /// Changes its configuration before it starts.
    ///
    /// # Errors
    /// `from` is not in it exactly once.
    pub fn configure(&self, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(self.config())?;
        ensure!(
            text.matches(from).count() == 1,
            "{from:?} does not stand in the configuration once"
        );
        Ok(fs::write(self.config(), text.replace(from, to))?)
    }

    /// Keeps the database on a tmpfs of `kib` KiB.
    ///
    /// # Errors
    /// No privilege.
    pub fn small_state(&mut self, kib: u32) -> Result<PathBuf> {
        self.scratch.tmpfs("state", kib)
    }

    /// Keeps the database on an ext4 of `kib` KiB.
    ///
    /// # Errors
    /// No privilege, no loop device, or no `mkfs.ext4`.
    pub fn ext4_state(&mut self, kib: u32) -> Result<PathBuf> {
        self.scratch.ext4("state", kib)
    }

    /// Keeps the database (in `disk/state`) and the audit as lines (in `disk/audit.jsonl`) on a file system that forgets, at a loss of power,
    /// what was not synchronised.
    ///
    /// # Errors
    /// No privilege, or no FUSE.
    pub fn lossy_state(&mut self) -> Result<()> {
        let disk = self.folder().join("disk");
        fs::create_dir(&disk)?;
        self.lossy = Some(Lossy::mount(&disk)?);
        let (folder, disk) = (self.folder().display(), disk.display());
        self.configure(&format!("\"{folder}/state\""), &format!("\"{disk}/state\""))?;
        self.configure("[log]\n", &format!("[store]\naudit_log = \"{disk}/audit.jsonl\"\n\n[log]\n"))
    }

    /// The power goes: the daemon ends, its disk forgets, and of what it had in the kernel nothing is left. The next start is on another boot
    /// of the machine, by its id.
    ///
    /// # Errors
    /// Its state is on no file system that forgets, or something cannot be taken away.
    pub fn lose_power(&mut self, loss: Loss, random: &mut Random) -> Result<Lost> {
        self.kill()?;
        let lossy = self
            .lossy
            .as_mut()
            .context("the state is on a file system that does not forget")?;
        let lost = lossy.lose_power(loss, random)?;
        fs::remove_dir_all(self.folder().join("bpf/lazaret"))?;
        self.site.gw.exec("nft flush ruleset")?;
        self.boots += 1;
        fs::write(self.boot_id(), format!("{:08x}-0000-4000-8000-000000000000\n", self.boots))?;
        Ok(lost)
    }

    fn boot_id(&self) -> PathBuf {
        self.folder().join("boot_id")
    }

    /// Where its files are: `lazaret.toml`, `lazaret.sock`, `lazaret.log`, `ca.pem`, `mdm.pem`, `mdm.key`, `bpf`, ...
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder().join("lazaret.toml")
    }

    /// Its Unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder().join("lazaret.sock")
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// It ends, or does not answer in time; the error holds its log.
    pub fn start(&mut self) -> Result<()> {
        let mut run = self.lazaret();
        run.args(["run", "--config"]).arg(self.config());
        if self.boots > 0 {
            on_another_boot(&mut run, &self.boot_id())?;
        }
        let mut daemon = Process::spawn(&mut run, &self.folder().join("lazaret.log"))?;
        let socket = self.socket();
        let ready = until(LIMIT, "the daemon answers", || {
            if let Some(status) = daemon.ended()? {
                bail!("it ended: {status}");
            }
            Ok(Client::local(&socket).is_ok_and(|c| c.status().is_ok()))
        });
        ready.with_context(|| format!("log of lazaret:\n{}", daemon.log()))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Waits until every hook of an interface has a program of ours, by the daemon's own account.
    ///
    /// # Errors
    /// Not in time; the error holds the status.
    pub fn attached(&self, interface: &str) -> Result<()> {
        let client = self.local()?;
        let mut last = String::new();
        let done = until(LIMIT, &format!("programs are attached to {interface}"), || {
            let status = client.status()?;
            last = format!("{status:#?}");
            let found = status.interfaces.iter().find(|i| i.name == interface && i.ifindex != 0);
            Ok(found.is_some_and(|i| !i.hooks.is_empty() && i.hooks.iter().all(|h| h.program_id != 0 && h.problem.is_empty())))
        });
        done.with_context(|| last)
    }

    /// Kills the daemon at once (SIGKILL).
    ///
    /// # Errors
    /// See [`Process::kill`].
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
        }
        Ok(())
    }

    /// Ends the daemon in order (SIGTERM).
    ///
    /// # Errors
    /// It does not end in time, or not with success.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            let status = daemon.terminate(LIMIT)?;
            ensure!(status.success(), "the daemon ended with {status}:\n{}", daemon.log());
        }
        Ok(())
    }

    /// The daemon.
    ///
    /// # Errors
    /// It does not run.
    pub fn daemon(&mut self) -> Result<&mut Process> {
        self.daemon.as_mut().context("the daemon does not run")
    }

    /// `lazaret` inside the gateway's namespace, with the socket in its environment.
    #[must_use]
    pub fn lazaret(&self) -> Command {
        let mut command = self.site.gw.command(binary());
        command.env("LAZARET_SOCKET", self.socket());
        command
    }

    /// Runs `lazaret` with these words, and gives its output.
    ///
    /// # Errors
    /// It does not succeed.
    pub fn cli(&self, words: &str) -> Result<String> {
        process::output(self.lazaret().args(words.split_whitespace()))
    }

    /// Runs `lazaret` with these words and the MDM's certificate, and gives its output.
    ///
    /// # Errors
    /// It does not succeed.
    pub fn cli_as_mdm(&self, words: &str) -> Result<String> {
        process::output(self.as_mdm().args(words.split_whitespace()))
    }

    /// `lazaret` as [`Gateway::lazaret`], which asks the network API with the MDM's certificate.
    #[must_use]
    pub fn as_mdm(&self) -> Command {
        let mdm = self.credentials("mdm");
        let mut command = self.lazaret();
        command
            .env("LAZARET_API", format!("{}:9443", site::GATEWAY))
            .env("LAZARET_API_NAME", SERVER_NAME)
            .env("LAZARET_API_CA", mdm.ca)
            .env("LAZARET_API_CERTIFICATE", mdm.certificate)
            .env("LAZARET_API_KEY", mdm.key);
        command
    }

    /// A local operator.
    ///
    /// # Errors
    /// The daemon does not listen.
    pub fn local(&self) -> Result<Client> {
        Client::local(&self.socket())
    }

    /// The MDM, on the core side, over mTLS.
    ///
    /// # Errors
    /// The daemon does not listen, or the handshake fails.
    pub fn mdm(&self) -> Result<Client> {
        self.remote("mdm")
    }

    /// An MDM on the gateway's own host, over mTLS: whatever stands on its interfaces.
    ///
    /// # Errors
    /// As [`Gateway::mdm`].
    pub fn local_mdm(&self) -> Result<Client> {
        self.from(&self.site.gw, "mdm")
    }

    /// The MDM reports a device's policy as applied, over a connection of its own.
    ///
    /// # Errors
    /// The gateway's; UNAVAILABLE if there is no connection.
    pub fn applied(&self, id: &str) -> Answer<SignalResponse> {
        let mdm = self.local_mdm().map_err(|e| Status::unavailable(format!("{e:#}")))?;
        mdm.applied(id)
    }

    /// An operator, on the core side, over mTLS.
    ///
    /// # Errors
    /// As [`Gateway::mdm`].
    pub fn operator(&self) -> Result<Client> {
        self.remote("operator")
    }

    fn remote(&self, role: &str) -> Result<Client> {
        self.from(&self.site.core, role)
    }

    fn from(&self, place: &Namespace, role: &str) -> Result<Client> {
        Client::remote(place, (site::GATEWAY, 9443).into(), SERVER_NAME, &self.credentials(role))
    }

    /// The certificate that was issued for a role.
    #[must_use]
    pub fn credentials(&self, role: &str) -> Credentials {
        let file = |name: String| self.folder().join(name);
        Credentials {
            certificate: file(format!("{role}.pem")),
            key: file(format!("{role}.key")),
            ca: file("ca.pem".into()),
        }
    }

    /// A CA and certificates for the server and each role, by `lazaret pki` as a user would.
    fn certificates(&self) -> Result<()> {
        let folder = self.folder().display();
        self.cli(&format!("pki init --dir {folder}/ca"))?;
        self.cli(&format!(
            "pki issue --dir {folder}/ca --server --dns {SERVER_NAME} --name server --out {folder}"
        ))?;
        for role in ["mdm", "vpn", "operator", "viewer"] {
            self.cli(&format!(
                "pki issue --dir {folder}/ca --role {role} --name {role} --out {folder}{}",
                if role == "vpn" { " --source vpn" } else { "" }
            ))?;
        }
        fs::copy(self.folder().join("ca/ca.pem"), self.folder().join("ca.pem"))?;
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // In order if it can: what it holds in the kernel goes with the namespaces and the bpffs in any case.
        if let Some(mut daemon) = self.daemon.take() {
            let _ended = daemon.terminate(Duration::from_secs(3));
        }
    }
}

/// Has a command see another boot id of the kernel: in a mount namespace of its own, since the id is the machine's.
fn on_another_boot(command: &mut Command, file: &Path) -> Result<()> {
    let file = CString::new(file.as_os_str().as_bytes())?;
    let enter = move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(
            None::<&CStr>,
            c"/",
            None::<&CStr>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&CStr>,
        )?;
        mount(
            Some(&*file),
            c"/proc/sys/kernel/random/boot_id",
            None::<&CStr>,
            MsFlags::MS_BIND,
            None::<&CStr>,
        )?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes three system calls with strings that were made before, and allocates nothing.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// The binary under test: `LAZARET_BIN`, or the one built beside this one.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LAZARET_BIN") {
        return path.into();
    }
    let here = std::env::current_exe().unwrap_or_default();
    let folders = here.ancestors().skip(1).take(2);
    folders
        .map(|d| d.join("lazaret"))
        .find(|p| p.is_file())
        .unwrap_or_else(|| "lazaret".into())
}
