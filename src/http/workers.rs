//! Threads that inflate and decode large bodies, so that the other connections of an I/O thread do not wait for them.

use crate::model::{Code, Failure};
use crossbeam_channel::Sender;
use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;
use tokio::sync::oneshot;

/// Work on at most this many bytes happens on the I/O thread: it takes a few milliseconds at most.
pub(super) const LARGE: usize = 1 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end when this is dropped and no work is left.
#[derive(Debug)]
pub(super) struct Workers {
    /// Unbounded, but each job belongs to a request that holds at least its body of the memory for requests.
    jobs: Sender<Job>,
}

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn start(threads: usize) -> io::Result<Workers> {
        let (jobs, waiting) = crossbeam_channel::unbounded::<Job>();
        for i in 0..threads.max(1) {
            let waiting = waiting.clone();
            std::thread::Builder::new().name(format!("body-{i}")).spawn(move || {
                for job in waiting {
                    job();
                }
            })?;
        }
        Ok(Workers { jobs })
    }

    /// Does the work on one of the threads, or does nothing if the caller has gone before a thread is free. A panic in it goes on in the
    /// caller.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` when the work was not done at the deadline.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (reply, done) = oneshot::channel::<Result<T, Box<dyn Any + Send>>>();
        let job = move || {
            if !reply.is_closed() {
                // Unwind safety: what a panic passed through is dropped with the request.
                let result = catch_unwind(AssertUnwindSafe(work));
                // A caller that went away meanwhile needs no result.
                let _ = reply.send(result);
            }
        };
        // The threads end only after the sender, so this cannot fail while `self` exists.
        let _ = self.jobs.send(Box::new(job));
        match tokio::time::timeout_at(deadline.into(), done).await {
            Ok(Ok(Ok(result))) => Ok(result),
            Ok(Ok(Err(panic))) => resume_unwind(panic),
            Ok(Err(_)) => Err(Failure::new(Code::Internal, "the body was not decoded: the server is stopping")),
            Err(_) => Err(Failure::new(Code::DeadlineExceeded, "the deadline passed before the body was decoded")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn work_is_done_elsewhere_and_panics_come_back() {
        let workers = Workers::start(1).unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        let name = || std::thread::current().name().map(str::to_owned);
        assert_eq!(workers.run(until, name).await.unwrap().as_deref(), Some("body-0"));
        let panicked = tokio::spawn(async move { workers.run(until, || panic!("on purpose")).await }).await;
        assert!(panicked.is_err_and(|e| e.is_panic()), "the panic goes on in the caller");
    }

    #[tokio::test]
    async fn the_deadline_ends_the_wait() {
        let workers = Workers::start(1).unwrap();
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let until = Instant::now() + Duration::from_millis(50);
        let failure = workers.run(until, move || held.recv().is_err()).await.unwrap_err();
        assert_eq!(failure.code, Code::DeadlineExceeded);
        drop(release);
    }
}
