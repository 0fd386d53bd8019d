//! Who is at the other end of a connection: found once when it is made, from the certificate or from the kernel, and never from anything
//! that a request says.

use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::certificate::{self, NoUse};
use crate::model::{Identity, Role};

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It has a role.
    Known {
        /// Who.
        identity: Identity,
        /// What it has shown; `None`: a local process.
        shown: Option<Shown>,
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

/// A client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Hexadecimal bytes, with colons.
    pub serial: String,
    /// Its end: neither a call nor the connection outlives it.
    pub until: SystemTime,
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
            Self::Known { shown: Some(shown), .. } => Some(shown.until.duration_since(now).unwrap_or_default()),
            Self::Known { shown: None, .. } | Self::Refused { .. } => None,
        }
    }

    /// From a client's LEAF certificate, whose chain the handshake has verified. Certificates above it are not asked: a CA gives roles by
    /// signing leaves, not by having one. `vpn_without_source` as in `[api]`.
    #[must_use]
    pub fn from_certificate(der: &[u8], vpn_without_source: bool) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            return Self::Refused {
                name: "unreadable certificate".into(),
                reason: "NO_ROLE",
                sentence: "the certificate cannot be read".into(),
            };
        };
        match certificate::identity(&certificate, vpn_without_source) {
            Ok(identity) => Self::Known {
                identity,
                shown: Some(Shown {
                    serial: certificate::serial(&certificate),
                    until: certificate::end(&certificate),
                }),
            },
            Err(NoUse { reason, sentence }) => Self::Refused {
                name: certificate::name(&certificate),
                reason,
                sentence,
            },
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
            identity: Identity::unlimited(role, &name),
            shown: None,
        }
    }
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
        Peer::from_certificate(certificate.der(), false)
    }
    fn role_of(p: &Peer) -> Option<Role> {
        match p {
            Peer::Known { identity, .. } => Some(identity.role),
            Peer::Refused { .. } => None,
        }
    }

    #[test]
    fn roles_come_from_alternative_names_alone() {
        assert_eq!(role_of(&certificate("m", &["urn:lazaret:role:mdm"])), Some(Role::Mdm));
        assert_eq!(role_of(&certificate("urn:lazaret:role:mdm", &[])), None);
        assert_eq!(role_of(&Peer::from_certificate(b"garbage", true)), None);
    }

    /// Whoever reads the first of two lists of alternative names and whoever reads the last would see different roles.
    #[test]
    fn two_lists_of_names_are_none() {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("urn:lazaret:role:viewer".try_into().unwrap())];
        let operator = b"urn:lazaret:role:operator";
        let name = [&[0x86, u8::try_from(operator.len()).unwrap()][..], operator].concat();
        let list = [&[0x30, u8::try_from(name.len()).unwrap()][..], &name].concat();
        let more = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], list);
        params.custom_extensions.push(more);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(role_of(&Peer::from_certificate(certificate.der(), false)), None);
    }

    #[test]
    fn clients_are_told_apart_by_their_whole_subject() {
        let client = |attributes: &[(DnType, &str)]| {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            for (kind, value) in attributes {
                params.distinguished_name.push(kind.clone(), *value);
            }
            params.subject_alt_names = vec![SanType::URI("urn:lazaret:role:mdm".try_into().unwrap())];
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            match Peer::from_certificate(certificate.der(), false) {
                Peer::Known { identity, .. } => identity.client.to_string(),
                Peer::Refused { sentence, .. } => panic!("{sentence}"),
            }
        };
        let (cn, o) = (DnType::CommonName, DnType::OrganizationName);
        assert_eq!(client(&[(cn.clone(), "mdm-1")]), "mdm-1");
        let subjects = [
            vec![(cn.clone(), "mdm-1"), (o.clone(), "a")],
            vec![(cn.clone(), "mdm-1"), (o, "b")],
            vec![(cn.clone(), "mdm-1, O=a")],
            vec![(cn.clone(), "mdm 1")],
            vec![],
        ];
        let names: std::collections::BTreeSet<String> = subjects.iter().map(|s| client(s)).collect();
        assert_eq!(names.len(), 5, "{names:?}");
        assert!(!names.contains("mdm-1"));
        // The same subject, another key and serial number.
        assert_eq!(client(&subjects[0]), client(&subjects[0]));
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
