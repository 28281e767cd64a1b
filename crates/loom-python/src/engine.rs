//! The engine of one process: one core behind one lock, its clocks, and who has to be woken.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use loom_core::{Code, Core, DirectoryKind, Limits, Moment, SessionId};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use rustc_hash::FxHashMap;

use crate::clock::{Clock, seconds, seconds_of_millis};
use crate::convert::{refusal, refuse, text};
use crate::session::Session;
use crate::wake::{Wake, generation};

/// What the lock guards.
pub(crate) struct State {
    pub(crate) core: Core,
    pub(crate) wakes: FxHashMap<SessionId, Arc<Wake>>,
}

/// What engine and sessions share.
pub(crate) struct Shared {
    state: Mutex<State>,
    clock: Clock,
    /// The process it was made in.
    generation: u32,
    /// Tells engines of one process apart.
    number: u64,
}

static ENGINES: AtomicU64 = AtomicU64::new(1);

impl Shared {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn is_forked(&self) -> bool {
        self.generation != generation()
    }

    pub(crate) fn lock(&self) -> PyResult<MutexGuard<'_, State>> {
        if self.is_forked() {
            let message = "this process was forked after the engine was made; make the app's engine anew in the child";
            return Err(refusal(Code::Fenced, message, None));
        }
        self.state
            .lock()
            .map_err(|_| refusal(Code::Internal, "the engine failed in an earlier call", None))
    }

    pub(crate) fn moment(&self) -> Moment {
        self.clock.moment()
    }

    /// Does one step of the core, and wakes those whose inbox got something. The session that calls from the thread
    /// that drains it is not woken: it looks at `pending`.
    pub(crate) fn step<T>(
        &self,
        caller: SessionId,
        step: impl FnOnce(&mut Core, Moment) -> loom_core::Result<T>,
    ) -> PyResult<T> {
        let at = self.moment();
        let mut state = self.lock()?;
        let outcome = step(&mut state.core, at);
        if state.core.has_woken() {
            let wakes = state.wake(caller);
            drop(state);
            for wake in wakes {
                wake.write();
            }
        }
        outcome.map_err(refuse)
    }
}

impl State {
    /// Marks those whose inbox got something; returns those whose loop has to be told.
    fn wake(&mut self, caller: SessionId) -> Vec<Arc<Wake>> {
        let mut others = Vec::new();
        for session in self.core.take_woken() {
            let Some(wake) = self.wakes.get(&session) else {
                continue;
            };
            wake.set_pending(true);
            if session != caller || !wake.is_mine() {
                others.push(Arc::clone(wake));
            }
        }
        others
    }
}

/// Event bus, action broker and directory of one process.
#[pyclass(frozen, module = "loom._engine")]
pub(crate) struct Engine {
    shared: Arc<Shared>,
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (*, virtual_clock = false, seed = None))]
    fn new(virtual_clock: bool, seed: Option<u64>) -> Self {
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(generation()));
        let core = Core::new(Limits::default(), seed);
        let clock = if virtual_clock {
            Clock::manual()
        } else {
            Clock::real()
        };
        let state = Mutex::new(State {
            core,
            wakes: FxHashMap::default(),
        });
        Self {
            shared: Arc::new(Shared {
                state,
                clock,
                generation: generation(),
                number: ENGINES.fetch_add(1, Ordering::Relaxed),
            }),
        }
    }

    fn attach(
        &self,
        namespace: &Bound<'_, PyString>,
        name: &Bound<'_, PyString>,
    ) -> PyResult<Session> {
        let (namespace, name) = (text("namespace", namespace)?, text("name", name)?);
        Session::attach(&self.shared, namespace, name)
    }

    fn now(&self) -> f64 {
        seconds(self.shared.moment().now.0)
    }

    fn wall(&self) -> f64 {
        seconds_of_millis(self.shared.moment().wall_ms)
    }

    fn advance(&self, seconds: f64) -> PyResult<()> {
        if !seconds.is_finite() || seconds < 0.0 {
            let message = format!("a clock cannot be moved by {seconds} seconds");
            return Err(refusal(Code::InvalidParams, &message, Some("seconds")));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast of a float saturates"
        )]
        let nanos = (seconds * 1e9).round() as u64;
        if self.shared.clock.advance(nanos) {
            return Ok(());
        }
        Err(refusal(
            Code::NotSupported,
            "only a virtual clock can be moved",
            None,
        ))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let stats = self.shared.lock()?.core.stats();
        Ok(PyBytes::new(
            py,
            &serde_json::to_vec(&stats).unwrap_or_default(),
        ))
    }

    fn audit<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let audit = self.shared.lock()?.core.audit();
        Ok(PyBytes::new(
            py,
            &serde_json::to_vec(&audit).unwrap_or_default(),
        ))
    }

    fn routes<'py>(
        &self,
        py: Python<'py>,
        namespace: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let namespace = text("namespace", namespace)?;
        let shown = {
            let state = self.shared.lock()?;
            serde_json::to_vec(&state.core.routes(namespace)).unwrap_or_default()
        };
        Ok(PyBytes::new(py, &shown))
    }

    fn directory<'py>(
        &self,
        py: Python<'py>,
        namespace: &Bound<'py, PyString>,
        kind: &Bound<'py, PyString>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let kind = match text("kind", kind)? {
            "agent" => DirectoryKind::Agent,
            "capability" => DirectoryKind::Capability,
            other => {
                let message = format!("the directory has agents and capabilities, no {other:?}");
                return Err(refusal(Code::InvalidParams, &message, Some("kind")));
            }
        };
        let namespace = text("namespace", namespace)?;
        let infos: Vec<Vec<u8>> = {
            let state = self.shared.lock()?;
            state.core.directory(namespace, kind)
        };
        Ok(infos.iter().map(|info| PyBytes::new(py, info)).collect())
    }
}
