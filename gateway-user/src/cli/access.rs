//! `lazaret pki status` and `lazaret pki finish-retirement`: what the daemon says of the network API's certificates.

use std::path::PathBuf;

use clap::Args;
use lazaret_proto::v1;
use serde_json::{Value, json};

use super::{
    Outcome,
    args::Connection,
    client::Failure,
    commands::{connect, print},
    json::{text_of, time},
    table::{Cell, Page, Tone, toned},
};
use crate::model::Fingerprint;

#[derive(Debug, Args)]
pub(super) struct FinishArgs {
    /// The retiring CA: SHA-256 of its certificate as `lazaret pki status` shows it, or the file of its certificate
    #[arg(value_name = "CA")]
    pub(super) ca: String,
    /// Although clients still need it; their connections are closed
    #[arg(long, requires = "reason")]
    pub(super) force: bool,
    /// Why; at most 256 characters
    #[arg(long)]
    pub(super) reason: Option<String>,
    #[command(flatten)]
    pub(super) connection: Connection,
}

pub(super) async fn status(c: &Connection) -> Result<Outcome, Failure> {
    let client = connect(c).await?;
    let answer = client.answer(client.access().get_access(v1::GetAccessRequest {})).await?;
    print(c, || as_json(&answer), |page| shown(page, &answer))
}

pub(super) async fn finish(a: &FinishArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::FinishRetirementRequest {
        ca_sha256: fingerprint(&a.ca)?.to_string(),
        force: a.force,
        reason: a.reason.clone().unwrap_or_default(),
    };
    let answer = client.answer(client.access().finish_retirement(request)).await?;
    let as_json = || json!({ "pending": answer.pending });
    print(&a.connection, as_json, |page| {
        page.line("The CA is no longer trusted. Take its file out of api.retiring_ca.");
    })
}

fn fingerprint(text: &str) -> Result<Fingerprint, Failure> {
    if let Ok(fingerprint) = text.parse() {
        return Ok(fingerprint);
    }
    let path = PathBuf::from(text);
    crate::access::trust::fingerprint_of(&path).map_err(|e| Failure::Local(e.to_string()))
}

fn as_json(a: &v1::GetAccessResponse) -> Value {
    let certificate = |c: &Option<v1::CertificateStatus>| {
        let c = c.clone().unwrap_or_default();
        json!({ "subject": c.subject, "file": c.file, "not_after": time(c.not_after.as_ref()) })
    };
    let client = |c: &v1::ClientCertificate| {
        json!({
            "client": c.client, "role": c.role, "serial": c.serial, "not_after": time(c.not_after.as_ref()),
            "first_seen": time(c.first_seen.as_ref()), "last_seen": time(c.last_seen.as_ref()),
            "revoked": c.revoked, "pending": c.pending, "due": c.due,
        })
    };
    let ca = |ca: &v1::CaStatus| {
        json!({
            "certificate": certificate(&ca.certificate), "sha256": ca.sha256, "retiring": ca.retiring,
            "has_revocation_list": ca.has_revocation_list, "pending": ca.pending,
            "clients": ca.clients.iter().map(client).collect::<Vec<_>>(),
        })
    };
    let list = |l: &v1::RevocationListStatus| {
        json!({
            "issuer": l.issuer, "file": l.file, "this_update": time(l.this_update.as_ref()),
            "next_update": time(l.next_update.as_ref()), "revoked": l.revoked,
        })
    };
    json!({
        "server": certificate(&a.server),
        "cas": a.cas.iter().map(ca).collect::<Vec<_>>(),
        "revocation_lists": a.revocation_lists.iter().map(list).collect::<Vec<_>>(),
        "read_at": time(a.read_at.as_ref()), "remembered_since": time(a.remembered_since.as_ref()),
        "incomplete": a.incomplete, "connections": a.connections, "warnings": a.warnings,
    })
}

fn shown(page: &mut Page, a: &v1::GetAccessResponse) {
    let when = |t: &Option<prost_types::Timestamp>| text_of(t.as_ref()).unwrap_or_default();
    if let Some(server) = &a.server {
        page.pair("gateway", format!("{}, until {}", server.subject, when(&server.not_after)));
    }
    page.pair("read", when(&a.read_at));
    page.pair("connections", a.connections);
    page.pair("clients since", when(&a.remembered_since));
    page.line("");
    let ca = |ca: &v1::CaStatus| {
        let certificate = ca.certificate.clone().unwrap_or_default();
        let state = match (ca.retiring, ca.pending) {
            (false, _) => Cell::from("trusted"),
            (true, 0) => toned("retiring, not needed", Tone::Good),
            (true, n) => toned(format!("retiring, {n} pending"), Tone::Warn),
        };
        let list = if ca.has_revocation_list { "yes" } else { "none" };
        vec![
            Cell::from(certificate.subject),
            state,
            Cell::from(when(&certificate.not_after)),
            Cell::from(list),
            Cell::from(&ca.sha256),
        ]
    };
    let cas: Vec<Vec<Cell>> = a.cas.iter().map(ca).collect();
    page.table(&["CA", "STATE", "UNTIL", "REVOCATIONS", "SHA-256"], &cas);
    page.line("");
    let client = |ca: &v1::CaStatus, c: &v1::ClientCertificate| {
        let remark = match c {
            c if c.revoked => toned("revoked", Tone::Bad),
            c if c.pending => toned("needs the retiring CA", Tone::Warn),
            c if c.due => toned("renew", Tone::Warn),
            _ => Cell::default(),
        };
        vec![
            Cell::from(&c.client),
            Cell::from(&c.role),
            Cell::from(&c.serial),
            Cell::from(ca.certificate.as_ref().map_or("", |c| c.subject.as_str())),
            Cell::from(when(&c.not_after)),
            Cell::from(when(&c.last_seen)),
            remark,
        ]
    };
    let clients: Vec<Vec<Cell>> = a
        .cas
        .iter()
        .flat_map(|ca| ca.clients.iter().map(move |c| client(ca, c)))
        .collect();
    page.table(&["CLIENT", "ROLE", "SERIAL", "CA", "UNTIL", "LAST SEEN", "REMARK"], &clients);
    if a.incomplete {
        page.line(toned("There were more certificates than are remembered.", Tone::Warn));
    }
    if !a.warnings.is_empty() {
        page.line("");
        a.warnings
            .iter()
            .for_each(|w| page.line(toned(format!("warning: {w}"), Tone::Warn)));
    }
}
