//! What the apps of the world of sessions did and saw, and what of it breaks a promise.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use loom_core::{Code, Nanos, Position};
use loom_proto::v1::frame::Body;

use crate::trace::{Check, broken, ensure};

/// Groups that consume durable events, and what each hears.
pub(super) const GROUPS: &[(&str, &[&str])] = &[("one", &["d.a"]), ("two", &["d.>"])];

/// Every call ends by its deadline and so much more.
const GRACE_MS: u64 = 1_000;

/// One event that was published.
pub(super) struct Event {
    pub(super) topic: &'static str,
    pub(super) key: Option<&'static str>,
    pub(super) publisher: usize,
    /// Where the log put it, once its publisher was told.
    pub(super) position: Option<Position>,
    pub(super) accepted: bool,
    /// It was published in a turn that had not ended.
    pub(super) quoting: bool,
    /// The durable turn that it was published in.
    pub(super) turn: Option<Within>,
}

/// A durable turn: whose, its event, and the life of the node that had given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Within {
    pub(super) end: usize,
    pub(super) handle: u64,
    pub(super) tag: u64,
    pub(super) boot: Bytes,
}

/// What waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Publish(u64),
    Question,
    Registration,
}

pub(super) struct Call {
    pub(super) deadline: Nanos,
    pub(super) granted: u64,
    pub(super) chunks: u64,
}

/// Who hears: a group, or one registration of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ear {
    Group(usize),
    Own(usize, u64),
}

#[derive(Default)]
pub(super) struct Book {
    pub(super) events: Vec<Event>,
    waits: BTreeMap<(usize, u64), Wait>,
    pub(super) calls: BTreeMap<(usize, u64), Call>,
    /// Which events each ear was given, in order, each once.
    handed: BTreeMap<Ear, BTreeSet<u64>>,
    newest: BTreeMap<(Ear, &'static str, &'static str, usize), u64>,
    furthest: BTreeMap<(Ear, &'static str), Position>,
    /// Durable turns that ended well, by who ended them.
    ended: BTreeSet<(usize, u64, u64)>,
    pub(super) consumed: BTreeSet<(usize, u64)>,
    /// From which event on a group or a registration hears all there is.
    pub(super) since: BTreeMap<Ear, u64>,
    /// Nothing has happened that may lose what is not durable.
    pub(super) is_whole: bool,
    /// How often what must not be done twice was done.
    done: BTreeMap<String, u32>,
}

pub(super) fn hears(ear_filters: &[&str], topic: &str) -> bool {
    ear_filters
        .iter()
        .any(|filter| crate::sub::hears(filter, topic))
}

impl Book {
    pub(super) fn wait(&mut self, end: usize, ticket: u64, what: Wait) {
        self.waits.insert((end, ticket), what);
    }

    /// An answer came; what it was waited for.
    pub(super) fn answered(&mut self, end: usize, ticket: u64) -> Check<Wait> {
        match self.waits.remove(&(end, ticket)) {
            Some(what) => Ok(what),
            None => broken(
                "SESSION-ENDS-ONCE",
                format!("client {end} was answered {ticket}, which it does not wait for"),
            ),
        }
    }

    pub(super) fn open(&self, end: usize) -> impl Iterator<Item = (&u64, &Wait)> {
        let all = self.waits.range((end, 0)..=(end, u64::MAX));
        all.map(|((_, ticket), what)| (ticket, what))
    }

    /// What a client waited for is nobody's any more.
    pub(super) fn forget(&mut self, end: usize) {
        self.waits.retain(|(who, _), _| *who != end);
        self.calls.retain(|(who, _), _| *who != end);
    }

    pub(super) fn outcome(&mut self, end: usize, call: u64) -> Check {
        match self.calls.remove(&(end, call)) {
            Some(_) => Ok(()),
            None => broken(
                "SESSION-ENDS-ONCE",
                format!("call {call} of client {end} ended twice"),
            ),
        }
    }

    /// A call whose client runs has ended by its deadline and a second.
    pub(super) fn check_deadlines(&self, end: usize, now: Nanos) -> Check {
        let late = |call: &Call| call.deadline.plus_millis(GRACE_MS) < now;
        let mut all = self.calls.range((end, 0)..=(end, u64::MAX));
        match all.find(|(_, call)| late(call)) {
            Some(((_, call), found)) => broken(
                "SESSION-DEADLINE",
                format!(
                    "call {call} of client {end} was to end at {:?}, it is {now:?}",
                    found.deadline
                ),
            ),
            None => Ok(()),
        }
    }

    pub(super) fn chunk(&mut self, end: usize, call: u64, body: &[u8]) -> Check {
        let Some(found) = self.calls.get_mut(&(end, call)) else {
            return broken(
                "SESSION-ENDS-ONCE",
                format!("a chunk of call {call}, which is over"),
            );
        };
        found.chunks += 1;
        let (chunks, granted) = (found.chunks, found.granted);
        ensure(chunks <= granted, "STREAM-CREDIT", || {
            format!("chunk {chunks} of call {call}, {granted} were granted")
        })?;
        let said = String::from_utf8_lossy(body).into_owned();
        ensure(said == chunks.to_string(), "SESSION-ORDER", || {
            format!("chunk {chunks} of call {call} is {said}")
        })
    }

