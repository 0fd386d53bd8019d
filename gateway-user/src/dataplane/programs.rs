//! Programs of ours that were found attached, and their tables: held open from one look to the next, so that neither has to be asked for
//! again. What is attached is asked each time, by others; no element of a table is remembered.
//!
//! An id cannot come to mean another program or map while one is held open, and a program keeps the maps that it was loaded with.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use gateway_ebpf::abi::map;

use super::bpf::{self, Map};

/// Tables that say whose policy judges an address: of IPv4, of IPv6, of both.
const TABLES: [&str; 6] = [map::DIR4, map::CHUNKS4, map::HASH6, map::HOMES6, map::COLD, map::CONTROL];

/// A program, held open.
pub(super) struct Held {
    pub(super) id: u32,
    name: String,
    /// In the order of [`TABLES`].
    tables: [Option<Arc<Map>>; TABLES.len()],
    _open: OwnedFd,
}

impl Held {
    /// For addresses of a family: the two tables of classes, COLD and CONTROL. `None`: the program does not have them all.
    pub(super) fn tables(&self, v4: bool) -> Option<[&Map; 4]> {
        let [dir4, chunks4, hash6, homes6, cold, control] = &self.tables;
        let [first, second] = if v4 { [dir4, chunks4] } else { [hash6, homes6] };
        Some([first.as_ref()?, second.as_ref()?, cold.as_ref()?, control.as_ref()?])
    }
}

/// Programs by id.
#[derive(Default)]
pub(super) struct Programs(HashMap<u32, Arc<Held>>);

impl Programs {
    /// The program with this id, if the kernel knows it by this name.
    pub(super) fn named(&mut self, id: u32, name: &str) -> Option<Arc<Held>> {
        if let Some(known) = self.0.get(&id) {
            return (known.name == name).then(|| Arc::clone(known));
        }
        let open = bpf::program_by_id(id).ok()?;
        let info = bpf::program_info(open.as_fd()).ok()?;
        if info.name != name {
            return None;
        }
        let mut tables = [const { None }; TABLES.len()];
        for map in info.maps.iter().filter_map(|id| self.map(*id)) {
            if let Some(place) = TABLES.iter().position(|n| *n == map.info.name) {
                tables[place] = Some(map);
            }
        }
        let program = Arc::new(Held {
            id,
            name: info.name,
            tables,
            _open: open,
        });
        self.0.insert(id, Arc::clone(&program));
        Some(program)
    }

    /// Lets go of all programs but these.
    pub(super) fn keep(&mut self, attached: impl Fn(u32) -> bool) {
        self.0.retain(|id, _| attached(*id));
    }

    /// The programs of a start have their tables in common.
    fn map(&self, id: u32) -> Option<Arc<Map>> {
        let mut held = self.0.values().flat_map(|p| p.tables.iter().flatten());
        if let Some(map) = held.find(|m| m.info.id == id) {
            return Some(Arc::clone(map));
        }
        bpf::map_by_id(id).and_then(Map::new).ok().map(Arc::new)
    }
}
