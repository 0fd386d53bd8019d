//! What a foreign hand has written into the tables beside addresses and sessions: CONTROL, where addresses are at home, the policies. All
//! of it is written by this daemon alone, so whatever else is there is foreign, and is put right as it was written last. Flags are
//! [`super::flags`]'s, interfaces [`super::interfaces`]'s, class bytes and sessions the survey's and the controller's.

use std::{net::Ipv4Addr, os::fd::AsFd, sync::atomic::Ordering};

use gateway_ebpf::abi::{Class, ClassEntry, ENTRY_DELEGATED, ENTRY_LEASED, Policy, entry_ifindex, entry_pool, map};

use super::{
    bpf::{self, Map},
    classes::NOWHERE,
    force::{self, Policies, SHADOW_AT},
    layout::CHUNK,
    maps::Maps,
    readback,
    tables::{Tables, system},
};
use crate::{
    kernel::{KernelError, TableDifference},
    model::PoolId,
};

impl Tables {
    /// CONTROL. What ends a release comes first.
    pub(super) fn compare_control(&self, maps: &Maps, all: &mut Vec<TableDifference>) -> Result<(), KernelError> {
        let control = maps.get(map::CONTROL).map_err(|e| system("opening CONTROL", e))?;
        let read = || readback::control(control).map_err(|e| system("reading CONTROL", e));
        let held = read()?;
        all.extend(self.flags.compare());
        let wanted = self.wanted(held.flags);
        if *held == wanted {
            return Ok(());
        }
        let mut found = Vec::new();
        let mut differs = |what: &str, held: String, wanted: String| found.push((what.to_owned(), held, wanted));
        let end = |end: u64| {
            if end == u64::MAX {
                "none".to_owned()
            } else {
                format!("{end} ns of boot")
            }
        };
        if held.earliest_lease_end != wanted.earliest_lease_end {
            let ends = [held.earliest_lease_end, wanted.earliest_lease_end].map(end);
            let [held, wanted] = ends;
            differs("first end of a lease", held, wanted);
        }
        for (class, (held, wanted)) in (0..=Class::MAX).zip(held.classes.iter().zip(&wanted.classes)) {
            if held != wanted {
                differs(&format!("class {class}"), self.entry_words(*held), self.entry_words(*wanted));
            }
        }
        for (what, held, wanted) in [
            ("version", held.abi, wanted.abi),
            ("generation", held.generation, wanted.generation),
            ("size of HASH6", held.hash6_bits, wanted.hash6_bits),
            ("size of FRAGMENTS", held.fragment_bits, wanted.fragment_bits),
        ] {
            if held != wanted {
                differs(what, held.to_string(), wanted.to_string());
            }
        }
        if held.config_digest != wanted.config_digest {
            differs(
                "digest",
                format!("{:016x}", held.config_digest),
                format!("{:016x}", wanted.config_digest),
            );
        }
        if held.meta_key != wanted.meta_key {
            // It is a secret of this daemon and its programs.
            differs("key of the metadata", "another".to_owned(), "ours".to_owned());
        }
        self.write_control(&wanted);
        let after = read()?;
        let repaired = *after == self.wanted(after.flags);
        all.extend(found.into_iter().map(|(what, found, wanted)| TableDifference {
            subject: format!("CONTROL, {what}"),
            found,
            wanted,
            repaired,
        }));
        Ok(())
    }

    /// Where addresses are at home, and the numbers of rules.
    pub(super) fn compare_homes(
        &self,
        maps: &Maps,
        policies: &Policies,
        all: &mut Vec<TableDifference>,
    ) -> Result<(), KernelError> {
        self.compare_outside(all);
        let wanted = [
            (map::DIR4, self.directory()),
            (map::HOMES6, bpf::bytes_of(self.homes6())),
            (map::RULE_IDS, bpf::bytes_of(&*policies.numbers.after)),
        ];
        for (name, wanted) in wanted {
            let mend = |map: &Map| mend_element(map, wanted);
            all.extend(maps.get(name).and_then(mend).map_err(|e| system(name, e))?);
        }
        Ok(())
    }

