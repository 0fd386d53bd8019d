//! AccessService: how the network API's certificates stand, and the end of a CA.

use std::time::SystemTime;

use lazaret_proto::v1::{self, access_service_server::AccessService};
use prost_types::Timestamp;
use tonic::{Code, Request, Response, Status};

use super::{
    parse::{self, Invalid},
    scope::identity,
    status,
};
use crate::{
    access::{
        answer,
        live::{Access, FinishError},
        report::{CaReport, ClientReport, ListReport, Report},
        roles,
        trust::Dated,
    },
    controller::{Controller, Note},
    model::Fingerprint,
};

/// The service.
#[derive(Debug)]
pub(super) struct Accesses(pub(super) Access, pub(super) Controller);

#[tonic::async_trait]
impl AccessService for Accesses {
    async fn get_access(&self, request: Request<v1::GetAccessRequest>) -> Result<Response<v1::GetAccessResponse>, Status> {
        identity(&request, &self.1).await?;
        Ok(Response::new(rendered(self.0.report().ok_or_else(no_network)?)))
    }

    async fn finish_retirement(
        &self,
        request: Request<v1::FinishRetirementRequest>,
    ) -> Result<Response<v1::FinishRetirementResponse>, Status> {
        let by = identity(&request, &self.1).await?;
        let r = request.into_inner();
        let parsed = || -> Result<(Fingerprint, String), Invalid> {
            let ca = r.ca_sha256.parse().map_err(|e| Invalid::new("ca_sha256", e))?;
            let reason = parse::text("reason", r.reason.clone())?;
            if r.force && reason.trim().is_empty() {
                return Err(Invalid::new("reason", "is required with force"));
            }
            Ok((ca, reason))
        };
        let (ca, reason) = parsed().map_err(|e| status::invalid(&e))?;
        if self.0.report().is_none() {
            return Err(no_network());
        }
        let access = self.0.clone();
        let note = Note {
            by: by.name.clone(),
            action: "FinishRetirement",
            request: String::new(),
            subject: format!("CA {ca}"),
            device: None,
        };
        let words = reason.clone();
        let finished = tokio::task::spawn_blocking(move || access.finish(&ca, r.force, &reason, &by));
        let finished = finished
            .await
            .map_err(|e| answer::status(Code::Internal, "ACCESS_UNAVAILABLE", [], &e.to_string()))?;
        let (after, result) = match &finished {
            Ok(pending) => {
                let how = if r.force { "by force" } else { "not forced" };
                (format!("not trusted; {how}; {pending} client(s) needed it"), "done")
            }
            Err(e) => (String::new(), reason_of(e)),
        };
        let why = match &finished {
            Ok(_) => words,
            Err(e) => answer::escape(&format!("{e}; asked for with the reason {words:?}")),
        };
        let reference = self.1.note(note, ["retiring".to_owned(), after], why, result).await;
        match finished {
            Ok(pending) => Ok(Response::new(v1::FinishRetirementResponse { pending })),
            Err(e) => Err(refused(&e, reference)),
        }
    }
}

fn no_network() -> Status {
    let sentence = "there is no network API: the configuration has no [api]";
    answer::status(Code::FailedPrecondition, "NO_NETWORK_API", [], sentence)
}

fn refused(e: &FinishError, reference: Option<u64>) -> Status {
    let code = match e {
        FinishError::UnknownCa => Code::NotFound,
        FinishError::NotRetiring | FinishError::Pending { .. } | FinishError::NotSure(_) => Code::FailedPrecondition,
        FinishError::NotYet | FinishError::Write(_) => Code::Unavailable,
    };
    let pending = match e {
        FinishError::Pending { pending } => Some(("pending", pending.to_string())),
        _ => None,
    };
    let reference = reference.map(|n| ("reference", format!("A{n}")));
    answer::status(code, reason_of(e), pending.into_iter().chain(reference), &e.to_string())
}

const fn reason_of(e: &FinishError) -> &'static str {
    match e {
        FinishError::UnknownCa => "UNKNOWN_CA",
        FinishError::NotRetiring => "CA_NOT_RETIRING",
        FinishError::Pending { .. } => "CA_IN_USE",
        FinishError::NotSure(_) => "CA_USE_UNKNOWN",
        FinishError::NotYet | FinishError::Write(_) => "ACCESS_UNAVAILABLE",
    }
}

fn rendered(r: Report) -> v1::GetAccessResponse {
    v1::GetAccessResponse {
        server: Some(certificate(r.server)),
        cas: r.cas.into_iter().map(ca).collect(),
        revocation_lists: r.lists.into_iter().map(list).collect(),
        read_at: Some(at(r.read_at)),
        remembered_since: Some(seconds(r.since)),
        incomplete: r.incomplete,
        connections: r.connections as u64,
        warnings: r.warnings,
    }
}

fn ca(ca: CaReport) -> v1::CaStatus {
    v1::CaStatus {
        certificate: Some(certificate(ca.certificate)),
        sha256: ca.fingerprint.to_string(),
        retiring: ca.retiring,
        has_revocation_list: ca.has_list,
        pending: ca.clients.iter().filter(|c| c.pending).count() as u64,
        clients: ca.clients.into_iter().map(client).collect(),
    }
}

fn client(c: ClientReport) -> v1::ClientCertificate {
    v1::ClientCertificate {
        client: answer::escape(&c.seen.client),
        role: roles::name(c.seen.role).to_owned(),
        serial: answer::escape(&c.seen.serial),
        not_after: Some(seconds(c.seen.not_after)),
        first_seen: Some(seconds(c.seen.first_seen)),
        last_seen: Some(seconds(c.seen.last_seen)),
        revoked: c.revoked,
        pending: c.pending,
        due: c.due,
    }
}

fn list(list: ListReport) -> v1::RevocationListStatus {
    v1::RevocationListStatus {
        issuer: list.issuer,
        file: answer::escape(&list.file.display().to_string()),
        this_update: Some(at(list.this_update)),
        next_update: list.next_update.map(at),
        revoked: list.revoked as u64,
    }
}

fn certificate(c: Dated) -> v1::CertificateStatus {
    v1::CertificateStatus {
        subject: c.subject,
        file: answer::escape(&c.file.display().to_string()),
        not_after: Some(at(c.not_after)),
    }
}

fn at(at: SystemTime) -> Timestamp {
    at.into()
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}
