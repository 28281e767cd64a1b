//! Records of a log as Python reads them: a kind, a position, a head of plain values, and a body.

use loom_core::record::{Id, Record};
use loom_core::{Envelope, Position, show_uuid};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// (kind, epoch, n, head, body)
pub(crate) type Row<'py> = (
    &'static str,
    u32,
    u64,
    Bound<'py, PyDict>,
    Bound<'py, PyBytes>,
);

struct Head<'py>(Bound<'py, PyDict>);

impl<'py> Head<'py> {
    fn set<T: IntoPyObject<'py>>(&self, name: &str, value: T) -> PyResult<&Self> {
        self.0.set_item(name, value)?;
        Ok(self)
    }

    fn id(&self, name: &str, id: Option<Id>) -> PyResult<&Self> {
        self.set(name, id.map(|id| show_uuid(id.into())))
    }

    fn hash(&self, name: &str, hash: &[u8]) -> PyResult<&Self> {
        self.set(name, PyBytes::new(self.0.py(), hash))
    }

    fn envelope(&self, env: &Envelope) -> PyResult<&Self> {
        let extra = env.extra.as_deref();
        self.set("id", show_uuid(env.id))?
            .set("topic", &*env.topic)?
            .set("sender", &*env.origin.sender)?
            .set("namespace", &*env.origin.namespace)?
            .set("thread_id", env.thread.to_string())?
            .set("run_id", show_uuid(env.run))?
            .set("correlation_id", env.correlation.map(show_uuid))?
            .set("causation_id", env.causation.map(show_uuid))?
            .set("ttl_ms", env.ttl_ms)?
            .set("key", env.key.as_ref().map(ToString::to_string))?
            .set("time_ms", env.time_ms)?
            .set("hop", env.hop)?
            .set("qos", env.qos.number())?
            .set("content_type", env.content_type())?
            .set("is_json", env.is_json())?
            .set("position", env.position.map(|at| at.to_string()))?;
        let headers = PyDict::new(self.0.py());
        let mut labels = Vec::new();
        let mut causes = Vec::new();
        if let Some(extra) = extra {
            for (name, value) in &extra.headers {
                headers.set_item(&**name, &**value)?;
            }
            labels.extend(extra.labels.iter().map(ToString::to_string));
            causes.extend(extra.causes.iter().map(|id| show_uuid(*id)));
        }
        self.set("headers", headers)?
            .set("labels", labels)?
            .set("causes", causes)?
            .set(
                "traceparent",
                extra.and_then(|extra| extra.traceparent.as_deref()),
            )
    }
}

/// A record as a row.
pub(crate) fn row<'py>(py: Python<'py>, at: Position, record: &Record) -> PyResult<Row<'py>> {
    let head = Head(PyDict::new(py));
    let kind = fill(&head, record)?;
    Ok((
        kind,
        at.epoch,
        at.n,
        head.0,
        PyBytes::new(py, record.body()),
    ))
}

