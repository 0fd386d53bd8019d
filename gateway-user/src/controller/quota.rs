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

/// What was counted, so that it need not be counted for each registration.
#[derive(Debug, Default)]
pub(super) struct Quota(HashMap<Arc<[DevicePattern]>, Count>);

#[derive(Clone, Copy, Debug)]
struct Count {
    within: u64,
    /// The devices of the registry, when that was so: while they are as many, it is.
    of: u64,
}

impl Writer {
    /// Whether all that is new in a list may be registered.
    ///
    /// # Errors
    /// [`Refusal::DeviceQuota`].
    pub(super) fn within_quota(&mut self, scope: &Scope, list: &[Registration]) -> Result<(), Refusal> {
        let Some(patterns) = &scope.devices else { return Ok(()) };
        let new = list.iter().filter(|r| self.registry.device(&r.id).is_none()).count() as u64;
        if new == 0 {
            return Ok(());
        }
        let (of, most) = (self.registry.device_count(), self.config.devices.limited_mdm);
        let known = self.quota.0.get(patterns).filter(|c| c.of == of);
        let within = known.map_or_else(|| self.within(scope), |c| c.within);
        let fits = within + new <= u64::from(most);
        if self.quota.0.len() >= KNOWN {
            self.quota.0.clear();
        }
        let added = if fits { new } else { 0 };
        let count = Count {
            within: within + added,
            of: of + added,
        };
        self.quota.0.insert(Arc::clone(patterns), count);
        if fits { Ok(()) } else { Err(Refusal::DeviceQuota(most)) }
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
