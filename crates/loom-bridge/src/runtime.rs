//! Runtimes with one thread: on machines with few cores a second one costs more than it gives.
//!
//! Measured on two cores with two workers in its place, in turn and five times each: a request and its answer took 1.4
//! times as long, and 64 at a time came to 0.8 of the rate, awaited events to 0.9 and realtime events to 0.85.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use loom_core::{Code, Error, Result};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

/// Threads for what may wait for the disk.
const BLOCKING: usize = 4;

/// A runtime that runs on the thread that drives it.
///
/// # Errors
/// `EXHAUSTED`: the system has no files or threads left.
pub(crate) fn build(name: &str) -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING)
        .thread_name(format!("{name}-disk"))
        .build()
        .map_err(|error| Error::new(Code::Exhausted, format!("no runtime: {error}")))
}

/// The runtime of all clients of this process, on a thread of its own. It ends with the last of them.
pub(crate) struct Shared {
    handle: Handle,
    /// Ends the thread when it is dropped.
    _stop: oneshot::Sender<()>,
    process: u32,
}

static CLIENTS: Mutex<Weak<Shared>> = Mutex::new(Weak::new());

impl Shared {
    /// The one that is there, or a new one. A fork's child has no threads: it gets one of its own.
    ///
    /// # Errors
    /// `EXHAUSTED`: the system has no files or threads left.
    pub(crate) fn get() -> Result<Arc<Self>> {
        let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = clients.upgrade()
            && shared.is_ours()
        {
            return Ok(shared);
        }
        let runtime = build("loom-link")?;
        let (stop, stopped) = oneshot::channel::<()>();
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("loom-link".to_owned())
            .spawn(move || {
                // It comes as an error: the sender is only ever dropped.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })
            .map_err(|error| Error::new(Code::Exhausted, format!("no thread: {error}")))?;
        let shared = Arc::new(Self {
            handle,
            _stop: stop,
            process: std::process::id(),
        });
        *clients = Arc::downgrade(&shared);
        Ok(shared)
    }

    /// Whether its thread is in this process.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    pub(crate) fn spawn<F>(&self, work: F) -> tokio::task::JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.handle.spawn(work)
    }
}
