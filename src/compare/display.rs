//! Comparisons in words, for operators.

use super::{Comparison, Elements, Outcome, OutputComparison, Tolerance};
use std::fmt;

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.without(&|_| false).fmt(f)
    }
}

/// A comparison in words, without the values of some outputs.
pub(super) struct Without<'c> {
    comparison: &'c Comparison,
    /// Whether the values of an output are hidden.
    hides: &'c dyn Fn(&str) -> bool,
}

impl Comparison {
    /// These words tell how many elements of a hidden output differ, and nothing about their values.
    pub(super) fn without<'c>(&'c self, hides: &'c dyn Fn(&str) -> bool) -> Without<'c> {
        Without { comparison: self, hides }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, hides: &dyn Fn(&str) -> bool) -> fmt::Result {
        let different: Vec<&OutputComparison> = self.outputs.iter().filter(|o| !o.outcome.agrees()).collect();
        if different.is_empty() {
            let agree = if self.outputs.len() == 1 { "output agrees" } else { "outputs agree" };
            let Tolerance { rtol, atol } = self.tolerance;
            write!(f, "{} {agree} within rtol {rtol:e} and atol {atol:e}", self.outputs.len())?;
            let shown = self.outputs.iter().filter(|output| !hides(&output.name));
            let largest = shown.filter_map(|o| match &o.outcome {
                Outcome::Elements(elements) => elements.largest,
                _ => None,
            });
            if let Some(largest) = largest.reduce(f64::max) {
                write!(f, "; the largest difference is {largest:e}")?;
            }
            return Ok(());
        }
        for (i, output) in different.into_iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "output {:?}: ", output.name)?;
            match &output.outcome {
                Outcome::Missing => f.write_str("is missing")?,
                Outcome::Extra => f.write_str("was not expected")?,
                Outcome::Datatype { expected, got } => write!(f, "expected datatype {expected}, got {got}")?,
                Outcome::Shape { expected, got } => write!(f, "expected shape {expected}, got {got}")?,
                Outcome::Elements(elements) if hides(&output.name) => {
                    write!(f, "{} of {} elements differ; its values are private", elements.outside, elements.count)?;
                }
                Outcome::Elements(elements) => write_elements(f, elements, self)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Without<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.comparison.write(f, self.hides)
    }
}

fn write_elements(f: &mut fmt::Formatter<'_>, elements: &Elements, comparison: &Comparison) -> fmt::Result {
    write!(f, "{} of {} elements differ", elements.outside, elements.count)?;
    if elements.top1.is_some() || elements.mean.is_some() {
        let Tolerance { rtol, atol } = comparison.tolerance;
        write!(f, " (rtol {rtol:e}, atol {atol:e} for floating-point elements)")?;
    }
    if let Some(worst) = &elements.worst {
        write!(f, ", worst at {:?}: expected {}, got {}", worst.index, worst.expected, worst.got)?;
    }
    if let (Some(largest), Some(mean)) = (elements.largest, elements.mean) {
        write!(f, "; the largest difference is {largest:e}, the mean {mean:e}")?;
    }
    if elements.nonfinite > 0 {
        write!(f, "; {} are NaN or infinite on one side only", elements.nonfinite)?;
    }
    match elements.top1 {
        Some(top1) if top1.flipped > 0 => {
            write!(f, "; the index of the largest element differs in {} of {} rows", top1.flipped, top1.rows)
        }
        _ => Ok(()),
    }
}
