//! `lazaret pki renew`: a certificate again, with the same name, role and scope, a new key and a new end. The old pair stays beside it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rcgen::KeyPair;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{IssueArgs, Made, PkiError, ca, certified, files, is_absent};
use crate::{
    access::{
        peer::Peer,
        roles,
        tls::{self, TlsError},
    },
    model::CertificateName,
};

const DAY: i64 = 86_400;

/// `lazaret pki renew`: a certificate again, signed by this CA.
#[derive(Clone, Debug, clap::Args)]
pub struct RenewArgs {
    /// Directory of the CA that signs, as made by `lazaret pki init`.
    #[arg(long)]
    pub dir: PathBuf,
    /// The certificate that is to be renewed. The key beside it is not needed.
    pub certificate: PathBuf,
    /// The CA that signed it, if that is another one: the old one of two, of which one retires.
    #[arg(long, value_name = "FILE")]
    pub from_ca: Option<PathBuf>,
    /// Where the files go: NAME.pem and NAME.key. Default: beside the old certificate. A pair that is there is kept as NAME.until-DATE.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// How long it holds. Default: as long as the old one.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: Option<u32>,
}

/// Makes a new key, and a certificate for it that says what the old one said.
///
/// # Errors
/// See [`PkiError`]. The old pair is whole, whatever happens.
pub fn renew(args: &RenewArgs) -> Result<Made, PkiError> {
    let der = tls::first_certificate(&args.certificate)?;
    let (_, old) = X509Certificate::from_der(&der).map_err(|e| TlsError::Garbage {
        path: args.certificate.clone(),
        problem: e.to_string(),
    })?;
    signed_by(&old, args)?;
    let asked = asked(&old, &der, args)?;
    let (params, role) = certified(&asked)?;
    let issuer = ca(&args.dir, asked.days)?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let new = params.signed_by(&key, &issuer)?;

    let beside = args
        .certificate
        .parent()
        .map_or(Path::new("."), |p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    let out = args.out.as_deref().unwrap_or(beside);
    let (certificate, secret) = replace_pair(out, asked.name.as_str(), &new.pem(), &key.serialize_pem(), &date(&old))?;
    let role = role.map_or("the gateway", roles::name);
    let next = format!(
        "Renewed for {role}, for {} days. The old certificate holds until {}; whoever uses it is to take the new pair before then.",
        asked.days,
        old.validity().not_after
    );
    Ok(Made {
        certificate,
        key: secret,
        next,
    })
}

/// A certificate that nobody trusted has signed says nothing.
fn signed_by(old: &X509Certificate<'_>, args: &RenewArgs) -> Result<(), PkiError> {
    let file = args.from_ca.clone().unwrap_or_else(|| args.dir.join("ca.pem"));
    if args.from_ca.is_none() && is_absent(&file) {
        return Err(PkiError::NoCa(args.dir.clone()));
    }
    for der in tls::certificates(&file)? {
        if let Ok((_, ca)) = X509Certificate::from_der(&der)
            && ca.is_ca()
            && ca.subject() == old.issuer()
            && old.verify_signature(Some(ca.public_key())).is_ok()
        {
            return Ok(());
        }
    }
    Err(PkiError::NotSigned {
        certificate: args.certificate.clone(),
        ca: file,
    })
}

/// What would have to be asked for to be given the old certificate.
fn asked(old: &X509Certificate<'_>, der: &[u8], args: &RenewArgs) -> Result<IssueArgs, PkiError> {
    if old.is_ca() {
        return Err(PkiError::IsCa(args.certificate.clone()));
    }
    let unlike = || PkiError::NotOurs(args.certificate.clone());
    let name: CertificateName = old
        .subject()
        .iter_common_name()
        .next()
        .and_then(|cn| cn.as_str().ok())
        .ok_or_else(unlike)?
        .parse()?;
    if old.subject().iter_attributes().count() != 1 {
        return Err(unlike());
    }
    let held = old.validity().not_after.timestamp() - old.validity().not_before.timestamp();
    let days = u32::try_from(held / DAY).unwrap_or(1).clamp(1, 3650);
    let mut asked = IssueArgs {
        dir: args.dir.clone(),
        role: None,
        server: false,
        source: Vec::new(),
        devices: Vec::new(),
        name,
        out: None,
        days: args.days.unwrap_or(days),
        dns: Vec::new(),
        ip: Vec::new(),
    };
    let usage = old.extended_key_usage().ok().flatten().ok_or_else(unlike)?.value;
    if usage.server_auth {
        asked.server = true;
        let names = old.subject_alternative_name().ok().flatten().ok_or_else(unlike)?;
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(dns) => asked.dns.push((*dns).to_owned()),
                GeneralName::IPAddress(bytes) => asked.ip.push(address(bytes).ok_or_else(unlike)?),
                _ => return Err(unlike()),
            }
        }
        return Ok(asked);
    }
    match Peer::from_certificate(der, false) {
        Peer::Known { identity, .. } => {
            asked.role = Some(identity.role);
            asked.source = identity.scope.sources.map(|s| s.to_vec()).unwrap_or_default();
            asked.devices = identity.scope.devices.map(|d| d.to_vec()).unwrap_or_default();
            Ok(asked)
        }
        Peer::Refused { sentence, .. } => Err(PkiError::NoGrant(sentence)),
    }
}

