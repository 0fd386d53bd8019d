//! Two threads beside the controller's, for what may have to wait for others in the kernel: one looks after interfaces, floor and routes,
//! and says how they stand; one looks what is attached, to read back through it. The controller's own thread waits for neither longer than nothing that restricts waits.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::timeout};

use crate::{
    background,
    kernel::{Attached, InterfaceState, KernelError, Link, Places, ReadBack},
};

/// What was found attached holds for so long: mostly a commit takes less, and the other thread looks meanwhile.
const FRESH: Duration = Duration::from_millis(5);
/// Looks that are yet to be answered, at most.
const STALE: usize = 2;
/// How long it is waited for although something restricts: mostly it takes less.
const GRACE: Duration = Duration::from_millis(5);
/// How often is looked whether something restricts.
const SLICE: Duration = Duration::from_millis(1);
/// How long it is waited for at all.
const PATIENCE: Duration = Duration::from_secs(1);
/// For so long one look answers all who ask how interfaces and floor stand: it takes a process, and keeps interfaces waiting meanwhile.
const ONE_LOOK: Duration = Duration::from_millis(500);
/// How long someone waits who asks how interfaces and floor stand. A hung `nft` is given up later: what is asked then is not known.
const ANSWER: Duration = Duration::from_secs(4);

/// See [`Places::attached`].
type Found = Result<Box<dyn Attached>, KernelError>;
/// See [`Places::interfaces`].
pub(super) type States = Result<Vec<InterfaceState>, KernelError>;

/// How interfaces and floor stood.
pub(super) struct Standing {
    /// When they were looked at.
    pub(super) since: Instant,
    /// Or why it is not known.
    pub(super) interfaces: Result<Vec<InterfaceState>, String>,
    /// See [`Places::floor`].
    pub(super) floor: String,
}

impl Standing {
    fn look(places: &dyn Places) -> Self {
        Self {
            since: Instant::now(),
            interfaces: places.interfaces().map_err(|e| e.to_string()),
            floor: places.floor(),
        }
    }

    fn unknown() -> Self {
        Self {
            since: Instant::now(),
            interfaces: Err(KernelError::Late.to_string()),
            floor: "not known: the kernel does not answer".to_owned(),
        }
    }
}

/// The threads, as the controller's has them. They end with it, or as soon as the kernel lets them.
pub(super) struct Upkeep {
    places: Arc<dyn Places>,
    keeper: Keeper,
    /// The interfaces of a round that has not begun.
    next: Arc<Mutex<Option<Vec<Link>>>>,
    reader: Sender<()>,
    answers: Receiver<Found>,
    /// Since when the other thread looks, for the last answer that is to come.
    looking: Option<Instant>,
    /// Answers before that one, which nobody waits for any more.
    stale: usize,
    /// The last wait was in vain, and nothing has come since.
    stuck: bool,
    hurry: Hurry,
}

/// Whoever asks how interfaces and floor stand; not by the controller's thread.
#[derive(Clone)]
pub(super) struct Keeper(Sender<Errand>);

/// Something for the thread that looks after interfaces.
enum Errand {
    Keep,
    Tell(Question),
    Stand(oneshot::Sender<Arc<Standing>>),
}

/// What is asked of what is there; it answers by itself.
type Question = Box<dyn FnOnce(&dyn Places) + Send>;

/// How many restrictions wait for the controller's thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Hurry(Arc<AtomicUsize>);

/// One that waits, for as long as it lives.
pub(super) struct Waiting(Hurry);

impl Upkeep {
    /// Starts the threads. Nothing is attached yet.
    pub(super) fn start(places: Arc<dyn Places>, hurry: Hurry) -> std::io::Result<Self> {
        let next: Arc<Mutex<Option<Vec<Link>>>> = Arc::default();
        let (errand, errands) = channel();
        let (kept, wanted) = (Arc::clone(&places), Arc::clone(&next));
        thread::Builder::new().name("upkeep".to_owned()).spawn(move || {
            background::yield_to_others();
            keep(&*kept, &wanted, &errands);
        })?;
        let (reader, asked) = channel();
        let (answer, answers) = channel();
        let read = Arc::clone(&places);
        thread::Builder::new().name("attached".to_owned()).spawn(move || {
            background::yield_to_others();
            while asked.recv().is_ok() && answer.send(read.attached()).is_ok() {}
        })?;
        Ok(Self {
            places,
            keeper: Keeper(errand),
            next,
            reader,
            answers,
            looking: None,
            stale: 0,
            stuck: false,
            hurry,
        })
    }