    pub(super) fn refused(&self, tag: u64, code: Code) -> Check {
        let quoting = usize::try_from(tag).ok().and_then(|at| self.events.get(at));
        let quoting = quoting.is_some_and(|event| event.quoting);
        ensure(
            !(quoting && code == Code::Fenced),
            "SESSION-ACK-AFTER",
            || {
                format!(
                    "event {tag} was published in a turn that went on, and refused as if it were over"
                )
            },
        )
    }

    fn event(&self, tag: u64) -> Check<&Event> {
        match usize::try_from(tag).ok().and_then(|at| self.events.get(at)) {
            Some(event) => Ok(event),
            None => broken("EVENT-ONCE", format!("event {tag} was never published")),
        }
    }

    /// An event was given to an app.
    pub(super) fn handed(
        &mut self,
        (ear, filters): (Ear, &[&str]),
        (end, handle): (usize, u64),
        tag: u64,
        position: Option<Position>,
    ) -> Check {
        let event = self.event(tag)?;
        let (topic, key, publisher) = (event.topic, event.key, event.publisher);
        ensure(hears(filters, topic), "EVENT-ONCE", || {
            format!("{ear:?} does not hear {topic}")
        })?;
        let turn = (end, handle, tag);
        ensure(
            !self.ended.contains(&turn) || self.is_undone(turn),
            "SESSION-CUT",
            || format!("event {tag} came again to client {end}, which had ended it well"),
        )?;
        let is_new = self.handed.entry(ear).or_default().insert(tag);
        if let Ear::Own(..) = ear {
            ensure(is_new, "SESSION-CUT", || {
                format!("event {tag} came twice to {ear:?}")
            })?;
        }
        let Some(key) = key.filter(|_| is_new) else {
            return Ok(());
        };
        if let Some(position) = position {
            let furthest = self.furthest.entry((ear, key)).or_insert(position);
            let known = *furthest;
            *furthest = known.max(position);
            return ensure(known <= position, "SESSION-ORDER", || {
                format!("{position:?} came after {known:?} to {ear:?}, key {key}")
            });
        }
        let newest = self.newest.entry((ear, topic, key, publisher)).or_default();
        let known = std::mem::replace(newest, tag);
        ensure(!self.is_whole || known <= tag, "SESSION-ORDER", || {
            format!("event {tag} came after {known} to {ear:?}")
        })
    }

    /// Whether what a turn has published was not taken, as far as was told: it is done again.
    fn is_undone(&self, turn: (usize, u64, u64)) -> bool {
        let within = |it: &Within| (it.end, it.handle, it.tag) == turn;
        let mut all = self.events.iter().filter(|it| !it.accepted);
        all.any(|event| event.turn.as_ref().is_some_and(within))
    }

    /// Whether an event was published in a durable turn that had ended well.
    pub(super) fn is_of_ended(&self, tag: u64) -> bool {
        let event = self.event(tag).ok();
        event
            .and_then(|it| it.turn.as_ref())
            .is_some_and(|it| self.ended.contains(&(it.end, it.handle, it.tag)))
    }

    /// What was published in a durable turn never goes out as a root in the life of the node that had given the turn.
    pub(super) fn check_roots(&self, heard: &[Body], boot: &Bytes) -> Check {
        for body in heard {
            let Body::Publish(publish) = body else {
                continue;
            };
            let data = publish.payload.as_ref().map(|it| &it.data);
            let event = self.event(super::app::tag_of(data.map_or(&[], |it| it)))?;
            let is_root = publish.lease == 0;
            let quoted = event.turn.as_ref().is_some_and(|it| it.boot == *boot);
            ensure(!(is_root && quoted), "SESSION-TURN-FENCED", || {
                format!(
                    "{publish:?} is a root, and was published in {:?}",
                    event.turn
                )
            })?;
        }
        Ok(())
    }

    /// A durable turn ended well.
    pub(super) fn ended(&mut self, ear: Ear, (end, handle): (usize, u64), tag: u64) {
        if let Ear::Group(group) = ear {
            self.ended.insert((end, handle, tag));
            self.consumed.insert((group, tag));
        }
    }

    /// Durable events that a group was to consume and has not.
    pub(super) fn missing(&self, group: usize) -> Vec<u64> {
        let Some(since) = self.since.get(&Ear::Group(group)) else {
            return Vec::new();
        };
        let filters = GROUPS.get(group).map_or(&[][..], |(_, filters)| filters);
        let all = (0..).zip(&self.events).filter(|(tag, event)| {
            *tag >= *since && event.position.is_some() && hears(filters, event.topic)
        });
        all.map(|(tag, _)| tag)
            .filter(|tag| !self.consumed.contains(&(group, *tag)))
            .collect()
    }

    /// Batched events that a registration was to be given and was not.
    pub(super) fn unheard(&self, ear: Ear, filters: &[&str]) -> usize {
        let Some(since) = self.since.get(&ear) else {
            return 0;
        };
        let handed = self.handed.get(&ear);
        let all = (0..)
            .zip(&self.events)
            .filter(|(tag, event)| *tag >= *since && event.accepted && hears(filters, event.topic));
        all.filter(|(tag, _)| !handed.is_some_and(|handed| handed.contains(tag)))
            .count()
    }

    /// What has an effect was begun.
    pub(super) fn begun(&mut self, what: &str) -> Check {
        let count = self.done.entry(what.to_owned()).or_default();
        *count += 1;
        let count = *count;
        ensure(count <= 1, "SESSION-UNSAFE-ONCE", || {
            format!("{what} was done {count} times")
        })
    }
}
