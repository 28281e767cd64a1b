//! The threads of an engine: they are waited for, but not for ever.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use loom_core::{Code, Error, Result};

/// Threads that were started, and how many of them have not ended.
#[derive(Default)]
pub(crate) struct Threads {
    inner: Mutex<(usize, Vec<JoinHandle<()>>)>,
    ended: Condvar,
}

/// Says that a thread has ended, however it did.
struct End(Arc<Threads>);

impl Drop for End {
    fn drop(&mut self) {
        lock(&self.0.inner).0 -= 1;
        self.0.ended.notify_all();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a thread that died has left is whole: each step ends with the books in order.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(
    clippy::disallowed_methods,
    reason = "tells when a thread has waited long enough"
)]
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}

impl Threads {
    /// Starts one more.
    ///
    /// # Errors
    /// `EXHAUSTED`: there is no thread left.
    pub(crate) fn start(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        lock(&self.inner).0 += 1;
        // It counts down also when there is no thread: then it goes with the closure.
        let end = End(Arc::clone(self));
        let thread = std::thread::Builder::new().name(name.to_owned());
        let started = thread.spawn(move || {
            let _end = end;
            work();
        });
        let started = started
            .map_err(|error| Error::new(Code::Exhausted, format!("no thread {name}: {error}")))?;
        lock(&self.inner).1.push(started);
        Ok(())
    }

    /// Waits for the end of all, until a moment. `false`: one is late; it is left to itself.
    pub(crate) fn join(&self, until: Instant) -> bool {
        let mut inner = lock(&self.inner);
        while inner.0 > 0 {
            let left = until.saturating_duration_since(monotonic());
            if left.is_zero() {
                inner.1.clear();
                return false;
            }
            let waited = self.ended.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let threads = std::mem::take(&mut inner.1);
        drop(inner);
        for thread in threads {
            // One that died has left its message where the process writes those.
            let _ = thread.join();
        }
        true
    }
}
