//! The world of the log: agents that consume durable events, and a log that writes, syncs, answers and refuses when the
//! dice say, is killed, loses its power, and starts again from what was left. A second book knows what was published, who
//! must get it, and how often each was begun.
#![expect(
    clippy::unnecessary_wraps,
    clippy::single_match_else,
    reason = "each step may find a promise broken, and each end of an offer is told apart"
)]

mod away;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use loom_core::{
    AgentSpec, Attach, Code, Core, Durability, Envelope, Error, Fault, Fed, Handle, Health,
    LeaseId, Level, Limits, Moment, Nanos, Notice, Offer, Opened, Options, Outgoing, Partition,
    Position, Publish, Qos, Read, Record, SessionId, Start, Ticket,
};

use crate::dice::Dice;
use crate::trace::{Check, Trace, broken, ensure};
use crate::{Run, Seen, Setup};

const TOPICS: &[&str] = &["d.a", "d.b"];
const LANES: &[&str] = &["k", "l", "m"];
/// Groups, and what each hears.
const GROUPS: &[(&str, &[&str])] = &[
    ("one", &["d.a"]),
    ("two", &["d.>"]),
    ("three", &["d.b", "d.a"]),
];

/// One event, as its publisher and the log know it.
struct Event {
    topic: &'static str,
    lane: &'static str,
    dedup: Option<String>,
    ticket: Option<Ticket>,
    /// Where the log wrote it.
    n: Option<u64>,
    /// The log has answered: it may show.
    answered: bool,
    /// The one group that it is for: it was redriven.
    only: Option<usize>,
}

/// How an event stands at a group.
#[derive(Default, Clone)]
struct Standing {
    /// The attempts that were handed out.
    handed: Vec<u32>,
    done: bool,
    dead: bool,
    /// Not again before this, by the wall.
    until_ms: u64,
    /// Until when it waits, by the wall, for the client that had begun it in an earlier life.
    grace: Option<(u64, u128)>,
}

impl Standing {
    /// It is given out: to the client that it waits for, if it does.
    fn check_grace(&mut self, client: u128, wall: u64) -> Check {
        let grace = self.grace.take();
        let early = grace.filter(|(until, other)| *until > wall && *other != client);
        ensure(early.is_none(), "GRACE-KEPT", || {
            format!("a turn was to wait for its client: {early:?}")
        })
    }
}

struct Held {
    session: usize,
    group: usize,
    event: usize,
    attempt: u32,
    acked: bool,
    delay_ms: Option<u64>,
    /// When it was extended or handed out last.
    since: Nanos,
}

struct Agent {
    session: usize,
    handle: Handle,
    group: usize,
    health: Health,
}

struct Peer {
    id: SessionId,
    live: bool,
    /// Its loop stands still.
    stalled: bool,
    renewed: Nanos,
    /// It is elsewhere, takes ahead, and comes back; 0: it is not.
    client: u128,
    /// The tickets of its offers, in order.
    tickets: Vec<Ticket>,
}

struct Life {
    core: Core,
    limits: Limits,
    prepare: fn(&mut Core),
    dice: Dice,
    /// Which sessions are elsewhere.
    afar: Dice,
    at: Moment,
    trace: Trace,
    seen: Seen,
    epoch: u32,
    /// Where each life began.
    epochs: BTreeMap<u64, u32>,
    next: u64,
    /// What is written, and how far it is synced.
    written: BTreeMap<u64, Record>,
    synced: u64,
    pending: Vec<Outgoing>,
    unanswered: Vec<(Ticket, u64, Level)>,
    reads: Vec<Read>,
    snapshot: Option<(u64, Vec<u8>)>,
    peers: Vec<Peer>,
    agents: Vec<Agent>,
    held: BTreeMap<LeaseId, Held>,
    events: Vec<Event>,
    tickets: BTreeMap<Ticket, usize>,
    /// Of each group: where it starts, once that is written.
    starts: BTreeMap<usize, u64>,
    numbers: BTreeMap<u32, usize>,
    standing: BTreeMap<(usize, usize), Standing>,
    redrives: BTreeMap<Ticket, (usize, usize)>,
}

/// Runs one seed of the log's world to its end, or to the first promise that is broken.
pub fn simulate_life(seed: u64, setup: Setup) -> Run {
    let mut dice = Dice::new(seed ^ 0x10_6000);
    let limits = draw_limits(&mut dice);
    let mut life = Life::new(dice, limits, setup);
    let ended = catch_unwind(AssertUnwindSafe(|| life.live()));
    let ended = ended.unwrap_or_else(|_| broken("NO-PANIC", "the engine panicked"));
    Run {
        seed,
        hash: life.trace.hash,
        seen: life.seen,
        violation: ended.err(),
        lines: life.trace.lines.unwrap_or_default(),
    }
}

fn draw_limits(dice: &mut Dice) -> Limits {
    Limits {
        queue_items: dice.count(1, 6),
        max_deliver: dice.count(2, 5),
        lease_ms: dice.between(50, 500),
        redeliver_base_ms: dice.between(5, 50),
        redeliver_cap_seconds: 1,
        ack_batch: dice.count(1, 6),
        ack_delay_ms: dice.between(1, 40),
        consumer_open: dice.count(3, 40),
        read_events: dice.count(1, 5),
        resume_grace_ms: 300,
        ..Limits::default()
    }
}

fn refusal() -> Error {
    Error {
        code: Code::Exhausted,
        message: "the disk is full".to_owned(),
        field: Some("data".to_owned()),
        limit: None,
        hint: None,
        retry_after_ms: None,
    }
}

fn hears(group: usize, topic: &str) -> bool {
    let filters = GROUPS.get(group).map_or(&[][..], |(_, filters)| filters);
    filters
        .iter()
        .any(|filter| crate::sub::hears(filter, topic))
}

