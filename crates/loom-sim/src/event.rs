//! What is known of one event: how it was sent, whom it is for, and how it stands.

use loom_core::{CallId, Envelope, Ident, Nanos, Qos};

use crate::trace::{Check, ensure};

/// What an event took over from the turn it was sent in.
#[derive(Clone)]
pub(crate) struct Stamp {
    pub(crate) thread: Ident,
    pub(crate) run: u128,
    pub(crate) cause: u128,
    pub(crate) hop: u16,
}

impl Stamp {
    pub(crate) fn of(env: &Envelope) -> Self {
        Self {
            thread: env.thread.clone(),
            run: env.run,
            cause: env.id,
            hop: env.hop + 1,
        }
    }
}

/// How an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nobody may get it.
    Refused,
    /// It waits for room.
    Parked,
    /// A request that was parked, or waits for a hearer: whether it went is not told.
    Unsure,
    /// It went into queues.
    Applied,
}

/// One group, or one stream, that an event is for.
pub(crate) struct Target {
    pub(crate) group: String,
    pub(crate) members: Vec<usize>,
    pub(crate) stream: bool,
    pub(crate) taken: bool,
}

pub(crate) struct Event {
    pub(crate) space: usize,
    pub(crate) sender: String,
    pub(crate) topic: &'static str,
    pub(crate) size: usize,
    pub(crate) qos: Qos,
    pub(crate) lane: Option<Ident>,
    pub(crate) thread: Option<Ident>,
    pub(crate) expires: Option<Nanos>,
    pub(crate) deadline: Option<Nanos>,
    pub(crate) stamp: Option<Stamp>,
    pub(crate) call: Option<CallId>,
    /// Its id, once that was told.
    pub(crate) id: Option<u128>,
    /// The events it follows from, besides the one of its turn.
    pub(crate) causes: Vec<u128>,
    /// Nobody heard it when it came.
    pub(crate) waited: bool,
    /// A member it may have waited at left: where it stands at another is not known.
    pub(crate) handed: bool,
    pub(crate) targets: Vec<Target>,
    pub(crate) state: State,
    /// When it was put into queues, if that is known.
    pub(crate) placed: Option<u64>,
}

impl Event {
    pub(crate) fn new(space: usize, sender: String, topic: &'static str) -> Self {
        Self {
            space,
            sender,
            topic,
            size: 0,
            qos: Qos::Batched,
            lane: None,
            thread: None,
            expires: None,
            deadline: None,
            stamp: None,
            call: None,
            id: None,
            causes: Vec::new(),
            waited: false,
            handed: false,
            targets: Vec::new(),
            state: State::Refused,
            placed: None,
        }
    }

    pub(crate) fn responders(&self) -> u32 {
        let agents = self.targets.iter().filter(|target| !target.stream);
        u32::try_from(agents.count()).unwrap_or(u32::MAX)
    }

    /// Whether it went to a group of which a member was quarantined once.
    pub(crate) fn is_spread(&self, shed: impl Fn(usize) -> bool) -> bool {
        let mut targets = self.targets.iter();
        targets.any(|t| t.members.len() > 1 && t.members.iter().any(|member| shed(*member)))
    }

    /// Whether it waits in the queue of this one and nobody else, and cannot leave it but by a turn.
    pub(crate) fn stays_with(&self, member: usize) -> bool {
        let mortal = self.expires.is_some() || self.deadline.is_some();
        let waits = self.state == State::Applied && self.qos != Qos::Realtime && !mortal;
        let mut targets = self.targets.iter();
        waits && targets.any(|target| !target.taken && target.members == [member])
    }

    pub(crate) fn is_over(&self, now: Nanos) -> bool {
        self.expires.is_some_and(|at| at <= now) || self.deadline.is_some_and(|at| at <= now)
    }
}

pub(crate) fn check_stamps(event: &mut Event, env: &Envelope) -> Check {
    let id = *event.id.get_or_insert(env.id);
    let event = &*event;
    let told = || {
        format!(
            "{env:?} was published by {:?} to {:?}",
            event.sender, event.topic
        )
    };
    let same = *env.topic == *event.topic
        && *env.origin.sender == *event.sender
        && env.qos == event.qos
        && env.payload.len() == event.size
        && env.deadline == event.deadline
        && env.reply_to == event.call
        && event.lane.as_ref().is_none_or(|lane| lane == env.lane())
        && event
            .thread
            .as_ref()
            .is_none_or(|thread| *thread == env.thread);
    ensure(same, "SENDER-STAMPED", told)?;
    ensure(id == env.id, "EVENT-IMMUTABLE", told)?;
    let causes = env.extra.as_ref().map_or(&[][..], |extra| &extra.causes);
    ensure(*causes == *event.causes, "CAUSES-GIVEN", told)?;
    ensure(is_stamped(event.stamp.as_ref(), env), "RUN-STAMPED", told)
}

/// Whether run, cause and hop come from the turn, or a new run begins.
pub(crate) fn is_stamped(stamp: Option<&Stamp>, env: &Envelope) -> bool {
    match stamp {
        Some(stamp) => {
            env.run == stamp.run && env.causation == Some(stamp.cause) && env.hop == stamp.hop
        }
        None => env.run == env.id && env.causation.is_none() && env.hop == 0,
    }
}

/// A payload that says what it is: a letter and a number, filled up.
pub(crate) fn tag(kind: u8, number: usize, size: usize) -> Box<[u8]> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&(number as u64).to_be_bytes());
    bytes.resize(size.max(bytes.len()), 0);
    bytes.into()
}

pub(crate) fn read_tag(kind: u8, payload: &[u8]) -> Option<usize> {
    let (first, rest) = payload.split_first()?;
    if *first != kind {
        return None;
    }
    let number: [u8; 8] = rest.get(..8)?.try_into().ok()?;
    usize::try_from(u64::from_be_bytes(number)).ok()
}

/// The namespaces of a run.
pub(crate) fn space_name(space: usize) -> String {
    format!("n{space}")
}