fn address(bytes: &[u8]) -> Option<std::net::IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(Into::into)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(Into::into))
        .ok()
}

/// Day of the old certificate's end, for a file's name.
fn date(old: &X509Certificate<'_>) -> String {
    let end = old.validity().not_after.timestamp();
    let end = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(end).unwrap_or_default());
    humantime::format_rfc3339_seconds(end).to_string().chars().take(10).collect()
}

/// Puts a pair in the place of one that is kept under another name. The key goes first: whoever reads in between finds two that do not
/// belong together, and goes on with what he has. Each step is on the disk before the next: where the power goes in between, the old pair
/// is in its place or beside it, and the next renewal goes on from there.
fn replace_pair(dir: &Path, name: &str, certificate: &str, key: &str, until: &str) -> Result<(PathBuf, PathBuf), PkiError> {
    let (pem, secret) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    let (new_pem, new_secret) = (dir.join(format!("{name}.pem.new")), dir.join(format!("{name}.key.new")));
    let _lock = files::lock(dir)?;
    for left in [&new_secret, &new_pem] {
        // Of a renewal that was cut off.
        let _ = fs::remove_file(left);
    }
    files::write_new(&new_secret, 0o600, key)?;
    let moved = || -> Result<(), PkiError> {
        files::write_new(&new_pem, 0o644, certificate)?;
        let [kept_pem, kept_key] = ["pem", "key"].map(|ending| dir.join(format!("{name}.until-{until}.{ending}")));
        let cut_off = keep(&pem, &kept_pem, false)?;
        keep(&secret, &kept_key, cut_off)?;
        files::synchronise(dir)?;
        for (new, file) in [(&new_secret, &secret), (&new_pem, &pem)] {
            fs::rename(new, file).map_err(|error| PkiError::Write {
                path: file.clone(),
                error,
            })?;
            files::synchronise(dir)?;
        }
        Ok(())
    };
    moved().inspect_err(|_| {
        // What is left of the new pair is ours; a name that has been moved is not there any more.
        let _ = fs::remove_file(&new_secret);
        let _ = fs::remove_file(&new_pem);
    })?;
    Ok((pem, secret))
}

