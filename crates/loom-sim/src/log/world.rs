//! One log on one disk, through many lives: batches come, things are done in any order or fail, the process is killed,
//! the power goes; and at every step what a power cut would leave just then is recovered too, and judged.

use std::collections::BTreeMap;

use loom_core::{Level, Ticket};
use loom_log::format::{Batch, Form, Stored};
use loom_log::{
    Ahead, Append, Bounds, End as Ending, File, Known, Machine, Op, OpId, Recovery, Refusal,
};

use super::LogSetup;
use super::book::{Book, End, Seen};
use super::disk::{Begun, Disk, Every, Outcome, chunk_name};
use crate::dice::Dice;
use crate::trace::{Check, broken, ensure};

const BLOBS: usize = 64 << 10;

/// How a log is used, and how its disk behaves.
#[derive(Debug, Clone, Copy)]
struct Habits {
    segment_bytes: u64,
    /// The longest body; all are as long if `even`.
    longest: usize,
    even: bool,
    most_records: usize,
    crashes: u64,
    faults: u64,
    fills: u64,
    chunks: u64,
    disk_level: u64,
    /// How often a new life ends before its first sync does.
    storms: u64,
    /// How often a sync fails, in a thousand.
    sync_faults: u64,
}

impl Habits {
    fn draw(dice: &mut Dice) -> Self {
        Self {
            segment_bytes: dice.between(3, 8) * 4096,
            longest: *dice.pick(&[&8, &60, &400, &2000]).unwrap_or(&60),
            even: dice.chance(40),
            most_records: dice.count(1, 4),
            crashes: *dice.pick(&[&1, &3, &12]).unwrap_or(&1),
            faults: *dice.pick(&[&0, &0, &3, &10]).unwrap_or(&0),
            fills: *dice.pick(&[&0, &0, &2, &6]).unwrap_or(&0),
            chunks: *dice.pick(&[&0, &0, &15]).unwrap_or(&0),
            disk_level: *dice.pick(&[&30, &60, &90]).unwrap_or(&60),
            storms: *dice.pick(&[&0, &0, &40]).unwrap_or(&0),
            sync_faults: *dice.pick(&[&0, &0, &40]).unwrap_or(&0),
        }
    }
}

fn bounds(segment_bytes: u64) -> Bounds {
    Bounds {
        segment_bytes,
        reserve_bytes: 512,
        batch_bytes: 8 << 10,
        commit_bytes: 6 << 10,
        unsynced_bytes: 12 << 10,
        pending_bytes: 24 << 10,
    }
}

struct Flying {
    id: OpId,
    op: Op,
    begun: Begun,
}

pub(super) struct World {
    pub(super) dice: Dice,
    disk: Disk,
    machine: Machine,
    flying: Vec<Flying>,
    book: Book,
    setup: LogSetup,
    habits: Habits,
    blobs_at: u64,
    full: bool,
    /// The batch that opened this life.
    opening: Ticket,
    opened: bool,
    /// Whether anything has failed in this life.
    struck: bool,
    pub(super) seen: BTreeMap<&'static str, u64>,
    pub(super) points: u64,
}

/// What a recovery of a disk found.
struct Recovered {
    seen: Vec<Seen>,
    ending: Ending,
}

/// Recovers a disk and judges it.
fn recover(disk: &Disk, book: &Book, setup: &LogSetup, end: End) -> Check<Recovered> {
    let recovery = (setup.recovery)(Recovery::new(Known {
        from: 0,
        durable: 0,
        epoch: 0,
        unsynced_bytes: 12 << 10,
        accept_loss: false,
    }));
    let (mut seen, mut wrong) = (Vec::new(), None);
    let ending = recovery.run(disk, &mut |found| match book.read(&found, disk) {
        Ok(record) => seen.extend(record),
        Err(violation) => wrong = wrong.take().or(Some(violation)),
    });
    let ending = match ending {
        Ok(ending) => ending,
        Err(error) => return broken("LOG-TORN", format!("after {end:?}: {error:?}")),
    };
    if let Some(violation) = wrong {
        return Err(violation);
    }
    book.judge(&seen, end)?;
    ensure(end != End::Closed || ending.closed, "LOG-CLOSED", || {
        "a log that was closed well does not say so".to_owned()
    })?;
    Ok(Recovered { seen, ending })
}

