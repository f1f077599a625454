//! The figures of versions and arms from the rows of the history, as the live join has them: those of a whole fleet.

use super::figures::Figures;
use super::history::Snapshot;
use super::window::Arm;
use crate::model::Version;
use std::collections::BTreeMap;

/// The figures of the rows of a snapshot, by version and arm.
#[must_use]
pub fn of_rows(snapshot: &Snapshot) -> BTreeMap<(Version, String), Figures> {
    let mut arms: BTreeMap<(Version, String), Arm> = BTreeMap::new();
    for row in snapshot.rows() {
        let of = snapshot.arm(row);
        let arm = arms.entry((of.version, of.name.to_string())).or_insert_with(|| Arm::new(of.version, &of.name));
        arm.add_row(row, snapshot.value_names());
    }
    arms.into_iter().map(|(of, arm)| (of, arm.figures())).collect()
}
