//! Sessions: attaching, registering, draining, and taking everything back when one ends.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::arena::{CallId, Handle, LeaseId, SessionId, SubId, Ticket};
use crate::books::{Books, Reason};
use crate::core::{Core, Holding, Kind, Registration};
use crate::directory::{Change, DirectoryKind};
use crate::envelope::{Origin, Qos};
use crate::error::{Code, Error, Result};
use crate::grants::{Grants, check_is_not_own};
use crate::health::Health;
use crate::input::{AgentSpec, Attach};
use crate::lane::Lanes;
use crate::notice::Notice;
use crate::space::SpaceId;
use crate::subscription::{Group, Subscription};
use crate::ticket::Waiting;
use crate::time::{Moment, Nanos};
use crate::topic::{Filter, check_name};

/// One process instance that is attached.
pub(crate) struct Session {
    pub(crate) space: SpaceId,
    pub(crate) root: Handle,
    pub(crate) handles: BTreeSet<Handle>,
    /// Names of its agents; never walked.
    pub(crate) agents: FxHashSet<Arc<str>>,
    pub(crate) inbox: VecDeque<Notice>,
    /// Calls and requests it waits for.
    pub(crate) pending: usize,
    /// Its offers that wait for room.
    pub(crate) parked: usize,
    /// When its loop has moved last, as far as that matters.
    pub(crate) renewed: Nanos,
    /// When it has to have moved: a timer stands there while it has durable turns.
    pub(crate) lapses: Option<Nanos>,
    /// Where its loop stands still.
    pub(crate) stack: Option<Box<str>>,
    /// What it may do; none: everything.
    pub(crate) grants: Option<Arc<Grants>>,
    /// What the client calls itself; 0: it does not come back.
    pub(crate) client: u128,
    /// It is the node's own.
    pub(crate) is_node: bool,
}

impl Core {
    /// Whether it belongs to another process.
    pub(crate) fn is_elsewhere(&self, session: SessionId) -> bool {
        let found = self.sessions.get(session);
        found.is_some_and(|session| session.client != 0)
    }

    /// Attaches a session of the engine's own process to a namespace; `name` is the sender of what it publishes outside
    /// any agent. It may do everything.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for a name that is none.
    pub fn attach(&mut self, namespace: &str, name: &str) -> Result<SessionId> {
        self.attach_as(Attach {
            namespace,
            name,
            ..Attach::default()
        })
    }

    /// Attaches a session that may do what its grants say.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for a name that is none.
    pub fn attach_as(&mut self, attach: Attach<'_>) -> Result<SessionId> {
        let Attach {
            namespace,
            name,
            grants,
            client,
            is_node,
        } = attach;
        check_name("namespace", namespace, &self.limits)?;
        check_name("name", name, &self.limits)?;
        if grants.is_some() && !is_node {
            check_is_not_own("name", name)?;
        }
        let space = self.enter_space(namespace);
        let namespace = self
            .space(space)
            .map_or_else(|| namespace.into(), |s| Arc::clone(&s.name));
        let root = Handle(0);
        let session = self.sessions.insert(Session {
            space,
            root,
            handles: BTreeSet::new(),
            agents: FxHashSet::default(),
            inbox: VecDeque::new(),
            pending: 0,
            parked: 0,
            renewed: Nanos::default(),
            lapses: None,
            stack: None,
            grants,
            client,
            is_node,
        });
        let bound = self.grants_of(session).is_some();
        let root = self.handles.insert(Registration {
            session,
            space,
            origin: Origin::new(&namespace, name),
            name: name.into(),
            kind: Kind::Root,
            bound,
        });
        if let Some(found) = self.sessions.get_mut(session) {
            found.root = root;
        }
        Ok(session)
    }

    /// The sender handle of the session itself.
    ///
    /// # Errors
    /// `FENCED` when the session has ended.
    pub fn root(&self, session: SessionId) -> Result<Handle> {
        self.session(session).map(|found| found.root)
    }

    pub(crate) fn session(&self, session: SessionId) -> Result<&Session> {
        self.sessions
            .get(session)
            .ok_or_else(|| Error::fenced("this session has ended"))
    }

    /// Counts one more handle of a session, or refuses it.
    pub(crate) fn enrol(&mut self, registration: Registration) -> Result<Handle> {
        let most = self.limits.registrations;
        let session = registration.session;
        if self.session(session)?.handles.len() >= most {
            let message = format!("this session has {most} registrations already");
            return Err(Error::exhausted("registrations", message));
        }
        let handle = self.handles.insert(registration);
        if let Some(found) = self.sessions.get_mut(session) {
            found.handles.insert(handle);
        }
        Ok(handle)
    }

