//! Reading a log from outside: beside an engine that runs, or after it has stopped. It writes nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use loom_core::record::Record;
use loom_core::{Code, Error, Limits, Partition, Position, parse_uuid, show_uuid};
use loom_log::{LogError, ReadLimit, Reader};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::convert::{refuse, text};
use crate::records::{OfRun, Row, event_of, row};

/// Records looked at between two looks for a Ctrl-C.
const PORTION: usize = 8_000;

/// (id, topic, started, ended, events, turns, calls, errors, agents, missing, open, whole); times in milliseconds.
type Summary = (
    String,
    Option<String>,
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    Vec<String>,
    u64,
    u64,
    bool,
);

/// States (agent, key, JSON), and the hash of all that is folded.
type Folded = (Vec<(String, String, Vec<u8>)>, Vec<u8>);

/// A data directory that is read.
#[pyclass(frozen, module = "loom._engine")]
pub(crate) struct LogReader {
    reader: Mutex<Reader>,
}

fn refused(error: &LogError) -> PyErr {
    refuse(error.into())
}

impl LogReader {
    fn lock(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows `look` each record from a position on, in portions, as long as it says so.
    fn walk(
        &self,
        py: Python<'_>,
        (namespace, from): (&str, u64),
        mut look: impl FnMut(Position, Record) -> bool + Send,
    ) -> PyResult<()> {
        let most = ReadLimit {
            records: PORTION,
            ..ReadLimit::default()
        };
        let mut next = from;
        loop {
            let batch = py
                .detach(|| self.lock().read(namespace, next, most))
                .map_err(|error| refused(&error))?;
            next = batch.next;
            let on = py.detach(|| {
                batch
                    .records
                    .into_iter()
                    .all(|(at, record)| look(at, record))
            });
            if batch.at_end || !on {
                return Ok(());
            }
            py.check_signals()?;
        }
    }

    fn first(&self, py: Python<'_>, namespace: &str) -> PyResult<u64> {
        let bounds = py.detach(|| self.lock().bounds(namespace));
        Ok(bounds.map_err(|error| refused(&error))?.0)
    }

    fn collect<'py>(
        &self,
        py: Python<'py>,
        (namespace, from): (&str, u64),
        mut wanted: impl FnMut(Position, &Record) -> bool + Send,
    ) -> PyResult<Vec<Row<'py>>> {
        let mut found: Vec<(Position, Record)> = Vec::new();
        self.walk(py, (namespace, from), |at, record| {
            if wanted(at, &record) {
                found.push((at, record));
            }
            true
        })?;
        found
            .iter()
            .map(|(at, record)| row(py, *at, record))
            .collect()
    }
}

