//! A scenario: a folder with a `scenario.toml`, which is read and checked before anything starts.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::wrong::{Result, While, Wrong};

/// One `scenario.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The folder's name.
    #[serde(skip)]
    pub name: String,
    /// What the scenario shows, in one or two lines.
    pub summary: String,
    /// Seconds of load of all phases and rounds together.
    pub seconds: f64,
    /// The same for `--short`.
    pub short_seconds: f64,
    /// How often all phases run. Use more than one to compare phases: the speed of a machine changes more from minute to minute than the
    /// phases differ.
    #[serde(default = "one")]
    pub rounds: u32,
    /// Run the servers on the first half of the cores and the load generator on the others, so that the servers have the same cores at every
    /// rate. Needs two cores. `--pin` does so for every scenario.
    #[serde(default)]
    pub pin: bool,
    #[serde(rename = "model")]
    pub models: Vec<Model>,
    #[serde(rename = "server")]
    pub servers: Vec<Server>,
    #[serde(rename = "phase")]
    pub phases: Vec<Phase>,
    #[serde(default, rename = "expect")]
    pub expectations: Vec<Expectation>,
}

/// A model with one FP32 input `x` of `[n, widths.first]`, or of `row` with a free dimension before it, and one FP32 output of
/// `[n, widths.last]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub name: String,
    #[serde(default)]
    pub kind: ModelKind,
    /// Perceptron: the layers, from input to output. Network for images: values of an image, channels, outputs. Trees: features and 1.
    pub widths: Vec<usize>,
    /// The dimensions of one row of the input; by default `[widths.first]`. An image has channels, height and width.
    #[serde(default)]
    pub row: Vec<usize>,
    /// Version `i + 1` comes from the `i`-th of these.
    pub versions: Vec<Version>,
    /// Text of its `model.toml`.
    #[serde(default)]
    pub settings: String,
    /// Number of copies. More than one are named `<name>-<number>`.
    #[serde(default = "one")]
    pub count: u32,
}

/// What is made from a seed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ModelKind {
    #[default]
    Perceptron,
    /// A small convolutional network: one convolution, the mean over the image, one layer.
    Cnn,
    /// Gradient-boosted trees for a regression.
    Trees { count: usize, leaves: usize },
}

/// A version has random weights from a seed, or is a file of the repository.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Version {
    Seed {
        seed: u64,
        /// Layer widths other than the model's; the first and last must be the same.
        #[serde(default)]
        widths: Vec<usize>,
    },
    File {
        file: String,
    },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub name: String,
    #[serde(default)]
    pub kind: ServerKind,
    /// The models in its directory; all by default. The floor serves the first version of the first model.
    #[serde(default)]
    pub models: Vec<String>,
    /// Environment variables, to change settings of the server.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// More options for the program.
    #[serde(default)]
    pub args: Vec<String>,
    /// Models to unload before the first phase, for phases that load them.
    #[serde(default)]
    pub unloaded: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerKind {
    #[default]
    Sluicegate,
    Floor,
}

/// A load on one server for some time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub name: String,
    /// The first server by default.
    #[serde(default)]
    pub server: String,
    /// Its share of the time, relative to the other phases.
    #[serde(default = "share")]
    pub share: f64,
    pub open: Option<Open>,
    pub closed: Option<Closed>,
    /// The requests; by default one row to the first model, as JSON.
    #[serde(default)]
    pub ask: Vec<Ask>,
    /// Headers of every request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Number of users. Each request has a random user in `x-user-id`, who must be answered by one version throughout the phase.
    /// 0: requests have no such header.
    #[serde(default)]
    pub users: u32,
    /// Answers with 429, 503 and 504 are expected and do not count as failed.
    #[serde(default)]
    pub may_refuse: bool,
    /// Traffic document for the first model in `ask`, set before the phase.
    pub traffic: Option<toml::Table>,
    /// Interval in milliseconds at which the versions of the first model in `ask` are promoted in turn.
    pub promote_every_ms: Option<u64>,
    /// Load and unload this model repeatedly during the phase.
    pub load_and_unload: Option<String>,
}

