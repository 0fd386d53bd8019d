//! What is known about a device and what was done: for those who explain it. It explains nothing itself.

use super::{Dossier, Refusal, inspect::on_the_wall, writer::Writer};
use crate::{
    audit::{Head, Sealed},
    model::{Device, DeviceId},
    store::AuditQuery,
    transition::{self, Context, Directory as _, Signal},
};

/// Entries of a device among which is looked for who brought it into its state: renewed every hour, those of 40 days.
const LOOKED_AT: u32 = 1_000;
/// Devices of a slice.
const SLICE: usize = 5_000;

impl Writer {
    pub(super) fn dossier(&mut self, id: &DeviceId, entries: u32) -> Result<Dossier, Refusal> {
        let view = self.device(id)?;
        let query = AuditQuery::Before {
            number: None,
            device: Some(id.clone()),
            limit: entries.max(LOOKED_AT),
        };
        let mut entries_found = self.audit_entries(&query)?;
        let state = view.device.state.as_str();
        let led_here = |s: &&Sealed| s.entry.after == state && s.entry.before != state && s.entry.result == "done";
        let changed_by = entries_found.iter().find(led_here).map(|s| s.entry.by.clone());
        entries_found.truncate(usize::try_from(entries).unwrap_or(usize::MAX));
        let now = self.clock.now();
        let context = self.context_of(id, now);
        let device = self.registry.device(id).ok_or_else(|| Refusal::UnknownDevice(id.clone()))?;
        let next = transition::due(device, &context).map(|(at, signal)| (on_the_wall(at, &now), word(signal)));
        Ok(Dossier {
            required: self.policies.required_of(device).cloned(),
            publication: self.policies.last().cloned(),
            awaits_wave: self.policies.awaits_wave(device),
            deadline_at: transition::deadline_end(device, &context).map(|at| on_the_wall(at, &now)),
            next,
            held_back: transition::held_back(device, &context),
            device: view,
            changed_by: changed_by.unwrap_or_default(),
            entries: entries_found,
        })
    }

    /// What waits is committed first, if it can be: whoever has a reference code finds its entry.
    pub(super) fn audit_entries(&mut self, query: &AuditQuery) -> Result<Vec<Sealed>, Refusal> {
        // If it cannot, the store still has those of before.
        let _ = self.flush();
        self.store.audit(query).map_err(|e| Refusal::StoreUnavailable(e.to_string()))
    }

    pub(super) fn audit_head(&mut self) -> Head {
        let _ = self.flush();
        self.audit_head
    }

    /// A slice of all devices; the last that was seen, if there may be more.
    pub(super) fn fold_devices<T>(
        &self,
        folded: &mut T,
        after: Option<&DeviceId>,
        each: &mut impl FnMut(&mut T, &Device, &Context<'_>),
    ) -> Option<DeviceId> {
        let now = self.clock.now();
        let (mut seen, mut last) = (0, None);
        for device in self.registry.devices_after(after).take(SLICE) {
            each(folded, device, &self.context_of(&device.id, now));
            seen += 1;
            last = Some(&device.id);
        }
        last.filter(|_| seen == SLICE).cloned()
    }
}

const fn word(signal: Signal<'_>) -> &'static str {
    match signal {
        Signal::ExceptionOver => "exception_ended",
        Signal::DeadlinePassed => "deadline_passed",
        _ => "lease_ended",
    }
}