#[pymethods]
impl LogReader {
    #[new]
    #[pyo3(signature = (path, /))]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a path of Python's is extracted"
    )]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let reader = py
            .detach(|| Reader::open(&path))
            .map_err(|error| refused(&error))?;
        Ok(Self {
            reader: Mutex::new(reader),
        })
    }

    /// Takes in what was written since.
    fn refresh(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.lock().refresh())
            .map_err(|error| refused(&error))
    }

    fn namespaces(&self) -> Vec<String> {
        self.lock().namespaces()
    }

    /// The oldest position that is kept, and the one behind the newest.
    #[pyo3(signature = (namespace, /))]
    fn bounds(&self, py: Python<'_>, namespace: &Bound<'_, PyString>) -> PyResult<(u64, u64)> {
        let namespace = text("namespace", namespace)?;
        py.detach(|| self.lock().bounds(namespace))
            .map_err(|error| refused(&error))
    }

    /// The number of a position of this log.
    #[pyo3(signature = (namespace, position, /))]
    fn number(
        &self,
        namespace: &Bound<'_, PyString>,
        position: &Bound<'_, PyString>,
    ) -> PyResult<u64> {
        let namespace = text("namespace", namespace)?;
        let position: Position = text("position", position)?.parse().map_err(refuse)?;
        let partition = self.lock().partition(namespace);
        if partition.map_err(|error| refused(&error))? == position.partition {
            return Ok(position.n);
        }
        let message = format!("{position} is a position of another log");
        Err(refuse(
            Error::new(Code::InvalidCursor, message).field("position"),
        ))
    }

    /// Up to `most` records from a position on; where to go on; whether there was no more.
    #[pyo3(signature = (namespace, start, most, /))]
    fn read<'py>(
        &self,
        py: Python<'py>,
        namespace: &Bound<'_, PyString>,
        start: u64,
        most: usize,
    ) -> PyResult<(Vec<Row<'py>>, u64, bool)> {
        let namespace = text("namespace", namespace)?;
        let most = ReadLimit {
            records: most,
            ..ReadLimit::default()
        };
        let batch = py
            .detach(|| self.lock().read(namespace, start, most))
            .map_err(|error| refused(&error))?;
        let rows = batch
            .records
            .iter()
            .map(|(at, record)| row(py, *at, record));
        Ok((rows.collect::<PyResult<_>>()?, batch.next, batch.at_end))
    }

    /// All records of one run, in order.
    #[pyo3(signature = (namespace, run, /))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        namespace: &Bound<'_, PyString>,
        run: &Bound<'_, PyString>,
    ) -> PyResult<Vec<Row<'py>>> {
        let namespace = text("namespace", namespace)?;
        let Some(run) = parse_uuid(text("run", run)?) else {
            return Ok(Vec::new());
        };
        let mut of_run = OfRun::new(run);
        let from = self.first(py, namespace)?;
        self.collect(py, (namespace, from), |at, record| of_run.takes(at, record))
    }

    /// The events with these ids.
    #[pyo3(signature = (namespace, ids, /))]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a list of Python's strings is extracted"
    )]
    fn find<'py>(
        &self,
        py: Python<'py>,
        namespace: &Bound<'_, PyString>,
        ids: Vec<String>,
    ) -> PyResult<Vec<Row<'py>>> {
        let namespace = text("namespace", namespace)?;
        let ids: BTreeSet<u128> = ids.iter().filter_map(|id| parse_uuid(id)).collect();
        let from = self.first(py, namespace)?;
        self.collect(py, (namespace, from), |_, record| {
            event_of(record).is_some_and(|env| ids.contains(&env.id))
        })
    }

    /// Ids of events that begin or end so, the newest of them.
    #[pyo3(signature = (namespace, part, most, /))]
    fn alike(
        &self,
        py: Python<'_>,
        namespace: &Bound<'_, PyString>,
        part: &Bound<'_, PyString>,
        most: usize,
    ) -> PyResult<Vec<String>> {
        let (namespace, part) = (text("namespace", namespace)?, text("part", part)?);
        let mut found: VecDeque<String> = VecDeque::new();
        let from = self.first(py, namespace)?;
        self.walk(py, (namespace, from), |_, record| {
            let id = event_of(&record).map(|env| show_uuid(env.id));
            if let Some(id) = id.filter(|id| id.starts_with(part) || id.ends_with(part)) {
                found.push_back(id);
                if found.len() > most {
                    found.pop_front();
                }
            }
            true
        })?;
        Ok(found.into())
    }

    /// The newest runs, at most so many, the oldest of them first.
    #[pyo3(signature = (namespace, most, /))]
    fn runs(
        &self,
        py: Python<'_>,
        namespace: &Bound<'_, PyString>,
        most: usize,
    ) -> PyResult<Vec<Summary>> {
        let namespace = text("namespace", namespace)?;
        let mut runs = Runs::new(most);
        let from = self.first(py, namespace)?;
        self.walk(py, (namespace, from), |at, record| {
            runs.take(at, &record);
            true
        })?;
        Ok(runs.shown())
    }

    /// States as they were before a position (none: as they are): (agent, key, state), and the hash of all of the fold.
    /// It begins at the newest snapshot, or anew with the oldest record.
    #[pyo3(signature = (namespace, until, anew, /))]
    fn fold(
        &self,
        py: Python<'_>,
        namespace: &Bound<'_, PyString>,
        until: Option<u64>,
        anew: bool,
    ) -> PyResult<Folded> {
        let namespace = text("namespace", namespace)?;
        let until = until.unwrap_or(u64::MAX);
        let newest = if anew { 0 } else { until };
        let (mut folded, from) = self.begin(py, namespace, newest)?;
        self.walk(py, (namespace, from), |at, record| {
            let before = at.n < until;
            if before {
                folded.apply(at, &record);
            }
            before
        })?;
        let states = folded
            .states()
            .map(|state| (state.agent.clone(), state.key.clone(), state.body.to_vec()));
        Ok((states.collect(), folded.hash().to_vec()))
    }
}

