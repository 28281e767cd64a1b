//! From a record to its rows.

mod calls;
mod consuming;
mod events;
mod turns;

use std::collections::BTreeMap;

use loom_core::record::{Epoch, Gap, Id};
use loom_core::spec::limits::VIEW_DATA_BYTES;
use loom_core::{Code, Position, Record, show_uuid};
use rusqlite::{Connection, Result, ToSql, params};

pub(crate) use self::consuming::{Hears, load_consumers};
use crate::totals::Totals;

/// Writes rows inside of one transaction.
pub(crate) struct Rows<'a> {
    pub(crate) db: &'a Connection,
    pub(crate) totals: &'a mut Totals,
    pub(crate) consumers: &'a mut BTreeMap<u32, Hears>,
}

/// What the log says of itself.
struct Note<'a> {
    kind: &'a str,
    level: &'a str,
    time_ms: Option<u64>,
    message: &'a str,
    run: Option<&'a str>,
}

type Changed = Result<()>;

impl Rows<'_> {
    fn run(&self, sql: &str, values: &[&dyn ToSql]) -> Result<usize> {
        self.db.prepare_cached(sql)?.execute(values)
    }

    /// Writes what one record says.
    pub(crate) fn add(&mut self, at: Position, record: &Record) -> Changed {
        match record {
            Record::Epoch(it) => self.opened(at, it),
            Record::Closed(it) => {
                self.meta("closed", &1)?;
                self.note(at, &note("closed", "info", Some(it.at_ms), "closed well"))
            }
            Record::Gap(it) => self.gap(at, it),
            Record::ClockJump(it) => {
                let message = format!("the clock jumped from {} to {} ms", it.from_ms, it.to_ms);
                self.note(at, &note("clock", "warning", Some(it.to_ms), &message))
            }
            Record::Event(env) => {
                self.event(at, env, None)?;
                self.deliver(at.n, env)
            }
            Record::Sent(sent) => self.event(at, &sent.envelope, Some(sent.turn)),
            Record::Ended(it) => self.ended(at, it),
            Record::Consumer(it) => self.consumer(at, it),
            Record::ConsumerGone(it) => self.consumer_gone(it),
            Record::Started(it) => self.started(it),
            Record::Progress(it) => self.progress(it),
            Record::Waits(it) => self.waits(it),
            Record::Dead(it) => self.dead(it),
            Record::Redriven(it) => self.redriven(at, it),
            Record::Intent(it, body) => self.intent(at, it, body),
            Record::Dispatched(it) => self.dispatched(it),
            Record::Outcome(it, body) => self.outcome(at, it, body),
            Record::Settled(it, _) => self.settled(it),
            Record::Turn(it) => self.turn(at, it),
            Record::TurnEnd(it) => self.turn_end(at, it),
            Record::Step(it, _) => self.step(at, it),
            Record::State(..) | Record::Memory(..) => Ok(()),
        }
    }

    pub(crate) fn meta(&self, key: &str, value: &dyn ToSql) -> Changed {
        let sql = "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)";
        self.run(sql, &[&key, value]).map(drop)
    }

    fn note(&self, at: Position, note: &Note<'_>) -> Changed {
        let sql = "INSERT INTO notes (n, kind, level, time_ms, message, run) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let (kind, level) = (note.kind, note.level);
        let values = params![at.n, kind, level, note.time_ms, note.message, note.run];
        self.run(sql, values).map(drop)
    }

    fn opened(&self, at: Position, it: &Epoch) -> Changed {
        self.meta("closed", &0)?;
        let (mut level, mut message) = ("info", format!("opened by Loom {}", it.version));
        if it.torn_bytes > 0 {
            level = "warning";
            message = format!(
                "{message}; {} bytes of a torn end were cut off",
                it.torn_bytes
            );
        }
        self.note(at, &note("opened", level, Some(it.at_ms), &message))
    }

    fn gap(&mut self, at: Position, it: &Gap) -> Changed {
        let (run, missing) = (text(it.run), it.to.saturating_sub(it.from));
        if let Some(run) = &run {
            self.totals.run(run, at.n).gaps += 1;
        }
        let message = match &run {
            Some(_) => format!("{missing} records of the run are missing: {}", it.why),
            None => format!("positions {} to {} are lost: {}", it.from, it.to, it.why),
        };
        let said = Note {
            run: run.as_deref(),
            ..note("gap", "error", None, &message)
        };
        self.note(at, &said)
    }
}

const fn note<'a>(
    kind: &'a str,
    level: &'a str,
    time_ms: Option<u64>,
    message: &'a str,
) -> Note<'a> {
    Note {
        kind,
        level,
        time_ms,
        message,
        run: None,
    }
}

/// An id as people read it.
fn text(id: Option<Id>) -> Option<String> {
    id.map(|id| show_uuid(id.into()))
}

/// The number of a turn as `SQLite` keeps it: all its bits are used, and nobody counts with it.
const fn turn_number(turn: u64) -> i64 {
    turn.cast_signed()
}

/// A number that may stand for "never".
fn bounded(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// The name of an error, or OK.
fn code_name(number: u32) -> &'static str {
    let code = u16::try_from(number).ok().and_then(Code::from_number);
    match code {
        _ if number == 0 => "OK",
        Some(code) => code.name(),
        None => "UNKNOWN",
    }
}

/// What is kept of a body: text, if it is text and not too large.
fn kept(body: &[u8]) -> Option<&str> {
    if body.is_empty() || body.len() > VIEW_DATA_BYTES || body.contains(&0) {
        return None;
    }
    std::str::from_utf8(body).ok()
}

/// The name in `namespace/name`.
fn name_of(sender: &str) -> &str {
    sender.split_once('/').map_or(sender, |(_, name)| name)
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn five(row: &rusqlite::Row<'_>) -> Result<[Option<String>; 5]> {
    let mut found: [Option<String>; 5] = Default::default();
    for (at, place) in found.iter_mut().enumerate() {
        *place = row.get(at)?;
    }
    Ok(found)
}
