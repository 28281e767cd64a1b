//! The node of the world of sessions: a core, its log, and the hub. Its log writes, syncs and answers when the dice say;
//! it is killed, and starts again from what is left.

use std::collections::BTreeMap;
use std::sync::Arc;

use loom_core::record::Epoch;
use loom_core::{
    Core, Durability, Fed, Grants, Level, Limits, Moment, Opened, Outgoing, Partition, Position,
    Read, Record, Ticket,
};
use loom_session::{Authority, ConnId, Credential, Errand, Hub, HubConfig};
use sha2::{Digest, Sha256};

use super::SessionSetup;
use crate::dice::Dice;
use crate::trace::{Check, broken};

pub(super) const NAMESPACE: &str = "default";

pub(super) struct Node {
    pub(super) core: Core,
    pub(super) hub: Hub,
    pub(super) boot: u8,
    limits: Limits,
    sessions: loom_session::Limits,
    setup: SessionSetup,
    /// Credentials that count: one a client, by number, and until when.
    pub(super) tokens: BTreeMap<usize, Option<u64>>,
    epoch: u32,
    epochs: BTreeMap<u64, u32>,
    next: u64,
    synced: u64,
    pub(super) written: BTreeMap<u64, Record>,
    pending: Vec<Outgoing>,
    unanswered: Vec<(Ticket, u64, Level)>,
    reads: Vec<Read>,
    errands: Vec<Errand>,
    /// Connections that have more to send than their wire had room for.
    pub(super) blocked: Vec<ConnId>,
}

pub(super) fn token(number: usize) -> String {
    format!("loom_{number}")
}

impl Node {
    pub(super) fn new(
        limits: Limits,
        sessions: loom_session::Limits,
        setup: SessionSetup,
        at: Moment,
    ) -> Check<Self> {
        let mut node = Self {
            core: Core::new(limits.clone(), 0),
            hub: hub_of(0, &sessions),
            boot: 0,
            limits,
            sessions,
            setup,
            tokens: BTreeMap::new(),
            epoch: 0,
            epochs: BTreeMap::new(),
            next: 1,
            synced: 1,
            written: BTreeMap::new(),
            pending: Vec::new(),
            unanswered: Vec::new(),
            reads: Vec::new(),
            errands: Vec::new(),
            blocked: Vec::new(),
        };
        node.start(at)?;
        Ok(node)
    }

    /// A new life from what is written.
    fn start(&mut self, at: Moment) -> Check {
        self.boot += 1;
        self.epoch += 1;
        self.core = Core::new(self.limits.clone(), u64::from(self.boot));
        self.hub = hub_of(self.boot, &self.sessions);
        (self.setup.hub)(&mut self.hub);
        let epoch = Record::Epoch(Epoch {
            epoch: self.epoch,
            at_ms: at.wall_ms,
            ..Default::default()
        });
        self.epochs.insert(self.next, self.epoch);
        self.written.insert(self.next, epoch);
        self.next += 1;
        self.synced = self.next;
        let mut folded = Partition::new(&self.limits);
        for (n, record) in &self.written {
            folded.apply(self.position(*n), record);
        }
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
        if let Err(error) = self.core.open_partition(NAMESPACE, opened, folded, at) {
            return broken("BAD-INPUT", format!("{error:?}"));
        }
        self.set_authority(at);
        Ok(())
    }

    /// The process is gone, or the power.
    pub(super) fn restart(&mut self, dice: &mut Dice, at: Moment) -> Check {
        if dice.chance(30) {
            let cut = dice.between(self.synced, self.next);
            drop(self.written.split_off(&cut));
        }
        self.pending.clear();
        self.unanswered.clear();
        self.reads.clear();
        self.errands.clear();
        self.blocked.clear();
        self.start(at)
    }

