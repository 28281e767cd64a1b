//! `loom._engine`: conversion between Python and `loom-core`, and the file descriptor that wakes a loop.
//!
//! It is the one place where Rust meets Python. Rust never calls Python, and holds no Python object under its lock; Python
//! offers and drains. It starts threads only for a log on disk, and they never touch Python.

mod bell;
mod bridge;
mod clock;
mod convert;
mod delivery;
mod engine;
mod history;
mod log;
mod reader;
mod records;
mod remote;
mod session;
mod threads;
mod view;
mod wake;

use pyo3::prelude::*;

/// Events are made and freed in quick succession; this allocator is made for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The compiled engine: a dozen names, conversion and no policy.
#[pymodule]
mod _engine {
    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_export]
    use crate::bridge::Bridge;
    #[pymodule_export]
    use crate::convert::EngineError;
    #[pymodule_export]
    use crate::convert::{digest, has_null};
    #[pymodule_export]
    use crate::delivery::{Delivery, Receipt};
    #[pymodule_export]
    use crate::engine::Engine;
    #[pymodule_export]
    use crate::reader::LogReader;
    #[pymodule_export]
    use crate::remote::RemoteSession;
    #[pymodule_export]
    use crate::session::Session;
    #[pymodule_export]
    use crate::view::{LogView, backup, holder, namespaces, restore};

    #[pymodule_export]
    const NOTICE_READY: u8 = crate::convert::READY;
    #[pymodule_export]
    const NOTICE_ANSWER: u8 = crate::convert::ANSWER;
    #[pymodule_export]
    const NOTICE_OUTCOME: u8 = crate::convert::OUTCOME;
    #[pymodule_export]
    const NOTICE_CHUNK: u8 = crate::convert::CHUNK;
    #[pymodule_export]
    const NOTICE_CREDIT: u8 = crate::convert::CREDIT;
    #[pymodule_export]
    const NOTICE_CANCEL: u8 = crate::convert::CANCEL;
    #[pymodule_export]
    const NOTICE_ACCEPTED: u8 = crate::convert::ACCEPTED;
    #[pymodule_export]
    const NOTICE_REFUSED: u8 = crate::convert::REFUSED;
    #[pymodule_export]
    const NOTICE_DUE: u8 = crate::convert::DUE;
    #[pymodule_export]
    const NOTICE_PROBE: u8 = crate::convert::PROBE;
    #[pymodule_export]
    const NOTICE_REMOVED: u8 = crate::convert::REMOVED;

    #[pymodule_export]
    const NOTICE_LINK: u8 = crate::remote::LINK;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::wake::watch_forks();
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
