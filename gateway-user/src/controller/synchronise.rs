//! The whole list of a source's sessions, which may have tens of thousands: taken in slices, between which restrictions and everyone else
//! get their turn. What the list does not have ends first; then what is new opens. A session that the source opens by itself meanwhile is
//! younger than the list, and stays.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use super::{
    Answer, Refusal, Refused, SessionReport, SignalContext, SynchroniseOutcome,
    batch::{Decided, Subject},
    cause::{About, Ask, Cause},
    requests::Before,
    sessions::Admitted,
    writer::Writer,
};
use crate::model::{DeviceId, SessionId, SourceName};

const ACTION: &str = "SynchroniseSessions";
/// Reports, or sessions, of a slice.
const SLICE: usize = 256;
/// Lists that may wait: each may have megabytes.
const WAITING: usize = 16;
/// Of these, lists of one client: it keeps nobody's from being heard of in time.
const OF_ONE: usize = WAITING / 4;

/// What a caller waits for.
type Outcome = Result<Answer<SynchroniseOutcome>, Refused>;

/// A list that is being worked off.
pub(super) struct Synchronise {
    context: SignalContext,
    source: SourceName,
    /// It is worked off to its end, whoever waits for it.
    begun: bool,
    /// Sessions from this number on are younger than the list.
    until: SessionId,
    /// Not looked at yet.
    reports: std::iter::Peekable<std::vec::IntoIter<(u32, SessionReport)>>,
    new: Vec<(u32, SessionReport)>,
    kept: BTreeSet<SessionId>,
    /// To be ended, once all are looked at.
    ending: Option<std::vec::IntoIter<SessionId>>,
    opening: Option<std::vec::IntoIter<(u32, SessionReport)>>,
    opened: Vec<(u32, SessionId)>,
    ended: u32,
    refused: Vec<(u32, Refused)>,
    to: oneshot::Sender<Outcome>,
}

impl Synchronise {
    /// Whether it is this request's.
    fn is(&self, context: &SignalContext) -> bool {
        context.digest.is_some()
            && (&self.context.request, self.context.digest) == (&context.request, context.digest)
            && self.context.by.requester() == context.by.requester()
    }
}

impl Writer {
    /// Puts a list in line.
    pub(super) fn synchronise(
        &mut self,
        context: SignalContext,
        source: SourceName,
        reports: Vec<SessionReport>,
        to: oneshot::Sender<Outcome>,
    ) {
        // Who waits no longer asks again, or tells of what is so then.
        self.lists.retain(|list| list.begun || !list.to.is_closed());
        // An old list again must not end what has opened since.
        let before = self.asked_before(&context);
        let until = match self.known_list(&context) {
            Some(_) if self.lists.iter().any(|list| list.is(&context)) => return refuse(to),
            Some(until) if matches!(before, Ok(Before::UnderWay(_))) => until,
            _ if matches!(before, Ok(Before::Never)) => {
                self.heard_of(&source);
                self.registry.next_session_id()
            }
            _ => return self.as_it_is(&context, source, to),
        };
        // Refused for room, too: asked again it is no younger.
        self.remember_list(&context, until);
        let client = context.by.requester();
        let own = self.lists.iter().filter(|list| list.context.by.requester() == client).count();
        if own >= OF_ONE || self.lists.len() >= WAITING {
            return refuse(to);
        }
        let reports: Vec<(u32, SessionReport)> = (0..).zip(reports).collect();
        self.lists.push_back(Synchronise {
            context,
            source,
            begun: false,
            until,
            reports: reports.into_iter().peekable(),
            new: Vec::new(),
            kept: BTreeSet::new(),
            ending: None,
            opening: None,
            opened: Vec::new(),
            ended: 0,
            refused: Vec::new(),
            to,
        });
    }

    /// One slice of the list that came first.
    pub(super) fn slice(&mut self) {
        let Some(mut list) = self.lists.pop_front() else { return };
        if !list.begun && list.to.is_closed() {
            return;
        }
        list.begun = true;
        if self.advance(&mut list) {
            self.finish_list(list);
        } else {
            self.lists.push_front(list);
        }
    }

