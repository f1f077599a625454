//! Exports predictions with their latest feedback to one file.

use super::atomic_file::AtomicFile;
use super::error::Error;
use super::options::{Export, Exported, Format};
use super::request_files::{self, Kind};
use super::scan::Progress;
use super::sources::Sources;
use super::table;

/// Writes the file, complete or not at all.
///
/// # Errors
/// When there is nothing to export, something cannot be read or written, or versions do not fit into one table.
pub fn export(options: &Export, progress: Progress) -> Result<Exported, Error> {
    // The file is created first, so that a wrong path fails before anything is read.
    let file = AtomicFile::create(options.to)?;
    let sources = Sources::open(options.data, options.model, &options.filter)?;
    match options.format {
        Format::Golden => request_files::write(options, &sources, Kind::Golden, file, progress),
        Format::Warmup => request_files::write(options, &sources, Kind::Warmup, file, progress),
        Format::Parquet | Format::Csv => table::write(options, &sources, file, progress),
    }
}
