//! The other way to a daemon: its network API, over mutual TLS. Who asks is what the certificate says; the Unix socket is for local tools.

use std::{path::Path, time::Duration};

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{args::Network, client::Failure};

/// A connection to `[api]` of a gateway, within the deadline; `None`: none was named.
///
/// # Errors
/// [`Failure::Local`]: what was named cannot be used; [`Failure::Unreachable`]: nobody answers, or one of the two does not trust the other.
pub(super) async fn channel(network: &Network, deadline: Duration) -> Result<Option<(Channel, String)>, Failure> {
    let Some(at) = &network.api else { return Ok(None) };
    let named = |file: &Option<std::path::PathBuf>, option: &str| match file {
        Some(file) => read(file),
        None => Err(Failure::Local(format!("--api needs {option}"))),
    };
    let ca = named(&network.api_ca, "--api-ca")?;
    let (certificate, key) = (
        named(&network.api_certificate, "--api-certificate")?,
        named(&network.api_key, "--api-key")?,
    );
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .identity(Identity::from_pem(certificate, key));
    if let Some(name) = &network.api_name {
        tls = tls.domain_name(name);
    }
    let endpoint = Endpoint::from_shared(format!("https://{at}"))
        .map_err(|e| Failure::Local(format!("--api takes HOST:PORT: {at}: {e}")))?
        .tls_config(tls)
        .map_err(|e| Failure::Local(format!("--api-ca, --api-certificate or --api-key: {}", causes(&e))))?
        .connect_timeout(deadline);
    let unreachable = |why: String| Failure::Unreachable { at: at.clone(), why };
    let connected = tokio::time::timeout(deadline, endpoint.connect()).await;
    let channel = connected
        .map_err(|_| unreachable("no connection in time".to_owned()))?
        .map_err(|e| unreachable(causes(&e)))?;
    Ok(Some((channel, at.clone())))
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|e| Failure::Local(format!("{}: {e}", file.display())))
}

/// An error with its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}
