//! What the tests share: a configuration, a gateway that can be restarted, a store that can be told to fail.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    audit::Sealed,
    clock::{Clock as _, ManualClock},
    config::{
        Allow, Config, Deny, Devices, InterfacePattern, InterfaceRole, InterfaceRule, Log, LogFormat, Mode, Paths, Policy, Pool,
        PoolKind, Socket, Tables, UnknownDevice, XdpMode,
    },
    controller::{
        Acknowledge, AcknowledgeOutcome, CloseOutcome, Controller, DeviceView, Enforcement, Loaded, OfferOutcome, OpenOutcome,
        Options, PolicyKey, PublicationOutcome, Refusal, Registration, RenewOutcome, SessionReport, SignalContext, SignalOutcome,
        Start, StartError, SynchroniseOutcome, WriterDied, WriterThread,
    },
    kernel::{
        Link,
        fake::{Call, FakeKernel},
    },
    model::{
        BootTime, Device, DeviceId, ExceptionKind, Identity, Now, Place, PolicyRevision, PoolId, RequestId, Revision, Role,
        SessionId, SourceName, UriChange, WallTime,
    },
    store::{AuditQuery, ChangeSet, Committed, Request, Snapshot, SqliteStore, Store, StoreError},
};

pub(crate) const QUARANTINE: PoolId = PoolId(1);
pub(crate) const OFFICE: PoolId = PoolId(2);
pub(crate) const LAB: PoolId = PoolId(3);
pub(crate) const BLOCKED: PoolId = PoolId(4);

/// How long something that happens by itself may take, on a machine with other work.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
pub(crate) const START: Now = Now {
    wall: WallTime(1_800_000_000_000),
    boot: BootTime(1_000_000_000_000),
    boot_id: 1,
};
/// Lease of the pool `lab`.
pub(crate) const LEASE_MS: u64 = 3_600_000;

/// Quarantine 10.66.0.0/24, office 10.66.1.0/24 without lease, lab 10.66.2.0/24 with one, blocked 10.66.3.0/24; each with an IPv6 prefix.
pub(crate) fn config() -> Config {
    let pool = |id: u8, name: &str, kind, fallback, lease| Pool {
        id: PoolId(id),
        name: name.parse().unwrap(),
        kind,
        prefixes: vec![
            format!("10.66.{}.0/24", id - 1).parse().unwrap(),
            format!("fd00:66:{}::/64", id - 1).parse().unwrap(),
        ],
        reserved: vec![format!("10.66.{}.1", id - 1).parse().unwrap()],
        policy: "p".parse().unwrap(),
        shadow_policy: None,
        deny: Deny::Drop,
        fallback,
        gateway_uri: format!("{name}.vpn.example").into(),
        lease,
        min_trust: crate::model::Trust::Name,
        table: None,
    };
    let interface = |name: &str, role| InterfaceRule {
        name: InterfacePattern::Prefix(name.parse().unwrap()),
        role,
        xdp: XdpMode::Auto,
        pools: None,
        vlans: Vec::new(),
    };
    Config {
        mode: Mode::Enforce,
        paths: Paths {
            state: "/nonexistent".into(),
            pins: "/nonexistent".into(),
        },
        api: None,
        socket: Socket {
            path: "/nonexistent".into(),
            vpn_group: None,
            viewer_group: None,
        },
        metrics: None,
        user: None,
        log: Log {
            level: "info".to_owned(),
            format: LogFormat::Text,
        },
        devices: Devices {
            unknown: UnknownDevice::Refuse,
            sessions: 1,
            ..Devices::default()
        },
        proofs: crate::config::Proofs::default(),
        sources: Vec::new(),
        keep: crate::config::Keep::default(),
        tables: Tables {
            addresses: 64,
            buckets6: 64,
            denials_bytes: 4096,
            fragments: 64,
        },
        interfaces: vec![
            interface("tun", InterfaceRole::Device),
            interface("core", InterfaceRole::Core),
        ],
        pools: vec![
            pool(1, "quarantine", PoolKind::Quarantine, None, None),
            pool(2, "office", PoolKind::FullService, Some(QUARANTINE), None),
            pool(
                3,
                "lab",
                PoolKind::FullService,
                Some(QUARANTINE),
                Some(Duration::from_millis(LEASE_MS)),
            ),
            pool(4, "blocked", PoolKind::Blocked, None, None),
        ],
        policies: vec![Policy {
            name: "p".parse().unwrap(),
            allow: Allow::Nothing,
        }],
    }
}

