//! Tags: what MLflow is told about a promotion, and about a version that cannot be served.

use super::alias::Followed;
use super::follow::Following;
use super::memory::VersionNews;
use crate::model::{ModelName, Version};
use crate::registry::{Entry, State};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// The longest pause after tags could not be written.
const MAX_PAUSE: Duration = Duration::from_mins(5);
/// After so many failures in one look, tags are written later.
const MOST_FAILURES: usize = 3;

/// A version, the last part of the key, and the value.
type Tag = (ModelName, Version, &'static str, String);

const PROMOTION: &str = "promotion";
const VERSION: &str = "version";

impl Following {
    /// Writes the tags that are to be written. `news`: the registry has just answered.
    pub(super) fn tell(&mut self, news: bool) {
        let now = Instant::now();
        if self.config.tags.is_empty() || self.untold.1.is_some_and(|at| now < at) {
            return;
        }
        let mut tags = self.promotion_tags();
        if news {
            tags.extend(self.version_tags());
        }
        let mut failures = 0;
        for (model, version, key, value) in tags {
            let name = format!("{}.{key}", self.config.tags);
            let until = Instant::now() + self.config.timeout;
            match self.api.set_tag(&model, version, (&name, &value), until) {
                Ok(()) => {
                    self.untold.0 = 0;
                    self.told(&model, version, key, value);
                }
                Err(trouble) => {
                    if self.untold.0 == 0 {
                        warn!(%model, %version, "the tag {name} cannot be written in MLflow: {trouble}; it is tried again");
                    }
                    failures += 1;
                    self.untold.0 = self.untold.0.saturating_add(1);
                }
            }
            // The others would most likely fail too, and each may take as long as the time limit.
            if failures == MOST_FAILURES {
                break;
            }
        }
        self.untold.1 = (failures > 0).then(|| {
            let pause = Duration::from_secs(1 << self.untold.0.min(9)).min(MAX_PAUSE);
            Instant::now() + pause
        });
    }

    /// A tag was written.
    fn told(&mut self, model: &ModelName, version: Version, key: &str, value: String) {
        if key == PROMOTION {
            let told = self.memory.models.get_mut(model).into_iter().flat_map(BTreeMap::values_mut);
            let is_it = |f: &&mut Followed| f.version == Some(version) && f.untold.as_ref() == Some(&value);
            told.filter(is_it).for_each(|followed| followed.untold = None);
            self.memory.write();
        } else if let Some(of) = self.news.get_mut(model).and_then(|of| of.versions.get_mut(&version)) {
            of.tag = Some(value);
        }
    }

    /// What became of promotions of versions that the registry has.
    fn promotion_tags(&self) -> Vec<Tag> {
        let has = |model: &ModelName, version: &Version| {
            self.news.get(model).is_some_and(|of| of.versions.contains_key(version))
        };
        let all = self.memory.models.iter().flat_map(|(model, known)| known.values().map(move |f| (model, f)));
        let tag = |(model, followed): (&ModelName, &Followed)| {
            let version = followed.version.filter(|version| has(model, version))?;
            Some((model.clone(), version, PROMOTION, followed.untold.clone()?))
        };
        all.filter_map(tag).collect()
    }

    /// What versions are to say: why one cannot be served, and where one said that, that it is ready.
    fn version_tags(&self) -> Vec<Tag> {
        let snapshot = self.reader.snapshot();
        let mut tags = Vec::new();
        for (model, of) in &self.news {
            let entry = snapshot.model(model.as_str());
            for (version, news) in &of.versions {
                let text = tag_of(*version, news, entry.map(Arc::as_ref));
                if let Some(text) = text.filter(|text| news.tag.as_ref() != Some(text)) {
                    tags.push((model.clone(), *version, VERSION, text));
                }
            }
        }
        tags
    }
}

fn tag_of(version: Version, news: &VersionNews, entry: Option<&Entry>) -> Option<String> {
    if let Some(why) = &news.unusable {
        return Some(format!("not served: {why}"));
    }
    let status = entry?.versions().get(&version)?;
    match status.state {
        State::Failed => {
            let stage = status.stage.map_or("load", |stage| stage.as_str());
            Some(format!("failed in {stage}: {}", status.reason.as_deref().unwrap_or_default()))
        }
        // Only a version that said something else says so.
        State::Ready | State::Serving if news.tag.is_some() => Some("ready".to_owned()),
        _ => None,
    }
}
