//! What a verdict costs: a prologue draws a packet and tail-calls the attached program. The empty program pays for the prologue too.

use std::{
    net::Ipv4Addr,
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use aya::programs::ProgramFd;
use gateway_ebpf::reason::Reason;
use gateway_user::kernel::HookPoint;
use lazaret_tests::netns::{Namespace, veth};

use crate::{
    gateway::{
        Gateway, MILLION, OTHER_PORT, POOLS, PORT, PORT_BITS, QUARANTINED, RELEASED, RESTING, Sessions, address6, link, pool,
    },
    programs::{Bench, Draw},
    quiet::{Quiet, Sample},
    report::{Goal, Report},
    run,
    xdpfilter::XdpFilter,
};

/// XDP's actions (linux/bpf.h).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// The device interface that the programs are attached to.
const INTERFACE: &str = "dev0";
/// How long a piece of a sample is to take.
const PIECE: Duration = Duration::from_millis(2);
/// An interface that only holds a prologue.
const HOLDER: &str = "hold0";

/// One row: which program, what is drawn, and what must come out.
struct Case {
    name: &'static str,
    program: &'static str,
    prologue: &'static str,
    draw: Draw,
    verdict: u32,
    reason: Option<Reason>,
}

const OURS: &str = "ours";
const XDP_FILTER: &str = "xdp-filter";
/// The prologue of xdp-filter, which takes frames in one piece only.
const LINEAR: &str = "bench_prologue_linear";
const PROLOGUE: &str = "bench_prologue";

const fn ours(name: &'static str, draw: Draw, reason: Reason) -> Case {
    Case {
        name,
        program: OURS,
        prologue: PROLOGUE,
        draw,
        verdict: if reason.passes() { XDP_PASS } else { XDP_DROP },
        reason: Some(reason),
    }
}

const fn peer(name: &'static str, program: &'static str, draw: Draw) -> Case {
    Case {
        name,
        program,
        prologue: PROLOGUE,
        draw,
        verdict: XDP_PASS,
        reason: None,
    }
}

/// A million addresses in 256 /16s: the first 4,096 of each.
const SPREAD: Draw = Draw {
    mask: 0x00ff_0fff,
    ..SCATTERED
};

/// A million addresses in 256 /16s: every sixteenth, four in a cache line.
const SCATTERED: Draw = Draw {
    mask: 0x00ff_fff0,
    shift: 8,
    ..Draw::sources(RESTING, 24, PORT)
};

fn cases() -> Vec<Case> {
    let class = |bits| Draw::sources(QUARANTINED, bits, PORT);
    let released = |bits| Draw::sources(RELEASED, bits, OTHER_PORT);
    vec![
        peer("verdict.empty", "bench_empty", class(MILLION)),
        ours("verdict.released.1", released(0), Reason::All),
        ours("verdict.released.1k", released(10), Reason::All),
        ours("verdict.released.128k", released(17), Reason::All),
        ours("verdict.released.1M", released(MILLION), Reason::All),
        ours("verdict.class.1", class(0), Reason::Rule),
        ours("verdict.class.1k", class(10), Reason::Rule),
        ours("verdict.class.128k", class(17), Reason::Rule),
        ours("verdict.class.1M", class(MILLION), Reason::Rule),
        ours(
            "verdict.class.1M.miss",
            Draw::sources(QUARANTINED, MILLION, OTHER_PORT),
            Reason::NoRule,
        ),
        Case {
            prologue: "bench_prologue_dependent",
            ..ours("verdict.class.1M.dependent", class(MILLION), Reason::Rule)
        },
        ours("verdict.class.1M.256", SPREAD, Reason::Rule),
        ours("verdict.class.1M.256_scattered", SCATTERED, Reason::Rule),
        ours("verdict.class.16M", Draw::sources(RESTING, 24, PORT), Reason::Rule),
        Case {
            prologue: "bench_prologue6",
            ..ours("verdict.class6.1", Draw::sources(0, 0, PORT), Reason::Rule)
        },
        Case {
            prologue: "bench_prologue6",
            ..ours("verdict.class6.1M", Draw::sources(0, MILLION, PORT), Reason::Rule)
        },
        Case {
            prologue: "bench_prologue6",
            ..peer("verdict.hash6.1M", "bench_hash6", Draw::sources(0, MILLION, PORT))
        },
        peer("verdict.kernel_maps.1", "bench_kernel_maps", class(0)),
        peer("verdict.kernel_maps.1M", "bench_kernel_maps", class(MILLION)),
        Case {
            prologue: LINEAR,
            ..peer("verdict.xdpfilter.1", XDP_FILTER, released(0))
        },
        Case {
            prologue: LINEAR,
            ..peer("verdict.xdpfilter.1M", XDP_FILTER, released(MILLION))
        },
    ]
}

/// The programs of a run.
struct Rig {
    gateway: Gateway,
    bench: Bench,
    filter: XdpFilter,
    ifindex: u32,
    quiet: Quiet,
}

impl Rig {
    fn new(namespace: &Namespace) -> Result<Self> {
        veth((namespace, INTERFACE), (namespace, "peer0"))?;
        veth((namespace, HOLDER), (namespace, "peer1"))?;
        // It holds, and runs for nobody.
        namespace.ip(&format!("link set {HOLDER} down"))?;
        let interfaces = format!("[[interface]]\nname = \"{INTERFACE}\"\nrole = \"device\"\n");
        let links = [link(namespace, INTERFACE, true)?];
        let gateway = Gateway::new(namespace, &interfaces, &links, Sessions::All)?;
        let mut bench = Bench::load(1 << MILLION, Some(gateway.maps()))?;
        bench.fill_hash6(shuffled(0).map(|i| (address6(i), 1)))?;
        bench.fill_reference(shuffled(QUARANTINED).map(|a| (a, pool(a) + 1)))?;
        Ok(Self {
            gateway,
            bench,
            filter: XdpFilter::load(shuffled(RELEASED))?,
            ifindex: namespace.ifindex(INTERFACE)?,
            quiet: Quiet::new()?,
        })
    }

    fn program(&mut self, name: &str) -> Result<ProgramFd> {
        match name {
            OURS => self.gateway.attached(INTERFACE, HookPoint::Xdp),
            XDP_FILTER => self.filter.fd(),
            other => self.bench.fd(other),
        }
    }

    fn run(&self, prologue: &str, packets: u32) -> Result<(u32, Duration)> {
        run::test_run(
            self.bench.fd(prologue)?.as_fd(),
            &frame(prologue),
            packets,
            run::Mode::On(self.ifindex),
        )
    }

    /// One sample, nanoseconds a packet; what came out is checked.
    fn sample(&mut self, case: &Case, packets: u32) -> Result<f64> {
        let program = self.program(case.program)?;
        self.bench.under_test(&program, case.prologue == LINEAR)?;
        self.bench.draw(&case.draw)?;
        let before = case.reason.map(|r| self.gateway.counts(r as u8)).transpose()?;
        let Sample { ns, ran, verdict } = self.pieces(case.prologue, packets)?;
        ensure!(
            verdict == case.verdict,
            "{}: verdict {verdict}, not {}",
            case.name,
            case.verdict
        );
        if let (Some(reason), Some(before)) = (case.reason, before) {
            let counted = self.gateway.counts(reason as u8)? - before;
            ensure!(
                counted == ran,
                "{}: {counted} of {ran} packets had reason {}",
                case.name,
                reason.name()
            );
        }
        Ok(ns)
    }

    /// A sample of a program of the benchmark's: a prologue, or the empty one without.
    fn pieces(&mut self, program: &str, packets: u32) -> Result<Sample> {
        let Self {
            bench, quiet, ifindex, ..
        } = self;
        let frame = frame(program);
        bench.held(program, HOLDER, |bench| {
            let fd = bench.fd(program)?;
            quiet.sample(packets, PIECE, |n| {
                run::test_run(fd.as_fd(), &frame, n, run::Mode::On(*ifindex))
            })
        })
    }
}

/// The frame that a prologue fills in.
fn frame(prologue: &str) -> Vec<u8> {
    if prologue.ends_with('6') {
        run::frame6().to_vec()
    } else {
        run::frame().to_vec()
    }
}

/// Measures `rounds` times, interleaved.
pub(crate) fn measure(report: &mut Report, rounds: usize, packets: u32) -> Result<()> {
    let namespace = Namespace::new("bench")?;
    // The interface that a test run names is looked up in the namespace of the thread.
    namespace.run(|| measure_in(&namespace, report, rounds, packets))
}

fn measure_in(namespace: &Namespace, report: &mut Report, rounds: usize, packets: u32) -> Result<()> {
    let mut rig = Rig::new(namespace)?;
    agree(&mut rig)?;
    let only = std::env::var("LAZARET_BENCH_ROWS").ok();
    let cases: Vec<Case> = cases()
        .into_iter()
        .filter(|c| only.as_ref().is_none_or(|o| o.split(',').any(|o| c.name == o)))
        .collect();
    for round in 0..=rounds {
        // The first round warms up; it is not counted.
        let mut take = |name: &str, ns: f64| {
            if round > 0 {
                report.sample(name, ns);
            }
        };
        let direct = rig.pieces("bench_empty", packets)?.ns;
        take("verdict.empty_direct", direct);
        for case in &cases {
            let ns = rig.sample(case, packets)?;
            if case.name == "verdict.empty" {
                take("verdict.prologue", ns - direct);
            }
            take(case.name, ns);
            if case.name == "verdict.class.1M" {
                take("verdict.class.1M.moving", rig.moving(case, packets)?);
            }
        }
    }

    report.note(rig.quiet.told());
    report.ratio("verdict.released.1M", "verdict.empty", Some(Goal::AtMost(3.0)));
    report.ratio("verdict.class.1M", "verdict.empty", Some(Goal::AtMost(4.5)));
    report.ratio("verdict.released.1M", "verdict.released.1", Some(Goal::AtMost(1.4)));
    report.ratio("verdict.class.1M", "verdict.class.1", Some(Goal::AtMost(1.5)));
    report.ratio("verdict.class6.1M", "verdict.hash6.1M", Some(Goal::AtMost(0.5)));
    report.ratio("verdict.kernel_maps.1M", "verdict.class.1M", Some(Goal::AtLeast(18.0)));
    report.ratio("verdict.xdpfilter.1M", "verdict.released.1M", Some(Goal::AtLeast(18.0)));
    report.ratio("verdict.class.1M.moving", "verdict.class.1M", Some(Goal::AtMost(1.1)));
    report.ratio("verdict.class.1M.miss", "verdict.empty", None);
    report.ratio("verdict.class.1M.256", "verdict.class.1M", None);
    report.ratio("verdict.class.1M.256_scattered", "verdict.class.1M", None);
    report.ratio("verdict.class.16M", "verdict.class.1M", None);
    Ok(())
}

/// The same packets through ours and through each reference, mixed of what passes and what does not: one at a time, then in blocks. A fast
/// wrong verdict is found here.
fn agree(rig: &mut Rig) -> Result<()> {
    for seed in 0..SINGLES + BLOCKS {
        let packets = if seed < SINGLES { 1 } else { 4096 };
        // Twice as many ports as the policies name.
        let draw = Draw {
            seed,
            port_bits: PORT_BITS + 1,
            ..Draw::sources(QUARANTINED, MILLION, PORT)
        };
        let (verdict, passed) = rig.passed(&draw, packets)?;
        let before = rig.bench.counts()?;
        let reference = rig.bench.fd("bench_kernel_maps")?;
        let other = rig.verdict(&reference, PROLOGUE, &draw, packets)?;
        let after = rig.bench.counts()?;
        ensure!(
            verdict == other && passed == after[2] - before[2] && u64::from(packets) - passed == after[3] - before[3],
            "kernel_maps and ours disagree on the packets of seed {seed}"
        );
    }
    for seed in 0..SINGLES {
        // Both millions: those at rest or quarantined may not go to that port, and are not in the filter's list.
        let draw = Draw {
            seed,
            ..Draw::sources(QUARANTINED, MILLION + 1, OTHER_PORT)
        };
        let (verdict, _) = rig.passed(&draw, 1)?;
        let filter = rig.filter.fd()?;
        let other = rig.verdict(&filter, LINEAR, &draw, 1)?;
        ensure!(verdict == other, "xdp-filter and ours disagree on the packet of seed {seed}");
    }
    Ok(())
}

/// Packets that are compared one by one.
const SINGLES: u32 = 48;
/// Blocks of packets that are compared by what passed.
const BLOCKS: u32 = 16;

impl Rig {
    /// The same while another CPU moves a million devices a second from pool to pool, by the code that the daemon runs.
    fn moving(&mut self, case: &Case, packets: u32) -> Result<f64> {
        let program = self.program(case.program)?;
        self.bench.under_test(&program, false)?;
        self.bench.draw(&case.draw)?;
        let stop = AtomicBool::new(false);
        let Self {
            gateway,
            bench,
            quiet,
            ifindex,
            ..
        } = self;
        let frame = frame(case.prologue);
        let moved = std::thread::scope(|scope| -> Result<(f64, f64)> {
            let mover = scope.spawn(|| keep_moving(gateway, &stop));
            std::thread::sleep(Duration::from_millis(20));
            let run = bench.held(case.prologue, HOLDER, |bench| {
                let fd = bench.fd(case.prologue)?;
                quiet.sample(packets, PIECE, |n| {
                    run::test_run(fd.as_fd(), &frame, n, run::Mode::On(*ifindex))
                })
            });
            stop.store(true, Ordering::Relaxed);
            let rate = mover.join().map_err(|_| anyhow!("the mover panicked"))??;
            let Sample { ns, verdict, .. } = run?;
            ensure!(verdict == case.verdict, "moving: verdict {verdict}, not {}", case.verdict);
            Ok((ns, rate))
        })?;
        // A busy machine may keep the mover from its rate; far below it, the row would mean nothing.
        ensure!(moved.1 > 0.5e6, "only {:.0} moves a second", moved.1);
        Ok(moved.0)
    }

    /// The verdict of ours on the last of some packets, and how many passed.
    fn passed(&mut self, draw: &Draw, packets: u32) -> Result<(u32, u64)> {
        let passing = [Reason::Rule, Reason::All].map(|r| r as u8);
        let count = |gateway: &Gateway| passing.iter().map(|r| gateway.counts(*r)).sum::<Result<u64>>();
        let before = count(&self.gateway)?;
        let ours = self.program(OURS)?;
        let verdict = self.verdict(&ours, PROLOGUE, draw, packets)?;
        Ok((verdict, count(&self.gateway)? - before))
    }

    fn verdict(&mut self, program: &ProgramFd, prologue: &str, draw: &Draw, packets: u32) -> Result<u32> {
        self.bench.under_test(program, prologue == LINEAR)?;
        self.bench.draw(draw)?;
        Ok(self.run(prologue, packets)?.0)
    }
}

/// A million addresses in no order.
pub(crate) fn shuffled(first: u32) -> std::vec::IntoIter<u32> {
    let mut all: Vec<u32> = (first..first + (1 << MILLION)).collect();
    let mut x = 88_172_645_463_325_252_u64;
    for i in (1..all.len()).rev() {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        all.swap(i, (x % (i as u64 + 1)) as usize);
    }
    all.into_iter()
}

/// Moves devices, a million a second, until told to stop; gives how many a second it were. Each move is in force at once.
fn keep_moving(gateway: &mut Gateway, stop: &AtomicBool) -> Result<f64> {
    run::pin(run::OTHER_CPU)?;
    let (mut mover, classes) = gateway.mover()?;
    let order: Vec<u32> = shuffled(QUARANTINED).collect();
    let (start, mut moves) = (Instant::now(), 0_u32);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..100 {
            let address = order[moves as usize % order.len()];
            // There and back: all policies allow the same.
            let turn = moves >> MILLION & 1;
            mover.set(Ipv4Addr::from(address), classes[((pool(address) + turn) % POOLS) as usize])?;
            moves += 1;
        }
        while start.elapsed() < Duration::from_micros(moves.into()) && !stop.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    }
    Ok(f64::from(moves) / start.elapsed().as_secs_f64())
}