impl World {
    pub(super) fn new(mut dice: Dice, setup: LogSetup) -> Self {
        let habits = Habits::draw(&mut dice);
        let machine = Machine::new(bounds(habits.segment_bytes), dice.roll(), &nothing());
        let mut world = Self {
            dice,
            disk: Disk::with_blobs(BLOBS),
            machine,
            flying: Vec::new(),
            book: Book::default(),
            setup,
            habits,
            blobs_at: 0,
            full: false,
            opening: Ticket(0),
            opened: false,
            struck: false,
            seen: BTreeMap::new(),
            points: 0,
        };
        (world.setup.machine)(&mut world.machine);
        world
    }

    pub(super) fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// Opens a life.
    pub(super) fn open(&mut self) -> Check {
        self.opened = false;
        let (ticket, batch) = self.book.enter(Level::Disk, vec![8], |_| None);
        self.opening = ticket;
        self.append(ticket, Level::Disk, (batch, Vec::new()), true)
    }

    fn append(
        &mut self,
        ticket: Ticket,
        level: Level,
        (batch, ahead): (Batch, Vec<Ahead>),
        opens: bool,
    ) -> Check {
        let append = Append {
            ticket: Some(ticket),
            level,
            batch,
            ahead,
            opens,
        };
        if let Err(refusal) = self.machine.append(append) {
            self.book.not_taken(ticket);
            if refusal == Refusal::Busy {
                self.note("busy");
            }
        }
        self.take()
    }

    /// Takes what the machine hands out, and its answers.
    fn take(&mut self) -> Check {
        while let Some((id, op)) = self.machine.next_op() {
            if matches!(op, Op::Rename { .. }) {
                self.note("rotated");
            }
            let begun = self.disk.begin(&op);
            self.flying.push(Flying { id, op, begun });
        }
        let mut answers = Vec::new();
        self.machine.take_answers(&mut answers);
        for answer in answers {
            self.book.answered(&answer)?;
            if matches!(answer.result, Err(Refusal::NoRoom(_))) {
                self.note("refused for space");
            }
        }
        if !self.opened && self.book.is_acked(self.opening) {
            self.opened = true;
            self.book.settle();
        }
        ensure(
            self.struck || self.machine.fenced().is_none(),
            "LOG-IO-ERROR",
            || "a log takes nothing more though nothing has failed".to_owned(),
        )
    }

    pub(super) fn step(&mut self) -> Check {
        if self.machine.fenced().is_some() {
            self.note("fenced");
            let power = self.dice.chance(50);
            return self.crash(power);
        }
        if self.dice.between(0, 1000) < self.habits.crashes * 5 {
            let power = self.dice.chance(60);
            return self.crash(power);
        }
        if self.dice.between(0, 1000) < self.habits.storms {
            return self.storm();
        }
        if self.dice.chance(1) && self.dice.chance(30) {
            return self.close();
        }
        if self.dice.chance(self.habits.fills) {
            self.full = !self.full;
        }
        if self.dice.chance(45) {
            self.submit()?;
        } else if self.dice.chance(9) {
            match self.dice.between(0, 2) {
                0 => self.machine.flush(),
                1 => self.machine.hold(),
                _ => self.machine.release(),
            }
            self.take()?;
        } else {
            self.finish_one()?;
        }
        self.probe()
    }

    fn submit(&mut self) -> Check {
        let level = if self.dice.chance(self.habits.disk_level) {
            Level::Disk
        } else {
            *self
                .dice
                .pick(&[&Level::Os, &Level::Accepted])
                .unwrap_or(&Level::Os)
        };
        let count = self.dice.count(1, self.habits.most_records);
        let longest = self.habits.longest;
        let lengths = (0..count).map(|_| {
            if self.habits.even {
                longest
            } else {
                self.dice.count(0, longest)
            }
        });
        let lengths: Vec<usize> = lengths.collect();
        let room = (BLOBS as u64).saturating_sub(self.blobs_at + 8 * longest as u64);
        let chunked = room > 0 && self.dice.chance(self.habits.chunks);
        let (mut at, mut ahead) = (self.blobs_at, Vec::new());
        let (ticket, batch) = self.book.enter(level, lengths, |bytes| {
            let name = chunked.then(|| chunk_name(at, bytes))?;
            ahead.push(Ahead {
                file: File::Blobs(0),
                at,
                bytes: bytes.to_vec(),
            });
            at += bytes.len() as u64;
            Some(name)
        });
        self.blobs_at = at;
        if chunked {
            self.note("chunked");
        }
        self.append(ticket, level, (batch, ahead), false)
    }

