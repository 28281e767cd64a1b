//! The publisher's own list: what was submitted, in which order, and what was answered. It knows nothing of frames.

use loom_core::{Level, Ticket};
use loom_log::format::{Batch, Form, Stored};
use loom_log::{Answered, Found, Refusal};

use super::disk::{Disk, chunk};
use crate::trace::{Check, broken, ensure};
use loom_log::File;

/// What a user submits, and what opens and closes the log.
const EVENT: u8 = 10;

/// How the last life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The process was killed; what was written stays.
    Killed,
    /// The power went.
    Cut,
    /// It was closed.
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// No answer yet, or never one.
    Open,
    Acked(u64),
    /// There was no room; so many had been submitted when this was said.
    NoRoom(usize),
    /// Not known.
    Fenced,
    /// Not taken.
    Untaken,
}

#[derive(Debug, Clone)]
struct Submitted {
    level: Level,
    /// The lengths of its bodies.
    lengths: Vec<usize>,
    state: State,
    /// Whether the last recovery found it.
    recovered: Option<bool>,
    /// Whether it is in the log, once a life that came after is known to last.
    kept: Option<bool>,
}

/// One record that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    position: u64,
    submission: usize,
    index: usize,
}

/// The list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Book {
    all: Vec<Submitted>,
}