pub(crate) fn links() -> Vec<Link> {
    let link = |ifindex, name: &str, ethernet| Link {
        ifindex,
        name: name.parse().unwrap(),
        ethernet,
    };
    vec![link(2, "core0", true), link(3, "tun0", false)]
}

/// A gateway: a state directory, a kernel and a clock that outlive the controller.
pub(crate) struct Gateway {
    pub(crate) config: Arc<Config>,
    pub(super) directory: TempDir,
    pub(super) kernel: FakeKernel,
    pub(super) clock: ManualClock,
    pub(super) disk: Disk,
    running: Option<(Controller, WriterThread)>,
}

impl Gateway {
    pub(crate) async fn new() -> Self {
        Self::with(config()).await
    }

    pub(super) async fn with(config: Config) -> Self {
        let config = Arc::new(config);
        let directory = tempfile::tempdir().unwrap();
        let kernel = FakeKernel::new(config.clone());
        let mut gateway = Self {
            config,
            directory,
            kernel,
            clock: ManualClock::new(START),
            disk: Disk::default(),
            running: None,
        };
        gateway.start().await.unwrap();
        gateway
    }

    pub(super) async fn start(&mut self) -> Result<(), StartError> {
        self.kernel.take_calls();
        let store = SqliteStore::open(&self.state_directory())?;
        let store = Limited {
            store,
            disk: self.disk.clone(),
            kernel: self.kernel.clone(),
            full: false,
        };
        let start = Start {
            config: self.config.clone(),
            loaded: Loaded::read(Box::new(store), &self.config)?,
            kernel: Box::new(self.kernel.clone()),
            clock: Box::new(self.clock.clone()),
            links: links(),
            options: Options {
                check: Duration::from_millis(20),
                retry: Duration::from_millis(10),
                retry_max: Duration::from_millis(40),
                begin: Duration::from_millis(300),
                ..Options::default()
            },
        };
        self.running = Some(Controller::start(start).await?);
        Ok(())
    }

    pub(super) fn state_directory(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    /// Another boot: what the kernel had is gone.
    pub(super) fn reboot(&mut self, now: Now) {
        self.clock.set(now);
        self.kernel = FakeKernel::new(self.config.clone());
    }

    /// Another configuration, over the tables of before.
    pub(super) fn reconfigure(&mut self, config: Config) {
        self.config = Arc::new(config);
        let kernel = FakeKernel::new(self.config.clone());
        kernel.state().assigned.clone_from(&self.kernel.state().assigned);
        self.kernel = kernel;
    }

    /// What the controller's thread came to.
    pub(super) async fn ended(&mut self) -> Result<(), WriterDied> {
        self.running.as_mut().unwrap().1.ended().await
    }

    pub(super) async fn stop(&mut self) {
        if let Some((controller, mut thread)) = self.running.take() {
            controller.shutdown().await;
            thread.ended().await.unwrap();
        }
    }

    pub(super) async fn restart(&mut self) {
        self.stop().await;
        self.start().await.unwrap();
    }

    pub(crate) fn controller(&self) -> &Controller {
        &self.running.as_ref().unwrap().0
    }

    /// The controller, for commands that are not asked twice.
    pub(super) fn tell(&self) -> Tell<'_> {
        Tell(self.controller())
    }

    /// A context seen this many milliseconds from the gateway's now.
    pub(super) fn seen(&self, offset_ms: i64) -> SignalContext {
        SignalContext {
            by: Identity::unlimited(Role::Mdm, "test"),
            request: "r-1".parse().unwrap(),
            observed_at: Some(WallTime(self.clock.now().wall.0 + offset_ms)),
            digest: None,
            acknowledge: Acknowledge::Enforced,
            deadline: Duration::ZERO,
            place: Place::default(),
        }
    }

    pub(crate) async fn register(&self, device: &str, pool: &str) {
        self.tell()
            .register(self.seen(0), vec![registration(device, pool)])
            .await
            .unwrap();
    }

    pub(crate) async fn open(&self, device: &str, addresses: &[&str]) -> Result<OpenOutcome, Refusal> {
        self.open_at("vpn-1", device, addresses).await
    }

