//! Handler of MLflow's model registry: what was found there, and what became of its aliases.

use super::Admin;
use crate::mlflow::{AliasView, ModelView, VersionView, View};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// MLflow's model registry, as it was read last.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MlflowAnswer {
    /// The address of the tracking server; null where none is configured.
    uri: Option<String>,
    /// The alias that is a promotion when it moves.
    promote_alias: Option<String>,
    models: Vec<MlflowModel>,
}

#[derive(Debug, Serialize, ToSchema)]
struct MlflowModel {
    model: String,
    aliases: Vec<MlflowAlias>,
    /// The versions of the registry that were looked at: those with an alias, and the newest.
    versions: Vec<MlflowVersion>,
}

/// An alias, and what became of it since it moved.
#[derive(Debug, Serialize, ToSchema)]
struct MlflowAlias {
    alias: String,
    /// Null where the alias was removed, and its label is about to be.
    version: Option<String>,
    /// Whether it is a promotion; otherwise it is a label.
    promotes: bool,
    /// `waiting`, `applied`, `refused`, or `superseded`: somebody changed the same thing after the alias had moved.
    state: &'static str,
    message: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct MlflowVersion {
    version: String,
    /// Why it cannot be served here; null where it can.
    unusable: Option<String>,
}

/// MLflow's model registry
///
/// The versions and the aliases that were found in the registry of `[models.mlflow]`, and what became of each alias here. Whether the registry answers
/// is told by `/api/v1/sources`.
#[utoipa::path(
    get, path = "/api/v1/mlflow", operation_id = "show_mlflow", tag = "models",
    responses((status = 200, description = "What was found, and what became of it", body = MlflowAnswer))
)]
pub(super) async fn show(State(admin): State<Arc<Admin>>) -> Json<MlflowAnswer> {
    let View { uri, promote_alias, models } = admin.mlflow.view();
    Json(MlflowAnswer { uri, promote_alias, models: models.into_iter().map(MlflowModel::from).collect() })
}

impl From<ModelView> for MlflowModel {
    fn from(ModelView { model, aliases, versions }: ModelView) -> MlflowModel {
        let alias = |AliasView { alias, version, promotes, state, message }: AliasView| MlflowAlias {
            alias,
            version: version.map(|version| version.to_string()),
            promotes,
            state,
            message,
        };
        let version =
            |VersionView { version, unusable }: VersionView| MlflowVersion { version: version.to_string(), unusable };
        MlflowModel {
            model: model.to_string(),
            aliases: aliases.into_iter().map(alias).collect(),
            versions: versions.into_iter().map(version).collect(),
        }
    }
}