    fn outcome(&mut self, op: &Op) -> Outcome {
        let writes = matches!(op, Op::Create { .. } | Op::Write { .. } | Op::Zero { .. });
        let makes = matches!(op, Op::Create { .. });
        if self.full && writes && (makes || self.dice.chance(20)) {
            return Outcome::Full;
        }
        let syncs = matches!(op, Op::Sync { .. });
        let faults = self.habits.faults + if syncs { self.habits.sync_faults } else { 0 };
        if self.dice.between(0, 1000) < faults {
            return Outcome::Broken;
        }
        Outcome::Done
    }

    /// Something that is under way ends, well or not.
    pub(super) fn finish_one(&mut self) -> Check<bool> {
        if self.flying.is_empty() {
            return Ok(false);
        }
        let at = self.dice.count(0, self.flying.len() - 1);
        let op = self.flying.get(at).map(|flying| flying.op.clone());
        let outcome = op.map_or(Outcome::Done, |op| self.outcome(&op));
        self.finish(at, outcome)?;
        Ok(true)
    }

    fn finish(&mut self, at: usize, outcome: Outcome) -> Check {
        self.struck |= outcome != Outcome::Done;
        let flying = self.flying.swap_remove(at);
        self.disk
            .end(&flying.op, &flying.begun, outcome, &mut self.dice);
        self.machine.done(flying.id, outcome.result());
        self.take()
    }

    /// Ends all that is under way, well.
    fn finish_all(&mut self) -> Check {
        self.machine.release();
        self.take()?;
        for _ in 0..10_000 {
            if self.flying.is_empty() {
                return Ok(());
            }
            let at = self.dice.count(0, self.flying.len() - 1);
            self.finish(at, Outcome::Done)?;
        }
        broken("LOG-ANSWER", "the machine never comes to rest")
    }

    /// The disk as it is when all stops now: what is under way is done in part, or not.
    fn stopped(&mut self) -> Disk {
        let mut disk = self.disk.clone();
        for flying in &self.flying {
            disk.apply_some(&flying.op, &mut self.dice);
        }
        disk
    }

    /// Recovers what would be left if all stopped now, and forgets it.
    fn probe(&mut self) -> Check {
        for _ in 0..self.setup.probes {
            let stopped = self.stopped();
            if self.dice.chance(10) {
                recover(&stopped, &self.book, &self.setup, End::Killed)?;
            } else {
                let left = stopped.cut(&mut self.dice);
                self.recover_cut(&left)?;
            }
            self.points += 1;
        }
        Ok(())
    }

    fn recover_cut(&mut self, left: &Disk) -> Check {
        let recovered = recover(left, &self.book, &self.setup, End::Cut)?;
        if recovered.ending.torn_bytes > 0 {
            self.note("torn");
        }
        Ok(())
    }

