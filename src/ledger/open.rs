//! Opens the ledger: locks the data directory and migrates the database schema.

use super::error::LedgerError;
use super::identity::OpenFiles;
use super::lock::Lock;
use super::reader::LedgerReader;
use super::rows;
use super::writer::LedgerWriter;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// The schema, one step per release that changed it. `user_version` counts the steps that were applied. Never change a released
/// step: existing databases have applied it.
///
/// Versions are text, as in every document: they are unsigned 64-bit numbers, and SQLite's integers are signed.
pub(super) const MIGRATIONS: [&str; 8] = [
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
    // The event of the retirement.
    "
    ALTER TABLE models ADD COLUMN retired INTEGER REFERENCES events (id);
",
    "
    CREATE TABLE crashes (
        model    TEXT NOT NULL REFERENCES models (model),
        version  TEXT NOT NULL,
        ts       TEXT NOT NULL,
        artifact TEXT NOT NULL
    ) STRICT;
    CREATE INDEX crashes_by_version ON crashes (model, version, ts);
    CREATE TABLE set_aside (
        model    TEXT NOT NULL REFERENCES models (model),
        version  TEXT NOT NULL,
        artifact TEXT NOT NULL,
        reason   TEXT NOT NULL,
        PRIMARY KEY (model, version)
    ) STRICT;
",
    // The hash is the SHA-256 of the token, which is stored nowhere.
    "
    CREATE TABLE tokens (
        name       TEXT PRIMARY KEY NOT NULL,
        hash       BLOB NOT NULL UNIQUE,
        role       TEXT NOT NULL,
        models     TEXT NOT NULL,
        created_at TEXT NOT NULL,
        created_by TEXT NOT NULL,
        expires_at TEXT,
        last_used  TEXT
    ) STRICT;
",
    // The newest review of each version, and everybody who pushed it or asked for its traffic.
    "
    CREATE TABLE reviews (
        model    TEXT NOT NULL REFERENCES models (model),
        version  TEXT NOT NULL,
        artifact TEXT NOT NULL,
        approved INTEGER NOT NULL,
        event    INTEGER NOT NULL REFERENCES events (id),
        PRIMARY KEY (model, version)
    ) STRICT;
    CREATE TABLE proposers (
        model   TEXT NOT NULL REFERENCES models (model),
        version TEXT NOT NULL,
        actor   TEXT NOT NULL,
        PRIMARY KEY (model, version, actor)
    ) STRICT;
",
    // The hash chain. `chained_later`: the last event that got its hash from this migration. The code beside it fills both.
    "
    ALTER TABLE events ADD COLUMN previous TEXT;
    ALTER TABLE events ADD COLUMN hash TEXT;
    CREATE TABLE chain (
        chain         TEXT NOT NULL,
        chained_later INTEGER NOT NULL
    ) STRICT;
",
    // What another gateway of a fleet did: who, when and why as JSON, and with which action. Which tokens are valid in the whole fleet.
    "
    ALTER TABLE models ADD COLUMN retired_elsewhere TEXT;
    ALTER TABLE reviews ADD COLUMN elsewhere TEXT;
    ALTER TABLE documents ADD COLUMN made_by TEXT;
    ALTER TABLE tokens ADD COLUMN shared INTEGER NOT NULL DEFAULT 0;
",
];
/// The migration that begins the hash chain.
const CHAIN: i64 = 7;

/// What is percent-encoded in the path of a database that is opened by its URI.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'_').remove(b'-');

/// How long to wait for another process, such as a person with the `sqlite3` tool, to release its lock on the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the ledger of a data directory and creates both where they are missing. The directory stays locked for other servers until
/// the writer is dropped.
///
/// # Errors
/// [`LedgerError::InUse`] when another server holds the directory, [`LedgerError::Newer`] when a newer program wrote the database,
/// and the system's error when the directory or the file cannot be used.
pub fn open(dir: &Path) -> Result<(LedgerWriter, LedgerReader), LedgerError> {
    let at_dir = |source| LedgerError::Directory { dir: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(at_dir)?;
    let lock = Lock::acquire(dir)?;
    let file = dir.join("ledger.sqlite3");
    let at_file = |doing| {
        let file = file.clone();
        move |source| LedgerError::sqlite(&file, doing, source)
    };

    let mut connection = Connection::open(&file).map_err(at_file("open the database"))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(at_file("set a timeout"))?;
    // Checked before anything is written, so that a newer database stays unchanged.
    let version = schema_version(&connection).map_err(at_file("read the schema version"))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if version > known {
        return Err(LedgerError::Newer { file, found: version, known });
    }
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(at_file("set the journal mode"))?;
    migrate(&mut connection).map_err(at_file("migrate the schema"))?;
    // A new file survives a power loss only once its directory entry is on disk.
    File::open(dir).and_then(|d| d.sync_all()).map_err(at_dir)?;

    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reading = Connection::open_with_flags(&file, flags).map_err(at_file("open the database"))?;
    reading.busy_timeout(BUSY_TIMEOUT).map_err(at_file("set a timeout"))?;
    let log = dir.join("ledger.sqlite3-wal");
    let files = OpenFiles::remember([file.clone(), log, Lock::path(dir)]).map_err(at_dir)?;
    Ok((LedgerWriter::new(connection, file.clone(), files, lock), LedgerReader::new(reading, file)))
}

/// Opens the ledger of a data directory for reading, without its lock: a server may be using it. Nothing is created or migrated.
///
/// # Errors
/// [`LedgerError::Older`] when an older program wrote the database, [`LedgerError::Newer`] when a newer one did, and the system's error when
/// the directory has no ledger.
pub fn open_for_reading(dir: &Path) -> Result<LedgerReader, LedgerError> {
    let file = dir.join("ledger.sqlite3");
    if let Err(source) = std::fs::metadata(&file) {
        return Err(LedgerError::Directory { dir: dir.to_owned(), source });
    }
    let at_file = |doing| {
        let file = file.clone();
        move |source| LedgerError::sqlite(&file, doing, source)
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = |path: &Path, flags| {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let version = schema_version(&connection)?;
        Ok((connection, version))
    };
    let opened = open(&file, flags).or_else(|error: rusqlite::Error| {
        // On a read-only file system, SQLite reads a database without a write-ahead log only when it is told that nothing changes it.
        let alone = std::fs::metadata(dir.join("ledger.sqlite3-wal")).map_or(0, |meta| meta.len()) == 0;
        let unwritable = matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly));
        if !(alone && unwritable) {
            return Err(error);
        }
        let path = percent_encoding::percent_encode(file.as_os_str().as_encoded_bytes(), PATH);
        open(Path::new(&format!("file:{path}?immutable=1")), flags | OpenFlags::SQLITE_OPEN_URI)
    });
    let (connection, version) = opened.map_err(at_file("open the database"))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    match version {
        found if found > known => Err(LedgerError::Newer { file, found, known }),
        found if found < known => Err(LedgerError::Older { file, found, known }),
        _ => Ok(LedgerReader::new(connection, file)),
    }
}

fn schema_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Applies the steps that are missing, each in one transaction.
fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let applied = schema_version(connection)?;
    for (version, step) in (1_i64..).zip(MIGRATIONS).filter(|(version, _)| *version > applied) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(step)?;
        if version == CHAIN {
            rows::begin_chain(&transaction)?;
        }
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}
