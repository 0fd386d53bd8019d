//! The publication in force and its waves: which devices become stale, and when. No wave leaves more than `ceiling` connected devices stale,
//! and no more than `rate` become so in any minute. Who is not connected is left alone until it is: stale, it would load nobody now, and
//! arrive together with all others like it. What is urgent has no limits, and takes everyone.

use std::{collections::VecDeque, time::Duration};

use tokio::sync::watch;

use super::{
    PublicationOutcome, PublicationView, Refusal,
    batch::{Decided, Subject},
    cause::{Ask, Cause},
    registry::{Rank, Standing},
    review::Review,
    writer::Writer,
};
use crate::{
    model::{BootTime, Device, DeviceId, DeviceState, Now, PolicyRevision, Publication},
    transition::{self, Context, Signal, Step},
};

/// Devices of one wave at most: what is urgent comes in many of them, with everyone else's turn in between.
const WAVE: usize = 256;
/// Devices that are looked at for one wave at most.
const LOOKED_AT: usize = 20_000;
/// The time over which a rate is measured.
const MINUTE: Duration = Duration::from_secs(60);
/// How often a wave comes that is limited.
const EVERY: Duration = Duration::from_secs(1);
/// After what time without a wave that is said in the status. DM clients ask again every 15 minutes.
const STANDS_STILL: Duration = Duration::from_secs(30 * 60);

/// Where the waves stand.
#[derive(Debug, Default)]
pub(super) struct Waves {
    /// Up to here an urgent publication has looked at all.
    cursor: Option<DeviceId>,
    /// Devices that became stale during the last minute, with when.
    recent: VecDeque<(BootTime, u32)>,
    /// When the next may come.
    next: Option<BootTime>,
    /// See [`PublicationView::full_since`].
    full_since: Option<Now>,
}

impl Writer {
    pub(super) fn publish_policy(
        &mut self,
        ask: Ask<'_>,
        revision: &PolicyRevision,
        ceiling: u32,
        rate: u32,
    ) -> Result<Decided<PublicationOutcome>, Refusal> {
        let before = self.policies.last().cloned();
        if !ask.again {
            let now = self.clock.now();
            let same = before.as_ref().filter(|p| p.revision == *revision);
            let publication = Publication {
                revision: revision.clone(),
                at: same.map_or(now.wall, |p| p.at),
                ceiling,
                rate,
                paused: same.is_some_and(|p| p.paused),
            };
            // Published again, a policy at least says that what a restore has forgotten is known.
            let forgotten = self.forgotten.is_some();
            if before.as_ref() != Some(&publication) || forgotten {
                self.batch.changes.acknowledged |= forgotten;
                self.publish(
                    publication.clone(),
                    [words(before.as_ref()), words(Some(&publication))],
                    ask.cause(),
                );
                if same.is_none() {
                    self.review(Review::published());
                }
                self.waves.next = Some(now.boot);
                self.waves.cursor = None;
            }
        }
        Ok(Self::published())
    }

    pub(super) fn pause_publication(&mut self, ask: Ask<'_>, paused: bool) -> Result<Decided<PublicationOutcome>, Refusal> {
        let before = self.policies.last().cloned().ok_or(Refusal::NothingPublished)?;
        if !ask.again && before.paused != paused {
            let after = Publication {
                paused,
                ..before.clone()
            };
            self.publish(after.clone(), [words(Some(&before)), words(Some(&after))], ask.cause());
            self.waves.next = Some(self.clock.now().boot);
        }
        Ok(Self::published())
    }

    fn published() -> Decided<PublicationOutcome> {
        Decided::new(Subject::Nothing, move |w, settled| {
            settled.durable()?;
            Ok(PublicationOutcome {
                publication: w.publication().ok_or(Refusal::NothingPublished)?,
                revision: w.registry.revision,
            })
        })
    }

    /// The publication in force, as it stands.
    pub(super) fn publication(&self) -> Option<PublicationView> {
        Some(PublicationView {
            publication: self.policies.last()?.clone(),
            progress: self.registry.progress(),
            full_since: self.waves.full_since,
        })
    }

    /// What an operator should know of it.
    pub(super) fn publication_warning(&self) -> Option<String> {
        let view = self.publication()?;
        let since = later(view.full_since?.boot, STANDS_STILL);
        view.standstill().filter(|_| since <= self.clock.now().boot)
    }

