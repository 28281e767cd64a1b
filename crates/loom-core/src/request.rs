//! Requests: an event whose sender waits. Each receiver answers once or declines, and the request ends once.

use std::sync::Arc;

use serde::Serialize;
use smallvec::SmallVec;

use crate::arena::{CallId, LeaseId, SessionId, SubId, Ticket, TopicId};
use crate::bus::{Draft, Keeper, Plan, Targets, Verdict};
use crate::core::{Core, Holding, Lease, Pending, Todo, Wanted};
use crate::envelope::{Envelope, Extra, Qos};
use crate::error::{Code, Detail, Error, Result, to_json};
use crate::health::Health;
use crate::input::{Publish, Reply, Request};
use crate::notice::{Delivery, Notice};
use crate::planted::Planted;
use crate::report::Subject;
use crate::space::SpaceId;
use crate::time::{Moment, Nanos};
use crate::timers::Timer;

/// Failures that an outcome names; more are counted.
const NAMED_FAILURES: usize = 16;
/// Turns and invocations that are looked at to find whether a request waits for itself.
const WAITING: usize = 256;

/// One of those asked will not answer.
#[derive(Clone)]
pub(crate) struct Failure {
    pub(crate) who: Arc<str>,
    /// None: it declined without an error.
    pub(crate) why: Option<(Code, Detail)>,
    /// The error was published where it arose.
    pub(crate) told: bool,
}

/// What is known of an open request.
pub(crate) struct Asked {
    /// Answers that end it.
    enough: u32,
    /// The asker counts answers itself.
    many: bool,
    /// Those that were asked, whether they are still there or not.
    agents: Targets,
    matched: u32,
    replied: u32,
    declined: u32,
    failures: Vec<Failure>,
    /// It waits for room.
    pub(crate) ticket: Option<Ticket>,
    /// It waits for a subscriber.
    waiting: bool,
}

#[derive(Serialize)]
struct FailureBody<'a> {
    who: &'a str,
    code: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct OutcomeBody<'a> {
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    who: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    matched: u32,
    replied: u32,
    declined: u32,
    failures: Vec<FailureBody<'a>>,
}

impl Core {
    /// Publishes an event and waits for answers: [`Notice::Answer`] for each, then one [`Notice::Outcome`].
    ///
    /// # Errors
    /// As [`Self::offer`]; `UNAVAILABLE` when no agent hears it and it does not wait for one; `DEADLOCK` when it would wait
    /// for a lane that waits for it. Nothing has been enqueued then.
    pub fn request(
        &mut self,
        session: SessionId,
        request: Request<'_>,
        at: Moment,
    ) -> Result<CallId> {
        let (timeout, first_k, wait) = (request.timeout_ms, request.first_k, request.wait);
        let publish = request.publish;
        let source = self.source(session, publish.sender, publish.turn)?;
        if source.bound {
            self.check_publish(session, publish.topic)?;
        }
        self.topics.now = at.now;
        let (topic, name) = self.read_topic(source.space, publish.topic)?;
        let deadline =
            self.deadline(timeout, source.stamp.as_ref().and_then(|s| s.deadline), at)?;
        self.check_pending(session)?;
        let (space, parent) = (source.space, publish.turn);
        let own = source.stamp.as_ref().and_then(|stamp| stamp.sub);
        let tape = self.tape(space, parent);
        let call = self.calls.next_key();
        let draft = request_draft(publish, name, deadline, call);
        let mut env = self.compose(source, draft, at)?;
        env.books = topic;
        let env = Arc::new(env);
        let targets = self.pick(topic, env.lane());
        self.check_fanout(targets.len())?;
        if env.hop > 0 {
            self.count_run(env.run, at.now)?;
        }
        let agents = self.responders(&targets);
        let matched = u32::try_from(agents.len()).unwrap_or(u32::MAX);
        let asked = Asked {
            agents,
            enough: if first_k == 0 {
                self.most_replies()
            } else {
                first_k
            },
            many: first_k != 1,
            matched,
            replied: 0,
            declined: 0,
            failures: Vec::new(),
            ticket: None,
            waiting: matched == 0,
        };
        self.totals.requests.started += 1;
        self.open_pending(Pending {
            session,
            space,
            parent,
            env: Arc::clone(&env),
            deadline,
            started: at.now,
            tape,
            wanted: Wanted::Request(asked),
        });
        let plan = Plan {
            env,
            targets,
            own,
            call: Some(call),
            tape,
        };
        let sent = if matched == 0 {
            self.wait_for_hearer(space, call, wait)
        } else {
            self.ask(session, parent, plan, at)
        };
        if let Err(error) = sent {
            self.drop_request(call, &error);
            self.flush(at);
            return Err(error);
        }
        self.flush(at);
        Ok(call)
    }

