//! `grpc.health.v1.Health`: the server, each of its services, and each model by its name.

use super::super::answer::{self, Dialect, HttpResponse};
use super::super::answer_body::AnswerBody;
use super::super::data_plane::DataPlane;
use super::super::handle::Caller;
use super::super::info::{check_ready, with_entry};
use super::call::{HEALTH, INFERENCE, MODELS, PREDICTION};
use super::describe::any_version;
use super::messages::{Messages, Sender};
use super::unary::{framed, read};
use super::{Asked, set_headers};
use crate::access::Permission;
use crate::model::{Code, Failure, RequestId};
use http::Response;
use http::request::Parts;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// How often a watch looks.
const LOOK: Duration = Duration::from_millis(250);

/// Whether a request may know the status of a service. That of a model needs what its readiness over HTTP needs.
///
/// # Errors
/// `UNAUTHENTICATED` and `FORBIDDEN`.
pub(super) fn check(plane: &DataPlane, caller: &Caller, parts: &Parts, service: &str) -> Result<(), Failure> {
    if matches!(service, "" | INFERENCE | PREDICTION | MODELS | HEALTH) {
        return Ok(());
    }
    let identity = plane.check_permission(Permission::AnyIdentity, None, parts, &caller.remembered)?;
    plane.check_model(identity.as_deref(), service)
}

/// The status of the server (`""` and the names of its services) or of a model.
///
/// # Errors
/// `MODEL_NOT_FOUND`.
pub(super) fn status(plane: &DataPlane, service: &str) -> Result<ServingStatus, Failure> {
    let serving = |is: bool| if is { ServingStatus::Serving } else { ServingStatus::NotServing };
    match service {
        "" | INFERENCE | PREDICTION | MODELS => Ok(serving(plane.ready())),
        HEALTH => Ok(ServingStatus::Serving),
        model => {
            let target = any_version(model);
            with_entry(plane, &target, |entry| {
                Ok(serving(!plane.is_stopping() && check_ready(entry, &target.version).is_ok()))
            })
        }
    }
}

/// Answers with the status, and with each change of it, until the client ends the call or the server stops.
pub(super) async fn watch(plane: &Arc<DataPlane>, asked: Asked<'_>) -> HttpResponse {
    let id = answer::caller_id(&asked.parts.headers).unwrap_or_else(RequestId::generate);
    let (caller, parts) = (Arc::clone(asked.caller), asked.parts.clone());
    let opened = async {
        let held = plane.watches.enter(caller.address)?;
        let request: HealthCheckRequest = read(plane, asked).await?;
        // Decided once. A model that does not exist may come.
        check(plane, &caller, &parts, &request.service)?;
        Ok::<_, Failure>((held, request.service))
    };
    let mut response = match opened.await {
        Err(failure) => {
            plane.count_refusal(failure.code);
            Dialect::Grpc.error(&failure)
        }
        Ok((held, service)) => {
            let watched = Arc::clone(plane);
            let messages = Messages::new(plane, |sender| async move {
                let _held = held;
                tell(&watched, &service, &sender).await
            });
            let mut response = Response::new(AnswerBody::of_messages(messages));
            set_headers(response.headers_mut());
            response
        }
    };
    answer::set_request_id(response.headers_mut(), &id);
    response
}

async fn tell(plane: &DataPlane, service: &str, sender: &Sender) -> Result<(), Failure> {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        look.tick().await;
        let stops = plane.is_stopping();
        let now = status(plane, service).unwrap_or(ServingStatus::ServiceUnknown);
        if told != Some(now) {
            told = Some(now);
            if sender.send(framed(&HealthCheckResponse { status: now.into() })?).await.is_err() {
                return Ok(());
            }
        }
        if stops {
            return Err(Failure::new(Code::Draining, "the server is stopping"));
        }
    }
}
