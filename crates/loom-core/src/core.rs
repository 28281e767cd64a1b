//! The engine's state, and the small steps that all its parts share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::ack::Durable;
use crate::arena::{
    Arena, CallId, GroupId, Handle, JobId, LeaseId, ProviderId, SessionId, SubId, Ticket,
};
use crate::broker::Provider;
use crate::consume::ConsumerId;
use crate::effect::Ledger;
use crate::envelope::{Envelope, Origin};
use crate::error::{Error, Result};
use crate::ident::Ids;
use crate::job::{Job, JobKey, Why};
use crate::limits::Limits;
use crate::notice::Notice;
use crate::part::Part;
use crate::planted::Planted;
use crate::read::{Purpose, Read};
use crate::record::Outgoing;
use crate::recorder::{Recorder, Tape};
use crate::report::EngineEvent;
use crate::request::{Asked, Failure};
use crate::run::Runs;
use crate::session::Session;
use crate::space::{Space, SpaceId};
use crate::stats::Totals;
use crate::subscription::{Group, Subscription};
use crate::ticket::Waiting;
use crate::time::{Moment, Nanos};
use crate::timers::{Timer, Timers};
use crate::topics::Topics;

/// What a handle stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Root,
    Subscription(SubId),
    Provider(ProviderId),
}

/// A handle of a session: it stamps the sender.
pub(crate) struct Registration {
    pub(crate) session: SessionId,
    pub(crate) space: SpaceId,
    pub(crate) origin: Arc<Origin>,
    pub(crate) name: Arc<str>,
    pub(crate) kind: Kind,
    /// Its session has grants, and may not do everything.
    pub(crate) bound: bool,
}

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holding {
    Turn { sub: SubId, lane: u32 },
    Work { provider: ProviderId, job: JobId },
}

/// One delivery from start to end.
pub(crate) struct Lease {
    pub(crate) session: SessionId,
    pub(crate) holding: Holding,
    pub(crate) env: Arc<Envelope>,
    /// This receiver's answer is waited for.
    pub(crate) asked: bool,
    pub(crate) answered: bool,
    /// Of a durable event.
    pub(crate) durable: Option<Box<Durable>>,
    /// The number of a recorded turn; 0: it is not recorded.
    pub(crate) turn: u64,
}

/// What a waiting session waits for.
pub(crate) enum Wanted {
    Request(Asked),
    Call(JobId),
}

/// A call or a request without an outcome yet.
pub(crate) struct Pending {
    pub(crate) session: SessionId,
    pub(crate) space: SpaceId,
    /// The turn or invocation that waits.
    pub(crate) parent: Option<LeaseId>,
    pub(crate) env: Arc<Envelope>,
    pub(crate) deadline: Nanos,
    pub(crate) started: Nanos,
    /// Where it is recorded.
    pub(crate) tape: Option<Tape>,
    pub(crate) wanted: Wanted,
}

/// What follows from a step and is done before the call returns, one after the other.
pub(crate) enum Todo {
    /// One of those asked will not answer.
    Decline(CallId, Failure),
    /// The engine has something to say.
    Publish(EngineEvent),
    /// There may be room in this subscription.
    Unpark(SubId),
    /// This parked offer may be able to go.
    Retry(Ticket),
    /// This job needs a provider.
    Place(JobId),
    /// There may be something for this consumer.
    Feed(ConsumerId),
    /// There may be a durable turn to begin at this subscription.
    Claim(SubId),
}

/// Steps that one call does at most; the rest is due at once and done by the next.
const STEPS: usize = 2_048;
/// Deadlines that one tick handles at most.
const TICKS: usize = 1_024;