    /// Registers an agent: one subscription with a set of filters.
    ///
    /// # Errors
    /// `INVALID_PARAMS`, `EXHAUSTED`; `CONFLICT` for a second agent of that name in one session; `DENIED` for a filter of
    /// which the session may hear nothing, and for a name or a group of which it may not hear what is spawned.
    pub fn register(
        &mut self,
        session: SessionId,
        spec: &AgentSpec<'_>,
        at: Moment,
    ) -> Result<Handle> {
        let space = self.session(session)?.space;
        check_name("name", spec.name, &self.limits)?;
        let group = if spec.group.is_empty() {
            spec.name
        } else {
            spec.group
        };
        check_name("group", group, &self.limits)?;
        self.check_info(spec.info)?;
        self.check_concurrency(spec.concurrency)?;
        let mut filters = self.read_filters(spec.filters)?;
        self.check_hearing(session, &filters)?;
        self.check_agent(session, spec.name, group)?;
        filters.push(Filter::parse(
            &format!("spawn.{}", spec.name),
            &self.limits,
        )?);
        self.check_is_new(session, spec.name)?;
        let start = self.read_start(space, spec.start)?;
        if spec.qos != Qos::Realtime {
            self.check_consumers(space, group)?;
        }
        let group = self.open_group(space, group);
        let sub = SubscriptionSpec {
            filters,
            group: Some(group),
            concurrency: spec.concurrency,
            lossy: spec.qos == Qos::Realtime,
            exclusive: spec.exclusive,
        };
        let older = self.fenced_by(space, session, spec);
        let handle = self.add_subscription(session, spec.name, sub)?;
        if let Some(Kind::Subscription(sub)) = self.handles.get(handle).map(|found| found.kind) {
            self.enlist(sub, start, spec.max_deliver, at);
        }
        self.enter(space, DirectoryKind::Agent, (spec.name, handle, spec.info));
        for older in older {
            self.fence_agent(older, at);
        }
        self.wake_waiting(space, at);
        self.flush(at);
        Ok(handle)
    }

    /// Opens one ordered stream of events, one at a time, each done by the next take.
    ///
    /// # Errors
    /// `INVALID_PARAMS`, `EXHAUSTED`; `DENIED` for a filter of which the session may hear nothing.
    pub fn subscribe(&mut self, session: SessionId, filters: &[&str], qos: Qos) -> Result<Handle> {
        if filters.is_empty() {
            return Err(Error::invalid(
                "filters",
                "a subscription needs at least one filter",
            ));
        }
        let filters = self.read_filters(filters)?;
        self.check_hearing(session, &filters)?;
        let root = self.session(session)?.root;
        let name = Arc::clone(&self.registration(session, root)?.name);
        let lossy = qos == Qos::Realtime;
        let spec = SubscriptionSpec {
            filters,
            group: None,
            concurrency: 1,
            lossy,
            exclusive: false,
        };
        self.add_subscription(session, &name, spec)
    }

    fn check_is_new(&self, session: SessionId, name: &str) -> Result<()> {
        if !self.session(session)?.agents.contains(name) {
            return Ok(());
        }
        let message = format!("an agent named {name:?} is registered in this session already");
        Err(Error::new(Code::Conflict, message).field("name"))
    }

    pub(crate) fn check_concurrency(&self, concurrency: u32) -> Result<()> {
        let most = self.limits.agent_concurrency_max;
        if concurrency > 0 && concurrency as usize <= most {
            return Ok(());
        }
        let message = format!("concurrency is {concurrency}, not one of 1 to {most}");
        Err(Error::invalid("concurrency", message).limit("agent_concurrency"))
    }

    pub(crate) fn check_info(&self, info: &[u8]) -> Result<()> {
        if info.len() <= self.limits.info_bytes {
            return Ok(());
        }
        let message = format!(
            "the info has {} bytes of at most {}",
            info.len(),
            self.limits.info_bytes
        );
        Err(Error::invalid("info", message).limit("info_bytes"))
    }

    fn read_filters(&self, texts: &[&str]) -> Result<Vec<Filter>> {
        if texts.len() > self.limits.agent_filters {
            let message = format!(
                "{} filters of at most {}",
                texts.len(),
                self.limits.agent_filters
            );
            return Err(Error::invalid("filters", message).limit("agent_filters"));
        }
        let mut filters: Vec<Filter> = Vec::with_capacity(texts.len() + 1);
        for text in texts {
            let filter = Filter::parse(text, &self.limits)?;
            if !filters.contains(&filter) {
                filters.push(filter);
            }
        }
        Ok(filters)
    }

