//! The machine loses its power at random moments under a mixed load of several clients: the daemon ends, the kernel's tables and programs go,
//! and of the files only what was synchronised is certain. After each loss every answer is in the store; after the start in the kernel, too,
//! by packets and by the daemon's own account. The audit log has each entry once.
//!
//! `LAZARET_CRASH_ROUNDS` (default 6) and `LAZARET_CRASH_SEED` (default 1). The file system is `lossy`. What is not simulated: the boot clock goes on.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use gateway_user::audit::Head;
use lazaret_tests::{
    differential::random::Random,
    lab::Lab,
    lossy::{Loss, Lost, copies},
    process::until,
    require,
};
use nix::sys::signal::Signal;

use super::{
    judge::{as_stored, durable, reaching, settle},
    kill::{CLIENTS, DEVICES, number},
    load::{Device, Done, Hands, work},
    moments::{each_once, lines},
};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn nothing_answered_is_lost_with_the_power() {
    require!(Root, Bpf, Tun, Fuse);
    let (rounds, seed) = (number("LAZARET_CRASH_ROUNDS", 6), number("LAZARET_CRASH_SEED", 1));
    let mut random = Random::new(seed ^ 0x0070_6f77_6572);
    let mut lab = Lab::new(|g| g.lossy_state()).unwrap();
    let mut clients: Vec<Vec<Device>> = (0..CLIENTS as u8)
        .map(|c| (0..DEVICES).map(|d| Device::new(c * DEVICES + d)).collect())
        .collect();
    let (state, log) = (
        lab.gateway.folder().join("disk/state"),
        lab.gateway.folder().join("disk/audit.jsonl"),
    );
    let (done, mut head, mut total) = (Done::default(), Head::NONE, Lost::default());
    for round in 0..rounds {
        let loss = Loss::random(&mut random);
        let context = format!("seed {seed}, round {round}, {loss:?}");
        let life = Duration::from_millis(20 + random.below(600) as u64);
        // Some in the middle of an orderly end, which brings SQLite's log back into the database.
        let ending = random.once_in(3).then(|| Duration::from_millis(random.below(80) as u64));
        let stop = AtomicBool::new(false);
        let lost = thread::scope(|scope| {
            for (n, devices) in clients.iter_mut().enumerate() {
                let client = Hands::new(&lab.gateway, n);
                let mut random = Random::new(random.word());
                let (stop, done) = (&stop, &done);
                scope.spawn(move || work(&client, devices, &mut random, stop, done));
            }
            thread::sleep(life);
            if let Some(ending) = ending {
                lab.gateway.daemon().unwrap().signal(Signal::SIGTERM).unwrap();
                thread::sleep(ending);
            }
            let lost = lab.gateway.lose_power(loss, &mut random);
            stop.store(true, Ordering::Relaxed);
            lost.unwrap()
        });
        total.writes += lost.writes;
        total.names += lost.names;
        total.gone += lost.gone;

        let stored = as_stored(&state, &mut head, &context);
        for device in clients.iter().flatten() {
            durable(device, &stored, &context);
        }

        lab.boot().unwrap();
        for device in clients.iter_mut().flatten() {
            settle(device, &lab, &context);
        }
        let through = reaching(&lab, &clients);
        for device in clients.iter().flatten() {
            let both = device.addresses.map(|a| through.contains(&a));
            assert_eq!(both, [device.reaches(); 2], "{context}: after the start: {device:?}");
        }
        until(LIMIT, "the audit log has come as far as the store", || {
            Ok(lines(&log, &context).len() as u64 >= head.number)
        })
        .unwrap();
    }
    lab.gateway.stop().unwrap();
    let copy = copies().unwrap();
    for entry in fs::read_dir(&state).unwrap().map(|e| e.unwrap()) {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    let entries = each_once(&log, copy.path(), "at the end");
    let (answered, refused) = (done.answered.into_inner(), done.refused.into_inner());
    println!(
        "{rounds} losses of power, seed {seed}: {answered} changes answered, {refused} refused; not synchronised were {} writes and {} names, \
         of which {} were lost; {entries} entries of the audit",
        total.writes, total.names, total.gone
    );
    assert!(answered > rounds * 2, "there was load: {answered}");
    assert!(rounds < 6 || total.gone > 0, "something was lost: {total:?}");
}
