//! Errors, each once: the log records a failure, an event tells it, and a retry repeats it.

use rusqlite::{Connection, Result, params};

use crate::totals::Totals;

/// What failed.
pub(crate) enum Subject<'a> {
    /// The turn of an event at an agent.
    Turn(&'a str, &'a str),
    /// A call, by its id.
    Call(&'a str),
    /// A request, by its event.
    Request(&'a str),
    /// Something that only an event told, by that event.
    Other(&'a str),
}

impl Subject<'_> {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Turn(..) => "turn",
            Self::Call(_) => "call",
            Self::Request(_) => "request",
            Self::Other(_) => "other",
        }
    }

    fn key(&self, code: &str) -> String {
        let kind = self.kind();
        match self {
            Self::Turn(event, agent) => format!("{kind} {event} {agent} {code}"),
            Self::Call(id) | Self::Request(id) | Self::Other(id) => format!("{kind} {id} {code}"),
        }
    }
}

/// A failure, as a record or an event says it.
pub(crate) struct Failure<'a> {
    pub(crate) subject: Subject<'a>,
    pub(crate) code: &'a str,
    pub(crate) message: &'a str,
    pub(crate) agent: Option<&'a str>,
    pub(crate) name: Option<&'a str>,
    pub(crate) event: Option<&'a str>,
    pub(crate) run: Option<&'a str>,
    pub(crate) thread: Option<&'a str>,
    pub(crate) time_ms: u64,
    pub(crate) is_event: bool,
}

impl Failure<'_> {
    /// Writes it, or counts it where it is known; the run counts it once.
    pub(crate) fn write(&self, db: &Connection, n: u64, totals: &mut Totals) -> Result<()> {
        let key = self.subject.key(self.code);
        let (events, records) = (u32::from(self.is_event), u32::from(!self.is_event));
        let again =
            "UPDATE errors SET events = events + ?2, records = records + ?3 WHERE subject = ?1";
        let known = db
            .prepare_cached(again)?
            .execute(params![key, events, records])?;
        if known > 0 {
            return Ok(());
        }
        db.prepare_cached(
            "INSERT INTO errors (n, subject, kind, code, message, agent, name, event, run, thread, time_ms, events, records)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?
        .execute(params![
            n,
            key,
            self.subject.kind(),
            self.code,
            self.message,
            self.agent,
            self.name,
            self.event,
            self.run,
            self.thread,
            self.time_ms,
            events,
            records,
        ])?;
        if let Some(run) = self.run {
            totals.run(run, n).errors += 1;
        }
        Ok(())
    }
}
