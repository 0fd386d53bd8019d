//! A CA that openssl made, with RSA keys, as companies have them: its clients and the gateway's own certificate are as good as any; and its
//! retirement by the command line, with what the audit keeps of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use gateway_user::model::Role;
use lazaret_proto::v1::{self, inspect_service_client::InspectServiceClient, operator_service_client::OperatorServiceClient};
use lazaret_tests::{gateway::binary, require};
use serde_json::Value;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic_types::StatusExt as _;

use crate::gateway::{Gateway, NAME, Pki};

/// Runs openssl in a folder.
pub(crate) fn openssl(folder: &Path, words: &str) {
    let output = Command::new("openssl")
        .current_dir(folder)
        .args(words.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "openssl {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A CA `NAME.pem` with an RSA key.
fn ca(folder: &Path, name: &str) -> PathBuf {
    openssl(
        folder,
        &format!(
            "req -x509 -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.pem -subj /O=Example/CN={name} -days 30 \
             -addext keyUsage=critical,keyCertSign,cRLSign"
        ),
    );
    folder.join(format!("{name}.pem"))
}

/// A certificate `NAME.pem` of that CA, with a key made by `key`.
fn leaf(folder: &Path, ca: &str, name: &str, key: &str, extensions: &str) -> (PathBuf, PathBuf) {
    openssl(
        folder,
        &format!("req -newkey {key} -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"),
    );
    fs::write(folder.join("ext"), format!("basicConstraints=CA:FALSE\n{extensions}\n")).unwrap();
    openssl(
        folder,
        &format!("x509 -req -in {name}.csr -CA {ca}.pem -CAkey {ca}.key -CAcreateserial -out {name}.pem -days 20 -extfile ext"),
    );
    (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")))
}

fn identity((pem, key): &(PathBuf, PathBuf)) -> Identity {
    Identity::from_pem(fs::read(pem).unwrap(), fs::read(key).unwrap())
}

fn cli(gateway: &Gateway, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(binary());
    command.env_clear().env("LAZARET_SOCKET", &gateway.socket).args(args);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn access(gateway: &Gateway) -> Value {
    let (code, out, err) = cli(gateway, &["pki", "status", "--json"]);
    assert_eq!(code, 0, "{out}{err}");
    serde_json::from_str(&out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_of_openssl_retires_by_the_command_line() {
    require!(Program("openssl"));
    let pki = Pki::new("openssl");
    let folder = pki.scratch.path().to_owned();
    let corporate = ca(&folder, "corporate");
    let role = "extendedKeyUsage=clientAuth\nsubjectAltName=URI:urn:lazaret:role:viewer";
    let rsa = leaf(&folder, "corporate", "mdm-rsa", "rsa:3072", role);
    let ec = leaf(
        &folder,
        "corporate",
        "mdm-ec",
        "ec -pkeyopt ec_paramgen_curve:prime256v1",
        role,
    );
    let none = leaf(&folder, "corporate", "nobody", "rsa:2048", "extendedKeyUsage=clientAuth");
    let server = leaf(
        &folder,
        "corporate",
        "gateway-rsa",
        "rsa:2048",
        &format!("extendedKeyUsage=serverAuth\nsubjectAltName=DNS:{NAME}"),
    );
    let file = corporate.clone();
    let gateway = Gateway::with(pki, move |c| {
        let api = c.api.as_mut().unwrap();
        api.retiring_ca.push(file);
        (api.certificate, api.key) = server;
    })
    .await;
    let endpoint = |identity: Identity| {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(fs::read(&corporate).unwrap()))
            .domain_name(NAME)
            .identity(identity);
        Endpoint::from_shared(format!("https://{}", gateway.address))
            .unwrap()
            .tls_config(tls)
            .unwrap()
    };
    let status = async |identity: Identity| {
        let channel = endpoint(identity).connect().await.map_err(|e| e.to_string())?;
        let asked = InspectServiceClient::new(channel).get_status(v1::GetStatusRequest {}).await;
        asked
            .map(drop)
            .map_err(|e| e.get_details_error_info().map_or_else(|| e.to_string(), |i| i.reason))
    };
    // Of both CAs, with keys of both kinds; a role must stand in it.
    assert_eq!(status(identity(&rsa)).await, Ok(()));
    assert_eq!(status(identity(&ec)).await, Ok(()));
    assert_eq!(status(gateway.pki.client(Role::Viewer)).await, Ok(()));
    assert_eq!(status(identity(&none)).await, Err("NO_ROLE".to_owned()));

    // Who still needs it, for people and for programs.
    let (code, out, _) = cli(&gateway, &["pki", "status"]);
    assert_eq!(code, 0, "{out}");
    for part in [
        "CN=corporate",
        "retiring, 2 pending",
        "mdm-rsa",
        "mdm-ec",
        "needs the retiring CA",
        "CN=gateway-rsa",
    ] {
        assert!(out.contains(part), "{part:?} in:\n{out}");
    }
    let all = access(&gateway);
    let of = |retiring: bool| {
        all["cas"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["retiring"] == retiring)
            .unwrap()
    };
    assert_eq!((&of(true)["pending"], &of(false)["pending"]), (&2.into(), &0.into()), "{all}");
    let fingerprint = of(true)["sha256"].as_str().unwrap().to_owned();
    let stays = of(false)["sha256"].as_str().unwrap().to_owned();

    // Refused while someone needs it, by name and with a reference; without a reason there is no force.
    let pem = corporate.to_str().unwrap();
    let (code, out, err) = cli(&gateway, &["pki", "finish-retirement", pem]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(
        err.contains("2 clients still need this CA") && err.contains("CA_IN_USE"),
        "{err}"
    );
    for (args, part) in [
        (&["pki", "finish-retirement", pem, "--force"][..], "--reason"),
        (&["pki", "finish-retirement", "/nonexistent.pem"], "/nonexistent.pem"),
        (
            &["pki", "finish-retirement", &stays, "--force", "--reason", "x"],
            "not retiring",
        ),
        (&["pki", "finish-retirement", &"00".repeat(32)], "no CA"),
        (&["pki", "finish-retirement", pem, "--force", "--reason", " "], "reason"),
    ] {
        let (code, out, err) = cli(&gateway, args);
        assert!(code != 0 && err.contains(part), "{args:?}: {code} {out}{err}");
    }
    assert_eq!(status(identity(&rsa)).await, Ok(()), "nothing of this ended it");

    let channel = endpoint(identity(&rsa)).connect().await.unwrap();
    let mut open = InspectServiceClient::new(channel);
    let mut watch = open
        .watch_denials(v1::WatchDenialsRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap();
    let (code, out, err) = cli(
        &gateway,
        &["pki", "finish-retirement", pem, "--force", "--reason", "the key was stolen"],
    );
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("no longer trusted"), "{out}");
    let cut = tokio::time::timeout(std::time::Duration::from_secs(5), watch.message()).await;
    assert!(cut.expect("its connections are cut").is_err());
    assert!(status(identity(&ec)).await.is_err());
    assert_eq!(status(gateway.pki.client(Role::Viewer)).await, Ok(()));
    let after = access(&gateway);
    assert!(
        after["cas"].as_array().unwrap().iter().all(|c| c["retiring"] == false),
        "{after}"
    );
    assert!(after["warnings"].to_string().contains("finished"), "{after}");

    // The audit says who did it, why, and how many needed it; and who was refused.
    let mut operator = OperatorServiceClient::new(endpoint(gateway.pki.client(Role::Operator)).connect().await.unwrap());
    let listed = operator
        .list_audit_entries(v1::ListAuditEntriesRequest::default())
        .await
        .unwrap();
    let entries: Vec<_> = listed
        .into_inner()
        .entries
        .into_iter()
        .filter(|e| e.action == "FinishRetirement")
        .collect();
    let done = entries
        .iter()
        .find(|e| e.result == "done")
        .unwrap_or_else(|| panic!("{entries:?}"));
    assert_eq!((done.by.as_str(), done.reason.as_str()), ("uid:0", "the key was stolen"));
    assert_eq!(done.subject, format!("CA {fingerprint}"));
    assert_eq!(
        (done.before.as_str(), done.after.as_str()),
        ("retiring", "not trusted; by force; 2 client(s) needed it")
    );
    let refused: Vec<&str> = entries
        .iter()
        .filter(|e| e.result != "done")
        .map(|e| e.result.as_str())
        .collect();
    for reason in ["CA_IN_USE", "CA_NOT_RETIRING", "UNKNOWN_CA"] {
        assert!(refused.contains(&reason), "{reason} in {refused:?}");
    }
    gateway.stop().await;
}
