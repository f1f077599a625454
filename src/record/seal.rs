//! The sealer: one thread at low priority that turns segments into Parquet files and deletes old files.

use super::feedback;
use super::frame::MAGIC;
use super::gaps::{self, DropReason, Gap};
use super::log::Shared;
use super::now;
use super::pace::Pace;
use super::parquet_file::{PredictionFile, Unfinished};
use super::segment::{self, Contents, Day, Number, Segment};
use crate::machine::durable::sync_parent;
use crate::model::ModelName;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Time between checks of the age of files and attempts to seal what could not be sealed.
const CHECK: Duration = Duration::from_secs(30);
/// Nice value of the sealing thread: threads that answer requests run first.
const NICENESS: i32 = 15;

#[derive(Debug)]
pub(super) struct Sealer {
    shared: Arc<Shared>,
    /// Segments that could not be sealed and were reported.
    stuck: BTreeSet<Number>,
    /// The memory of a segment, kept while more segments wait.
    buffer: Vec<u8>,
}

impl Sealer {
    pub fn new(shared: Arc<Shared>) -> Sealer {
        Sealer { shared, stuck: BTreeSet::new(), buffer: Vec::new() }
    }

    /// Seals until the log stops, and then the last segments.
    pub fn run(mut self, woken: &Receiver<()>) {
        crate::machine::lower_priority("log-seal", NICENESS);
        loop {
            self.seal_all();
            self.delete_old();
            match woken.recv_timeout(CHECK) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.shared.sealer_stopping.load(Ordering::Acquire) {
                break;
            }
        }
        self.seal_all();
        self.delete_old();
    }

    /// Seals every segment that is not open. A failure of one does not stop the others.
    pub fn seal_all(&mut self) {
        let data = self.shared.config.data.clone();
        let segments = match segment::list(&data) {
            Ok(segments) => segments,
            Err(error) => {
                tracing::error!(%error, "the log's segments cannot be listed");
                return;
            }
        };
        let pace = Pace::new(Arc::clone(&self.shared));
        let mut stuck = 0;
        for number in segments {
            let path = segment::path(&data, number);
            let size = std::fs::metadata(&path).map_or(0, |meta| meta.len());
            // Read after the listing: a segment that was closed since then waits for the next round.
            if number == self.shared.open_segment.load(Ordering::Acquire) {
                continue;
            }
            let begun = Instant::now();
            match self.seal(number, &pace) {
                Ok(()) => {
                    self.stuck.remove(&number);
                    self.shared.metrics.seal.record(begun.elapsed());
                    self.note_speed(size, begun.elapsed());
                }
                Err(error) => {
                    stuck += size;
                    self.shared.status().seal_error = Some(error.to_string());
                    if self.stuck.insert(number) {
                        tracing::error!(segment = number, %error, "a segment cannot be sealed; it is kept and tried again");
                    }
                }
            }
            self.shared.space.make_room(0, &self.shared.metrics);
            self.shared.space.show(&self.shared.metrics);
        }
        if self.stuck.is_empty() {
            self.shared.status().seal_error = None;
        }
        self.shared.space.set_stuck(stuck);
        self.buffer = Vec::new();
    }

    /// Notes how fast segments are sealed, the pauses included.
    fn note_speed(&self, bytes: u64, took: Duration) {
        // A short time says little about the speed.
        let now = bytes as f64 / took.as_secs_f64().max(0.001);
        let before = f64::from_bits(self.shared.seal_speed.load(Ordering::Acquire));
        let speed = if before > 0.0 { 0.7 * before + 0.3 * now } else { now };
        self.shared.seal_speed.store(speed.to_bits(), Ordering::Release);
    }

