//! Every device looked at again: after a start, when another publication is in force, when the clock has come right. What must be so before
//! anything is answered is found at once; the rest comes in slices, with everyone else's turn in between.

use std::time::Instant;

use tracing::warn;

use super::{
    cause::{Cause, START},
    registry::Standing,
    writer::Writer,
};
use crate::{
    model::{Device, DeviceId, Now, SessionId},
    transition::{self, Directory as _, Signal, Step},
};

/// Devices of a slice that only finds their places.
const PLACED: usize = 5_000;
/// Devices of a slice that may commit each of them.
const COMMITTED: usize = 256;

/// How far it has come, and what is done with each device.
#[derive(Clone, Debug, Default)]
pub(super) struct Review {
    after: Option<DeviceId>,
    /// Its place in the publication may be another.
    pub(super) places: bool,
    /// The wall clock has passed the last commit: it is told of a start, and what was held back may hold now.
    pub(super) clock: bool,
}

impl Review {
    /// Another publication is in force.
    pub(super) fn published() -> Self {
        Self {
            places: true,
            ..Self::default()
        }
    }

    const fn most(&self) -> usize {
        if self.clock { COMMITTED } else { PLACED }
    }

    /// The wall clock has passed the last commit.
    pub(super) fn clock_right() -> Self {
        Self {
            places: true,
            clock: true,
            ..Self::default()
        }
    }
}

impl Writer {
    /// Begins anew, with what another review was still to do. A command may be half decided: nothing is settled here.
    pub(super) fn review(&mut self, review: Review) {
        let other = self.reviewing.take().unwrap_or_default();
        let review = Review {
            after: None,
            places: review.places || other.places,
            clock: review.clock || other.clock,
        };
        let at_once = !review.clock;
        self.reviewing = Some(review);
        if at_once {
            self.place_slice();
        }
    }

    /// The next slices, if they may come. Places are found in memory alone, which has already what is yet to be committed: the waves of a
    /// publication do not wait for a start's commits.
    pub(super) fn review_slice(&mut self) {
        let instant = Instant::now();
        if self.reviewing.as_ref().is_some_and(|r| !r.clock) {
            self.place_slice();
        }
        if self.commits_due(instant).is_none_or(|at| at > instant) {
            return;
        }
        if self.taken_over.is_empty() {
            self.place_slice();
        } else {
            self.take_over_slice();
        }
    }

    fn take_over_slice(&mut self) {
        let left = self.taken_over.len().saturating_sub(COMMITTED);
        let slice = self.taken_over.split_off(left);
        self.settle_before(&slice, []);
        let as_it_is = |id: &DeviceId| {
            let device = self.registry.device(id)?.clone();
            Some(Step {
                from: Some(device.state),
                old_uri: Some(device.gateway_uri.clone()),
                device,
                changed: true,
            })
        };
        let steps: Vec<Step> = slice.iter().filter_map(as_it_is).collect();
        self.take_restriction(&steps, &[], Cause::gateway(START));
    }

    fn place_slice(&mut self) {
        // While others are settled the review is under way, and may begin anew by it.
        if let Some(review) = self.reviewing.as_ref().filter(|r| r.clock) {
            let slice = self.slice_of(review);
            self.settle_before(&slice, []);
        }
        let Some(review) = self.reviewing.take() else { return };
        let now = self.clock.now();
        let slice = self.slice_of(&review);
        if review.clock {
            let started = |id| self.started(self.registry.device(id)?, &now);
            let steps: Vec<Step> = slice.iter().filter_map(started).collect();
            self.take_restriction(&steps, &[], Cause::gateway(START));
        }
        if review.places {
            let place = |id: &DeviceId| Some((id.clone(), self.standing(self.registry.device(id)?, &now)));
            let places: Vec<(DeviceId, Standing)> = slice.iter().filter_map(place).collect();
            places.iter().for_each(|(id, standing)| self.registry.stand(id, *standing));
        }
        let clock = review.clock;
        if slice.len() == review.most() {
            self.reviewing = Some(Review {
                after: slice.last().cloned(),
                ..review
            });
        }
        if clock {
            self.enforce(&slice.iter().collect::<Vec<_>>(), &[]);
        }
    }

    fn slice_of(&self, review: &Review) -> Vec<DeviceId> {
        let devices = self.registry.devices_after(review.after.as_ref()).take(review.most());
        devices.map(|d| d.id.clone()).collect()
    }

    /// When the next slice may come.
    pub(super) fn review_due(&self, instant: Instant) -> Option<Instant> {
        let places = self.reviewing.as_ref().is_some_and(|r| !r.clock);
        if places { Some(instant) } else { self.commits_due(instant) }
    }

    /// When the next that commits may come. While nothing can be committed, what is in force and waits for that must not become more and more.
    fn commits_due(&self, instant: Instant) -> Option<Instant> {
        let any = !self.taken_over.is_empty() || self.reviewing.as_ref().is_some_and(|r| r.clock);
        let at = match &self.store_problem {
            None => instant,
            Some(_) if self.pending.is_empty() => self.next_retry,
            // Once that is committed.
            Some(_) => return None,
        };
        any.then_some(at)
    }

    /// Tells devices of the store of the start. Returns what has to be committed before anything is answered: releases that are over, or whose
    /// pools are gone or grant them less now, and GatewayURIs that are others now. The rest is that this boot's clock measures what an earlier
    /// one gave, all of it from this time on; memory has that at once, and the second list is committed in slices.
    pub(super) fn tell_of_start(&self, devices: &mut [Device], now: &Now) -> (Vec<Step>, Vec<DeviceId>) {
        let (mut pressing, mut taken_over) = (Vec::new(), Vec::new());
        for device in devices {
            if !transition::may_change_at_start(device, &self.context_of(&device.id, *now)) {
                continue;
            }
            match self.started(device, now) {
                Some(step) if transition::presses(device, &step, now) => pressing.push(step),
                Some(step) => {
                    taken_over.push(device.id.clone());
                    *device = step.device;
                }
                None => {}
            }
        }
        (pressing, taken_over)
    }

    /// What all devices come to by a signal.
    pub(super) fn all_steps(&self, signal: Signal<'_>, now: &Now) -> Vec<Step> {
        let step = |d: &Device| transition::step(d, signal, &self.context_of(&d.id, *now)).ok();
        let changed = |s: &Step| s.changed;
        self.registry.devices_after(None).filter_map(step).filter(changed).collect()
    }

    /// Sessions for whose addresses the configuration has no pool.
    pub(super) fn homeless(&self) -> Vec<SessionId> {
        let homeless = |s: &&crate::model::Session| s.addresses.iter().any(|a| self.config.home(a).is_none());
        let closing: Vec<SessionId> = self.registry.sessions_after(None).filter(homeless).map(|s| s.id).collect();
        for id in &closing {
            warn!(
                session = id.0,
                "a session ends: the configuration has no pool for one of its addresses"
            );
        }
        closing
    }

    fn started(&self, device: &Device, now: &Now) -> Option<Step> {
        let step = transition::step(device, Signal::Start, &self.context_of(&device.id, *now)).ok();
        step.filter(|s| s.changed)
    }
}
