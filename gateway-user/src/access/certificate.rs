//! What a client's leaf certificate says of it: name, role, scope. Everything that begins with `urn:lazaret:` among its alternative names
//! must be understood, so that a limit that was meant and misspelt never counts as none. The handshake has verified the chain before.

use std::{sync::Arc, time::SystemTime};

use ring::digest::{SHA256, digest};
use x509_parser::prelude::{GeneralName, X509Certificate};

use super::{answer::escape, roles, tls};
use crate::model::{CertificateName, DevicePattern, Identity, Role, Scope, SourceName};

/// A client certificate's role: a URI among its subject alternative names, `urn:lazaret:role:` and then `mdm`, `vpn`, `operator` or
/// `viewer`. There must be exactly one with this beginning. URIs that do not begin with `urn:lazaret:` do not matter.
pub const ROLE_URI: &str = "urn:lazaret:role:";
/// Of a certificate of the role vpn: whose sessions it reports. May stand several times.
pub const SOURCE_URI: &str = "urn:lazaret:source:";
/// Of a certificate of the role mdm: a device's name, or the beginning of names and `*`. May stand several times; none: all devices.
pub const DEVICES_URI: &str = "urn:lazaret:devices:";
/// Most sources or patterns of one certificate.
pub const MAX_SCOPE: usize = 64;

/// What all of ours begin with, in any case: RFC 8141 compares "urn" and what follows it without case.
const OURS: &str = "urn:lazaret:";
/// Most characters of a name for logs.
const MAX_NAME: usize = 128;

/// Why a certificate gives nothing: reason for programs, sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NoUse {
    pub(super) reason: &'static str,
    pub(super) sentence: String,
}

/// Role and scope, or why there is none. `vpn_without_source`: a certificate of the role vpn that names no source may report any.
pub(super) fn identity(certificate: &X509Certificate<'_>, vpn_without_source: bool) -> Result<Identity, NoUse> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| no_role("the certificate's alternative names cannot be read"))?;
    let names = names.map(|n| n.value.general_names.as_slice()).unwrap_or_default();
    let uris = names.iter().filter_map(|n| match n {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (role, scope) = grant(uris, vpn_without_source)?;
    Ok(Identity {
        role,
        name: name(certificate),
        client: client(certificate),
        scope,
    })
}

/// Subject and serial number, for the audit and logs. Of a subject that is a common name only, that name.
pub(super) fn name(certificate: &X509Certificate<'_>) -> String {
    let subject = certificate.subject();
    let shown = match common_name(certificate).filter(|_| subject.iter_attributes().count() == 1) {
        Some(cn) => escape(cn),
        None if subject.iter_attributes().next().is_none() => "no subject".to_owned(),
        None => escape(&subject.to_string()),
    };
    let shown: String = shown.chars().take(MAX_NAME).collect();
    format!("{shown} (serial {})", serial(certificate))
}

/// Hexadecimal bytes, with colons.
pub(super) fn serial(certificate: &X509Certificate<'_>) -> String {
    certificate.raw_serial_as_string().chars().take(MAX_NAME).collect()
}

/// `notAfter`.
pub(super) fn end(certificate: &X509Certificate<'_>) -> SystemTime {
    tls::point(certificate.validity().not_after.timestamp())
}

/// The subject, so that two never look alike: the common name if it is all there is and harmless, else with a digest of the whole.
fn client(certificate: &X509Certificate<'_>) -> Arc<str> {
    let subject = certificate.subject();
    let plain =
        common_name(certificate).filter(|cn| subject.iter_attributes().count() == 1 && cn.parse::<CertificateName>().is_ok());
    match plain {
        Some(cn) => cn.into(),
        None if subject.iter_attributes().next().is_none() => name(certificate).into(),
        None => {
            let whole: String = escape(&subject.to_string()).chars().take(MAX_NAME).collect();
            let digest = digest(&SHA256, subject.as_raw());
            let digest: String = digest.as_ref().iter().take(16).map(|b| format!("{b:02x}")).collect();
            format!("{whole} ({digest})").into()
        }
    }
}

fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    certificate.subject().iter_common_name().next().and_then(|a| a.as_str().ok())
}

fn grant<'a>(uris: impl Iterator<Item = &'a str>, vpn_without_source: bool) -> Result<(Role, Scope), NoUse> {
    let mut role = None;
    let (mut sources, mut devices): (Vec<SourceName>, Vec<DevicePattern>) = (Vec::new(), Vec::new());
    for uri in uris.filter(|u| u.get(..OURS.len()).is_some_and(|b| b.eq_ignore_ascii_case(OURS))) {
        if let Some(name) = uri.strip_prefix(ROLE_URI) {
            let found = roles::by_name(name).ok_or_else(|| no_role("the role in the certificate is unknown"))?;
            if role.replace(found).is_some() {
                let twice = format!("the certificate has more than one alternative name that begins with {ROLE_URI}");
                return Err(no_role(twice));
            }
        } else if let Some(name) = uri.strip_prefix(SOURCE_URI) {
            sources.push(name.parse().map_err(no_scope)?);
        } else if let Some(pattern) = uri.strip_prefix(DEVICES_URI) {
            devices.push(pattern.parse().map_err(no_scope)?);
        } else {
            let unknown = "the certificate has an alternative name of an unknown kind that begins with urn:lazaret:";
            return Err(no_scope(unknown));
        }
    }
    let role = role.ok_or_else(|| no_role(format!("the certificate has no alternative name that begins with {ROLE_URI}")))?;
    if sources.len() > MAX_SCOPE || devices.len() > MAX_SCOPE {
        return Err(no_scope(format!(
            "a certificate names at most {MAX_SCOPE} sources or devices"
        )));
    }
    if !sources.is_empty() && role != Role::Vpn {
        return Err(no_scope(format!("{SOURCE_URI} is for the role vpn")));
    }
    if !devices.is_empty() && role != Role::Mdm {
        return Err(no_scope(format!("{DEVICES_URI} is for the role mdm")));
    }
    let any_source = role != Role::Vpn || (sources.is_empty() && vpn_without_source);
    let scope = Scope {
        sources: (!any_source).then(|| sources.into()),
        devices: (!devices.is_empty()).then(|| devices.into()),
    };
    Ok((role, scope))
}

