//! One file on its way: asked for, sent, and asked for again.

use super::begun::Begun;
use crate::bucket::{Address, Client, PART, SHA256, attributes, key, words};
use object_store::multipart::PartId;
use object_store::path::Path as Key;
use object_store::{Attribute, GetOptions, PutMultipartOptions, PutOptions, PutPayload};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Why a file did not arrive.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The server stops.
    Stopped,
    /// The file is not here any more.
    Gone,
    /// In words for operators.
    Failed(String),
}

/// Keeps to a bandwidth on average. One request is sent at once.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    /// The next request may begin then.
    free_at: Instant,
}

/// What a transfer needs besides the file.
pub(super) struct Transfer<'w> {
    pub client: &'w Client,
    pub to: &'w Address,
    /// Where the upload that has begun is stored.
    pub data: &'w Path,
    pub timeout: Duration,
    pub pace: &'w mut Pace,
    /// When the server stops.
    pub stop: watch::Receiver<Option<Instant>>,
    /// Called with the bytes of each request that the store took.
    pub sent: &'w (dyn Fn(u64) + Sync),
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second, free_at: Instant::now() }
    }

    /// When a request with so many bytes may begin.
    fn take(&mut self, bytes: u64, now: Instant) -> Instant {
        let begin = self.free_at.max(now);
        if let Some(nanos) =
            u128::from(bytes).saturating_mul(1_000_000_000).checked_div(u128::from(self.bytes_per_second))
        {
            self.free_at = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        }
        begin
    }
}

impl Transfer<'_> {
    /// Brings a file into its object. Sends nothing where it is there. Returns the bytes that were sent.
    ///
    /// # Errors
    /// When it is not there, or it is not known whether it is.
    pub(super) async fn run(&mut self, file: &mut File, bytes: u64, begun: &mut Begun) -> Result<u64, Trouble> {
        let object = key(self.to, &begun.object).map_err(|e| failed(&e))?;
        if self.is_there(&object, bytes, &begun.sha256, false).await? {
            return Ok(0);
        }
        let sent = if bytes <= PART {
            self.put(&object, file, bytes, &begun.sha256).await?
        } else {
            self.put_parts(&object, file, bytes, begun).await?
        };
        if self.is_there(&object, bytes, &begun.sha256, true).await? {
            return Ok(sent);
        }
        Err(Trouble::Failed(format!("{object}: the store took it, and has other bytes or none")))
    }

    /// Whether the object has these bytes. Where the store keeps no digest (Azure, of a file in parts), the length decides when they were `sent`.
    async fn is_there(&mut self, object: &Key, bytes: u64, sha256: &str, sent: bool) -> Result<bool, Trouble> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let client = self.client;
        match self.ask(object, client.objects.get_opts(object, options)).await? {
            Ok(found) => {
                let digest = found.attributes.get(&Attribute::Metadata(SHA256.into()));
                Ok(found.meta.size == bytes && digest.map_or(sent, |digest| digest.as_ref() == sha256))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(said(object, &error)),
        }
    }

    async fn put(&mut self, object: &Key, file: &mut File, bytes: u64, sha256: &str) -> Result<u64, Trouble> {
        let payload = read(file, 0, bytes)?;
        self.wait_for(bytes).await?;
        let options = PutOptions { attributes: attributes(sha256), ..PutOptions::default() };
        let client = self.client;
        self.ask(object, client.objects.put_opts(object, payload, options)).await?.map_err(|e| said(object, &e))?;
        (self.sent)(bytes);
        Ok(bytes)
    }

    /// Sends the parts that are not there, and makes the object of all.
    async fn put_parts(
        &mut self,
        object: &Key,
        file: &mut File,
        bytes: u64,
        begun: &mut Begun,
    ) -> Result<u64, Trouble> {
        let client = self.client;
        let id = if let Some(id) = &begun.upload {
            id.clone()
        } else {
            let options = PutMultipartOptions { attributes: attributes(&begun.sha256), ..Default::default() };
            let mut created = self.ask(object, client.parts.create_multipart_opts(object, options)).await?;
            if matches!(created, Err(object_store::Error::NotSupported { .. })) {
                created = self.ask(object, client.parts.create_multipart(object)).await?;
            }
            let id = created.map_err(|e| said(object, &e))?;
            begun.upload = Some(id.clone());
            begun.parts.clear();
            begun.store(self.data).map_err(|e| failed(&e))?;
            id
        };
        let mut sent = 0;
        let parts = usize::try_from(bytes.div_ceil(PART)).unwrap_or(usize::MAX);
        while begun.parts.len() < parts {
            let number = begun.parts.len();
            let from = number as u64 * PART;
            let length = PART.min(bytes - from);
            let payload = read(file, from, length)?;
            self.wait_for(length).await?;
            match self.ask(object, client.parts.put_part(object, &id, number, payload)).await? {
                Ok(part) => begun.parts.push(part.content_id),
                Err(error) => return Err(self.lost(object, &error, begun)),
            }
            begun.store(self.data).map_err(|e| failed(&e))?;
            (self.sent)(length);
            sent += length;
        }
        let parts = begun.parts.iter().map(|id| PartId { content_id: id.clone() }).collect();
        match self.ask(object, client.parts.complete_multipart(object, &id, parts)).await? {
            Ok(_) => Ok(sent),
            Err(error) => Err(self.lost(object, &error, begun)),
        }
    }

    /// The upload in parts may not exist any more: the next try begins another one.
    fn lost(&self, object: &Key, error: &object_store::Error, begun: &mut Begun) -> Trouble {
        // A store that does not answer has not forgotten it.
        let is_refused =
            matches!(error, object_store::Error::NotFound { .. } | object_store::Error::Precondition { .. })
                || ["NoSuchUpload", "InvalidPart", "404"].iter().any(|word| error.to_string().contains(word));
        if is_refused {
            begun.upload = None;
            begun.parts.clear();
            if let Err(error) = begun.store(self.data) {
                return failed(&error);
            }
        }
        said(object, error)
    }

    /// Ends an upload in parts of bytes that are not wanted any more. What fails here, a rule of the bucket ends.
    pub(super) async fn abort(&mut self, object: &str, id: &str) {
        let Ok(object) = key(self.to, object) else { return };
        let client = self.client;
        let id = id.to_owned();
        let _ = self.ask(&object, client.parts.abort_multipart(&object, &id)).await;
    }

    /// Waits until so many bytes may be sent.
    async fn wait_for(&mut self, bytes: u64) -> Result<(), Trouble> {
        let begin = self.pace.take(bytes, Instant::now());
        if begin <= Instant::now() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep_until(begin.into()) => Ok(()),
            () = over(self.stop.clone()) => Err(Trouble::Stopped),
        }
    }

    /// The answer of the store, within the time limit.
    async fn ask<T>(&mut self, object: &Key, request: impl Future<Output = T>) -> Result<T, Trouble> {
        tokio::select! {
            answer = tokio::time::timeout(self.timeout, request) => answer.map_err(|_| {
                let within = self.timeout.as_secs_f32();
                Trouble::Failed(format!("{object}: no answer within {within} s (prediction_log.upload_timeout)"))
            }),
            () = over(self.stop.clone()) => Err(Trouble::Stopped),
        }
    }
}