impl Life {
    fn new(dice: Dice, limits: Limits, setup: Setup) -> Self {
        let core = Core::new(limits.clone(), 1);
        Self {
            core,
            limits,
            prepare: setup.prepare,
            afar: dice.apart(0x0061_6661_7220_6261),
            dice,
            at: Moment {
                now: Nanos(1_000_000),
                wall_ms: 1_800_000_000_000,
            },
            trace: Trace::new(setup.traced),
            seen: Seen::default(),
            epoch: 0,
            epochs: BTreeMap::new(),
            next: 1,
            written: BTreeMap::new(),
            synced: 1,
            pending: Vec::new(),
            unanswered: Vec::new(),
            reads: Vec::new(),
            snapshot: None,
            peers: Vec::new(),
            agents: Vec::new(),
            held: BTreeMap::new(),
            events: Vec::new(),
            tickets: BTreeMap::new(),
            starts: BTreeMap::new(),
            numbers: BTreeMap::new(),
            standing: BTreeMap::new(),
            redrives: BTreeMap::new(),
        }
    }

    fn note(&mut self, line: impl Into<String>) {
        self.trace.note(line.into());
    }

    fn live(&mut self) -> Check {
        self.start()?;
        self.attach();
        for _ in 0..2 {
            self.register()?;
        }
        let steps = self.dice.between(60, 350);
        for _ in 0..steps {
            self.act()?;
            self.look()?;
        }
        self.settle()?;
        self.all_leave()
    }

    fn act(&mut self) -> Check {
        match self.dice.between(0, 99) {
            0..=1 => {
                self.attach();
                Ok(())
            }
            2..=4 => self.register(),
            5 => self.close_one(),
            6 => self.remove_one(),
            7..=8 => self.turn_health(),
            9..=30 => self.publish(),
            31..=47 => self.take_one(),
            48..=58 => self.end_one(),
            59..=61 => self.say_one(),
            62..=75 => self.write_some(),
            76..=83 => self.answer_some(),
            84..=87 => self.feed_one(),
            88..=93 => self.pass_some(),
            94 => self.redrive_one(),
            95 => {
                self.toggle_stall();
                Ok(())
            }
            96 => {
                self.take_snapshot();
                Ok(())
            }
            97..=98 => self.restart(),
            _ => {
                self.core.flush_acks();
                Ok(())
            }
        }
    }

    // The log.

    /// A new life from what is written.
    fn start(&mut self) -> Check {
        self.epoch += 1;
        let mut core = Core::new(self.limits.clone(), u64::from(self.epoch));
        (self.prepare)(&mut core);
        self.core = core;
        let epoch = Record::Epoch(loom_core::record::Epoch {
            epoch: self.epoch,
            at_ms: self.at.wall_ms,
            ..Default::default()
        });
        self.epochs.insert(self.next, self.epoch);
        self.written.insert(self.next, epoch);
        self.next += 1;
        self.synced = self.next;
        let (from, mut folded) = match &self.snapshot {
            Some((end, bytes)) if *end < self.next => {
                let Ok(folded) = Partition::restore(bytes, &self.limits) else {
                    return broken("DUR-FOLD", "a snapshot was not read back");
                };
                (*end, folded)
            }
            _ => (0, Partition::new(&self.limits)),
        };
        for (n, record) in self.written.range(from..) {
            folded.apply(self.position(*n), record);
        }
        let whole = self.fold();
        ensure(folded.hash() == whole.hash(), "DUR-FOLD", || {
            let show = |part: &Partition| {
                let consumers: Vec<_> = part.consumers().collect();
                format!(
                    "{} {} {} {consumers:?}",
                    part.end(),
                    part.epoch(),
                    part.clock_ms()
                )
            };
            let (a, b) = (show(&folded), show(&whole));
            format!("the fold from a snapshot at {from} is another one: {a} and not {b}")
        })?;
        let opened = Opened {
            partition: 1,
            epoch: self.epoch,
            oldest: 0,
            kept: true,
            how: Durability {
                filters: vec!["d.>".to_owned()],
                ..Durability::default()
            },
        };
        let at = self.at;
        let done = self.core.open_partition("n", opened, folded, at);
        ensure(done.is_ok(), "BAD-INPUT", || format!("{done:?}"))
    }

    fn fold(&self) -> Partition {
        let mut whole = Partition::new(&self.limits);
        for (n, record) in &self.written {
            whole.apply(self.position(*n), record);
        }
        whole
    }

    fn position(&self, n: u64) -> Position {
        let epoch = self.epochs.range(..=n).next_back();
        Position {
            partition: 1,
            epoch: epoch.map_or(self.epoch, |(_, epoch)| *epoch),
            n,
        }
    }

    fn collect(&mut self) {
        self.pending.extend(self.core.take_records());
        self.reads.extend(self.core.take_reads());
    }

    fn write_some(&mut self) -> Check {
        self.collect();
        if self.dice.chance(4) {
            self.note("refuse all");
            for out in std::mem::take(&mut self.pending) {
                self.refuse(&out)?;
            }
            return Ok(());
        }
        let count = self.dice.count(0, self.pending.len());
        for out in self.pending.drain(..count).collect::<Vec<_>>() {
            self.write(out);
        }
        if self.dice.chance(60) {
            self.synced = self.next;
        }
        Ok(())
    }

    fn refuse(&mut self, out: &Outgoing) -> Check {
        let Some(ticket) = out.ticket else {
            return Ok(());
        };
        for record in &out.batch {
            if let Record::Dead(it) = record {
                self.not_dead(it.consumer, it.n);
            }
        }
        if let Some(event) = self.tickets.get(&ticket).copied()
            && let Some(event) = self.events.get_mut(event)
        {
            event.dedup = None;
        }
        self.core.refused(ticket, refusal(), self.at);
        Ok(())
    }

    /// The log did not take that an event is given up: it comes again, and fails again.
    fn not_dead(&mut self, consumer: u32, n: u64) {
        self.stands(consumer, n, (false, false));
    }

