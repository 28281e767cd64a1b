//! The recorder: what a replay needs of each run leaves as records, and nobody waits for them.
//!
//! Turns get a number here; events that are not durable, answers, pure calls, steps and the ends of all these name it.
//! Under the lock it only keeps what lives anyway; what is derived from that (hashes, encodings) is made by who
//! writes or reads the log. Where the log falls behind, a run is left out, and a [`Gap`] says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::arena::{CallId, Handle, LeaseId, SessionId, SubId};
use crate::core::{Core, Holding, Kind, Pending, Wanted};
use crate::envelope::{EffectClass, Envelope};
use crate::error::{Code, Detail, Error, Result};
use crate::job::Job;
use crate::record::{Body, Ended, Gap, Intent, Outcome, Record, Sent, Step, Turn, TurnEnd};
use crate::space::SpaceId;
use crate::time::Moment;

/// What of a namespace is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recording {
    /// Nothing.
    #[default]
    Off,
    /// Runs: everything but what the engine says of itself.
    Runs,
    /// That, too.
    All,
}

impl Recording {
    /// Reads the number as it crosses languages.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for any other than 0, 1, 2.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Off),
            1 => Ok(Self::Runs),
            2 => Ok(Self::All),
            _ => Err(Error::invalid(
                "record",
                format!("{number} is nothing that can be recorded"),
            )),
        }
    }
}

/// Runs that are kept in mind while they are left out; a longer list is written early.
const RUNS_LEFT_OUT: usize = 1_024;

/// The code that an agent runs, as its process says.
pub(crate) struct Program {
    version: Box<str>,
    hash: Box<[u8]>,
}

/// Where an event, a call or a step is recorded: in which namespace, and by which turn it was made (0: none).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tape {
    pub(crate) space: SpaceId,
    pub(crate) turn: u64,
}

/// The recording of one log.
#[derive(Default)]
pub(crate) struct Track {
    what: Recording,
    /// The log is behind: nothing is recorded.
    pressed: bool,
    /// Runs that records are missing of, and how many; the oldest run has the lowest id.
    left_out: BTreeMap<u128, u64>,
}

/// What all recordings share.
#[derive(Default)]
pub(crate) struct Recorder {
    /// Something is recorded somewhere: all that the hot path asks.
    is_on: bool,
    turns: u64,
    /// What the last step was told of the time; ends are recorded with it.
    wall_ms: u64,
    /// Records of runs that were left out, in all.
    skipped: u64,
    programs: FxHashMap<SubId, Program>,
}

/// A step of a turn as its process tells it.
#[derive(Debug)]
pub struct Told<'a> {
    /// "now", "memory.get", "model", …
    pub kind: &'a str,
    /// Of what.
    pub name: &'a str,
    /// blake3 of what it was asked with; empty: with nothing.
    pub args_hash: &'a [u8],
    /// How it failed, if it did.
    pub code: Option<Code>,
    /// How long it took.
    pub micros: u64,
    /// Further facts as JSON; empty: none.
    pub facts: &'a str,
    /// What it gave.
    pub result: Box<[u8]>,
}

impl Core {
    /// How many records are missing of runs because their log was behind.
    pub fn skipped(&self) -> u64 {
        self.recorder.skipped
    }

    /// Says whether the log's queue is over half full. While it is, nothing is recorded; afterwards each run that lost
    /// something by that gets its gap.
    pub fn press(&mut self, pressed: bool) {
        let mut gaps: Vec<(u32, Record)> = Vec::new();
        for (partition, part) in &mut self.parts {
            part.track.pressed = pressed;
            if !pressed {
                let lost = std::mem::take(&mut part.track.left_out);
                gaps.extend(lost.into_iter().map(|lost| (*partition, gap(lost))));
            }
        }
        for (partition, gap) in gaps {
            self.leave_record(partition, gap);
        }
    }

    /// The number of a turn that is recorded; 0: it is not.
    pub fn turn_of(&self, lease: LeaseId) -> u64 {
        self.leases.get(lease).map_or(0, |lease| lease.turn)
    }