    pub(super) async fn open_at(&self, source: &str, device: &str, addresses: &[&str]) -> Result<OpenOutcome, Refusal> {
        self.tell()
            .open_session(self.seen(0), source.parse().unwrap(), report(device, addresses))
            .await
    }

    pub(crate) async fn applied(&self, device: &str) -> Result<SignalOutcome, Refusal> {
        self.applied_at(device, 0).await
    }

    pub(super) async fn applied_at(&self, device: &str, offset_ms: i64) -> Result<SignalOutcome, Refusal> {
        self.tell()
            .policy_applied(self.seen(offset_ms), id(device), "rev-1".parse().unwrap(), None)
            .await
    }

    pub(crate) async fn revoked(&self, device: &str) -> Result<SignalOutcome, Refusal> {
        self.tell().policy_revoked(self.seen(0), id(device), "test".to_owned()).await
    }

    /// What the next packet is judged by.
    pub(super) fn judged(&self, address: &str) -> PoolId {
        self.kernel.judged_by(ip(address), self.clock.now().boot).unwrap()
    }

    /// Keeps the controller's thread from its queues until it is told to go on. A device must be registered.
    pub(crate) async fn hold(&self) -> std::sync::mpsc::Sender<()> {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (reached, there) = tokio::sync::oneshot::channel();
        let once = Arc::new(std::sync::Mutex::new(Some((reached, wait))));
        let controller = self.controller().clone();
        let hold = move |(): &mut (), _: &Device, _: &crate::transition::Context<'_>| {
            if let Some((reached, wait)) = once.lock().unwrap().take() {
                reached.send(()).unwrap();
                wait.recv().unwrap();
            }
        };
        tokio::spawn(async move { controller.fold_devices((), hold).await });
        there.await.unwrap();
        go
    }

    /// Waits for something that the controller does by itself.
    pub(super) async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
        let end = std::time::Instant::now() + PATIENCE;
        while !holds(self).await {
            assert!(std::time::Instant::now() < end, "{what}: not within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Commands of a controller, with plain answers and refusals.
pub(super) struct Tell<'a>(&'a Controller);

macro_rules! tell {
    ($($name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        impl Tell<'_> {
            $(pub(super) async fn $name(self, context: SignalContext, $($arg: $type),*) -> Result<$answer, Refusal> {
                let answer = self.0.$name(context, $($arg),*).await.map_err(|e| e.refusal)?;
                Ok(answer.first().expect("no digest, so never an answer of before"))
            })*
        }
    };
}
tell! {
    register(devices: Vec<Registration>) -> (Vec<DeviceView>, Revision);
    policy_applied(device: DeviceId, revision: PolicyRevision, key: Option<PolicyKey>) -> SignalOutcome;
    offer_policy(device: DeviceId, revision: PolicyRevision) -> OfferOutcome;
    acknowledge_policy(device: DeviceId, temporary: PolicyKey) -> AcknowledgeOutcome;
    renew_leases(devices: Vec<DeviceId>) -> RenewOutcome;
    publish_policy(revision: PolicyRevision, ceiling: u32, rate: u32) -> PublicationOutcome;
    pause_publication() -> PublicationOutcome;
    resume_publication() -> PublicationOutcome;
    grant_exception(device: DeviceId, kind: ExceptionKind, reason: String, length: Duration) -> SignalOutcome;
    end_exception(device: DeviceId, reason: String) -> SignalOutcome;
    policy_revoked(device: DeviceId, reason: String) -> SignalOutcome;
    retire(device: DeviceId) -> SignalOutcome;
    open_session(source: SourceName, report: SessionReport) -> OpenOutcome;
    close_session(session: SessionId) -> CloseOutcome;
    synchronise_sessions(source: SourceName, reports: Vec<SessionReport>) -> SynchroniseOutcome;
}

pub(super) fn id(device: &str) -> DeviceId {
    device.parse().unwrap()
}

pub(super) fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

pub(super) fn registration(device: &str, pool: &str) -> Registration {
    Registration {
        id: id(device),
        owner: "someone".to_owned(),
        full_service_pool: Some(pool.parse().unwrap()),
        common_names: Vec::new(),
        certificates: Vec::new(),
        vpn_keys: Vec::new(),
        window: crate::model::Window::default(),
    }
}

pub(super) fn report(device: &str, addresses: &[&str]) -> SessionReport {
    SessionReport {
        device_name: id(device),
        certificate: None,
        vpn_key: None,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        interface: "tun0".parse().unwrap(),
    }
}

pub(super) fn enforcement(outcome: Result<SignalOutcome, Refusal>) -> Enforcement {
    outcome.unwrap().enforcement
}

/// Whether there is room for the database to grow.
#[derive(Clone, Default)]
pub(super) struct Disk {
    full: Arc<AtomicBool>,
    poisoned: Arc<AtomicBool>,
    /// Devices that commits were asked to write.
    devices: Arc<AtomicUsize>,
    meanwhile: Arc<Mutex<Option<Meanwhile>>>,
}

/// What happens during a commit.
type Meanwhile = Box<dyn FnOnce() + Send>;

impl Disk {
    pub(super) fn fill(&self) {
        self.full.store(true, Ordering::SeqCst);
    }
    pub(super) fn free(&self) {
        self.full.store(false, Ordering::SeqCst);
    }
    /// Devices that were to be written, over all commits.
    pub(super) fn devices_written(&self) -> usize {
        self.devices.load(Ordering::SeqCst)
    }
    /// The next commit panics.
    pub(super) fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
    }
    /// During the next commit, this happens.
    pub(super) fn meanwhile(&self, what: impl FnOnce() + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some(Box::new(what));
    }
}