    fn open_group(&mut self, space: SpaceId, name: &str) -> crate::arena::GroupId {
        if let Some(group) = self.space(space).and_then(|space| space.groups.get(name)) {
            return *group;
        }
        let name: Arc<str> = name.into();
        let group = Group {
            name: Arc::clone(&name),
            members: Vec::new(),
            turn: 0,
            consumer: None,
        };
        let group = self.groups.insert(group);
        if let Some(space) = self.space_mut(space) {
            space.groups.insert(name, group);
        }
        group
    }

    fn add_subscription(
        &mut self,
        session: SessionId,
        name: &str,
        spec: SubscriptionSpec,
    ) -> Result<Handle> {
        let space = self.session(session)?.space;
        let namespace = self
            .space(space)
            .map(|space| Arc::clone(&space.name))
            .unwrap_or_default();
        let origin = Origin::new(&namespace, name);
        let name: Arc<str> = name.into();
        let handle = self.enrol(Registration {
            session,
            space,
            origin: Arc::clone(&origin),
            name: Arc::clone(&name),
            kind: Kind::Root,
            bound: self.grants_of(session).is_some(),
        })?;
        let (group, agent) = (spec.group, Arc::clone(&name));
        let sub = self.subs.insert(Subscription {
            name,
            origin,
            space,
            session,
            handle,
            group,
            filters: spec.filters,
            concurrency: spec.concurrency,
            lossy: spec.lossy,
            exclusive: spec.exclusive,
            lanes: Lanes::default(),
            leased: 0,
            durables: 0,
            ahead: None,
            spare: self.most_held(),
            current: None,
            armed: true,
            lagging: false,
            health: Health::Up,
            closing: false,
            consumer: None,
            claimed: VecDeque::new(),
            hungry: false,
            parked: VecDeque::new(),
            awaited: FxHashMap::default(),
            books: Books::default(),
        });
        if let Some(found) = self.handles.get_mut(handle) {
            found.kind = Kind::Subscription(sub);
        }
        if let Some(group) = group.and_then(|group| self.groups.get_mut(group)) {
            group.members.push(sub);
            if let Some(found) = self.sessions.get_mut(session) {
                found.agents.insert(agent);
            }
        }
        self.hear(sub);
        Ok(handle)
    }

    /// Removes a registration, a provider or a stream. Turns that are under way may end, and may still publish.
    ///
    /// # Errors
    /// `FENCED` for a handle of another session, `INVALID_PARAMS` for the session's own root.
    pub fn remove(&mut self, session: SessionId, handle: Handle, at: Moment) -> Result<()> {
        match self.registration(session, handle)?.kind {
            Kind::Root => {
                return Err(Error::invalid(
                    "handle",
                    "the root of a session goes when it is closed",
                ));
            }
            Kind::Subscription(sub) => self.remove_subscription(sub, Reason::Unsubscribed, at),
            Kind::Provider(provider) => self.remove_provider(provider, at),
        }
        self.flush(at);
        Ok(())
    }

    /// All that is queued is dropped in one call: `queue_items` bounds it.
    pub(crate) fn remove_subscription(&mut self, id: SubId, reason: Reason, at: Moment) {
        self.end_current(id);
        let Some(sub) = self.subs.get_mut(id) else {
            return;
        };
        if sub.closing {
            return;
        }
        sub.closing = true;
        let (space, group, handle, session) = (sub.space, sub.group, sub.handle, sub.session);
        let (is_agent, name) = (!sub.is_stream(), Arc::clone(&sub.name));
        if sub.health != Health::Quarantined {
            self.unhear(id);
        }
        self.leave_group(space, group, id);
        self.shed_queue(id, reason, at);
        if is_agent {
            if let Some(found) = self.sessions.get_mut(session) {
                found.agents.remove(&name);
            }
            self.leave(space, DirectoryKind::Agent, (&name, handle));
        }
        self.reclaim_subscription(id);
    }

    fn leave_group(&mut self, space: SpaceId, group: Option<crate::arena::GroupId>, sub: SubId) {
        let Some(id) = group else { return };
        let Some(found) = self.groups.get_mut(id) else {
            return;
        };
        found.members.retain(|member| *member != sub);
        if found.members.is_empty()
            && let Some(gone) = self.groups.remove(id)
            && let Some(space) = self.space_mut(space)
        {
            space.groups.remove(&gone.name);
        }
    }

    /// Forgets a removed subscription once its last turn has ended.
    pub(crate) fn reclaim_subscription(&mut self, id: SubId) {
        if self
            .subs
            .get(id)
            .is_some_and(|sub| sub.closing && sub.leased == 0)
            && let Some(sub) = self.subs.remove(id)
        {
            self.totals.gone.fold(&sub.books);
            self.forget_program(id);
            self.release_handle(sub.session, sub.handle);
        }
    }

