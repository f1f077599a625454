//! Taking the data directory, and bringing its schema up to date.

use super::error::LedgerError;
use super::reader::LedgerReader;
use super::writer::LedgerWriter;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::Duration;

/// The schema, one step per release that changed it; `user_version` is how many were taken. A step that was released is never
/// changed: there are files that took it.
///
/// Versions are text, as in every document: they are 64-bit unsigned and SQLite's integers are signed.
pub(super) const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE models (
        model          TEXT PRIMARY KEY NOT NULL,
        revision       INTEGER NOT NULL DEFAULT 0,
        taken_out      INTEGER NOT NULL DEFAULT 0,
        highest_served TEXT
    ) STRICT;
    CREATE TABLE events (
        id     INTEGER PRIMARY KEY AUTOINCREMENT,
        ts     TEXT NOT NULL,
        actor  TEXT NOT NULL,
        action TEXT NOT NULL,
        model  TEXT NOT NULL,
        reason TEXT,
        before TEXT,
        after  TEXT
    ) STRICT;
    CREATE INDEX events_by_model ON events (model, id);
    CREATE TABLE documents (
        model    TEXT NOT NULL REFERENCES models (model),
        revision INTEGER NOT NULL,
        event    INTEGER NOT NULL REFERENCES events (id),
        document TEXT NOT NULL,
        PRIMARY KEY (model, revision)
    ) STRICT;
    CREATE TABLE operator_unloaded (
        model   TEXT NOT NULL REFERENCES models (model),
        version TEXT NOT NULL,
        PRIMARY KEY (model, version)
    ) STRICT;
    CREATE TABLE auto_promoted (
        model   TEXT NOT NULL REFERENCES models (model),
        version TEXT NOT NULL,
        PRIMARY KEY (model, version)
    ) STRICT;
    CREATE TABLE artifacts (
        model          TEXT NOT NULL REFERENCES models (model),
        version        TEXT NOT NULL,
        sha256         TEXT NOT NULL,
        bytes          INTEGER NOT NULL,
        first_ready_at TEXT NOT NULL,
        PRIMARY KEY (model, version)
    ) STRICT;
",
    "
    CREATE TABLE rollouts (
        model TEXT PRIMARY KEY NOT NULL REFERENCES models (model),
        state TEXT NOT NULL
    ) STRICT;
",
];

/// Longer than anybody who looks into the file with a tool of their own keeps it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the ledger of a data directory, made where it is not there, and keeps other servers out until the writer is dropped.
///
/// # Errors
/// [`LedgerError::InUse`] when another server has the directory, [`LedgerError::Newer`] when a newer one wrote it, and what the
/// system says when the directory or the file cannot be used.
pub fn open(dir: &Path) -> Result<(LedgerWriter, LedgerReader), LedgerError> {
    let at_dir = |source| LedgerError::Directory { dir: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(at_dir)?;
    let lock = Lock::take(dir)?;
    let file = dir.join("ledger.sqlite3");
    let at_file = |doing| {
        let file = file.clone();
        move |source| LedgerError::sqlite(&file, doing, source)
    };

    let mut connection = Connection::open(&file).map_err(at_file("open the database"))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(at_file("set a timeout"))?;
    // Before anything is written: a newer schema's file is left as it is.
    let version = schema_version(&connection).map_err(at_file("read the schema's version"))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if version > known {
        return Err(LedgerError::Newer { file, found: version, known });
    }
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(at_file("set how it is written"))?;
    migrate(&mut connection).map_err(at_file("bring the schema up to date"))?;
    // A file is only there after a power cut when its directory's entry is.
    File::open(dir).and_then(|d| d.sync_all()).map_err(at_dir)?;

    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reading = Connection::open_with_flags(&file, flags).map_err(at_file("open the database"))?;
    reading.busy_timeout(BUSY_TIMEOUT).map_err(at_file("set a timeout"))?;
    Ok((LedgerWriter::new(connection, file.clone(), lock), LedgerReader::new(reading, file)))
}

/// The data directory, for this process alone. The kernel takes it back when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    fn take(dir: &Path) -> Result<Lock, LedgerError> {
        let at_dir = |source| LedgerError::Directory { dir: dir.to_owned(), source };
        let path = dir.join("lock");
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(at_dir)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Who holds it is a help to people and nothing more.
                let _ = file.take(32).read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "unknown" } else { holder.trim() }.to_owned();
                return Err(LedgerError::InUse { dir: dir.to_owned(), holder });
            }
            Err(e) => return Err(at_dir(e.into())),
        }
        // Not fatal: a full disk must not keep a server from starting, and from serving what it served.
        let _ = name_holder(&mut file);
        Ok(Lock(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough while a child process that is just being started still has the file open.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

fn name_holder(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

fn schema_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Takes the steps that were not taken, each whole or not at all.
fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let taken = schema_version(connection)?;
    for (version, step) in (1_i64..).zip(MIGRATIONS).filter(|(version, _)| *version > taken) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}