fn fill(head: &Head<'_>, record: &Record) -> PyResult<&'static str> {
    Ok(match record {
        Record::Epoch(it) => {
            head.set("at_ms", it.at_ms)?.set("version", &it.version)?;
            "epoch"
        }
        Record::Closed(it) => {
            head.set("at_ms", it.at_ms)?;
            "closed"
        }
        Record::Gap(it) => {
            head.set("missing", it.to.saturating_sub(it.from))?
                .set("why", &it.why)?
                .id("run_id", it.run)?;
            "gap"
        }
        Record::ClockJump(it) => {
            head.set("from_ms", it.from_ms)?.set("to_ms", it.to_ms)?;
            "clock_jump"
        }
        Record::Event(env) => {
            head.envelope(env)?.set("asks", false)?;
            "event"
        }
        Record::Sent(it) => {
            head.envelope(&it.envelope)?
                .set("turn", it.turn)?
                .set("matched", it.matched)?
                .set("asks", it.asks)?;
            "sent"
        }
        Record::Turn(_) | Record::TurnEnd(_) | Record::Ended(_) | Record::Step(..) => {
            return fill_turn(head, record);
        }
        Record::State(it, _) => {
            head.set("agent", &it.agent)?
                .set("key", &it.key)?
                .set("turn", it.turn)?
                .hash("schema_hash", &it.schema_hash)?;
            "state"
        }
        Record::Intent(..) | Record::Outcome(..) | Record::Dispatched(_) | Record::Settled(..) => {
            return fill_call(head, record);
        }
        _ => "other",
    })
}

fn fill_turn(head: &Head<'_>, record: &Record) -> PyResult<&'static str> {
    Ok(match record {
        Record::Turn(it) => {
            head.set("turn", it.turn)?
                .set("agent", &it.agent)?
                .set("version", &it.version)?
                .id("event_id", it.event)?
                .id("run_id", it.run)?
                .set("attempt", it.attempt)?
                .set("at_ms", it.at_ms)?
                .set("waited_micros", it.waited_micros)?
                .hash("code_hash", &it.code_hash)?;
            "turn"
        }
        Record::TurnEnd(it) => {
            head.set("turn", it.turn)?
                .set("code", it.code)?
                .set("message", &it.message)?
                .set("at_ms", it.at_ms)?;
            "turn_end"
        }
        Record::Ended(it) => {
            head.set("turn", it.turn)?
                .id("event_id", it.event)?
                .set("code", it.code)?
                .set("detail", &it.detail)?
                .set("at_ms", it.at_ms)?;
            "ended"
        }
        Record::Step(it, _) => {
            head.set("turn", it.turn)?
                .set("kind", &it.kind)?
                .set("name", &it.name)?
                .hash("args_hash", &it.args_hash)?
                .set("code", it.code)?
                .set("micros", it.micros)?
                .set("facts", &it.facts)?
                .set("at_ms", it.at_ms)?;
            "step"
        }
        _ => "other",
    })
}

fn fill_call(head: &Head<'_>, record: &Record) -> PyResult<&'static str> {
    Ok(match record {
        Record::Intent(it, _) => {
            head.id("effect_id", it.effect)?
                .id("call_id", it.call)?
                .set("capability", &it.capability)?
                .set("version", &it.version)?
                .set("class", it.class)?
                .set("key", (!it.key.is_empty()).then_some(&it.key))?
                .set("caller", &it.caller)?
                .id("run_id", it.run)?
                .id("event_id", it.event)?
                .set("turn", it.turn)?
                .set("thread_id", &it.thread)?
                .set("at_ms", it.at_ms)?;
            "intent"
        }
        Record::Outcome(it, _) => {
            head.id("effect_id", it.effect)?
                .id("call_id", it.call)?
                .set("code", it.code)?
                .set("detail", &it.detail)?
                .set("micros", it.micros)?
                .set("at_ms", it.at_ms)?;
            "outcome"
        }
        Record::Dispatched(it) => {
            head.id("effect_id", it.effect)?
                .id("call_id", it.call)?
                .set("attempt", it.attempt)?
                .set("provider", &it.provider)?
                .set("at_ms", it.at_ms)?;
            "dispatched"
        }
        Record::Settled(it, _) => {
            head.id("effect_id", it.effect)?
                .set("state", it.state)?
                .set("by", &it.by)?
                .set("note", &it.note)?
                .set("at_ms", it.at_ms)?;
            "settled"
        }
        _ => "other",
    })
}

/// Which records belong to a run: those that name it, and those that name one of its turns or calls.
pub(crate) struct OfRun {
    run: Id,
    turns: std::collections::BTreeSet<(u32, u64)>,
    calls: std::collections::BTreeSet<(u64, u64)>,
}

impl OfRun {
    pub(crate) fn new(run: u128) -> Self {
        Self {
            run: run.into(),
            turns: std::collections::BTreeSet::new(),
            calls: std::collections::BTreeSet::new(),
        }
    }

    /// Whether this record, read in order, belongs to it.
    pub(crate) fn takes(&mut self, at: Position, record: &Record) -> bool {
        let run = Some(self.run);
        let of_turn = |turn: u64| self.turns.contains(&(at.epoch, turn));
        match record {
            Record::Event(env) => env.run == u128::from(self.run),
            Record::Sent(sent) => sent.envelope.run == u128::from(self.run),
            Record::Gap(gap) => gap.run == run,
            Record::Turn(turn) => {
                let mine = turn.run == run;
                if mine {
                    self.turns.insert((at.epoch, turn.turn));
                }
                mine
            }
            Record::Intent(intent, _) => {
                let mine = intent.run == run;
                if mine {
                    self.calls.extend(intent.call.iter().map(halves));
                    self.calls.extend(intent.effect.iter().map(halves));
                }
                mine
            }
            Record::Outcome(it, _) => self.knows(it.call.as_ref().or(it.effect.as_ref())),
            Record::Dispatched(it) => self.knows(it.call.as_ref().or(it.effect.as_ref())),
            Record::Settled(it, _) => self.knows(it.effect.as_ref()),
            Record::TurnEnd(it) => of_turn(it.turn),
            Record::Ended(it) => of_turn(it.turn),
            Record::Step(it, _) => of_turn(it.turn),
            Record::State(it, _) => of_turn(it.turn),
            Record::Memory(it, _) => of_turn(it.turn),
            _ => false,
        }
    }

    fn knows(&self, id: Option<&Id>) -> bool {
        id.is_some_and(|id| self.calls.contains(&halves(id)))
    }
}

fn halves(id: &Id) -> (u64, u64) {
    (id.high, id.low)
}

/// The event that a record is, if it is one.
pub(crate) fn event_of(record: &Record) -> Option<&Envelope> {
    match record {
        Record::Event(env) => Some(env),
        Record::Sent(sent) => Some(&sent.envelope),
        _ => None,
    }
}