    /// Says which code an agent runs: the version that it declares, and what its source hashes to.
    ///
    /// # Errors
    /// `FENCED` for a handle of another session; `INVALID_PARAMS` for one that is no agent.
    pub fn describe(
        &mut self,
        session: SessionId,
        handle: Handle,
        version: &str,
        hash: &[u8],
    ) -> Result<()> {
        let Kind::Subscription(sub) = self.registration(session, handle)?.kind else {
            return Err(Error::invalid("handle", "only an agent has a program"));
        };
        self.check_short("version", (!version.is_empty()).then_some(version))?;
        if hash.len() > 32 {
            return Err(Error::invalid("code", "a hash has at most 32 bytes"));
        }
        let program = Program {
            version: version.into(),
            hash: hash.into(),
        };
        self.recorder.programs.insert(sub, program);
        Ok(())
    }

    /// Records a step of a turn; one of a turn that is not recorded is none.
    ///
    /// # Errors
    /// `FENCED` for a turn of another session; `INVALID_PARAMS` for names that are too long or a body over the limit.
    pub fn step(
        &mut self,
        session: SessionId,
        lease: LeaseId,
        told: Told<'_>,
        at: Moment,
    ) -> Result<()> {
        if self.leases.is_past(lease) {
            // A task that a turn has left behind still looks at the clock: that is nobody's step.
            return Ok(());
        }
        let run = self.lease(session, lease)?.env.run;
        let Some(tape) = self.tape_of(lease) else {
            return Ok(());
        };
        let most = self.limits.log_body_bytes;
        if told.result.len() > most {
            let message = format!(
                "it has {} bytes, and the log takes {most}",
                told.result.len()
            );
            return Err(Error::invalid("result", message).limit("log_body_bytes"));
        }
        self.check_short("kind", Some(told.kind))?;
        if told.facts.len() > self.limits.error_detail_bytes {
            return Err(Error::invalid("facts", "the facts of a step are too long"));
        }
        let step = Step {
            turn: tape.turn,
            kind: told.kind.to_owned(),
            name: told.name.to_owned(),
            args_hash: told.args_hash.to_vec(),
            at_ms: at.wall_ms,
            code: number(told.code),
            micros: told.micros,
            facts: told.facts.to_owned(),
        };
        self.tape_record(tape, run, || Record::Step(step, told.result.into()));
        Ok(())
    }

    /// A log was opened.
    pub(crate) fn begin_recording(&mut self, what: Recording) {
        self.recorder.is_on |= what != Recording::Off;
    }

    pub(crate) fn forget_program(&mut self, sub: SubId) {
        self.recorder.programs.remove(&sub);
    }

    /// Remembers the time of a step.
    pub(crate) fn see(&mut self, at: Moment) {
        self.recorder.wall_ms = at.wall_ms;
    }

    /// What of a namespace is recorded.
    fn recording(&self, space: SpaceId) -> Recording {
        let part = self.space(space).and_then(|space| space.partition);
        part.and_then(|part| self.parts.get(&part))
            .map_or(Recording::Off, |part| part.track.what)
    }

    /// Where something is recorded that comes from this turn or invocation, or from none.
    pub(crate) fn tape(&self, space: SpaceId, lease: Option<LeaseId>) -> Option<Tape> {
        if !self.recorder.is_on || self.recording(space) == Recording::Off {
            return None;
        }
        let turn = lease
            .and_then(|lease| self.leases.get(lease))
            .map_or(0, |lease| lease.turn);
        Some(Tape { space, turn })
    }

    /// Where a recorded turn is.
    fn tape_of(&self, lease: LeaseId) -> Option<Tape> {
        let lease = self.leases.get(lease).filter(|lease| lease.turn > 0)?;
        let Holding::Turn { sub, .. } = lease.holding else {
            return None;
        };
        let space = self.subs.get(sub)?.space;
        Some(Tape {
            space,
            turn: lease.turn,
        })
    }

    /// Whether what the engine has to say on this topic is recorded, heard or not.
    pub(crate) fn is_taped(&self, space: SpaceId, topic: &str) -> bool {
        if !self.recorder.is_on {
            return false;
        }
        match self.recording(space) {
            Recording::Off => false,
            Recording::Runs => is_of_runs(topic),
            Recording::All => true,
        }
    }

