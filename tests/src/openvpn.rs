//! A real OpenVPN server on the gateway, with Lazaret's hook, and a client in the device's namespace. Their CA has nothing to do with
//! Lazaret's.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::{
    gateway::{self, Gateway},
    netns::Namespace,
    process::{Process, until},
};

const LIMIT: Duration = Duration::from_secs(60);

/// OpenVPN's own CA.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    /// Makes one, with its files in `folder`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "the test VPN's CA");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.join("vpn-ca.pem"), issuer.pem())?;
        Ok(Self {
            issuer,
            folder: folder.to_owned(),
        })
    }

    /// Issues a certificate for a common name: `NAME.vpn.pem`, `NAME.vpn.key`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyAgreement];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        fs::write(self.folder.join(format!("{name}.vpn.pem")), certificate.pem())?;
        fs::write(self.folder.join(format!("{name}.vpn.key")), key.serialize_pem())?;
        Ok(())
    }
}

/// The lines of a server's configuration that have it report to Lazaret.
#[must_use]
pub fn hooks(gateway: &Gateway) -> String {
    let (binary, socket) = (gateway::binary(), gateway.socket());
    let state = gateway.folder().join("openvpn");
    let hook = format!(
        "{} hook openvpn --socket {} --state {}",
        binary.display(),
        socket.display(),
        state.display()
    );
    let events = ["up", "client-connect", "client-disconnect", "learn-address"];
    let lines = events.map(|event| format!("{event} \"{hook}\"\n")).concat();
    format!("script-security 2\n{lines}")
}

/// Starts the server: tun0, 10.66.0.0/24 and fd00:66::/64, UDP port 1194 on the underlay. It has addresses for `clients` clients
/// (2 at least, says OpenVPN); `lines` are added to its configuration.
///
/// # Errors
/// It does not start; the error holds its log.
pub fn server(gw: &Namespace, authority: &Authority, clients: u8, lines: &str) -> Result<Process> {
    authority.issue("server", ExtendedKeyUsagePurpose::ServerAuth)?;
    let mut config = common("server", &authority.folder);
    config.push_str(
        "local 10.8.0.1\nport 1194\ndh none\nkeepalive 1 4\nmode server\ntls-server\nifconfig 10.66.0.1 255.255.255.0\nifconfig-ipv6 fd00:66::1/64 fd00:66::2\n\
         push \"topology subnet\"\npush \"route-gateway 10.66.0.1\"\npush \"tun-ipv6\"\npush \"route 10.9.0.0 255.255.255.0\"\npush \"route-ipv6 fd00:9::/64\"\n",
    );
    config.push_str(&format!(
        "ifconfig-pool 10.66.0.2 10.66.0.{} 255.255.255.0\nifconfig-ipv6-pool fd00:66::1000/64\n{lines}",
        clients.saturating_add(1)
    ));
    let mut process = start(gw, "openvpn-server", &config, &authority.folder)?;
    process.prints("Initialization Sequence Completed", LIMIT)?;
    Ok(process)
}

/// Connects a device with this common name, and waits until its tunnel is up. Gives its addresses too.
///
/// # Errors
/// It does not connect in time; the error holds its log.
pub fn connect(device: &Namespace, authority: &Authority, name: &str) -> Result<(Process, Vec<IpAddr>)> {
    let mut process = client(device, authority, name)?;
    process.prints("Initialization Sequence Completed", LIMIT)?;
    let mut found = Vec::new();
    until(LIMIT, "the tunnel has its addresses", || {
        found = addresses(device)?;
        Ok(found.len() == 2)
    })?;
    Ok((process, found))
}

/// Starts a client with this common name, and does not wait.
///
/// # Errors
/// It cannot be started.
pub fn client(device: &Namespace, authority: &Authority, name: &str) -> Result<Process> {
    authority.issue(name, ExtendedKeyUsagePurpose::ClientAuth)?;
    let mut config = common(name, &authority.folder);
    config.push_str("client\nremote 10.8.0.1 1194\nnobind\nremote-cert-tls server\nconnect-retry 1 1\nserver-poll-timeout 4\nexplicit-exit-notify 1\n");
    start(device, &format!("openvpn-{name}"), &config, &authority.folder)
}

fn common(name: &str, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "dev tun0\ndev-type tun\nproto udp4\ntopology subnet\nverb 3\nca {folder}/vpn-ca.pem\ncert {folder}/{name}.vpn.pem\n\
         key {folder}/{name}.vpn.key\n"
    )
}

fn start(namespace: &Namespace, name: &str, config: &str, folder: &Path) -> Result<Process> {
    let file = folder.join(format!("{name}.conf"));
    fs::write(&file, config)?;
    Process::spawn(
        namespace.command("openvpn").arg("--config").arg(&file),
        &folder.join(format!("{name}.log")),
    )
}

/// Addresses of the device's tunnel, other than link-local ones.
fn addresses(device: &Namespace) -> Result<Vec<IpAddr>> {
    let text = device.ip("-json address show dev tun0 scope global")?;
    let links: serde_json::Value = serde_json::from_str(&text).context("`ip -json` is not JSON")?;
    let entries = links[0]["addr_info"].as_array().cloned().unwrap_or_default();
    Ok(entries.iter().filter_map(|e| e["local"].as_str()?.parse().ok()).collect())
}
