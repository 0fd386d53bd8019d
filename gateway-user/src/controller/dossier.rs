//! What is known about a device and what was done: for those who explain it. It explains nothing itself.

use super::{Dossier, Refusal, cause::START, inspect::on_the_wall, writer::Writer};
use crate::{
    audit::{Head, Sealed},
    model::{Device, DeviceId, StateReason},
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
        let changed_by = brought_by(&view.device, &entries_found);
        entries_found.truncate(usize::try_from(entries).unwrap_or(usize::MAX));
        let now = self.clock.now();
        let context = self.context_of(id, now);
        let device = self.registry.device(id).ok_or_else(|| Refusal::UnknownDevice(id.clone()))?;
        let next = transition::due(device, &context).map(|(at, signal)| (on_the_wall(at, &now), word(signal)));
        Ok(Dossier {
            required: self.policies.required_of(device).cloned(),
            publication: self.policies.last().cloned(),
            awaits_wave: self.policies.awaits_wave(device),
            standstill: self.publication().and_then(|p| p.standstill()),
            deadline_at: transition::deadline_end(device, &context).map(|at| on_the_wall(at, &now)),
            next,
            held_back: transition::held_back(device, &context),
            clock_behind: context.clock_behind,
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

/// Who brought a device into its state for the reason that it has, by its entries, newest first. A state may get another reason while it lasts: who
/// is released by an exception gives proof, who is quarantined is revoked.
fn brought_by(device: &Device, entries: &[Sealed]) -> Option<String> {
    let state = device.state.as_str();
    let mut brought = None;
    for entry in entries.iter().map(|s| &s.entry) {
        if entry.after != state || entry.result != "done" {
            continue;
        }
        let entered = entry.before != state;
        if reasons(&entry.action).contains(&device.state_reason) || entered && brought.is_none() {
            brought = Some(entry.by.clone());
            // Of several exceptions the last is the one that holds.
            if entry.action == GRANT {
                break;
            }
        }
        if entered {
            break;
        }
    }
    brought
}

/// An exception is granted.
const GRANT: &str = "GrantException";

/// The reasons that an action gives to a state that it leaves as it is.
fn reasons(action: &str) -> &'static [StateReason] {
    match action {
        "ReportPolicyApplied" => &[StateReason::PolicyApplied],
        "ReportPolicyRevoked" => &[StateReason::PolicyRevoked],
        "OfferPolicy" => &[StateReason::PolicyOffered],
        "DeadlinePassed" => &[StateReason::DeadlinePassed],
        "ExceptionEnded" | "EndException" => &[
            StateReason::ExceptionEnded,
            StateReason::DeadlinePassed,
            StateReason::OutsideWindow,
        ],
        GRANT => &[StateReason::ExceptionRelease, StateReason::ExceptionBlock],
        START => &[StateReason::Restored, StateReason::PoolRemoved],
        _ => &[],
    }
}

const fn word(signal: Signal<'_>) -> &'static str {
    match signal {
        Signal::ExceptionOver => "exception_ended",
        Signal::DeadlinePassed => "deadline_passed",
        _ => "lease_ended",
    }
}
