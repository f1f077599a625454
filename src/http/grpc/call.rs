//! The calls of the gRPC services, by their paths.

use crate::access::Permission;

/// A call that this server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Call {
    // inference.GRPCInferenceService
    ServerLive,
    ServerReady,
    ModelReady,
    ServerMetadata,
    ModelMetadata,
    ModelInfer,
    ModelStreamInfer,
    ModelConfig,
    ModelStatistics,
    RepositoryIndex,
    // tensorflow.serving
    Predict,
    GetModelMetadata,
    GetModelStatus,
    // grpc.health.v1
    HealthCheck,
    HealthWatch,
    // grpc.reflection
    ReflectionV1,
    ReflectionV1Alpha,
}

pub(super) const INFERENCE: &str = "inference.GRPCInferenceService";
pub(super) const PREDICTION: &str = "tensorflow.serving.PredictionService";
pub(super) const MODELS: &str = "tensorflow.serving.ModelService";
pub(super) const HEALTH: &str = "grpc.health.v1.Health";

impl Call {
    /// The call with this path: `/SERVICE/METHOD`.
    pub(in crate::http) fn of(path: &str) -> Option<Call> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        Some(match (service, method) {
            (INFERENCE, "ServerLive") => Call::ServerLive,
            (INFERENCE, "ServerReady") => Call::ServerReady,
            (INFERENCE, "ModelReady") => Call::ModelReady,
            (INFERENCE, "ServerMetadata") => Call::ServerMetadata,
            (INFERENCE, "ModelMetadata") => Call::ModelMetadata,
            (INFERENCE, "ModelInfer") => Call::ModelInfer,
            (INFERENCE, "ModelStreamInfer") => Call::ModelStreamInfer,
            (INFERENCE, "ModelConfig") => Call::ModelConfig,
            (INFERENCE, "ModelStatistics") => Call::ModelStatistics,
            (INFERENCE, "RepositoryIndex") => Call::RepositoryIndex,
            (PREDICTION, "Predict") => Call::Predict,
            (PREDICTION, "GetModelMetadata") => Call::GetModelMetadata,
            (MODELS, "GetModelStatus") => Call::GetModelStatus,
            (HEALTH, "Check") => Call::HealthCheck,
            (HEALTH, "Watch") => Call::HealthWatch,
            ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo") => Call::ReflectionV1,
            ("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo") => Call::ReflectionV1Alpha,
            _ => return None,
        })
    }

    /// What it needs of its caller before its message is read. A call about a model needs more when the message has named it.
    pub(in crate::http) fn permission(self) -> Permission {
        match self {
            // An orchestrator sends probes without credentials.
            Call::ServerLive | Call::ServerReady | Call::HealthCheck | Call::HealthWatch => Permission::Open,
            _ => Permission::AnyIdentity,
        }
    }
}
