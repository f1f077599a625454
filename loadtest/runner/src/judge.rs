//! Compares results with the expectations of a scenario. Each expectation becomes a row of the table.

use serde::Serialize;

use crate::figures::{Figures, median};
use crate::run::{PhaseRun, Ran};
use crate::scenario::{Expectation, Measure};

/// Above this share of the machine's CPU time, the load generator itself limits what is measured, and the row says so.
const GENERATOR_SHARE: f64 = 1.0 / 3.0;
/// The same where it has cores of its own, of their CPU time.
const OWN_CORES_SHARE: f64 = 0.9;

/// A row of the table.
#[derive(Debug, Serialize)]
pub struct Row {
    pub scenario: String,
    pub name: String,
    pub target: String,
    /// The measured value; a ratio or a difference when the expectation has `against`.
    pub measured: f64,
    /// The measured value as text, with its unit.
    pub said: String,
    pub verdict: Verdict,
    /// CPU time of the server per answer, of the phase and of the one it is compared with.
    pub cpu: String,
    /// What a reader must know about the value.
    pub note: String,
    /// Whether it is a row of the table of targets.
    pub is_target: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Met,
    Missed,
    /// There is no target to meet.
    Seen,
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Seen => "seen",
        }
    }
}

/// The rows of a scenario: its expectations, and the number of failed requests.
pub fn rows(ran: &Ran) -> Vec<Row> {
    let failed: usize = ran.phases.iter().map(|p| p.figures.failed).sum();
    let requests: usize = ran.phases.iter().map(|p| p.figures.requests).sum();
    let mut rows: Vec<_> = ran.scenario.expectations.iter().map(|e| row(ran, e)).collect();
    rows.push(Row {
        scenario: ran.scenario.name.clone(),
        name: "failed requests".into(),
        target: "0".into(),
        measured: failed as f64,
        said: format!("{failed} of {requests}"),
        verdict: if failed == 0 && requests > 0 { Verdict::Met } else { Verdict::Missed },
        cpu: String::new(),
        note: String::new(),
        is_target: false,
    });
    rows
}

fn row(ran: &Ran, e: &Expectation) -> Row {
    let of = |phase: &str| -> Vec<f64> {
        ran.phases.iter().filter(|p| p.name == phase).map(|p| measure(ran, p, e)).collect()
    };
    let this = of(&e.phase);
    let here = median(this.clone());
    let (measured, said) = match (&e.against, e.difference_per) {
        (Some(other), _) if e.measure == Measure::RefusalCpuUs => refusal(ran, &e.phase, other),
        (None, _) => (here, with_unit(here, e.measure)),
        (Some(other), None) => {
            let that = of(other);
            let there = median(that.clone());
            let ratio = here / there;
            let singles: Vec<_> = this.iter().zip(&that).map(|(a, b)| a / b).collect();
            let low = singles.iter().copied().fold(f64::INFINITY, f64::min);
            let high = singles.iter().copied().fold(0.0, f64::max);
            let spread = if singles.len() > 1 { format!("; rounds {low:.2} to {high:.2}") } else { String::new() };
            let (here, there) = (with_unit(here, e.measure), with_unit(there, e.measure));
            (ratio, format!("{ratio:.2} ({here} to {there}{spread})"))
        }
        (Some(other), Some(per)) => {
            let there = median(of(other));
            let off = e.beyond.as_ref().map_or(0.0, |[a, b]| median(of(a)) - median(of(b)));
            let each = (here - there - off) / per;
            (each, with_unit(each, e.measure))
        }
    };
    let (target, holds) = match (e.at_least, e.at_most) {
        (None, None) => ("-".to_owned(), None),
        (Some(low), None) => (format!("at least {low}"), Some(measured >= low)),
        (None, Some(high)) => (format!("at most {high}"), Some(measured <= high)),
        (Some(low), Some(high)) => (format!("{low} to {high}"), Some((low..=high).contains(&measured))),
    };
    let verdict = match holds {
        None => Verdict::Seen,
        Some(true) => Verdict::Met,
        // NaN (0 divided by 0) misses every target.
        Some(false) => Verdict::Missed,
    };
    let (scenario, name) = (ran.scenario.name.clone(), e.name.clone());
    let (cpu, note) = (cpu(ran, e), note(ran, e));
    Row { scenario, name, target, measured, said, verdict, cpu, note, is_target: e.target }
}