    /// Has interfaces, floor and routes looked after and waits for it, so long at most: at the start, when nothing is answered yet. Whether it
    /// is done; if not, it goes on as soon as the kernel lets it, and answers say meanwhile what is not in force.
    pub(super) fn begin(&self, links: &[Link], patience: Duration) -> bool {
        self.keep(links);
        let (done, is_done) = channel();
        // Nobody waits for it any more: fine.
        let errand = Errand::Tell(Box::new(move |_| {
            let _ = done.send(());
        }));
        // Without the thread it was done by this one.
        if self.keeper.0.send(errand).is_err() {
            return true;
        }
        !matches!(is_done.recv_timeout(patience), Err(RecvTimeoutError::Timeout))
    }

    /// Has interfaces, floor and routes looked after, once more for all who ask before that begins.
    pub(super) fn keep(&self, links: &[Link]) {
        let waiting = self
            .next
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(links.to_vec());
        if waiting.is_none() && self.keeper.0.send(Errand::Keep).is_err() {
            tracing::error!("the thread that looks after interfaces has died; the controller's does it");
            self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.places.set_links(links);
        }
    }

    /// Who may be asked how things stand.
    pub(super) fn keeper(&self) -> Keeper {
        self.keeper.clone()
    }

    /// Has the other thread look what is attached, while this one does something else: [`Upkeep::read_back`] reads through that.
    pub(super) fn look(&mut self) {
        // An earlier look says nothing of now.
        self.stale += usize::from(self.looking.take().is_some());
        while self.stale > 0 {
            match self.answers.try_recv() {
                Ok(_) => self.stale -= 1,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.stale = 0,
            }
            self.stuck = false;
        }
        if !self.stuck && self.stale < STALE && self.reader.send(()).is_ok() {
            self.looking = Some(Instant::now());
        }
    }

    /// Reads addresses as they are now, through what is attached: now, or when the last [`Upkeep::look`] began, if that is not long ago.
    ///
    /// # Errors
    /// [`KernelError::Late`]: a restriction waits, or the kernel has not answered for a second; others: see [`Attached::read_back`].
    pub(super) fn read_back(&mut self, addresses: &[IpAddr]) -> Result<Vec<Vec<ReadBack>>, KernelError> {
        if addresses.is_empty() {
            return Ok(Vec::new());
        }
        if self.looking.is_none_or(|since| since.elapsed() >= FRESH) {
            self.look();
        }
        if self.looking.is_some() {
            return self.found()?.read_back(addresses);
        }
        if self.stuck || self.stale > 0 {
            return Err(KernelError::Late);
        }
        tracing::error!("the thread that looks what is attached has died; the controller's does it");
        self.places.read_back(addresses)
    }

