//! Who is at the other end of a connection: found once when it is made, from the certificate or from the kernel, and never from anything
//! that a request says.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{answer::escape, roles};
use crate::model::{Identity, Role};

/// A client certificate's role: a URI among its subject alternative names, `urn:lazaret:role:` and then `mdm`, `vpn`, `operator` or
/// `viewer`. There must be exactly one with this beginning. Other URIs do not matter.
pub const ROLE_URI: &str = "urn:lazaret:role:";

/// Most characters of a name for logs.
const MAX_NAME: usize = 128;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It has a role.
    Known {
        /// Who.
        identity: Identity,
        /// Its certificate's end: neither a call nor the connection outlives it.
        until: Option<SystemTime>,
    },
    /// It is who it is, but has no role: every RPC is refused.
    Refused {
        /// For logs.
        name: String,
        /// `ErrorInfo.reason`.
        reason: &'static str,
        /// Why, for people.
        sentence: String,
    },
}

impl Peer {
    /// For logs; control characters are escaped.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Known { identity, .. } => &identity.name,
            Self::Refused { name, .. } => name,
        }
    }

    /// How long the connection may last; `None`: without end.
    #[must_use]
    pub fn lifetime(&self, now: SystemTime) -> Option<Duration> {
        match self {
            Self::Known { until: Some(until), .. } => Some(until.duration_since(now).unwrap_or_default()),
            Self::Known { until: None, .. } | Self::Refused { .. } => None,
        }
    }

    /// From a client's LEAF certificate, whose chain the handshake has verified. Certificates above it are not asked: a CA gives roles by
    /// signing leaves, not by having one.
    #[must_use]
    pub fn from_certificate(der: &[u8]) -> Self {
        match X509Certificate::from_der(der) {
            Ok((_, certificate)) => match role(&certificate) {
                Ok(role) => {
                    let identity = Identity {
                        role,
                        name: certificate_name(&certificate),
                    };
                    Self::Known {
                        identity,
                        until: Some(end(&certificate)),
                    }
                }
                Err(sentence) => no_role(certificate_name(&certificate), sentence),
            },
            Err(_) => no_role("unreadable certificate".into(), "the certificate cannot be read".into()),
        }
    }

    /// From the credentials of a process on the Unix socket: uid 0 is operator; a member of `vpn` is vpn; a member of `viewer` is viewer.
    #[must_use]
    pub fn from_credentials(uid: u32, groups: &[u32], vpn: Option<u32>, viewer: Option<u32>) -> Self {
        let name = format!("uid:{uid}");
        let member = |g: Option<u32>| g.is_some_and(|g| groups.contains(&g));
        let role = if uid == 0 {
            Role::Operator
        } else if member(vpn) {
            Role::Vpn
        } else if member(viewer) {
            Role::Viewer
        } else {
            let sentence = "the process is neither root nor in a group that the configuration names in [socket]".into();
            return Self::Refused {
                name,
                reason: "NOT_AUTHORISED",
                sentence,
            };
        };
        Self::Known {
            identity: Identity { role, name },
            until: None,
        }
    }
}

fn no_role(name: String, sentence: String) -> Peer {
    Peer::Refused {
        name,
        reason: "NO_ROLE",
        sentence,
    }
}

/// The certificate's one role, or why it has none.
fn role(certificate: &X509Certificate<'_>) -> Result<Role, String> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| "the certificate's alternative names cannot be read")?;
    let names = names.map(|n| n.value.general_names.as_slice()).unwrap_or_default();
    let mut found = names.iter().filter_map(|n| match n {
        GeneralName::URI(uri) => uri.strip_prefix(ROLE_URI),
        _ => None,
    });
    match (found.next(), found.next()) {
        (Some(name), None) => roles::by_name(name).ok_or_else(|| format!("the role in the certificate's {ROLE_URI} is unknown")),
        (None, _) => Err(format!("the certificate has no alternative name that begins with {ROLE_URI}")),
        (Some(_), Some(_)) => Err(format!(
            "the certificate has more than one alternative name that begins with {ROLE_URI}"
        )),
    }
}

/// Common name and serial number.
fn certificate_name(certificate: &X509Certificate<'_>) -> String {
    let cn = certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|a| a.as_str().ok())
        .unwrap_or("no common name");
    let cn: String = escape(cn).chars().take(MAX_NAME).collect();
    format!(
        "{cn} (serial {})",
        certificate.raw_serial_as_string().chars().take(MAX_NAME).collect::<String>()
    )
}

fn end(certificate: &X509Certificate<'_>) -> SystemTime {
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(cn: &str, uris: &[&str]) -> Peer {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.subject_alt_names = uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())).collect();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Peer::from_certificate(certificate.der())
    }
    fn role_of(p: &Peer) -> Option<Role> {
        match p {
            Peer::Known { identity, .. } => Some(identity.role),
            Peer::Refused { .. } => None,
        }
    }

    #[test]
    fn exactly_one_role() {
        assert_eq!(role_of(&certificate("m", &["urn:lazaret:role:mdm"])), Some(Role::Mdm));
        assert_eq!(
            role_of(&certificate("m", &["https://example.org/", "urn:lazaret:role:vpn"])),
            Some(Role::Vpn)
        );
        for uris in [
            &[][..],
            &["urn:lazaret:role:mdm", "urn:lazaret:role:vpn"],
            &["urn:lazaret:role:mdm", "urn:lazaret:role:mdm"],
            &["urn:lazaret:role:mdm", "urn:lazaret:role:x"],
            &["urn:lazaret:role:"],
            &["urn:lazaret:role:root"],
            &["urn:lazaret:role:mdm/x"],
            &["URN:LAZARET:ROLE:mdm"],
            &["spiffe://lazaret/role/mdm"],
        ] {
            assert_eq!(role_of(&certificate("m", uris)), None, "{uris:?}");
        }
        assert_eq!(role_of(&Peer::from_certificate(b"garbage")), None);
    }

    #[test]
    fn names_are_escaped_and_short() {
        let p = certificate("a\nb\u{1b}[31m", &[]);
        assert!(p.name().starts_with("a\\nb\\u{1b}[31m (serial "), "{}", p.name());
        assert!(certificate(&"x".repeat(5000), &[]).name().len() < 300);
    }

    #[test]
    fn credentials() {
        let role = |uid, groups: &[u32]| role_of(&Peer::from_credentials(uid, groups, Some(50), Some(60)));
        assert_eq!(role(0, &[]), Some(Role::Operator));
        assert_eq!(role(1000, &[7, 50]), Some(Role::Vpn));
        assert_eq!(role(1000, &[60]), Some(Role::Viewer));
        assert_eq!(role(1000, &[60, 50]), Some(Role::Vpn));
        assert_eq!(role(1000, &[0, 1000]), None);
        assert_eq!(role_of(&Peer::from_credentials(1000, &[0], None, None)), None);
    }
}
