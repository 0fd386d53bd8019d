//! Every device looked at again: after a start, when another publication is in force, when the clock has come right. What must be so before
//! anything is answered is found at once; the rest comes in slices, with everyone else's turn in between.

use std::time::Instant;

use tracing::warn;

use super::{
    batch::{Cause, START},
    registry::Standing,
    writer::Writer,
};
use crate::{
    model::{Device, DeviceId, Now, SessionId},
    transition::{self, Directory as _, Signal, Step},
};

/// Devices of a slice that only finds their places.
const PLACED: usize = 5_000;
/// Devices of a slice that may change and commit each of them.
const STEPPED: usize = 256;

/// How far it has come, and what is done with each device.
#[derive(Clone, Debug, Default)]
pub(super) struct Review {
    after: Option<DeviceId>,
    /// Its place in the publication may be another.
    pub(super) places: bool,
    /// It is told of the start.
    steps: bool,
    /// It is put into the kernel: what was held back may hold now.
    pub(super) enforces: bool,
}

impl Review {
    /// Another publication is in force.
    pub(super) const PUBLISHED: Self = Self {
        after: None,
        places: true,
        steps: false,
        enforces: false,
    };
    /// The daemon has started, perhaps in another boot: this boot's clock is to measure what an earlier one gave.
    pub(super) const STARTED: Self = Self {
        steps: true,
        places: false,
        ..Self::PUBLISHED
    };
    /// The wall clock has passed the last commit.
    pub(super) const CLOCK_RIGHT: Self = Self {
        steps: true,
        enforces: true,
        ..Self::PUBLISHED
    };
}

impl Writer {
    /// Begins anew, with what another review was still to do.
    pub(super) fn review(&mut self, review: Review) {
        let other = self.reviewing.take().unwrap_or_default();
        self.reviewing = Some(Review {
            after: None,
            places: review.places || other.places,
            steps: review.steps || other.steps,
            enforces: review.enforces || other.enforces,
        });
        self.review_slice();
    }

    /// The next slice.
    pub(super) fn review_slice(&mut self) {
        let instant = Instant::now();
        if self.review_due(instant).is_none_or(|at| at > instant) {
            return;
        }
        let Some(review) = self.reviewing.take() else { return };
        let now = self.clock.now();
        let most = if review.steps { STEPPED } else { PLACED };
        let devices = self.registry.devices_after(review.after.as_ref()).take(most);
        let slice: Vec<DeviceId> = devices.map(|d| d.id.clone()).collect();
        if review.steps {
            self.settle_before(&slice, []);
            let step = |id| {
                let before = self.registry.device(id)?;
                let step = self.started(before, &now)?;
                Some((transition::presses(before, &step, &now), step))
            };
            let (presses, steps): (Vec<bool>, Vec<Step>) = slice.iter().filter_map(step).unzip();
            self.take_restriction(&steps, &[], Cause::gateway(START));
            let pressing = steps.iter().zip(presses).filter(|(_, presses)| *presses);
            self.enforce(&pressing.map(|(s, _)| &s.device.id).collect::<Vec<_>>(), &[]);
        }
        if review.places {
            let place = |id: &DeviceId| Some((id.clone(), self.standing(self.registry.device(id)?, &now)));
            let places: Vec<(DeviceId, Standing)> = slice.iter().filter_map(place).collect();
            places.iter().for_each(|(id, standing)| self.registry.stand(id, *standing));
        }
        if review.enforces {
            self.enforce(&slice.iter().collect::<Vec<_>>(), &[]);
        }
        if slice.len() == most {
            self.reviewing = Some(Review {
                after: slice.into_iter().last(),
                ..review
            });
        }
    }

    /// When the next slice may come. While nothing can be committed, what is in force and waits for that must not become more and more.
    pub(super) fn review_due(&self, instant: Instant) -> Option<Instant> {
        let waits = |review: &Review| review.steps && self.store_problem.is_some();
        let review = self.reviewing.as_ref()?;
        Some(if waits(review) { self.next_retry } else { instant })
    }

    /// What a start has to put right before anything is answered: releases that are over, or whose pools are gone or grant them less now, and
    /// GatewayURIs that are others now. What else another boot changes, comes with [`Review::STARTED`].
    pub(super) fn pressing(&self, now: &Now) -> Vec<Step> {
        let context = self.context(*now);
        let step = |d: &Device| {
            let step = transition::may_press(d, &context).then(|| self.started(d, now)).flatten()?;
            transition::presses(d, &step, now).then_some(step)
        };
        self.registry.devices_after(None).filter_map(step).collect()
    }

    /// What all devices come to by a signal.
    pub(super) fn all_steps(&self, signal: Signal<'_>, now: &Now) -> Vec<Step> {
        let step = |d: &Device| transition::step(d, signal, &self.context_of(&d.id, *now)).ok();
        let changed = |s: &Step| s.changed;
        self.registry.devices_after(None).filter_map(step).filter(changed).collect()
    }

    /// Sessions for whose addresses the configuration has no pool.
    pub(super) fn homeless(&self) -> Vec<SessionId> {
        let homeless = |s: &&crate::model::Session| s.addresses.iter().any(|a| self.config.home(*a).is_none());
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
