//! The commands `keygen` and `sign`: keys, and signatures of versions.

use super::commands::FAILED;
use crate::cli::{self, KeygenOptions, SignOptions};
use crate::prepare::{SIGNATURE_FILE, SigningKey};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::ExitCode;

/// Makes a key: the private one goes into a new file that only its owner can read, the public one is printed as the configuration takes it.
#[must_use]
pub fn keygen(options: &KeygenOptions) -> ExitCode {
    let make = || {
        let (key, pem) = SigningKey::generate()?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&options.output)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()?;
        Ok::<_, std::io::Error>(key)
    };
    match make() {
        Ok(key) => {
            // Fails when the reader has closed the pipe.
            let _ = writeln!(std::io::stdout(), "{}={}", options.name, key.public());
            ExitCode::SUCCESS
        }
        Err(error) => failed(&format!("cannot make the key {}: {error}", options.output.display())),
    }
}

/// Signs a version: writes `model.sig` beside its model.
#[must_use]
pub fn sign(options: &SignOptions) -> ExitCode {
    let key_file = options.key.display().to_string();
    let signed = std::fs::read_to_string(&options.key)
        .map_err(|e| format!("cannot read {key_file}: {e}"))
        .and_then(|text| SigningKey::from_pem(&key_file, &text).map_err(|e| e.to_string()))
        .and_then(|key| key.sign(&options.version).map_err(|e| e.to_string()));
    let path = options.version.join(SIGNATURE_FILE);
    let signature = match signed {
        Ok(signature) => signature,
        Err(message) => return failed(&message),
    };
    // Whole or not at all: a server may be watching the directory.
    let temporary = options.version.join(format!(".{SIGNATURE_FILE}.{}", std::process::id()));
    let written = std::fs::write(&temporary, &signature).and_then(|()| std::fs::rename(&temporary, &path));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary);
        return failed(&format!("cannot write {}: {error}", path.display()));
    }
    let _ = write!(std::io::stdout(), "{signature}");
    ExitCode::SUCCESS
}

fn failed(message: &str) -> ExitCode {
    cli::complain(&message);
    ExitCode::from(FAILED)
}
