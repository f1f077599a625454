//! The servers under test: each is started on free ports with its own directory, measured through `/proc`, and stopped.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::admin::Admin;
use crate::cores::Cores;
use crate::machine;
use crate::models;
use crate::scenario::{Scenario, Server, ServerKind};
use crate::wrong::{Result, While, Wrong};

/// Thousands of models take minutes to load.
const START_LIMIT: Duration = Duration::from_mins(3);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The programs to measure, and the root of the repository.
#[derive(Debug, Clone)]
pub struct Programs {
    pub root: PathBuf,
    pub sluicegate: PathBuf,
    pub floor: PathBuf,
}

/// A running server. Dropping it stops the process.
#[derive(Debug)]
pub struct Running {
    pub name: String,
    pub data: SocketAddr,
    /// `None` for the floor.
    pub admin: Option<Admin>,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `server` in its own `directory`, on its `cores` where they are given, and waits until it is ready.
    pub async fn start(
        scenario: &Scenario,
        server: &Server,
        programs: &Programs,
        directory: &Path,
        cores: Option<&Cores>,
    ) -> Result<Self> {
        let what = || format!("starting server {:?} of {}", server.name, scenario.name);
        let models_dir = directory.join("models");
        let here = server.models.iter().filter_map(|name| scenario.model(name));
        models::write_all(&models_dir, &programs.root, here)?;

        let log = directory.join("log");
        let out = File::create(&log).while_doing(what)?;
        let mut floor = None;
        let mut command = match server.kind {
            ServerKind::Sluicegate => {
                let mut command = Command::new(&programs.sluicegate);
                command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--models"]);
                command.arg(&models_dir).arg("--data-dir").arg(directory.join("data"));
                // The process that is measured is the one that was started.
                command.env("SLUICEGATE__SERVER__SUPERVISE", "false");
                command
            }
            ServerKind::Floor => {
                let address = free_address()?;
                floor = Some(address);
                let name = scenario.model(&server.models[0]).map(models::names).unwrap_or_default().swap_remove(0);
                let mut command = Command::new(&programs.floor);
                command.args(["--listen", &address.to_string(), "--model"]);
                command.arg(models_dir.join(name).join("1").join("model.onnx"));
                command
            }
        };
        command.args(&server.args).envs(&server.env).current_dir(&programs.root);
        command.stdout(out.try_clone().while_doing(what)?).stderr(out);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = match cores {
            Some(cores) => cores.on_servers(|| command.spawn())?,
            None => command.spawn(),
        }
        .while_doing(|| format!("starting {program}"))?;
        // From here on, dropping `running` stops the process.
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut running = Self { name: server.name.clone(), data: floor.unwrap_or(unknown), admin: None, child, log };
        running.wait(server.kind).await?;
        if let Some(admin) = running.admin {
            for model in &server.unloaded {
                admin.unload(model).await?;
            }
        }
        Ok(running)
    }

    async fn wait(&mut self, kind: ServerKind) -> Result<()> {
        let limit = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().while_doing(|| self.name.clone())? {
                return Err(Wrong::new(format!("server {:?} ended with {status}: {}", self.name, self.last_words())));
            }
            if kind == ServerKind::Sluicegate && self.admin.is_none() {
                let log = fs::read_to_string(&self.log).while_doing(|| format!("reading {}", self.log.display()))?;
                if let Some((data, admin)) = announced(&log) {
                    (self.data, self.admin) = (data, Some(Admin(admin)));
                }
            }
            let ready = match (kind, self.admin) {
                (ServerKind::Floor, _) => TcpStream::connect(self.data).await.map(drop).while_doing(|| "floor".into()),
                (ServerKind::Sluicegate, Some(admin)) => admin.ready().await,
                (ServerKind::Sluicegate, None) => Err(Wrong::new("its log names no addresses")),
            };
            let Err(why) = ready else { return Ok(()) };
            if Instant::now() > limit {
                return Err(Wrong::new(format!("server {:?} is not ready: {why}: {}", self.name, self.last_words())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// CPU time of all its threads so far, in microseconds.
    pub fn cpu_us(&self) -> Result<f64> {
        machine::process_cpu_us(self.child.id())
    }

    /// Resident memory, in kB of 1024 bytes.
    pub fn resident_kb(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).while_doing(|| format!("reading {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok())
            .ok_or_else(|| Wrong::new(format!("{path} has no VmRSS")))
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(id) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) else { return };
        // The process may have ended already; the error then means nothing.
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let limit = Instant::now() + STOP_LIMIT;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > limit {
                let _ = self.child.kill();
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// The addresses in the server's line `… listening data=127.0.0.1:1 admin=127.0.0.1:2 …`.
fn announced(log: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line = log.lines().find(|line| line.contains(" listening "))?;
    let value = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse().ok());
    Some((value("data=")?, value("admin=")?))
}

/// A free address for the floor, which only takes a fixed one. Another process could take the port in between.
fn free_address() -> Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).while_doing(|| "looking for a free port".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_found_in_the_log() {
        let log = "INFO found engine\n2026 INFO listening data=127.0.0.1:41147 admin=127.0.0.1:42579 models=m\n";
        let (data, admin) = announced(log).unwrap();
        assert_eq!((data.port(), admin.port()), (41147, 42579));
        assert_eq!(announced("INFO found\n"), None);
    }
}
