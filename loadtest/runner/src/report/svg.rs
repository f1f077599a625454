//! Two charts: latency by percentile, and latency over time with marks for admin calls.
//!
//! The SVG is written directly, because a plotting crate would be larger than this file.

use std::fmt::Write as _;

use super::page::escaped;
use crate::figures::histogram;
use crate::run::Ran;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 40.0;
/// Colours that colour-blind readers can distinguish (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// Latency of good answers by percentile, one line per phase, all rounds together. The x axis is log(1 / (1 - p)), so that 90 %, 99 % and
/// 99.9 % have equal distances.
pub fn latency(ran: &Ran) -> String {
    let names: Vec<_> = ran.scenario.phases.iter().map(|phase| phase.name.as_str()).collect();
    let mut lines = Vec::new();
    for name in &names {
        let mut all = histogram();
        for phase in ran.phases.iter().filter(|phase| phase.name == *name) {
            all += &phase.figures.latencies;
        }
        // Stop where fewer than three samples are above a point.
        let nines = ((all.len() as f64 / 3.0).max(1.0)).log10().min(5.0);
        let steps = (nines * 40.0) as u32;
        let point = |i: u32| {
            let x = f64::from(i) / 40.0;
            (x, all.value_at_quantile(1.0 - 10_f64.powf(-x)) as f64 / 1e3)
        };
        lines.push((0..=steps).map(point).filter(|(_, us)| *us > 0.0).collect::<Vec<_>>());
    }
    let last = lines.iter().flatten().map(|(x, _)| *x).fold(1.0, f64::max);
    let mut chart = Chart::new(last, lines.iter().flatten().map(|(_, us)| *us));
    for (x, label) in [(0.0, "0"), (0.301, "50 %"), (1.0, "90 %"), (2.0, "99 %"), (3.0, "99.9 %"), (4.0, "99.99 %")] {
        chart.tick(x, label);
    }
    for (i, line) in lines.iter().enumerate() {
        chart.line(line, COLOURS[i % COLOURS.len()], "1.8", "");
        chart.legend(i, names[i], COLOURS[i % COLOURS.len()]);
    }
    chart.finish("latency by percentile, whole run")
}

/// p50 (dashed) and p99 of each quarter of a second. Promotions, loads and unloads are marks on the x axis.
pub fn timeline(ran: &Ran) -> String {
    let names: Vec<_> = ran.scenario.phases.iter().map(|phase| phase.name.as_str()).collect();
    let end = ran.phases.last().map_or(1.0, |phase| phase.at_s + phase.seconds);
    let values = ran.phases.iter().flat_map(|p| &p.figures.windows).flat_map(|w| [w.latency.p50_us, w.latency.p99_us]);
    let mut chart = Chart::new(end, values);
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0].into_iter().find(|s| end / s <= 10.0).unwrap_or(300.0);
    for i in 0..=(end / step) as u32 {
        let at = f64::from(i) * step;
        chart.tick(at, &format!("{at} s"));
    }
    for phase in &ran.phases {
        for mark in &phase.marks {
            chart.mark(phase.at_s + mark.at_s, &mark.what);
        }
    }
    for phase in &ran.phases {
        let colour = COLOURS[names.iter().position(|n| *n == phase.name).unwrap_or(0) % COLOURS.len()];
        let line = |part: fn(&crate::figures::Percentiles) -> f64| -> Vec<(f64, f64)> {
            phase.figures.windows.iter().map(|w| (phase.at_s + w.at_s + 0.125, part(&w.latency))).collect()
        };
        chart.line(&line(|p| p.p50_us), colour, "1", " stroke-dasharray=\"3 2\"");
        chart.line(&line(|p| p.p99_us), colour, "1.8", "");
    }
    for (i, name) in names.iter().enumerate() {
        chart.legend(i, name, COLOURS[i % COLOURS.len()]);
    }
    chart.finish("p99 (and p50, dashed) of each quarter of a second; marks on the axis: admin calls")
}

/// A chart with a linear x axis from 0 to `last` and a logarithmic y axis in microseconds.
struct Chart {
    last: f64,
    /// Lowest and highest power of ten of the y axis.
    low: f64,
    high: f64,
    text: String,
}

impl Chart {
    fn new(last: f64, values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|v| *v > 0.0) {
            (low, high) = (low.min(value), high.max(value));
        }
        let low = if low.is_finite() { low.log10().floor() } else { 0.0 };
        let high = high.max(1.0).log10().ceil().max(low + 1.0);
        let mut chart = Self { last, low, high, text: String::new() };
        for power in low as i32..=high as i32 {
            let y = chart.y(10_f64.powi(power));
            let label = match power {
                ..=2 => format!("{} us", 10_f64.powi(power)),
                3..=5 => format!("{} ms", 10_f64.powi(power - 3)),
                _ => format!("{} s", 10_f64.powi(power - 6)),
            };
            let (left, right, below) = (LEFT, WIDTH - RIGHT, y + 4.0);
            chart.put(format_args!("<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>"));
            chart.put(format_args!("<text x=\"{}\" y=\"{below:.1}\" text-anchor=\"end\">{label}</text>", left - 6.0));
        }
        chart
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (value / self.last).clamp(0.0, 1.0)
    }

    fn y(&self, us: f64) -> f64 {
        let part = (us.max(1e-3).log10() - self.low) / (self.high - self.low);
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part.clamp(0.0, 1.0)
    }

    fn tick(&mut self, at: f64, label: &str) {
        if at <= self.last {
            let (x, y) = (self.x(at), HEIGHT - BOTTOM);
            self.put(format_args!("<path d=\"M{x:.1} {y}v4\" stroke=\"#555\"/>"));
            self.put(format_args!("<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", y + 18.0));
        }
    }

    fn mark(&mut self, at: f64, what: &str) {
        let (x, y, what) = (self.x(at), HEIGHT - BOTTOM, escaped(what));
        self.put(format_args!("<path d=\"M{x:.1} {y}v-10\" stroke=\"#000\"><title>{what}</title></path>"));
    }

    fn line(&mut self, points: &[(f64, f64)], colour: &str, width: &str, more: &str) {
        let mut path = String::new();
        for (i, (x, us)) in points.iter().enumerate() {
            let letter = if i == 0 { 'M' } else { 'L' };
            write!(path, "{letter}{:.1} {:.1}", self.x(*x), self.y(*us)).expect("writing to a string cannot fail");
        }
        self.put(format_args!("<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"{more}/>"));
    }

    fn legend(&mut self, index: usize, name: &str, colour: &str) {
        let (x, name) = (LEFT + 140.0 * index as f64, escaped(name));
        self.put(format_args!("<path d=\"M{x} 30h16\" stroke=\"{colour}\" stroke-width=\"3\"/>"));
        self.put(format_args!("<text x=\"{}\" y=\"34\">{name}</text>", x + 22.0));
    }

    fn put(&mut self, part: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{part}").expect("writing to a string cannot fail");
    }

    fn finish(self, title: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"{LEFT}\" y=\"16\" font-size=\"13\">{title}</text>\n{}</svg>\n",
            self.text
        )
    }
}