    /// Notes whether an event is done at a group, and whether it is dead.
    fn stands(&mut self, consumer: u32, n: u64, how: (bool, bool)) {
        let group = self.numbers.get(&consumer).copied();
        let event = self.events.iter().position(|event| event.n == Some(n));
        if let (Some(group), Some(event)) = (group, event) {
            let standing = self.standing.entry((group, event)).or_default();
            (standing.done, standing.dead) = how;
        }
    }

    fn write(&mut self, out: Outgoing) {
        let first = self.next;
        for record in out.batch {
            self.book_record(self.next, out.ticket, &record);
            self.written.insert(self.next, record);
            self.next += 1;
        }
        self.note(format!("write {first} {:?} {:?}", out.ticket, out.level));
        if let Some(ticket) = out.ticket {
            self.unanswered.push((ticket, first, out.level));
        }
        // Positions have gaps.
        self.next += self.dice.between(0, 2);
    }

    /// What the book learns from a record that is written.
    fn book_record(&mut self, n: u64, ticket: Option<Ticket>, record: &Record) {
        match record {
            Record::Event(env) => {
                if let Some(event) = ticket.and_then(|ticket| self.tickets.get(&ticket)) {
                    if let Some(event) = self.events.get_mut(*event) {
                        event.n = Some(n);
                    }
                } else if let Some(only) = env.extra.as_ref().and_then(|extra| extra.only)
                    && let Some(group) = self.numbers.get(&only).copied()
                {
                    self.book_redriven(n, group, env);
                }
            }
            Record::Dead(it) => self.stands(it.consumer, it.n, (true, true)),
            Record::Redriven(it) => self.stands(it.consumer, it.n, (true, false)),
            Record::Consumer(it) => {
                let group = GROUPS.iter().position(|(name, _)| *name == it.group);
                if let Some(group) = group {
                    self.starts.entry(group).or_insert(n);
                    self.numbers.insert(it.consumer, group);
                }
            }
            _ => {}
        }
    }

    fn book_redriven(&mut self, n: u64, group: usize, env: &Arc<Envelope>) {
        let Some(first) = crate::event::read_tag(b'D', &env.payload) else {
            return;
        };
        let Some((topic, lane)) = self.events.get(first).map(|it| (it.topic, it.lane)) else {
            return;
        };
        self.events.push(Event {
            topic,
            lane,
            dedup: None,
            ticket: None,
            n: Some(n),
            answered: false,
            only: Some(group),
        });
    }

    fn answer_some(&mut self) -> Check {
        for _ in 0..self.dice.between(1, 4) {
            let synced = self.synced;
            let ready: Vec<usize> = self
                .unanswered
                .iter()
                .enumerate()
                .filter(|(_, (_, n, level))| *level != Level::Disk || *n < synced)
                .map(|(at, _)| at)
                .collect();
            let first = self.dice.chance(70);
            let at = if first {
                ready.first().copied()
            } else {
                self.dice.pick(&ready)
            };
            let Some(at) = at else { return Ok(()) };
            self.answer(at);
        }
        Ok(())
    }

    fn answer(&mut self, at: usize) {
        let (ticket, n, _) = self.unanswered.remove(at);
        self.note(format!("answer {ticket:?} {n}"));
        let first = self.position(n);
        for event in &mut self.events {
            // A redriven event is the second record of its batch.
            if event.n == Some(n) || (event.only.is_some() && event.n == Some(n + 1)) {
                event.answered = true;
            }
        }
        self.core.logged(ticket, first, self.at);
        self.collect();
    }

    fn feed_one(&mut self) -> Check {
        self.collect();
        if self.reads.is_empty() {
            return Ok(());
        }
        let at = self.dice.count(0, self.reads.len() - 1);
        let read = self.reads.remove(at);
        let mut events = Vec::new();
        let mut next = read.from;
        for (n, record) in self.written.range(read.from..) {
            next = n + 1;
            if let Record::Event(env) = record {
                events.push((self.position(*n), Arc::clone(env)));
            }
            if events.len() >= read.most {
                break;
            }
        }
        self.note(format!(
            "read {} from {}: {}",
            read.token,
            read.from,
            events.len()
        ));
        let fed = Fed {
            token: read.token,
            events,
            next,
            at_end: next >= self.next,
        };
        self.core.fed(fed, self.at);
        Ok(())
    }

    fn take_snapshot(&mut self) {
        if let Some(part) = self.core.partition(1) {
            let (end, bytes) = (part.end(), part.snapshot());
            // One that knows more than what is synced could survive what it knows.
            if end <= self.synced {
                self.snapshot = Some((end, bytes));
            }
        }
    }

    /// The process ends, or the power goes; what is left starts again.
    fn restart(&mut self) -> Check {
        let power = self.dice.chance(30);
        if power {
            let cut = self.dice.between(self.synced, self.next);
            drop(self.written.split_off(&cut));
            self.note(format!("the power goes, {cut} of {} is left", self.next));
        } else {
            self.note("killed");
        }
        self.pending.clear();
        self.unanswered.clear();
        self.reads.clear();
        self.peers.clear();
        self.agents.clear();
        self.held.clear();
        self.redrives.clear();
        self.tickets.clear();
        self.book_restart();
        self.start()?;
        self.attach();
        Ok(())
    }

