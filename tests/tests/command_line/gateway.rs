//! A gateway without a kernel, and the binary that asks it.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    thread::JoinHandle,
};

use gateway_user::{
    access::listen::Listeners,
    api,
    clock::SystemClock,
    config::{Config, Mode},
    controller::{Controller, Loaded, Options, Start},
    kernel::{Link, fake::FakeKernel},
    store::SqliteStore,
};
use lazaret_tests::{gateway::binary, scratch::Scratch};
use serde_json::Value;
use tokio::sync::oneshot;

pub(crate) const CONFIG: &str = r#"
mode = "enforce"
[[interface]]
name = "tun*"
role = "device"
[[interface]]
name = "core0"
role = "core"
[[pool]]
name = "quarantine"
kind = "quarantine"
prefixes = ["10.66.0.0/16", "fd00:66::/64"]
reserved = ["10.66.0.1"]
policy = "dm"
gateway_uri = "q.vpn.example"
[[pool]]
name = "staff"
kind = "full-service"
prefixes = ["10.67.0.0/16"]
policy = "everything"
fallback = "quarantine"
gateway_uri = "vpn.example"
[[policy]]
name = "everything"
allow = "all"
[[policy]]
name = "dm"
[[policy.rule]]
to = ["10.1.0.5/32"]
protocol = "tcp"
ports = ["443"]
"#;

/// What a run of the binary gave.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs the binary with nothing in its environment.
pub(crate) fn lazaret(args: &[&str]) -> Ran {
    Command::new(binary()).env_clear().args(args).output().unwrap().into()
}

/// A running gateway.
pub(crate) struct Gateway {
    scratch: Scratch,
    config: Arc<Config>,
    pub(crate) kernel: FakeKernel,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Gateway {
    pub(crate) fn new(label: &str) -> Self {
        Self::with(label, |_| {})
    }

    pub(crate) fn observing(label: &str) -> Self {
        Self::with(label, |config| config.mode = Mode::Observe)
    }

    fn with(label: &str, change: impl FnOnce(&mut Config)) -> Self {
        let scratch = Scratch::new(label).unwrap();
        let mut config = Config::parse(Path::new("test.toml"), CONFIG).unwrap_or_else(|e| panic!("{e}"));
        config.paths.state = scratch.path().join("state");
        config.socket.path = scratch.path().join("run/lazaret.sock");
        change(&mut config);
        let config = Arc::new(config);
        let mut gateway = Self {
            kernel: FakeKernel::new(config.clone()),
            scratch,
            config,
            running: None,
        };
        gateway.start();
        gateway
    }

    pub(crate) fn start(&mut self) {
        let (config, kernel) = (self.config.clone(), self.kernel.clone());
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listeners = Listeners::bind(&config).unwrap();
                let link = |ifindex, name: &str, ethernet| Link {
                    ifindex,
                    name: name.parse().unwrap(),
                    ethernet,
                };
                let start = Start {
                    loaded: Loaded::read(Box::new(SqliteStore::open(&config.paths.state).unwrap()), &config).unwrap(),
                    config: config.clone(),
                    kernel: Box::new(kernel),
                    clock: Box::new(SystemClock::new().unwrap()),
                    links: vec![link(2, "core0", true), link(3, "tun0", false)],
                    options: Options::default(),
                };
                let (controller, mut thread) = Controller::start(start).await.unwrap();
                let serving = api::serve(listeners, config, controller.clone(), api::Views::default(), async {
                    let _ = stopped.await;
                });
                ready.send(()).unwrap();
                serving.await.unwrap();
                controller.shutdown().await;
                thread.ended().await.unwrap();
            });
        });
        is_ready.recv().unwrap();
        self.running = Some((stop, thread));
    }

    pub(crate) fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    /// Runs a subcommand against it.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.command(&binary(), args).output().unwrap().into()
    }

    /// As [`Gateway::run`], by a user without any group. The binary is copied to where that user can see it.
    pub(crate) fn run_as_nobody(&self, args: &[&str]) -> Ran {
        let copy = self.path("lazaret");
        // By a process of its own: a file that is open for writing anywhere cannot be run, and what another test's thread starts meanwhile
        // would have it open for a moment.
        assert!(Command::new("cp").arg(binary()).arg(&copy).status().unwrap().success());
        self.command(&copy, args).uid(65_534).gid(65_534).output().unwrap().into()
    }

    fn command(&self, binary: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(binary);
        let socket = &self.config.socket.path;
        command.env_clear().env("LAZARET_SOCKET", socket).args(args);
        command
    }

    /// What a subcommand printed; it must succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// As [`Gateway::ok`], with `--json`.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let (code, value) = self.run_json(args);
        assert_eq!(code, 0, "{args:?}: {value}");
        value
    }

    pub(crate) fn run_json(&self, args: &[&str]) -> (i32, Value) {
        let ran = self.run(&[args, &["--json"]].concat());
        let value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{args:?}: {e}: {}{}", ran.out, ran.err));
        (ran.code, value)
    }

    /// Calls the hook as OpenVPN does, with this environment and nothing else.
    pub(crate) fn hook(&self, env: &[(&str, String)], args: &[&str]) -> Ran {
        self.hook_at(&self.config.socket.path, env, args)
    }

    pub(crate) fn hook_at(&self, socket: &Path, env: &[(&str, String)], args: &[&str]) -> Ran {
        let mut command = Command::new(binary());
        command
            .args(["hook", "openvpn", "--socket"])
            .arg(socket)
            .arg("--state")
            .arg(self.path("hook"))
            .args(args);
        command
            .env_clear()
            .envs(env.iter().map(|(k, v)| (k, v)))
            .output()
            .unwrap()
            .into()
    }

    /// The hook's files.
    pub(crate) fn states(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("hook")).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Writes a file; gives its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// The socket as the daemon makes it.
    pub(crate) fn close_to_others(&self) {
        fs::set_permissions(&self.config.socket.path, fs::Permissions::from_mode(0o660)).unwrap();
    }

    /// Lets every user connect to the socket: the daemon, not the file's mode, is to refuse them.
    pub(crate) fn open_to_everyone(&self) {
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(self.scratch.path(), 0o755);
        mode(&self.path("run"), 0o755);
        mode(&self.config.socket.path, 0o666);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}
