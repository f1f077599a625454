//! The requests that a search finds as lines of JSON, each as soon as it is found.
//!
//! The body is what the command `requests --lines` prints, after a first line with what the caller may see. Dropping it ends the search.

use super::child::{Piece, Process};
use super::contents;
use crate::model::{Code, Failure};
use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::ACCEPT;
use serde_json::{Value, json};
use std::io;
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

/// Newline-delimited JSON.
pub(super) const MEDIA: &str = "application/x-ndjson";
/// A search that finds nothing for so long sends a line that says that it goes on: a server notices only when it writes that its client is gone.
const SIGN: Duration = Duration::from_millis(500);
/// The most bytes of a line: the id, the route key and the words of a request have limits.
const MAX_LINE: usize = 1 << 20;

/// Whether the client asks for lines.
pub(super) fn are_wanted(headers: &HeaderMap) -> bool {
    let named = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    named.into_iter().any(|range| range.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case(MEDIA)))
}

/// A search whose lines are sent.
pub(super) struct Lines {
    process: Process,
    _permit: SemaphorePermit<'static>,
    until: Instant,
    may_read: bool,
    /// What is sent next.
    ready: Option<Bytes>,
    /// The begin of a line.
    rest: Vec<u8>,
}

impl Lines {
    /// Waits for the first lines. `model` and `may_read` are told in a line before them.
    ///
    /// # Errors
    /// Those of a command that fails before it found anything; `failure` has the words for it.
    pub(super) async fn begin(
        mut process: Process,
        permit: SemaphorePermit<'static>,
        longest: Duration,
        (model, may_read): (&str, bool),
        failure: impl FnOnce(Option<i32>, &str) -> Failure,
    ) -> Result<Lines, Failure> {
        let until = Instant::now() + longest;
        let first = process.next(longest).await?;
        let contents = if may_read { "shown" } else { "withheld" };
        let mut ready = format!("{}\n", json!({ "begin": { "model": model, "contents": contents } })).into_bytes();
        let mut lines = Lines { process, _permit: permit, until, may_read, ready: None, rest: Vec::new() };
        match first {
            Some(Piece::Output(bytes)) => ready.extend(lines.taken(&bytes).map_err(|e| broken(&e))?),
            Some(Piece::Failed { code, said }) => return Err(failure(code, &said)),
            None => {}
        }
        lines.ready = Some(ready.into());
        Ok(lines)
    }

    pub(super) fn body(self) -> Body {
        let next = |mut lines: Lines| async move { lines.next().await.map(|sent| (sent, lines)) };
        Body::from_stream(futures_util::stream::unfold(self, next))
    }

    /// The next lines. An error breaks the connection, so that no client takes the part for the whole.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if let Some(ready) = self.ready.take() {
            return Some(Ok(ready));
        }
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            let piece = match self.process.next(left.min(SIGN)).await {
                Err(_) if left > SIGN => return Some(Ok(Bytes::from_static(b"{\"searching\":true}\n"))),
                Err(late) => return Some(Err(io::Error::other(late.message))),
                Ok(None) if self.rest.is_empty() => return None,
                Ok(None) => return Some(Err(io::Error::other("the last line is not whole"))),
                Ok(Some(piece)) => piece,
            };
            match piece {
                Piece::Failed { said, .. } => {
                    tracing::warn!(said, "a search failed after it had begun");
                    return Some(Err(io::Error::other("the search failed")));
                }
                Piece::Output(bytes) => match self.taken(&bytes) {
                    Ok(lines) if lines.is_empty() => {}
                    Ok(lines) => return Some(Ok(lines.into())),
                    Err(error) => return Some(Err(error)),
                },
            }
        }
    }

    /// The lines that are whole now, without what the caller may not see.
    fn taken(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.rest.extend_from_slice(bytes);
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if self.rest.len() - end > MAX_LINE {
            return Err(io::Error::other(format!("a line has more than {MAX_LINE} bytes")));
        }
        let rest = self.rest.split_off(end);
        let whole = std::mem::replace(&mut self.rest, rest);
        if self.may_read {
            return Ok(whole);
        }
        let mut lines = Vec::new();
        for line in whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let mut line: Value = serde_json::from_slice(line)?;
            contents::leave_out_of_line(&mut line);
            lines.extend(format!("{line}\n").into_bytes());
        }
        Ok(lines)
    }
}

fn broken(error: &io::Error) -> Failure {
    Failure::new(Code::Internal, "the result cannot be read").with_internal(error.to_string())
}
