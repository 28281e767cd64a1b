//! Reading the log for those who watch it from a place on.

use std::sync::Arc;

use loom_core::{Code, Envelope, Error, Filter, Position, Record, Result};
use loom_log::ReadLimit;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::convert::{refusal, text};
use crate::engine::Shared;
use crate::log::patience;
use crate::threads::monotonic;

/// Events that one look gives at most, and records that it goes through.
const EVENTS: usize = 1_024;
const RECORDS: usize = 1 << 16;
/// What stands before a number that only this module has given out.
const NEXT: char = '@';
/// What stands before milliseconds since 1970, where they come as text.
pub(crate) const TIME: &str = "time:";

/// Where to begin.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start {
    Now,
    Beginning,
    At(Position),
    Time(u64),
    /// Where an earlier look has ended.
    Next(u64),
}

impl Start {
    /// Reads "now", "beginning", a position, or milliseconds since 1970.
    pub(crate) fn of(given: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(ms) = given.extract::<i64>() {
            return Ok(Self::Time(u64::try_from(ms).unwrap_or(0)));
        }
        let Ok(start) = given.cast::<PyString>() else {
            return Err(refusal(
                Code::InvalidParams,
                "start is neither text nor a time",
                Some("start"),
            ));
        };
        Self::read(text("start", start)?).map_err(crate::convert::refuse)
    }

    /// Reads what stands for it in a text: "now", "beginning", a position, or what an earlier look gave.
    pub(crate) fn read(start: &str) -> Result<Self> {
        if let Some(n) = start.strip_prefix(NEXT).and_then(|n| n.parse().ok()) {
            return Ok(Self::Next(n));
        }
        if let Some(ms) = start.strip_prefix(TIME).and_then(|ms| ms.parse().ok()) {
            return Ok(Self::Time(ms));
        }
        match start {
            "now" => Ok(Self::Now),
            "beginning" => Ok(Self::Beginning),
            position => {
                let read: Result<Position> = position.parse();
                read.map(Self::At).map_err(|error| error.field("start"))
            }
        }
    }
}

/// What one look has given.
pub(crate) struct Seen {
    pub(crate) events: Vec<Arc<Envelope>>,
    pub(crate) next: String,
    pub(crate) at_end: bool,
}

/// Gives events of a namespace's log that match, from a place on. What was appended before the look is in it.
///
/// # Errors
/// `CURSOR_EXPIRED`, `INVALID_CURSOR`; what the log says of what it cannot read.
pub(crate) fn look(
    shared: &Shared,
    namespace: &str,
    filters: &[String],
    start: Start,
) -> Result<Seen> {
    let whole = shared.waiting.wait(monotonic() + patience());
    let (partition, from, filters) = shared.outside(|core, _| {
        let partition = core.partition_of(namespace).ok_or_else(|| {
            Error::new(Code::NotFound, format!("no log is open for {namespace:?}"))
                .field("namespace")
        })?;
        let filters: Result<Vec<Filter>> = filters
            .iter()
            .map(|text| Filter::parse(text, core.limits()))
            .collect();
        let from = match start {
            Start::Now => core
                .partition(partition)
                .map_or(0, loom_core::Partition::end),
            Start::Beginning | Start::Time(_) => core.oldest(partition),
            Start::At(position) => core.cursor(partition, position)?,
            Start::Next(n) => n,
        };
        Ok::<_, Error>((partition, from, filters?))
    })??;
    let since = match start {
        Start::Time(ms) => ms,
        _ => 0,
    };
    let store = shared
        .store
        .get()
        .ok_or_else(|| Error::new(Code::Internal, "there is no log"))?;
    let (mut events, mut next, mut records) = (Vec::new(), from, 0);
    loop {
        let most = ReadLimit {
            records: EVENTS,
            ..ReadLimit::default()
        };
        let batch = store.read(partition, next, most)?;
        next = batch.next;
        records += batch.records.len();
        events.extend(batch.records.into_iter().filter_map(|(_, record)| {
            let Record::Event(env) = record else {
                return None;
            };
            let fits = filters.iter().any(|filter| filter.matches(&env.topic));
            // One that was published anew for a consumer that had given it up has been there before.
            let is_new = env.extra.as_ref().is_none_or(|extra| extra.only.is_none());
            (fits && is_new && env.time_ms >= since).then_some(env)
        }));
        let is_full = events.len() >= EVENTS || (records >= RECORDS && since == 0);
        if batch.at_end || is_full || (!events.is_empty() && since > 0) {
            return Ok(Seen {
                events,
                next: format!("{NEXT}{next}"),
                at_end: batch.at_end && whole,
            });
        }
    }
}

/// Where a group begins to consume, if it is new; one that is known goes on where it was.
///
/// # Errors
/// As [`look`].
pub(crate) fn begin(
    shared: &Shared,
    namespace: &str,
    group: &str,
    start: Start,
) -> Result<loom_core::Start> {
    let is_known = || {
        shared.outside(|core, _| {
            let folded = core
                .partition_of(namespace)
                .and_then(|it| core.partition(it));
            folded.is_some_and(|folded| folded.consumer_of(group).is_some())
        })
    };
    Ok(match start {
        Start::Now | Start::Next(_) => loom_core::Start::Now,
        _ if is_known()? => loom_core::Start::Now,
        Start::Beginning => loom_core::Start::Beginning,
        Start::At(position) => loom_core::Start::At(position),
        Start::Time(_) => {
            let found = look(shared, namespace, &[">".to_owned()], start)?;
            let first = found.events.first().and_then(|env| env.position);
            first.map_or(loom_core::Start::Now, loom_core::Start::At)
        }
    })
}
