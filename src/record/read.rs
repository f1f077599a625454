//! Reads records that are not sealed yet, without a server.

use super::about::About;
use super::columns::Layout;
use super::feedback;
use super::hash::HashKey;
use super::segment::{self, Number, Segment};
use super::view::PredictionView;
use crate::model::ModelName;
use arrow_array::RecordBatch;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The records of one model in segments.
#[derive(Debug, Default)]
pub(crate) struct Unsealed {
    pub predictions: Vec<(Arc<About>, Vec<RecordBatch>)>,
    pub feedback: Vec<RecordBatch>,
    /// The segments that were read. A sealed file whose name begins with one of these numbers holds the same records.
    pub segments: BTreeSet<Number>,
}

/// Reads the segments, also while a server writes and seals them. List the sealed files afterwards: a record that is in neither was
/// deleted.
///
/// # Errors
/// When an existing segment cannot be read.
pub(crate) fn unsealed(data: &Path, model: &ModelName) -> io::Result<Unsealed> {
    let mut found = Unsealed::default();
    for number in segment::list(data)? {
        let segment = match Segment::read(&segment::path(data, number)) {
            // It was sealed after the listing.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            segment => segment?,
        };
        found.segments.insert(number);
        let contents = segment.contents();
        for ((at, _), bodies) in &contents.predictions {
            let about = &contents.abouts[*at];
            if about.model == *model {
                found.predictions.push((Arc::clone(about), segment::batches(about, bodies)));
            }
        }
        for ((of, _), bodies) in &contents.feedback {
            if of == model.as_str() {
                found.feedback.push(feedback::batch(bodies));
            }
        }
    }
    Ok(found)
}

/// The segments of a data directory that are not sealed yet, oldest first.
///
/// # Errors
/// When the directory cannot be listed.
pub(crate) fn open_segments(data: &Path) -> io::Result<Vec<Number>> {
    segment::list(data)
}

/// A segment that is not sealed yet, in memory.
#[derive(Debug)]
pub(crate) struct OpenSegment(Segment);

impl OpenSegment {
    /// Reads a segment, also while a server writes it. `None` where it was sealed or deleted in the meantime.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub(crate) fn read(data: &Path, number: Number) -> io::Result<Option<OpenSegment>> {
        match Segment::read(&segment::path(data, number)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            segment => segment.map(|segment| Some(OpenSegment(segment))),
        }
    }

    /// The predictions of a model that `keep` chooses. Others are looked at in place, and not copied.
    pub(crate) fn predictions(
        &self,
        model: &ModelName,
        keep: &mut dyn FnMut(&About, &PredictionView) -> bool,
    ) -> Vec<(Arc<About>, Vec<RecordBatch>)> {
        let contents = self.0.contents();
        let mut found = Vec::new();
        for ((at, _), bodies) in &contents.predictions {
            let about = &contents.abouts[*at];
            if about.model != *model {
                continue;
            }
            let layout = Layout::new(about);
            let is_kept = |body: &&&[u8]| segment::read_view(&layout, body).is_some_and(|view| keep(about, &view));
            let kept: Vec<&[u8]> = bodies.iter().filter(is_kept).copied().collect();
            if !kept.is_empty() {
                found.push((Arc::clone(about), segment::batches(about, &kept)));
            }
        }
        found
    }

    /// The feedback for a model.
    pub(crate) fn feedback(&self, model: &ModelName) -> Vec<RecordBatch> {
        let contents = self.0.contents();
        let of_model = contents.feedback.iter().filter(|((of, _), _)| of == model.as_str());
        of_model.flat_map(|(_, bodies)| bodies.chunks(64).map(feedback::batch)).collect()
    }
}

/// The keyed hash of a route key as the log of this data directory stores it. `None` where there is no key yet; none is created.
///
/// # Errors
/// When the key cannot be read, or is too short.
pub(crate) fn hashed_key(data: &Path, key_file: Option<&Path>, text: &str) -> io::Result<Option<String>> {
    let key = HashKey::existing(key_file, data)?;
    Ok(key.map(|key| String::from_utf8_lossy(&key.hash(text.as_bytes())).into_owned()))
}
