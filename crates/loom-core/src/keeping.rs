//! What the log keeps of agents: their states, and the values of the memory.
//!
//! The state that a durable turn leaves goes to the log together with its ack: either both are there or the event is
//! given again, to the state as it was before. What has no ack to go with is written at once, and again if the log
//! refused it.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use crate::ack::Fate;
use crate::arena::{LeaseId, SessionId, Ticket};
use crate::consume::Consuming;
use crate::core::{Core, Lease};
use crate::error::{Error, Result};
use crate::record::{Body, Level, Memory, Record, State};
use crate::ticket::Then;
use crate::time::Moment;
use crate::timers::Timer;

/// A state as it goes to the log.
pub(crate) type Left = (State, Body);

/// What it is a value of: an agent and its key, or, without an agent, a key of the memory.
type Key = (Option<String>, String);

/// What is on its way to the log by itself.
#[derive(Default)]
pub(crate) struct Unkept {
    /// The newest that is with the log.
    flying: BTreeMap<Key, Ticket>,
    /// What the log refused; it is tried again.
    refused: BTreeMap<Key, Record>,
}

impl Unkept {
    fn forget(&mut self, key: &Key) {
        self.flying.remove(key);
        self.refused.remove(key);
    }
}

fn key_of(record: &Record) -> Option<Key> {
    match record {
        Record::State(it, _) => Some(state_key(it)),
        Record::Memory(it, _) => Some((None, it.key.clone())),
        _ => None,
    }
}

fn state_key(state: &State) -> Key {
    (Some(state.agent.clone()), state.key.clone())
}

impl Consuming {
    /// Takes the acks that are written next, with their states: as many as may go together, and at least one.
    pub(crate) fn take_acks(&mut self, most: usize) -> Vec<u64> {
        let mut bytes = 0_usize;
        let size = |n: &u64| self.states.get(n).map_or(0, |(_, body)| body.len());
        let fits = |n: &&u64| {
            let first = bytes == 0;
            bytes = bytes.saturating_add(size(n));
            first || bytes <= most
        };
        let count = self.acks.iter().take_while(fits).count();
        let rest = self.acks.split_off(count);
        std::mem::replace(&mut self.acks, rest)
    }

    /// The states of acks, each as the last of these turns left it.
    pub(crate) fn states_with(&self, acked: &[u64]) -> SmallVec<[Record; 1]> {
        let mut last: BTreeMap<Key, &Left> = BTreeMap::new();
        for left in acked.iter().filter_map(|n| self.states.get(n)) {
            last.insert(state_key(&left.0), left);
        }
        let states = last.into_values();
        states
            .map(|(state, body)| Record::State(state.clone(), body.clone()))
            .collect()
    }
}

impl Core {
    /// Puts a value of the memory into the log; nobody waits for it, and it is tried again until it is there.
    ///
    /// # Errors
    /// `NOT_SUPPORTED` where no log is open; `INVALID_PARAMS` for one that is too large.
    pub fn keep_memory(&mut self, namespace: &str, memory: Memory, body: Body) -> Result<()> {
        let partition = self.open_part(namespace)?;
        self.check_body(&body, "value")?;
        self.keep(partition, Record::Memory(memory, body));
        Ok(())
    }

    /// Keeps the state that a turn leaves. That of a durable one is written with its ack; `false`: its event will be
    /// given again (the turn `failed`, or gave it back), and the state is to be what it was before.
    ///
    /// # Errors
    /// `FENCED` for a turn that is over or of another session; `INVALID_PARAMS` for a state that is too large;
    /// `NOT_SUPPORTED` where no log is open.
    pub fn keep_state(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        (state, body): (State, Body),
        failed: bool,
    ) -> Result<bool> {
        let Some(found) = self.own_lease(session, lease, false)? else {
            return Err(Error::fenced("this turn is over: its state is not kept")
                .field("state")
                .hint("its lease may have lapsed: the event is given again"));
        };
        let fate = found.durable.as_ref().map(|durable| durable.fate);
        let space = self.session(session)?.space;
        let partition = self.space(space).and_then(|space| space.partition);
        let Some(partition) = partition else {
            return Err(Error::invalid("state", "there is no log to keep it in"));
        };
        if matches!(fate, Some(Fate::Again(_))) || fate == Some(Fate::Open) && failed {
            return Ok(false);
        }
        self.check_body(&body, "state")?;
        if fate == Some(Fate::Open) {
            if let Some(durable) = self
                .leases
                .get_mut(lease)
                .and_then(|it| it.durable.as_mut())
            {
                durable.state = Some((state, body));
            }
            return Ok(true);
        }
        if !self.joins(partition, &state, &body) {
            self.keep(partition, Record::State(state, body));
        }
        Ok(true)
    }

