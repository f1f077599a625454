//! What is wrong with the fleet: this gateway is cut off, does not follow, or another one is lost.

use crate::alerts::{About, Finding, Rule, Severity};
use crate::fleet::{Fleet, Troubles};

/// Documents that a summary names.
const NAMED: usize = 3;

/// Of what all gateways judge alike, one tells. `None`, which changes nothing, while this gateway does not know whether it is the one.
pub(super) fn told_once(fleet: Option<&Fleet>, look: impl FnOnce() -> Option<Vec<Finding>>) -> Option<Vec<Finding>> {
    match fleet.map_or(Some(true), Fleet::tells) {
        Some(true) => look(),
        Some(false) => Some(Vec::new()),
        None => None,
    }
}

/// This gateway is cut off from its fleet.
pub(super) fn cut_off(troubles: &Troubles) -> Vec<Finding> {
    let finding = |why: &String| {
        Finding {
        about: About::server(Rule::FleetCutOff, ""),
        severity: Severity::Warning,
        summary: format!(
            "this gateway is cut off from its fleet: {why}; it serves what it has, and changes of traffic are refused here"
        ),
        how_sure: "certain: it has tried again every half second for half a minute".to_owned(),
        what_to_do: "see whether the NATS servers of [fleet] urls run and are reached from this machine, and whether they take its credentials"
            .to_owned(),
        since: None,
        training: None,
    }
    };
    troubles.cut_off.iter().map(finding).collect()
}

/// Documents of the fleet are not in force on this gateway.
pub(super) fn behind(troubles: &Troubles) -> Vec<Finding> {
    let Troubles { behind, .. } = troubles;
    if behind.is_empty() {
        return Vec::new();
    }
    let words: Vec<String> = behind.iter().take(NAMED).map(|(model, why)| format!("{model} ({why})")).collect();
    let more = behind.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    vec![Finding {
        about: About::server(Rule::FleetBehind, ""),
        severity: Severity::Warning,
        summary: format!("this gateway does not follow its fleet: traffic documents of {}{more} are not in force here", words.join(", ")),
        how_sure: "certain for a minute: the fleet has newer revisions".to_owned(),
        what_to_do: "`sluicegate fleet` shows what it waits for: bring the files of that version to this gateway, or look why it failed"
            .to_owned(),
        since: None,
        training: None,
    }]
}

/// Gateways that ended without saying so. `None` where another gateway reports them, or nobody can know.
pub(super) fn lost(troubles: &Troubles) -> Option<Vec<Finding>> {
    let finding = |(name, since): &(String, String)| Finding {
        about: About::server(Rule::FleetLost, name),
        severity: Severity::Warning,
        summary: format!("the gateway {name}, which was in the fleet since {since}, is not heard any more"),
        how_sure: "certain that it does not report: it ended without a stop, hangs, or cannot reach NATS".to_owned(),
        what_to_do: "look at its machine and its log; if it is gone for good, this ends by itself after ten minutes"
            .to_owned(),
        since: None,
        training: None,
    };
    troubles.lost.as_ref().map(|lost| lost.iter().map(finding).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_say_what_is_wrong_and_what_to_do() {
        let well = Troubles { lost: Some(Vec::new()), ..Troubles::default() };
        assert_eq!((cut_off(&well), behind(&well), lost(&well)), (Vec::new(), Vec::new(), Some(Vec::new())));
        assert_eq!(lost(&Troubles::default()), None, "another gateway reports them");
        let away = Troubles { cut_off: Some("NATS does not answer".to_owned()), ..Troubles::default() };
        assert!(
            cut_off(&away)[0].summary.contains("cut off from its fleet: NATS does not answer; it serves what it has")
        );
        let of = |n: usize| (format!("m{n}").parse().unwrap(), "version 2 is not ready".to_owned());
        let slow = Troubles { behind: (0..5).map(of).collect(), ..Troubles::default() };
        let [found] = &behind(&slow)[..] else { panic!("one finding for all documents") };
        assert!(found.summary.contains("m0 (version 2 is not ready), m1"), "{}", found.summary);
        assert!(found.summary.contains("m2 (version 2 is not ready) and 2 more are not in force"), "{}", found.summary);
        let gone = Troubles { lost: Some(vec![("b".to_owned(), "2026-11-28".to_owned())]), ..Troubles::default() };
        let found = lost(&gone).unwrap();
        assert_eq!((found.len(), found[0].about.subject.as_str()), (1, "b"));
    }
}
