//! What a certificate says: who its owner is, and until when it is valid.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::net::IpAddr;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// The certificate with which a client proved its identity. All text comes from the certificate: whoever shows it must escape it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The whole subject in the form of RFC 4514, such as `CN=anna,O=Risk`.
    pub subject: String,
    /// The common name of the subject.
    pub common_name: Option<String>,
    /// The subject's alternative names.
    pub dns_names: Vec<String>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// SHA-256 over the certificate, in hexadecimal digits.
    pub sha256: String,
    /// The end of its validity. A connection can outlive it.
    pub not_after: Timestamp,
}

type Certificate = CertificateInner<Raw>;

impl ClientCertificate {
    /// Reads a certificate that was verified.
    ///
    /// # Errors
    /// When it is not encoded as X.509 asks for.
    pub(crate) fn read(der: &CertificateDer<'_>) -> Result<ClientCertificate, String> {
        let certificate = parse(der)?;
        let tbs = certificate.tbs_certificate();
        let mut client = ClientCertificate {
            subject: tbs.subject().to_string(),
            common_name: tbs.subject().common_name().ok().flatten().map(|name| name.value().into_owned()),
            dns_names: Vec::new(),
            emails: Vec::new(),
            uris: Vec::new(),
            addresses: Vec::new(),
            sha256: Sha256::digest(der).iter().fold(String::new(), |mut text, byte| {
                // Writing into a string cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            }),
            not_after: end(&certificate)?,
        };
        let names = tbs.get_extension::<SubjectAltName>().map_err(|e| format!("its alternative names: {e}"))?;
        for name in names.map(|(_, names)| names.0).unwrap_or_default() {
            match name {
                GeneralName::DnsName(name) => client.dns_names.push(name.to_string()),
                GeneralName::Rfc822Name(name) => client.emails.push(name.to_string()),
                GeneralName::UniformResourceIdentifier(name) => client.uris.push(name.to_string()),
                GeneralName::IpAddress(octets) => client.addresses.extend(address(octets.as_bytes())),
                _ => {}
            }
        }
        Ok(client)
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

fn parse(der: &CertificateDer<'_>) -> Result<Certificate, String> {
    Certificate::from_der(der).map_err(|e| e.to_string())
}

fn end(certificate: &Certificate) -> Result<Timestamp, String> {
    let seconds = certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs();
    let seconds = i64::try_from(seconds).map_err(|e| e.to_string())?;
    Timestamp::from_second(seconds).map_err(|e| e.to_string())
}

/// The end of a certificate's validity.
pub(super) fn not_after(der: &CertificateDer<'_>) -> Result<Timestamp, String> {
    end(&parse(der)?)
}
