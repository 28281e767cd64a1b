//! The engine of one process: one core behind one lock, its clocks, and who has to be woken.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use loom_core::{
    Code, Core, DirectoryKind, Durability, Error, Level, Limits, Moment, Nanos, Recording,
    SessionId,
};
use loom_log::{Boot, Retention};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use rustc_hash::FxHashMap;

use crate::bell::Bell;
use crate::bridge::{Bridge, Names, RawCredential, TlsFiles};
use crate::clock::{Clock, seconds, seconds_of_millis};
use crate::convert::{effect_id, refusal, refuse, text};
use crate::delivery::Delivery;
use crate::history::{Start, look};
use crate::log::{Settings, Store, Waiting, patience};
use crate::session::Session;
use crate::threads::monotonic;
use crate::wake::{Wake, generation};

/// What the lock guards.
pub(crate) struct State {
    pub(crate) core: Core,
    pub(crate) wakes: FxHashMap<SessionId, Arc<Wake>>,
    /// Who is told of sessions that no loop here drains: a bridge.
    watch: Option<Watch>,
    /// When the bell rings next; nothing is earlier than the start, where a virtual clock rings for nobody.
    rings: Nanos,
}

/// Is told that the inbox of a session got something.
pub(crate) type Watch = Arc<dyn Fn(SessionId) + Send + Sync>;

const NEVER: Nanos = Nanos(u64::MAX);

/// What engine and sessions share.
pub(crate) struct Shared {
    state: Mutex<State>,
    clock: Clock,
    /// The process it was made in.
    generation: u32,
    /// Tells engines of one process apart.
    number: u64,
    /// There from the end of its making on.
    pub(crate) store: OnceLock<Store>,
    pub(crate) waiting: Waiting,
    pub(crate) settings: Settings,
    /// Names this engine in its logs.
    boot: u128,
    /// Only one namespace is opened at a time.
    opening: Mutex<()>,
    bell: Arc<Bell>,
    me: Weak<Shared>,
}

static ENGINES: AtomicU64 = AtomicU64::new(1);

/// A number that no other engine, and no other session at a node, has in this process.
pub(crate) fn next_number() -> u64 {
    ENGINES.fetch_add(1, Ordering::Relaxed)
}

impl Shared {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn is_forked(&self) -> bool {
        self.generation != generation()
    }

    pub(crate) fn lock(&self) -> PyResult<MutexGuard<'_, State>> {
        self.guard().map_err(refuse)
    }

    fn guard(&self) -> loom_core::Result<MutexGuard<'_, State>> {
        if self.is_forked() {
            let message = "this process was forked after the engine was made; make the app's engine anew in the child";
            return Err(Error::fenced(message));
        }
        self.state
            .lock()
            .map_err(|_| Error::new(Code::Internal, "the engine failed in an earlier call"))
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
        if state.core.has_records() || state.core.has_reads() {
            self.serve(&mut state.core, at);
        }
        if state.core.alarm().is_some_and(|due| due < state.rings) {
            self.tell_bell(&mut state, at);
        }
        if state.core.has_woken() {
            let wakes = state.wake(Some(caller));
            drop(state);
            for wake in wakes {
                wake.write();
            }
        }
        outcome.map_err(refuse)
    }

    /// Does one step of the core for a thread that is no session's: everybody whose inbox got something is woken.
    pub(crate) fn outside<T>(
        &self,
        step: impl FnOnce(&mut Core, Moment) -> T,
    ) -> loom_core::Result<T> {
        let at = self.moment();
        let mut state = self.guard()?;
        let outcome = step(&mut state.core, at);
        self.finish(state, at);
        Ok(outcome)
    }

    fn finish(&self, mut state: MutexGuard<'_, State>, at: Moment) {
        self.serve(&mut state.core, at);
        self.tell_bell(&mut state, at);
        let wakes = state.wake(None);
        drop(state);
        for wake in wakes {
            wake.write();
        }
    }

    /// Makes due what is, for the bell.
    pub(crate) fn ring(&self) -> loom_core::Result<()> {
        loop {
            let at = self.moment();
            let mut state = self.guard()?;
            state.rings = NEVER;
            let next = state.core.tick(at);
            self.finish(state, at);
            if next.is_none_or(|next| next > at.now) {
                return Ok(());
            }
        }
    }

    /// Lets the bell ring for durable work that is due earlier than it knows of.
    #[cold]
    fn tell_bell(&self, state: &mut State, at: Moment) {
        let Some(due) = state.core.alarm().filter(|due| *due < state.rings) else {
            return;
        };
        let left = Duration::from_nanos(due.0.saturating_sub(at.now.0));
        // Without a thread it is told again after the next step.
        if self.bell.tell(&self.me, left).is_ok() {
            state.rings = due;
        }
    }

    #[cold]
    fn serve(&self, core: &mut Core, at: Moment) {
        if let Some(store) = self.store.get() {
            store.serve(core, &self.waiting, at);
        }
    }

    /// Opens the log of a namespace, once.
    pub(crate) fn open(&self, namespace: &str) -> loom_core::Result<()> {
        if self.guard()?.core.partition_of(namespace).is_some() {
            return Ok(());
        }
        let opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let limits = {
            let state = self.guard()?;
            if state.core.partition_of(namespace).is_some() {
                return Ok(());
            }
            loom_core::check_name("namespace", namespace, state.core.limits())?;
            state.core.limits().clone()
        };
        let Some(store) = self.store.get() else {
            return Ok(());
        };
        let boot = Boot {
            wall_ms: self.moment().wall_ms,
            id: self.boot,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            accept_loss: self.settings.accept_loss,
        };
        let (opened, folded) = store.fold(namespace, &boot, &limits, &self.settings.durability)?;
        self.clock.not_before(folded.clock_ms());
        let done = self.outside(|core, at| core.open_partition(namespace, opened, folded, at));
        drop(opening);
        done?
    }

    /// Lets a bridge know of the sessions that it drains.
    pub(crate) fn watch(&self, watch: Watch) {
        if let Ok(mut state) = self.guard() {
            state.watch = Some(watch);
        }
    }

    fn close(&self) -> loom_core::Result<()> {
        if self.is_forked() {
            return Ok(());
        }
        let until = monotonic() + patience();
        self.bell.stop(until);
        self.store
            .get()
            .map_or(Ok(()), |store| store.close(self, until))
    }
}

