//! What people sent and what they were answered, in logged requests and in the worst pairs of shadows: only for those who may export the log.
//!
//! Others see that a request was there, when, which version answered it and how it ended.

use super::Admin;
use crate::access::{self, Identity, Via};
use crate::ledger::{Action, Note};
use crate::model::{Code, Failure, ModelName, RequestId};
use serde_json::{Value, json};

/// Whether a caller may read contents of a model's requests.
pub(super) fn may_read(caller: &Identity, model: &ModelName) -> bool {
    caller.may(access::Action::Operate, Some(model.as_str()))
}

/// Where a caller may not read contents, nobody is looked for by a key either.
///
/// # Errors
/// `FORBIDDEN`.
pub(super) fn check_key(caller: &Identity, model: &ModelName) -> Result<(), Failure> {
    if may_read(caller, model) {
        return Ok(());
    }
    let message =
        "looking for requests by their route key needs the role operator or admin, as a key may be a person's";
    Err(Failure::new(Code::Forbidden, message))
}

/// Leaves contents out of a list of requests.
pub(super) fn leave_out_of_list(found: &mut Value) {
    members(found, "requests").iter_mut().for_each(leave_out_of_entry);
    found["contents"] = "withheld".into();
}

/// Leaves contents out of a line of a list.
pub(super) fn leave_out_of_line(line: &mut Value) {
    if let Some(request) = line.get_mut("request") {
        leave_out_of_entry(request);
    }
}

/// Leaves contents out of one request: elements of tensors, the words that quote them, feedback and the route key.
pub(super) fn leave_out_of_request(found: &mut Value) {
    for prediction in members(found, "predictions") {
        leave_out_of_head(prediction);
        for side in ["inputs", "outputs"] {
            for tensor in members(prediction, side) {
                tensor["data"] = json!([]);
                tensor["cut_texts"] = 0.into();
                // What is not stored stays named as such.
                if matches!(tensor["recorded"].as_str(), Some("as_is" | "hashed" | "masked")) {
                    tensor["recorded"] = "withheld".into();
                }
            }
        }
        if let Some(agrees) = prediction["compared"]["agrees"].as_bool() {
            prediction["compared"]["words"] = if agrees { "agrees" } else { "differs" }.into();
        }
    }
    found["feedback"] = json!([]);
    found["commands"] = json!({});
    found["contents"] = "withheld".into();
}

fn leave_out_of_entry(request: &mut Value) {
    leave_out_of_head(request);
    if !request["difference"].is_null() {
        request["difference"] = "differs".into();
    }
}

fn leave_out_of_head(request: &mut Value) {
    if !request["route_key"].is_null() {
        request["route_key"] = Value::Null;
    }
}

fn members<'v>(value: &'v mut Value, name: &str) -> &'v mut [Value] {
    value.get_mut(name).and_then(Value::as_array_mut).map_or(&mut [][..], Vec::as_mut_slice)
}

/// Notes in the audit trail that somebody reads the contents of one request. A caller without credentials has no name that proves anything, and no event.
///
/// # Errors
/// When the event cannot be stored: then nothing is shown.
pub(super) async fn note(
    admin: &Admin,
    caller: &Identity,
    model: &ModelName,
    request_id: &str,
    how: &str,
) -> Result<(), Failure> {
    let id = &request_id[..request_id.floor_char_boundary(RequestId::MAX_BYTES)];
    note_of_several(admin, caller, model, json!({ "request_id": id, "by": how })).await
}

/// The same for contents of several requests: `looked` says how they were found, without naming a person.
///
/// # Errors
/// As [`note`].
pub(super) async fn note_of_several(
    admin: &Admin,
    caller: &Identity,
    model: &ModelName,
    looked: Value,
) -> Result<(), Failure> {
    if caller.via == Via::Unproven {
        return Ok(());
    }
    let note = Note {
        model: Some(model.clone()),
        actor: caller.name.clone(),
        action: Action::ReadRequest,
        reason: None,
        before: None,
        after: Some(looked.to_string()),
    };
    admin.handle.note(note).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_person_sent_or_was_answered_is_left() {
        let secret = "alice-4711";
        let tensor = |recorded: &str| json!({"name": "x", "datatype": "BYTES", "shape": [1], "recorded": recorded, "elements": 1, "data": [secret], "cut_texts": 1});
        let mut found = json!({
            "request_id": "r1",
            "predictions": [
                {"request_id": "r1", "status": "ok", "version": "1", "route_key": secret, "inputs": [tensor("as_is"), tensor("hashed"), tensor("masked"), tensor("dropped")],
                    "outputs": [tensor("as_is")], "compared": null},
                {"role": "shadow", "inputs": [], "outputs": [tensor("as_is")], "compared": {"agrees": false, "words": secret}},
            ],
            "feedback": [{"row": 0, "label": secret, "values": {"paid": 1.0}}],
            "commands": {"reproduce": "sluicegate reproduce r1"},
        });
        leave_out_of_request(&mut found);
        assert!(!found.to_string().contains(secret), "{found}");
        let recorded: Vec<&str> = found["predictions"][0]["inputs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tensor| tensor["recorded"].as_str().unwrap())
            .collect();
        assert_eq!(recorded, ["withheld", "withheld", "withheld", "dropped"]);
        assert_eq!(found["predictions"][1]["compared"], json!({"agrees": false, "words": "differs"}));
        assert_eq!((&found["predictions"][0]["status"], &found["contents"]), (&json!("ok"), &json!("withheld")));

        let mut list = json!({"requests": [{"request_id": "r1", "status": "ok", "route_key": secret, "difference": secret}, {"request_id": "r2", "difference": null}]});
        leave_out_of_list(&mut list);
        assert!(!list.to_string().contains(secret), "{list}");
        assert_eq!(
            (&list["requests"][0]["difference"], &list["requests"][1]["difference"]),
            (&json!("differs"), &Value::Null)
        );
        leave_out_of_request(&mut json!({}));
        leave_out_of_list(&mut json!({}));
        let mut line = json!({"request": {"request_id": "r1", "route_key": secret, "difference": secret}});
        leave_out_of_line(&mut line);
        assert_eq!(line, json!({"request": {"request_id": "r1", "route_key": null, "difference": "differs"}}));
        leave_out_of_line(&mut json!({"end": {"next": null}}));
    }
}