    /// What the book makes of what is left: by reading the records itself.
    fn book_restart(&mut self) {
        let left = |n: u64| self.written.contains_key(&n);
        self.events.iter_mut().for_each(|event| {
            event.ticket = None;
            if event.n.is_none_or(|n| !left(n)) {
                event.n = None;
                event.dedup = None;
            }
            event.answered = event.n.is_some();
        });
        self.starts.retain(|_, n| self.written.contains_key(n));
        let mut acked: BTreeSet<(u32, u64)> = BTreeSet::new();
        let mut dead: BTreeSet<(u32, u64)> = BTreeSet::new();
        let mut begun: BTreeMap<(u32, u64), Vec<u32>> = BTreeMap::new();
        let mut waits: BTreeMap<(u32, u64), u64> = BTreeMap::new();
        let mut clients: BTreeMap<(u32, u64), Vec<u8>> = BTreeMap::new();
        let mut live: BTreeSet<u32> = BTreeSet::new();
        for record in self.written.values() {
            match record {
                Record::Consumer(it) => drop(live.insert(it.consumer)),
                Record::Progress(it) => acked.extend(it.acked.iter().map(|n| (it.consumer, *n))),
                Record::Dead(it) => drop(dead.insert((it.consumer, it.n))),
                Record::Redriven(it) => drop(dead.remove(&(it.consumer, it.n))),
                Record::Started(it) => {
                    begun
                        .entry((it.consumer, it.n))
                        .or_default()
                        .push(it.attempt);
                    waits.remove(&(it.consumer, it.n));
                    clients.insert((it.consumer, it.n), it.client.clone());
                }
                Record::Waits(it) => {
                    waits.insert((it.consumer, it.n), it.until_ms);
                    clients.remove(&(it.consumer, it.n));
                }
                _ => {}
            }
        }
        let dead_ever: BTreeSet<(u32, u64)> = self
            .written
            .values()
            .filter_map(|record| match record {
                Record::Dead(it) => Some((it.consumer, it.n)),
                _ => None,
            })
            .collect();
        self.numbers.retain(|number, _| live.contains(number));
        let places: Vec<Option<u64>> = self.events.iter().map(|event| event.n).collect();
        let numbers = self.numbers.clone();
        self.standing
            .retain(|(_, event), _| places.get(*event).is_some_and(Option::is_some));
        for ((group, event), standing) in &mut self.standing {
            let Some(n) = places.get(*event).copied().flatten() else {
                continue;
            };
            let number = numbers.iter().find(|(_, other)| *other == group);
            let key = (number.map_or(0, |(number, _)| *number), n);
            let known = begun.get(&key);
            standing
                .handed
                .retain(|attempt| known.is_some_and(|all| all.contains(attempt)));
            standing.done = acked.contains(&key) || dead_ever.contains(&key);
            standing.dead = dead.contains(&key);
            standing.until_ms = waits.get(&key).copied().unwrap_or(0);
            let client = clients
                .get(&key)
                .and_then(|it| it.as_slice().try_into().ok());
            let until = self.at.wall_ms + self.limits.resume_grace_ms;
            standing.grace = client.map(|it| (until, u128::from_be_bytes(it)));
        }
    }

    // Those who use it.

    fn attach(&mut self) {
        if self.peers.iter().filter(|peer| peer.live).count() >= 4 {
            return;
        }
        let client = self.draw_client();
        let attach = Attach {
            namespace: "n",
            name: "app",
            client,
            ..Attach::default()
        };
        if let Ok(id) = self.core.attach_as(attach) {
            self.peers.push(Peer {
                id,
                client,
                live: true,
                stalled: false,
                renewed: self.at.now,
                tickets: Vec::new(),
            });
        }
    }

    /// One of a few clients that is not attached now; 0: the session is none of a client.
    fn draw_client(&mut self) -> u128 {
        let client = u128::from(self.afar.between(0, 4));
        let known = |peer: &Peer| peer.live && peer.client == client;
        if client > 3 || self.peers.iter().any(known) {
            return 0;
        }
        client
    }

    fn some_peer(&mut self) -> Option<usize> {
        let live = self.peers.iter().enumerate().filter(|(_, peer)| peer.live);
        let live: Vec<usize> = live.map(|(at, _)| at).collect();
        self.dice.pick(&live)
    }

    fn session(&self, peer: usize) -> SessionId {
        self.peers.get(peer).map_or(SessionId(0), |peer| peer.id)
    }

    fn register(&mut self) -> Check {
        let Some(session) = self.some_peer() else {
            return Ok(());
        };
        let group = self.dice.count(0, GROUPS.len() - 1);
        let Some((name, filters)) = GROUPS.get(group) else {
            return Ok(());
        };
        let known = |agent: &Agent| agent.session == session && agent.group == group;
        if self.agents.iter().any(known) {
            return Ok(());
        }
        let spec = AgentSpec {
            name,
            filters,
            group: "",
            concurrency: u32::try_from(self.dice.between(1, 3)).unwrap_or(1),
            qos: Qos::Batched,
            info: b"{}",
            start: Start::Now,
            max_deliver: 0,
            exclusive: false,
        };
        let id = self.session(session);
        let handle = self.core.register(id, &spec, self.at);
        self.note(format!("register {name} at {session}: {handle:?}"));
        let Ok(handle) = handle else {
            return broken("BAD-INPUT", format!("{name} was refused: {handle:?}"));
        };
        let client = self.peers.get(session).map_or(0, |peer| peer.client);
        for ((other, _), standing) in &mut self.standing {
            if *other == group && standing.grace.is_some_and(|(_, it)| it == client) {
                standing.grace = None;
                self.seen.note("client back for its turns");
            }
        }
        self.agents.push(Agent {
            session,
            handle,
            group,
            health: Health::Up,
        });
        Ok(())
    }

    fn close_one(&mut self) -> Check {
        let Some(at) = self.some_peer() else {
            return Ok(());
        };
        self.note(format!("close {at}"));
        let id = self.session(at);
        self.core.close(id, self.at);
        if let Some(peer) = self.peers.get_mut(at) {
            peer.live = false;
        }
        self.agents.retain(|agent| agent.session != at);
        self.held.retain(|_, held| held.session != at);
        if self.peers.iter().all(|peer| !peer.live) {
            self.attach();
        }
        Ok(())
    }

    fn remove_one(&mut self) -> Check {
        if self.agents.is_empty() {
            return Ok(());
        }
        let at = self.dice.count(0, self.agents.len() - 1);
        let agent = self.agents.remove(at);
        let id = self.session(agent.session);
        self.note(format!("remove {:?}", agent.handle));
        let done = self.core.remove(id, agent.handle, self.at);
        ensure(done.is_ok(), "LEASE-FENCED", || format!("{done:?}"))
    }