/// The medians over rounds of a figure of the phases of an expectation.
fn medians(ran: &Ran, e: &Expectation, figure: fn(&PhaseRun) -> f64) -> Vec<f64> {
    let of = |name: &String| median(ran.phases.iter().filter(|p| p.name == *name).map(figure).collect());
    std::iter::once(&e.phase).chain(&e.against).map(of).collect()
}

fn cpu(ran: &Ran, e: &Expectation) -> String {
    match medians(ran, e, |p| p.figures.cpu_us)[..] {
        // The row itself has it, or has nothing to do with requests.
        _ if matches!(
            e.measure,
            Measure::CpuUs
                | Measure::GoodPerCpuS
                | Measure::RefusalCpuUs
                | Measure::ResidentKb
                | Measure::Actions
                | Measure::Share
        ) =>
        {
            String::new()
        }
        [this, that] => format!("{this:.1} to {that:.1} ({:.2})", this / that),
        [this, ..] => format!("{this:.1}"),
        [] => String::new(),
    }
}

/// The CPU time of the server for a refusal: the median over rounds, and the lowest and highest.
fn refusal(ran: &Ran, phase: &str, against: &str) -> (f64, String) {
    let of = |name: &'_ str| ran.phases.iter().filter(move |p| p.name == name).map(|p| &p.figures).collect::<Vec<_>>();
    let each = |(this, that): (&&Figures, &&Figures)| {
        let good = that.all_cpu_us / (that.good as f64).max(1.0);
        (this.all_cpu_us - this.good as f64 * good) / (this.refused as f64).max(1.0)
    };
    let rounds: Vec<_> = of(phase).iter().zip(&of(against)).map(each).collect();
    let (low, high) =
        (rounds.iter().copied().fold(f64::INFINITY, f64::min), rounds.iter().copied().fold(0.0, f64::max));
    let measured = median(rounds);
    (measured, format!("{measured:.1} us (rounds {low:.1} to {high:.1})"))
}

/// The note of an expectation, and a large share of the load generator.
fn note(ran: &Ran, e: &Expectation) -> String {
    let most = medians(ran, e, |p| p.generator).into_iter().fold(0.0, f64::max);
    let mut notes = Vec::new();
    if ran.cores.is_none() && most > GENERATOR_SHARE {
        notes.push(format!("generator {:.0} % of the machine", most * 100.0));
    }
    if ran.cores.is_some() && most > OWN_CORES_SHARE {
        notes.push(format!("generator {:.0} % of its cores", most * 100.0));
    }
    if !e.note.is_empty() {
        notes.push(e.note.clone());
    }
    notes.join("; ")
}

fn measure(ran: &Ran, phase: &PhaseRun, e: &Expectation) -> f64 {
    let figures = &phase.figures;
    match e.measure {
        Measure::Throughput => figures.throughput,
        Measure::Rows => {
            let rows = ran.scenario.phases.iter().find(|p| p.name == phase.name).map_or(1, |p| p.ask[0].rows);
            figures.throughput * rows as f64
        }
        Measure::CpuUs => figures.cpu_us,
        Measure::GoodPerCpuS => figures.good as f64 * 1e6 / figures.all_cpu_us.max(1.0),
        // It needs two phases: `refusal` has it.
        Measure::RefusalCpuUs => f64::NAN,
        Measure::P50Us => figures.windowed.p50_us,
        Measure::P99Us => figures.windowed.p99_us,
        Measure::P999Us => figures.windowed.p999_us,
        Measure::WholeP99Us => figures.whole.p99_us,
        Measure::Failed => figures.failed as f64,
        Measure::RefusedShare => figures.refused as f64 / (figures.requests as f64).max(1.0),
        Measure::ResidentKb => figures.resident_kb,
        Measure::Actions => phase.marks.len() as f64,
        Measure::Share => e.version.and_then(|v| figures.shares.get(&v)).copied().unwrap_or(0.0),
    }
}