impl State {
    /// Marks those whose inbox got something; returns those whose loop has to be told.
    fn wake(&mut self, caller: Option<SessionId>) -> Vec<Arc<Wake>> {
        let mut others = Vec::new();
        for session in self.core.take_woken() {
            let Some(wake) = self.wakes.get(&session) else {
                if let Some(watch) = &self.watch {
                    watch(session);
                }
                continue;
            };
            wake.set_pending(true);
            if Some(session) != caller || !wake.is_mine() {
                others.push(Arc::clone(wake));
            }
        }
        others
    }
}

/// An effect as JSON, and its result.
type ShownEffect<'py> = (Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);

/// Event bus, action broker and directory of one process.
#[pyclass(frozen, module = "loom._engine")]
pub(crate) struct Engine {
    shared: Arc<Shared>,
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (
        *,
        virtual_clock = false,
        seed = None,
        data = None,
        durable = Vec::new(),
        ack = 2,
        record = 0,
        retention_bytes = None,
        retention_age_ms = None,
        retention_idle = None,
        accept_loss = false,
    ))]
    #[expect(
        clippy::too_many_arguments,
        reason = "an engine is made once, by keywords"
    )]
    fn new(
        py: Python<'_>,
        virtual_clock: bool,
        seed: Option<u64>,
        data: Option<&str>,
        durable: Vec<String>,
        ack: u8,
        record: u8,
        retention_bytes: Option<u64>,
        retention_age_ms: Option<u64>,
        retention_idle: Option<u64>,
        accept_loss: bool,
    ) -> PyResult<Self> {
        let durability = Durability {
            filters: durable,
            ack: Level::from_number(ack).map_err(refuse)?,
            record: Recording::from_number(record).map_err(refuse)?,
        };
        let retention = Retention {
            age_ms: retention_age_ms,
            bytes: retention_bytes,
        };
        let settings = Settings {
            data: data.map(Into::into),
            durability,
            retention,
            accept_loss,
        };
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(generation()));
        let mut limits = Limits::default();
        if let Some(seconds) = retention_idle {
            limits.consumer_idle_seconds = seconds;
        }
        let core = Core::new(limits, seed);
        let clock = if virtual_clock {
            Clock::manual()
        } else {
            Clock::real()
        };
        let state = Mutex::new(State {
            core,
            wakes: FxHashMap::default(),
            watch: None,
            rings: if virtual_clock { Nanos(0) } else { NEVER },
        });
        let shared = Arc::new_cyclic(|me| Shared {
            state,
            clock,
            generation: generation(),
            number: next_number(),
            store: OnceLock::new(),
            waiting: Waiting::default(),
            settings,
            boot: random_id(),
            opening: Mutex::new(()),
            bell: Arc::default(),
            me: Weak::clone(me),
        });
        py.detach(|| {
            let store = Store::open(&shared.settings, &shared)?;
            shared.store.get_or_init(|| store).go(&shared)
        })
        .map_err(refuse)?;
        Ok(Self { shared })
    }

    fn open(&self, py: Python<'_>, namespace: &Bound<'_, PyString>) -> PyResult<()> {
        let namespace = text("namespace", namespace)?;
        py.detach(|| self.shared.open(namespace)).map_err(refuse)
    }

    #[pyo3(signature = (namespace, filters, start))]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a list of Python's strings is extracted"
    )]
    fn read(
        &self,
        py: Python<'_>,
        namespace: &Bound<'_, PyString>,
        filters: Vec<String>,
        start: &Bound<'_, PyAny>,
    ) -> PyResult<(Vec<Delivery>, String, bool)> {
        let namespace = text("namespace", namespace)?;
        let start = Start::of(start)?;
        let seen = py
            .detach(|| look(&self.shared, namespace, &filters, start))
            .map_err(refuse)?;
        let number = self.shared.number();
        let events = seen.events.into_iter();
        let events = events.map(|env| Delivery::read(env, number)).collect();
        Ok((events, seen.next, seen.at_end))
    }

    #[getter]
    fn is_logging(&self) -> bool {
        self.shared.waiting.is_any()
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.shared.close()).map_err(refuse)
    }

    #[pyo3(signature = (namespace, name, *, is_node = false))]
    fn attach(
        &self,
        py: Python<'_>,
        namespace: &Bound<'_, PyString>,
        name: &Bound<'_, PyString>,
        is_node: bool,
    ) -> PyResult<Session> {
        let (namespace, name) = (text("namespace", namespace)?, text("name", name)?);
        py.detach(|| self.shared.open(namespace)).map_err(refuse)?;
        Session::attach(&self.shared, namespace, name, is_node)
    }

    #[pyo3(signature = (namespace, /))]
    fn sessions<'py>(
        &self,
        py: Python<'py>,
        namespace: Option<&Bound<'py, PyString>>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let namespace = namespace.map(|it| text("namespace", it)).transpose()?;
        let found = self.shared.lock()?.core.sessions(namespace);
        Ok(PyBytes::new(
            py,
            &serde_json::to_vec(&found).unwrap_or_default(),
        ))
    }

    #[pyo3(signature = (tcp, unix, tls, names, credentials))]
    #[expect(
        clippy::too_many_arguments,
        clippy::needless_pass_by_value,
        reason = "a bridge is opened once, with what Python extracted"
    )]
    fn serve(
        &self,
        py: Python<'_>,
        tcp: Vec<String>,
        unix: Option<std::path::PathBuf>,
        tls: Option<TlsFiles>,
        names: Names,
        credentials: Vec<RawCredential>,
    ) -> PyResult<Bridge> {
        py.detach(|| Bridge::serve(&self.shared, (tcp, unix), tls.as_ref(), names, credentials))
            .map_err(refuse)
    }

    fn now(&self) -> f64 {
        seconds(self.shared.moment().now.0)
    }

    fn wall(&self) -> f64 {
        seconds_of_millis(self.shared.moment().wall_ms)
    }

    fn advance(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
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
            self.shared.outside(Core::renew_all).map_err(refuse)?;
            if let Some(store) = self.shared.store.get() {
                let now = self.shared.moment().now.0;
                py.detach(|| store.passed(&self.shared, now));
            }
            return Ok(());
        }
        Err(refusal(
            Code::NotSupported,
            "only a virtual clock can be moved",
            None,
        ))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        // A forked child is refused before it waits for a lock that nobody there will give back.
        drop(self.shared.lock()?);
        let store = self.shared.store.get();
        let store = store.map(|store| (store, py.detach(|| store.figures())));
        let (mut stats, log) = {
            let state = self.shared.lock()?;
            let log = store.map(|(store, figures)| store.stats(&state.core, figures));
            (serde_json::to_value(state.core.stats()), log)
        };
        if let (Ok(serde_json::Value::Object(stats)), Some(log)) = (&mut stats, log) {
            stats.insert("log".to_owned(), log);
        }
        let shown = serde_json::to_vec(&stats.unwrap_or_default()).unwrap_or_default();
        Ok(PyBytes::new(py, &shown))
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

    #[pyo3(signature = (namespace, unknown, after, /))]
    fn effects<'py>(
        &self,
        py: Python<'py>,
        namespace: &Bound<'py, PyString>,
        unknown: bool,
        after: Option<&Bound<'py, PyString>>,
    ) -> PyResult<(Bound<'py, PyBytes>, bool)> {
        let namespace = text("namespace", namespace)?;
        let after = after.map(effect_id).transpose()?.unwrap_or_default();
        let (page, more) = {
            let state = self.shared.lock()?;
            state.core.list_effects(namespace, unknown, after)
        };
        Ok((PyBytes::new(py, &page), more))
    }

    #[pyo3(signature = (namespace, effect, /))]
    fn effect<'py>(
        &self,
        py: Python<'py>,
        namespace: &Bound<'py, PyString>,
        effect: &Bound<'py, PyString>,
    ) -> PyResult<Option<ShownEffect<'py>>> {
        let (namespace, effect) = (text("namespace", namespace)?, effect_id(effect)?);
        let found = {
            let state = self.shared.lock()?;
            state.core.show_effect(namespace, effect)
        };
        Ok(found.map(|(shown, result)| {
            let result = result.map(|result| PyBytes::new(py, &result));
            (PyBytes::new(py, &shown), result)
        }))
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

impl Drop for Engine {
    /// An engine that was not closed is closed now, at most as long as a stop may take.
    fn drop(&mut self) {
        // There is nobody left to be told of an error. The others may go on meanwhile, if there is still an interpreter.
        let closed = Python::try_attach(|py| py.detach(|| self.shared.close().is_ok()));
        if closed.is_none() {
            let _ = self.shared.close();
        }
    }
}

pub(crate) fn random_id() -> u128 {
    let half = || u128::from(RandomState::new().hash_one(generation()));
    half() << 64 | half()
}