    pub(crate) fn release_handle(&mut self, session: SessionId, handle: Handle) {
        self.handles.remove(handle);
        if let Some(session) = self.sessions.get_mut(session) {
            session.handles.remove(&handle);
        }
    }

    /// Takes up to `most` notices out of the inbox.
    ///
    /// # Errors
    /// `FENCED` when the session has ended.
    pub fn drain(&mut self, session: SessionId, most: usize) -> Result<Vec<Notice>> {
        let found = self
            .sessions
            .get_mut(session)
            .ok_or_else(|| Error::fenced("this session has ended"))?;
        let count = most.min(found.inbox.len());
        Ok(found.inbox.drain(..count).collect())
    }

    /// Notices that wait in the inbox; 0 for a session that has ended.
    pub fn waiting(&self, session: SessionId) -> usize {
        self.sessions
            .get(session)
            .map_or(0, |found| found.inbox.len())
    }

    /// Ends a session: its registrations go, what it waits for is cancelled, what it was serving ends.
    ///
    /// It is done in one call; the limits of a session's queues, calls and leases bound it. Idempotent.
    pub fn close(&mut self, session: SessionId, at: Moment) {
        let Some(found) = self.sessions.get(session) else {
            return;
        };
        let (root, space) = (found.root, found.space);
        let handles: Vec<Handle> = found.handles.iter().copied().collect();
        // None of them hears anything from here on, so that what waits goes to members that stay.
        for handle in &handles {
            if let Some(Kind::Subscription(sub)) = self.handles.get(*handle).map(|found| found.kind)
            {
                self.unhear(sub);
            }
        }
        for handle in &handles {
            match self.handles.get(*handle).map(|found| found.kind) {
                Some(Kind::Subscription(sub)) => {
                    self.remove_subscription(sub, Reason::SessionGone, at);
                }
                Some(Kind::Provider(provider)) => self.remove_provider(provider, at),
                _ => {}
            }
        }
        self.close_leases(session, at);
        self.close_calls(session, at);
        self.close_tickets(session);
        self.unwatch_leases(session);
        self.handles.remove(root);
        self.sessions.remove(session);
        self.flush(at);
        self.leave_space(space);
    }

    fn close_leases(&mut self, session: SessionId, at: Moment) {
        let held = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.session == session);
        let held: Vec<LeaseId> = held.map(|(id, _)| id).collect();
        self.cut_leases(held, "its session went", at);
    }

    /// Ends turns and invocations that nobody will end: the events of durable ones are given again.
    pub(crate) fn cut_leases(&mut self, held: Vec<LeaseId>, why: &str, at: Moment) {
        for id in held {
            let Some(lease) = self.leases.remove(id) else {
                continue;
            };
            self.tape_cut(&lease, why, at);
            if lease.durable.is_some() {
                self.give_back(&lease, None, at);
                continue;
            }
            match lease.holding {
                Holding::Turn { sub, lane } => {
                    if let Some(found) = self.subs.get_mut(sub) {
                        found.lanes.release(lane);
                        found.leased -= 1;
                    }
                    if lease.answered {
                        self.count_turn(sub, &lease.env, false);
                    } else {
                        self.lose(sub, &lease.env, Reason::SessionGone, at);
                    }
                    self.reclaim_subscription(sub);
                }
                Holding::Work { provider, .. } => {
                    self.free_work(provider, id);
                    self.end_late(id, None, at);
                    self.reclaim_provider(provider);
                }
            }
        }
    }

    fn close_calls(&mut self, session: SessionId, at: Moment) {
        let open = self
            .calls
            .iter()
            .filter(|(_, pending)| pending.session == session);
        let open: Vec<CallId> = open.map(|(id, _)| id).collect();
        for call in open {
            self.end_cancelled(call, at);
        }
    }

    fn close_tickets(&mut self, session: SessionId) {
        let open = self
            .tickets
            .iter()
            .filter(|(_, waiting)| matches!(waiting, Waiting::Parked(p) if p.session == session));
        let open: Vec<Ticket> = open.map(|(id, _)| id).collect();
        for ticket in open {
            self.unlist(ticket);
            self.leave_ticket(ticket);
        }
    }

    /// Publishes that an entry of the directory changed.
    pub(crate) fn tell_change(&mut self, space: SpaceId, change: Change) {
        let topic = change.topic();
        self.say(space, topic, None, || change.info);
    }
}

struct SubscriptionSpec {
    filters: Vec<Filter>,
    group: Option<crate::arena::GroupId>,
    concurrency: u32,
    lossy: bool,
    exclusive: bool,
}