    /// The next wave, if it has come.
    pub(super) fn wave(&mut self, now: &Now) {
        if self.reviewing.as_ref().is_some_and(|r| r.places) || self.waves.next.is_none_or(|at| at > now.boot) {
            return;
        }
        let waits = self.registry.progress().waiting > 0;
        let publication = self.policies.last().filter(|p| waits && !p.paused).cloned();
        self.note_full(publication.as_ref(), now);
        let Some(publication) = publication else {
            self.waves.next = None;
            return;
        };
        let room = self.room(&publication, now);
        // A rate is spread over its minute.
        let at_once = if publication.rate == 0 {
            WAVE
        } else {
            publication.rate.div_ceil(60) as usize
        };
        let most = room.min(at_once).min(WAVE);
        let devices = if is_urgent(&publication) {
            self.next_of_all(most)
        } else {
            self.registry.ready(most)
        };
        // As restrictions they must not rest on what the batch only hopes for.
        self.settle_before(&devices, []);
        let steps: Vec<Step> = devices.iter().filter_map(|id| self.step(id, Signal::Stale).ok()).collect();
        let changed = u32::try_from(steps.iter().filter(|s| s.changed).count()).unwrap_or(u32::MAX);
        if changed > 0 {
            self.restrict(&steps, &[], Cause::gateway("PolicyWave").with(publication.revision.as_str()));
            self.waves.recent.push_back((now.boot, changed));
        }
        let more = if is_urgent(&publication) {
            self.waves.cursor.is_some()
        } else {
            changed > 0 && self.registry.progress().ready > 0
        };
        let goes_on = publication.rate == 0 && (changed as usize) < room && more;
        let wait = if goes_on { Duration::ZERO } else { EVERY };
        self.waves.next = Some(later(now.boot, wait));
    }

    /// When the next wave may come.
    pub(super) const fn next_wave(&self) -> Option<BootTime> {
        self.waves.next
    }

    /// Whether there is no room under the ceiling for those whose wave could come, and since when.
    fn note_full(&mut self, publication: Option<&Publication>, now: &Now) {
        let progress = self.registry.progress();
        let full = |p: &Publication| p.ceiling > 0 && progress.ready > 0 && progress.counted >= u64::from(p.ceiling);
        let since = self.waves.full_since.unwrap_or(*now);
        self.waves.full_since = publication.is_some_and(full).then_some(since);
    }

    /// How many may become stale now.
    fn room(&mut self, publication: &Publication, now: &Now) -> usize {
        let minute = |at: BootTime| now.boot.0.saturating_sub(at.0) >= u64::try_from(MINUTE.as_nanos()).unwrap_or(u64::MAX);
        while self.waves.recent.front().is_some_and(|(at, _)| minute(*at)) {
            self.waves.recent.pop_front();
        }
        let recent: u64 = self.waves.recent.iter().map(|(_, n)| u64::from(*n)).sum();
        room(publication, self.registry.progress().counted, recent)
    }

    /// The next devices whose wave is to come, connected or not, in the order of their ids, from where the last wave ended.
    fn next_of_all(&mut self, most: usize) -> Vec<DeviceId> {
        if most == 0 {
            return Vec::new();
        }
        let (mut found, mut looked, mut last) = (Vec::new(), 0, None);
        for device in self.registry.devices_after(self.waves.cursor.as_ref()) {
            looked += 1;
            if self.policies.awaits_wave(device) {
                found.push(device.id.clone());
            }
            if found.len() == most || looked == LOOKED_AT {
                last = Some(device.id.clone());
                break;
            }
        }
        // At the end it begins anew: there may be some before it that were not waiting then.
        self.waves.cursor = last;
        found
    }

    /// Adds a device to memory, or takes the place of what was known of it.
    pub(super) fn put(&mut self, device: Device) {
        let standing = self.standing(&device, &self.clock.now());
        self.registry.put_device(device, standing);
    }

    /// Devices of the store, in the order of their ids.
    pub(super) fn fill(&mut self, devices: Vec<Device>, now: &Now) {
        let standing = |d: Device| {
            let standing = self.standing(&d, now);
            (d, standing)
        };
        let devices = devices.into_iter().map(standing).collect();
        self.registry.fill(devices);
    }

    /// What is kept beside it.
    pub(super) fn standing(&self, device: &Device, now: &Now) -> Standing {
        let context = self.context_of(&device.id, *now);
        let rank = self.rank(device, &context);
        // Where that shuts nobody, it still ends what counts.
        let deadline = || transition::deadline_end(device, &context).filter(|_| rank == Rank::Stale);
        Standing {
            due: transition::due(device, &context).map(|(at, _)| at).or_else(deadline),
            rank,
        }
    }