    /// A turn begins: it gets its number.
    pub(crate) fn tape_turn(&mut self, id: LeaseId, sub: SubId, of: (u32, u64), at: Moment) -> u64 {
        let (attempt, waited_micros) = of;
        if !self.recorder.is_on {
            return 0;
        }
        self.see(at);
        let (Some(found), Some(lease)) = (self.subs.get(sub), self.leases.get(id)) else {
            return 0;
        };
        let (space, env) = (found.space, Arc::clone(&lease.env));
        if found.is_stream() || !self.belongs(space, &env) {
            return 0;
        }
        let agent = Arc::clone(&found.name);
        self.recorder.turns += 1;
        let turn = self.recorder.turns;
        if let Some(lease) = self.leases.get_mut(id) {
            lease.turn = turn;
        }
        let program = self.recorder.programs.get(&sub);
        let record = Turn {
            turn,
            agent: agent.to_string(),
            version: program.map_or_else(String::new, |program| program.version.to_string()),
            event: Some(env.id.into()),
            run: Some(env.run.into()),
            attempt,
            at_ms: at.wall_ms,
            waited_micros,
            code_hash: program.map_or_else(Vec::new, |program| program.hash.to_vec()),
        };
        self.tape_record(Tape { space, turn }, env.run, || Record::Turn(record));
        turn
    }

    /// Whether an event belongs to what is recorded.
    fn belongs(&self, space: SpaceId, env: &Envelope) -> bool {
        match self.recording(space) {
            Recording::Off => false,
            Recording::Runs => !env.is_of_engine() || is_of_runs(&env.topic),
            Recording::All => true,
        }
    }

    /// A turn ended.
    pub(crate) fn tape_end(&mut self, lease: &crate::core::Lease, failed: Option<&(Code, Detail)>) {
        let Holding::Turn { sub, .. } = lease.holding else {
            return;
        };
        if lease.turn == 0 {
            return;
        }
        let Some(space) = self.subs.get(sub).map(|sub| sub.space) else {
            return;
        };
        let end = TurnEnd {
            turn: lease.turn,
            code: number(failed.map(|(code, _)| *code)),
            message: failed.map_or_else(String::new, |(_, detail)| detail.message.clone()),
            at_ms: self.recorder.wall_ms,
        };
        let tape = Tape {
            space,
            turn: lease.turn,
        };
        self.tape_record(tape, lease.env.run, || Record::TurnEnd(end));
    }

    /// A turn was cut off before its end.
    pub(crate) fn tape_cut(&mut self, lease: &crate::core::Lease, why: &str, at: Moment) {
        if lease.turn > 0 {
            self.see(at);
            self.tape_end(lease, Some(&(Code::Cancelled, Detail::message(why))));
        }
    }

    /// An event was published; a durable one is a record of its own already.
    pub(crate) fn tape_sent(&mut self, tape: Option<Tape>, env: &Arc<Envelope>, matched: usize) {
        let Some(tape) = tape.filter(|_| env.position.is_none()) else {
            return;
        };
        if !self.belongs(tape.space, env) {
            return;
        }
        self.tape_record(tape, env.run, || {
            Record::Sent(Sent {
                turn: tape.turn,
                envelope: Arc::clone(env),
                matched: u32::try_from(matched).unwrap_or(u32::MAX),
                asks: env.reply_to.is_some(),
            })
        });
    }

    /// A turn answered the request that it was given with.
    pub(crate) fn tape_reply(&mut self, lease: LeaseId, answer: &Arc<Envelope>) {
        let tape = self.tape_of(lease);
        self.tape_sent(tape, answer, 1);
    }

    /// A request ended.
    pub(crate) fn tape_ended(&mut self, pending: &Pending, code: Option<Code>, detail: &[u8]) {
        let Some(tape) = pending.tape else { return };
        let ended = Ended {
            turn: tape.turn,
            event: Some(pending.env.id.into()),
            code: number(code),
            detail: String::from_utf8_lossy(detail).into_owned(),
            at_ms: self.recorder.wall_ms,
        };
        self.tape_record(tape, pending.env.run, || Record::Ended(ended));
    }