/// The real store, on a disk that fills up: SQLite itself refuses to grow the file (SQLITE_FULL). Commits are noted among the kernel's
/// calls, to show which came first.
struct Limited {
    store: SqliteStore,
    disk: Disk,
    kernel: FakeKernel,
    full: bool,
}

impl Store for Limited {
    fn load_each(&mut self, device: &mut dyn FnMut(Device)) -> Result<Snapshot, StoreError> {
        self.store.load_each(device)
    }
    fn commit(&mut self, changes: &ChangeSet, expected: Revision, at: WallTime) -> Result<Committed, StoreError> {
        assert!(!self.disk.poisoned.load(Ordering::SeqCst), "poisoned by the test");
        self.disk.devices.fetch_add(changes.devices.len(), Ordering::SeqCst);
        let meanwhile = self.disk.meanwhile.lock().unwrap().take();
        meanwhile.into_iter().for_each(|what| what());
        let full = self.disk.full.load(Ordering::SeqCst);
        if full != self.full {
            self.full = full;
            fill(&self.store, full);
        }
        let result = self.store.commit(changes, expected, at);
        if full {
            assert!(matches!(result, Err(StoreError::Full)), "{result:?}");
        }
        self.kernel
            .state()
            .calls
            .push(Call::Note(if result.is_ok() { "committed" } else { "not committed" }));
        result
    }
    fn uri_changes(&mut self, after: Revision, most: usize) -> Result<Option<Vec<UriChange>>, StoreError> {
        self.store.uri_changes(after, most)
    }
    fn request(&mut self, client: &str, id: &RequestId) -> Result<Option<Request>, StoreError> {
        self.store.request(client, id)
    }
    fn audit(&mut self, query: &AuditQuery) -> Result<Vec<Sealed>, StoreError> {
        self.store.audit(query)
    }
    fn prune(&mut self, requests_before: WallTime, audit_entries: u64) -> Result<bool, StoreError> {
        self.store.prune(requests_before, audit_entries)
    }
}

/// Takes the room for growth away, or gives it back. SQLite refuses to grow the file (SQLITE_FULL) in the middle of the transaction:
/// a trigger makes every commit need twenty pages more than there are.
fn fill(store: &SqliteStore, full: bool) {
    let c = store.connection();
    let pages: i64 = c.pragma_query_value(None, "page_count", |r| r.get(0)).unwrap();
    let most = if full { pages } else { 1_000_000 };
    c.query_row(&format!("PRAGMA max_page_count = {most}"), [], |_| Ok(()))
        .unwrap();
    if full {
        c.execute_batch(
            "CREATE TEMP TRIGGER IF NOT EXISTS grow BEFORE UPDATE ON main.meta
             BEGIN INSERT INTO uri_changes (revision, device, old, new, at, reason) VALUES (0, 'x', hex(zeroblob(40000)), '', 0, ''); END",
        )
        .unwrap();
    } else {
        c.execute_batch("DROP TRIGGER IF EXISTS grow").unwrap();
    }
}