    fn turn_health(&mut self) -> Check {
        if self.agents.is_empty() {
            return Ok(());
        }
        let at = self.dice.count(0, self.agents.len() - 1);
        let to = self
            .dice
            .pick(&[Health::Up, Health::Restarting, Health::Quarantined]);
        let Some(agent) = self.agents.get_mut(at) else {
            return Ok(());
        };
        agent.health = to.unwrap_or_default();
        let (session, handle, health) = (agent.session, agent.handle, agent.health);
        self.note(format!("{handle:?} is {health:?}"));
        let id = self.session(session);
        let done = self.core.set_state(id, handle, health, self.at);
        ensure(done.is_ok(), "LEASE-FENCED", || format!("{done:?}"))
    }

    fn publish(&mut self) -> Check {
        let Some(at) = self.some_peer() else {
            return Ok(());
        };
        let session = self.session(at);
        let Ok(sender) = self.core.root(session) else {
            return broken("LEASE-FENCED", "a live session has no root");
        };
        let again = self.dice.chance(12);
        let known: Vec<usize> = self
            .events
            .iter()
            .enumerate()
            .filter(|(_, event)| event.dedup.is_some())
            .map(|(at, _)| at)
            .collect();
        let first = self.dice.pick(&known).filter(|_| again);
        let new = self.events.len();
        let changed = first.is_some() && self.dice.chance(30);
        let (topic, lane, dedup, tag) =
            if let Some(event) = first.and_then(|at| self.events.get(at)) {
                let tag = if changed {
                    new + 1_000_000
                } else {
                    first.unwrap_or_default()
                };
                (event.topic, event.lane, event.dedup.clone(), tag)
            } else {
                let dedup = self
                    .dice
                    .chance(20)
                    .then(|| format!("id-{new}-{}", self.epoch));
                (self.dice.word(TOPICS), self.dice.word(LANES), dedup, new)
            };
        let options = Options {
            key: Some(lane.to_owned()),
            dedup: dedup.clone(),
            ..Options::default()
        };
        let offer = self.core.offer(
            session,
            Publish {
                sender,
                turn: None,
                topic,
                payload: crate::event::tag(b'D', tag, 9),
                qos: self
                    .dice
                    .pick(&[Qos::Batched, Qos::Background])
                    .unwrap_or(Qos::Batched),
                options: Some(Box::new(options)),
                ack: None,
                eager: false,
            },
            self.at,
        );
        self.note(format!("publish {tag} {topic} {lane} {dedup:?}: {offer:?}"));
        if let Some(first) = first {
            return self.published_again(first, changed, offer);
        }
        let Ok(Offer::Logging(ticket)) = offer else {
            return broken(
                "DUR-LEVEL",
                format!("event {new} was not logged: {offer:?}"),
            );
        };
        self.events.push(Event {
            topic,
            lane,
            dedup,
            ticket: Some(ticket),
            n: None,
            answered: false,
            only: None,
        });
        self.tickets.insert(ticket, new);
        if let Some(peer) = self.peers.get_mut(at) {
            peer.tickets.push(ticket);
        }
        self.collect();
        Ok(())
    }

    /// A second publish with an id that is known.
    fn published_again(
        &mut self,
        first: usize,
        changed: bool,
        offer: loom_core::Result<Offer>,
    ) -> Check {
        let n = self.events.get(first).and_then(|event| event.n);
        match offer {
            Err(error) => ensure(
                changed && error.code == Code::Conflict,
                "DEDUP-ONCE",
                || format!("event {first} again: {error}"),
            ),
            Ok(Offer::Done(receipt)) => {
                self.seen.note("id known");
                let same = receipt.position.map(|position| position.n) == n;
                ensure(same && !changed, "DEDUP-ONCE", || {
                    format!("event {first} is at {n:?}, its second publish is told {receipt:?}")
                })
            }
            Ok(Offer::Logging(_)) => {
                // Its first is with the log.
                let flying = self.events.get(first).is_some_and(|event| !event.answered)
                    || self
                        .unanswered
                        .iter()
                        .any(|(_, before, _)| Some(*before) < n);
                let mut flies = self.pending.iter();
                let fresh = flies.any(|out| {
                    out.batch.iter().any(|record| {
                        matches!(record, Record::Event(env)
                        if crate::event::read_tag(b'D', &env.payload) == Some(first))
                    })
                });
                self.collect();
                ensure(!changed && (flying || fresh), "DEDUP-ONCE", || {
                    format!("event {first} was logged twice")
                })
            }
            Ok(other) => broken("DEDUP-ONCE", format!("event {first} again: {other:?}")),
        }
    }

    fn take_one(&mut self) -> Check {
        if self.agents.is_empty() {
            return Ok(());
        }
        let at = self.dice.count(0, self.agents.len() - 1);
        self.take(at, None).map(|_| ())
    }

    fn take(&mut self, at: usize, done: Option<LeaseId>) -> Check<bool> {
        let Some(agent) = self.agents.get(at) else {
            return Ok(false);
        };
        let (session, handle, group) = (agent.session, agent.handle, agent.group);
        if self.peers.get(session).is_none_or(|peer| peer.stalled) {
            return Ok(false);
        }
        let id = self.session(session);
        let client = self.peers.get(session).map_or(0, |peer| peer.client);
        let given = if client > 0 {
            let ended = done.map_or(Ok(()), |lease| self.core.done(id, lease, self.at));
            let given = ended.and_then(|()| self.core.take_ahead(id, handle, self.at));
            given.map(|it| it.map(|(delivery, _)| delivery))
        } else {
            self.core.take(id, handle, done, self.at)
        };
        if let Some(lease) = done {
            self.ended(lease, None);
        }
        let Ok(given) = given else {
            return broken("LEASE-FENCED", format!("{given:?}"));
        };
        let Some(given) = given else {
            return Ok(false);
        };
        if let Some(peer) = self.peers.get_mut(session) {
            peer.renewed = self.at.now;
        }
        self.collect();
        self.handed((session, group), &given)?;
        Ok(true)
    }