    /// A durable turn went well: its state goes with its ack.
    pub(crate) fn leave_state(&mut self, lease: &Lease) {
        let Some(durable) = &lease.durable else {
            return;
        };
        let (id, n) = (durable.consumer, durable.n);
        let Some(left) = durable.state.clone() else {
            return;
        };
        let Some(part) = self.parts.get_mut(&id.partition) else {
            return;
        };
        part.unkept.forget(&state_key(&left.0));
        if let Some(found) = part.consumers.get_mut(&id.number) {
            found.states.insert(n, left);
        }
    }

    /// The states that turns of an agent have left: also those which the log has not answered yet.
    pub fn states_of(&self, namespace: &str, agent: &str) -> BTreeMap<String, Arc<[u8]>> {
        let part = self.partition_of(namespace);
        let Some(part) = part.and_then(|number| self.parts.get(&number)) else {
            return BTreeMap::new();
        };
        let kept = part.folded.states().filter(|kept| kept.agent == agent);
        let mut all: BTreeMap<_, _> = kept
            .map(|kept| (kept.key.clone(), Arc::clone(&kept.body)))
            .collect();
        for found in part.consumers.values() {
            let written = found.flying.iter().flatten();
            for n in written.chain(&found.acks) {
                if let Some((state, body)) = found.states.get(n).filter(|(it, _)| it.agent == agent)
                {
                    all.insert(state.key.clone(), body.share());
                }
            }
        }
        for ((_, key), record) in self.unkept_of(part, agent) {
            if let Record::State(_, body) = record {
                all.insert(key.clone(), body.share());
            }
        }
        all
    }

    /// The state that turns of an agent have left in one lane: also one that the log has not answered yet.
    pub fn state_of(&self, namespace: &str, agent: &str, lane: &str) -> Option<Arc<[u8]>> {
        let part = self.parts.get(&self.partition_of(namespace)?)?;
        let key = (Some(agent.to_owned()), lane.to_owned());
        if let Some(Record::State(_, body)) = self.unkept(part, &key) {
            return Some(body.share());
        }
        let folded = part.folded.kept().state(agent, lane);
        let mut newest = folded.map(|kept| Arc::clone(&kept.body));
        for found in part.consumers.values() {
            let written = found.flying.iter().flatten();
            for (state, body) in written
                .chain(&found.acks)
                .filter_map(|n| found.states.get(n))
            {
                if state.agent == agent && state.key == lane {
                    newest = Some(body.share());
                }
            }
        }
        newest
    }

    /// One value of the memory, and until when: also one that the log has not answered yet.
    pub fn memory_of(&self, namespace: &str, key: &str) -> Option<(Arc<[u8]>, Option<u64>)> {
        let part = self.parts.get(&self.partition_of(namespace)?)?;
        if let Some(Record::Memory(it, body)) = self.unkept(part, &(None, key.to_owned())) {
            return (!it.gone).then(|| (body.share(), it.until_ms));
        }
        let kept = part.folded.kept().memory(key)?;
        Some((Arc::clone(&kept.body), kept.until_ms))
    }

    /// All values of the memory, and until when: also those that the log has not answered yet.
    pub fn memories_of(&self, namespace: &str) -> BTreeMap<String, (Arc<[u8]>, Option<u64>)> {
        let part = self.partition_of(namespace);
        let Some(part) = part.and_then(|number| self.parts.get(&number)) else {
            return BTreeMap::new();
        };
        let kept = part.folded.memories();
        let mut all: BTreeMap<_, _> = kept
            .map(|it| (it.key.clone(), (Arc::clone(&it.body), it.until_ms)))
            .collect();
        let flying = part.unkept.flying.values();
        let flying = flying.filter_map(|ticket| self.kept_by(*ticket));
        for record in flying.chain(part.unkept.refused.values()) {
            match record {
                Record::Memory(it, _) if it.gone => drop(all.remove(&it.key)),
                Record::Memory(it, body) => {
                    drop(all.insert(it.key.clone(), (body.share(), it.until_ms)));
                }
                _ => {}
            }
        }
        all
    }

