//! The bell of an engine: a thread that makes due what no session waits for, also while every loop stands still.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use loom_core::Result;

use crate::engine::Shared;
use crate::threads::{Threads, lock, monotonic};

/// Rings when it was told to; its thread begins with the first time that it is told. Nothing here touches Python.
#[derive(Default)]
pub(crate) struct Bell {
    told: Mutex<Told>,
    moved: Condvar,
    threads: Arc<Threads>,
}

#[derive(Default)]
struct Told {
    at: Option<Instant>,
    runs: bool,
    is_stopped: bool,
}

impl Bell {
    /// Rings when so much time has passed, or earlier if it was told so before.
    ///
    /// # Errors
    /// `EXHAUSTED`: there is no thread left.
    pub(crate) fn tell(self: &Arc<Self>, shared: &Weak<Shared>, left: Duration) -> Result<()> {
        let at = monotonic() + left;
        let mut told = lock(&self.told);
        if told.is_stopped {
            return Ok(());
        }
        if !told.runs {
            let (bell, shared) = (Arc::clone(self), Weak::clone(shared));
            self.threads.start("loom-bell", move || bell.run(&shared))?;
            told.runs = true;
        }
        told.at = Some(told.at.map_or(at, |before| before.min(at)));
        drop(told);
        self.moved.notify_one();
        Ok(())
    }

    fn run(&self, shared: &Weak<Shared>) {
        while self.wait() {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            // An engine that failed in an earlier call has nothing more to make due.
            if shared.ring().is_err() {
                return;
            }
        }
    }

    /// Returns when it is time to ring; `false`: it is stopped.
    fn wait(&self) -> bool {
        let mut told = lock(&self.told);
        loop {
            if told.is_stopped {
                return false;
            }
            let left = told.at.map(|at| at.saturating_duration_since(monotonic()));
            told = match left {
                None => self.moved.wait(told),
                Some(Duration::ZERO) => {
                    told.at = None;
                    return true;
                }
                Some(left) => {
                    let woken = self.moved.wait_timeout(told, left);
                    Ok(woken.unwrap_or_else(PoisonError::into_inner).0)
                }
            }
            .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Rings no more; waits until then for the thread.
    pub(crate) fn stop(&self, until: Instant) {
        lock(&self.told).is_stopped = true;
        self.moved.notify_all();
        // One that is late ends by itself when the engine lets it go on: it looks whether it is stopped.
        self.threads.join(until);
    }
}