    fn most_replies(&self) -> u32 {
        u32::try_from(self.limits.replies).unwrap_or(u32::MAX)
    }

    /// When a wait ends: after its timeout, and not later than the turn it is part of.
    pub(crate) fn deadline(
        &self,
        timeout_ms: u64,
        turn: Option<Nanos>,
        at: Moment,
    ) -> Result<Nanos> {
        if timeout_ms > self.limits.timeout_ms_max {
            let message = format!(
                "timeout is {timeout_ms} ms of at most {}",
                self.limits.timeout_ms_max
            );
            return Err(Error::invalid("timeout", message).limit("timeout_ms_max"));
        }
        let deadline = at.now.plus_millis(timeout_ms);
        Ok(turn.map_or(deadline, |turn| turn.min(deadline)))
    }

    pub(crate) fn check_pending(&self, session: SessionId) -> Result<()> {
        let most = self.limits.pending_calls;
        if self.session(session)?.pending < most {
            return Ok(());
        }
        let message = format!("this session waits for {most} calls and requests already");
        Err(Error::exhausted("pending_calls", message).retry_after(self.limits.retry_base_ms))
    }

    /// Those of the targets that may answer: agents, not streams.
    fn responders(&self, targets: &Targets) -> Targets {
        let agents = targets
            .iter()
            .filter(|sub| self.subs.get(**sub).is_some_and(|s| !s.is_stream()));
        agents.copied().collect()
    }

    /// Whether this subscription was asked; one that has gone since is still known here.
    pub(crate) fn was_asked(&self, call: CallId, sub: SubId) -> bool {
        self.calls.get(call).is_some_and(|pending| {
            matches!(&pending.wanted, Wanted::Request(asked) if asked.agents.contains(&sub))
        })
    }

    /// Another member of a group answers in place of one that left.
    pub(crate) fn ask_instead(&mut self, env: &Envelope, left: SubId, heir: SubId) {
        let pending = env.reply_to.and_then(|call| self.calls.get_mut(call));
        if let Some(pending) = pending
            && let Wanted::Request(asked) = &mut pending.wanted
        {
            for agent in asked.agents.iter_mut().filter(|agent| **agent == left) {
                *agent = heir;
            }
        }
    }

    pub(crate) fn open_pending(&mut self, pending: Pending) -> CallId {
        let (session, deadline) = (pending.session, pending.deadline);
        let (space, held) = (pending.space, self.large_bytes(&pending.env));
        let call = self.calls.insert(pending);
        if held > 0
            && let Some(space) = self.space_mut(space)
        {
            space.held += held;
        }
        self.timers.add(deadline, Timer::Call(call));
        if let Some(found) = self.sessions.get_mut(session) {
            found.pending += 1;
        }
        call
    }

    pub(crate) fn close_pending(&mut self, call: CallId) -> Option<Pending> {
        let pending = self.calls.remove(call)?;
        let held = self.large_bytes(&pending.env);
        if held > 0
            && let Some(space) = self.space_mut(pending.space)
        {
            space.held -= held;
        }
        self.timers.remove(pending.deadline, Timer::Call(call));
        if let Some(found) = self.sessions.get_mut(pending.session) {
            found.pending -= 1;
        }
        Some(pending)
    }