    pub(super) fn set_authority(&mut self, at: Moment) {
        let credentials = self.tokens.iter().map(|(number, expires_ms)| Credential {
            id: format!("t{number}"),
            hash: Sha256::digest(token(*number).as_bytes()).into(),
            namespace: NAMESPACE.to_owned(),
            grants: Arc::new(Grants::all()),
            expires_ms: *expires_ms,
        });
        let authority = Authority::new(credentials.collect());
        self.hub.set_authority(authority, &mut self.core, at);
    }

    fn position(&self, n: u64) -> Position {
        let epoch = self.epochs.range(..=n).next_back();
        Position {
            partition: 1,
            epoch: epoch.map_or(self.epoch, |(_, epoch)| *epoch),
            n,
        }
    }

    // -- the log ---------------------------------------------------------------------------------------

    fn collect(&mut self) {
        self.pending.extend(self.core.take_records());
        self.reads.extend(self.core.take_reads());
    }

    /// The log does some of what it has to do; with `all`, everything. Whether it did something.
    pub(super) fn serve_log(&mut self, dice: &mut Dice, all: bool, at: Moment) -> bool {
        self.collect();
        let count = if all {
            self.pending.len()
        } else {
            dice.count(0, self.pending.len())
        };
        let mut moved = count > 0;
        for out in self.pending.drain(..count).collect::<Vec<_>>() {
            self.write(out);
        }
        if all || dice.chance(60) {
            self.synced = self.next;
        }
        moved |= self.answer(if all { usize::MAX } else { dice.count(0, 4) }, at);
        let reads = if all {
            self.reads.len()
        } else {
            dice.count(0, self.reads.len())
        };
        for read in self.reads.drain(..reads).collect::<Vec<_>>() {
            moved = true;
            self.feed(&read, at);
        }
        moved
    }

    fn write(&mut self, out: Outgoing) {
        let first = self.next;
        for record in out.batch {
            self.written.insert(self.next, record);
            self.next += 1;
        }
        if let Some(ticket) = out.ticket {
            self.unanswered.push((ticket, first, out.level));
        }
    }

    fn answer(&mut self, most: usize, at: Moment) -> bool {
        let mut answered = 0;
        while answered < most {
            let synced = self.synced;
            let ready = |(_, n, level): &(Ticket, u64, Level)| *level != Level::Disk || *n < synced;
            let Some(found) = self.unanswered.iter().position(ready) else {
                break;
            };
            let (ticket, n, _) = self.unanswered.remove(found);
            self.core.logged(ticket, self.position(n), at);
            answered += 1;
        }
        answered > 0
    }

    fn feed(&mut self, read: &Read, at: Moment) {
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
        let at_end = next >= self.next;
        let fed = Fed {
            token: read.token,
            events,
            next,
            at_end,
        };
        self.core.fed(fed, at);
    }

    // -- the hub ---------------------------------------------------------------------------------------

    /// Does what the hub cannot do itself; not all at once.
    pub(super) fn serve_errands(&mut self, dice: &mut Dice, all: bool, at: Moment) {
        self.errands.extend(self.hub.take_errands());
        let count = if all {
            self.errands.len()
        } else {
            dice.count(0, self.errands.len())
        };
        for errand in self.errands.drain(..count).collect::<Vec<_>>() {
            if let Errand::Open(conn, _) = errand {
                self.hub.opened(conn, Ok(()), &mut self.core, at);
            }
        }
    }

    pub(super) fn wake(&mut self, at: Moment) {
        for session in self.core.take_woken() {
            self.hub.woken(session, &mut self.core, at);
        }
    }

    /// What a connection that is over must not change.
    pub(super) fn show(&self) -> String {
        format!("{:?} {:?}", self.hub.sessions(), self.core.gauges())
    }
}

fn hub_of(boot: u8, limits: &loom_session::Limits) -> Hub {
    Hub::new(HubConfig {
        boot: [boot; 16],
        limits: limits.clone(),
        agent: "loom/simulated".to_owned(),
        durable: vec!["d.>".to_owned()],
        keeps_log: true,
    })
}
