//! The published policy revisions in their order, and which one a device has to prove.

use std::collections::HashMap;

use super::by_exception;
use crate::model::{Device, DeviceState, PolicyRevision, Publication};

/// What the MDM has published, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    published: Vec<Publication>,
    /// Place of the last publication of each revision.
    order: HashMap<PolicyRevision, usize>,
}

impl Policies {
    /// From the store's list, oldest first.
    #[must_use]
    pub fn new(publications: Vec<Publication>) -> Self {
        let mut new = Self::default();
        publications.into_iter().for_each(|p| new.publish(p));
        new
    }

    /// Another revision becomes the last one; or the last one gets other terms. One that was published before comes back as the last.
    pub fn publish(&mut self, publication: Publication) {
        match self.published.last_mut().filter(|last| last.revision == publication.revision) {
            Some(last) => *last = publication,
            None => {
                self.order.insert(publication.revision.clone(), self.published.len());
                self.published.push(publication);
            }
        }
    }

    /// The publication in force.
    #[must_use]
    pub fn last(&self) -> Option<&Publication> {
        self.published.last()
    }

    /// Place of a revision: the later it was published, the greater. `None`: never.
    #[must_use]
    pub fn order(&self, revision: &PolicyRevision) -> Option<usize> {
        self.order.get(revision).copied()
    }

    /// The revision that a device must prove to be released, or go on proving to stay so: the one that it holds, if it is released by
    /// proof, until its wave comes; of any other, the one published last. `None`: any will do.
    #[must_use]
    pub fn required_of<'a>(&'a self, device: &'a Device) -> Option<&'a PolicyRevision> {
        let last = &self.last()?.revision;
        let held = device.policy_revision.as_ref().filter(|_| by_proof(device));
        Some(held.unwrap_or(last))
    }

    /// Whether a device is released by proof of a revision that is not the last one: its wave is to come.
    #[must_use]
    pub fn awaits_wave(&self, device: &Device) -> bool {
        by_proof(device) && self.behind(device)
    }

    /// Whether the last proof of a device, if there was one, is of another revision than the last one.
    #[must_use]
    pub fn behind(&self, device: &Device) -> bool {
        self.last()
            .is_some_and(|last| device.policy_revision.as_ref() != Some(&last.revision))
    }

    /// A revision as it is kept here.
    pub(super) fn known(&self, revision: &PolicyRevision) -> Option<&PolicyRevision> {
        self.order.get_key_value(revision).map(|(known, _)| known)
    }
}

fn by_proof(device: &Device) -> bool {
    device.state == DeviceState::Released && !by_exception(device)
}