    /// An agent that would hear this topic if it were not in quarantine.
    fn quarantined_hearer(&self, space: SpaceId, topic: &str) -> Option<&str> {
        let mut subs = self.subs.iter().map(|(_, sub)| sub);
        let found = subs.find(|sub| {
            sub.space == space
                && sub.health == Health::Quarantined
                && sub.filters.iter().any(|filter| filter.matches(topic))
        });
        found.map(|sub| &*sub.name)
    }

    fn wait_for_hearer(&mut self, space: SpaceId, call: CallId, wait: bool) -> Result<()> {
        if !wait {
            let topic = self
                .calls
                .get(call)
                .map(|pending| Arc::clone(&pending.env.topic));
            let topic = topic.unwrap_or_default();
            let hint = match self.quarantined_hearer(space, &topic) {
                Some(name) => format!(
                    "agent {name:?} is in quarantine; app.release({name:?}) starts it again"
                ),
                None => "start an agent that subscribes to it, or wait=True".to_owned(),
            };
            let message = format!("no agent hears {topic:?}");
            return Err(Error::new(Code::Unavailable, message)
                .field("topic")
                .hint(hint));
        }
        if let Some(space) = self.space_mut(space) {
            space.waiting.push(call);
        }
        Ok(())
    }

    fn ask(
        &mut self,
        session: SessionId,
        parent: Option<LeaseId>,
        plan: Plan,
        at: Moment,
    ) -> Result<()> {
        self.check_deadlock(parent, &plan)?;
        match self.judge(&plan)? {
            Verdict::Room => {
                self.apply(&plan, at);
            }
            Verdict::Park => {
                self.park(session, plan, at)?;
            }
        }
        Ok(())
    }

    /// Follows who waits for whom: from the asking turn to the request it serves, to the turn that asked it, and so on.
    fn check_deadlock(&self, parent: Option<LeaseId>, plan: &Plan) -> Result<()> {
        self.each_waiting(parent, |lease| match lease.holding {
            Holding::Turn { sub, lane } => self.check_lane(sub, lane, plan),
            Holding::Work { .. } => Ok(()),
        })
    }

    /// Looks at a turn or an invocation, at those who wait for it, and so on; `WAITING` bounds it.
    pub(crate) fn each_waiting(
        &self,
        first: Option<LeaseId>,
        mut look: impl FnMut(&Lease) -> Result<()>,
    ) -> Result<()> {
        let mut next: SmallVec<[LeaseId; 4]> = first.into_iter().collect();
        for _ in 0..WAITING {
            let Some(lease) = next.pop() else {
                return Ok(());
            };
            let Some(lease) = self.leases.get(lease) else {
                continue;
            };
            look(lease)?;
            let calls = match lease.holding {
                Holding::Turn { .. } => lease.env.reply_to.as_slice(),
                Holding::Work { job, .. } => self.waiters(job),
            };
            let pending = calls.iter().filter_map(|call| self.calls.get(*call));
            next.extend(pending.filter_map(|pending| pending.parent));
        }
        Ok(())
    }

    fn check_lane(&self, sub: SubId, lane: u32, plan: &Plan) -> Result<()> {
        let Some(found) = self.subs.get(sub) else {
            return Ok(());
        };
        let same = plan.targets.contains(&sub) && found.lanes.find(plan.env.lane()) == Some(lane);
        if !same || found.is_stream() {
            return Ok(());
        }
        let message = format!(
            "this request would wait for the lane {} of {:?}, which waits for this request",
            plan.env.lane(),
            found.name
        );
        Err(Error::new(Code::Deadlock, message)
            .hint("give the request another key, or emit and go on"))
    }

