//! Clients and CAs that nothing of ours made: another CA, TLS without gRPC, HTTP/2 frame by frame.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use gateway_user::model::Role;
use lazaret_proto::v1::{self, inspect_service_client::InspectServiceClient};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{
    Code, Status,
    transport::{Endpoint, Identity},
};

use crate::gateway::{Gateway, NAME};

/// A CA that an administrator trusts beside the one of `lazaret pki`, without its restrictions.
pub(crate) struct OtherCa {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

pub(crate) fn ca_params(cn: &str, uris: &[&str]) -> CertificateParams {
    let mut params = params(cn, uris);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![];
    params
}

pub(crate) fn params(cn: &str, uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, cn);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())).collect();
    params
}

impl OtherCa {
    pub(crate) fn new(uris: &[&str]) -> Self {
        let (params, key) = (ca_params("other-ca", uris), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// One whose certificate ends.
    pub(crate) fn until(end: SystemTime) -> Self {
        let (mut params, key) = (ca_params("ending-ca", &[]), KeyPair::generate().unwrap());
        params.not_after = end.into();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub(crate) fn sign(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity::from_pem(certificate.pem(), key.serialize_pem())
    }

    /// A leaf below an intermediate CA.
    pub(crate) fn sign_below(&self, intermediate: &CertificateParams, leaf: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let middle: Certificate = intermediate.signed_by(&key, &self.issuer).unwrap();
        let issuer = Issuer::new(intermediate.clone(), key);
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
        Identity::from_pem(leaf.pem() + &middle.pem(), leaf_key.serialize_pem())
    }

    /// A revocation list of these serial numbers.
    pub(crate) fn list(&self, serials: &[u64], next_update: SystemTime) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: SystemTime::now().into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: (SystemTime::now() - Duration::from_secs(7200)).into(),
            next_update: next_update.into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// Asks for the status; the handshake may fail already.
pub(crate) async fn status(endpoint: Endpoint) -> Result<v1::GetStatusResponse, Result<Status, String>> {
    let channel = endpoint.connect().await.map_err(|e| Err(format!("{e:?}")))?;
    let answer = InspectServiceClient::new(channel).get_status(v1::GetStatusRequest {}).await;
    // With TLS 1.3 a client learns of a refused certificate at its first read: tonic shows that without ErrorInfo.
    answer.map(tonic::Response::into_inner).map_err(|e| match e.code() {
        Code::Unknown | Code::Unavailable | Code::Cancelled | Code::Internal => Err(format!("{e:?}")),
        _ => Ok(e),
    })
}

pub(crate) async fn tls(gateway: &Gateway, role: Role) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    // Makes the files if they are not there yet.
    let _ = gateway.pki.client(role);
    let name = format!("{role:?}").to_lowercase();
    let file = |f: String| gateway.pki.ca.join(f);
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(file("ca.pem".into())).unwrap())
        .unwrap();
    let chain = vec![CertificateDer::from_pem_file(file(format!("{name}.pem"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(file(format!("{name}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = config
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(ServerName::try_from(NAME).unwrap(), stream).await.unwrap()
}

/// An HTTP/2 connection that is spoken by hand (RFC 9113).
pub(crate) struct Http2 {
    pub(crate) stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
}

/// A frame that came: type, flags, stream, payload.
pub(crate) type Frame = (u8, u8, u32, Vec<u8>);

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
/// RFC 9113, section 7.
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

impl Http2 {
    pub(crate) async fn connect(gateway: &Gateway, role: Role) -> Self {
        let mut stream = tls(gateway, role).await;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut http2 = Self { stream };
        http2.send(SETTINGS, 0, 0, &[]).await.unwrap();
        http2
    }

    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await?;
        self.stream.flush().await
    }

    /// The next frame; `None`: the other side has closed.
    pub(crate) async fn receive(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, payload))
    }

    /// Reads until the other side closes; the error code of its GOAWAY, if it said one.
    pub(crate) async fn until_closed(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some((kind, _, _, payload)) = self.receive().await {
            if kind == GOAWAY {
                code = payload.get(4..8).map(|c| u32::from_be_bytes(c.try_into().unwrap()));
            }
        }
        code
    }
}

/// HPACK: fields as literals without indexing and without Huffman (RFC 7541, section 6.2.2).
pub(crate) fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in list {
        out.push(0);
        for text in [name, value] {
            // An integer with a prefix of 7 bits (section 5.1).
            match u8::try_from(text.len()) {
                Ok(short) if short < 127 => out.push(short),
                _ => {
                    out.push(127);
                    let mut rest = text.len() - 127;
                    while rest >= 128 {
                        out.push(u8::try_from(rest % 128).unwrap() | 128);
                        rest /= 128;
                    }
                    out.push(u8::try_from(rest).unwrap());
                }
            }
            out.extend(text.bytes());
        }
    }
    out
}

/// The fields of a call.
pub(crate) fn call_fields(path: &str) -> Vec<u8> {
    fields(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", NAME),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}
