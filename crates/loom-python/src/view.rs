//! The view of a log, its backup and its restoring, as Python asks for them: no engine is in the game.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use loom_log::{Reader, Report};
use loom_view::{Follower, LogSource, View};
use pyo3::prelude::*;

use crate::convert::refuse;

/// Brings the view of one namespace's log up to date. Any thread may ask; one at a time is served.
#[pyclass(module = "loom._engine", frozen)]
pub(crate) struct LogView {
    follower: Mutex<Follower<LogSource>>,
}

#[pymethods]
impl LogView {
    /// Opens the log of `namespace` in the directory `data`, and the view of it in `file`.
    #[new]
    fn new(py: Python<'_>, data: PathBuf, namespace: String, file: PathBuf) -> PyResult<Self> {
        let open = move || {
            let source = LogSource::open(&data, &namespace)?;
            Ok(Follower::new(View::open(&file)?, source))
        };
        let follower = py.detach(open).map_err(refuse)?;
        Ok(Self {
            follower: Mutex::new(follower),
        })
    }

    /// Takes over the next portion; returns how many records it was, and whether there is no more.
    fn catch_up(&self, py: Python<'_>) -> PyResult<(usize, bool)> {
        let portion = py.detach(|| {
            let mut follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
            follower.step()
        });
        let portion = portion.map_err(refuse)?;
        Ok((portion.records, portion.at_end))
    }

    /// The last position that the view holds; None: it is empty.
    #[getter]
    fn position(&self) -> Option<String> {
        let follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        follower.reached().map(|reached| reached.last.to_string())
    }
}

/// The namespaces that have a log in a data directory.
#[pyfunction]
pub(crate) fn namespaces(py: Python<'_>, data: PathBuf) -> PyResult<Vec<String>> {
    py.detach(move || Reader::open(&data).map(|reader| reader.namespaces()))
        .map_err(|error| refuse(error.into()))
}

/// Whether an engine has the data directory open, and in which process, if it said so.
#[pyfunction]
pub(crate) fn holder(py: Python<'_>, data: PathBuf) -> PyResult<(bool, Option<u32>)> {
    let holder = py
        .detach(move || loom_log::holder(&data))
        .map_err(|error| refuse(error.into()))?;
    Ok(holder.map_or((false, None), |holder| (true, holder.pid)))
}

/// (what it holds: namespace, oldest position, the one behind the newest, records), files, bytes
type Reported = (Vec<(String, u64, u64, u64)>, u64, u64);

fn reported(report: Report) -> Reported {
    let held = report.namespaces.into_iter().map(|held| {
        let (first, end) = held.positions;
        (held.namespace, first, end, held.records)
    });
    (held.collect(), report.files, report.bytes)
}

/// Copies a log that may be in use to a new directory, and checks the copy.
#[pyfunction]
pub(crate) fn backup(
    py: Python<'_>,
    data: PathBuf,
    to: PathBuf,
    now_ms: u64,
) -> PyResult<Reported> {
    py.detach(move || loom_log::backup(&data, &to, now_ms))
        .map(reported)
        .map_err(|error| refuse(error.into()))
}

/// Makes a log of a backup, in a new directory.
#[pyfunction]
pub(crate) fn restore(py: Python<'_>, source: PathBuf, to: PathBuf) -> PyResult<Reported> {
    py.detach(move || loom_log::restore(&source, &to))
        .map(reported)
        .map_err(|error| refuse(error.into()))
}
