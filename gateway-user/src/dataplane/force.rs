//! Which policies are in force: built beside those that are, switched by one word, with the counters of the rules that stay. What they say
//! is compiled by [`super::policy`].

use std::{
    io,
    os::fd::AsFd,
    sync::atomic::{Ordering, fence},
};

use gateway_ebpf::abi::{self, POLICY_SHADOW, Policy};

use super::{
    bpf,
    maps::Maps,
    numbers::{Digests, Numbers},
    tables::Tables,
};

/// What is to be in force.
pub(super) struct Policies {
    pub(super) enforced: Box<Policy>,
    pub(super) shadow: Option<Box<Policy>>,
    pub(super) numbers: Numbers,
}

/// Where the shadow policy lies in POLICY, bytes.
pub(super) const SHADOW_AT: usize = POLICY_SHADOW as usize * size_of::<Policy>();

/// The digests of the rules that have the numbers.
pub(super) fn rule_ids(maps: &Maps) -> io::Result<Box<Digests>> {
    maps.get(abi::map::RULE_IDS)?.element::<Digests>(0)
}

/// Writes them.
pub(super) fn write_ids(maps: &Maps, ids: &Digests) -> io::Result<()> {
    bpf::update(
        maps.get(abi::map::RULE_IDS)?.fd.as_fd(),
        &0_u32.to_ne_bytes(),
        bpf::bytes_of(ids),
    )
}

/// Waits until no program runs that ran when it was called: programs run inside an RCU read-side section, and this command of
/// membarrier(2) is synchronize_rcu() (Linux 4.3). Where the kernel refuses it (nohz_full), a wait that is longer than any program runs.
pub(super) fn grace() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: a system call without pointers.
    if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } != 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Brings policies into force beside what is: the enforced one by one word. Counters of rules that stay go on.
pub(super) fn switch(tables: &mut Tables, maps: &Maps, policies: &Policies) -> io::Result<()> {
    for number in &policies.numbers.fresh {
        tables.counts.forget(*number);
    }
    // Whatever happens in between, no number that counts is given to another rule.
    write_ids(maps, &policies.numbers.both)?;
    put_in_force(tables, policies);
    write_ids(maps, &policies.numbers.after)
}

/// The policies alone, where they are not in force already.
pub(super) fn put_in_force(tables: &mut Tables, policies: &Policies) {
    let active = tables.generation().load(Ordering::Acquire) as usize & 1;
    let new = bpf::bytes_of(&*policies.enforced);
    if !tables.policy.holds(active * size_of::<Policy>(), new) {
        // A program may still be reading what the last switch replaced.
        grace();
        tables.policy.copy_in((active ^ 1) * size_of::<Policy>(), new);
        fence(Ordering::SeqCst);
        tables.set_generation(active as u32 ^ 1);
        grace();
        tracing::info!("policy changed: generation {} is in force", active ^ 1);
    }
    match &policies.shadow {
        None => tables.flags.set(abi::FLAG_SHADOW, false),
        Some(shadow) => {
            if !tables.policy.holds(SHADOW_AT, bpf::bytes_of(&**shadow)) {
                tables.flags.set(abi::FLAG_SHADOW, false);
                grace();
                tables.policy.copy_in(SHADOW_AT, bpf::bytes_of(&**shadow));
                fence(Ordering::SeqCst);
            }
            tables.flags.set(abi::FLAG_SHADOW, true);
        }
    }
}
