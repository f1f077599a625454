//! The fleet's store as a source of versions.

use super::SOURCE;
use super::board::Board;
use super::catalogue::Catalogue;
use super::session::connect;
use super::store::{Position, Store, Unread};
use super::{Config, wire};
use crate::mirror::{Content, Listing, Make, Offer, Other, Place, RemoteFile, Sink, Source, Trouble};
use crate::registry::Reader;
use async_nats::Client;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Reads versions on a connection of its own, so that large files do not delay reports and changes.
struct Fetcher {
    config: Config,
    catalogue: Catalogue,
    board: Board,
    reader: Reader,
    runtime: Runtime,
    /// There while something is read.
    open: Option<(Client, Store)>,
    position: Position,
}

/// How long a listing waits until the bucket was read for the first time. A gateway that joins is not ready before it has what it should have.
const FIRST_READ: Duration = Duration::from_secs(10);
/// How long a read waits for NATS when it went away in the middle. Then the version is told, and tried again later.
const WAIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);

pub(super) fn source(config: Config, catalogue: Catalogue, board: Board, reader: Reader) -> Other {
    let make: Make = Box::new(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Trouble::new(format!("the system refuses an event loop: {error}")))?;
        let (config, catalogue, board, reader) = (config.clone(), catalogue.clone(), board.clone(), reader.clone());
        Ok(Box::new(Fetcher { config, catalogue, board, reader, runtime, open: None, position: Position::default() }))
    });
    Other { name: SOURCE.to_owned(), make }
}

impl Source for Fetcher {
    fn list(&mut self, _: Instant) -> Result<Listing, Trouble> {
        // A round begins: what the last one read is over.
        self.open = None;
        let versions = self.catalogue.all(FIRST_READ).map_err(Trouble::new)?;
        // Before that, models would be placed on too few gateways, and this one would fetch too many.
        self.board.wait_for_gateways(FIRST_READ);
        let mut listing = Listing { is_final: true, ..Listing::default() };
        for (id, version) in versions {
            if !self.board.keeps(&id.model, &self.reader) {
                continue;
            }
            match version {
                Ok(version) => {
                    let files = version.files.into_iter().map(remote).collect();
                    listing.versions.push(Offer { id, files });
                }
                Err(why) => listing.remark(format!("{id}: {why}")),
            }
        }
        Ok(listing)
    }

    fn read(&mut self, place: &Place, from: u64, until: Instant, to: &mut Sink<'_>) -> Result<(), Trouble> {
        let mut from = from;
        let mut since: Option<Instant> = None;
        loop {
            let before = from;
            let mut counted = |bytes: &[u8]| -> Result<(), Trouble> {
                to(bytes)?;
                from += bytes.len() as u64;
                Ok(())
            };
            let Fetcher { config, runtime, open, position, .. } = self;
            let read: Result<_, Unread> = runtime.block_on(async {
                if open.is_none() {
                    let client = connect(config).await?;
                    let store = Store::open(config, &client).await?;
                    *open = Some((client, store));
                }
                match open.as_ref() {
                    Some((_, store)) => store.read(&place.location, before, position, &mut counted).await,
                    None => Err("the connection is closed".to_owned().into()),
                }
            });
            let why = match read {
                Ok(done) => return done,
                Err(Unread { words, is_lost: false }) => return Err(Trouble::new(words)),
                Err(Unread { words, .. }) => words,
            };
            self.open = None;
            let now = Instant::now();
            if from > before {
                since = None;
            }
            if now.duration_since(*since.get_or_insert(now)) >= WAIT || now >= until {
                return Err(Trouble::new(why));
            }
            // Tells whether the server stops.
            to(&[])?;
            self.runtime.block_on(tokio::time::sleep(PAUSE));
        }
    }
}

fn remote(file: wire::SharedFile) -> RemoteFile {
    let wire::SharedFile { path, sha256, bytes } = file;
    let (location, tag) = (sha256.clone(), Some(sha256.clone()));
    RemoteFile { path, content: Content::At(Place { location, size: Some(bytes), tag, sha256: Some(sha256) }) }
}