    /// The bytes that all addresses share whose /16 no pool touches.
    fn compare_outside(&self, all: &mut Vec<TableDifference>) {
        if self.chunks.first_difference(0, &[0; CHUNK]).is_none() {
            return;
        }
        for place in 0..CHUNK {
            let class = self.chunks.byte(place).swap(0, Ordering::SeqCst);
            if class != 0 {
                let [.., upper, lower] = Ipv4Addr::from(place as u32).octets();
                all.push(TableDifference {
                    subject: format!("CHUNKS4, every *.*.{upper}.{lower} outside pools"),
                    found: format!("class {class}"),
                    wanted: "no class".to_owned(),
                    repaired: true,
                });
            }
        }
    }

    /// The policies in force.
    pub(super) fn compare_policies(&mut self, policies: &Policies, all: &mut Vec<TableDifference>) {
        let active = self.generation().load(Ordering::SeqCst) as usize & 1;
        let enforced = ("policy in force", active * size_of::<Policy>(), Some(&policies.enforced));
        let shadow = ("shadow policy", SHADOW_AT, policies.shadow.as_ref());
        let mut found = Vec::new();
        for (what, at, wanted) in [enforced, shadow] {
            let Some(wanted) = wanted.map(|p| bpf::bytes_of(&**p)) else {
                continue;
            };
            if let Some(first) = self.policy.first_difference(at, wanted) {
                let held: [u8; 8] = std::array::from_fn(|i| self.policy.byte(at + first + i).load(Ordering::Relaxed));
                let words = |bytes: &[u8]| format!("from byte {first} on {}", hex(bytes));
                found.push((what, words(&held), words(&wanted[first..first + 8])));
            }
        }
        if found.is_empty() {
            return;
        }
        force::put_in_force(self, policies);
        all.extend(found.into_iter().map(|(what, found, wanted)| TableDifference {
            subject: format!("POLICY, {what}"),
            found,
            wanted,
            repaired: true,
        }));
    }

    fn entry_words(&self, entry: ClassEntry) -> String {
        if entry == 0 {
            return "nothing".to_owned();
        }
        let number = entry_pool(entry);
        let mut words = match self.config().pool_by_id(PoolId(number)) {
            Some(pool) => format!("pool {}", pool.name),
            None => format!("pool number {number}"),
        };
        for (bit, name) in [(ENTRY_LEASED, ", leased"), (ENTRY_DELEGATED, ", of a /64")] {
            if entry & bit != 0 {
                words.push_str(name);
            }
        }
        let index = entry_ifindex(entry);
        words.push_str(&match self.interface_at(index) {
            _ if index == 0 => ", on any interface".to_owned(),
            _ if index == NOWHERE => ", on no interface".to_owned(),
            Some(name) => format!(", interface {name}"),
            None => format!(", interface index {index}"),
        });
        let rest = entry & !(ENTRY_LEASED | ENTRY_DELEGATED | 0x3f << 32 | u64::from(u32::MAX));
        if rest != 0 {
            words.push_str(&format!(", {rest:#x}"));
        }
        words
    }
}

/// The one element of a map.
fn mend_element(map: &Map, wanted: &[u8]) -> std::io::Result<Option<TableDifference>> {
    let index = 0_u32.to_ne_bytes();
    let mut held = vec![0; map.info.value_size as usize];
    bpf::lookup(map.fd.as_fd(), &index, &mut held)?;
    if held == wanted {
        return Ok(None);
    }
    let Some(first) = held.iter().zip(wanted).position(|(h, w)| h != w) else {
        return Ok(None);
    };
    bpf::update(map.fd.as_fd(), &index, wanted)?;
    let words = |bytes: &[u8]| format!("from byte {first} on {}", hex(&bytes[first..bytes.len().min(first + 8)]));
    let difference = TableDifference {
        subject: map.info.name.clone(),
        found: words(&held),
        wanted: words(wanted),
        repaired: true,
    };
    Ok(Some(difference))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
