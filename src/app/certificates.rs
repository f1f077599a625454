//! The certificates of both planes.

use super::StartError;
use super::commands::{FAILED, USAGE};
use crate::cli::{self, CertificateOptions};
use crate::config::Config;
use crate::telemetry::Telemetry;
use crate::tls::{self, Tls};
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

/// Makes certificates for trying, and prints how to use them.
#[must_use]
pub fn certificate(options: &CertificateOptions) -> ExitCode {
    let CertificateOptions { names, clients, dir, days } = options;
    if names.is_empty() && clients.is_empty() {
        eprintln!("sluicegate: nothing to make: give --for NAME for a server, or --client NAME");
        return ExitCode::from(USAGE);
    }
    let wanted = tls::Wanted { dir: dir.clone(), names: names.clone(), clients: clients.clone(), days: *days };
    let made = match tls::make(&wanted) {
        Ok(made) => made,
        Err(error) => {
            cli::complain(&error);
            return ExitCode::from(FAILED);
        }
    };
    let mut text = String::new();
    let at = |name: &str| dir.join(name).display().to_string();
    for file in &made.files {
        let note = if file.extension().is_some_and(|ending| ending == "key") { "   (private)" } else { "" };
        let _ = writeln!(text, "wrote {}{note}", file.display());
    }
    let authority = if clients.is_empty() { String::new() } else { format!("client_ca = {:?}\n", at("client-ca.crt")) };
    if let Some(name) = names.first() {
        let (certificate, key) = (at("server.crt"), at("server.key"));
        let _ = write!(
            text,
            "\nIn the configuration, for predictions ([server.tls]) or operators ([admin.tls]):\n\n\
             [server.tls]\ncertificate = {certificate:?}\nkey = {key:?}\n{authority}\n\
             Callers trust it with: curl --cacert {certificate} https://{name}:8080/v2\n\
             Operators trust it with: sluicegate --admin https://{name}:8081 --ca {certificate} models\n"
        );
    } else {
        let _ = write!(text, "\nThe authority for [server.tls] or [admin.tls]:\n\n{authority}");
    }
    if let Some(name) = clients.first() {
        let (certificate, key) = (at(&format!("{name}.crt")), at(&format!("{name}.key")));
        let _ =
            writeln!(text, "{name} adds: --client-cert {certificate} --client-key {key} (for curl: --cert and --key)");
        let rules: Vec<String> =
            clients.iter().map(|name| format!("    {{ name = {name:?}, role = \"operator\" }},\n")).collect();
        let _ = write!(
            text,
            "\nA certificate alone allows nothing. Who it is, with a role (predict, viewer, operator, approver, admin) for each, and that the admin \
             plane asks:\n\n[access]\ncertificates = [\n{}]\n\n[admin]\nrequire_token = true\n",
            rules.concat()
        );
    }
    // Fails when it cannot be written anywhere; the exit code says the rest.
    let _ = cli::print(&text, false);
    ExitCode::SUCCESS
}

/// The certificates of both planes. A plane without one speaks plain HTTP.
#[derive(Debug, Clone)]
pub(super) struct Certificates {
    pub data: Option<Arc<Tls>>,
    pub admin: Option<Arc<Tls>>,
}

impl Certificates {
    /// # Errors
    /// When configured files cannot be used.
    pub(super) fn load(config: &Config, telemetry: &Telemetry) -> Result<Certificates, StartError> {
        let load = |config: &Option<tls::Config>, plane| {
            let load = |config| Tls::start(config, plane, telemetry.process());
            config.as_ref().map(load).transpose().map_err(|source| StartError::Tls { plane, source })
        };
        Ok(Certificates { data: load(&config.server.tls, "data")?, admin: load(&config.admin.tls, "admin")? })
    }

    /// Looks for changed files. To be called every second.
    pub(super) fn look(&self) {
        self.data.iter().chain(&self.admin).for_each(|tls| tls.look());
    }

    /// Loads all files again.
    pub(super) fn reload(&self, config: &Config) {
        for (tls, config) in [(&self.data, &config.server.tls), (&self.admin, &config.admin.tls)] {
            if let (Some(tls), Some(config)) = (tls, config) {
                tls.reload(config);
            }
        }
    }

    /// When the certificate of each plane ends.
    pub(super) fn ends(&self) -> Vec<(&'static str, jiff::Timestamp)> {
        self.data.iter().chain(&self.admin).map(|tls| (tls.plane(), tls.ends())).collect()
    }

    /// What an operator should know now, for the readiness of the admin plane.
    pub(super) fn warnings(&self) -> Arc<dyn Fn() -> Vec<String> + Send + Sync> {
        let all = self.clone();
        Arc::new(move || all.data.iter().chain(&all.admin).flat_map(|tls| tls.warnings()).collect())
    }
}