fn no_role(sentence: impl Into<String>) -> NoUse {
    NoUse {
        reason: "NO_ROLE",
        sentence: sentence.into(),
    }
}

fn no_scope(sentence: impl ToString) -> NoUse {
    NoUse {
        reason: "BAD_SCOPE",
        sentence: format!("the certificate's scope: {}", sentence.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MDM: &str = "urn:lazaret:role:mdm";
    const VPN: &str = "urn:lazaret:role:vpn";

    fn granted(uris: &[&str]) -> Result<(Role, Scope), &'static str> {
        grant(uris.iter().copied(), false).map_err(|n| n.reason)
    }

    #[test]
    fn the_whole_subject_is_named_and_a_common_name_by_itself() {
        use rcgen::{CertificateParams, DnType, KeyPair};
        let named = |what: &[(DnType, &str)]| {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            what.iter()
                .for_each(|(kind, text)| params.distinguished_name.push(kind.clone(), *text));
            params.serial_number = Some(5_u64.into());
            let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let (_, certificate) = x509_parser::parse_x509_certificate(der.der()).unwrap();
            name(&certificate)
        };
        assert_eq!(named(&[(DnType::CommonName, "mdm\n1")]), "mdm\\n1 (serial 05)");
        let berlin = named(&[(DnType::OrganizationName, "Berlin"), (DnType::CommonName, "mdm")]);
        assert_eq!(berlin, "O=Berlin, CN=mdm (serial 05)");
        assert_eq!(named(&[]), "no subject (serial 05)");
    }

    #[test]
    fn exactly_one_role() {
        assert_eq!(granted(&[MDM]).unwrap().0, Role::Mdm);
        assert_eq!(granted(&["https://example.org/", VPN]).unwrap().0, Role::Vpn);
        for uris in [
            &[][..],
            &[MDM, VPN],
            &[MDM, MDM],
            &[MDM, "urn:lazaret:role:x"],
            &["urn:lazaret:role:"],
            &["urn:lazaret:role:root"],
            &["urn:lazaret:role:mdm/x"],
            &["spiffe://lazaret/role/mdm"],
        ] {
            assert_eq!(granted(uris), Err("NO_ROLE"), "{uris:?}");
        }
    }

    #[test]
    fn a_limit_that_is_not_understood_gives_nothing() {
        for uris in [
            &[MDM, "urn:lazaret:device:a"][..],
            &[MDM, "URN:LAZARET:devices:a"],
            &[MDM, "urn:Lazaret:devices:a"],
            &[MDM, "urn:lazaret:devices:"],
            &[MDM, "urn:lazaret:devices:a/b"],
            &[MDM, "urn:lazaret:devices:a**"],
            &[VPN, "urn:lazaret:source:"],
            &[VPN, "urn:lazaret:source:a*"],
            &[MDM, "urn:lazaret:source:a"],
            &[VPN, "urn:lazaret:devices:a"],
            &["urn:lazaret:role:operator", "urn:lazaret:devices:a"],
            &["urn:lazaret:role:viewer", "urn:lazaret:source:a"],
            &[MDM, "urn:lazaret:"],
        ] {
            assert_eq!(granted(uris), Err("BAD_SCOPE"), "{uris:?}");
        }
        let many: Vec<String> = (0..=MAX_SCOPE).map(|i| format!("{DEVICES_URI}d{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).chain([MDM]).collect();
        assert_eq!(granted(&many), Err("BAD_SCOPE"));
        assert!(granted(&many[1..]).is_ok());
    }

    #[test]
    fn scopes() {
        let (_, scope) = granted(&[MDM, "urn:lazaret:devices:a-*", "urn:lazaret:devices:b"]).unwrap();
        assert!(scope.has_device("a-1") && scope.has_device("b") && !scope.has_device("c") && !scope.has_all_devices());
        assert!(granted(&[MDM]).unwrap().1.has_all_devices());
        let (_, scope) = granted(&[VPN, "urn:lazaret:source:vpn-1"]).unwrap();
        assert!(scope.has_source("vpn-1") && !scope.has_source("vpn-2"));
        // Without a source: nobody's sessions, unless configured.
        assert!(!granted(&[VPN]).unwrap().1.has_source("vpn-1"));
        assert!(grant([VPN].into_iter(), true).unwrap().1.has_source("vpn-1"));
        let both = grant([VPN, "urn:lazaret:source:vpn-1"].into_iter(), true).unwrap().1;
        assert!(both.has_source("vpn-1") && !both.has_source("vpn-2"));
    }
}
