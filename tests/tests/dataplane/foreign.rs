//! A foreign hand in the pinned maps, beside addresses and sessions: whatever it writes where the daemon alone writes is found, named and put
//! right, and what the daemon writes itself never counts as foreign.

use std::{
    mem::offset_of,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use aya::maps::{Array, HashMap, Map, MapData};
use gateway_ebpf::abi::{self, Control, Policy, VERSION, class_entry, map};
use gateway_user::{
    config::Mode,
    kernel::{Assignment, Kernel, TableDifference},
    model::{BootTime, PoolId, SessionId, prefix},
};
use lazaret_tests::{
    netns::Tun,
    require,
    site::{DEVICE, DEVICE6, MAIL, RESOLVER},
};
use memmap2::{MmapOptions, MmapRaw};

use crate::gateway::{Gateway, QUARANTINE, STAFF};

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 66, 0, 99));
const WHOLE: &str = "fd00:66:0:1::/64";

/// The memory of a pinned map.
pub(crate) struct Memory(MmapRaw);

impl Memory {
    pub(crate) fn of(g: &Gateway, name: &str, len: usize) -> Self {
        let pinned = pinned(g, name);
        Self(MmapOptions::new().len(len).map_raw(&pinned.fd().as_fd()).unwrap())
    }

    pub(crate) fn control(g: &Gateway) -> Self {
        Self::of(g, map::CONTROL, size_of::<Control>())
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.0.len());
        // SAFETY: inside the mapping, which lives as long as `self`; all access to it is by atomics.
        unsafe { AtomicU8::from_ptr(self.0.as_mut_ptr().add(at)) }
    }

    pub(crate) fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at + 4 <= self.0.len() && at.is_multiple_of(4));
        // SAFETY: as in `byte`; a mapping begins at a page.
        unsafe { AtomicU32::from_ptr(self.0.as_mut_ptr().add(at).cast()) }
    }

    pub(crate) fn words(&self, at: usize) -> &AtomicU64 {
        assert!(at + 8 <= self.0.len() && at.is_multiple_of(8));
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().add(at).cast()) }
    }

    pub(crate) fn entry(&self, class: usize) -> &AtomicU64 {
        self.words(offset_of!(Control, classes) + 8 * class)
    }

    /// The first number that means this.
    pub(crate) fn class_of(&self, entry: u64) -> usize {
        let means = |n: &usize| self.entry(*n).load(Ordering::SeqCst) == entry;
        (64..256).find(means).unwrap()
    }
}

fn pinned(g: &Gateway, name: &str) -> MapData {
    MapData::from_pin(g.config.paths.pins.join(format!("v{VERSION}/maps/{name}"))).unwrap()
}

fn compare(g: &mut Gateway) -> Vec<TableDifference> {
    let mut found = Vec::new();
    let mut part = Some(0);
    while let Some(next) = part {
        part = g.live(|l| l.compare_tables(next, &mut found)).unwrap();
    }
    found
}

/// Exactly this was found, and put right; once.
fn found(g: &mut Gateway, subject: &str, words: &str, wanted: &str) {
    let all = compare(g);
    let [one] = &all[..] else { panic!("{subject}: {all:?}") };
    assert!(one.subject.contains(subject) && one.repaired, "{subject}: {one:?}");
    assert!(one.found.contains(words) && one.wanted.contains(wanted), "{subject}: {one:?}");
    assert_ne!(one.found, one.wanted, "{subject}");
    assert_eq!(compare(g), [], "{subject}");
}

fn stage() -> (Gateway, Tun) {
    let pools = "role = \"device\"\npools = [\"quarantine\"]\n";
    let (mut g, tun) = Gateway::tun(|c| {
        c.replace("role = \"device\"\n", pools).replace(
            "prefixes = [\"10.66.0.0/24\", ",
            &format!("prefixes = [\"10.66.0.0/24\", \"{WHOLE}\", "),
        )
    });
    g.open();
    g.assign(DEVICE, QUARANTINE);
    (g, tun)
}

#[test]
fn what_the_daemon_writes_itself_is_not_foreign() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = stage();
    assert_eq!(compare(&mut g), []);
    let (_ring, captures) = g.live(|l| l.captures()).unwrap();
    assert_eq!(compare(&mut g), []);
    let capture = captures.begin();
    g.live(|l| l.set_earliest_lease_end(Some(BootTime(9))));
    g.assign(prefix::parse(WHOLE).unwrap(), STAFF);
    g.assign(DEVICE6, STAFF);
    g.set_links();
    assert_eq!(compare(&mut g), []);
    drop(capture);
    // More combinations than there are classes, so that numbers are given again; and the interface gets another index.
    for n in 0..400_u32 {
        let to = Assignment {
            pool: STAFF,
            session: SessionId(u64::from(n)),
            interface: format!("vpn{n}").parse().unwrap(),
            lease: None,
        };
        g.live(|l| l.assign(HOME, to)).unwrap();
    }
    assert_eq!(compare(&mut g), []);
    drop(tun);
    let _tun = g.make_tun();
    g.set_links();
    assert_eq!(compare(&mut g), []);
    // A restart on the same maps.
    g.live = None;
    g.open();
    assert!(g.live(|l| l.adopted()));
    assert_eq!(compare(&mut g), []);
}

