//! Sluicegate: a low-latency model-serving gateway. Each module is a room; `docs/ARCHITECTURE.md` is the map.

pub mod backend;
pub mod model;
pub mod telemetry;
pub mod tensor;