    /// Whether an event is for a group.
    fn is_for(&self, group: usize, event: &Event) -> bool {
        let start = self.starts.get(&group);
        match event.only {
            Some(only) => only == group,
            None => hears(group, event.topic) && start.is_some_and(|start| event.n > Some(*start)),
        }
    }

    fn handed(&mut self, (session, group): (usize, usize), given: &loom_core::Delivery) -> Check {
        let env = &given.envelope;
        let n = env.position.map(|position| position.n);
        let found = self
            .events
            .iter()
            .position(|event| event.n.is_some() && event.n == n);
        let (Some(index), Some(lease)) = (found, given.lease) else {
            return broken(
                "TICKETS-ORDERED",
                format!("{env:?} came, and is not in the log"),
            );
        };
        self.note(format!(
            "{lease:?} event {index} to {group}, attempt {}",
            given.attempt
        ));
        let Some(event) = self.events.get(index) else {
            return Ok(());
        };
        ensure(event.answered, "TICKETS-ORDERED", || {
            format!("event {index} came before the log had answered")
        })?;
        ensure(self.is_for(group, event), "TOPIC-MATCH", || {
            format!("event {index} came to group {group}")
        })?;
        let lane = event.lane;
        let number = self.numbers.iter().find(|(_, other)| **other == group);
        let number = number.map_or(0, |(number, _)| *number);
        let noted = self.written.values().any(|record| {
            matches!(record, Record::Started(it)
                if it.consumer == number && Some(it.n) == n && it.attempt == given.attempt)
        });
        ensure(noted, "DUR-STARTED", || {
            format!("attempt {} of event {index} was not noted", given.attempt)
        })?;
        // No turn of this lane goes on whose lease holds.
        let same = self.held.values().find(|held| {
            held.group == group
                && self
                    .events
                    .get(held.event)
                    .is_some_and(|it| it.lane == lane)
        });
        ensure(same.is_none(), "LANE-ORDER", || {
            format!(
                "event {index} came while event {:?} of its lane goes on",
                same.map(|it| it.event)
            )
        })?;
        // All before it in its lane are done.
        let earlier = self.events.iter().enumerate().find(|(at, other)| {
            other.n.is_some()
                && other.n < n
                && other.lane == lane
                && other.answered
                && self.is_for(group, other)
                && !self.standing.get(&(group, *at)).is_some_and(|it| it.done)
                && !self.is_given_up(group, *at)
        });
        ensure(earlier.is_none(), "LANE-ORDER", || {
            format!(
                "event {index} came before {:?} of its lane",
                earlier.map(|(at, _)| at)
            )
        })?;
        let (wall, most) = (self.at.wall_ms, self.limits.max_deliver);
        let standing = self.standing.entry((group, index)).or_default();
        ensure(!standing.done, "DUR-ACK", || {
            format!("event {index} was done, and came again")
        })?;
        ensure(standing.until_ms <= wall, "DUR-RETRY", || {
            format!(
                "event {index} came {} ms too early",
                standing.until_ms - wall
            )
        })?;
        let client = self.peers.get(session).map_or(0, |peer| peer.client);
        standing.check_grace(client, wall)?;
        let last = standing.handed.iter().max().copied().unwrap_or(0);
        ensure(
            given.attempt > last && given.attempt as usize <= most,
            "DUR-RESTART",
            || {
                format!(
                    "attempt {} of event {index} came after attempt {last}",
                    given.attempt
                )
            },
        )?;
        self.seen.note_if("durable event again", last > 0);
        standing.handed.push(given.attempt);
        let held = Held {
            session,
            group,
            event: index,
            attempt: given.attempt,
            acked: false,
            delay_ms: None,
            since: self.at.now,
        };
        self.held.insert(lease, held);
        Ok(())
    }

    /// What the book notes when a turn has ended.
    fn ended(&mut self, lease: LeaseId, failed: Option<Code>) {
        let Some(held) = self.held.remove(&lease) else {
            return;
        };
        let most = u32::try_from(self.limits.max_deliver).unwrap_or(u32::MAX);
        let (wall, base) = (self.at.wall_ms, self.limits.redeliver_base_ms);
        let standing = self.standing.entry((held.group, held.event)).or_default();
        if held.acked {
            return;
        }
        match (held.delay_ms, failed) {
            (Some(delay), _) => standing.until_ms = wall + delay,
            (None, None) => standing.done = true,
            (None, Some(code)) => {
                if code == Code::InvalidParams || held.attempt >= most {
                    (standing.done, standing.dead) = (true, true);
                } else {
                    let pause = (base << (held.attempt - 1)).min(1_000);
                    standing.until_ms = wall + pause - pause / 4;
                }
            }
        }
    }

    fn some_held(&mut self) -> Option<LeaseId> {
        let moving = |held: &Held| {
            self.peers
                .get(held.session)
                .is_some_and(|peer| !peer.stalled)
        };
        let held = self.held.iter().filter(|(_, held)| moving(held));
        let held: Vec<LeaseId> = held.map(|(lease, _)| *lease).collect();
        self.dice.pick(&held)
    }

    fn end_one(&mut self) -> Check {
        let Some(lease) = self.some_held() else {
            return Ok(());
        };
        let fails = self.dice.chance(35);
        self.end(lease, fails)
    }

