//! `profile.json` beside a model. It only describes a version, so a wrong one is a remark and no failure.

use super::files;
use crate::profile::Profile;
use std::path::Path;
use std::sync::Arc;

/// Reads the profile, and says what is wrong with it.
#[must_use]
pub fn read(dir: &Path) -> (Option<Arc<Profile>>, Option<String>) {
    let wrong = |why: String| (None, Some(format!("{} is not used: {why}", Profile::FILE)));
    match files::read_limited(&dir.join(Profile::FILE), Profile::MAX_BYTES) {
        Ok(None) => (None, None),
        Ok(Some(bytes)) => match Profile::parse(&bytes) {
            Ok(profile) => (Some(Arc::new(profile)), None),
            Err(why) => wrong(why),
        },
        Err(error) => wrong(error.to_string()),
    }
}