    /// Whether it is at its end.
    fn advance(&mut self, list: &mut Synchronise) -> bool {
        if list.reports.peek().is_some() {
            for (index, report) in list.reports.by_ref().take(SLICE) {
                match self.identify(&report) {
                    Ok(device) => match self.same(device, &list.source, &report).filter(|id| list.kept.insert(*id)) {
                        Some(_) => {}
                        None => list.new.push((index, report)),
                    },
                    Err(refusal) => {
                        let refused = self.refuse_report(refusal, &list.context, &list.source, Some(report.device_name));
                        list.refused.push((index, refused));
                    }
                }
            }
            return false;
        }
        let ending = list.ending.get_or_insert_with(|| {
            let old = self.registry.sessions_of_source(&list.source);
            let over = old.filter(|s| s.id < list.until && !list.kept.contains(&s.id)).map(|s| s.id);
            over.collect::<Vec<_>>().into_iter()
        });
        let slice: Vec<SessionId> = ending.by_ref().take(SLICE).collect();
        if !slice.is_empty() {
            let live = slice.iter().filter(|id| self.registry.session(**id).is_some()).count();
            list.ended += u32::try_from(live).unwrap_or(u32::MAX);
            self.end_sessions(&slice, Cause::of(&list.context, ACTION));
            return false;
        }
        let opening = list.opening.get_or_insert_with(|| std::mem::take(&mut list.new).into_iter());
        let slice: Vec<(u32, SessionReport)> = opening.by_ref().take(SLICE).collect();
        if slice.is_empty() {
            return true;
        }
        let addresses: Vec<_> = slice.iter().flat_map(|(_, r)| r.addresses.iter().copied()).collect();
        self.settle_holders(&addresses);
        let mut admitted = Admitted::default();
        for (index, report) in slice {
            // What is left of this source's sessions is in the list: it is not ended for another line of the same list.
            let name = report.device_name.clone();
            let cause = Cause::of(&list.context, ACTION);
            let admit = |w: &mut Self| {
                w.may_report(&list.context.by, &list.source, &report)?;
                w.admit(&mut admitted, index, &list.source, report, &list.kept, cause)
            };
            if let Err(refusal) = admit(self) {
                let refused = self.refuse_report(refusal, &list.context, &list.source, Some(name));
                list.refused.push((index, refused));
            }
        }
        let (opened, refused) = self.stage(admitted, Cause::of(&list.context, ACTION));
        for (index, refusal) in refused {
            let refused = self.refuse_report(refusal, &list.context, &list.source, None);
            list.refused.push((index, refused));
        }
        list.kept.extend(opened.iter().map(|(_, id)| *id));
        list.opened.extend(opened);
        false
    }

    fn refuse_report(
        &mut self,
        refusal: Refusal,
        context: &SignalContext,
        source: &SourceName,
        name: Option<DeviceId>,
    ) -> Refused {
        let about = About {
            device: name,
            subject: format!("session of {source}"),
            ..About::default()
        };
        self.refuse_part(refusal, Cause::of(context, ACTION), &about)
    }

    fn as_it_is(&mut self, context: &SignalContext, source: SourceName, to: oneshot::Sender<Outcome>) {
        let kept = self.registry.sessions_of_source(&source).count();
        let decide = move |_: &mut Self, _: Ask<'_>| {
            Ok(Decided::new(Subject::Nothing, move |w: &mut Self, _| {
                Ok(SynchroniseOutcome {
                    opened: 0,
                    kept: u32::try_from(kept).unwrap_or(u32::MAX),
                    ended: 0,
                    refused: Vec::new(),
                    revision: w.registry.revision,
                })
            }))
        };
        self.command(context, ACTION, About::subject(source), decide, to);
    }

    /// Sessions that did not open are those that are not live now: their commit failed, or something has ended them since.
    fn finish_list(&mut self, list: Synchronise) {
        let Synchronise {
            context,
            source,
            kept,
            opened,
            ended,
            mut refused,
            to,
            ..
        } = list;
        let kept = kept.len() - opened.len();
        let (owned, from) = (context.clone(), source.clone());
        // From here on it is a change, remembered as any other.
        self.forget(&context);
        let decide = move |_: &mut Self, _: Ask<'_>| {
            Ok(Decided::new(Subject::Nothing, move |w: &mut Self, settled| {
                let problem = settled.failed.or_else(|| w.store_problem.clone());
                let failed = || problem.clone().map_or(Refusal::Busy, Refusal::StoreUnavailable);
                let (live, gone): (Vec<_>, Vec<_>) = opened.into_iter().partition(|(_, id)| w.registry.session(*id).is_some());
                for (index, _) in gone {
                    refused.push((index, w.refuse_report(failed(), &owned, &from, None)));
                }
                refused.sort_by_key(|(index, _)| *index);
                Ok(SynchroniseOutcome {
                    opened: u32::try_from(live.len()).unwrap_or(u32::MAX),
                    kept: u32::try_from(kept).unwrap_or(u32::MAX),
                    ended,
                    refused,
                    revision: w.registry.revision,
                })
            }))
        };
        self.command(&context, ACTION, About::subject(source), decide, to);
    }
}

/// The same list is under way, or too many are: it is tried again. That the caller is gone by then is fine.
fn refuse(to: oneshot::Sender<Outcome>) {
    drop(to.send(Err(Refusal::Busy.into())));
}
