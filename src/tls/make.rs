//! Makes certificates for trying.

use super::{ClientCertificate, files};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The most characters of a name. The subject of a certificate allows no more.
const MAX_NAME: usize = 64;
/// The most names of one certificate.
const MAX_NAMES: usize = 100;

/// What to make.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where. The directory is created.
    pub dir: PathBuf,
    /// Names and addresses of the server. None: no certificate for a server.
    pub names: Vec<String>,
    /// Names of clients, each of which gets a certificate.
    pub clients: Vec<String>,
    /// For how long they are valid.
    pub days: u16,
}

/// The files that were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub files: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error("there is {} already, and it is not overwritten: choose another directory, or remove it", .0.display())]
    Exists(PathBuf),
    #[error("there is {} but not {}: both are needed to sign the certificate of a client", there.display(), missing.display())]
    HalfAuthority { there: PathBuf, missing: PathBuf },
    #[error("{} cannot sign certificates of clients here: {reason}", path.display())]
    Authority { path: PathBuf, reason: String },
    #[error(
        "{0:?} is not a name for a client: expected 1 to {MAX_NAME} letters, digits, '.', '_', '-' or '@', beginning with a letter or digit"
    )]
    ClientName(String),
    #[error("{name:?} is not a name or address of a server: {reason}")]
    ServerName { name: String, reason: String },
    #[error("at most {MAX_NAMES} names, got {0}")]
    TooMany(usize),
    #[error("the name {0:?} is given twice, or is the name of a file that this command makes")]
    Twice(String),
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

struct NewFile {
    path: PathBuf,
    text: String,
    is_secret: bool,
}

/// Makes a certificate that signs itself for a server, and certificates for clients that an authority signs. The authority is made where
/// there is none. Existing files are not changed.
///
/// # Errors
/// When a name cannot be used, a file exists already or cannot be written.
pub fn make(wanted: &Wanted) -> Result<Made, MakeError> {
    let in_dir = |name: &str, ending: &str| wanted.dir.join(format!("{name}.{ending}"));
    check(wanted)?;
    let mut files = Vec::new();
    let mut add = |name: &str, certificate: String, key: &KeyPair| {
        files.push(NewFile { path: in_dir(name, "key"), text: key.serialize_pem(), is_secret: true });
        files.push(NewFile { path: in_dir(name, "crt"), text: certificate, is_secret: false });
    };
    if let Some(first) = wanted.names.first() {
        let mut params = params(wanted.days, wanted.names.clone(), first)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        add("server", params.self_signed(&key)?.pem(), &key);
    }
    if !wanted.clients.is_empty() {
        let (certificate, key) = (in_dir("client-ca", "crt"), in_dir("client-ca", "key"));
        let authority = match (certificate.exists(), key.exists()) {
            (true, true) => existing_authority(&certificate, &key, wanted.days)?,
            (true, false) => return Err(MakeError::HalfAuthority { there: certificate, missing: key }),
            (false, true) => return Err(MakeError::HalfAuthority { there: key, missing: certificate }),
            (false, false) => {
                let (params, key) = (authority_params(wanted.days)?, KeyPair::generate()?);
                add("client-ca", params.self_signed(&key)?.pem(), &key);
                Issuer::new(params, key)
            }
        };
        for name in &wanted.clients {
            let mut params = params(wanted.days, Vec::new(), name)?;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            let key = KeyPair::generate()?;
            add(name, params.signed_by(&key, &authority)?.pem(), &key);
        }
    }
    write(&wanted.dir, files)
}

/// The subject of the authority that this command makes.
const AUTHORITY: &str = "Sluicegate client CA";

