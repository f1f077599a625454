//! The requests of a phase. All are made from a seed before the load starts, so that sending one costs the generator very little.

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{HeaderMap, Uri};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fmt::Write as _;

use crate::check::Shape;
use crate::models;
use crate::scenario::{Phase, Scenario};
use crate::wrong::{Result, While};

pub const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// All requests that a phase may send.
#[derive(Debug)]
pub struct Plan {
    pub kinds: Vec<Kind>,
    /// Cumulative weights: `bounds[i]` is the share of `kinds[..=i]` (0 to 1).
    bounds: Vec<f64>,
    pub users: u32,
    pub may_refuse: bool,
}

/// Requests to one model in one format.
#[derive(Debug)]
pub struct Kind {
    pub model: String,
    /// The number of versions. They are numbered from 1.
    pub versions: u32,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub shape: Shape,
    pub cases: Vec<Case>,
}

/// One input, and the answer of each version to it.
#[derive(Debug)]
pub struct Case {
    pub body: Bytes,
    /// `(version, first number of its answer)`, from before the load. The version is 0 for a server that names none.
    pub answers: Vec<(u32, f32)>,
}

impl Plan {
    /// Makes the plan of one phase. The same seed gives the same requests.
    pub fn new(scenario: &Scenario, phase: &Phase, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut kinds = Vec::new();
        let mut weights = Vec::new();
        for ask in &phase.ask {
            let model = scenario.model(&ask.model).expect("`Scenario::parse` has checked the names of models");
            let (first, last) = (model.widths[0], model.widths[model.widths.len() - 1]);
            for name in models::names(model) {
                let mut headers = HeaderMap::new();
                for (key, value) in &phase.headers {
                    let key: HeaderName = key.parse().while_doing(|| format!("header {key:?}"))?;
                    headers.insert(key, value.parse().while_doing(|| format!("value {value:?}"))?);
                }
                headers.insert(HOST, HeaderValue::from_static("sluicegate-loadtest"));
                let cases = (0..ask.inputs)
                    .map(|_| {
                        let values: Vec<f32> = (0..ask.rows * first)
                            .map(|_| (rng.random_range(-2.0..2.0_f32) * 1e6).round() / 1e6)
                            .collect();
                        let body = if ask.binary {
                            let (body, head) = binary(&values, ask.rows, &model.row);
                            // All cases have the same shape, and so the same length.
                            headers.insert(HEADER_LENGTH, head.into());
                            body
                        } else {
                            json(&values, ask.rows, &model.row)
                        };
                        Case { body: body.into(), answers: Vec::new() }
                    })
                    .collect();
                let media = if ask.binary { "application/octet-stream" } else { "application/json" };
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
                kinds.push(Kind {
                    uri: format!("/v2/models/{name}/infer").parse().while_doing(|| format!("model {name:?}"))?,
                    model: name,
                    versions: u32::try_from(model.versions.len()).unwrap_or(u32::MAX),
                    headers,
                    shape: Shape::new(ask.rows, last, ask.binary),
                    cases,
                });
                weights.push(ask.weight);
            }
        }
        Ok(Self { kinds, bounds: bounds(&weights), users: phase.users, may_refuse: phase.may_refuse })
    }

    /// Draws the next request: the indices of its kind and its case.
    pub fn draw(&self, rng: &mut impl Rng) -> (usize, usize) {
        let at = rng.random::<f64>();
        // The last bound can be slightly below 1 because of rounding.
        let kind = self.bounds.partition_point(|&b| b <= at).min(self.kinds.len() - 1);
        (kind, rng.random_range(0..self.kinds[kind].cases.len()))
    }
}

fn bounds(weights: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    let mut below = 0.0;
    weights
        .iter()
        .map(|w| {
            below += w / total;
            below
        })
        .collect()
}

/// An Open Inference Protocol body with one input `x`: `rows` rows with the dimensions `row`.
fn json(values: &[f32], rows: usize, row: &[usize]) -> Vec<u8> {
    let shape = shape(rows, row);
    let mut body = format!(r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"FP32","data":["#);
    for (i, value) in values.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        write!(body, "{comma}{value:.6}").expect("writing to a string cannot fail");
    }
    body.push_str("]}]}");
    body.into_bytes()
}

/// The same as a binary tensor, and asks for a binary answer. Returns the body and the length of its JSON part.
fn binary(values: &[f32], rows: usize, row: &[usize]) -> (Vec<u8>, usize) {
    let (shape, size) = (shape(rows, row), values.len() * 4);
    let mut body = format!(
        r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}],"parameters":{{"binary_data_output":true}}}}"#
    )
    .into_bytes();
    let head = body.len();
    body.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    (body, head)
}

fn shape(rows: usize, row: &[usize]) -> String {
    let dimensions: Vec<_> = std::iter::once(&rows).chain(row).map(usize::to_string).collect();
    format!("[{}]", dimensions.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_follow_the_protocol() {
        let value: serde_json::Value = serde_json::from_slice(&json(&[1.5, -2.0], 1, &[2])).unwrap();
        assert_eq!(value["inputs"][0]["data"], serde_json::json!([1.5, -2.0]));
        let (body, head) = binary(&[1.5, -2.0], 2, &[1, 1]);
        let value: serde_json::Value = serde_json::from_slice(&body[..head]).unwrap();
        assert_eq!(value["inputs"][0]["shape"], serde_json::json!([2, 1, 1]));
        assert_eq!(body[head..], [1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat());
    }

    #[test]
    fn kinds_are_drawn_by_weight() {
        let kind = || Kind {
            model: "m".into(),
            versions: 1,
            uri: Uri::from_static("/"),
            headers: HeaderMap::new(),
            shape: Shape::new(1, 1, false),
            cases: vec![Case { body: Bytes::new(), answers: Vec::new() }],
        };
        let plan = Plan { kinds: vec![kind(), kind()], bounds: bounds(&[3.0, 1.0]), users: 0, may_refuse: false };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let second = (0..10_000).filter(|_| plan.draw(&mut rng).0 == 1).count();
        assert!(second.abs_diff(2500) < 250, "{second} of 10,000; a quarter is expected");
    }
}
