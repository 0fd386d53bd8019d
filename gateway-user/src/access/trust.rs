//! What the network API trusts, as read from the files of `[api]` at one time: its own certificate, the CAs of its clients, their revocation
//! lists. It never changes; when the files do, another takes its place. TLS 1.3 only; client certificates are required; no session is
//! resumed, so that each connection shows its certificate.

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use ring::digest::{SHA256, digest};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring as provider},
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, SubjectPublicKeyInfo, X509Certificate};

use super::{
    answer::escape,
    certificate,
    tls::{self, TlsError, garbage},
};
use crate::{config::Api, model::Fingerprint};

/// Most characters of a name for people.
const MAX_NAME: usize = 128;

/// What is trusted.
#[derive(Debug)]
pub struct Trust {
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    /// The gateway's own certificate.
    pub server: Dated,
    /// Those whose clients are let in; the ones that stay come first.
    pub cas: Vec<Ca>,
    /// Their revocation lists.
    pub lists: Vec<List>,
    /// What the files name and is left out, each with why, and what not every client takes.
    pub warnings: Vec<String>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dated {
    /// Its subject, escaped.
    pub subject: String,
    /// Where it was read.
    pub file: PathBuf,
    /// Its end.
    pub not_after: SystemTime,
}

/// A CA that is trusted.
#[derive(Clone, Debug)]
pub struct Ca {
    /// Its certificate.
    pub certificate: Dated,
    /// SHA-256 of it.
    pub fingerprint: Fingerprint,
    /// It is to go.
    pub retiring: bool,
    subject: Vec<u8>,
    /// SubjectPublicKeyInfo.
    key: Vec<u8>,
    alone: Arc<dyn ClientCertVerifier>,
}

/// A revocation list in force.
#[derive(Clone, Debug)]
pub struct List {
    /// Of which CA, escaped.
    pub issuer: String,
    /// Where it was read.
    pub file: PathBuf,
    /// When it was made.
    pub this_update: SystemTime,
    /// When the next one is due; afterwards it still counts.
    pub next_update: Option<SystemTime>,
    /// Serial numbers, as [`super::peer::Shown`] writes them.
    revoked: HashSet<String>,
    raw_issuer: Vec<u8>,
}

impl List {
    /// How many certificates it revokes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.revoked.len()
    }
    /// Whether it revokes none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }
}

/// Reads and checks all files of `[api]`. A CA whose dates have not begun or are over, and one whose retirement is `finished`, is left out, as
/// long as one of `client_ca` remains.
///
/// # Errors
/// See [`TlsError`].
pub fn load(api: &Api, finished: &BTreeSet<Fingerprint>) -> Result<Trust, TlsError> {
    let now = SystemTime::now();
    let chain = tls::certificates(&api.certificate)?;
    let not_after = tls::check_server(&api.certificate, &chain, now)?;
    let own = tls::parse(&api.certificate, chain.first().map_or(&[], |c| c.as_ref()))?;
    let server = dated(&api.certificate, &own, not_after);
    let mut warnings: Vec<String> = tls::doubtful(&api.certificate, &own).into_iter().collect();
    let key = tls::key(&api.key, api.user.as_deref())?;
    let provider = Arc::new(provider::default_provider());

    let cas = cas(api, finished, now, &provider, &mut warnings)?;
    let mut roots = RootCertStore::empty();
    for (ca, der) in &cas {
        roots.add(der.clone()).map_err(|e| garbage(&ca.certificate.file, e))?;
    }
    let cas: Vec<Ca> = cas.into_iter().map(|(ca, _)| ca).collect();
    let roots = Arc::new(roots);
    let (lists, ders) = lists(api, &cas, &roots, &provider, &mut warnings)?;

    let verifier = verifier(&roots, &provider, ders).map_err(|e| garbage(first(&api.client_ca), e))?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| garbage(&api.certificate, e))?
        .with_client_cert_verifier(Arc::clone(&verifier));
    let mut config = builder.with_single_cert(chain, key).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch {
            certificate: api.certificate.clone(),
            key: api.key.clone(),
        },
        e => garbage(&api.key, e),
    })?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Trust {
        config: Arc::new(config),
        server,
        cas,
        lists,
        warnings,
        verifier,
    })
}

