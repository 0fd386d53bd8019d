//! What is a source's own: the interfaces on which its sessions are, and their addresses. What the configuration lists for one is its alone; an
//! interface that nobody lists is that source's whose live sessions are on it. One VPN server's word says nothing of another's clients.

use super::{Refusal, SessionReport, writer::Writer};
use crate::{
    config::NotIts,
    model::{Identity, Session, SessionId, SourceName},
};

impl Writer {
    /// Whether a source may have a session on this interface, with these addresses. Whoever may speak for the source that has the interface by its
    /// sessions alone is not refused for it: it is one server, under another name, or several that are trusted alike.
    pub(super) fn may_report(&mut self, by: &Identity, source: &SourceName, report: &SessionReport) -> Result<(), Refusal> {
        let owner = match self.config.may_be_on(source, &report.interface) {
            Ok(true) => None,
            Ok(false) => {
                let others = self.registry.sources_on(&report.interface).filter(|s| *s != source);
                others
                    .into_iter()
                    .find(|s| !by.scope.has_source(s.as_str()))
                    .cloned()
                    .map(Some)
            }
            Err(NotIts(owner)) => Some(owner),
        };
        if let Some(owner) = owner {
            let refusal = Refusal::SourceInterface {
                interface: report.interface.clone(),
                source_name: source.clone(),
            };
            self.note_trespass("source-interface", source, owner.as_ref(), &refusal);
            return Err(refusal);
        }
        for address in &report.addresses {
            if let Err(NotIts(owner)) = self.config.may_have(source, *address) {
                let refusal = Refusal::SourcePrefix {
                    address: *address,
                    source_name: source.clone(),
                };
                self.note_trespass("source-prefix", source, owner.as_ref(), &refusal);
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Operators are told whose it is; the caller is not.
    fn note_trespass(&mut self, rule: &'static str, source: &SourceName, owner: Option<&SourceName>, refusal: &Refusal) {
        let what = match owner {
            Some(owner) => format!("{refusal}: it is source {owner}'s"),
            None => refusal.to_string(),
        };
        self.note_conflict(rule, source, None, &what);
    }

    /// Live sessions that the configuration, as it is now, lets their sources no longer have.
    pub(super) fn misplaced(&self) -> Vec<SessionId> {
        let mut found = Vec::new();
        if self.config.sources.is_empty() {
            return found;
        }
        for session in self.registry.sessions_after(None).filter(|s| self.is_misplaced(s)) {
            tracing::warn!(
                session = session.id.0,
                source = %session.source,
                interface = %session.interface,
                "a session ends: the configuration has its interface or an address for another source, or other ones for its own ([[source]])"
            );
            found.push(session.id);
        }
        found
    }

    fn is_misplaced(&self, session: &Session) -> bool {
        self.config.may_be_on(&session.source, &session.interface).is_err()
            || session
                .addresses
                .iter()
                .any(|a| self.config.may_have(&session.source, a).is_err())
    }
}