/// The engine: one of these behind one lock.
pub struct Core {
    pub(crate) limits: Limits,
    pub(crate) ids: Ids,
    pub(crate) spaces: Vec<Space>,
    /// Places of namespaces that were forgotten.
    pub(crate) free_spaces: Vec<SpaceId>,
    /// Namespaces without a session, the longest idle first.
    pub(crate) idle_spaces: VecDeque<SpaceId>,
    pub(crate) topics: Topics,
    pub(crate) runs: Runs,
    pub(crate) space_index: FxHashMap<Arc<str>, SpaceId>,
    pub(crate) sessions: Arena<SessionId, Session>,
    pub(crate) handles: Arena<Handle, Registration>,
    pub(crate) subs: Arena<SubId, Subscription>,
    pub(crate) groups: Arena<GroupId, Group>,
    pub(crate) providers: Arena<ProviderId, Provider>,
    pub(crate) jobs: Arena<JobId, Job>,
    /// Jobs that others may join, by their keys; never walked.
    pub(crate) keys: FxHashMap<JobKey, JobId>,
    /// What the pauses between attempts are drawn from.
    pub(crate) jitter: Ids,
    pub(crate) leases: Arena<LeaseId, Lease>,
    pub(crate) calls: Arena<CallId, Pending>,
    pub(crate) tickets: Arena<Ticket, Waiting>,
    /// The open logs, by number.
    pub(crate) parts: BTreeMap<u32, Part>,
    /// Their numbers by namespace.
    pub(crate) part_index: BTreeMap<Arc<str>, u32>,
    /// What is known of effects beside the log.
    pub(crate) ledger: Ledger,
    /// Records on their way to the log.
    pub(crate) outbox: Vec<Outgoing>,
    /// What has to be read from the log.
    pub(crate) reads: Vec<Read>,
    /// What it is for, by token.
    pub(crate) reading: BTreeMap<u64, (ConsumerId, Purpose)>,
    pub(crate) read_token: u64,
    pub(crate) park_seq: u64,
    pub(crate) timers: Timers,
    pub(crate) todo: VecDeque<Todo>,
    pub(crate) woken: Vec<SessionId>,
    pub(crate) totals: Totals,
    pub(crate) recorder: Recorder,
    #[cfg(feature = "planted")]
    pub(crate) planted: Option<crate::planted::Planted>,
}