/// An open loop: requests are sent when they are due, even if earlier ones have no answer yet.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// Requests per second.
    pub rate: Option<f64>,
    /// Instead of `rate`: a multiple of the throughput of the phase `of`.
    pub times: Option<f64>,
    pub of: Option<String>,
    /// The rate at the end of the phase; constant by default.
    pub to: Option<f64>,
    #[serde(default)]
    pub arrivals: Arrivals,
    #[serde(default = "connections")]
    pub connections: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Independent callers: exponentially distributed gaps.
    #[default]
    Poisson,
    /// Equal gaps.
    Even,
}

/// A closed loop: each connection sends the next request after the answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closed {
    pub connections: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    pub model: String,
    /// Use binary tensors instead of JSON, for requests and answers.
    #[serde(default)]
    pub binary: bool,
    #[serde(default = "rows")]
    pub rows: usize,
    /// How often it is sent, relative to the other kinds of requests.
    #[serde(default = "share")]
    pub weight: f64,
    /// Number of different inputs, which are made before the load.
    #[serde(default = "inputs")]
    pub inputs: usize,
}

/// A measured value with a limit. Without `at_least` and `at_most` it is only shown.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    pub name: String,
    pub measure: Measure,
    pub phase: String,
    /// The phase to compare with. The value is then the ratio to the same measure of that phase.
    pub against: Option<String>,
    /// With `against`: the value is the difference divided by this, instead of the ratio.
    pub difference_per: Option<f64>,
    /// With `difference_per`: two phases whose difference is subtracted first, as `[phase, against]`.
    pub beyond: Option<[String; 2]>,
    /// With `measure = "share"`: the version.
    pub version: Option<u32>,
    pub at_least: Option<f64>,
    pub at_most: Option<f64>,
    /// Whether it is a row of the table of targets.
    #[serde(default)]
    pub target: bool,
    /// What a reader must know about the value, printed beside it.
    #[serde(default)]
    pub note: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Good answers per second.
    Throughput,
    /// Rows of good answers per second. All requests of the phase must have the same number of rows.
    Rows,
    /// Server CPU time per answer, in microseconds.
    CpuUs,
    /// Good answers per second of the server's CPU time. Compared with a phase in which the server is as busy, it is the ratio of good answers
    /// that a server without disturbance has: other processes take time, and hardly change what the server does with its own.
    GoodPerCpuS,
    /// Server CPU time per refusal, in microseconds: what is left of the phase's time when each good answer takes as much as in `against`.
    RefusalCpuUs,
    /// Latency of good answers in microseconds: medians over quarter-second windows.
    P50Us,
    P99Us,
    P999Us,
    /// p99 of the whole phase.
    WholeP99Us,
    /// Requests that failed.
    Failed,
    /// Share of requests refused with 429, 503 or 504.
    RefusedShare,
    /// The server's resident memory at the end, in kB (1024 bytes).
    ResidentKb,
    /// Number of promotions, loads and unloads.
    Actions,
    /// Share of `version` in the good answers.
    Share,
}

fn one() -> u32 {
    1
}
fn share() -> f64 {
    1.0
}
fn rows() -> usize {
    1
}
fn inputs() -> usize {
    64
}
fn connections() -> usize {
    32
}