    fn end(&mut self, lease: LeaseId, fails: bool) -> Check {
        let Some(held) = self.held.get(&lease) else {
            return Ok(());
        };
        let (session, group) = (held.session, held.group);
        let id = self.session(session);
        let own = |agent: &Agent| agent.session == session && agent.group == group;
        let agent = self.agents.iter().position(own);
        if !fails && let Some(agent) = agent {
            self.note(format!("end {lease:?}"));
            return self.take(agent, Some(lease)).map(|_| ());
        }
        let code = self
            .dice
            .pick(&[Code::HandlerError, Code::ToolError, Code::InvalidParams]);
        let code = code.unwrap_or(Code::HandlerError);
        let fault = Fault {
            lease,
            code,
            detail: br#"{"message":"no"}"#,
        };
        let done = self.core.fail(id, fault, self.at);
        self.note(format!("fail {lease:?} {code:?}: {done:?}"));
        ensure(done.is_ok(), "LEASE-FENCED", || {
            format!("{lease:?}: {done:?}")
        })?;
        self.ended(lease, Some(code));
        self.collect();
        Ok(())
    }

    /// A turn says something of its event while it goes on.
    fn say_one(&mut self) -> Check {
        let Some(lease) = self.some_held() else {
            return Ok(());
        };
        let Some(held) = self.held.get(&lease) else {
            return Ok(());
        };
        let (id, key, was) = (
            self.session(held.session),
            (held.group, held.event),
            held.acked,
        );
        let what = self.dice.between(0, 3);
        let delay = self.dice.between(0, 100);
        let done = match what {
            0 => self.core.ack(id, lease, self.at),
            1 => self.core.nak(id, lease, delay),
            2 => self.core.extend(id, lease, self.at),
            _ => self.core.term(id, lease, "no use", self.at),
        };
        self.note(format!("say {what} of {lease:?}: {done:?}"));
        ensure(
            done.as_ref().is_ok_and(|done| *done != was),
            "DUR-ACK",
            || format!("{what} of {lease:?}: {done:?}"),
        )?;
        let now = self.at.now;
        if let Some(held) = self.held.get_mut(&lease).filter(|_| !was) {
            match what {
                1 => held.delay_ms = Some(delay),
                2 => held.since = now,
                _ => held.acked = true,
            }
            if what != 1 && what != 2 {
                let standing = self.standing.entry(key).or_default();
                (standing.done, standing.dead) = (true, what == 3);
            }
        }
        self.collect();
        Ok(())
    }

    fn toggle_stall(&mut self) {
        if let Some(at) = self.some_peer()
            && let Some(peer) = self.peers.get_mut(at)
        {
            peer.stalled = !peer.stalled;
            let stalled = peer.stalled;
            self.note(format!("{at} stalled: {stalled}"));
        }
    }

    fn pass_some(&mut self) -> Check {
        let millis = match self.dice.between(0, 9) {
            0..=5 => self.dice.between(0, 10),
            6..=8 => self.dice.between(10, 120),
            _ => self.dice.between(100, 1_500),
        };
        self.pass(millis)
    }

    /// Time passes in small steps: loops that move say so.
    fn pass(&mut self, millis: u64) -> Check {
        self.note(format!("pass {millis}"));
        let mut left = millis;
        while left > 0 {
            let step = left.min(self.limits.lease_ms / 4).max(1);
            left -= step.min(left);
            self.at.now = self.at.now.plus_millis(step);
            self.at.wall_ms += step;
            for peer in self
                .peers
                .iter_mut()
                .filter(|peer| peer.live && !peer.stalled)
            {
                self.core.renew(peer.id, self.at);
                peer.renewed = self.at.now;
            }
            self.tick();
            self.lapse()?;
        }
        Ok(())
    }

    fn tick(&mut self) {
        for _ in 0..64 {
            let next = self.core.tick(self.at);
            if next.is_none_or(|next| next > self.at.now) {
                break;
            }
        }
        self.collect();
    }

    /// Leases of those who stand still lapse, and no others.
    fn lapse(&mut self) -> Check {
        let wait = self.limits.lease_ms;
        let mut gone = Vec::new();
        for (lease, held) in &self.held {
            let renewed = self
                .peers
                .get(held.session)
                .map_or(held.since, |peer| peer.renewed);
            if held.since.max(renewed).plus_millis(wait) <= self.at.now {
                gone.push(*lease);
            }
        }
        for lease in gone {
            self.seen.note("lease lapsed");
            self.held.remove(&lease);
        }
        for (lease, held) in &self.held {
            let id = self.session(held.session);
            let known = self.core.extend(id, *lease, self.at);
            ensure(known.is_ok(), "DUR-LEASE", || {
                format!("{lease:?} lapsed while its loop moves: {known:?}")
            })?;
        }
        let now = self.at.now;
        for held in self.held.values_mut() {
            held.since = now;
        }
        Ok(())
    }

    fn redrive_one(&mut self) -> Check {
        let Some(at) = self.some_peer() else {
            return Ok(());
        };
        let dead = self.core.dead("n");
        let Some(letter) = self.dice.pick(&dead) else {
            return Ok(());
        };
        let Some(group) = self.numbers.get(&letter.consumer).copied() else {
            return broken("DLQ-AFTER-MAX", format!("nobody gave {letter:?} up"));
        };
        let event = self
            .events
            .iter()
            .position(|event| event.n == Some(letter.n));
        let under_way = self
            .redrives
            .values()
            .any(|it| Some(*it) == event.map(|event| (group, event)));
        let id = self.session(at);
        let given = self.core.redrive(id, (letter.consumer, letter.n), None);
        self.note(format!("redrive {letter:?}: {given:?}"));
        self.collect();
        match given {
            Ok(ticket) => {
                ensure(!under_way, "DLQ-REDRIVE", || {
                    format!("{letter:?} is redriven twice")
                })?;
                self.seen.note("dead event redriven");
                if let Some(event) = event {
                    self.redrives.insert(ticket, (group, event));
                }
                Ok(())
            }
            Err(error) => ensure(
                under_way && error.code == Code::Conflict,
                "DLQ-REDRIVE",
                || format!("{letter:?} was not redriven: {error}"),
            ),
        }
    }

    // What must hold.

