//! Coming and going: sessions, agents, streams and providers.

use loom_core::{
    AgentSpec, Attach, Code, DirectoryKind, Handle, Health, LeaseId, ProviderSpec, Qos, SessionId,
};

use crate::afar::{grants_of, may_hear};
use crate::calls::{CAPABILITIES, NAMES, VERSIONS};
use crate::event::{State, space_name};
use crate::fuse::Breaker;
use crate::habits::Habits;
use crate::sub::Sub;
use crate::trace::{Check, broken, ensure};
use crate::work::effect_of;
use crate::world::{Call, Peer, Provider, Taker, World};

const FILTERS: &[&str] = &["a", "a.*", "a.>", "a.b", "b.>", "x.y", "x.*", "a.*.c", "b"];
const WIDE_FILTERS: &[&str] = &[">", "*", "*.b", "loom.>", "loom.error.*", "thread.>"];
const GROUPS: &[&str] = &["g0", "g1"];

const MOST_PEERS: usize = 4;
const MOST_SUBS: usize = 9;
const MOST_PROVIDERS: usize = 4;

impl World {
    pub(crate) fn attach(&mut self) -> Check {
        if self.live_peers().len() >= MOST_PEERS {
            return Ok(());
        }
        let space = usize::from(self.dice.chance(25));
        let name = format!("s{}", self.peers.len());
        let stay = self.afar.draw(self.limits.ahead_items);
        let namespace = space_name(space);
        let session = self.core.attach_as(Attach {
            namespace: &namespace,
            name: &name,
            grants: grants_of(stay.may_hear, &self.limits),
            ..Attach::default()
        });
        let Ok((id, root)) = session.and_then(|id| Ok((id, self.core.root(id)?))) else {
            return broken("BAD-INPUT", "a session was refused");
        };
        self.note(format!("attach {id:?} to n{space}, {stay:?}"));
        self.peers.push(Peer {
            stay,
            ..Peer::new(id, space, name, root)
        });
        Ok(())
    }

    pub(crate) fn some_peer(&mut self) -> Option<usize> {
        let live = self.peers.iter().enumerate().filter(|(_, peer)| peer.live);
        let live: Vec<usize> = live.map(|(at, _)| at).collect();
        self.dice.pick(&live)
    }

    pub(crate) fn draw_filters(&mut self, habits: &Habits) -> Vec<String> {
        let count = self.dice.count(1, 3);
        let mut filters = Vec::new();
        for _ in 0..count {
            let wide = self.dice.chance(habits.wide);
            filters.push(
                self.dice
                    .word(if wide { WIDE_FILTERS } else { FILTERS })
                    .to_owned(),
            );
        }
        filters
    }

    pub(crate) fn register(&mut self, habits: &Habits) -> Check {
        let live = self.book.subs.iter().filter(|sub| sub.live).count();
        let Some(peer) = self.some_peer().and_then(|at| self.peers.get(at)) else {
            return Ok(());
        };
        if live >= MOST_SUBS {
            return Ok(());
        }
        let (session, space, stay) = (peer.id, peer.space, peer.stay);
        let name = format!("a{}", self.book.subs.len());
        let grouped = self.dice.chance(habits.grouped);
        let mut group = if grouped { self.dice.word(GROUPS) } else { "" };
        let other = |sub: &Sub| sub.live && sub.group == group && sub.may_hear != stay.may_hear;
        if self.book.subs.iter().any(other) {
            group = "";
        }
        // A lane can stay with one member only if all hear the same.
        let twin = self
            .book
            .subs
            .iter()
            .find(|sub| sub.live && sub.group == group);
        let twin = twin.map(|sub| {
            sub.filters
                .iter()
                .filter(|f| !f.starts_with("spawn"))
                .cloned()
        });
        let mut filters = match twin {
            Some(filters) => filters.collect(),
            None => self.draw_filters(habits),
        };
        let concurrency = self.dice.pick(&[1, 1, 2, 3]).unwrap_or(1);
        let texts: Vec<&str> = filters.iter().map(String::as_str).collect();
        let info = self.draw_info();
        let spec = AgentSpec {
            name: &name,
            filters: &texts,
            group,
            concurrency,
            qos: Qos::Batched,
            info: info.as_bytes(),
            start: loom_core::Start::Now,
            max_deliver: 0,
            exclusive: false,
        };
        let handle = self.core.register(session, &spec, self.at);
        self.note(format!(
            "register {name} at {session:?} in {group:?} for {filters:?}"
        ));
        let names = [name.as_str(), if group.is_empty() { &name } else { group }];
        let may_be = |name: &&str| may_hear(stay.may_hear, &format!("spawn.{name}"));
        let may_be = names.iter().all(may_be);
        let handle = match handle {
            Ok(handle) => handle,
            Err(error) if !may_be && error.code == Code::Denied => {
                self.seen.note("agent denied");
                return Ok(());
            }
            Err(error) => return self.check_denied(&filters, stay, &error),
        };
        ensure(may_be, "AUTHZ-SPAWN", || {
            format!("{stay:?} has registered {names:?}")
        })?;
        self.watch
            .enter((space, DirectoryKind::Agent, &name), handle, info);
        filters.push(format!("spawn.{name}"));
        let own = if group.is_empty() {
            name.clone()
        } else {
            group.to_owned()
        };
        let mut sub = Sub::new(session, space, name, own);
        sub.handle = handle;
        sub.filters = filters;
        sub.concurrency = concurrency as usize;
        (sub.may_hear, sub.ahead) = (stay.may_hear, stay.most);
        self.enter_sub(sub);
        self.ask_waiting(space)
    }

