//! The flags of CONTROL. Several threads set them, each its own bits; who sets one says so here, so that what a foreign hand has set or
//! cleared is known as such. What the bits mean is in `gateway_ebpf::abi`.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use gateway_ebpf::abi::{self, Control, map};

use super::{mapping::Mapping, maps::Maps};
use crate::kernel::TableDifference;

/// The word, mapped, and what it was last set to.
pub(super) struct Flags {
    control: Mapping,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    /// `None`: the word is as an earlier process, or nobody, left it.
    wanted: Option<u32>,
    /// Put right in passing, and not told of yet.
    found: Vec<TableDifference>,
}

impl Flags {
    pub(super) fn new(maps: &Maps) -> io::Result<Self> {
        Ok(Self {
            control: Mapping::new(maps.get(map::CONTROL)?, size_of::<Control>())?,
            said: Mutex::default(),
        })
    }

    /// As they are in force.
    pub(super) fn now(&self) -> u32 {
        self.word().load(Ordering::SeqCst)
    }

    /// Sets all of them: from here on every other hand is a foreign one.
    pub(super) fn begin(&self, flags: u32) {
        let mut said = self.said();
        if self.now() & !flags & abi::FLAG_CAPTURE != 0 {
            tracing::warn!(
                "a capture outlived the daemon that it was for: each denied packet was copied for nobody; it is ended"
            );
        }
        self.word().store(flags, Ordering::SeqCst);
        said.wanted = Some(flags);
    }

    /// Sets or clears one.
    pub(super) fn set(&self, flag: u32, on: bool) {
        let mut said = self.said();
        self.mend(&mut said);
        if on {
            self.word().fetch_or(flag, Ordering::SeqCst);
        } else {
            self.word().fetch_and(!flag, Ordering::SeqCst);
        }
        said.wanted = said.wanted.map(|w| if on { w | flag } else { w & !flag });
    }

    /// Puts right what a foreign hand has changed; what it was, since the last call.
    pub(super) fn compare(&self) -> Vec<TableDifference> {
        let mut said = self.said();
        self.mend(&mut said);
        std::mem::take(&mut said.found)
    }

    fn mend(&self, said: &mut Said) {
        let Some(wanted) = said.wanted else { return };
        let held = self.now();
        if held != wanted {
            self.word().store(wanted, Ordering::SeqCst);
            said.found.push(TableDifference {
                subject: "CONTROL, flags".to_owned(),
                found: words(held),
                wanted: words(wanted),
                repaired: self.now() == wanted,
            });
        }
    }

    fn word(&self) -> &AtomicU32 {
        self.control.word32(std::mem::offset_of!(Control, flags))
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn words(flags: u32) -> String {
    const NAMES: [(u32, &str); 5] = [
        (abi::FLAG_OBSERVE, "observe"),
        (abi::FLAG_INTERFACE_POOLS, "interface pools"),
        (abi::FLAG_SHADOW, "shadow"),
        (abi::FLAG_CAPTURE, "capture"),
        (abi::FLAG_DELEGATED, "delegated"),
    ];
    let mut all: Vec<String> = NAMES
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    let rest = NAMES.iter().fold(flags, |rest, (bit, _)| rest & !bit);
    if rest != 0 {
        all.push(format!("{rest:#x}"));
    }
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_named_and_unknown_ones_shown() {
        assert_eq!(words(0), "none");
        assert_eq!(
            words(abi::FLAG_OBSERVE | abi::FLAG_DELEGATED | 0x4000),
            "observe, delegated, 0x4000"
        );
    }
}
