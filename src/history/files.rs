//! Points on the disk: one CSV file for each hour of fine points, and one for each day of coarse ones, in `history/` of the data directory.

use super::first_day::FirstDay;
use super::series::{Arm, FirstDays, Point};
use crate::machine::durable;
use crate::model::{ModelName, Version};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// The most bytes of all files; the oldest go first. An idle arm writes nothing.
const MOST_BYTES: u64 = 128 << 20;

/// A file covers so many seconds, and is kept for so many.
const FINE: Kind = Kind { prefix: "fine-", covers: 3600, kept: 7 * 3600 };
const COARSE: Kind = Kind { prefix: "coarse-", covers: 86_400, kept: 15 * 86_400 };

#[derive(Debug, Clone, Copy)]
struct Kind {
    prefix: &'static str,
    covers: u32,
    kept: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    model: String,
    version: String,
    arm: String,
    ts: u32,
    span: u32,
    requests: u32,
    failed: u32,
    p50_us: u32,
    p99_us: u32,
    /// Absent in files of older servers.
    #[serde(default)]
    engine_ns_per_row: u32,
}

/// The file of first days, and the most bytes of it that are read.
const FIRST_DAYS: &str = "first-days.json";
const MAX_FIRST_DAYS: u64 = 16 << 20;

/// A first day in the file.
#[derive(Debug, Serialize, Deserialize)]
struct StoredDay {
    model: ModelName,
    version: Version,
    #[serde(flatten)]
    day: FirstDay,
}

#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    /// Said once until it works again.
    failing: bool,
}

impl Files {
    pub(super) fn new(data: &Path) -> Files {
        Files { dir: data.join("history"), failing: false }
    }

    /// Reads all points, file by file in the order of their time. A line that cannot be read is left out: the last one of a file may be cut.
    pub(super) fn read(&self, now: u32, mut take: impl FnMut(Arm, bool, Point)) {
        for (kind, _, path) in self.all() {
            let reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_path(&path);
            let Ok(mut reader) =
                reader.inspect_err(|error| tracing::warn!(%error, "a file of the history cannot be read"))
            else {
                continue;
            };
            let lines =
                reader.deserialize::<Line>().take_while(|line| !line.as_ref().is_err_and(csv::Error::is_io_error));
            for line in lines.filter_map(Result::ok) {
                let Line { model, version, arm, ts, span, requests, failed, p50_us, p99_us, engine_ns_per_row } = line;
                // Other programs can write here too: a time in the future would hide all later ones.
                let (Ok(model), Ok(version)) = (model.parse(), version.parse()) else { continue };
                let Ok(name) = percent_decode_str(&arm).decode_utf8() else { continue };
                let name = name.into_owned();
                if ts <= now && span > 0 {
                    let point = Point { ts, span, requests, failed, p50_us, p99_us, engine_ns_per_row };
                    take(Arm { model, version, name }, kind.prefix == FINE.prefix, point);
                }
            }
        }
    }

    pub(super) fn write(&mut self, now: u32, fresh: &[(Arm, bool, Point)]) {
        let written = self.append(now, fresh, FINE, true).and_then(|()| self.append(now, fresh, COARSE, false));
        let written = written.and_then(|()| self.delete_old(now));
        match (written, self.failing) {
            (Ok(()), _) => self.failing = false,
            (Err(_), true) => {}
            (Err(error), false) => {
                tracing::error!(%error, "the history of figures cannot be written; it goes on in memory");
                self.failing = true;
            }
        }
    }

    /// The first days of versions. Without the file there are none yet.
    pub(super) fn read_first_days(&self) -> FirstDays {
        let path = self.dir.join(FIRST_DAYS);
        let length = fs::metadata(&path).map_or(0, |file| file.len());
        if length == 0 || length > MAX_FIRST_DAYS {
            return FirstDays::default();
        }
        let stored = fs::read(&path).map_err(|e| e.to_string());
        let stored = stored.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string()));
        let stored: Vec<StoredDay> = stored.unwrap_or_else(|error| {
            tracing::warn!(error, "the first days of versions cannot be read; they begin anew");
            Vec::new()
        });
        let sound = stored.into_iter().filter(|stored| stored.day.is_sound());
        sound.map(|StoredDay { model, version, day }| ((model, version), day)).collect()
    }

    pub(super) fn write_first_days(&self, days: FirstDays) {
        let stored: Vec<StoredDay> =
            days.into_iter().map(|((model, version), day)| StoredDay { model, version, day }).collect();
        let bytes = serde_json::to_vec(&stored).map_err(io::Error::other);
        let written = fs::create_dir_all(&self.dir).and(bytes);
        let written = written.and_then(|bytes| durable::write_atomically(&self.dir.join(FIRST_DAYS), &bytes));
        if let Err(error) = written {
            tracing::warn!(%error, "the first days of versions cannot be written; a restart would lose them");
        }
    }

    fn append(&self, now: u32, fresh: &[(Arm, bool, Point)], kind: Kind, fine: bool) -> io::Result<()> {
        let mut lines = fresh.iter().filter(|(_, is_fine, _)| *is_fine == fine).peekable();
        if lines.peek().is_none() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir)?;
        let begins = now - now % kind.covers;
        let path = self.dir.join(format!("{}{begins}.csv", kind.prefix));
        let mut bytes = Vec::new();
        // A crash may have cut the last line; this ends it.
        if fs::metadata(&path).is_ok_and(|file| file.len() > 0) && !ends_with_newline(&path)? {
            bytes.push(b'\n');
        }
        let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(&mut bytes);
        for (Arm { model, version, name }, _, point) in lines {
            let Point { ts, span, requests, failed, p50_us, p99_us, engine_ns_per_row } = *point;
            let (model, version, arm) = (model.to_string(), version.to_string(), escaped(name));
            writer.serialize(Line {
                model,
                version,
                arm,
                ts,
                span,
                requests,
                failed,
                p50_us,
                p99_us,
                engine_ns_per_row,
            })?;
        }
        writer.flush()?;
        drop(writer);
        let mut open = OpenOptions::new().create(true).append(true).open(path)?;
        io::Write::write_all(&mut open, &bytes)
    }

    fn delete_old(&self, now: u32) -> io::Result<()> {
        let files = self.all();
        let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
        let mut bytes: u64 = files.iter().map(|(.., path)| length(path)).sum();
        let mut by_age = files;
        by_age.sort_by_key(|(_, begins, _)| *begins);
        for (kind, begins, path) in by_age {
            let is_old = now.saturating_sub(begins) > kind.kept + kind.covers;
            let is_current = now.saturating_sub(begins) < kind.covers;
            if is_old || (bytes > MOST_BYTES && !is_current) {
                bytes = bytes.saturating_sub(length(&path));
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Our files: kind, first second, path; fine ones and coarse ones each in the order of their time.
    fn all(&self) -> Vec<(Kind, u32, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let mut found = Vec::new();
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            for kind in [COARSE, FINE] {
                let begins = name.strip_prefix(kind.prefix).and_then(|rest| rest.strip_suffix(".csv"));
                if let Some(begins) = begins.and_then(|begins| begins.parse::<u32>().ok()) {
                    found.push((kind, begins, path.clone()));
                }
            }
        }
        found.sort_by(|(a, begins_a, _), (b, begins_b, _)| (a.prefix, begins_a).cmp(&(b.prefix, begins_b)));
        found
    }
}

/// Without quotes and line breaks, so that a line that a crash cut hides no other.
fn escaped(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

fn ends_with_newline(path: &Path) -> io::Result<bool> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == [b'\n'])
}