impl Scenario {
    /// Reads `folder/scenario.toml`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("scenario.toml");
        let text = std::fs::read_to_string(&path).while_doing(|| format!("reading {}", path.display()))?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text).while_doing(|| path.display().to_string())
    }

    /// Parses a scenario, fills in defaults, and reports everything that is wrong at once.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut scenario: Self = toml::from_str(text).map_err(|e| Wrong::new(e.to_string()))?;
        name.clone_into(&mut scenario.name);
        scenario.fill_in()?;
        let complaints = scenario.complaints();
        if complaints.is_empty() { Ok(scenario) } else { Err(Wrong::new(complaints.join("; "))) }
    }

    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|m| m.name == name)
    }

    fn fill_in(&mut self) -> Result<()> {
        for model in &mut self.models {
            if model.row.is_empty() {
                model.row.extend(model.widths.first());
            }
        }
        let (Some(model), Some(server)) = (self.models.first(), self.servers.first()) else {
            return Err(Wrong::new("needs at least one [[model]] and one [[server]]"));
        };
        let all: Vec<_> = self.models.iter().map(|m| m.name.clone()).collect();
        let (model, first) = (model.name.clone(), server.name.clone());
        for server in &mut self.servers {
            if server.models.is_empty() {
                server.models.clone_from(&all);
            }
        }
        for phase in &mut self.phases {
            if phase.server.is_empty() {
                phase.server.clone_from(&first);
            }
            if phase.ask.is_empty() {
                let model = model.clone();
                phase.ask.push(Ask { model, binary: false, rows: 1, weight: 1.0, inputs: inputs() });
            }
        }
        Ok(())
    }

    fn complaints(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut must = |holds: bool, sentence: String| {
            if !holds {
                wrong.push(sentence);
            }
        };
        let phase = |name: &str| self.phases.iter().any(|p| p.name == name);
        must(!self.phases.is_empty(), "needs at least one [[phase]]".into());
        must(self.seconds > 0.0 && self.short_seconds > 0.0, "seconds and short_seconds must be above 0".into());
        must(self.rounds > 0, "rounds must be above 0".into());
        for m in &self.models {
            must(m.widths.len() >= 2, format!("model {:?}: widths needs input and output", m.name));
            must(!m.versions.is_empty(), format!("model {:?}: needs a version", m.name));
            let values = m.row.iter().try_fold(1_usize, |all, &d| all.checked_mul(d));
            must(values == m.widths.first().copied(), format!("model {:?}: row is not widths.first values", m.name));
            match m.kind {
                ModelKind::Perceptron => {
                    must(m.row.len() == 1, format!("model {:?}: a perceptron's row has one dimension", m.name));
                }
                ModelKind::Cnn => {
                    let fits = m.row.len() == 3 && m.widths.len() == 3 && m.row[1].min(m.row[2]) >= 3;
                    let needs = "a cnn needs row = [channels, height, width] and widths = [values, channels, outputs]";
                    must(fits, format!("model {:?}: {needs}", m.name));
                }
                ModelKind::Trees { count, leaves } => {
                    let fits = m.row.len() == 1 && m.widths.len() == 2 && m.widths[1] == 1;
                    must(fits, format!("model {:?}: trees need widths = [features, 1]", m.name));
                    let bounded = (1..=10_000).contains(&count) && (2..=1024).contains(&leaves);
                    must(bounded, format!("model {:?}: expected 1 to 10000 trees of 2 to 1024 leaves", m.name));
                }
            }
            for version in &m.versions {
                if let Version::Seed { widths, .. } = version
                    && !widths.is_empty()
                {
                    let same =
                        widths.len() >= 2 && widths.first() == m.widths.first() && widths.last() == m.widths.last();
                    must(same, format!("model {:?}: a version has another input or output", m.name));
                }
            }
        }
        for s in &self.servers {
            for name in s.models.iter().chain(&s.unloaded) {
                must(self.model(name).is_some(), format!("server {:?}: there is no model {name:?}", s.name));
            }
        }
        for (i, p) in self.phases.iter().enumerate() {
            let of = format!("phase {:?}", p.name);
            must(p.open.is_some() != p.closed.is_some(), format!("{of}: needs either `open` or `closed`"));
            must(p.share > 0.0, format!("{of}: share must be above 0"));
            must(self.servers.iter().any(|s| s.name == p.server), format!("{of}: there is no server {:?}", p.server));
            must(
                self.phases.iter().skip(i + 1).all(|other| other.name != p.name),
                format!("{of}: the name is used twice"),
            );
            for model in p.ask.iter().map(|a| &a.model).chain(&p.load_and_unload) {
                must(self.model(model).is_some(), format!("{of}: there is no model {model:?}"));
            }
            for ask in &p.ask {
                let fits = ask.rows > 0 && ask.inputs > 0 && ask.weight > 0.0;
                must(fits, format!("{of}: rows, inputs and weight must be above 0"));
            }
            if let Some(closed) = &p.closed {
                must(closed.connections > 0, format!("{of}: connections must be above 0"));
            }
            if let Some(open) = &p.open {
                let rated = match (open.rate, open.times, &open.of) {
                    (Some(rate), None, None) => rate > 0.0,
                    (None, Some(times), Some(of)) => times > 0.0 && self.phases[..i].iter().any(|p| p.name == *of),
                    _ => false,
                };
                must(rated, format!("{of}: open needs `rate`, or `times` and `of` an earlier phase"));
                must(open.connections > 0, format!("{of}: connections must be above 0"));
            }
        }
        for e in &self.expectations {
            for name in [&e.phase].into_iter().chain(&e.against).chain(e.beyond.iter().flatten()) {
                must(phase(name), format!("expectation {:?}: there is no phase {name:?}", e.name));
            }
            let needs = e.measure == Measure::Share;
            must(needs == e.version.is_some(), format!("expectation {:?}: `version` goes with share", e.name));
            let needs = e.measure == Measure::RefusalCpuUs;
            must(
                !needs || e.against.is_some() && e.difference_per.is_none(),
                format!("expectation {:?}: refusal_cpu_us needs `against`, and no `difference_per`", e.name),
            );
            if e.measure == Measure::Rows {
                let named = |p: &&Phase| p.name == e.phase || Some(&p.name) == e.against.as_ref();
                let same = |p: &Phase| p.ask.windows(2).all(|pair| pair[0].rows == pair[1].rows);
                must(
                    self.phases.iter().filter(named).all(same),
                    format!("expectation {:?}: `rows` needs requests of one size in a phase", e.name),
                );
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        summary = "small"
        seconds = 2
        short_seconds = 1
        [[model]]
        name = "m"
        widths = [4, 1]
        versions = [{ seed = 1 }, { file = "models/m/1/model.onnx" }]
        [[server]]
        name = "gateway"
        [[phase]]
        name = "only"
        closed = { connections = 2 }
    "#;

    #[test]
    fn defaults_are_filled_in() {
        let scenario = Scenario::parse("small", SMALL).unwrap();
        let phase = &scenario.phases[0];
        assert_eq!((phase.server.as_str(), phase.ask[0].model.as_str()), ("gateway", "m"));
        assert_eq!(scenario.servers[0].models, ["m"], "a server without `models` has all of them");
        assert!(matches!(scenario.models[0].versions[1], Version::File { .. }));
    }

    #[test]
    fn all_wrong_references_are_reported_at_once() {
        let text = SMALL.replace("closed = { connections = 2 }", "server = \"other\"") + "ask = [{ model = \"n\" }]";
        let wrong = Scenario::parse("small", &text).unwrap_err().to_string();
        for part in ["either `open` or `closed`", "no server \"other\"", "no model \"n\""] {
            assert!(wrong.contains(part), "{part} is missing in: {wrong}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let wrong = Scenario::parse("small", &format!("typo = 1\n{SMALL}")).unwrap_err().to_string();
        assert!(wrong.contains("typo"), "the key is named: {wrong}");
    }

    #[test]
    fn every_scenario_of_the_repository_is_valid() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut read = 0;
        for folder in ["scenarios", "targets"] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                Scenario::read(&entry.unwrap().path()).unwrap();
                read += 1;
            }
        }
        assert!(read >= 8, "only {read} scenarios were found");
    }
}
