//! `sluicegate requests` and `sluicegate request` on a server.

use super::client::{Client, Done, path, segment};
use super::{RequestOptions, RequestsOptions, show_requests};
use std::fmt::Write as _;
use std::time::Duration;

/// The longest search of a server.
const LONGEST: Duration = Duration::from_mins(1);

impl Client {
    pub(super) fn requests(&self, options: &RequestsOptions) -> Done {
        let limit = options.limit.to_string();
        let flag = |flag: bool| flag.then_some("true");
        let (rtol, atol) = (number(options.rtol), number(options.atol));
        let query = query(&[
            ("request_id", options.request_id.as_deref()),
            ("route_key", options.route_key.as_deref()),
            ("since", options.since.as_deref()),
            ("until", options.until.as_deref()),
            ("version", options.version.as_deref()),
            ("arm", options.arm.as_deref()),
            ("role", options.role.as_deref()),
            ("status", options.status.as_deref()),
            ("slower_than", options.slower_than.as_deref()),
            ("non_finite", flag(options.non_finite)),
            ("disagreed", flag(options.disagreed)),
            ("rtol", rtol.as_deref()),
            ("atol", atol.as_deref()),
            ("limit", Some(&limit)),
            ("after", options.after.as_deref()),
        ]);
        let place = format!("{}/requests{query}", path(&options.model, ""));
        if options.lines {
            let request = self.request("GET", &place).header("accept", "application/x-ndjson");
            let request = request.body(()).map_err(|e| self.bad_address(&e))?;
            return self.download(request, LONGEST, &mut std::io::stdout().lock()).map(drop);
        }
        self.show(&self.get(&place)?, show_requests::found)
    }

    pub(super) fn request_of_log(&self, options: &RequestOptions) -> Done {
        let (elements, rtol, atol) = (options.elements.to_string(), number(options.rtol), number(options.atol));
        let query = query(&[("elements", Some(&elements)), ("rtol", rtol.as_deref()), ("atol", atol.as_deref())]);
        let place = format!("{}/requests/{}{query}", path(&options.model, ""), segment(&options.request_id));
        self.show(&self.get(&place)?, show_requests::one)
    }
}

fn number(number: Option<f64>) -> Option<String> {
    number.map(|number| number.to_string())
}

fn query(parameters: &[(&str, Option<&str>)]) -> String {
    let mut text = String::new();
    for (name, value) in parameters.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{}{name}={}", if text.is_empty() { '?' } else { '&' }, segment(value));
    }
    text
}
