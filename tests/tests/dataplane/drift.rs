//! Drift on the real kernel: the controller over the data plane, and a foreign hand in the pinned maps.

use std::{
    mem::offset_of,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
};

use aya::maps::{Array, Map, MapData};
use gateway_ebpf::abi::{Control, FLAG_OBSERVE, VERSION, class_entry, map};
use gateway_user::{
    clock::SystemClock,
    controller::{Acknowledge, Controller, Enforcement, Loaded, Options, Registration, SessionReport, SignalContext, Start},
    kernel::Link,
    links,
    model::{Identity, Role, WallTime, Window},
    store::SqliteStore,
};
use lazaret_tests::{require, site::DEVICE};

use crate::{foreign::Memory, gateway::Gateway};

const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 66, 0, 99));
const NOBODYS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 66, 0, 177));

/// The pinned class bytes of one /16.
struct Classes {
    chunks: Array<MapData, [u8; 65536]>,
    number: u32,
}

impl Classes {
    fn open(g: &Gateway) -> Self {
        let pins = g.config.paths.pins.join(format!("v{VERSION}/maps"));
        let open = |name: &str| Map::Array(MapData::from_pin(pins.join(name)).unwrap());
        let directory: Array<MapData, [u16; 65536]> = open(map::DIR4).try_into().unwrap();
        let number = u32::from(directory.get(&0, 0).unwrap()[10 << 8 | 66]);
        Self {
            chunks: open(map::CHUNKS4).try_into().unwrap(),
            number,
        }
    }

    fn get(&self, address: IpAddr) -> u8 {
        self.chunks.get(&self.number, 0).unwrap()[place(address)]
    }

    /// Behind the daemon's back.
    fn set(&mut self, address: IpAddr, class: u8) {
        let mut all = self.chunks.get(&self.number, 0).unwrap();
        all[place(address)] = class;
        self.chunks.set(self.number, all, 0).unwrap();
    }
}

fn place(address: IpAddr) -> usize {
    let IpAddr::V4(a) = address else { unreachable!("IPv4 only") };
    usize::try_from(u32::from(a) & 0xffff).unwrap()
}

fn context() -> SignalContext {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    SignalContext {
        by: Identity::unlimited(Role::Operator, "test"),
        request: "r-1".parse().unwrap(),
        observed_at: Some(WallTime(i64::try_from(now.as_millis()).unwrap())),
        digest: None,
        acknowledge: Acknowledge::Enforced,
        deadline: std::time::Duration::from_secs(5),
        place: gateway_user::model::Place::default(),
    }
}

async fn connect(controller: &Controller, device: &str, address: IpAddr) {
    let registration = Registration {
        id: device.parse().unwrap(),
        owner: String::new(),
        full_service_pool: Some("staff".parse().unwrap()),
        common_names: Vec::new(),
        certificates: Vec::new(),
        vpn_keys: Vec::new(),
        window: Window::default(),
    };
    controller.register(context(), vec![registration]).await.unwrap();
    let report = SessionReport {
        device_name: device.parse().unwrap(),
        certificate: None,
        vpn_key: None,
        addresses: vec![address],
        interface: "vpn0".parse().unwrap(),
    };
    let opened = controller
        .open_session(context(), "vpn-1".parse().unwrap(), report)
        .await
        .unwrap();
    assert_eq!(opened.first().unwrap().enforcement, Enforcement::Enforced);
}

