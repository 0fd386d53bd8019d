//! How many devices there may be within the limits of an MDM that has some: each is a row for ever, of which it must not make as many as it
//! likes. Others may have registered some of them. It registers none itself.

use std::{collections::HashMap, sync::Arc};

use super::{Refusal, Registration, writer::Writer};
use crate::{
    model::{DevicePattern, Scope},
    transition::Directory as _,
};

/// Limits of which the count is known; beyond it all are counted anew.
const KNOWN: usize = 1024;

/// What was counted, so that it need not be counted for each registration. Devices are added to the registry and never taken away but by
/// the undoing of a commit: while there are as many as when it was counted, they are the same.
#[derive(Debug, Default)]
pub(super) struct Quota(HashMap<Patterns, Count>);

pub(super) type Patterns = Arc<[DevicePattern]>;

#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    within: u64,
    /// The devices of the registry, when that was so.
    of: u64,
}

impl Quota {
    /// What was counted before a commit that failed: of that, what was counted of more devices than are left has counted some that are gone.
    pub(super) fn undo(&mut self, before: Vec<(Patterns, Count)>, left: u64) {
        self.0.extend(before);
        self.0.retain(|_, count| count.of <= left);
    }
}

impl Writer {
    /// Whether all that is new in a list may be registered. What was counted for that, if it was.
    ///
    /// # Errors
    /// [`Refusal::DeviceQuota`].
    pub(super) fn within_quota(&mut self, scope: &Scope, list: &[Registration]) -> Result<Option<Count>, Refusal> {
        let Some(patterns) = &scope.devices else { return Ok(None) };
        let new = list.iter().filter(|r| self.registry.device(&r.id).is_none()).count() as u64;
        if new == 0 {
            return Ok(None);
        }
        let (of, most) = (self.registry.device_count(), self.config.devices.limited_mdm);
        let known = self.quota.0.get(patterns).copied().filter(|c| c.of == of);
        let count = known.unwrap_or_else(|| Count {
            within: self.within(scope),
            of,
        });
        if self.quota.0.len() >= KNOWN {
            self.quota.0.clear();
        }
        // As it is found: the list may still be refused.
        self.quota.0.insert(Arc::clone(patterns), count);
        if count.within + new <= u64::from(most) {
            Ok(Some(count))
        } else {
            Err(Refusal::DeviceQuota(most))
        }
    }

    /// So many devices of a scope were registered; until the commit only in memory.
    pub(super) fn count_registered(&mut self, scope: &Scope, found: Option<Count>, new: u64) {
        let (Some(patterns), Some(found)) = (&scope.devices, found) else {
            return;
        };
        let count = Count {
            within: found.within + new,
            of: found.of + new,
        };
        // Others, too, if something was undone meanwhile.
        if count.of == self.registry.device_count() {
            self.undo_count(Arc::clone(patterns), found);
            self.quota.0.insert(Arc::clone(patterns), count);
        }
    }

    fn within(&self, scope: &Scope) -> u64 {
        let (mut within, mut last) = (0, None);
        for beginning in scope.beginnings() {
            let devices = self.registry.devices_from(last, beginning.as_ref());
            for device in devices.take_while(|d| scope.has_device(d.id.as_str())) {
                within += 1;
                last = Some(&device.id);
            }
        }
        within
    }
}