/// Another name for a file, which must not be another's; nothing if there is no file. Whether it had that name already: a renewal was cut
/// off. `cut_off`: then the certificate is kept, and so is the key that belongs to it, whatever has its place by now.
fn keep(file: &Path, name: &Path, cut_off: bool) -> Result<bool, PkiError> {
    let same = || fs::read(file).ok().is_some_and(|here| fs::read(name).ok() == Some(here));
    match fs::hard_link(file, name) {
        Ok(()) => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && (cut_off || same()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(PkiError::Exists(name.into())),
        Err(error) => Err(PkiError::Write {
            path: name.into(),
            error,
        }),
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};

    use super::{
        super::{InitArgs, init, issue},
        *,
    };
    use crate::model::Role;

    fn certificate(path: &Path) -> (Vec<u8>, Peer) {
        let der = CertificateDer::from_pem_slice(&fs::read(path).unwrap()).unwrap();
        (der.to_vec(), Peer::from_certificate(&der, false))
    }
    fn identity(peer: &Peer) -> &crate::model::Identity {
        match peer {
            Peer::Known { identity, .. } => identity,
            Peer::Refused { sentence, .. } => panic!("{sentence}"),
        }
    }
    fn new_ca(dir: &Path, name: &str) -> PathBuf {
        let dir = dir.join(name);
        init(&InitArgs {
            dir: dir.clone(),
            name: name.parse().unwrap(),
        })
        .unwrap();
        dir
    }
    fn asked(dir: &Path) -> IssueArgs {
        IssueArgs {
            dir: dir.into(),
            role: Some(Role::Mdm),
            server: false,
            source: vec![],
            devices: vec!["a-*".parse().unwrap()],
            name: "mdm-1".parse().unwrap(),
            out: None,
            days: 30,
            dns: vec![],
            ip: vec![],
        }
    }
    fn renewal(dir: &Path, certificate: &Path) -> RenewArgs {
        RenewArgs {
            dir: dir.into(),
            certificate: certificate.into(),
            from_ca: None,
            out: None,
            days: None,
        }
    }

    #[test]
    fn the_same_again_with_another_key() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = new_ca(tmp.path(), "ca");
        let made = issue(&asked(&dir)).unwrap();
        let (old_der, old) = certificate(&made.certificate);
        let old_key = fs::read(&made.key).unwrap();
        let renewed = renew(&renewal(&dir, &made.certificate)).unwrap();
        assert_eq!((&renewed.certificate, &renewed.key), (&made.certificate, &made.key));
        let (new_der, new) = certificate(&renewed.certificate);
        assert_eq!(identity(&old).scope, identity(&new).scope);
        assert_eq!(identity(&old).client, identity(&new).client);
        let parse = |der: &[u8]| {
            X509Certificate::from_der(der)
                .map(|(_, c)| (c.raw_serial().to_vec(), c.public_key().raw.to_vec()))
                .unwrap()
        };
        let ((old_serial, old_public), (new_serial, new_public)) = (parse(&old_der), parse(&new_der));
        assert!(old_serial != new_serial && old_public != new_public);
        // The old pair is there, under the day of its end.
        let kept: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path()).collect();
        let key = kept
            .iter()
            .find(|p| p.to_string_lossy().contains("mdm-1.until-") && p.extension() == Some("key".as_ref()));
        assert_eq!(fs::read(key.unwrap()).unwrap(), old_key);
        // Once more on the same day: nothing is overwritten, and the pair in force stays whole.
        let again = renew(&renewal(&dir, &made.certificate));
        let left = |p: &str| dir.join(p).exists();
        assert!(again.is_ok() || !left("mdm-1.pem.new") && !left("mdm-1.key.new"));
    }

    #[test]
    fn by_another_ca_only_if_the_old_one_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let (old_ca, new_ca) = (new_ca(tmp.path(), "old"), new_ca(tmp.path(), "new"));
        let made = issue(&asked(&old_ca)).unwrap();
        let args = renewal(&new_ca, &made.certificate);
        assert!(matches!(renew(&args), Err(PkiError::NotSigned { .. })));
        let out = tmp.path().join("out");
        fs::create_dir(&out).unwrap();
        let renewed = renew(&RenewArgs {
            from_ca: Some(old_ca.join("ca.pem")),
            out: Some(out.clone()),
            ..args
        })
        .unwrap();
        assert_eq!(renewed.certificate, out.join("mdm-1.pem"));
        assert_eq!(identity(&certificate(&renewed.certificate).1).client.as_ref(), "mdm-1");
    }

    #[test]
    fn the_gateways_own() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = new_ca(tmp.path(), "ca");
        let made = issue(&IssueArgs {
            role: None,
            server: true,
            devices: vec![],
            dns: vec!["gw.example.org".into()],
            ip: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            ..asked(&dir)
        })
        .unwrap();
        let names = |path: &Path| {
            let (der, _) = certificate(path);
            let (_, c) = X509Certificate::from_der(&der).unwrap();
            format!("{:?}", c.subject_alternative_name().unwrap().unwrap().value.general_names)
        };
        let before = names(&made.certificate);
        let renewed = renew(&renewal(&dir, &made.certificate)).unwrap();
        assert_eq!(names(&renewed.certificate), before);
        let ca = renewal(&dir, &dir.join("ca.pem"));
        assert!(renew(&ca).is_err(), "a CA is not renewed so");
    }
}
