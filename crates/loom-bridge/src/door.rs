//! The engine as a bridge sees it.

use std::sync::Arc;

use loom_core::{Core, Moment, Result, SessionId};
use loom_session::{Looked, ReadErrand};

/// The way into an engine; its shell implements it.
pub trait Door: Send + Sync {
    /// Does one step of the core under the engine's lock, and wakes those to whom it gave work. It waits for nothing else.
    ///
    /// # Errors
    /// The engine is closed, or failed in an earlier call.
    fn with(&self, step: &mut dyn FnMut(&mut Core, Moment)) -> Result<()>;

    /// From now on this is called when the inbox of a session got something that no shell of the engine's own drains. It
    /// may come from any thread, also while the lock is held, and returns at once.
    fn watch(&self, waker: Arc<dyn Fn(SessionId) + Send + Sync>);

    /// Opens the log of a namespace, if it has one. It may wait for the disk.
    ///
    /// # Errors
    /// The log cannot be opened.
    fn open(&self, namespace: &str) -> Result<()>;

    /// Reads the log. It may wait for the disk.
    ///
    /// # Errors
    /// There is no log, or no such position in it.
    fn read(&self, errand: &ReadErrand) -> Result<Looked>;
}