    /// A request that was refused at once: it has no outcome besides the error.
    fn drop_request(&mut self, call: CallId, error: &Error) {
        let Some(pending) = self.close_pending(call) else {
            return;
        };
        self.totals.requests.error += 1;
        let who = Arc::clone(&pending.env.origin.sender);
        let subject = Subject::request(who, call, &pending.env);
        self.tell_error(pending.space, error.code, &error.detail(), &subject);
    }

    /// A subscription came: requests that wait for one may find it.
    pub(crate) fn wake_waiting(&mut self, space: SpaceId, at: Moment) {
        let Some(found) = self.space_mut(space) else {
            return;
        };
        if found.waiting.is_empty() {
            return;
        }
        let calls = std::mem::take(&mut found.waiting);
        let mut still = Vec::new();
        for call in calls {
            if !self.try_ask(space, call, at) {
                still.push(call);
            }
        }
        if let Some(found) = self.space_mut(space) {
            found.waiting.extend(still);
        }
    }

    /// Asks whoever hears a waiting request; `true` when it does not wait for a hearer any more.
    fn try_ask(&mut self, space: SpaceId, call: CallId, at: Moment) -> bool {
        let Some(pending) = self.calls.get(call) else {
            return true;
        };
        let (env, parent, session) = (Arc::clone(&pending.env), pending.parent, pending.session);
        let tape = pending.tape;
        let Ok((topic, _)) = self.topic(space, &env.topic) else {
            return true;
        };
        let targets = self.pick(topic, env.lane());
        let agents = self.responders(&targets);
        if agents.is_empty() {
            return false;
        }
        if let Some(pending) = self.calls.get_mut(call)
            && let Wanted::Request(asked) = &mut pending.wanted
        {
            asked.matched = u32::try_from(agents.len()).unwrap_or(u32::MAX);
            asked.agents = agents;
            asked.waiting = false;
        }
        let plan = Plan {
            env,
            targets,
            own: None,
            call: Some(call),
            tape,
        };
        if let Err(error) = self.ask(session, parent, plan, at) {
            self.end_request(call, Some((error.code, error.detail())), true);
        }
        true
    }

    /// Answers the request that a turn was given with. `false`: nobody waits any more, or it was answered.
    ///
    /// # Errors
    /// `INVALID_PARAMS` where nothing was asked; `FENCED` for a lease of another session.
    pub fn reply(&mut self, session: SessionId, reply: Reply<'_>, at: Moment) -> Result<bool> {
        let lease = reply.lease;
        self.check_payload(&reply.payload, Keeper::Nobody)?;
        self.check_short("content_type", reply.content_type)?;
        let Some(found) = self.own_lease(session, lease, true)? else {
            return Ok(false);
        };
        let (env, asked, answered) = (Arc::clone(&found.env), found.asked, found.answered);
        let Holding::Turn { sub, .. } = found.holding else {
            return Err(Error::invalid("lease", "a call is answered by its result"));
        };
        let Some(call) = env.reply_to.filter(|_| asked) else {
            let message = format!(
                "nobody waits for an answer to this event of {:?}",
                env.topic
            );
            return Err(Error::invalid("reply", message).hint("emit an event instead"));
        };
        if answered {
            self.totals.requests.double += 1;
            return Ok(false);
        }
        if let Some(found) = self.leases.get_mut(lease) {
            found.answered = true;
        }
        self.end_if_over(call, at);
        let answer = self.compose_reply(&env, sub, reply, at)?;
        self.tape_reply(lease, &answer);
        self.copy_reply(sub, &answer, at);
        let heard = self.deliver_reply(call, answer);
        self.flush(at);
        Ok(heard)
    }