    fn rank(&self, device: &Device, context: &Context<'_>) -> Rank {
        if self.policies.last().is_none() {
            return Rank::Other;
        }
        let overdue = || transition::deadline_end(device, context).is_some_and(|end| end <= context.now.boot);
        match device.state {
            DeviceState::Released if transition::by_exception(device) => Rank::Excepted,
            DeviceState::Released if self.policies.awaits_wave(device) => Rank::Waiting,
            DeviceState::Released => Rank::Done,
            DeviceState::Stale | DeviceState::PolicyPending if !device.is_stale() => Rank::Other,
            DeviceState::Stale | DeviceState::PolicyPending if overdue() => Rank::Overdue,
            DeviceState::Stale | DeviceState::PolicyPending => Rank::Stale,
            DeviceState::Registered | DeviceState::Quarantined | DeviceState::Blocked | DeviceState::Retired => Rank::Other,
        }
    }

    /// After a restart: what became stale during the last minute counts for the rate, and the waves go on.
    pub(super) fn resume_waves(&mut self, now: &Now) {
        let minute = i64::try_from(MINUTE.as_millis()).unwrap_or(i64::MAX);
        let since = now.wall.0.saturating_sub(minute);
        let recent = |d: &&Device| d.is_stale() && d.state_since.0 >= since;
        let recent = self.registry.devices_after(None).filter(recent).count();
        if recent > 0 {
            self.waves
                .recent
                .push_back((now.boot, u32::try_from(recent).unwrap_or(u32::MAX)));
        }
        self.waves.next = Some(now.boot);
    }

    /// Tells watchers of the publication how far it is, at most once a second.
    pub(super) fn tell_progress(&mut self, now: &Now) {
        if self.next_progress > now.boot || self.progress.receiver_count() == 0 {
            return;
        }
        self.next_progress = later(now.boot, EVERY);
        self.send_progress();
    }

    /// The publication as it stands, now and as it changes.
    pub(super) fn watch_publication(&self) -> watch::Receiver<Option<PublicationView>> {
        self.send_progress();
        self.progress.subscribe()
    }

    fn send_progress(&self) {
        let view = self.publication();
        self.progress.send_if_modified(|held| {
            let changed = *held != view;
            if changed {
                *held = view;
            }
            changed
        });
    }
}

impl PublicationView {
    /// Why no wave comes now although devices wait for theirs, and what to do; `None`: one comes, or nobody waits.
    #[must_use]
    pub fn standstill(&self) -> Option<String> {
        let (publication, progress) = (&self.publication, &self.progress);
        let (revision, ceiling, rate) = (&publication.revision, publication.ceiling, publication.rate);
        if progress.waiting == 0 {
            return None;
        }
        if publication.paused {
            return Some("the publication is paused: lazaret policy resume".to_owned());
        }
        if let Some(since) = self.full_since {
            let (at, twice) = (crate::audit::rfc3339(since.wall), ceiling.saturating_mul(2));
            return Some(format!(
                "no wave since {at}: the ceiling of {ceiling} is full of connected devices that are stale and have not proved revision {revision} \
                 (lazaret devices --state stale, --state policy-pending; lazaret why DEVICE); a place comes free when one proves it, disconnects or \
                 passes its deadline in quarantine; or raise the ceiling: lazaret policy publish {revision} --ceiling {twice} --rate {rate}"
            ));
        }
        (progress.ready == 0 && !is_urgent(publication)).then(|| {
            format!(
                "none of the {} device(s) that wait for their wave is connected: it comes when they are",
                progress.waiting
            )
        })
    }
}

const fn is_urgent(publication: &Publication) -> bool {
    publication.ceiling == 0 && publication.rate == 0
}

/// How many may become stale, where so many count against the ceiling, and so many became stale within the last minute.
fn room(publication: &Publication, counted: u64, recent: u64) -> usize {
    let limited = |limit: u32, used: u64| {
        if limit == 0 {
            u64::MAX
        } else {
            u64::from(limit).saturating_sub(used)
        }
    };
    let room = limited(publication.ceiling, counted).min(limited(publication.rate, recent));
    usize::try_from(room).unwrap_or(usize::MAX)
}

pub(super) fn later(at: BootTime, wait: Duration) -> BootTime {
    BootTime(at.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
}

fn words(publication: Option<&Publication>) -> String {
    publication.map_or_else(String::new, |p| {
        let paused = if p.paused { ", paused" } else { "" };
        format!("{}: ceiling {}, rate {}{paused}", p.revision, p.ceiling, p.rate)
    })
}
