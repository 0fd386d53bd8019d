//! A small CA, so that nobody starts with plaintext: `lazaret pki init` and `lazaret pki issue`. The daemon does not use this module, and
//! never needs the CA's key. ECDSA P-256; the CA signs leaves only (path length 0); a leaf is a client's with one role, or a server's.
//!
//! It does not revoke: leave a client out by a revocation list of a larger CA, by making a new CA, or by a short `--days`.

mod files;
mod renew;

use std::{
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use serde::Serialize;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use self::files::{private_directory, write_pair};
pub use self::renew::{RenewArgs, renew};
use crate::{
    access::{
        certificate::{DEVICES_URI, MAX_SCOPE, ROLE_URI, SOURCE_URI},
        roles,
        tls::{self, TlsError},
    },
    model::{CertificateName, DevicePattern, InvalidName, Role, SourceName},
};

/// How long the CA's certificate holds, days.
const CA_DAYS: u32 = 3650;
/// Certificates begin so long ago, for clocks that run behind.
const BEGIN: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// `lazaret pki init`: makes a CA.
#[derive(Clone, Debug, clap::Args)]
pub struct InitArgs {
    /// Directory of the CA, made with mode 0700: ca.pem and ca.key. Keep it off the gateway.
    #[arg(long)]
    pub dir: PathBuf,
    /// The CA's common name: 1 to 64 characters of A-Z a-z 0-9 . _ -
    #[arg(long, default_value = "lazaret-ca")]
    pub name: CertificateName,
}

/// `lazaret pki issue`: a key, and a certificate that the CA signs.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("use").required(true).args(["role", "server"]))]
pub struct IssueArgs {
    /// Directory of the CA, as made by `lazaret pki init`.
    #[arg(long)]
    pub dir: PathBuf,
    /// A client's certificate, with this role: mdm, vpn, operator or viewer.
    #[arg(long, value_parser = parse_role)]
    pub role: Option<Role>,
    /// The gateway's own certificate, for `[api]`.
    #[arg(long)]
    pub server: bool,
    /// With --role vpn: the source whose sessions it may report. May be repeated. Without one it may report none, unless
    /// api.vpn_without_source = "allow".
    #[arg(long, conflicts_with = "server")]
    pub source: Vec<SourceName>,
    /// With --role mdm: a device's name, or the beginning of names and "*"; it may act on no others. May be repeated. Default: all.
    #[arg(long, conflicts_with = "server")]
    pub devices: Vec<DevicePattern>,
    /// Common name, and name of the files: 1 to 64 characters of A-Z a-z 0-9 . _ -
    #[arg(long)]
    pub name: CertificateName,
    /// Where the files go: NAME.pem and NAME.key. Default: the CA's directory.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// How long it holds.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
    /// With --server: a DNS name by which clients reach the gateway. May be repeated.
    #[arg(long, requires = "server")]
    pub dns: Vec<String>,
    /// With --server: an address by which clients reach the gateway. May be repeated.
    #[arg(long, requires = "server")]
    pub ip: Vec<IpAddr>,
}

/// What was made. Its text says what to do next.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// PEM, mode 0644.
    pub certificate: PathBuf,
    /// PEM (PKCS #8), mode 0600.
    pub key: PathBuf,
    /// What to do next, for people.
    pub next: String,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "certificate  {}", self.certificate.display())?;
        writeln!(f, "key          {}", self.key.display())?;
        write!(f, "\n{}", self.next)
    }
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Nothing is overwritten.
    #[error(
        "{0} exists already; nothing is overwritten: take another --name, --out or --dir; `lazaret pki renew` renews a certificate"
    )]
    Exists(PathBuf),
    /// The CA's directory is open to others.
    #[error("the directory {path} has mode {mode:04o}; it must not be open to group or others: chmod 700 {path}")]
    LooseDirectory {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {error}{}", made_first(error))]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The CA's files cannot be used.
    #[error(transparent)]
    Ca(#[from] TlsError),
    /// ca.pem and ca.key are not a pair.
    #[error("ca.pem and ca.key in {0} do not belong together")]
    Mismatch(PathBuf),
    /// No CA.
    #[error("there is no CA in {0}: make one with `lazaret pki init --dir {0}`, or name the directory of yours with --dir")]
    NoCa(PathBuf),
    /// The CA ends before the certificate would.
    #[error("the CA's certificate ends on {0}, before {1} days are over; choose fewer --days or make a new CA")]
    CaEnds(String, u32),
    /// Neither a name nor an address.
    #[error("a server's certificate needs --dns or --ip: the name or address by which clients reach the gateway")]
    NoServerName,
    /// Not a name that a certificate can have.
    #[error("--dns takes DNS names: labels of 1 to 63 characters of a-z A-Z 0-9 -, separated by dots, 253 characters at most")]
    DnsName,
    /// Neither a role nor --server.
    #[error("a certificate is for a client (--role) or for the gateway (--server)")]
    NoUse,
    /// A scope that the role does not have.
    #[error("--source is for --role vpn, and --devices for --role mdm; at most {MAX_SCOPE} of them")]
    Scope,
    /// What is to be renewed is of another CA.
    #[error("the certificate in {certificate} is not signed by the CA in {ca}; name its CA with --from-ca")]
    NotSigned {
        /// Which.
        certificate: PathBuf,
        /// Whose.
        ca: PathBuf,
    },
    /// What is to be renewed says what this CA cannot say again.
    #[error("the certificate in {0} is not one as `lazaret pki issue` makes them; issue a new one")]
    NotOurs(PathBuf),
    /// What is to be renewed is a CA.
    #[error(
        "{0} has a CA's certificate, which is not renewed: make another CA with `lazaret pki init`, and name the old one in [api] retiring_ca until \
         its clients have certificates of the new one"
    )]
    IsCa(PathBuf),
    /// What is to be renewed gives nothing.
    #[error("the certificate gives no role: {0}")]
    NoGrant(String),
    /// Not a name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Making the key or the certificate failed.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The system gave no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// Makes a CA: ca.pem and ca.key in a directory of its own.