    fn compose_reply(
        &mut self,
        env: &Envelope,
        sub: SubId,
        reply: Reply<'_>,
        at: Moment,
    ) -> Result<Arc<Envelope>> {
        let Some(found) = self.subs.get(sub) else {
            return Err(Error::fenced("the agent of this turn is gone"));
        };
        let origin = Arc::clone(&found.origin);
        let extra = reply.content_type.map(|kind| {
            Box::new(Extra {
                content_type: Some(kind.into()),
                ..Extra::default()
            })
        });
        let id = self.ids.mint(at.wall_ms);
        Ok(Arc::new(Envelope {
            id,
            topic: format!("thread.{}.reply", env.thread).into(),
            payload: reply.payload,
            origin,
            thread: env.thread.clone(),
            run: env.run,
            correlation: env.correlation,
            causation: Some(env.id),
            reply_to: None,
            deadline: None,
            ttl_ms: None,
            expires: None,
            key: None,
            time_ms: at.wall_ms,
            hop: env.hop.saturating_add(1),
            qos: Qos::Realtime,
            extra,
            position: None,
            books: TopicId(0),
        }))
    }

    /// Members of the thread see each answer as an ordinary event; it costs a look at the filters where there are none.
    fn copy_reply(&mut self, sub: SubId, answer: &Arc<Envelope>, at: Moment) {
        let Some(space) = self.subs.get(sub).map(|sub| sub.space) else {
            return;
        };
        if !self
            .space(space)
            .is_some_and(|space| space.trie.may_start("thread"))
        {
            return;
        }
        // The topics of threads are many and short-lived: they are matched each time and counted among the others.
        let targets = self.find_targets(space, &answer.topic);
        if targets.is_empty() {
            return;
        }
        let targets = self.pick_of(&targets, answer.lane());
        if self.check_fanout(targets.len()).is_err() {
            return self.totals.count_error(Code::Exhausted);
        }
        self.apply(
            &Plan {
                env: Arc::clone(answer),
                targets,
                own: None,
                call: None,
                tape: None,
            },
            at,
        );
    }

    fn deliver_reply(&mut self, call: CallId, answer: Arc<Envelope>) -> bool {
        let Some(pending) = self.calls.get_mut(call) else {
            self.totals.requests.late += 1;
            return false;
        };
        let session = pending.session;
        let Wanted::Request(asked) = &mut pending.wanted else {
            return false;
        };
        asked.replied += 1;
        let ended =
            asked.replied >= asked.enough || asked.replied + asked.declined >= asked.matched;
        let delivery = Delivery {
            durable: false,
            lease: None,
            envelope: answer,
            asked: false,
            attempt: 1,
            work: None,
            turn: 0,
        };
        self.notify(session, Notice::Answer(call, delivery));
        if ended {
            self.end_request(call, None, false);
        }
        true
    }

    /// A turn ended without an answer; its error was published where it arose.
    pub(crate) fn decline_told(&mut self, sub: SubId, env: &Envelope, why: Option<(Code, Detail)>) {
        let Some(call) = env.reply_to else { return };
        let who = self
            .subs
            .get(sub)
            .map(|sub| Arc::clone(&sub.origin.sender))
            .unwrap_or_default();
        self.todo.push_back(Todo::Decline(
            call,
            Failure {
                who,
                told: why.is_some(),
                why,
            },
        ));
    }

    /// One of those asked will not answer; when all have answered or declined, the request ends.
    pub(crate) fn decline(&mut self, call: CallId, failure: Failure) {
        let Some(pending) = self.calls.get_mut(call) else {
            return;
        };
        let Wanted::Request(asked) = &mut pending.wanted else {
            return;
        };
        asked.declined += 1;
        if failure.why.is_some() && asked.failures.len() < NAMED_FAILURES {
            asked.failures.push(failure);
        }
        if asked.waiting || asked.replied + asked.declined < asked.matched {
            return;
        }
        if asked.replied > 0 {
            return self.end_request(call, None, false);
        }
        let first = asked.failures.first().cloned();
        let (error, told) = if let Some(Failure {
            who,
            why: Some((code, mut detail)),
            told,
        }) = first
        {
            detail.who.get_or_insert_with(|| who.to_string());
            ((code, detail), told)
        } else {
            let message = format!("all {} who heard the request declined", asked.matched);
            ((Code::Unavailable, Detail::message(message)), false)
        };
        self.end_request(call, Some(error), !told);
    }