impl LogReader {
    /// What is folded up to the newest snapshot before a position, and where to go on.
    fn begin(&self, py: Python<'_>, namespace: &str, until: u64) -> PyResult<(Partition, u64)> {
        let snapshot = py
            .detach(|| self.lock().snapshot(namespace))
            .map_err(|error| refused(&error))?;
        let limits = Limits::default();
        if let Some(snapshot) = snapshot.filter(|snapshot| snapshot.at.n < until) {
            let folded = Partition::restore(&snapshot.bytes, &limits).map_err(refuse)?;
            return Ok((folded, snapshot.at.n + 1));
        }
        Ok((Partition::new(&limits), self.first(py, namespace)?))
    }
}

#[derive(Default)]
struct Run {
    topic: Option<String>,
    /// Its root event is there.
    whole: bool,
    started: u64,
    ended: u64,
    events: u64,
    turns: u64,
    calls: u64,
    errors: u64,
    agents: BTreeSet<String>,
    missing: u64,
    /// Turns that began and did not end: by event and agent, so that a redelivery makes it good.
    open: BTreeSet<(u128, String)>,
}

impl Run {
    fn saw(&mut self, at_ms: u64) {
        self.started = if self.started == 0 {
            at_ms
        } else {
            self.started.min(at_ms)
        };
        self.ended = self.ended.max(at_ms);
    }
}

/// Sums up runs in one pass; the oldest are forgotten where there are too many.
struct Runs {
    most: usize,
    known: BTreeMap<u128, Run>,
    /// Runs up to this one were forgotten.
    floor: u128,
    turns: BTreeMap<(u32, u64), (u128, u128, String)>,
}

impl Runs {
    fn new(most: usize) -> Self {
        Self {
            most,
            known: BTreeMap::new(),
            floor: 0,
            turns: BTreeMap::new(),
        }
    }

    fn run(&mut self, id: u128) -> Option<&mut Run> {
        if id <= self.floor {
            return None;
        }
        self.known.entry(id).or_default();
        if self.known.len() > self.most
            && let Some((oldest, _)) = self.known.pop_first()
        {
            self.floor = oldest;
        }
        self.known.get_mut(&id)
    }

    fn take(&mut self, at: Position, record: &Record) {
        if let Some(env) = event_of(record) {
            let (root, own) = (env.id == env.run, env.topic.starts_with("loom."));
            if root && own {
                return; // the engine's own chatter is no run
            }
            let error = env.topic.starts_with("loom.error.");
            if own && !self.known.contains_key(&env.run) {
                return;
            }
            let topic = root.then(|| env.topic.to_string());
            let at_ms = env.time_ms;
            if let Some(run) = self.run(env.run) {
                run.saw(at_ms);
                run.events += u64::from(!own);
                run.errors += u64::from(error);
                run.whole |= root;
                run.topic = run.topic.take().or(topic);
            }
            return;
        }
        match record {
            Record::Turn(it) => {
                let (Some(id), Some(event)) = (it.run, it.event) else {
                    return;
                };
                let (id, event) = (u128::from(id), u128::from(event));
                let key = (at.epoch, it.turn);
                self.turns.insert(key, (id, event, it.agent.clone()));
                if let Some(run) = self.run(id) {
                    run.saw(it.at_ms);
                    run.turns += 1;
                    run.agents.insert(it.agent.clone());
                    run.open.insert((event, it.agent.clone()));
                }
            }
            Record::TurnEnd(it) => {
                let Some((id, event, agent)) = self.turns.remove(&(at.epoch, it.turn)) else {
                    return;
                };
                if let Some(run) = self.run(id) {
                    run.saw(it.at_ms);
                    run.open.remove(&(event, agent));
                }
            }
            Record::Intent(it, _) => {
                let run = it.run.map(u128::from);
                if let Some(run) = run.and_then(|id| self.known.get_mut(&id)) {
                    run.saw(it.at_ms);
                    run.calls += 1;
                }
            }
            Record::Gap(it) => {
                if let Some(run) = it.run.and_then(|id| self.run(id.into())) {
                    run.missing += it.to.saturating_sub(it.from);
                }
            }
            Record::Epoch(_) => self.turns.clear(),
            _ => {}
        }
    }

    fn shown(self) -> Vec<Summary> {
        let shown = self.known.into_iter().map(|(id, run)| {
            let open = run.open.len() as u64;
            (
                show_uuid(id),
                run.topic,
                run.started,
                run.ended,
                run.events,
                run.turns,
                run.calls,
                run.errors,
                run.agents.into_iter().collect(),
                run.missing,
                open,
                run.whole && run.missing == 0 && open == 0,
            )
        });
        shown.collect()
    }
}