///
/// # Errors
/// See [`PkiError`]. Nothing that exists is changed.
pub fn init(args: &InitArgs) -> Result<Made, PkiError> {
    private_directory(&args.dir)?;
    let mut params = params(&args.name, CA_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    let (certificate, key) = write_pair(&args.dir, "ca", &certificate.pem(), &key.serialize_pem())?;
    let dir = args.dir.display();
    let next = format!(
        "Keep the key off the gateway: whoever has it can give himself any role, and the daemon never needs it.\n\
         Next, the gateway's own certificate, and one for each client:\n  \
         lazaret pki issue --dir {dir} --server --name gateway --dns GATEWAY-NAME --ip GATEWAY-ADDRESS\n  \
         lazaret pki issue --dir {dir} --role mdm --name MDM-NAME\n\
         Then, in the gateway's configuration:\n  \
         [api]\n  client_ca = \"{}\"   # a copy of it",
        absolute(&certificate).display()
    );
    Ok(Made { certificate, key, next })
}

/// Makes a key and a certificate, signed by the CA in `args.dir`.
///
/// # Errors
/// See [`PkiError`]. Nothing that exists is changed.
pub fn issue(args: &IssueArgs) -> Result<Made, PkiError> {
    let (params, _) = certified(args)?;
    let issuer = ca(&args.dir, args.days)?;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.signed_by(&key, &issuer)?;
    let out = args.out.as_deref().unwrap_or(&args.dir);
    let (certificate, key) = write_pair(out, args.name.as_str(), &certificate.pem(), &key.serialize_pem())?;
    // As the configuration takes them, wherever this was typed.
    let [shown, secret, ca] = [&certificate, &key, &args.dir.join("ca.pem")].map(|file| absolute(file));
    let next = match args.role {
        None => format!(
            "In the gateway's configuration:\n  [api]\n  certificate = \"{}\"\n  key = \"{}\"\n  client_ca = \"{}\"\n\
             Copy the three files to the gateway; the key keeps mode 0600.",
            shown.display(),
            secret.display(),
            ca.display()
        ),
        Some(role) => format!(
            "Give both files and {} (by which it knows the gateway) to the {} client; its role is in the certificate.\n\
             The certificate holds for {} days.",
            ca.display(),
            roles::name(role),
            args.days
        ),
    };
    Ok(Made { certificate, key, next })
}

fn absolute(file: &Path) -> PathBuf {
    let found = file.canonicalize().or_else(|_| std::path::absolute(file));
    found.unwrap_or_else(|_| file.to_owned())
}

/// What is to be signed, and for which role; `None`: the gateway.
fn certified(args: &IssueArgs) -> Result<(CertificateParams, Option<Role>), PkiError> {
    let mut params = params(&args.name, args.days)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    match (args.role, args.server) {
        (Some(role), false) => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.subject_alt_names = client_names(role, &args.source, &args.devices)?;
        }
        (None, true) => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names = server_names(&args.dns, &args.ip)?;
        }
        _ => return Err(PkiError::NoUse),
    }
    Ok((params, args.role))
}