#[test]
fn what_is_written_into_the_pinned_maps_is_found_and_put_right() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, _tun) = Gateway::tun(|c| c);
    g.open();
    let live = g.live.take().unwrap();
    let (site, config, state) = (g.site.gw.clone(), Arc::new(g.config.clone()), g.scratch.path().join("state"));
    site.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let links: Vec<Link> = links::now().unwrap().into_iter().map(|l| l.link).collect();
            let start = Start {
                loaded: Loaded::read(Box::new(SqliteStore::open(&state).unwrap()), &config).unwrap(),
                config,
                kernel: Box::new(live),
                clock: Box::new(SystemClock::new().unwrap()),
                links,
                options: Options::default(),
            };
            let (controller, mut thread) = Controller::start(start).await.unwrap();
            connect(&controller, "released", DEVICE).await;
            connect(&controller, "held", OTHER).await;
            let applied = controller
                .policy_applied(context(), "released".parse().unwrap(), "r".parse().unwrap(), None)
                .await
                .unwrap();
            assert_eq!(applied.first().unwrap().enforcement, Enforcement::Enforced);
            let clean = controller.check_drift().await.unwrap();
            assert_eq!(clean.found, 0, "{clean:?}");

            let mut classes = Classes::open(&g);
            let [released, held, rest] = [DEVICE, OTHER, NOBODYS].map(|a| classes.get(a));
            assert!(released != held && held != rest);
            for (address, class) in [(DEVICE, rest), (OTHER, released), (NOBODYS, released)] {
                classes.set(address, class);
            }
            controller.check_drift().await.unwrap();
            let found = controller.drift().await.unwrap();
            assert_eq!((found.found, found.repaired), (3, 3), "{found:?}");
            assert_eq!([DEVICE, OTHER, NOBODYS].map(|a| classes.get(a)), [released, held, rest]);
            let held_again = found.last.iter().find(|d| d.subject == OTHER.to_string()).unwrap();
            assert!(
                held_again.found.contains("pool staff") && held_again.wanted.contains("pool quarantine"),
                "{held_again:?}"
            );

            // A class that means nothing, and by itself, without being asked.
            classes.set(OTHER, 200);
            for _ in 0..100 {
                if classes.get(OTHER) == held {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            assert_eq!(classes.get(OTHER), held);
            // What is in use is known again: a class that somebody has is not given to another.
            controller
                .policy_applied(context(), "held".parse().unwrap(), "r".parse().unwrap(), None)
                .await
                .unwrap();
            assert_eq!(classes.get(OTHER), released);

            // What holds for everyone at once, by itself: nothing is denied; everyone in quarantine is judged as staff, at rest and in session.
            let before = controller.drift().await.unwrap();
            let control = Memory::control(&g);
            let flags = control.word(offset_of!(Control, flags));
            let index = links::now()
                .unwrap()
                .iter()
                .find(|l| l.link.name.as_str() == "vpn0")
                .unwrap()
                .link
                .ifindex;
            let held_entry = class_entry(1, false, index);
            let class = control.class_of(held_entry);
            let office = class_entry(2, false, 0);
            control.entry(1).store(office, Ordering::SeqCst);
            control.entry(class).store(office, Ordering::SeqCst);
            flags.fetch_or(FLAG_OBSERVE, Ordering::SeqCst);
            let right = || {
                flags.load(Ordering::SeqCst) & FLAG_OBSERVE == 0
                    && control.entry(1).load(Ordering::SeqCst) == class_entry(1, false, 0)
                    && control.entry(class).load(Ordering::SeqCst) == held_entry
            };
            for _ in 0..100 {
                if right() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            assert!(right());
            let after = controller.drift().await.unwrap();
            assert_eq!(after.found - after.repaired, before.found - before.repaired, "{after:?}");
            assert!(after.found >= before.found + 3, "{after:?}");
            for (subject, found, wanted) in [
                ("CONTROL, flags".to_owned(), "observe", "none"),
                (
                    "CONTROL, class 1".to_owned(),
                    "pool staff, on any interface",
                    "pool quarantine, on any interface",
                ),
                (
                    format!("CONTROL, class {class}"),
                    "pool staff, on any interface",
                    "pool quarantine, interface vpn0",
                ),
            ] {
                let told = after.last.iter().find(|d| d.subject == subject).unwrap();
                assert_eq!(
                    (told.found.as_str(), told.wanted.as_str(), told.repaired),
                    (found, wanted, true)
                );
            }
            let clean = controller.check_drift().await.unwrap();
            assert_eq!(clean.found, 0, "{clean:?}");
            controller.shutdown().await;
            thread.ended().await.unwrap();
        });
    });
}
