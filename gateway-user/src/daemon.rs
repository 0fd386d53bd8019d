//! The daemon: what is started, in which order, and how it ends. It decides nothing.
//!
//! Everything that can be wrong with the configuration is found before anything is touched; with the store, the certificates or the
//! sockets, before a program is: then the floor is closed, and the daemon ends. Otherwise the floor is closed, programs are attached,
//! and only then is anything answered. At the end nothing is detached: the kernel goes on enforcing.

use std::{path::Path, sync::Arc, thread};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tracing::{info, warn};

use crate::{
    access::{listen::Listeners, live::Access},
    api,
    clock::SystemClock,
    config::{Config, Mode},
    controller::{Controller, Loaded, Options, Start},
    dataplane::{self, Live},
    events::Denials,
    heap,
    kernel::Link,
    links,
    metrics::{self, Exporter},
    notify, privileges,
    store::{AuditLog, SqliteStore},
    telemetry,
};

/// Runs the daemon in the foreground, until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or what made it end.
pub fn run(file: &Path) -> Result<()> {
    heap::bound();
    let mut config = Config::load(file)?;
    telemetry::init(&config.log)?;
    for warning in config.warnings() {
        warn!("{warning}");
    }
    let opened = open(&mut config).inspect_err(|_| stay_closed(&config))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(serve(Arc::new(config), opened))
}

async fn serve(config: Arc<Config>, opened: Opened) -> Result<()> {
    let Opened {
        listeners,
        store,
        metrics,
    } = opened;
    // First, so that a signal during the start ends it in order.
    let mut ends = Ends::new()?;
    let hangup = signal(SignalKind::hangup()).context("signals cannot be caught")?;
    let loading = thread::spawn({
        let config = Arc::clone(&config);
        move || Loaded::read(Box::new(store), &config)
    });
    let live = Live::open(&config).inspect_err(|_| stay_closed(&config))?;
    // Ends after the controller, with its last entries.
    let audit_log =
        AuditLog::start(&config.paths.state, config.keep.audit_log.clone()).context("the audit log cannot be started")?;
    if config.mode == Mode::Observe {
        warn!("mode = \"observe\": everything is judged and counted, NOTHING IS DENIED, and the floor is open");
    }
    // Its rules have the numbers that the kernel counts by.
    let config = Arc::new(live.config().clone());
    let denials = Denials::default();
    let (denied, to) = (live.denials()?, denials.clone());
    let pump = tokio::spawn(denied.pump(move |record| to.push(record.into())));
    let (captured, captures) = live.captures()?;
    let to = captures.clone();
    let capturing = tokio::spawn(captured.pump(move |packet| to.push(packet)));
    let views = api::Views {
        denials,
        captures,
        prober: Arc::new(live.prober()?),
    };
    let (links, watching) = links::watch()?;
    let watching = tokio::spawn(watching);
    let start = Start {
        config: Arc::clone(&config),
        loaded: loading
            .join()
            .map_err(|_| anyhow!("reading the store has failed"))??
            .with_audit_log(audit_log.health()),
        kernel: Box::new(live),
        clock: Box::new(SystemClock::new()?),
        links: links.borrow().clone(),
        options: Options::default(),
    };
    let (controller, mut writer) = Controller::start(start).await?;
    heap::give_back();
    let reading = tokio::spawn(read_again(hangup, listeners.access()));
    let follow = tokio::spawn(follow(links, controller.clone()));

    let (stop, stopped) = watch::channel(false);
    if let Some(metrics) = metrics {
        let exporter = Exporter::new(Arc::clone(&config), controller.clone(), listeners.access());
        // Nobody's safety rests on it: it says what ends it, and scrapes fail.
        tokio::spawn(metrics.serve(exporter, stopped.clone()));
    }
    let shutdown = async move {
        let mut stopped = stopped;
        // An error is the sender's end, which is an end too.
        let _ = stopped.wait_for(|s| *s).await;
    };
    let mut serving = tokio::spawn(api::serve(
        listeners,
        Arc::clone(&config),
        controller.clone(),
        views,
        shutdown,
    ));
    notify::tell(notify::State::Ready).context("systemd cannot be told")?;
    info!(version = env!("CARGO_PKG_VERSION"), mode = ?config.mode, "ready");

    // A task whose silent end would matter ends the process.
    let ended = tokio::select! {
        signal = ends.next() => { info!("{signal}: stopping; the kernel goes on enforcing"); Ok(()) }
        end = writer.ended() => Err(end.err().map_or_else(|| anyhow!("the controller has stopped"), Into::into)),
        end = &mut serving => Err(match end { Ok(Ok(())) => anyhow!("the API has stopped"), Ok(Err(e)) => e.into(), Err(e) => e.into() }),
        end = pump => Err(end.map_or_else(Into::into, |e| anyhow!(e).context("reading denials"))),
        end = capturing => Err(end.map_or_else(Into::into, |e| anyhow!(e).context("reading captured packets"))),
        end = watching => Err(end.map_or_else(Into::into, |e| anyhow!(e).context("watching interfaces"))),
        _ = follow => Err(anyhow!("nobody follows the interfaces any more")),
        _ = reading => Err(anyhow!("SIGHUP cannot be caught any more")),
    };
    if let Err(e) = notify::tell(notify::State::Stopping) {
        warn!("systemd cannot be told: {e}");
    }
    // What is being asked is answered; what is in the queue is done; then the process ends.
    stop.send_replace(true);
    if !serving.is_finished() {
        match serving.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => warn!("the API: {e}"),
            Err(e) => warn!("the API: {e}"),
        }
    }
    controller.shutdown().await;
    ended
}

/// Opens what takes privileges that are given up then. The database comes first: its lock keeps a second daemon from the first one's socket.
/// There is one thread as yet.
fn open(config: &mut Config) -> Result<Opened> {
    privileges::prepare(config)?;
    let store = SqliteStore::open(&config.paths.state)?;
    let listeners = Listeners::bind(config)?;
    let metrics = config.metrics.as_ref().map(metrics::Bound::bind).transpose()?;
    privileges::confine(config)?;
    Ok(Opened {
        listeners,
        store,
        metrics,
    })
}

/// What is open before privileges are given up.
struct Opened {
    listeners: Listeners,
    store: SqliteStore,
    metrics: Option<metrics::Bound>,
}

/// Nobody judges after a boot if the daemon cannot start: a certificate, a port or a database must not open the gateway.
fn stay_closed(config: &Config) {
    if config.mode == Mode::Observe {
        return;
    }
    match dataplane::stay_closed(config) {
        Ok(()) => warn!("the daemon does not start; the floor is closed, and what is attached goes on judging"),
        Err(e) => warn!("the daemon does not start, and leaves the kernel as it is: {e}"),
    }
}

/// Hands each set of interfaces on.
async fn follow(mut links: watch::Receiver<Vec<Link>>, controller: Controller) {
    while links.changed().await.is_ok() {
        let now = links.borrow_and_update().clone();
        controller.set_links(now);
    }
}

/// On SIGHUP the files of `[api]` are read again.
async fn read_again(mut hangup: Signal, access: Access) {
    while hangup.recv().await.is_some() {
        info!("SIGHUP: certificates, key and revocation lists are read again; a change of the configuration needs a restart");
        access.poke();
    }
}

/// The signals that end the daemon.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> Result<Self> {
        let on = |kind| signal(kind).context("signals cannot be caught");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