fn with_unit(value: f64, measure: Measure) -> String {
    match measure {
        Measure::Throughput | Measure::Rows | Measure::GoodPerCpuS => format!("{value:.0}/s"),
        Measure::CpuUs
        | Measure::RefusalCpuUs
        | Measure::P50Us
        | Measure::P99Us
        | Measure::P999Us
        | Measure::WholeP99Us => {
            if value >= 10_000.0 {
                format!("{:.1} ms", value / 1e3)
            } else {
                format!("{value:.1} us")
            }
        }
        Measure::Failed | Measure::Actions => format!("{value:.0}"),
        Measure::ResidentKb => format!("{value:.0} kB"),
        Measure::Share | Measure::RefusedShare => format!("{:.2} %", value * 100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::{Outcome, Sample};
    use crate::figures::Figures;
    use crate::scenario::Scenario;

    const TEXT: &str = r#"
        summary = "two phases"
        seconds = 1
        short_seconds = 1
        rounds = 3
        [[model]]
        name = "m"
        widths = [1, 1]
        versions = [{ seed = 1 }]
        [[server]]
        name = "gateway"
        [[phase]]
        name = "a"
        closed = { connections = 1 }
        [[phase]]
        name = "b"
        closed = { connections = 1 }
        [[expect]]
        name = "ratio"
        measure = "throughput"
        phase = "b"
        against = "a"
        at_least = 0.75
    "#;

    fn ran(good: [(usize, usize); 3]) -> Ran {
        let run = |name: &str, good: usize| {
            let one =
                Sample { due_us: 0, late_us: 0, latency_ns: 1000, version: 1, status: 200, outcome: Outcome::Good };
            PhaseRun {
                name: name.into(),
                round: 0,
                at_s: 0.0,
                seconds: 1.0,
                elsewhere: 0.0,
                generator: if name == "a" { 0.4 } else { 0.2 },
                server: 0.5,
                figures: Figures::new(&vec![one; good], 1.0, 1.0, 1.0),
                marks: Vec::new(),
                complaints: Vec::new(),
            }
        };
        let phases = good.iter().flat_map(|&(a, b)| [run("a", a), run("b", b)]).collect();
        Ran { scenario: Scenario::parse("two", TEXT).unwrap(), cores: None, phases }
    }

    #[test]
    fn a_ratio_is_of_the_medians_over_rounds() {
        let rows = rows(&ran([(100, 80), (100, 10), (200, 90)]));
        assert_eq!(rows[0].measured, 0.8, "80 to 100: the medians, not the single rounds");
        assert_eq!(rows[0].verdict, Verdict::Met);
        assert!(rows[0].said.contains("rounds 0.10 to 0.80"), "{}", rows[0].said);
        assert_eq!(rows[0].note, "generator 40 % of the machine", "the larger of both phases");
        // 1 us of CPU time in each phase; the middle one of b's 80, 10 and 90 answers is 80, of a's 100.
        assert_eq!(rows[0].cpu, "0.0 to 0.0 (1.25)");
    }

    #[test]
    fn a_refusal_takes_what_good_answers_leave_of_the_time() {
        let refusals = "[[expect]]\nname = \"refusal\"\nmeasure = \"refusal_cpu_us\"\nphase = \"b\"\nagainst = \"a\"";
        let mut ran = ran([(100, 80), (100, 80), (200, 80)]);
        ran.scenario = Scenario::parse("two", &format!("{TEXT}\n{refusals}")).unwrap();
        for phase in &mut ran.phases {
            // 10 us for a good answer of `a`; 800 us of the 1,000 us of `b` are for good answers then.
            phase.figures.all_cpu_us = if phase.name == "a" { phase.figures.good as f64 * 10.0 } else { 1000.0 };
            phase.figures.refused = if phase.name == "a" { 0 } else { 40 };
        }
        let rows = rows(&ran);
        assert_eq!((rows[1].measured, rows[1].said.as_str()), (5.0, "5.0 us (rounds 5.0 to 5.0)"));
        let wrong = refusals.replace("against = \"a\"", "");
        assert!(Scenario::parse("two", &format!("{TEXT}\n{wrong}")).is_err(), "there is nothing to compare with");
    }

    #[test]
    fn a_ratio_of_zero_to_zero_is_missed() {
        let rows = rows(&ran([(0, 0); 3]));
        assert!(rows.iter().all(|row| row.verdict == Verdict::Missed), "{rows:?}");
    }
}