    fn drain(&mut self) -> Check {
        for at in 0..self.peers.len() {
            let Some(peer) = self.peers.get(at).filter(|peer| peer.live) else {
                continue;
            };
            let Ok(notices) = self.core.drain(peer.id, usize::MAX) else {
                return broken("LEASE-FENCED", "drain was refused");
            };
            for notice in notices {
                self.read_notice(at, &notice)?;
            }
        }
        Ok(())
    }

    fn read_notice(&mut self, at: usize, notice: &Notice) -> Check {
        let (ticket, receipt) = match notice {
            Notice::Accepted(ticket, receipt) => (*ticket, Some(receipt)),
            Notice::Refused(ticket, _) => (*ticket, None),
            _ => return Ok(()),
        };
        if self.redrives.remove(&ticket).is_some() {
            return Ok(());
        }
        let Some(index) = self.tickets.get(&ticket).copied() else {
            return Ok(());
        };
        let own = self.peers.get_mut(at);
        let first = own.map(|peer| peer.tickets.iter().position(|other| *other == ticket));
        ensure(first == Some(Some(0)), "TICKETS-ORDERED", || {
            format!("{ticket:?} was answered before those ahead of it")
        })?;
        if let Some(peer) = self.peers.get_mut(at) {
            peer.tickets.remove(0);
        }
        let Some(event) = self.events.get_mut(index) else {
            return Ok(());
        };
        match receipt {
            Some(receipt) => ensure(
                event.answered && receipt.position.map(|p| p.n) == event.n,
                "DUR-LEVEL",
                || {
                    format!(
                        "event {index} is at {:?}, its publisher is told {receipt:?}",
                        event.n
                    )
                },
            ),
            None => {
                event.dedup = None;
                ensure(event.n.is_none(), "DUR-LEVEL", || {
                    format!("event {index} is in the log, and was refused")
                })
            }
        }
    }

    fn look(&mut self) -> Check {
        self.drain()?;
        let audit = self.core.audit();
        ensure(audit.balanced, "CONSERVATION", || {
            let logs = serde_json::to_string(&self.core.stats().logs).unwrap_or_default();
            format!("{logs} {:?}", audit.subscriptions)
        })
    }

    /// Everything is taken and ends well; then nothing is missing.
    fn settle(&mut self) -> Check {
        self.note("settle");
        for at in 0..self.peers.len() {
            if let Some(peer) = self.peers.get_mut(at) {
                peer.stalled = false;
            }
        }
        let mut idle = 0;
        for _ in 0..6_000 {
            for group in 0..GROUPS.len() {
                self.attend(group)?;
            }
            let mut moved = self.serve_all()?;
            for at in 0..self.agents.len() {
                moved |= self.take(at, None)?;
            }
            let held: Vec<LeaseId> = self.held.keys().copied().collect();
            for lease in held {
                moved = true;
                self.end(lease, false)?;
            }
            self.look()?;
            if moved {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle > 30 {
                return self.check_rest();
            }
            self.pass(100)?;
        }
        broken("SETTLES", "the work never ends")
    }

    /// The log writes, syncs and answers all there is. `false`: there was nothing.
    fn serve_all(&mut self) -> Check<bool> {
        self.collect();
        let mut moved = !self.pending.is_empty() || !self.unanswered.is_empty();
        for out in std::mem::take(&mut self.pending) {
            self.write(out);
        }
        self.synced = self.next;
        while !self.unanswered.is_empty() {
            self.answer(0);
        }
        for _ in 0..self.reads.len() {
            moved = true;
            self.feed_one()?;
        }
        Ok(moved)
    }

    /// Every known group has a member that is well.
    fn attend(&mut self, group: usize) -> Check {
        for at in 0..self.agents.len() {
            let Some(agent) = self.agents.get_mut(at).filter(|it| it.group == group) else {
                continue;
            };
            if agent.health == Health::Up {
                continue;
            }
            agent.health = Health::Up;
            let (session, handle) = (agent.session, agent.handle);
            let id = self.session(session);
            let done = self.core.set_state(id, handle, Health::Up, self.at);
            ensure(done.is_ok(), "LEASE-FENCED", || format!("{done:?}"))?;
        }
        if self.agents.iter().any(|agent| agent.group == group) || !self.starts.contains_key(&group)
        {
            return Ok(());
        }
        for _ in 0..200 {
            if self.agents.iter().any(|agent| agent.group == group) {
                break;
            }
            self.register()?;
        }
        Ok(())
    }

    fn check_rest(&mut self) -> Check {
        let mut dead: BTreeSet<(usize, usize)> = BTreeSet::new();
        for group in self.starts.keys() {
            for (index, event) in self.events.iter().enumerate() {
                if event.n.is_none() || !self.is_for(*group, event) {
                    continue;
                }
                let standing = self
                    .standing
                    .get(&(*group, index))
                    .cloned()
                    .unwrap_or_default();
                ensure(standing.done, "DUR-ACK", || {
                    format!("event {index} at {:?} never came to group {group}", event.n)
                })?;
                if standing.dead {
                    dead.insert((*group, index));
                }
            }
        }
        let known = self.core.dead("n").len();
        ensure(known == dead.len(), "DLQ-AFTER-MAX", || {
            format!("{known} dead letters, and {dead:?} were given up")
        })?;
        let live = self.core.partition(1).map(Partition::hash);
        let again = self.fold().hash();
        ensure(live == Some(again), "DUR-FOLD", || {
            "what was folded live is not what a replay folds".to_owned()
        })
    }

    /// Whether an event was begun as often as it may be: then it is given up before it is handed out again.
    fn is_given_up(&self, group: usize, event: usize) -> bool {
        let number = self.numbers.iter().find(|(_, other)| **other == group);
        let n = self.events.get(event).and_then(|event| event.n);
        self.written.values().any(|record| {
            matches!(record, Record::Started(it)
                if Some(it.consumer) == number.map(|(number, _)| *number)
                    && Some(it.n) == n
                    && it.attempt as usize >= self.limits.max_deliver)
        })
    }
}