impl Trust {
    /// Whether a client's chain, leaf first, is trusted now; by which CA, one that stays before one that retires. A handshake does not ask
    /// for the dates of a CA; this does.
    ///
    /// # Errors
    /// Why not: it has expired, is revoked, or its CA is gone.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<&Ca, rustls::Error> {
        let (leaf, above) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let at = since_1970(now);
        self.verifier.verify_client_cert(leaf, above, at)?;
        let leads = |ca: &&Ca| ca.certificate.not_after >= now && ca.alone.verify_client_cert(leaf, above, at).is_ok();
        self.cas
            .iter()
            .find(leads)
            .ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::Expired))
    }

    /// One of the CAs.
    #[must_use]
    pub fn ca(&self, fingerprint: &Fingerprint) -> Option<&Ca> {
        self.cas.iter().find(|ca| ca.fingerprint == *fingerprint)
    }

    /// Whether a list of this CA revokes a serial number.
    #[must_use]
    pub fn revokes(&self, ca: &Ca, serial: &str) -> bool {
        self.lists
            .iter()
            .any(|l| l.raw_issuer == ca.subject && l.revoked.contains(serial))
    }

    /// The list of a CA, if there is one.
    #[must_use]
    pub fn list_of(&self, ca: &Ca) -> Option<&List> {
        self.lists.iter().find(|l| l.raw_issuer == ca.subject)
    }

    /// Whether the certificate of one of the CAs has ended between two times.
    #[must_use]
    pub fn ended_between(&self, from: SystemTime, to: SystemTime) -> bool {
        self.cas.iter().any(|ca| (from..to).contains(&ca.certificate.not_after))
    }
}

/// SHA-256 of the first certificate of a file.
///
/// # Errors
/// See [`TlsError`].
pub fn fingerprint_of(file: &Path) -> Result<Fingerprint, TlsError> {
    let read = tls::certificates(file)?;
    let first = read.first().ok_or_else(|| TlsError::NoCertificate(file.to_owned()))?;
    Ok(Fingerprint::new(sha256(first)))
}

