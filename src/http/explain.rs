//! Explanations: which columns of a row an answer came from (`POST /v1/models/M:explain`).

use super::admission::{AdmittedBody, admit_and_read};
use super::answer::{self, Dialect, HttpResponse};
use super::data_plane::{DataPlane, RequestKind};
use super::door::Arrived;
use super::endpoint::Target;
use super::workers::LARGE;
use crate::budget::Hold;
use crate::codec::oip;
use crate::columns::ElementNames;
use crate::explain::{Explanation, Job, MAX_ROWS_RUN, Options, background_of_profile};
use crate::model::{Checked, Code, Failure, InferenceRequest, RequestId, quoted};
use crate::registry::{Loaded, Served, Snapshot};
use crate::route::Selector;
use crate::serve::{self, not_found};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;

/// The members of a body that are not those of a prediction.
struct Parsed {
    request: InferenceRequest,
    /// `None`: the rows of the version's profile.
    background: Option<InferenceRequest>,
    options: Options,
}

/// Explains the answer for one row. Nothing of it is recorded, and it counts for no version.
pub(super) async fn explain(plane: &Arc<DataPlane>, request: Arrived<'_>, target: &Target<'_>) -> HttpResponse {
    let mut id = answer::caller_id(request.headers);
    let mut response = attempt(plane, request, target, &mut id).await.unwrap_or_else(|failure| {
        plane.count_refusal(failure.code);
        answer::error(&failure)
    });
    answer::set_request_id(response.headers_mut(), &id.unwrap_or_else(RequestId::generate));
    response
}

async fn attempt(
    plane: &Arc<DataPlane>,
    request: Arrived<'_>,
    target: &Target<'_>,
    id: &mut Option<RequestId>,
) -> Result<HttpResponse, Failure> {
    let binary = request.headers.contains_key(answer::HEADER_LENGTH);
    let caller = request.sender.caller.id();
    let AdmittedBody { _admitted, deadline, body, hold, .. } =
        admit_and_read(plane, RequestKind::Predict, request, Some(target), Dialect::Http).await?;
    let snapshot = plane.gateway.snapshot();
    // An unknown model or version is reported before an error in the body.
    let served = served_by(&snapshot, target)?;
    drop(snapshot);
    if binary {
        return Err(invalid("an explanation takes JSON without binary tensors".to_owned()));
    }
    let large = body.len() > LARGE;
    let parse = move || parse(&body, &hold).map(|parsed| (parsed, hold));
    let (parsed, _hold) = if large { plane.workers.run(deadline, parse).await?? } else { parse()? };
    let Parsed { request, background, options } = parsed;
    if let Some(given) = request.id.as_ref().filter(|id| !id.is_empty()) {
        *id = Some(RequestId::from_caller(given.clone()).map_err(|e| invalid(format!("id: {e}")))?);
    }
    let signature = &served.loaded.facts.signature;
    let row: Checked = signature.check(request)?;
    let names = element_names(&served.loaded.facts.metadata);
    let (background, compared_with) = background_rows(&served, background, &names)?;
    let job = Job { served: Arc::clone(&served), row, background, names, options, deadline, caller };
    let explanation = plane.explainer.explain(job).await?;
    let version = plane.limits.version_in_body().then(|| served.loaded.version.to_string());
    let mut shown = json!({ "model_name": target.model });
    if let Some(version) = version {
        shown["model_version"] = version.into();
    }
    shown["id"] = id.get_or_insert_with(RequestId::generate).as_str().into();
    if let (Value::Object(shown), Value::Object(values)) = (&mut shown, as_json(&explanation, &compared_with)) {
        shown.extend(values);
    }
    Ok(answer::json(shown.to_string()))
}

/// The rows of the request, else those of the version's profile, with words that name them.
fn background_rows(
    served: &Served,
    given: Option<InferenceRequest>,
    names: &ElementNames,
) -> Result<(Checked, String), Failure> {
    let Loaded { version, facts, .. } = &*served.loaded;
    if let Some(given) = given {
        let checked = facts.signature.check(given).map_err(|failure| failure.within("background: "))?;
        return Ok((checked, "rows of the request".to_owned()));
    }
    let found = background_of_profile(facts.profile.as_deref(), *version, &facts.signature, names)?;
    found.ok_or_else(|| {
        invalid(format!(
            "member \"background\" is missing: expected {{\"inputs\":[…]}} with rows to compare with, such as 100 rows of the training data; version {version} \
             has no profile.json with such rows (`sluicegate profile` writes it)"
        ))
    })
}

