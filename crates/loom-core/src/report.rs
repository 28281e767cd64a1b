//! What the engine says itself: errors, logs, losses, changes. Nothing is built that nobody hears.

use std::sync::Arc;

use serde::Serialize;

use crate::arena::{CallId, SessionId};
use crate::bus::Keeper;
use crate::core::{Core, Todo};
use crate::envelope::{Envelope, Origin};
use crate::error::{Code, Detail, Error, Result, to_json};
use crate::ident::show_uuid;
use crate::input::{LogLine, Report};
use crate::space::SpaceId;
use crate::time::Moment;

/// An event of the engine's own, on its way.
pub(crate) struct EngineEvent {
    pub(crate) space: SpaceId,
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) cause: Option<Arc<Envelope>>,
    /// The recorded turn in which it arose; 0: none.
    pub(crate) turn: u64,
}

/// What an error is about.
#[derive(Default)]
pub(crate) struct Subject {
    who: Arc<str>,
    topic: Option<Arc<str>>,
    capability: Option<Arc<str>>,
    call: Option<CallId>,
    cause: Option<Arc<Envelope>>,
}

impl Subject {
    pub(crate) fn turn(who: Arc<str>, env: &Arc<Envelope>) -> Self {
        let topic = Some(Arc::clone(&env.topic));
        Self {
            who,
            topic,
            cause: Some(Arc::clone(env)),
            ..Self::default()
        }
    }

    /// A group that consumes.
    pub(crate) fn group(who: Arc<str>) -> Self {
        Self {
            who,
            ..Self::default()
        }
    }

    pub(crate) fn request(who: Arc<str>, call: CallId, env: &Arc<Envelope>) -> Self {
        Self {
            call: Some(call),
            ..Self::turn(who, env)
        }
    }

    /// A call that was never begun, of the turn that has this event.
    pub(crate) fn refused(capability: Arc<str>, cause: Option<Arc<Envelope>>) -> Self {
        Self {
            who: Arc::clone(&capability),
            capability: Some(capability),
            cause,
            ..Self::default()
        }
    }

    pub(crate) fn call(who: Arc<str>, call: CallId, env: &Arc<Envelope>) -> Self {
        let capability = Some(Arc::clone(&env.topic));
        Self {
            who,
            capability,
            call: Some(call),
            cause: Some(Arc::clone(env)),
            topic: None,
        }
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'static str,
    message: &'a str,
    who: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capability: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

/// The levels of `loom.log.{level}`.
const LEVELS: [&str; 5] = ["debug", "info", "warning", "error", "critical"];

impl Core {
    /// Publishes an event of the engine's own, if anyone hears it; the body is built only then.
    pub(crate) fn say(
        &mut self,
        space: SpaceId,
        topic: String,
        cause: Option<&Arc<Envelope>>,
        body: impl FnOnce() -> Vec<u8>,
    ) {
        if !self.is_heard(space, &topic) && !self.is_taped(space, &topic) {
            return;
        }
        let Some(origin) = self.space(space).map(|space| Arc::clone(&space.engine)) else {
            return;
        };
        let cause = cause.map(Arc::clone);
        self.todo.push_back(Todo::Publish(EngineEvent {
            space,
            topic,
            payload: body(),
            origin,
            cause,
            turn: 0,
        }));
    }

    fn is_heard(&mut self, space: SpaceId, topic: &str) -> bool {
        let first = topic.split('.').next().unwrap_or(topic);
        self.space(space)
            .is_some_and(|space| space.trie.may_start(first))
            && self
                .topic(space, topic)
                .is_ok_and(|(id, _)| self.topics.get(id).is_some_and(|t| !t.targets.is_empty()))
    }

    /// Counts a decided error and publishes it once. An error about an engine's event is counted only, so that who
    /// fails on errors does not fail on its own for ever.
    pub(crate) fn tell_error(
        &mut self,
        space: SpaceId,
        code: Code,
        detail: &Detail,
        subject: &Subject,
    ) {
        self.totals.count_error(code);
        let cause = subject.cause.as_ref();
        if cause.is_some_and(|cause| cause.is_of_engine()) {
            return;
        }
        let who = detail.who.as_deref().unwrap_or(&subject.who);
        let body = || {
            to_json(&ErrorBody {
                code: code.name(),
                message: &detail.message,
                who,
                topic: subject.topic.as_deref(),
                capability: subject.capability.as_deref(),
                event_id: cause.map(|cause| show_uuid(cause.id)),
                call: subject.call.map(show_call),
                field: detail.field.as_deref(),
                limit: detail.limit.as_deref(),
                hint: detail.hint.as_deref(),
            })
        };
        self.say(space, format!("loom.error.{}", code.token()), cause, body);
    }

    /// Publishes an error that a client decided, on `loom.error.{code}`.
    ///
    /// # Errors
    /// `FENCED` for a sender or a turn of another session.
    pub fn report(&mut self, session: SessionId, report: &Report<'_>, at: Moment) -> Result<()> {
        let found = self.registration(session, report.sender)?;
        let (space, who) = (found.space, Arc::clone(&found.origin.sender));
        let subject = match report.turn {
            Some(lease) => Subject::turn(who, &self.lease(session, lease)?.env),
            None => Subject {
                who,
                ..Subject::default()
            },
        };
        let detail = Detail::read(report.detail, self.limits.error_detail_bytes);
        self.tell_error(space, report.code, &detail, &subject);
        self.flush(at);
        Ok(())
    }

    /// Publishes a line of log on `loom.log.{level}`, from its sender.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for a level that is none; `FENCED` for a sender or a turn of another session; `EXHAUSTED` for
    /// hops, and where the run has published too much.
    pub fn log(&mut self, session: SessionId, line: &LogLine<'_>, at: Moment) -> Result<()> {
        let found = self.registration(session, line.sender)?;
        let (space, origin) = (found.space, Arc::clone(&found.origin));
        let (cause, turn) = match line.turn {
            Some(lease) => {
                let lease = self.lease(session, lease)?;
                (Some(Arc::clone(&lease.env)), lease.turn)
            }
            None => (None, 0),
        };
        // A line about a line about a line … ends like any other chain of events.
        if let Some(cause) = cause.as_ref().filter(|cause| cause.is_of_engine()) {
            self.next_hop(cause)?;
        }
        if !LEVELS.contains(&line.level) {
            let all = LEVELS.join(", ");
            let message = format!("there is no log level {:?}; there are {all}", line.level);
            return Err(Error::invalid("level", message));
        }
        self.check_payload(line.payload, Keeper::Nobody)?;
        let topic = format!("loom.log.{}", line.level);
        let heard = self.is_heard(space, &topic);
        if heard || self.is_taped(space, &topic) {
            if let Some(cause) = cause.as_ref().filter(|_| heard) {
                self.count_run(cause.run, at.now)?;
            }
            let payload = line.payload.to_vec();
            let event = EngineEvent {
                space,
                topic,
                payload,
                origin,
                cause,
                turn,
            };
            self.todo.push_back(Todo::Publish(event));
        }
        self.flush(at);
        Ok(())
    }
}

/// A call's id as text.
pub(crate) fn show_call(call: CallId) -> String {
    format!("{:x}", call.0)
}
