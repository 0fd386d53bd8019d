//! Two that claim the same, as a source has reported it: what `status` shows of it, and how much goes to the audit, so that one source neither
//! hides what another tells nor fills it. It decides nothing.

use std::collections::VecDeque;

use tracing::warn;

use super::writer::Writer;
use crate::model::{DeviceId, SourceName, WallTime};

/// Conflicts that are remembered; beyond it, the source that has most of them loses its oldest.
const KEPT: usize = 16;
/// The same conflict is told of again after so many milliseconds.
const AGAIN_MS: i64 = 600_000;

/// The last ones, oldest first.
#[derive(Debug, Default)]
pub(super) struct Conflicts(VecDeque<(WallTime, SourceName, String)>);

impl Conflicts {
    /// Those since a time.
    pub(super) fn since(&self, since: WallTime) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(at, ..)| *at >= since)
            .map(|(.., what)| what.as_str())
    }

    /// Whether it is new, or was told of long ago.
    fn put(&mut self, at: WallTime, source: &SourceName, what: &str) -> bool {
        let again = |(told, _, known): &(WallTime, SourceName, String)| known == what && at.0.saturating_sub(told.0) < AGAIN_MS;
        if self.0.iter().any(again) {
            return false;
        }
        if self.0.len() >= KEPT {
            let count = |source: &SourceName| self.0.iter().filter(|(_, s, _)| s == source).count();
            // Of several that have as many, the first one's.
            let oldest = (0..self.0.len())
                .rev()
                .max_by_key(|at| self.0.get(*at).map_or(0, |(_, s, _)| count(s)));
            oldest.map(|at| self.0.remove(at));
        }
        self.0.push_back((at, source.clone(), what.to_owned()));
        true
    }
}

impl Writer {
    /// A conflict, by the rule's name and what it decided: in the log, the status and the audit. A source that reports the same again and again
    /// is noted once in a while.
    pub(super) fn note_conflict(&mut self, rule: &'static str, source: &SourceName, device: Option<&DeviceId>, what: &str) {
        let (at, what) = (self.clock.now().wall, format!("conflict ({rule}): {what}"));
        if self.conflicts.put(at, source, &what) && self.audit.of_conflict((rule, source), device, &what, at) {
            warn!("{what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_hides_nothing_of_another() {
        let [one, many] = ["vpn-1", "vpn-2"].map(|s| s.parse::<SourceName>().unwrap());
        let mut conflicts = Conflicts::default();
        assert!(conflicts.put(WallTime(0), &one, "a"));
        for n in 0..100 {
            assert!(conflicts.put(WallTime(n), &many, &n.to_string()));
        }
        assert!(!conflicts.put(WallTime(99), &one, "a") && !conflicts.put(WallTime(99), &many, "99"));
        let kept: Vec<&str> = conflicts.since(WallTime(0)).collect();
        assert_eq!((kept.len(), kept[0], kept[1], kept[15]), (KEPT, "a", "85", "99"));
        assert_eq!(conflicts.since(WallTime(99)).collect::<Vec<_>>(), ["99"]);
        assert!(conflicts.put(WallTime(AGAIN_MS), &one, "a"), "told of again");
    }
}