    /// A call begins. One that changes something outside has an intent of its own, unless it has joined another.
    pub(crate) fn tape_call(&mut self, call: CallId, joined: bool, at: Moment) {
        let Some(pending) = self.calls.get_mut(call) else {
            return;
        };
        let (Some(tape), Wanted::Call(job)) = (pending.tape, &pending.wanted) else {
            return;
        };
        let Some((version, class)) = self.jobs.get(*job).map(Job::terms) else {
            return;
        };
        if !joined && class != EffectClass::Pure {
            pending.tape = None;
            return;
        }
        let env = Arc::clone(&pending.env);
        let intent = Intent {
            effect: Some(env.id.into()),
            call: Some(env.id.into()),
            capability: env.topic.to_string(),
            version: version.text.to_string(),
            class: u32::from(EffectClass::Pure.number()),
            key: env
                .key
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            args_hash: Vec::new(),
            caller: env.origin.sender.to_string(),
            run: Some(env.run.into()),
            event: env.causation.map(Into::into),
            turn: tape.turn,
            at_ms: at.wall_ms,
            thread: env.thread.to_string(),
            streamed: false,
        };
        let run = env.run;
        self.tape_record(tape, run, || Record::Intent(intent, Body::Of(env)));
    }

    /// Such a call ended.
    pub(crate) fn tape_outcome(
        &mut self,
        pending: &Pending,
        code: Option<Code>,
        body: &[u8],
        at: Moment,
    ) {
        let Some(tape) = pending.tape else { return };
        let id = Some(pending.env.id.into());
        let (body, detail) = match code {
            None => (body, String::new()),
            Some(_) => (
                <&[u8]>::default(),
                String::from_utf8_lossy(body).into_owned(),
            ),
        };
        let outcome = Outcome {
            effect: id,
            call: id,
            code: number(code),
            detail,
            at_ms: at.wall_ms,
            micros: at.now.micros_since(pending.started),
            last: false,
        };
        let body: Box<[u8]> = body.into();
        self.tape_record(tape, pending.env.run, || {
            Record::Outcome(outcome, body.into())
        });
    }

    /// A chunk of a streamed call was given to its caller: a step of its own.
    pub(crate) fn tape_chunk(&mut self, call: CallId, chunk: &[u8]) {
        let Some(pending) = self.calls.get(call) else {
            return;
        };
        let Some(tape) = pending.tape.filter(|tape| tape.turn > 0) else {
            return;
        };
        let step = Step {
            turn: tape.turn,
            kind: "chunk".to_owned(),
            name: crate::ident::show_uuid(pending.env.id),
            at_ms: self.recorder.wall_ms,
            ..Step::default()
        };
        let (run, body): (u128, Box<[u8]>) = (pending.env.run, chunk.into());
        self.tape_record(tape, run, || Record::Step(step, body.into()));
    }

    /// Leaves a record of a run, or counts that it is missing.
    fn tape_record(&mut self, tape: Tape, run: u128, record: impl FnOnce() -> Record) {
        let Some(partition) = self.space(tape.space).and_then(|space| space.partition) else {
            return;
        };
        let Some(track) = self.parts.get_mut(&partition).map(|part| &mut part.track) else {
            return;
        };
        if !track.pressed {
            return self.leave_record(partition, record());
        }
        self.recorder.skipped += 1;
        if let Some(gap) = track.skip(run) {
            self.leave_record(partition, gap);
        }
    }
}

impl Track {
    pub(crate) fn new(what: Recording) -> Self {
        Self {
            what,
            ..Self::default()
        }
    }

    /// Counts a record that is missing of a run; where there are too many such runs, the oldest is written now.
    fn skip(&mut self, run: u128) -> Option<Record> {
        *self.left_out.entry(run).or_default() += 1;
        if self.left_out.len() <= RUNS_LEFT_OUT {
            return None;
        }
        self.left_out.pop_first().map(gap)
    }
}

fn gap((run, missing): (u128, u64)) -> Record {
    Record::Gap(Gap {
        from: 0,
        to: missing,
        why: "recording".to_owned(),
        run: Some(run.into()),
    })
}

fn number(code: Option<Code>) -> u32 {
    code.map_or(0, |code| u32::from(code.number()))
}

/// What the engine says of runs, and not of itself.
fn is_of_runs(topic: &str) -> bool {
    const OF_RUNS: [&str; 4] = ["loom.log.", "loom.error.", "loom.dropped.", "loom.dead."];
    OF_RUNS.iter().any(|start| topic.starts_with(start))
}
