//! What can be asked of the controller; nothing is changed by it.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use tokio::sync::{oneshot, watch};

use super::{
    AddressView, Controller, Counters, DeviceView, Dossier, DriftView, Figures, PublicationView, Refusal, SessionView, Status,
    Surroundings, UriWatch,
};
use crate::{
    audit::{Head, Sealed},
    kernel::Losses,
    model::{Device, DeviceId, DeviceState, Revision, Scope, SessionId},
    store::AuditQuery,
    transition::Context,
};

impl Controller {
    /// A device.
    ///
    /// # Errors
    /// [`Refusal::UnknownDevice`], [`Refusal::Busy`].
    pub async fn device(&self, device: DeviceId) -> Result<DeviceView, Refusal> {
        self.ask(move |w| w.device(&device)).await?
    }

    /// By id, ascending, after `after`; those of a state, if one is given, and within a scope. In slices, so that nobody waits for it.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn devices(
        &self,
        mut after: Option<DeviceId>,
        limit: u32,
        state: Option<DeviceState>,
        scope: Scope,
    ) -> Result<Vec<DeviceView>, Refusal> {
        let (limit, mut found) = (limit as usize, Vec::new());
        loop {
            let (left, scope) = (limit - found.len(), scope.clone());
            let (views, last) = self.ask(move |w| w.devices(after.as_ref(), left, state, &scope)).await?;
            found.extend(views);
            match last {
                Some(_) if found.len() < limit => after = last,
                _ => return Ok(found),
            }
        }
    }

    /// Changes after a revision that are kept, and those to come. `None`: only those to come. Without those to come there are more that are kept:
    /// ask again after the last one's revision. A watcher that falls more than 4,096 changes behind gets a lag error from the receiver and has to
    /// ask again, too.
    ///
    /// # Errors
    /// [`Refusal::RevisionTooOld`], [`Refusal::StoreUnavailable`], [`Refusal::Busy`].
    pub async fn watch_gateway_uris(&self, after: Option<Revision>) -> Result<UriWatch, Refusal> {
        self.ask(move |w| w.watch(after)).await?
    }

    /// By id, ascending, after `after`.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn sessions(&self, after: Option<SessionId>, limit: u32) -> Result<Vec<SessionView>, Refusal> {
        self.ask(move |w| w.sessions(after, limit)).await
    }

    /// How the gateway stands.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn status(&self) -> Result<Status, Refusal> {
        // In a thread of its own: whoever holds the kernel's lock of interfaces or rules holds up nobody but this caller.
        let standing = self.keeper.standing().await;
        self.ask(move |w| w.status(&standing)).await
    }

    /// Figures for metrics.
    ///
    /// # Errors
    /// [`Refusal::Kernel`], [`Refusal::Busy`].
    pub async fn figures(&self) -> Result<Figures, Refusal> {
        let standing = self.keeper.standing().await;
        self.ask(move |w| w.figures(&standing)).await?
    }

    /// One, or those of live sessions after a session, whole sessions, until there are `limit` or more; and the last of these sessions, if
    /// there are others after it.
    ///
    /// # Errors
    /// [`Refusal::Kernel`], [`Refusal::Busy`].
    pub async fn addresses(
        &self,
        address: Option<IpAddr>,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<(Vec<AddressView>, Option<SessionId>), Refusal> {
        self.ask(move |w| w.addresses(address, after, limit)).await?
    }

    /// What is known around a packet between these addresses.
    ///
    /// # Errors
    /// [`Refusal::Kernel`], [`Refusal::Busy`].
    pub async fn surroundings(&self, ends: Vec<IpAddr>) -> Result<Surroundings, Refusal> {
        let states = self.keeper.interfaces().await;
        let states = states.map_err(|e| Refusal::Kernel(e.to_string()))?;
        self.ask(move |w| w.surroundings(&ends, &states)).await?
    }

    /// The devices of the live sessions that hold these addresses.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn holders(&self, addresses: Vec<IpAddr>) -> Result<HashMap<IpAddr, DeviceId>, Refusal> {
        self.ask(move |w| w.holders(&addresses)).await
    }

    /// What the programs counted.
    ///
    /// # Errors
    /// [`Refusal::Kernel`], [`Refusal::Busy`].
    pub async fn counters(&self) -> Result<Counters, Refusal> {
        self.ask(|w| w.counters()).await?
    }

    /// Denials and captured packets that were not told of.
    ///
    /// # Errors
    /// [`Refusal::Kernel`], [`Refusal::Busy`].
    pub async fn losses(&self) -> Result<Losses, Refusal> {
        self.ask(|w| w.losses()).await?
    }

    /// The publication in force, as it stands.
    ///
    /// # Errors
    /// [`Refusal::NothingPublished`], [`Refusal::Busy`].
    pub async fn publication(&self) -> Result<PublicationView, Refusal> {
        self.ask(|w| w.publication()).await?.ok_or(Refusal::NothingPublished)
    }

    /// The same, now and as it changes, at most once a second. `None`: nothing is published.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn watch_publication(&self) -> Result<watch::Receiver<Option<PublicationView>>, Refusal> {
        self.ask(|w| w.watch_publication()).await
    }

    /// What the comparison of memory and kernel has found since the start.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn drift(&self) -> Result<DriftView, Refusal> {
        self.ask(|w| w.drift()).await
    }

    /// Compares everything now, and puts right what differs; what was found by that.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn check_drift(&self) -> Result<DriftView, Refusal> {
        let (to, found) = oneshot::channel();
        self.ask(|w| w.ask_drift(to)).await?;
        found.await.map_err(|_| Refusal::Busy)
    }

    /// What is known about a device, with its last entries of the audit.
    ///
    /// # Errors
    /// [`Refusal::UnknownDevice`], [`Refusal::StoreUnavailable`], [`Refusal::Busy`].
    pub async fn dossier(&self, device: DeviceId, entries: u32) -> Result<Dossier, Refusal> {
        self.ask(move |w| w.dossier(&device, entries)).await?
    }

    /// Entries of the audit, those included that wait for a commit.
    ///
    /// # Errors
    /// [`Refusal::StoreUnavailable`], [`Refusal::Busy`].
    pub async fn audit(&self, query: AuditQuery) -> Result<Vec<Sealed>, Refusal> {
        self.ask(move |w| w.audit_entries(&query)).await?
    }

    /// The audit's last entry; [`Head::NONE`]: it has none.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn audit_head(&self) -> Result<Head, Refusal> {
        self.ask(|w| w.audit_head()).await
    }

    /// Goes over all devices in the order of their ids, in slices, so that nobody waits for it: what changes meanwhile may be seen before or
    /// after. `each` gets every device with what decides about it.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn fold_devices<T: Send + 'static>(
        &self,
        folded: T,
        each: impl FnMut(&mut T, &Device, &Context<'_>) + Clone + Send + 'static,
    ) -> Result<T, Refusal> {
        self.fold_devices_at_rest(Duration::ZERO, folded, each).await
    }

    /// The same, with a rest after each slice.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn fold_devices_at_rest<T: Send + 'static>(
        &self,
        rest: Duration,
        mut folded: T,
        each: impl FnMut(&mut T, &Device, &Context<'_>) + Clone + Send + 'static,
    ) -> Result<T, Refusal> {
        let mut after = None;
        loop {
            let mut each = each.clone();
            let (out, last) = self
                .ask(move |w| {
                    let last = w.fold_devices(&mut folded, after.as_ref(), &mut each);
                    (folded, last)
                })
                .await?;
            folded = out;
            match last {
                Some(_) => after = last,
                None => return Ok(folded),
            }
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
            }
        }
    }
}