    /// What the other thread was asked for last.
    fn found(&mut self) -> Found {
        let begin = Instant::now();
        let mut wait = GRACE;
        loop {
            match self.answers.recv_timeout(wait) {
                Ok(answer) => {
                    self.stuck = false;
                    if self.stale == 0 {
                        self.looking = None;
                        return answer;
                    }
                    self.stale -= 1;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.looking = None;
                    return Err(KernelError::Late);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let late = begin.elapsed() >= PATIENCE;
            if late {
                tracing::warn!(
                    "{}; what was changed is in force, and is answered when that is known",
                    KernelError::Late
                );
            }
            if late || self.hurry.is_on() {
                self.looking = None;
                self.stale += 1;
                self.stuck = true;
                return Err(KernelError::Late);
            }
            wait = SLICE;
        }
    }
}

impl Keeper {
    /// How every configured interface stands, once all that was to be looked after before is done.
    pub(super) fn states(&self) -> oneshot::Receiver<States> {
        self.tell(|places| places.interfaces())
    }

    /// The same, of what the kernel says within seconds.
    pub(super) async fn interfaces(&self) -> States {
        let told = timeout(ANSWER, self.states()).await;
        told.ok().and_then(Result::ok).unwrap_or(Err(KernelError::Late))
    }

    /// The same, and the floor, as they were half a second ago at most: however many ask.
    pub(super) async fn standing(&self) -> Arc<Standing> {
        let (tell, told) = oneshot::channel();
        // Without the thread the sender is dropped here.
        drop(self.0.send(Errand::Stand(tell)));
        let told = timeout(ANSWER, told).await;
        told.ok()
            .and_then(Result::ok)
            .unwrap_or_else(|| Arc::new(Standing::unknown()))
    }

    fn tell<T: Send + 'static>(&self, ask: impl FnOnce(&dyn Places) -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (tell, told) = oneshot::channel();
        let errand = move |places: &dyn Places| {
            // Whoever has stopped waiting costs nothing.
            if !tell.is_closed() {
                drop(tell.send(ask(places)));
            }
        };
        // Without the thread the sender is dropped here, and with it the question.
        drop(self.0.send(Errand::Tell(Box::new(errand))));
        told
    }
}

impl Hurry {
    /// One more waits.
    pub(super) fn wait(&self) -> Waiting {
        self.0.fetch_add(1, Ordering::SeqCst);
        Waiting(self.clone())
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs errands in turn, until nobody is left to send any; but interfaces are looked after first, whoever asks, and however often.
fn keep(places: &dyn Places, next: &Mutex<Option<Vec<Link>>>, errands: &Receiver<Errand>) {
    let mut last: Option<Arc<Standing>> = None;
    while let Ok(errand) = errands.recv() {
        let links = next.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(links) = links {
            places.set_links(&links);
            // It says nothing of what that has changed.
            last = None;
        }
        match errand {
            Errand::Keep => {}
            Errand::Tell(tell) => tell(places),
            // Whoever has stopped waiting costs nothing.
            Errand::Stand(to) if to.is_closed() => {}
            Errand::Stand(to) => {
                let known = last.take().filter(|s| s.since.elapsed() < ONE_LOOK);
                let standing = known.unwrap_or_else(|| Arc::new(Standing::look(places)));
                drop(to.send(Arc::clone(&standing)));
                last = Some(standing);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes in which order it is asked, and takes its time over the first.
    #[derive(Default)]
    struct Slow {
        calls: Mutex<Vec<&'static str>>,
        free: Mutex<()>,
    }

    impl Slow {
        fn note(&self, call: &'static str) {
            drop(self.free.lock());
            self.calls.lock().unwrap().push(call);
        }
    }

    impl Places for Slow {
        fn set_links(&self, _: &[Link]) {
            self.note("keep");
        }
        fn interfaces(&self) -> Result<Vec<InterfaceState>, KernelError> {
            self.note("look");
            Ok(Vec::new())
        }
        fn floor(&self) -> String {
            "closed".to_owned()
        }
        fn attached(&self) -> Found {
            Err(KernelError::Late)
        }
    }

    #[test]
    fn a_flood_of_questions_is_answered_by_one_look_and_interfaces_do_not_wait_for_it() {
        let places = Arc::new(Slow::default());
        let upkeep = Upkeep::start(places.clone(), Hurry::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let busy = places.free.lock().unwrap();
        let keeper = upkeep.keeper();
        let ask = || {
            let keeper = keeper.clone();
            runtime.spawn(async move { keeper.standing().await })
        };
        let asked: Vec<_> = (0..128).map(|_| ask()).collect();
        thread::sleep(Duration::from_millis(50));
        upkeep.keep(&[]);
        drop(busy);
        let told: Vec<_> = asked.into_iter().map(|answer| runtime.block_on(answer).unwrap()).collect();
        assert!(told.iter().all(|s| s.floor == "closed" && s.interfaces.is_ok()));
        // The first was under way; what was to be looked after comes next, and after it one look does for all others.
        assert_eq!(*places.calls.lock().unwrap(), ["look", "keep", "look"]);
        let looks = |i: usize| told.iter().filter(|s| Arc::ptr_eq(s, &told[i])).count();
        let mut shared: Vec<usize> = (0..128).map(looks).collect();
        shared.sort_unstable();
        assert_eq!((shared[0], shared[127]), (1, 127));
        thread::sleep(ONE_LOOK);
        let later = runtime.block_on(keeper.standing());
        assert!(told.iter().all(|s| !Arc::ptr_eq(s, &later)), "they are too old");
    }
}