fn parse_role(name: &str) -> Result<Role, String> {
    roles::by_name(name).ok_or_else(|| "a role is mdm, vpn, operator or viewer".into())
}

/// What every certificate has: name, dates, and a random serial number of 127 bits (RFC 5280, section 4.1.2.2).
fn params(name: &CertificateName, days: u32) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.as_str());
    let now = SystemTime::now();
    params.not_before = (now - BEGIN).into();
    params.not_after = (now + DAY * days).into();
    let mut serial = [0; 16];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut serial)
        .map_err(|_| PkiError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn made_first(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; make the directory first (mkdir -p -m 700)",
        _ => "",
    }
}

fn is_absent(file: &Path) -> bool {
    std::fs::symlink_metadata(file).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

/// The CA in `dir`: a pair, a CA's, and valid as long as what it is to sign.
fn ca(dir: &Path, days: u32) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let garbage = |path: &Path, problem: &dyn fmt::Display| TlsError::Garbage {
        path: path.into(),
        problem: problem.to_string(),
    };
    if [&certificate, &key].iter().all(|file| is_absent(file)) {
        return Err(PkiError::NoCa(dir.into()));
    }
    let der = tls::first_certificate(&certificate)?;
    tls::check_ca(&certificate, &der, SystemTime::now())?;
    let text = String::from_utf8(tls::read_key(&key, None)?).map_err(|e| garbage(&key, &e))?;
    let key = KeyPair::from_pem(&text).map_err(|e| garbage(&key, &e))?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| garbage(&certificate, &e))?;
    if parsed.public_key().subject_public_key.data != key.public_key_raw() {
        return Err(PkiError::Mismatch(dir.into()));
    }
    let end = parsed.validity().not_after;
    let wanted = SystemTime::now() + DAY * days;
    if wanted
        .duration_since(SystemTime::UNIX_EPOCH)
        .is_ok_and(|w| i64::try_from(w.as_secs()).is_ok_and(|w| w > end.timestamp()))
    {
        return Err(PkiError::CaEnds(end.to_string(), days));
    }
    Ok(Issuer::from_ca_cert_der(&der, key)?)
}

/// Role and scope.
fn client_names(role: Role, sources: &[SourceName], devices: &[DevicePattern]) -> Result<Vec<SanType>, PkiError> {
    let misplaced = (role != Role::Vpn && !sources.is_empty()) || (role != Role::Mdm && !devices.is_empty());
    if misplaced || sources.len() > MAX_SCOPE || devices.len() > MAX_SCOPE {
        return Err(PkiError::Scope);
    }
    let role = std::iter::once(format!("{ROLE_URI}{}", roles::name(role)));
    let sources = sources.iter().map(|s| format!("{SOURCE_URI}{s}"));
    let devices = devices.iter().map(|d| format!("{DEVICES_URI}{d}"));
    let uri = |uri: String| Ok(SanType::URI(uri.try_into()?));
    role.chain(sources).chain(devices).map(uri).collect()
}

