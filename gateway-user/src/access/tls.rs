//! Certificates, keys and revocation lists in their files: read, parsed and checked, each mistake with an error of its own. What is trusted
//! because of them is in [`super::trust`].

use std::{
    fs::OpenOptions,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::Api;

/// Largest file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;
/// Largest revocation list, bytes: some 400,000 certificates.
const MAX_LIST: u64 = 16 << 20;

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
    #[error("{path} is not a regular file of at most {most} bytes")]
    NotAFile {
        /// Which.
        path: PathBuf,
        /// How large it may be.
        most: u64,
    },
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
    /// A CA's whose key signs no handshake: no client may take it (RFC 8446 section 4.4.2.2).
    #[error("the certificate in {0} is a CA's, not the gateway's own: `lazaret pki issue --server` makes one")]
    IsACa(PathBuf),
    /// A client CA that is none.
    #[error("{0} has a certificate that is not a CA's (basic constraints)")]
    NotACa(PathBuf),
    /// A revocation list whose signature is not that of the CA that it names.
    #[error("the revocation list in {0} is not signed by the CA that it names")]
    ForgedList(PathBuf),
    /// No list in it.
    #[error("{0} has no revocation list (PEM, BEGIN X509 CRL, or DER)")]
    NoList(PathBuf),
    /// One CA under two keys.
    #[error("{0} has a CA that api.client_ca names too; a CA stays or retires, not both")]
    StaysAndRetires(PathBuf),
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
            | Self::NotAFile { path, .. }
            | Self::NoCertificate(path)
            | Self::NoKey(path)
            | Self::NotForServers(path)
            | Self::IsACa(path)
            | Self::NoList(path)
            | Self::ForgedList(path)
            | Self::StaysAndRetires(path)
            | Self::NotACa(path) => path,
            Self::Mismatch { key, .. } => key,
        };
        // One file may stand at two keys; some mistakes are of one of them only, and the others are found in the order of reading.
        match self {
            Self::LooseKey { .. } | Self::KeyOwner { .. } | Self::NoKey(_) => "key",
            Self::NoList(_) | Self::ForgedList(_) => "crl",
            Self::StaysAndRetires(_) => "retiring_ca",
            Self::NotACa(_) if !api.client_ca.contains(path) => "retiring_ca",
            Self::NotACa(_) => "client_ca",
            _ if *path == api.certificate => "certificate",
            // Only certificates are looked for.
            Self::NoCertificate(_) if api.client_ca.contains(path) => "client_ca",
            Self::NoCertificate(_) if api.retiring_ca.contains(path) => "retiring_ca",
            _ if *path == api.key => "key",
            _ if api.client_ca.contains(path) => "client_ca",
            _ if api.retiring_ca.contains(path) => "retiring_ca",
            _ if api.crl.contains(path) => "crl",
            _ => "client_ca",
        }
    }
}

/// The whole file, with the metadata of the file that was read.
fn read(path: &Path, most: u64) -> Result<(Vec<u8>, std::fs::Metadata), TlsError> {
    let failed = |error| TlsError::Read {
        path: path.into(),
        error,
    };
    // A pipe must not make the reader wait for its writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > most {
        return Err(TlsError::NotAFile { path: path.into(), most });
    }
    let mut content = Vec::new();
    file.take(most).read_to_end(&mut content).map_err(failed)?;
    Ok((content, metadata))
}

/// A file of certificates.
pub(crate) fn read_certificate(path: &Path) -> Result<Vec<u8>, TlsError> {
    Ok(read(path, MAX_FILE)?.0)
}

/// A key's file, which nobody else can read: it is root's, the daemon's, or that of the user that the daemon is to become.
pub(crate) fn read_key(path: &Path, user: Option<&str>) -> Result<Vec<u8>, TlsError> {
    let (content, metadata) = read(path, MAX_FILE)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TlsError::LooseKey { path: path.into(), mode });
    }
    let uid = metadata.uid();
    let the_users = || {
        let found = user.and_then(|name| nix::unistd::User::from_name(name).ok().flatten());
        found.is_some_and(|user| user.uid.as_raw() == uid)
    };
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() && !the_users() {
        return Err(TlsError::KeyOwner { path: path.into(), uid });
    }
    Ok(content)
}