#[test]
fn control_is_put_right_and_the_mode_is_what_the_kernel_has() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = stage();
    assert_eq!(compare(&mut g), []);
    let control = Memory::control(&g);
    let flags = || control.word(offset_of!(Control, flags));
    let before = flags().load(Ordering::SeqCst);

    flags().fetch_or(abi::FLAG_OBSERVE, Ordering::SeqCst);
    assert_eq!(g.live(|l| l.mode()).unwrap(), Mode::Observe);
    found(&mut g, "CONTROL, flags", "observe", "interface pools");
    assert_eq!(g.live(|l| l.mode()).unwrap(), Mode::Enforce);
    flags().store(0, Ordering::SeqCst);
    found(&mut g, "CONTROL, flags", "none", "interface pools");
    // Also what is put right in passing is told of.
    flags().fetch_or(abi::FLAG_OBSERVE | 1 << 20, Ordering::SeqCst);
    g.set_links();
    assert_eq!(flags().load(Ordering::SeqCst), before);
    found(
        &mut g,
        "CONTROL, flags",
        "observe, interface pools, 0x100000",
        "interface pools",
    );

    // Everyone at rest in quarantine, as staff.
    control.entry(1).store(class_entry(STAFF.0, false, 0), Ordering::SeqCst);
    assert!(g.reaches(&tun, HOME, MAIL, 25), "so it matters");
    found(&mut g, "class 1", "pool staff", "pool quarantine, on any interface");
    assert!(!g.reaches(&tun, HOME, MAIL, 25));

    // A class in use: its pool, its lease, its interface.
    let index = tun_index(&mut g);
    let entry = class_entry(QUARANTINE.0, false, index);
    let class = control.class_of(entry);
    for (other, words) in [
        (class_entry(STAFF.0, false, index), "pool staff, interface vpn0"),
        (class_entry(QUARANTINE.0, false, 0), "pool quarantine, on any interface"),
        (class_entry(QUARANTINE.0, false, 9_999), "interface index 9999"),
        (class_entry(QUARANTINE.0, true, index), "leased"),
        (0, "nothing"),
    ] {
        control.entry(class).store(other, Ordering::SeqCst);
        let interface = g.live(|l| l.read(DEVICE)).unwrap().interface;
        let same = other as u32 == index;
        assert_eq!(
            interface.is_some(),
            same,
            "{words}: the interface is the kernel's word, not memory's"
        );
        found(&mut g, &format!("class {class}"), words, "pool quarantine, interface vpn0");
        assert_eq!(control.entry(class).load(Ordering::SeqCst), entry);
    }
    // A number that nobody has.
    control.entry(255).store(class_entry(STAFF.0, false, 0), Ordering::SeqCst);
    found(&mut g, "class 255", "pool staff", "nothing");

    let earliest = || control.words(offset_of!(Control, earliest_lease_end));
    g.live(|l| l.set_earliest_lease_end(Some(BootTime(77))));
    earliest().store(u64::MAX, Ordering::SeqCst);
    found(&mut g, "first end of a lease", "none", "77 ns");
    assert_eq!(earliest().load(Ordering::SeqCst), 77);

    for (at, subject) in [
        (offset_of!(Control, generation), "generation"),
        (offset_of!(Control, hash6_bits), "HASH6"),
        (offset_of!(Control, fragment_bits), "FRAGMENTS"),
        (offset_of!(Control, meta_key), "key of the metadata"),
        (offset_of!(Control, abi), "version"),
        (offset_of!(Control, config_digest), "digest"),
    ] {
        let right = control.word(at).fetch_xor(1, Ordering::SeqCst);
        found(&mut g, subject, "", "");
        assert_eq!(control.word(at).load(Ordering::SeqCst), right, "{subject}");
    }
    assert!(g.reaches(&tun, DEVICE, RESOLVER, 53) && !g.reaches(&tun, DEVICE, MAIL, 25));
}

