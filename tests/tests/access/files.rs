//! Certificates, keys and ports that cannot be used: each is named before anything is served.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    time::{Duration, SystemTime},
};

use gateway_user::{
    access::{
        listen::{BindError, Listeners},
        tls::TlsError,
        trust,
    },
    config::Api,
    pki::{self, IssueArgs},
};
use lazaret_tests::require;
use rcgen::{CertificateParams, KeyPair};

use crate::gateway::Pki;

fn api(pki: &Pki) -> Api {
    pki.config(&pki.server()).api.unwrap()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn keys_are_for_one_pair_of_eyes() {
    require!(Root);
    let pki = Pki::new("keys");
    let api = api(&pki);
    assert!(trust::load(&api, &BTreeSet::new()).is_ok());
    for loose in [0o640, 0o604, 0o660, 0o602, 0o610] {
        mode(&api.key, loose);
        let e = trust::load(&api, &BTreeSet::new()).unwrap_err();
        assert!(matches!(e, TlsError::LooseKey { mode, .. } if mode == loose), "{e}");
        assert!(e.to_string().contains("chmod 600"), "{e}");
    }
    mode(&api.key, 0o400);
    assert!(trust::load(&api, &BTreeSet::new()).is_ok());
    chown(&api.key, Some(65_534), None).unwrap();
    assert!(matches!(
        trust::load(&api, &BTreeSet::new()),
        Err(TlsError::KeyOwner { uid: 65_534, .. })
    ));
}

#[test]
fn what_is_in_the_files_is_checked() {
    let pki = Pki::new("files");
    let good = api(&pki);
    let file = |name: &str, content: &str| {
        let path = pki.scratch.path().join(name);
        fs::write(&path, content).unwrap();
        mode(&path, 0o600);
        path
    };
    let missing = pki.scratch.path().join("missing");
    let with = |change: &dyn Fn(&mut Api)| {
        let mut api = good.clone();
        change(&mut api);
        trust::load(&api, &BTreeSet::new()).unwrap_err()
    };
    for part in 0..3 {
        let set =
            |path: &Path| with(&|a: &mut Api| *[&mut a.certificate, &mut a.key, &mut a.client_ca[0]][part] = path.to_owned());
        assert!(matches!(set(&missing), TlsError::Read { .. }));
        assert!(matches!(set(pki.scratch.path()), TlsError::NotAFile { .. }));
        assert!(matches!(
            set(&file("empty", "")),
            TlsError::NoCertificate(_) | TlsError::NoKey(_)
        ));
        assert!(matches!(
            set(&file("text", "not PEM at all\n")),
            TlsError::NoCertificate(_) | TlsError::NoKey(_)
        ));
        for label in ["CERTIFICATE", "PRIVATE KEY"] {
            let torn = file("torn", &format!("-----BEGIN {label}-----\nAAAA\n"));
            let e = set(&torn);
            assert!(
                matches!(e, TlsError::Garbage { .. } | TlsError::NoCertificate(_) | TlsError::NoKey(_)),
                "{e}"
            );
            let junk = file("junk", &format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n"));
            let e = set(&junk);
            assert!(
                matches!(e, TlsError::Garbage { .. } | TlsError::NoCertificate(_) | TlsError::NoKey(_)),
                "{e}"
            );
            assert!(e.to_string().contains("junk"), "names the file: {e}");
        }
    }

    let other = pki::issue(&IssueArgs {
        server: true,
        dns: vec!["x.test".into()],
        ..pki.args("other")
    })
    .unwrap();
    assert!(matches!(with(&|a| a.key.clone_from(&other.key)), TlsError::Mismatch { .. }));
    assert!(matches!(
        with(&|a| a.client_ca[0].clone_from(&other.certificate)),
        TlsError::NotACa(_)
    ));
    let client = pki::issue(&IssueArgs {
        role: Some(gateway_user::model::Role::Mdm),
        ..pki.args("client")
    })
    .unwrap();
    assert!(matches!(
        with(&|a| a.certificate.clone_from(&client.certificate)),
        TlsError::NotForServers(_)
    ));

    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    for (begin, end, expired) in [(now - 2 * hour, now - hour, true), (now + hour, now + 2 * hour, false)] {
        let mut params = CertificateParams::new(vec!["gateway.test".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (begin.into(), end.into());
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let (pem, key) = (file("dated.pem", &pem), file("dated.key", &key.serialize_pem()));
        let e = with(&|a| (a.certificate, a.key) = (pem.clone(), key.clone()));
        assert_eq!(matches!(e, TlsError::Expired { .. }), expired, "{e}");
        assert_eq!(matches!(e, TlsError::NotYetValid { .. }), !expired, "{e}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let pki = Pki::new("port");
    let mut config = pki.config(&pki.server());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    config.api.as_mut().unwrap().listen = taken.local_addr().unwrap();
    let e = Listeners::bind(&config).unwrap_err();
    assert!(matches!(e, BindError::Tcp { .. }));
    assert!(e.to_string().contains(&taken.local_addr().unwrap().to_string()), "{e}");
    assert!(!config.socket.path.exists(), "nothing else was made");
    config.api.as_mut().unwrap().listen = "192.0.2.1:1".parse().unwrap();
    assert!(
        matches!(Listeners::bind(&config), Err(BindError::Tcp { .. })),
        "an address that is not the host's"
    );
}
