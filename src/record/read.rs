//! Reads records that are not sealed yet, without a server.

use super::about::About;
use super::feedback;
use super::segment::{self, Number, Segment};
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
