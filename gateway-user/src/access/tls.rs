//! The server's side of mTLS: certificate, key and client CA from their files, each mistake with an error of its own, before anything is
//! bound. TLS 1.3 only; client certificates are required; no session is resumed, so that each connection shows its certificate.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::Api;

/// Largest file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// What the listener needs.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// For the handshake.
    pub config: Arc<ServerConfig>,
    /// When the server's certificate ends.
    pub not_after: SystemTime,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// It is not a file, or absurdly large.
    #[error("{0} is not a regular file of at most 1 MiB")]
    NotAFile(PathBuf),
    /// Others can read or write the key.
    #[error("the key {path} has mode {mode:04o}; it must not be open to group or others: chmod 600 {path}")]
    LooseKey {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key is someone else's.
    #[error("the key {path} belongs to uid {uid}; it must belong to root or to the daemon's user")]
    KeyOwner {
        /// Which.
        path: PathBuf,
        /// Whose.
        uid: u32,
    },
    /// It is not PEM, or what is inside is no certificate or key.
    #[error("{path}: {problem}")]
    Garbage {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No certificate in it.
    #[error("{0} has no certificate (PEM, BEGIN CERTIFICATE)")]
    NoCertificate(PathBuf),
    /// No key in it.
    #[error("{0} has no private key (PEM, BEGIN PRIVATE KEY)")]
    NoKey(PathBuf),
    /// Over.
    #[error("the certificate in {path} expired on {date}")]
    Expired {
        /// Which.
        path: PathBuf,
        /// When.
        date: String,
    },
    /// Not yet.
    #[error("the certificate in {path} is not valid before {date}; is the clock right?")]
    NotYetValid {
        /// Which.
        path: PathBuf,
        /// When.
        date: String,
    },
    /// Its extended key usage does not name servers.
    #[error("the certificate in {0} is not for servers (extended key usage serverAuth)")]
    NotForServers(PathBuf),
    /// A client CA that is none.
    #[error("{0} has a certificate that is not a CA's (basic constraints)")]
    NotACa(PathBuf),
    /// Certificate and key do not belong together.
    #[error("the certificate in {certificate} and the key in {key} do not belong together")]
    Mismatch {
        /// Certificate.
        certificate: PathBuf,
        /// Key.
        key: PathBuf,
    },
}

impl TlsError {
    /// The key of `[api]` that names the file.
    #[must_use]
    pub fn key(&self, api: &Api) -> &'static str {
        let path = match self {
            Self::Read { path, .. }
            | Self::LooseKey { path, .. }
            | Self::KeyOwner { path, .. }
            | Self::Garbage { path, .. }
            | Self::Expired { path, .. }
            | Self::NotYetValid { path, .. }
            | Self::NotAFile(path)
            | Self::NoCertificate(path)
            | Self::NoKey(path)
            | Self::NotForServers(path)
            | Self::NotACa(path) => path,
            Self::Mismatch { key, .. } => key,
        };
        // One file may stand at two keys; some mistakes are of one of them only, and the others are found in the order of reading.
        match self {
            Self::LooseKey { .. } | Self::KeyOwner { .. } | Self::NoKey(_) => "key",
            Self::NotACa(_) => "client_ca",
            _ if *path == api.certificate => "certificate",
            _ if *path == api.key => "key",
            _ => "client_ca",
        }
    }
}

/// Reads and checks the three files of `[api]`.
///
/// # Errors
/// See [`TlsError`].
pub fn load(api: &Api) -> Result<ServerTls, TlsError> {
    let now = SystemTime::now();
    let chain = certificates(&api.certificate)?;
    let not_after = check_server(&api.certificate, &chain, now)?;
    let key = key(&api.key)?;
    let garbage = |path: &Path, problem: &dyn std::fmt::Display| TlsError::Garbage {
        path: path.into(),
        problem: problem.to_string(),
    };

    let mut roots = RootCertStore::empty();
    for file in api.client_ca.iter().chain(&api.retiring_ca) {
        for ca in certificates(file)? {
            check_ca(file, &ca, now)?;
            roots.add(ca).map_err(|e| garbage(file, &e))?;
        }
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = verifier
        .build()
        .map_err(|e| garbage(api.client_ca.first().unwrap_or(&api.certificate), &e))?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| garbage(&api.certificate, &e))?
        .with_client_cert_verifier(verifier);
    let mut config = builder.with_single_cert(chain, key).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch {
            certificate: api.certificate.clone(),
            key: api.key.clone(),
        },
        e => garbage(&api.key, &e),
    })?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(ServerTls {
        config: Arc::new(config),
        not_after,
    })
}