#[test]
fn homes_policies_and_interfaces_are_put_right() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = stage();
    assert_eq!(compare(&mut g), []);

    // Nobody's home any more: what touches no pool would pass on a core interface.
    let directory = Memory::of(&g, map::DIR4, 2 * 65_536);
    let at = 2 * (10 << 8 | 67);
    let right = directory.byte(at).swap(0, Ordering::SeqCst);
    assert_ne!(right, 0);
    found(&mut g, "DIR4", "", "");
    assert_eq!(directory.byte(at).load(Ordering::SeqCst), right);
    // Everybody's: the bytes that all other /16s share.
    let chunks = Memory::of(&g, map::CHUNKS4, 65_536);
    chunks.byte(5).store(1, Ordering::SeqCst);
    found(&mut g, "*.*.0.5", "class 1", "no class");
    assert_eq!(chunks.byte(5).load(Ordering::SeqCst), 0);
    let homes = Memory::of(&g, map::HOMES6, size_of::<abi::Homes6>());
    homes.words(0).fetch_xor(1, Ordering::SeqCst);
    found(&mut g, "HOMES6", "", "");

    let policies = Memory::of(&g, map::POLICY, 2 * size_of::<Policy>());
    let control = Memory::control(&g);
    for generation in [0, 1] {
        assert_eq!(
            control.word(offset_of!(Control, generation)).load(Ordering::SeqCst),
            generation
        );
        let pool = generation as usize * size_of::<Policy>() + size_of::<abi::PoolPolicy>() * usize::from(QUARANTINE.0);
        policies.word(pool).fetch_or(abi::POOL_ALL, Ordering::SeqCst);
        assert!(g.reaches(&tun, DEVICE, MAIL, 25), "so it matters");
        // It is put right beside what is in force, as any policy is: by one word.
        found(&mut g, "POLICY, policy in force", "from byte 8 on 01", "from byte 8 on 00");
        assert!(!g.reaches(&tun, DEVICE, MAIL, 25) && g.reaches(&tun, DEVICE, RESOLVER, 53));
    }
    let mut ids: Array<MapData, [u64; abi::MAX_RULES]> = Map::Array(pinned(&g, map::RULE_IDS)).try_into().unwrap();
    let mut all = ids.get(&0, 0).unwrap();
    let right = std::mem::replace(&mut all[1], 7);
    ids.set(0, all, 0).unwrap();
    found(&mut g, "RULE_IDS", "", "");
    assert_eq!(ids.get(&0, 0).unwrap()[1], right);

    let mut entries: HashMap<MapData, u32, [u8; 72]> = Map::HashMap(pinned(&g, map::INTERFACES)).try_into().unwrap();
    let index = tun_index(&mut g);
    let right = entries.get(&index, 0).unwrap();
    let mut wide = right;
    wide[..8].copy_from_slice(&u64::MAX.to_ne_bytes());
    entries.insert(index, wide, 0).unwrap();
    found(&mut g, &format!("index {index}"), "0xffffffffffffffff", "pools 0x2");
    assert_eq!(entries.get(&index, 0).unwrap(), right);
    entries.remove(&index).unwrap();
    found(&mut g, &format!("index {index}"), "nothing", "pools 0x2");
    entries.insert(9_999, wide, 0).unwrap();
    found(&mut g, "index 9999", "0xffffffffffffffff", "nothing");
    // In passing, too.
    entries.insert(index, wide, 0).unwrap();
    g.set_links();
    assert_eq!(entries.get(&index, 0).unwrap(), right);
    found(&mut g, &format!("index {index}"), "0xffffffffffffffff", "pools 0x2");
}

/// What is in no pool is nobody's: what a foreign hand puts there goes.
#[test]
fn addresses_outside_pools_lose_what_a_foreign_hand_gave_them() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, _tun) = stage();
    let outside: IpAddr = "10.66.200.1".parse().unwrap();
    let directory = Memory::of(&g, map::DIR4, 2 * 65_536);
    let chunk = usize::from(directory.byte(2 * (10 << 8 | 66)).load(Ordering::SeqCst));
    let chunks = Memory::of(&g, map::CHUNKS4, (chunk + 1) * 65_536);
    let byte = chunks.byte(chunk * 65_536 + (200 << 8 | 1));
    byte.store(1, Ordering::SeqCst);
    let survey = g.live(|l| l.survey(chunk - 1)).unwrap();
    assert!(survey.addresses.contains(&outside), "{survey:?}");
    assert_eq!(g.live(|l| l.read(outside)).unwrap().pool, Some(PoolId(1)));
    g.live(|l| l.clear(outside)).unwrap();
    assert_eq!(
        (byte.load(Ordering::SeqCst), g.live(|l| l.read(outside)).unwrap().pool),
        (0, None)
    );
}

fn tun_index(g: &mut Gateway) -> u32 {
    let all = g.live(|l| l.interfaces()).unwrap();
    all.iter().find(|i| i.name == "vpn0").unwrap().ifindex.unwrap()
}