/// When something of a chain, leaf first, next ends.
#[must_use]
pub fn next_end(chain: &[CertificateDer<'_>], now: SystemTime) -> Option<SystemTime> {
    let end = |der: &CertificateDer<'_>| X509Certificate::from_der(der).ok().map(|(_, c)| certificate::end(&c));
    chain.iter().filter_map(end).filter(|end| *end >= now).min()
}

type Read = (Ca, CertificateDer<'static>);

fn cas(
    api: &Api,
    finished: &BTreeSet<Fingerprint>,
    now: SystemTime,
    provider: &Arc<CryptoProvider>,
    left_out: &mut Vec<String>,
) -> Result<Vec<Read>, TlsError> {
    let mut read: Vec<Read> = Vec::new();
    let mut dates = None;
    let files = api
        .client_ca
        .iter()
        .map(|f| (f, false))
        .chain(api.retiring_ca.iter().map(|f| (f, true)));
    for (file, retiring) in files {
        for der in tls::certificates(file)? {
            let fingerprint = Fingerprint::new(sha256(&der));
            let known = |(ca, _): &&Read| ca.fingerprint == fingerprint;
            match read.iter().find(known) {
                Some((ca, _)) if ca.retiring != retiring => return Err(TlsError::StaysAndRetires(file.clone())),
                Some(_) => continue,
                None => {}
            }
            let parsed = tls::parse(file, &der)?;
            let subject = subject(&parsed);
            if retiring && finished.contains(&fingerprint) {
                let sentence = format!(
                    "the retirement of the CA {subject} is finished; take {} out of api.retiring_ca",
                    file.display()
                );
                left_out.push(sentence);
                continue;
            }
            match tls::check_ca(file, &der, now) {
                Ok(()) => {}
                Err(e @ (TlsError::Expired { .. } | TlsError::NotYetValid { .. })) => {
                    left_out.push(format!("the CA {subject} is not trusted: {e}"));
                    dates.get_or_insert(e);
                    continue;
                }
                Err(e) => return Err(e),
            }
            let mut roots = RootCertStore::empty();
            roots.add(der.clone()).map_err(|e| garbage(file, e))?;
            let ca = Ca {
                certificate: dated(file, &parsed, certificate::end(&parsed)),
                fingerprint,
                retiring,
                subject: parsed.subject().as_raw().to_vec(),
                key: parsed.public_key().raw.to_vec(),
                alone: verifier(&Arc::new(roots), provider, Vec::new()).map_err(|e| garbage(file, e))?,
            };
            drop(parsed);
            read.push((ca, der));
        }
    }
    match dates {
        Some(e) if !read.iter().any(|(ca, _)| !ca.retiring) => Err(e),
        _ => Ok(read),
    }
}

type Lists = (Vec<List>, Vec<CertificateRevocationListDer<'static>>);

fn lists(
    api: &Api,
    cas: &[Ca],
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    left_out: &mut Vec<String>,
) -> Result<Lists, TlsError> {
    let (mut found, mut ders) = (Vec::new(), Vec::new());
    for file in &api.crl {
        for der in tls::lists(file)? {
            // What rustls cannot use (a delta, an indirect list) is found here, with its file.
            verifier(roots, provider, vec![der.clone()]).map_err(|e| garbage(file, e))?;
            let (_, list) =
                CertificateRevocationList::from_der(&der).map_err(|_| garbage(file, "a revocation list in it cannot be read"))?;
            let issuer = escape(&list.issuer().to_string()).chars().take(MAX_NAME).collect();
            let raw_issuer = list.issuer().as_raw().to_vec();
            if !cas.iter().any(|ca| ca.subject == raw_issuer) {
                left_out.push(format!(
                    "the revocation list in {} is of {issuer}, which is none of the CAs; it counts only for an intermediate CA of that name",
                    file.display()
                ));
            } else if !signed_by_one(&list, &raw_issuer, cas) {
                return Err(TlsError::ForgedList(file.clone()));
            }
            found.push(List {
                issuer,
                file: file.clone(),
                this_update: tls::point(list.last_update().timestamp()),
                next_update: list.next_update().map(|t| tls::point(t.timestamp())),
                revoked: list.iter_revoked_certificates().map(|r| r.raw_serial_as_string()).collect(),
                raw_issuer,
            });
            ders.push(der);
        }
    }
    Ok((found, ders))
}

/// Several CAs may have one name, for instance an old key and a new one.
fn signed_by_one(list: &CertificateRevocationList<'_>, issuer: &[u8], cas: &[Ca]) -> bool {
    let signed = |ca: &Ca| {
        let key = SubjectPublicKeyInfo::from_der(&ca.key);
        key.is_ok_and(|(_, key)| list.verify_signature(&key).is_ok())
    };
    cas.iter().filter(|ca| ca.subject == issuer).any(signed)
}

fn verifier(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    lists: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::server::VerifierBuilderError> {
    // A CA without a list revokes nothing; a list past its time still counts, and is warned about: losing the CA's publisher must neither
    // let a revoked client in nor shut out the others.
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .with_crls(lists)
        .allow_unknown_revocation_status()
        .build()
}

fn dated(file: &Path, certificate: &X509Certificate<'_>, not_after: SystemTime) -> Dated {
    Dated {
        subject: subject(certificate),
        file: file.to_owned(),
        not_after,
    }
}

fn subject(certificate: &X509Certificate<'_>) -> String {
    escape(&certificate.subject().to_string()).chars().take(MAX_NAME).collect()
}

fn sha256(der: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, der).as_ref());
    out
}

fn since_1970(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn first(files: &[PathBuf]) -> &Path {
    files.first().map_or(Path::new(""), PathBuf::as_path)
}