/// The version that the path names; without one, the one with most of the traffic.
fn served_by(snapshot: &Snapshot, target: &Target<'_>) -> Result<Arc<Served>, Failure> {
    let selector = target.version.selector();
    if let Some(failure) = not_found(snapshot, &target.model, selector) {
        return Err(failure);
    }
    let entry = serve::find(snapshot, &target.model)?;
    let served = match selector {
        Selector::Traffic => entry.candidates(selector).next().and_then(|_| entry.representative()),
        _ => entry.candidates(selector).next(),
    };
    served
        .cloned()
        .ok_or_else(|| Failure::new(Code::NotReady, format!("no version of model {} can answer now", target.model)))
}

fn parse(body: &Bytes, hold: &Hold) -> Result<Parsed, Failure> {
    let oip::OipRequest { request, .. } = oip::decode_counted(body, None, hold)?;
    let (mut background, mut options): (Option<Option<String>>, _) = (None, None);
    // The whole body was read once, so it is valid JSON.
    for member in sonic_rs::to_object_iter(body.as_ref()) {
        let (name, value) = member.map_err(|e| invalid(format!("the body is not JSON: {e}")))?;
        let place = match &*name {
            "background" => &mut background,
            "explain" => &mut options,
            _ => continue,
        };
        if place.is_some() {
            return Err(invalid(format!("member {} is given more than once", quoted(&name))));
        }
        *place = Some(Some(value.as_raw_str()).filter(|text| *text != "null").map(str::to_owned));
    }
    let (background, options) = (background.flatten(), options.flatten());
    let options = options.map_or_else(|| Ok(Options::default()), |text| read_options(&text))?;
    let Some(background) = background else { return Ok(Parsed { request, background: None, options }) };
    hold.grow(background.len())?;
    let background = Bytes::from(background);
    let decoded = oip::decode_counted(&background, None, hold).map_err(|failure| failure.within("background: "))?;
    Ok(Parsed { request, background: Some(decoded.request), options })
}

/// `{"output","element","rows","seed"}`.
fn read_options(text: &str) -> Result<Options, Failure> {
    let mut complaints = Vec::new();
    let mut options = Options::default();
    let value: Value = serde_json::from_str(text).map_err(|e| invalid(format!("explain: {e}")))?;
    let Value::Object(members) = value else {
        return Err(invalid(
            "explain: expected an object such as {\"output\":\"probabilities\",\"element\":1}".to_owned(),
        ));
    };
    for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
        let number = || value.as_u64().and_then(|n| usize::try_from(n).ok());
        let expected = match name.as_str() {
            "output" => {
                value.as_str().map(|output| options.output = Some(output.to_owned())).ok_or("the name of an output")
            }
            "element" => number().map(|element| options.element = Some(element)).ok_or("a whole number of at least 0"),
            "rows" => number()
                .filter(|rows| (1..=MAX_ROWS_RUN).contains(rows))
                .map(|rows| options.rows = rows)
                .ok_or("a whole number from 1 to 200000"),
            "seed" => value.as_u64().map(|seed| options.seed = seed).ok_or("a whole number of at least 0"),
            _ => {
                complaints.push(format!(
                    "explain.{}: unknown member; known members: output, element, rows, seed",
                    quoted(name)
                ));
                continue;
            }
        };
        if let Err(expected) = expected {
            let found: String = value.to_string().chars().take(80).collect();
            complaints.push(format!("explain.{name}: expected {expected}, got {found}"));
        }
    }
    if complaints.is_empty() { Ok(options) } else { Err(Failure::several(Code::InvalidRequest, complaints)) }
}

/// The names of elements in the `model.toml` of a version, from its metadata.
fn element_names(metadata: &Value) -> ElementNames {
    let of_model = &metadata["model.toml"];
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let by_tensor = of_model["features"].as_object().into_iter().flatten();
    ElementNames {
        by_tensor: by_tensor.map(|(tensor, names)| (tensor.clone(), texts(names))).collect(),
        of_only_input: texts(&of_model["feature_names"]),
    }
}

/// An explanation, as the API and the command line show it. `compared_with` names the background rows.
pub(crate) fn as_json(explanation: &Explanation, compared_with: &str) -> Value {
    let Explanation { output, element, base, answer, columns, background_rows, pairs, rows_run } = explanation;
    let columns: Vec<Value> = columns
        .iter()
        .map(|column| json!({ "column": column.name, "input": column.input, "value": column.value, "standard_error": column.standard_error }))
        .collect();
    json!({
        "output": output, "element": element, "base": base, "answer": answer, "columns": columns,
        "background_rows": background_rows, "compared_with": compared_with, "pairs": pairs, "rows_run": rows_run,
    })
}

fn invalid(message: String) -> Failure {
    Failure::new(Code::InvalidRequest, message)
}
