//! Background rows from the profile of a version.

use crate::columns::ElementNames;
use crate::model::{Checked, Code, Failure, Signature, Version};
use crate::profile::{Profile, Sample};

/// The rows of a profile, and words that name them. `None` where the profile has none.
///
/// # Errors
/// `INVALID_REQUEST` where the rows do not fit the version.
pub fn background_of_profile(
    profile: Option<&Profile>,
    version: Version,
    signature: &Signature,
    names: &ElementNames,
) -> Result<Option<(Checked, String)>, Failure> {
    let of = |profile: &Profile, sample: &Sample| {
        let unfit = |why: String| {
            let message = format!("the rows in the profile of version {version} cannot be compared with: {why}");
            Failure::new(Code::InvalidRequest, message)
        };
        let checked = signature.check(sample.request(signature, names).map_err(unfit)?)?;
        let source = profile.source.as_ref().map(|source| format!("{source}, ")).unwrap_or_default();
        let words = format!("rows from the profile of version {version} ({source}a sample of {} rows)", profile.rows);
        Ok((checked, words))
    };
    let sampled = profile.and_then(|profile| Some((profile, profile.sample.as_ref()?)));
    sampled.map(|(profile, sample)| of(profile, sample)).transpose()
}