    fn unkept<'a>(&'a self, part: &'a crate::part::Part, key: &Key) -> Option<&'a Record> {
        let flying = part.unkept.flying.get(key);
        let flying = flying.and_then(|ticket| self.kept_by(*ticket));
        flying.or_else(|| part.unkept.refused.get(key))
    }

    fn unkept_of<'a>(
        &'a self,
        part: &'a crate::part::Part,
        agent: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Record)> {
        let flying = part.unkept.flying.iter();
        let flying = flying.filter_map(|(key, ticket)| Some((key, self.kept_by(*ticket)?)));
        flying
            .chain(&part.unkept.refused)
            .filter(move |(key, _)| key.0.as_deref() == Some(agent))
    }

    fn check_body(&self, body: &Body, field: &'static str) -> Result<()> {
        let most = self.limits.log_body_bytes;
        if body.len() <= most {
            return Ok(());
        }
        let message = format!("it has {} bytes, and the log takes {most}", body.len());
        Err(Error::invalid(field, message)
            .limit("log_body_bytes")
            .hint("split it over several keys, or keep it elsewhere and here where it lies"))
    }

    /// Puts a state in the place of an older one that waits to be written; says whether it is written with that.
    fn joins(&mut self, partition: u32, state: &State, body: &Body) -> bool {
        let Some(part) = self.parts.get_mut(&partition) else {
            return false;
        };
        let mut joined = false;
        for found in part.consumers.values_mut() {
            let flown = found.flying.as_deref().unwrap_or_default();
            for (n, left) in &mut found.states {
                if left.0.agent == state.agent && left.0.key == state.key {
                    *left = (state.clone(), body.clone());
                    joined |= !flown.contains(n);
                }
            }
        }
        joined
    }

    fn keep(&mut self, partition: u32, record: Record) {
        let Some(key) = key_of(&record) else {
            return;
        };
        let ticket = self.append(partition, Level::Os, smallvec![record], Then::Keep);
        if let Some(part) = self.parts.get_mut(&partition) {
            part.unkept.refused.remove(&key);
            part.unkept.flying.insert(key, ticket);
        }
    }

    /// The log has it.
    pub(crate) fn kept(&mut self, partition: u32, ticket: Ticket, batch: &[Record]) {
        let Some(part) = self.parts.get_mut(&partition) else {
            return;
        };
        for key in batch.iter().filter_map(key_of) {
            if part.unkept.flying.get(&key) == Some(&ticket) {
                part.unkept.flying.remove(&key);
            }
        }
    }

    /// The log refused it: what is not outdated is tried again.
    pub(crate) fn not_kept(
        &mut self,
        (partition, ticket): (u32, Ticket),
        batch: SmallVec<[Record; 1]>,
        at: Moment,
    ) {
        let pause = self.limits.redeliver_base_ms;
        let Some(part) = self.parts.get_mut(&partition) else {
            return;
        };
        for record in batch {
            let Some(key) = key_of(&record) else {
                continue;
            };
            if part.unkept.flying.get(&key) == Some(&ticket) {
                part.unkept.flying.remove(&key);
                if part.unkept.refused.is_empty() {
                    let due = at.now.plus_millis(pause);
                    self.timers.add(due, Timer::Keep(partition));
                }
                part.unkept.refused.insert(key, record);
            }
        }
    }

    /// What the log refused is tried again.
    pub(crate) fn keep_again(&mut self, partition: u32) {
        let part = self.parts.get_mut(&partition);
        let refused = part.map(|part| std::mem::take(&mut part.unkept.refused));
        for record in refused.into_iter().flat_map(BTreeMap::into_values) {
            self.keep(partition, record);
        }
    }
}