/// The bytes of a body; no two are the same.
pub(crate) fn body(submission: usize, index: usize, length: usize) -> Vec<u8> {
    let mut state = (submission as u64) << 8 | index as u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        bytes.extend_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn head(submission: usize, index: usize) -> Vec<u8> {
    let mut head = (submission as u64).to_le_bytes().to_vec();
    head.push(u8::try_from(index).unwrap_or(u8::MAX));
    head
}

fn read_head(head: &[u8]) -> Option<(usize, usize)> {
    let (submission, rest) = head.split_first_chunk::<8>()?;
    let submission = usize::try_from(u64::from_le_bytes(*submission)).ok()?;
    Some((submission, usize::from(*rest.first()?)))
}

impl Book {
    /// Enters a batch of bodies of these lengths; `stored` may say otherwise how one is stored.
    pub(crate) fn enter(
        &mut self,
        level: Level,
        lengths: Vec<usize>,
        mut stored: impl FnMut(&[u8]) -> Option<Vec<u8>>,
    ) -> (Ticket, Batch) {
        let submission = self.all.len();
        let mut batch = Batch::default();
        for (index, length) in lengths.iter().enumerate() {
            let whole = body(submission, index, *length);
            let name = stored(&whole);
            let _ = batch.push(Stored {
                kind: EVENT,
                form: if name.is_some() {
                    Form::Chunked
                } else {
                    Form::Whole
                },
                head: &head(submission, index),
                body: name.as_deref().unwrap_or(&whole),
            });
        }
        self.all.push(Submitted {
            level,
            lengths,
            state: State::Open,
            recovered: None,
            kept: None,
        });
        (Ticket(submission as u64), batch)
    }

    fn get(&mut self, ticket: Ticket) -> Option<&mut Submitted> {
        self.all.get_mut(usize::try_from(ticket.0).ok()?)
    }

    pub(crate) fn not_taken(&mut self, ticket: Ticket) {
        if let Some(entry) = self.get(ticket) {
            entry.state = State::Untaken;
        }
    }

    /// Notes an answer.
    pub(crate) fn answered(&mut self, answer: &Answered) -> Check {
        let count = self.all.len();
        let Some(entry) = self.get(answer.ticket) else {
            return broken("LOG-ANSWER", "an answer to nobody");
        };
        ensure(entry.state == State::Open, "LOG-ANSWER", || {
            format!("{:?} is answered twice", answer.ticket)
        })?;
        entry.state = match &answer.result {
            Ok(position) => State::Acked(*position),
            Err(Refusal::NoRoom(_)) => State::NoRoom(count),
            Err(_) => State::Fenced,
        };
        Ok(())
    }

    /// Whether this one has its answer.
    pub(crate) fn is_acked(&self, ticket: Ticket) -> bool {
        let entry = usize::try_from(ticket.0)
            .ok()
            .and_then(|at| self.all.get(at));
        matches!(entry.map(|entry| &entry.state), Some(State::Acked(_)))
    }

    /// How many wait for an answer, from this one on.
    pub(crate) fn unanswered(&self, from: usize) -> usize {
        let open = |entry: &&Submitted| entry.state == State::Open;
        self.all.iter().skip(from).filter(open).count()
    }

    /// Reads one thing that was found, and compares it with what was submitted.
    pub(crate) fn read(&self, found: &Found<'_>, disk: &Disk) -> Check<Option<Seen>> {
        let Found::Record {
            position, record, ..
        } = found
        else {
            return broken("LOG-RECOVERY", "a gap where nothing is lost");
        };
        if record.kind != EVENT {
            return Ok(None);
        }
        let phantom = || broken("LOG-RECOVERY", format!("at {position}: never submitted"));
        let Some((submission, index)) = read_head(record.head) else {
            return phantom();
        };
        let length = self
            .all
            .get(submission)
            .and_then(|entry| entry.lengths.get(index));
        let Some(length) = length else {
            return phantom();
        };
        let whole = match record.form {
            Form::Whole => Some(record.body.to_vec()),
            Form::Chunked => chunk(disk.bytes(File::Blobs(0)), record.body).map(|(_, bytes)| bytes),
        };
        if whole.as_deref() != Some(body(submission, index, *length).as_slice()) {
            return broken(
                "LOG-RECOVERY",
                format!("at {position}: not as it was submitted"),
            );
        }
        Ok(Some(Seen {
            position: *position,
            submission,
            index,
        }))
    }

    /// Compares all that was found with what must be there.
    pub(crate) fn judge(&self, seen: &[Seen], end: End) -> Check {
        let found = self.batches(seen)?;
        let last = found.last().map_or(0, |(submission, _)| submission + 1);
        let refused = found
            .iter()
            .rev()
            .find_map(|(submission, _)| self.refused_at(*submission));
        if let Some(at) = refused {
            ensure(last <= at, "LOG-RECOVERY", || {
                format!("a refused batch stands before {}", last - 1)
            })?;
        }
        let mut found = found.into_iter().peekable();
        for (submission, entry) in self.all.iter().enumerate() {
            let here = found.next_if(|(next, _)| *next == submission);
            Self::judge_one(
                (submission, entry),
                here.map(|(_, position)| position),
                last,
                end,
            )?;
        }
        Ok(())
    }

    fn refused_at(&self, submission: usize) -> Option<usize> {
        let entry = self.all.get(submission)?;
        match entry.state {
            // What an earlier recovery found is in the log like all else.
            State::NoRoom(at) if entry.recovered != Some(true) => Some(at),
            _ => None,
        }
    }

    fn judge_one(
        (submission, entry): (usize, &Submitted),
        here: Option<u64>,
        last: usize,
        end: End,
    ) -> Check {
        let fail = |what: &str| broken("LOG-RECOVERY", format!("batch {submission} {what}"));
        if let Some(position) = here {
            return match entry.state {
                _ if entry.kept == Some(false) => fail("is back after it was cut off"),
                State::Untaken => fail("is there and was not taken"),
                State::Acked(acked) if acked != position => fail("is at another position"),
                _ => Ok(()),
            };
        }
        // What was only written may be gone since an earlier power cut.
        let written = end != End::Cut && entry.recovered != Some(false);
        let synced = entry.level == Level::Disk || written;
        match entry.state {
            _ if entry.kept == Some(true) => fail("is lost after it was recovered"),
            _ if entry.kept == Some(false) => Ok(()),
            State::Acked(_) if synced => fail("was acknowledged and is not there"),
            _ if entry.recovered == Some(false) => Ok(()),
            State::Acked(_) | State::Open | State::Fenced if submission < last => {
                fail("is missing before others")
            }
            _ => Ok(()),
        }
    }

    /// The batches that were found and their positions: each whole, in the order they were submitted.
    fn batches(&self, seen: &[Seen]) -> Check<Vec<(usize, u64)>> {
        let mut found: Vec<(usize, u64)> = Vec::new();
        let mut rest = seen;
        while let Some(first) = rest.first() {
            let count = self
                .all
                .get(first.submission)
                .map_or(0, |entry| entry.lengths.len());
            let (batch, behind) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            let whole = batch.len() == count
                && batch.iter().enumerate().all(|(index, record)| {
                    record.submission == first.submission
                        && record.index == index
                        && record.position == first.position + index as u64
                });
            ensure(whole, "LOG-BATCH", || {
                format!("batch {} is not whole", first.submission)
            })?;
            let ordered = found
                .last()
                .is_none_or(|(before, at)| *before < first.submission && *at < first.position);
            ensure(ordered, "LOG-RECOVERY", || {
                format!("batch {} is out of order", first.submission)
            })?;
            found.push((first.submission, first.position));
            rest = behind;
        }
        Ok(found)
    }

    /// Notes what a recovery found from which the log goes on.
    pub(crate) fn recovered(&mut self, seen: &[Seen]) {
        let mut found = seen.iter().map(|record| record.submission).peekable();
        for (submission, entry) in self.all.iter_mut().enumerate() {
            let mut here = false;
            while found.next_if_eq(&submission).is_some() {
                here = true;
            }
            entry.recovered = Some(here);
        }
    }

    /// From now on what that recovery found is there, and what it did not is gone.
    pub(crate) fn settle(&mut self) {
        for entry in &mut self.all {
            entry.kept = entry.recovered.or(entry.kept);
        }
    }
}