    pub(crate) fn subscribe(&mut self, habits: &Habits) -> Check {
        let Some(peer) = self.some_peer().and_then(|at| self.peers.get(at)) else {
            return Ok(());
        };
        let (session, space, name) = (peer.id, peer.space, peer.name.clone());
        let stay = peer.stay;
        let has = self
            .book
            .subs
            .iter()
            .any(|sub| sub.stream && sub.session == session);
        if has {
            return Ok(());
        }
        self.watch.forget_stream(space, &name);
        let filters = self.draw_filters(habits);
        let lossy = self.dice.chance(40);
        let texts: Vec<&str> = filters.iter().map(String::as_str).collect();
        let qos = if lossy { Qos::Realtime } else { Qos::Batched };
        let handle = self.core.subscribe(session, &texts, qos);
        self.note(format!("subscribe {name} to {filters:?} lossy {lossy}"));
        let handle = match handle {
            Ok(handle) => handle,
            Err(error) => return self.check_denied(&filters, stay, &error),
        };
        let group = format!("stream of {name}");
        let mut sub = Sub::new(session, space, name, group);
        sub.handle = handle;
        sub.filters = filters;
        sub.stream = true;
        sub.lossy = lossy;
        (sub.may_hear, sub.ahead) = (stay.may_hear, stay.most);
        self.enter_sub(sub);
        Ok(())
    }

    pub(crate) fn enter_sub(&mut self, sub: Sub) {
        self.takers
            .insert(Taker::Sub(self.book.subs.len()), Call::default());
        self.book.subs.push(sub);
    }

    /// An agent came: requests that wait for a hearer may have found one.
    pub(crate) fn ask_waiting(&mut self, space: usize) -> Check {
        let waiting = self.waits.all.iter_mut().filter_map(|(_, wait)| {
            let open = !wait.told && !wait.gone;
            wait.asked()
                .filter(|asked| open && asked.waiting && !asked.cancelled)
        });
        for asked in waiting {
            let Some(event) = self.book.events.get(asked.event) else {
                continue;
            };
            if event.space != space {
                continue;
            }
            let responders = self.book.aim(asked.event)?;
            if responders > 0 {
                asked.matched = responders;
                asked.waiting = false;
                self.seen.note("request heard by a later agent");
            }
        }
        Ok(())
    }

    pub(crate) fn provide(&mut self) -> Check {
        let live = self
            .providers
            .iter()
            .filter(|provider| provider.live)
            .count();
        let Some(peer) = self.some_peer().and_then(|at| self.peers.get(at)) else {
            return Ok(());
        };
        if live >= MOST_PROVIDERS {
            return Ok(());
        }
        let (session, space) = (peer.id, peer.space);
        let capability = self.dice.word(CAPABILITIES);
        let version = self.dice.word(VERSIONS);
        let name = self.dice.word(NAMES);
        let concurrency = self.dice.pick(&[1, 1, 2]).unwrap_or(1);
        let info = format!("{{\"n\":{}}}", self.takers.len());
        let spec = ProviderSpec {
            name: capability,
            version,
            effect: effect_of(capability),
            probes: false,
            provider: name,
            concurrency,
            info: info.as_bytes(),
        };
        let handle = self.core.provide(session, &spec, self.at);
        self.note(format!(
            "provide {capability} {version} as {name} at {session:?}"
        ));
        let Ok(handle) = handle else {
            return broken("BAD-INPUT", format!("a provider was refused: {handle:?}"));
        };
        let entry = (space, DirectoryKind::Capability, capability);
        self.watch.enter(entry, handle, info);
        self.takers
            .insert(Taker::Provider(self.providers.len()), Call::default());
        let concurrency = concurrency as usize;
        self.providers.push(Provider {
            session,
            handle,
            space,
            capability,
            version,
            name,
            concurrency,
            live: true,
            health: Health::Up,
            fails: self.dice.chance(25),
            breaker: Breaker::new(),
            deciding: None,
        });
        Ok(())
    }

    pub(crate) fn remove(&mut self) -> Check {
        let takers = self.live_takers();
        let Some(taker) = self.dice.pick(&takers) else {
            return Ok(());
        };
        let Some((session, handle, _)) = self.taker(taker) else {
            return Ok(());
        };
        let removed = self.core.remove(session, handle, self.at);
        self.note(format!("remove {taker:?}"));
        ensure(removed.is_ok(), "LEASE-FENCED", || format!("{removed:?}"))?;
        self.watch.leave(handle);
        self.end_streamed(taker)?;
        match taker {
            Taker::Sub(index) => {
                let sub = self.book.sub(index)?;
                sub.live = false;
                let open = !sub.open.is_empty();
                self.seen
                    .note_if("subscription removed with turns open", open);
                self.book.hand_over(index)?;
            }
            Taker::Provider(index) => self.retire(index, Some(session)),
        }
        Ok(())
    }