fn authority_params(days: u16) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(days, Vec::new(), AUTHORITY)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The authority that an earlier call made.
fn existing_authority(certificate: &Path, key: &Path, days: u16) -> Result<Issuer<'static, KeyPair>, MakeError> {
    let not_ours = |reason: String| MakeError::Authority { path: certificate.to_owned(), reason };
    let read =
        |path: &Path| fs::read_to_string(path).map_err(|source| MakeError::Read { path: path.to_owned(), source });
    let chain = files::certificates(certificate).map_err(|e| not_ours(e.to_string()))?;
    let ours = ClientCertificate::read(&chain[0]).map_err(not_ours)?;
    if ours.common_name.as_deref() != Some(AUTHORITY) {
        return Err(not_ours(format!("expected the subject CN={AUTHORITY}, found {:?}", ours.subject)));
    }
    if ours.not_after <= Timestamp::now() {
        return Err(not_ours(format!("it expired on {}", ours.not_after)));
    }
    let pair = KeyPair::from_pem(&read(key)?)?;
    if !chain[0].windows(pair.public_key_raw().len()).any(|part| part == pair.public_key_raw()) {
        return Err(not_ours(format!("{} is not its key", key.display())));
    }
    Ok(Issuer::new(authority_params(days)?, pair))
}

fn check(wanted: &Wanted) -> Result<(), MakeError> {
    let count = wanted.names.len() + wanted.clients.len();
    if count > MAX_NAMES {
        return Err(MakeError::TooMany(count));
    }
    for (index, name) in wanted.clients.iter().enumerate() {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || name.len() > MAX_NAME || !name.chars().all(is_allowed) {
            return Err(MakeError::ClientName(name.clone()));
        }
        if ["server", "client-ca"].contains(&name.as_str()) || wanted.clients[..index].contains(name) {
            return Err(MakeError::Twice(name.clone()));
        }
    }
    for name in &wanted.names {
        let refused = |reason: &str| MakeError::ServerName { name: name.clone(), reason: reason.to_owned() };
        let label = |label: &str| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
            (1..=63).contains(&label.len()) && label.chars().all(is_allowed)
        };
        let host = name.strip_prefix("*.").unwrap_or(name);
        let is_host = host.len() <= 253 && host.split('.').all(label);
        if name.parse::<std::net::IpAddr>().is_err() && !is_host {
            return Err(refused("expected a host name such as localhost, or an IP address"));
        }
    }
    Ok(())
}

fn params(days: u16, names: Vec<String>, common_name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    // Longer names stand among the alternative names only.
    params.distinguished_name.push(DnType::CommonName, common_name.chars().take(MAX_NAME).collect::<String>());
    // From the day before, because clocks differ.
    let day = |hours: i64| {
        let at = Timestamp::now() + SignedDuration::from_hours(hours);
        let date = at.to_zoned(TimeZone::UTC).date();
        date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    (params.not_before, params.not_after) = (day(-24), day((i64::from(days) + 1) * 24));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Writes all files, or none: those of a failed call are removed.
fn write(dir: &Path, files: Vec<NewFile>) -> Result<Made, MakeError> {
    if let Some(file) = files.iter().find(|file| file.path.symlink_metadata().is_ok()) {
        return Err(MakeError::Exists(file.path.clone()));
    }
    fs::create_dir_all(dir).map_err(|source| MakeError::Write { path: dir.to_owned(), source })?;
    let mut made = Made { files: Vec::new() };
    for file in files {
        let permissions = if file.is_secret { 0o600 } else { 0o644 };
        let opened = OpenOptions::new().write(true).create_new(true).mode(permissions).open(&file.path);
        let exists = opened.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists);
        let written = opened.and_then(|mut open| {
            made.files.push(file.path.clone());
            open.write_all(file.text.as_bytes()).and_then(|()| open.sync_all())
        });
        if let Err(source) = written {
            for path in &made.files {
                // What cannot be removed is named by the error of the next call.
                let _ = fs::remove_file(path);
            }
            let path = file.path;
            return Err(if exists { MakeError::Exists(path) } else { MakeError::Write { path, source } });
        }
    }
    Ok(made)
}
