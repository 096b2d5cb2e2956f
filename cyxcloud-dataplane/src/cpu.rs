//! Work for the processor, kept off the threads that do the network.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Work on up to so many bytes takes less time than handing it over.
pub(crate) const INLINE_WORK: usize = 64 << 10;

/// As many jobs at a time as there are cores; the rest wait in order.
#[derive(Clone, Debug)]
pub(crate) struct Cpu(Arc<Semaphore>);

impl Cpu {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new(cores)))
    }

    /// Runs a job on `len` bytes. If the caller goes away, a job that began runs to its end, holding what it was given.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        len: usize,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if len <= INLINE_WORK {
            return job();
        }
        let Ok(permit) = self.0.clone().acquire_owned().await else {
            unreachable!("the semaphore is never closed")
        };
        let job = tokio::task::spawn_blocking(move || {
            let done = job();
            drop(permit);
            done
        });
        match job.await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime shuts down, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }
}