    /// A provider goes: what it has begun ends.
    pub(crate) fn retire(&mut self, index: usize, told: Option<SessionId>) {
        let Some(provider) = self
            .providers
            .get_mut(index)
            .filter(|provider| provider.live)
        else {
            return;
        };
        provider.live = false;
        provider.deciding = None;
        let key = (provider.space, provider.capability);
        *self.waits.gone.entry(key).or_default() += 1;
        let work = self
            .held
            .values()
            .filter(|held| held.taker == Taker::Provider(index));
        let jobs = work.filter_map(|held| held.job);
        let mut jobs: Vec<usize> = jobs.collect();
        jobs.retain(|job| {
            let lease = self.jobs.get(*job).and_then(|job| job.lease);
            let held = lease.and_then(|lease| self.held.get(&lease));
            held.is_some_and(|held| held.taker == Taker::Provider(index))
        });
        jobs.dedup();
        for job in jobs {
            self.lose_work(job, told);
        }
        self.blur(key);
    }

    pub(crate) fn close_one(&mut self) -> Check {
        match self.some_peer() {
            Some(at) => self.close(at),
            None => Ok(()),
        }
    }

    pub(crate) fn close(&mut self, at: usize) -> Check {
        let Some(peer) = self.peers.get(at) else {
            return Ok(());
        };
        let session = peer.id;
        self.drain_all(session)?;
        self.leave_all(session);
        self.core.close(session, self.at);
        self.note(format!("close {session:?}"));
        if let Some(peer) = self.peers.get_mut(at) {
            peer.live = false;
        }
        self.book.leave(session)?;
        for index in 0..self.providers.len() {
            if self
                .providers
                .get(index)
                .is_some_and(|provider| provider.session == session)
            {
                self.retire(index, None);
            }
        }
        self.close_held(session);
        self.close_waits(session);
        self.close_tickets(session)
    }

    /// Its entries leave the directory in the order of their handles.
    fn leave_all(&mut self, session: SessionId) {
        let takers = self.live_takers().into_iter();
        let mut handles: Vec<Handle> = takers
            .filter_map(|taker| self.taker(taker))
            .filter_map(|(own, handle, _)| (own == session).then_some(handle))
            .collect();
        handles.sort_unstable();
        for handle in handles {
            self.watch.leave(handle);
        }
    }

    /// What a registration says of itself: no two say the same.
    fn draw_info(&mut self) -> String {
        let number = self.takers.len();
        match self.dice.between(0, 2) {
            0 => format!("{{\"n\":{number}}}"),
            1 => format!("{{\"n\": {number} }}"),
            _ => format!("info {number}"),
        }
    }

    pub(crate) fn close_held(&mut self, session: SessionId) {
        let held = self.held.iter().filter(|(_, held)| held.session == session);
        let held: Vec<LeaseId> = held.map(|(lease, _)| *lease).collect();
        self.seen
            .note_if("session closed with turns open", !held.is_empty());
        for lease in held {
            let Some(held) = self.held.remove(&lease) else {
                continue;
            };
            self.past.push(lease);
            match held.taker {
                Taker::Sub(index) => {
                    if let Ok(sub) = self.book.sub(index) {
                        sub.open.remove(&lease);
                    }
                    // A turn that had answered is done, and a stream's that is not taken ahead; the event of any other
                    // is lost.
                    let ahead = self.stay_of(session).ahead;
                    let done = held.answered || (self.is_stream(held.taker) && !ahead);
                    self.book.ended += u64::from(done);
                    self.decline(&held);
                }
                Taker::Provider(_) => {}
            }
        }
    }

    pub(crate) fn close_waits(&mut self, session: SessionId) {
        let own = self
            .waits
            .all
            .iter()
            .filter(|(_, wait)| wait.session == session && !wait.told);
        let own: Vec<_> = own.map(|(call, _)| *call).collect();
        for call in own {
            self.end_call(call, Code::Cancelled);
            if let Some(wait) = self.waits.all.get_mut(&call) {
                wait.gone = true;
            }
        }
        self.waits
            .cancels_due
            .retain(|(other, _)| *other != session);
        self.waits
            .credits_due
            .retain(|(other, _, _)| *other != session);
    }

    /// What was parked will never go; what is with the log goes without its session.
    pub(crate) fn close_tickets(&mut self, session: SessionId) -> Check {
        let own = self
            .tickets
            .iter()
            .filter(|(_, (owner, _))| *owner == session);
        let own: Vec<_> = own.map(|(ticket, (_, event))| (*ticket, *event)).collect();
        for (ticket, event) in own {
            self.tickets.remove(&ticket);
            if self.book.event(event)?.state == State::Parked {
                self.book.refuse(event)?;
            }
        }
        Ok(())
    }
}
