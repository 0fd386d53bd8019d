//! A gateway without a kernel: certificates from `lazaret pki`, both listeners, the controller on a store of its own.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gateway_user::{
    access::{listen::Listeners, live::Access},
    api,
    clock::SystemClock,
    config::Config,
    controller::{Controller, Loaded, Options, Start, WriterThread},
    events::Denials,
    kernel::{Link, fake::FakeKernel},
    model::Role,
    pki::{self, InitArgs, IssueArgs, Made},
    store::SqliteStore,
};
use lazaret_proto::v1;
use lazaret_tests::scratch::Scratch;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt as _;

/// Whose sessions the client of the role vpn reports.
pub(crate) const SOURCE: &str = "vpn-1";
/// By which clients know the gateway.
pub(crate) const NAME: &str = "gateway.test";

/// Certificates, as an administrator would make them.
pub(crate) struct Pki {
    pub(crate) scratch: Scratch,
    pub(crate) ca: PathBuf,
}

impl Pki {
    pub(crate) fn new(label: &str) -> Self {
        let scratch = Scratch::new(label).unwrap();
        let ca = scratch.path().join("ca");
        pki::init(&InitArgs {
            dir: ca.clone(),
            name: "test-ca".parse().unwrap(),
        })
        .unwrap();
        Self { scratch, ca }
    }

    pub(crate) fn server(&self) -> Made {
        let dns = vec![NAME.to_owned()];
        let ip = vec!["127.0.0.1".parse().unwrap()];
        pki::issue(&IssueArgs {
            role: None,
            server: true,
            dns,
            ip,
            ..self.args("gateway")
        })
        .unwrap()
    }

    /// A client's certificate and key.
    pub(crate) fn client(&self, role: Role) -> Identity {
        self.named(role, &format!("{role:?}").to_lowercase())
    }

    /// The same of a client of this name.
    pub(crate) fn named(&self, role: Role, name: &str) -> Identity {
        let (pem, key) = (self.ca.join(format!("{name}.pem")), self.ca.join(format!("{name}.key")));
        if !pem.exists() {
            let source = (role == Role::Vpn).then(|| SOURCE.parse().unwrap());
            pki::issue(&IssueArgs {
                role: Some(role),
                source: source.into_iter().collect(),
                ..self.args(name)
            })
            .unwrap();
        }
        Identity::from_pem(fs::read(pem).unwrap(), fs::read(key).unwrap())
    }

    /// The CA's certificate, by which clients know the gateway.
    pub(crate) fn certificate(&self) -> Certificate {
        Certificate::from_pem(fs::read(self.ca.join("ca.pem")).unwrap())
    }

    pub(crate) fn args(&self, name: &str) -> IssueArgs {
        let dir = self.ca.clone();
        IssueArgs {
            dir,
            role: None,
            server: false,
            source: vec![],
            devices: vec![],
            name: name.parse().unwrap(),
            out: None,
            days: 30,
            dns: vec![],
            ip: vec![],
        }
    }

    /// A configuration with these certificates, on a free port.
    pub(crate) fn config(&self, server: &Made) -> Config {
        let text = CONFIG
            .replace("@CERTIFICATE@", server.certificate.to_str().unwrap())
            .replace("@KEY@", server.key.to_str().unwrap())
            .replace("@CA@", self.ca.join("ca.pem").to_str().unwrap())
            .replace("@DIR@", self.scratch.path().to_str().unwrap());
        let mut config = Config::parse(Path::new("test.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
        config.api.as_mut().unwrap().listen = "127.0.0.1:0".parse().unwrap();
        config
    }
}

const CONFIG: &str = r#"
[paths]
state = "@DIR@/state"
pins = "@DIR@/pins"
[api]
listen = "127.0.0.1:1"
certificate = "@CERTIFICATE@"
key = "@KEY@"
client_ca = "@CA@"
[socket]
path = "@DIR@/run/lazaret.sock"
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

/// A running gateway.
pub(crate) struct Gateway {
    pub(crate) pki: Pki,
    pub(crate) address: SocketAddr,
    pub(crate) socket: PathBuf,
    pub(crate) denials: Denials,
    pub(crate) access: Access,
    pub(crate) kernel: FakeKernel,
    pub(crate) controller: Controller,
    thread: WriterThread,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), api::ServeError>>,
}

impl Gateway {
    pub(crate) async fn new(label: &str) -> Self {
        Self::with(Pki::new(label), |_| {}).await
    }

    pub(crate) async fn with(pki: Pki, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = pki.config(&pki.server());
        change(&mut config);
        let config = Arc::new(config);
        let listeners = Listeners::bind(&config).unwrap();
        let link = |ifindex, name: &str, ethernet| Link {
            ifindex,
            name: name.parse().unwrap(),
            ethernet,
        };
        let kernel = FakeKernel::new(config.clone());
        let start = Start {
            loaded: Loaded::read(Box::new(SqliteStore::open(&config.paths.state).unwrap()), &config).unwrap(),
            config: config.clone(),
            kernel: Box::new(kernel.clone()),
            clock: Box::new(SystemClock::new().unwrap()),
            links: vec![link(2, "core0", true), link(3, "tun0", false)],
            options: Options::default(),
        };
        let (controller, thread) = Controller::start(start).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let denials = Denials::default();
        let views = api::Views {
            denials: denials.clone(),
            ..api::Views::default()
        };
        let (address, access) = (listeners.address().unwrap(), listeners.access());
        let socket = config.socket.path.clone();
        let serving = api::serve(listeners, config, controller.clone(), views, async {
            let _ = stopped.await;
        });
        Self {
            pki,
            address,
            socket,
            denials,
            access,
            kernel,
            controller,
            thread,
            stop,
            serving: tokio::spawn(serving),
        }
    }

    /// Stops it as the daemon does; gives the certificates back.
    pub(crate) async fn stop(mut self) -> Pki {
        self.stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(30), self.serving)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        self.controller.shutdown().await;
        self.thread.ended().await.unwrap();
        self.pki
    }

    pub(crate) fn endpoint(&self, identity: Option<Identity>) -> Endpoint {
        let tls = ClientTlsConfig::new()
            .ca_certificate(self.pki.certificate())
            .domain_name(NAME);
        let tls = identity.into_iter().fold(tls, ClientTlsConfig::identity);
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        endpoint
            .tls_config(tls)
            .unwrap()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(20))
    }

    pub(crate) async fn channel(&self, role: Role) -> Channel {
        self.endpoint(Some(self.pki.client(role))).connect().await.unwrap()
    }

    /// An MDM that is another client than those of [`Gateway::channel`].
    pub(crate) async fn other_mdm(&self) -> Channel {
        let identity = self.pki.named(Role::Mdm, "mdm-2");
        self.endpoint(Some(identity)).connect().await.unwrap()
    }
}

/// `ErrorInfo.reason` of an error of the gateway.
pub(crate) fn reason(status: &Status) -> String {
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "lazaret");
    info.reason
}

/// With a request id that no other request has; it begins with `request`.
pub(crate) fn context(request: &str) -> Option<v1::SignalContext> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    Some(v1::SignalContext {
        request_id: format!("{request}.{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
        observed_at: Some(std::time::SystemTime::now().into()),
        ..Default::default()
    })
}

pub(crate) fn device(id: &str) -> v1::DeviceRegistration {
    v1::DeviceRegistration {
        device_id: id.into(),
        ..Default::default()
    }
}