    /// Writes a segment's files and deletes the segment. A second run writes the same files.
    fn seal(&mut self, number: Number, pace: &Pace) -> io::Result<()> {
        let path = segment::path(&self.shared.config.data, number);
        let segment = Segment::read_into(&path, std::mem::take(&mut self.buffer))?;
        pace.rest();
        let contents = segment.contents();
        pace.rest();
        let mut files = self.write_predictions(number, &contents, pace)?;
        files.extend(self.write_feedback(number, &contents, pace)?);
        let mut gaps: Vec<&Gap> = contents.gaps.iter().collect();
        let damaged = damage(&segment, &contents);
        gaps.extend(&damaged);
        files.extend(self.write_gaps(number, &gaps, pace)?);
        let sized = |file: PathBuf| std::fs::metadata(&file).map(|meta| (file, meta.len()));
        let files = files.into_iter().map(sized).collect::<io::Result<_>>()?;
        std::fs::remove_file(&path)?;
        self.shared.space.sealed_into(number, segment.len() as u64, files);
        // A full channel means that there is an item already.
        let _ = self.shared.sealed.0.try_send(());
        self.buffer = segment.into_buffer();
        sync_parent(&path)
    }

    fn write_predictions(&self, number: Number, contents: &Contents, pace: &Pace) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        // All files of a model have the same columns beside their tensors: some readers refuse a directory otherwise.
        let with_shapes: BTreeSet<ModelName> = {
            let streams = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
            let known = streams.values().map(|stream| stream.about()).chain(&contents.abouts);
            known.filter(|about| about.may_need_shapes()).map(|about| about.model.clone()).collect()
        };
        for (k, ((at, day), bodies)) in contents.predictions.iter().enumerate() {
            let about = &contents.abouts[*at];
            let dir = partition(&self.shared.config.data, "predictions", Some(about.model.as_str()), *day);
            let file = dir.join(format!("{number:020}-{k}.parquet"));
            PredictionFile::write(&file, about, with_shapes.contains(&about.model), bodies, pace)?;
            files.push(file);
        }
        Ok(files)
    }

    fn write_feedback(&self, number: Number, contents: &Contents, pace: &Pace) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for ((model, day), bodies) in &contents.feedback {
            let dir = partition(&self.shared.config.data, "feedback", Some(model), *day);
            let file = dir.join(format!("{number:020}-0.parquet"));
            let mut unfinished = Unfinished::begin(&file, &feedback::schema(), &[("model", model.clone())], pace)?;
            for bodies in bodies.chunks(64) {
                unfinished.write(&feedback::batch(bodies))?;
            }
            unfinished.finish()?;
            files.push(file);
        }
        Ok(files)
    }

    fn write_gaps(&self, number: Number, all: &[&Gap], pace: &Pace) -> io::Result<Vec<PathBuf>> {
        let mut by_day: BTreeMap<Day, Vec<&Gap>> = BTreeMap::new();
        for gap in all {
            by_day.entry(Day::of(gap.to)).or_default().push(gap);
        }
        let mut files = Vec::new();
        for (day, gaps) in by_day {
            let file = partition(&self.shared.config.data, "gaps", None, day).join(format!("{number:020}-0.parquet"));
            let mut unfinished = Unfinished::begin(&file, &gaps::schema(), &[], pace)?;
            unfinished.write(&gaps::batch(&gaps))?;
            unfinished.finish()?;
            files.push(file);
        }
        Ok(files)
    }

    fn delete_old(&self) {
        self.shared.space.delete_old(&self.shared.metrics);
        self.shared.space.make_room(0, &self.shared.metrics);
        self.shared.space.show(&self.shared.metrics);
    }
}

/// The gap for bytes that cannot be read. After an unclean stop the end of the segment is torn, which another gap accounts for.
fn damage(segment: &Segment, contents: &Contents) -> Option<Gap> {
    let torn = segment.len() > contents.valid.max(MAGIC.len()) && contents.ended;
    (torn || contents.unreadable > 0).then(|| {
        let at = contents.last.unwrap_or_else(now);
        let records = (!torn).then_some(contents.unreadable as u64);
        Gap { from: at, to: at, records, reason: DropReason::Damaged }
    })
}

fn partition(data: &Path, kind: &str, model: Option<&str>, day: Day) -> PathBuf {
    let mut dir = data.join(kind);
    dir.extend(model.map(|model| format!("model={model}")));
    dir.join(format!("date={day}"))
}