    pub(crate) fn request_is_due(&mut self, call: CallId) {
        let Some(pending) = self.calls.get(call) else {
            return;
        };
        let Wanted::Request(asked) = &pending.wanted else {
            return;
        };
        if self.has(Planted::LateAnswer) {
            let outcome = Notice::Outcome(call, Some(Code::Timeout), Box::default());
            return self.notify(pending.session, outcome);
        }
        let message = format!(
            "{} of {} who heard {:?} had answered when the time was up",
            asked.replied, asked.matched, pending.env.topic
        );
        self.end_request(call, Some((Code::Timeout, Detail::message(message))), true);
    }

    /// The one end of a request.
    pub(crate) fn end_request(&mut self, call: CallId, error: Option<(Code, Detail)>, tell: bool) {
        let Some(pending) = self.close_pending(call) else {
            return;
        };
        let Wanted::Request(asked) = &pending.wanted else {
            return;
        };
        if let Some(ticket) = asked.ticket {
            self.unlist(ticket);
            self.leave_ticket(ticket);
        }
        if asked.waiting
            && let Some(space) = self.space_mut(pending.space)
        {
            space.waiting.retain(|other| *other != call);
        }
        let code = error.as_ref().map(|(code, _)| *code);
        self.totals.requests.count(code);
        let body = match &error {
            Some((_, detail)) => outcome_body(asked, detail),
            None if asked.many => outcome_body(asked, &Detail::default()),
            None => Vec::new(),
        };
        self.tape_ended(&pending, code, &body);
        self.notify(pending.session, Notice::Outcome(call, code, body.into()));
        let Some((code, detail)) = error else { return };
        if tell {
            let who = Arc::clone(&pending.env.origin.sender);
            let subject = Subject::request(who, call, &pending.env);
            self.tell_error(pending.space, code, &detail, &subject);
        }
    }

    /// Ends a wait of this session; one that has ended already is no mistake.
    ///
    /// # Errors
    /// `FENCED` for a call of another session.
    pub fn cancel(&mut self, session: SessionId, call: CallId, at: Moment) -> Result<()> {
        if let Some(pending) = self.calls.get(call) {
            if pending.session != session {
                return Err(Error::fenced("this call is of another session"));
            }
            self.end_cancelled(call, at);
        }
        self.flush(at);
        Ok(())
    }

    pub(crate) fn end_cancelled(&mut self, call: CallId, at: Moment) {
        match self.calls.get(call).map(|pending| &pending.wanted) {
            Some(Wanted::Request(_)) => {
                let detail = Detail::message("the request was cancelled by its sender");
                self.end_request(call, Some((Code::Cancelled, detail)), true);
            }
            Some(Wanted::Call(_)) => self.end_call(call, crate::job::Why::Cancelled, at),
            None => {}
        }
    }
}

fn request_draft(publish: Publish<'_>, topic: Arc<str>, deadline: Nanos, call: CallId) -> Draft {
    Draft {
        topic,
        payload: publish.payload,
        qos: Qos::Batched,
        options: publish.options,
        reply_to: Some(call),
        deadline: Some(deadline),
        keeper: Keeper::Nobody,
    }
}

fn outcome_body(asked: &Asked, detail: &Detail) -> Vec<u8> {
    let named = asked.failures.iter().filter_map(|failure| {
        let (code, detail) = failure.why.as_ref()?;
        Some(FailureBody {
            who: &failure.who,
            code: code.name(),
            message: &detail.message,
        })
    });
    to_json(&OutcomeBody {
        message: &detail.message,
        field: detail.field.as_deref(),
        limit: detail.limit.as_deref(),
        hint: detail.hint.as_deref(),
        who: detail.who.as_deref(),
        retry: detail.retry,
        retry_after_ms: detail.retry_after_ms,
        matched: asked.matched,
        replied: asked.replied,
        declined: asked.declined,
        failures: named.collect(),
    })
}