    /// Judges every way in which a power cut may go just now, as long as they are few.
    pub(super) fn probe_all(&mut self, most: usize) -> Check {
        let mut disks = vec![self.disk.clone()];
        let mut done = self.disk.clone();
        for flying in &self.flying {
            let begun = done.begin(&flying.op);
            done.end(&flying.op, &begun, Outcome::Done, &mut self.dice);
        }
        disks.push(done);
        for disk in disks {
            if disk.ways() > most {
                self.note("too many ways");
                let left = disk.cut(&mut self.dice);
                self.recover_cut(&left)?;
                self.points += 1;
                continue;
            }
            let mut every = Every::default();
            loop {
                let left = disk.cut(&mut every);
                self.recover_cut(&left)?;
                self.points += 1;
                if !every.next() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The process is killed, or the power goes, and the log is opened again.
    pub(super) fn crash(&mut self, power: bool) -> Check {
        self.disk = self.stopped();
        let end = if power {
            self.disk = self.disk.cut(&mut self.dice);
            self.note("power cut");
            End::Cut
        } else {
            self.note("killed");
            End::Killed
        };
        self.reopen(end)
    }

    fn reopen(&mut self, end: End) -> Check {
        self.flying.clear();
        self.struck = false;
        let recovered = recover(&self.disk, &self.book, &self.setup, end)?;
        self.points += 1;
        self.book.recovered(&recovered.seen);
        let log = self.dice.roll();
        let bounds = bounds(self.habits.segment_bytes);
        self.machine = Machine::new(bounds, log, &recovered.ending);
        (self.setup.machine)(&mut self.machine);
        self.open()
    }

    /// Lives that write and end before anything of theirs is synced: none knows of the one before it.
    fn storm(&mut self) -> Check {
        self.note("storm");
        for _ in 0..self.dice.between(2, 4) {
            self.crash(true)?;
            for _ in 0..self.dice.between(1, 6) {
                self.submit()?;
            }
            let active = self
                .machine
                .active()
                .map(|active| File::Segment(active.first));
            let goes_on = |flying: &Flying| match flying.op {
                // The first sync is that of what was recovered; the one after the first write is not to end.
                Op::Sync { file } => Some(file) != active,
                _ => true,
            };
            let mut starting = true;
            while let Some(at) = self.flying.iter().position(|it| starting || goes_on(it)) {
                let ends = self.flying.get(at).map(|flying| flying.op.clone());
                starting &= !matches!(ends, Some(Op::SyncDirectory { .. }));
                self.finish(at, Outcome::Done)?;
            }
            self.probe()?;
        }
        self.crash(true)
    }

    /// Closes the log and opens it again.
    fn close(&mut self) -> Check {
        self.machine.close(closing());
        self.take()?;
        let cut = self.dice.chance(30);
        for _ in 0..self.dice.count(0, if cut { 6 } else { 0 }) {
            self.finish_one()?;
            self.probe()?;
        }
        if cut || self.machine.fenced().is_some() {
            return self.crash(true);
        }
        self.full = false;
        self.finish_all()?;
        if self.machine.fenced().is_some() {
            // Of a sync of several files one had failed before, and the last one has ended only now.
            return self.crash(true);
        }
        ensure(self.machine.is_closed(), "LOG-CLOSED", || {
            "a log that is being closed never is".to_owned()
        })?;
        self.note("closed");
        // Nothing was written before the first segment, so nothing says that it was closed.
        let end = if self.machine.active().is_some() {
            End::Closed
        } else {
            End::Killed
        };
        self.reopen(end)
    }

    /// Ends well: with space and without faults all that waits is answered.
    pub(super) fn rest(&mut self) -> Check {
        self.full = false;
        self.finish_all()?;
        let open = self
            .book
            .unanswered(usize::try_from(self.opening.0).unwrap_or(0));
        ensure(open == 0, "LOG-ANSWER", || {
            format!("{open} batches have no answer though nothing is under way")
        })?;
        self.crash(true)
    }

    /// Makes this the world of a small history without faults.
    pub(super) fn small(&mut self, segment_bytes: u64) {
        self.habits = Habits {
            segment_bytes,
            longest: *self.dice.pick(&[&60, &900, &2500]).unwrap_or(&60),
            crashes: 0,
            faults: 0,
            fills: 0,
            storms: 0,
            sync_faults: 0,
            ..self.habits
        };
        let bounds = bounds(segment_bytes);
        self.machine = Machine::new(bounds, self.dice.roll(), &nothing());
        (self.setup.machine)(&mut self.machine);
    }

    pub(super) fn submit_small(&mut self) -> Check {
        for _ in 0..self.dice.between(1, 2) {
            self.submit()?;
        }
        Ok(())
    }

    /// Appends so many batches through several lives, without faults, and closes the log or leaves it synced; returns
    /// the disk as it was half-way.
    pub(super) fn fill(&mut self, segment_bytes: u64, batches: usize) -> Check<Disk> {
        self.small(segment_bytes);
        self.habits.longest = *self.dice.pick(&[&8, &60, &200]).unwrap_or(&60);
        self.habits.chunks = 0;
        self.open()?;
        let mut earlier = self.disk.clone();
        for batch in 0..batches {
            self.submit()?;
            while self.dice.chance(70) && self.finish_one()? {}
            if batch == batches / 2 {
                self.finish_all()?;
                earlier = self.disk.clone();
            }
            if self.dice.chance(3) {
                self.finish_all()?;
                self.crash(false)?;
            }
        }
        self.finish_all()?;
        if self.dice.chance(50) {
            self.machine.close(closing());
        } else {
            self.machine.flush();
        }
        self.take()?;
        self.finish_all()?;
        Ok(earlier)
    }

    pub(super) fn into_disk(self) -> Disk {
        self.disk
    }
}

/// The batch that closes a log.
fn closing() -> Batch {
    let mut last = Batch::default();
    let _ = last.push(Stored {
        kind: 2,
        form: Form::Whole,
        head: &[],
        body: &[],
    });
    last
}

/// What is found on an empty disk.
fn nothing() -> Ending {
    Ending {
        log: None,
        end: 0,
        epoch: 0,
        active: None,
        torn_bytes: 0,
        closed: false,
        lost: Vec::new(),
        steps: Vec::new(),
    }
}