/// Ends at the time by which a stopping server wants everything to have ended.
pub(super) async fn over(mut stop: watch::Receiver<Option<Instant>>) {
    // A sender that is gone stops nothing: the process ends.
    let until = stop.wait_for(Option::is_some).await.map(|until| *until);
    match until {
        Ok(Some(until)) => tokio::time::sleep_until(until.into()).await,
        _ => std::future::pending().await,
    }
}

fn read(file: &mut File, from: u64, length: u64) -> Result<PutPayload, Trouble> {
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.seek(SeekFrom::Start(from)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| failed(&e))?;
    Ok(bytes.into())
}

fn failed(error: &io::Error) -> Trouble {
    Trouble::Failed(error.to_string())
}

fn said(object: &Key, error: &object_store::Error) -> Trouble {
    Trouble::Failed(format!("{object}: {}", words(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bandwidth_is_kept_on_average_and_none_is_no_limit() {
        let begin = Instant::now();
        let mut pace = Pace { bytes_per_second: 1000, free_at: begin };
        let waits = [500, 1000, 0, 1].map(|bytes| pace.take(bytes, begin).duration_since(begin));
        assert_eq!(waits.map(|wait| wait.as_millis()), [0, 500, 1500, 1500]);
        // A pause is not made up for.
        let later = begin + Duration::from_mins(1);
        assert_eq!(pace.take(1000, later), later);
        assert_eq!(pace.take(1, later), later + Duration::from_secs(1));
        let mut free = Pace { bytes_per_second: 0, free_at: begin };
        assert_eq!([u64::MAX, 1].map(|bytes| free.take(bytes, begin)), [begin; 2]);
    }
}
