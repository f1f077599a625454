//! Handler of the gateway itself: cores, memory, the disk, queues and certificates, each with its limit.

use super::Admin;
use super::probes::MemoryAnswer;
use crate::ledger::rfc3339;
use crate::machine::DiskSpace;
use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// What the gateway may use, and what it uses now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Facts {
    pub(crate) started: Timestamp,
    pub(crate) cores: usize,
    /// What limits the cores and the memory, in words.
    pub(crate) cores_limited_by: String,
    pub(crate) memory_bytes: u64,
    pub(crate) memory_limited_by: String,
    /// The memory that the process may still take; `None` where the kernel does not say.
    pub(crate) available_bytes: Option<u64>,
    /// The most that loaded versions may take.
    pub(crate) models_bytes: u64,
    /// Of the file system with the data directory; `None` where the system does not say.
    pub(crate) disk: Option<DiskSpace>,
    /// Requests that wait for a worker.
    pub(crate) waiting: usize,
    /// The plane of each certificate, and when it ends.
    pub(crate) certificates: Vec<(&'static str, Timestamp)>,
}

/// The gateway itself.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GatewayAnswer)]
pub(super) struct Gateway {
    /// The version of the program.
    program: &'static str,
    /// When the server process began. The supervisor begins another one where it ends.
    #[schema(format = DateTime)]
    started_at: String,
    cores: Cores,
    machine_memory: MachineMemory,
    /// What requests hold.
    memory: MemoryAnswer,
    /// The file system with the data directory; null where the system does not say.
    disk: Option<Disk>,
    queue: Queue,
    /// A sentence for each thread that is held by a run that does not end.
    stuck_threads: Vec<String>,
    /// Of the planes that have TLS.
    certificates: Vec<Certificate>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Cores {
    /// The cores that the process may use.
    limit: usize,
    /// What says so.
    limited_by: String,
    /// The cores that it used on average over the last minute; null in the first ten seconds.
    used: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
struct MachineMemory {
    /// The memory that the process may use.
    limit: u64,
    limited_by: String,
    /// What it may still take; null where the kernel does not say.
    available: Option<u64>,
    /// The most that loaded versions may take of it (`models.memory_budget`).
    models_limit: u64,
}

#[derive(Debug, Serialize, ToSchema)]
struct Disk {
    free: u64,
    total: u64,
}

/// Requests that wait for a worker.
#[derive(Debug, Serialize, ToSchema)]
struct Queue {
    waiting: usize,
    /// Above it, requests are refused.
    limit: usize,
}

#[derive(Debug, Serialize, ToSchema)]
struct Certificate {
    /// `data` or `admin`.
    plane: &'static str,
    #[schema(format = DateTime)]
    expires_at: String,
}

/// The gateway itself
///
/// Cores, memory, the disk, queues and certificates, each with its limit. What of it is wrong is an alert (`GET /api/v1/alerts?about=server`).
#[utoipa::path(
    get, path = "/api/v1/gateway", operation_id = "show_gateway", tag = "probes",
    responses((status = 200, description = "Now", body = Gateway))
)]
pub(super) async fn show(State(admin): State<Arc<Admin>>) -> Json<Gateway> {
    let facts = (admin.gateway)();
    let certificate = |(plane, ends): (&'static str, Timestamp)| Certificate { plane, expires_at: rfc3339(ends) };
    Json(Gateway {
        program: env!("CARGO_PKG_VERSION"),
        started_at: rfc3339(facts.started),
        cores: Cores { limit: facts.cores, limited_by: facts.cores_limited_by, used: admin.history.cores_used() },
        machine_memory: MachineMemory {
            limit: facts.memory_bytes,
            limited_by: facts.memory_limited_by,
            available: facts.available_bytes,
            models_limit: facts.models_bytes,
        },
        memory: MemoryAnswer::of((admin.memory)()),
        disk: facts.disk.map(|DiskSpace { free, total }| Disk { free, total }),
        queue: Queue { waiting: facts.waiting, limit: admin.execution.queue },
        stuck_threads: (admin.threads)().stuck,
        certificates: facts.certificates.into_iter().map(certificate).collect(),
    })
}
