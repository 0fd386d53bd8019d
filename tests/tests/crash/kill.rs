//! The daemon is killed at random moments under a mixed load of several clients. After each death, before anything runs again: no address
//! is released in the kernel that the store does not release, and every answer holds in both. After the restart the same, by the daemon's
//! own account too.
//!
//! `LAZARET_CRASH_ROUNDS` (default 8) and `LAZARET_CRASH_SEED` (default 1).

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use gateway_user::audit::Head;
use lazaret_tests::{differential::random::Random, lab::Lab, require};

use super::{
    judge::{as_stored, dead, reaching, settle},
    load::{Device, Done, Hands, work},
};

pub(super) const CLIENTS: usize = 4;
pub(super) const DEVICES: u8 = 8;

pub(super) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn nothing_answered_is_lost_and_nothing_is_released_that_the_store_does_not_release() {
    require!(Root, Bpf, Tun);
    let (rounds, seed) = (number("LAZARET_CRASH_ROUNDS", 8), number("LAZARET_CRASH_SEED", 1));
    let mut random = Random::new(seed);
    let mut lab = Lab::new(|_| Ok(())).unwrap();
    let mut clients: Vec<Vec<Device>> = (0..CLIENTS as u8)
        .map(|c| (0..DEVICES).map(|d| Device::new(c * DEVICES + d)).collect())
        .collect();
    let (done, mut head, mut in_doubt) = (Done::default(), Head::NONE, 0);
    for round in 0..rounds {
        let context = format!("seed {seed}, round {round}");
        let life = Duration::from_millis(20 + random.below(600) as u64);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (n, devices) in clients.iter_mut().enumerate() {
                let client = Hands::new(&lab.gateway, n);
                let mut random = Random::new(random.word());
                let (stop, done) = (&stop, &done);
                scope.spawn(move || work(&client, devices, &mut random, stop, done));
            }
            thread::sleep(life);
            lab.gateway.kill().unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        in_doubt += clients.iter().flatten().filter(|d| d.doubt.is_some()).count();

        // Dead: the kernel by what it lets through, the store by its files.
        let through = reaching(&lab, &clients);
        let stored = as_stored(&lab.gateway.folder().join("state"), &mut head, &context);
        for device in clients.iter().flatten() {
            dead(device, &through, &stored, &context);
        }

        lab.restart().unwrap();
        for device in clients.iter_mut().flatten() {
            settle(device, &lab, &context);
        }
        let through = reaching(&lab, &clients);
        for device in clients.iter().flatten() {
            let both = device.addresses.map(|a| through.contains(&a));
            assert_eq!(both, [device.reaches(); 2], "{context}: after the restart: {device:?}");
        }
        if round % 16 == 15 {
            println!("{} deaths survived", round + 1);
            let check = format!("store check --config {}", lab.gateway.config().display());
            lab.gateway.cli(&check).unwrap();
        }
    }
    let (answered, refused) = (done.answered.into_inner(), done.refused.into_inner());
    println!(
        "{rounds} deaths, seed {seed}: {answered} changes answered, {refused} refused, {in_doubt} under way at a death; audit head {head}"
    );
    assert!(answered > rounds * 2, "there was load: {answered}");
    assert!(
        refused * 5 < answered,
        "the load is changes, not refusals: {refused} of {answered}"
    );
    assert!(rounds < 8 || in_doubt > 0, "deaths come in the middle of changes");
}