fn server_names(dns: &[String], ip: &[IpAddr]) -> Result<Vec<SanType>, PkiError> {
    if dns.is_empty() && ip.is_empty() {
        return Err(PkiError::NoServerName);
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let mut names = Vec::new();
    for name in dns {
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(PkiError::DnsName);
        }
        names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    names.extend(ip.iter().copied().map(SanType::IpAddress));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    };

    use rustls::pki_types::{CertificateDer, pem::PemObject as _};

    use super::*;
    use crate::access::peer::Peer;

    fn new_ca(dir: &Path) -> PathBuf {
        let dir = dir.join("ca");
        init(&InitArgs {
            dir: dir.clone(),
            name: "test-ca".parse().unwrap(),
        })
        .unwrap();
        dir
    }
    fn client(dir: &Path, name: &str, role: Role) -> IssueArgs {
        IssueArgs {
            dir: dir.into(),
            role: Some(role),
            server: false,
            source: vec![],
            devices: vec![],
            name: name.parse().unwrap(),
            out: None,
            days: 30,
            dns: vec![],
            ip: vec![],
        }
    }
    fn server(dir: &Path) -> IssueArgs {
        IssueArgs {
            role: None,
            server: true,
            dns: vec!["gw.example.org".into()],
            ..client(dir, "gateway", Role::Mdm)
        }
    }
    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }
    fn der(path: &Path) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn modes_names_and_extensions() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = new_ca(tmp.path());
        assert_eq!(
            (mode(&dir), mode(&dir.join("ca.key")), mode(&dir.join("ca.pem"))),
            (0o700, 0o600, 0o644)
        );
        let ca = der(&dir.join("ca.pem"));
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        assert_eq!(ca.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
        assert!(ca.key_usage().unwrap().unwrap().value.key_cert_sign());

        let mut serials = HashSet::new();
        for role in [Role::Mdm, Role::Vpn, Role::Operator, Role::Viewer] {
            let made = issue(&client(&dir, roles::name(role), role)).unwrap();
            assert_eq!((mode(&made.key), mode(&made.certificate)), (0o600, 0o644));
            let der = der(&made.certificate);
            let Peer::Known { identity, .. } = Peer::from_certificate(&der, false) else {
                panic!("has a role")
            };
            assert_eq!(identity.role, role);
            let (_, c) = X509Certificate::from_der(&der).unwrap();
            let usage = c.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.client_auth && !usage.server_auth && !c.is_ca());
            c.verify_signature(Some(ca.public_key())).unwrap();
            assert!(serials.insert(c.raw_serial().to_vec()));
            assert!(c.raw_serial().len() <= 20 && c.raw_serial()[0] & 0x80 == 0);
        }
        let made = issue(&server(&dir)).unwrap();
        let der = der(&made.certificate);
        let (_, c) = X509Certificate::from_der(&der).unwrap();
        let usage = c.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth);
        assert!(made.to_string().contains("client_ca"), "{made}");
    }

    #[test]
    fn scopes_are_written_as_they_are_read() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = new_ca(tmp.path());
        let scope = |args: IssueArgs| match Peer::from_certificate(&der(&issue(&args).unwrap().certificate), false) {
            Peer::Known { identity, .. } => identity.scope,
            Peer::Refused { sentence, .. } => panic!("{sentence}"),
        };
        let mdm = IssueArgs {
            devices: vec!["a-*".parse().unwrap(), "b".parse().unwrap()],
            ..client(&dir, "mdm", Role::Mdm)
        };
        let limited = scope(mdm.clone());
        assert!(limited.has_device("a-1") && limited.has_device("b") && !limited.has_device("c"));
        let vpn = IssueArgs {
            source: vec!["vpn-1".parse().unwrap()],
            ..client(&dir, "vpn", Role::Vpn)
        };
        let limited = scope(vpn.clone());
        assert!(limited.has_source("vpn-1") && !limited.has_source("vpn-2"));
        let misplaced = |role, args: IssueArgs| {
            let args = IssueArgs {
                role: Some(role),
                name: "x".parse().unwrap(),
                ..args
            };
            assert!(matches!(issue(&args), Err(PkiError::Scope)), "{role:?}");
        };
        misplaced(Role::Vpn, mdm.clone());
        misplaced(Role::Operator, mdm);
        misplaced(Role::Mdm, vpn.clone());
        misplaced(Role::Viewer, vpn);
    }

    #[test]
    fn nothing_is_overwritten_and_no_half_is_left() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = new_ca(tmp.path());
        let before = fs::read(dir.join("ca.key")).unwrap();
        let again = InitArgs {
            dir: dir.clone(),
            name: "other".parse().unwrap(),
        };
        assert!(matches!(init(&again), Err(PkiError::Exists(_))));
        assert!(matches!(issue(&client(&dir, "ca", Role::Operator)), Err(PkiError::Exists(_))));
        assert_eq!(fs::read(dir.join("ca.key")).unwrap(), before);
        // A link in the way is not followed, and the key that was written before it was met is gone.
        std::os::unix::fs::symlink(tmp.path().join("elsewhere"), dir.join("mdm.pem")).unwrap();
        assert!(matches!(issue(&client(&dir, "mdm", Role::Mdm)), Err(PkiError::Exists(_))));
        assert!(!dir.join("mdm.key").exists() && !tmp.path().join("elsewhere").exists());
    }

    #[test]
    fn bad_input_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = new_ca(tmp.path());
        for name in ["../x", "a/b", "", ".hidden", "a\nb", "-x"] {
            assert!(name.parse::<CertificateName>().is_err(), "{name:?}");
        }
        assert!(matches!(
            issue(&IssueArgs {
                dns: vec![],
                ..server(&dir)
            }),
            Err(PkiError::NoServerName)
        ));
        for dns in ["", "a..b", "-a", "a b", "a/b", "x\0", &"a".repeat(64), "ä.org"] {
            assert!(
                matches!(
                    issue(&IssueArgs {
                        dns: vec![dns.into()],
                        ..server(&dir)
                    }),
                    Err(PkiError::DnsName)
                ),
                "{dns:?}"
            );
        }
        assert!(matches!(
            issue(&IssueArgs {
                days: CA_DAYS + 1,
                ..server(&dir)
            }),
            Err(PkiError::CaEnds(..))
        ));
        assert!(matches!(
            issue(&IssueArgs {
                role: None,
                server: false,
                ..server(&dir)
            }),
            Err(PkiError::NoUse)
        ));
        let missing = tmp.path().join("none");
        assert!(matches!(issue(&server(&missing)), Err(PkiError::NoCa(_))));

        fs::set_permissions(dir.join("ca.key"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(issue(&server(&dir)), Err(PkiError::Ca(TlsError::LooseKey { .. }))));
        fs::remove_file(dir.join("ca.key")).unwrap();
        files::write_new(&dir.join("ca.key"), 0o600, &KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(matches!(issue(&server(&dir)), Err(PkiError::Mismatch(_))));

        let loose = tmp.path().join("loose");
        fs::create_dir(&loose).unwrap();
        fs::set_permissions(&loose, fs::Permissions::from_mode(0o755)).unwrap();
        let args = InitArgs {
            dir: loose,
            name: "x".parse().unwrap(),
        };
        assert!(matches!(init(&args), Err(PkiError::LooseDirectory { .. })));
    }
}