impl Core {
    /// An engine with these limits. All ids follow from the seed and the moments it is given.
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            ids: Ids::new(seed),
            spaces: Vec::new(),
            free_spaces: Vec::new(),
            idle_spaces: VecDeque::new(),
            topics: Topics::new(),
            runs: Runs::default(),
            space_index: FxHashMap::default(),
            sessions: Arena::new(),
            handles: Arena::new(),
            subs: Arena::new(),
            groups: Arena::new(),
            providers: Arena::new(),
            jobs: Arena::new(),
            keys: FxHashMap::default(),
            jitter: Ids::new(!seed),
            leases: Arena::new(),
            calls: Arena::new(),
            tickets: Arena::new(),
            parts: BTreeMap::new(),
            part_index: BTreeMap::new(),
            ledger: Ledger::default(),
            outbox: Vec::new(),
            reads: Vec::new(),
            reading: BTreeMap::new(),
            read_token: 0,
            park_seq: 0,
            timers: Timers::default(),
            todo: VecDeque::new(),
            woken: Vec::new(),
            totals: Totals::default(),
            recorder: Recorder::default(),
            #[cfg(feature = "planted")]
            planted: None,
        }
    }

    /// The limits it runs with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether a session's inbox got its first notice since [`Self::take_woken`] was asked last.
    pub fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    /// The sessions that have to be woken: the shell makes their loops call [`Self::drain`].
    pub fn take_woken(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.woken)
    }

    /// When durable work is due next. No session is told of that: the shell calls [`Self::tick`] then, whatever the
    /// loops of the sessions do.
    pub fn alarm(&self) -> Option<Nanos> {
        self.timers.next_own()
    }

    /// Ends what is due, at most some of it at once.
    ///
    /// Returns when there is more to end; a moment that is not later than `at.now` asks for another call at once.
    pub fn tick(&mut self, at: Moment) -> Option<Nanos> {
        self.forget_idle(at.now);
        self.flush(at);
        for _ in 0..TICKS {
            let Some(timer) = self.timers.pop(at.now) else {
                break;
            };
            match timer {
                Timer::Call(call) => self.call_is_due(call, at),
                Timer::Attempt(job) => self.attempt_is_due(job, at),
                Timer::Probe(partition, effect) => self.probe_is_due((partition, effect), at),
                Timer::Park(_, ticket) => self.park_is_due(ticket, at),
                Timer::Event(sub, lane, seq) => self.event_is_due(sub, lane, seq, at),
                Timer::Again(consumer, n) => self.again_is_due(consumer, n, at),
                Timer::Reread(consumer) => self.reread_is_due(consumer, at),
                Timer::Acks(consumer) => self.acks_are_due(consumer),
                Timer::Lapse(session) => self.lapse_is_due(session, at),
                Timer::Declare(consumer, start) => self.declare(consumer, start, at),
                Timer::Keep(partition) => self.keep_again(partition),
            }
            self.flush(at);
        }
        if self.todo.is_empty() {
            self.timers.next()
        } else {
            Some(at.now)
        }
    }

    /// Ends a call whose deadline has passed, also when nobody has ticked since: what comes now is late.
    pub(crate) fn end_if_over(&mut self, call: CallId, at: Moment) {
        if self
            .calls
            .get(call)
            .is_some_and(|pending| pending.deadline <= at.now)
        {
            self.call_is_due(call, at);
        }
    }

    fn call_is_due(&mut self, call: CallId, at: Moment) {
        match self.calls.get(call).map(|pending| &pending.wanted) {
            Some(Wanted::Request(_)) => self.request_is_due(call),
            Some(Wanted::Call(_)) if self.has(Planted::ForgottenDeadline) => {}
            Some(Wanted::Call(job)) if self.outlives(*job) => {}
            Some(Wanted::Call(_)) => self.end_call(call, Why::Timeout, at),
            None => {}
        }
    }

    /// A bug that the simulator asks for: who waits for the next attempt does so beyond its deadline.
    fn outlives(&self, job: JobId) -> bool {
        let again = self
            .jobs
            .get(job)
            .is_some_and(crate::job::Job::is_tried_again);
        again && self.has(Planted::RetryOutlives)
    }

    /// Does what follows from the steps of this call.
    pub(crate) fn flush(&mut self, at: Moment) {
        if self.todo.is_empty() {
            return;
        }
        for _ in 0..STEPS {
            let Some(todo) = self.todo.pop_front() else {
                return;
            };
            match todo {
                Todo::Decline(call, failure) => self.decline(call, failure),
                Todo::Publish(event) => self.publish_own(event, at),
                Todo::Unpark(sub) => self.unpark(sub, at),
                Todo::Retry(ticket) => {
                    self.try_unpark(ticket, at);
                }
                Todo::Place(job) => self.place_job(job, at),
                Todo::Feed(consumer) => self.feed(consumer, at),
                Todo::Claim(sub) => self.claim_ahead(sub, at),
            }
        }
    }

    /// Puts a notice into a session's inbox; one for a session that is gone is nobody's.
    pub(crate) fn notify(&mut self, session: SessionId, notice: Notice) {
        if let Some(found) = self.sessions.get_mut(session) {
            if found.inbox.is_empty() {
                self.woken.push(session);
            }
            found.inbox.push_back(notice);
        }
    }

    /// The registration behind a handle, if it is one of this session.
    pub(crate) fn registration(&self, session: SessionId, handle: Handle) -> Result<&Registration> {
        match self.handles.get(handle) {
            Some(found) if found.session == session => Ok(found),
            _ => Err(Error::fenced(
                "this handle is not, or no longer, one of this session",
            )),
        }
    }

    /// The lease, if it is open and one of this session.
    pub(crate) fn lease(&self, session: SessionId, lease: LeaseId) -> Result<&Lease> {
        match self.leases.get(lease) {
            Some(found) if found.session == session => Ok(found),
            _ => Err(
                Error::fenced("this turn is over, or not one of this session")
                    .hint("a context may be used only while its handler runs"),
            ),
        }
    }

    pub(crate) fn space(&self, id: SpaceId) -> Option<&Space> {
        self.spaces.get(id.0 as usize)
    }

    pub(crate) fn space_mut(&mut self, id: SpaceId) -> Option<&mut Space> {
        self.spaces.get_mut(id.0 as usize)
    }
}