/// The whole file, with the metadata of the file that was read.
fn read(path: &Path) -> Result<(Vec<u8>, std::fs::Metadata), TlsError> {
    let failed = |error| TlsError::Read {
        path: path.into(),
        error,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(TlsError::NotAFile(path.into()));
    }
    let mut content = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut content).map_err(failed)?;
    Ok((content, metadata))
}

/// A file of certificates.
pub(crate) fn read_certificate(path: &Path) -> Result<Vec<u8>, TlsError> {
    Ok(read(path)?.0)
}

/// A key's file, which nobody else can read.
pub(crate) fn read_key(path: &Path) -> Result<Vec<u8>, TlsError> {
    let (content, metadata) = read(path)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TlsError::LooseKey { path: path.into(), mode });
    }
    let uid = metadata.uid();
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(TlsError::KeyOwner { path: path.into(), uid });
    }
    Ok(content)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = read_certificate(path)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    let parsed = parsed.map_err(|e| TlsError::Garbage {
        path: path.into(),
        problem: e.to_string(),
    })?;
    if parsed.is_empty() {
        Err(TlsError::NoCertificate(path.into()))
    } else {
        Ok(parsed)
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read_key(path)?).map_err(|e| match e {
        pem::Error::NoItemsFound => TlsError::NoKey(path.into()),
        e => TlsError::Garbage {
            path: path.into(),
            problem: e.to_string(),
        },
    })
}

/// The server's own certificate stands first; the others lead to a CA.
fn check_server(path: &Path, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<SystemTime, TlsError> {
    let mut first_end = None;
    for (i, der) in chain.iter().enumerate() {
        let certificate = parse(path, der)?;
        let end = check_dates(path, &certificate, now)?;
        first_end.get_or_insert(end);
        let usage = certificate.extended_key_usage().ok().flatten();
        if i == 0 && usage.is_some_and(|u| !u.value.server_auth && !u.value.any) {
            return Err(TlsError::NotForServers(path.into()));
        }
    }
    first_end.ok_or_else(|| TlsError::NoCertificate(path.into()))
}

/// A trust anchor is not asked for its constraints at a handshake, so it is asked here.
pub(crate) fn check_ca(path: &Path, der: &CertificateDer<'_>, now: SystemTime) -> Result<(), TlsError> {
    let certificate = parse(path, der)?;
    check_dates(path, &certificate, now)?;
    if certificate.is_ca() {
        Ok(())
    } else {
        Err(TlsError::NotACa(path.into()))
    }
}

fn parse<'a>(path: &Path, der: &'a [u8]) -> Result<X509Certificate<'a>, TlsError> {
    let failed = |_| TlsError::Garbage {
        path: path.into(),
        problem: "a certificate in it cannot be read".into(),
    };
    X509Certificate::from_der(der).map(|(_, c)| c).map_err(failed)
}

/// When it ends.
fn check_dates(path: &Path, certificate: &X509Certificate<'_>, now: SystemTime) -> Result<SystemTime, TlsError> {
    let validity = certificate.validity();
    let point = |t: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(t).unwrap_or_default());
    let end = point(validity.not_after.timestamp());
    if end < now {
        return Err(TlsError::Expired {
            path: path.into(),
            date: validity.not_after.to_string(),
        });
    }
    if point(validity.not_before.timestamp()) > now {
        return Err(TlsError::NotYetValid {
            path: path.into(),
            date: validity.not_before.to_string(),
        });
    }
    Ok(end)
}