/// The certificates of a file, in its order; at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
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

/// The first certificate of a file.
pub(crate) fn first_certificate(path: &Path) -> Result<CertificateDer<'static>, TlsError> {
    let first = certificates(path)?.into_iter().next();
    first.ok_or_else(|| TlsError::NoCertificate(path.into()))
}

/// The revocation lists of a file: PEM, or one in DER.
pub(super) fn lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let (content, _) = read(path, MAX_LIST)?;
    // A DER SEQUENCE begins with 0x30, a digit in ASCII; no text around PEM begins so and goes on with a length of several bytes.
    if content.first() == Some(&0x30) && content.get(1).is_some_and(|b| *b >= 0x80) {
        return Ok(vec![content.into()]);
    }
    let parsed: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&content).collect();
    let parsed = parsed.map_err(|e| garbage(path, e))?;
    if parsed.is_empty() {
        Err(TlsError::NoList(path.into()))
    } else {
        Ok(parsed)
    }
}

/// What is in a file is not what it should be.
pub(super) fn garbage(path: &Path, problem: impl std::fmt::Display) -> TlsError {
    TlsError::Garbage {
        path: path.into(),
        problem: problem.to_string(),
    }
}

/// The private key of a file that nobody else can read.
pub(super) fn key(path: &Path, user: Option<&str>) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read_key(path, user)?).map_err(|e| match e {
        pem::Error::NoItemsFound => TlsError::NoKey(path.into()),
        e => TlsError::Garbage {
            path: path.into(),
            problem: e.to_string(),
        },
    })
}

/// The server's own certificate stands first; the others lead to a CA.
pub(super) fn check_server(path: &Path, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<SystemTime, TlsError> {
    let mut first_end = None;
    for (i, der) in chain.iter().enumerate() {
        let certificate = parse(path, der)?;
        let end = check_dates(path, &certificate, now)?;
        first_end.get_or_insert(end);
        let usage = certificate.extended_key_usage().ok().flatten();
        let usages = certificate.key_usage().ok().flatten();
        if i == 0 && certificate.is_ca() && usages.is_some_and(|u| !u.value.digital_signature()) {
            return Err(TlsError::IsACa(path.into()));
        }
        if i == 0 && usage.is_some_and(|u| !u.value.server_auth && !u.value.any) {
            return Err(TlsError::NotForServers(path.into()));
        }
    }
    first_end.ok_or_else(|| TlsError::NoCertificate(path.into()))
}

/// What not every client takes of a server's own certificate that [`check_server`] lets through: one that is a CA's, too, as `openssl req -x509` makes it.
pub(super) fn doubtful(path: &Path, certificate: &X509Certificate<'_>) -> Option<String> {
    certificate.is_ca().then(|| {
        format!(
            "the certificate in {} is a CA's, too: clients with rustls (`lazaret` among them) do not take it from a server; \
             `lazaret pki issue --server` makes one that all take",
            path.display()
        )
    })
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

/// One certificate.
pub(super) fn parse<'a>(path: &Path, der: &'a [u8]) -> Result<X509Certificate<'a>, TlsError> {
    let failed = |_| TlsError::Garbage {
        path: path.into(),
        problem: "a certificate in it cannot be read".into(),
    };
    X509Certificate::from_der(der).map(|(_, c)| c).map_err(failed)
}

/// When it ends.
fn check_dates(path: &Path, certificate: &X509Certificate<'_>, now: SystemTime) -> Result<SystemTime, TlsError> {
    let validity = certificate.validity();
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

/// A point of time of a certificate or a list; those before 1970 are 1970.
pub(super) fn point(seconds: i64) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}
