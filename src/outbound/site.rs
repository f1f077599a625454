//! The client of all paths below one address.

use super::authorities::Untrusted;
use super::client::{OutboundError, agent, reason};
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use ureq::http::{Request, Response};

/// A client of the paths below one address.
pub struct Site {
    /// Without a slash at its end.
    base: String,
    /// The value of the header `authorization`.
    authorization: Option<String>,
    /// The file with the authorities to trust. `None`: those of the system.
    ca: Option<PathBuf>,
    /// `None` after a failure: the authorities are read again for the next request.
    agent: Option<ureq::Agent>,
}

/// Why a body was not read to its end.
#[derive(Debug)]
pub enum StreamError<E> {
    Outbound(OutboundError),
    /// What takes the bytes does not want more.
    Taker(E),
}

/// The bytes that are read at a time.
const PIECE: usize = 64 << 10;

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site").field("ca", &self.ca).finish_non_exhaustive()
    }
}

impl Site {
    /// A client of the paths below `base`, which begins with `http://` or `https://`.
    ///
    /// # Errors
    /// When the authorities that `https://` needs cannot be read.
    pub fn new(base: &str, authorization: Option<String>, ca: Option<PathBuf>) -> Result<Site, Untrusted> {
        let base = base.trim_end_matches('/').to_owned();
        let agent = Some(agent(&base, ca.as_deref())?);
        Ok(Site { base, authorization, ca, agent })
    }

    /// The status and the body of the answer to a request for `path`, which begins with a slash and may have a query. With a body, which is JSON, it is
    /// a POST. Any status is an answer.
    ///
    /// # Errors
    /// When there is no answer with at most `most` bytes `within` this time.
    pub fn ask(
        &mut self,
        path: &str,
        body: Option<String>,
        within: Duration,
        most: u64,
    ) -> Result<(u16, Vec<u8>), OutboundError> {
        let mut answer = self.send(path, body, &[], within)?;
        let status = answer.status().as_u16();
        // One byte more shows that there are too many.
        match answer.body_mut().with_config().limit(most.saturating_add(1)).read_to_vec() {
            Ok(body) if body.len() as u64 <= most => Ok((status, body)),
            Ok(_) | Err(ureq::Error::BodyExceedsLimit(_)) => Err(OutboundError::TooLarge(most)),
            Err(error) => Err(self.failed(error, within)),
        }
    }

    /// Gives the bytes at `path` from byte `from` on to `take`, piece by piece. A server that does not know ranges sends all bytes, and those before
    /// `from` are left out.
    ///
    /// # Errors
    /// When the answer has no status of success, or does not end `within` this time, and what `take` returns.
    pub fn stream<E>(
        &mut self,
        path: &str,
        from: u64,
        within: Duration,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), StreamError<E>> {
        let range = format!("bytes={from}-");
        let headers: &[(&str, &str)] = if from == 0 { &[] } else { &[("range", &range)] };
        let mut answer = self.send(path, None, headers, within).map_err(StreamError::Outbound)?;
        let mut skipped = match answer.status().as_u16() {
            200 => from,
            206 if starts_at(&answer, from) => 0,
            status => return Err(StreamError::Outbound(OutboundError::Status(status))),
        };
        let mut reader = answer.body_mut().with_config().limit(u64::MAX).reader();
        let mut piece = vec![0; PIECE];
        loop {
            let read = match reader.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) => return Err(StreamError::Outbound(self.failed(error.into(), within))),
            };
            let skip = usize::try_from(skipped).unwrap_or(usize::MAX).min(read);
            skipped -= skip as u64;
            if skip < read {
                take(&piece[skip..read]).map_err(StreamError::Taker)?;
            }
        }
    }

    fn send(
        &mut self,
        path: &str,
        body: Option<String>,
        headers: &[(&str, &str)],
        within: Duration,
    ) -> Result<Response<ureq::Body>, OutboundError> {
        let began = Instant::now();
        let agent = match self.agent.clone() {
            Some(agent) => agent,
            None => agent(&self.base, self.ca.as_deref())?,
        };
        // Reading the authorities is a part of the time.
        let left = within.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
        let method = if body.is_some() { "POST" } else { "GET" };
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let run = || match body {
            None => agent.run(agent.configure_request(request.body(())?).timeout_global(Some(left)).build()),
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body)?;
                agent.run(agent.configure_request(request).timeout_global(Some(left)).build())
            }
        };
        let answer = run().map_err(|error| self.failed(error, within))?;
        self.agent = Some(agent);
        Ok(answer)
    }

    fn failed(&mut self, error: ureq::Error, within: Duration) -> OutboundError {
        self.agent = None;
        reason(error, within)
    }
}

/// Whether an answer with a part of the bytes has those from `from` on.
fn starts_at(answer: &Response<ureq::Body>, from: u64) -> bool {
    let range = answer.headers().get("content-range").and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.trim().parse::<u64>().ok());
    first == Some(from)
}
