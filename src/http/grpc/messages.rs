//! The body of a stream's answer.

use super::super::data_plane::{DataPlane, Task};
use super::status;
use crate::model::{Code, Failure};
use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;

/// The messages that a future makes, while the client reads: no more than one waits. The future runs only when the body is polled, and ends with
/// it: a client that resets the stream ends the work.
pub(in crate::http) struct Messages {
    plane: Arc<DataPlane>,
    made: mpsc::Receiver<Bytes>,
    /// `None` when it has ended.
    work: Option<Work>,
    /// What is sent last.
    trailers: Option<HeaderMap>,
}

type Work = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages").finish_non_exhaustive()
    }
}

/// Where the future puts its messages, each in its frame.
pub(super) type Sender = mpsc::Sender<Bytes>;

impl Messages {
    /// `work` makes a future that ends with the status of the call.
    pub(super) fn new<F>(plane: &Arc<DataPlane>, work: impl FnOnce(Sender) -> F) -> Messages
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let (sender, made) = mpsc::channel(1);
        Messages { plane: Arc::clone(plane), made, work: Some(Box::pin(work(sender))), trailers: None }
    }

    pub(in crate::http) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if let Some(work) = &mut self.work {
            // What it shares with others is safe to use after a panic, as with all requests.
            let ended = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))).unwrap_or_else(|panic| {
                self.plane.report_panic(Task::Request, &*panic);
                let failure = Failure::new(Code::Internal, "an internal error; the server's log has the cause");
                Poll::Ready(Err(failure))
            });
            if let Poll::Ready(ended) = ended {
                self.trailers = Some(match ended {
                    Ok(()) => status::ok(),
                    Err(failure) => {
                        self.plane.count_refusal(failure.code);
                        status::trailers(&failure)
                    }
                });
                self.work = None;
            }
        }
        // The work holds the sender: its end is that of the messages.
        let message = ready!(self.made.poll_recv(cx));
        Poll::Ready(message.map(Frame::data).or_else(|| self.trailers.take().map(Frame::trailers)))
    }
}
