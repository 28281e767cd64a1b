//! What groups consume: how far they are, what they have not done with, what they gave up.

use std::collections::BTreeMap;

use loom_core::record::{Consumer, ConsumerGone, Dead, Progress, Redriven, Started, Waits};
use loom_core::{Envelope, Filter, Limits, Position};
use rusqlite::{Connection, Result, params};

use super::{Changed, Rows, bounded, code_name, filled, json};

/// What a group hears, and how far it has consumed.
#[derive(Debug)]
pub(crate) struct Hears {
    filters: Vec<Filter>,
    start: u64,
    floor: u64,
}

impl Hears {
    fn hears(&self, n: u64, topic: &str) -> bool {
        n >= self.start && self.filters.iter().any(|filter| filter.matches(topic))
    }
}

/// Reads the consumers that a view knows.
pub(crate) fn load_consumers(db: &Connection) -> Result<BTreeMap<u32, Hears>> {
    let sql = "SELECT consumer, filters, start, floor FROM consumers WHERE gone IS NULL";
    let mut all = db.prepare_cached(sql)?;
    let rows = all.query_map([], |row| {
        let filters: String = row.get(1)?;
        let filters: Vec<String> = serde_json::from_str(&filters).unwrap_or_default();
        let hears = Hears {
            filters: parse_filters(&filters),
            start: row.get(2)?,
            floor: row.get(3)?,
        };
        Ok((row.get(0)?, hears))
    })?;
    rows.collect()
}

/// What was taken as a filter once is read as one again.
fn parse_filters(filters: &[String]) -> Vec<Filter> {
    let limits = Limits::default();
    let read = filters.iter().map(|text| Filter::parse(text, &limits));
    read.flatten().collect()
}

const NEW: &str = "INSERT OR IGNORE INTO deliveries (consumer, n, state) VALUES (?1, ?2, 'new')";

impl Rows<'_> {
    /// A durable event is on its way to each consumer that hears it.
    pub(super) fn deliver(&self, n: u64, env: &Envelope) -> Changed {
        for (consumer, hears) in self.consumers.iter() {
            if hears.hears(n, &env.topic) {
                self.run(NEW, params![consumer, n])?;
            }
        }
        Ok(())
    }

    pub(super) fn consumer(&mut self, at: Position, it: &Consumer) -> Changed {
        let filters = parse_filters(&it.filters);
        let known = self.consumers.remove(&it.consumer);
        let hears = Hears {
            filters,
            start: it.start,
            floor: known.as_ref().map_or(it.start, |known| known.floor),
        };
        self.run(
            "INSERT INTO consumers (consumer, name, filters, start, floor, time_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (consumer) DO UPDATE SET filters = ?3, gone = NULL",
            params![it.consumer, it.group, json(&it.filters), bounded(it.start), bounded(hears.floor), it.at_ms],
        )?;
        if known.is_none() && it.start < at.n {
            self.catch_up_consumer(it.consumer, &hears)?;
        }
        self.consumers.insert(it.consumer, hears);
        Ok(())
    }

    /// A consumer that starts in the past has the events since then before it.
    fn catch_up_consumer(&self, consumer: u32, hears: &Hears) -> Changed {
        let sql = "SELECT n, topic FROM events WHERE n >= ?1 AND durable";
        let mut past = self.db.prepare_cached(sql)?;
        let mut rows = past.query(params![bounded(hears.start)])?;
        while let Some(row) = rows.next()? {
            let topic: String = row.get(1)?;
            let n: u64 = row.get(0)?;
            if hears.hears(n, &topic) {
                self.run(NEW, params![consumer, n])?;
            }
        }
        Ok(())
    }

    pub(super) fn started(&self, it: &Started) -> Changed {
        self.run(
            "INSERT INTO deliveries (consumer, n, state, attempt) VALUES (?1, ?2, 'given', ?3)
             ON CONFLICT (consumer, n) DO UPDATE SET state = 'given', attempt = ?3, until_ms = NULL",
            params![it.consumer, it.n, it.attempt],
        )
        .map(drop)
    }

    pub(super) fn progress(&mut self, it: &Progress) -> Changed {
        let from = match self.consumers.get_mut(&it.consumer) {
            Some(hears) => std::mem::replace(&mut hears.floor, it.floor),
            None => it.floor,
        };
        for n in &it.acked {
            self.done(it.consumer, *n)?;
        }
        if it.floor > from {
            self.floor(it, from)?;
            let sql = "UPDATE consumers SET floor = ?2 WHERE consumer = ?1";
            self.run(sql, params![it.consumer, bounded(it.floor)])?;
        }
        Ok(())
    }

    /// What the floor has passed is done with, but for what is named as open.
    fn floor(&self, it: &Progress, from: u64) -> Changed {
        let sql = "DELETE FROM deliveries WHERE consumer = ?1 AND n >= ?2 AND n < ?3";
        let mut open = it.open.clone();
        open.sort_unstable();
        let mut next = from;
        for n in open.iter().filter(|n| **n >= from && **n < it.floor) {
            self.run(sql, params![it.consumer, next, n])?;
            next = n + 1;
        }
        self.run(sql, params![it.consumer, bounded(next), bounded(it.floor)])
            .map(drop)
    }

    fn done(&self, consumer: u32, n: u64) -> Changed {
        let sql = "DELETE FROM deliveries WHERE consumer = ?1 AND n = ?2";
        self.run(sql, params![consumer, n]).map(drop)
    }

    pub(super) fn waits(&self, it: &Waits) -> Changed {
        let code = (it.code > 0).then(|| code_name(it.code));
        self.run(
            "INSERT INTO deliveries (consumer, n, state, attempt, until_ms, code, message)
             VALUES (?1, ?2, 'waits', ?3, ?4, ?5, ?6)
             ON CONFLICT (consumer, n) DO UPDATE
             SET state = 'waits', attempt = ?3, until_ms = ?4, code = ?5, message = ?6",
            params![
                it.consumer,
                it.n,
                it.attempt,
                bounded(it.until_ms),
                code,
                filled(&it.message)
            ],
        )
        .map(drop)
    }

    pub(super) fn dead(&self, it: &Dead) -> Changed {
        let code = (it.code > 0).then(|| code_name(it.code));
        self.run(
            "INSERT OR REPLACE INTO dead_letters
                (consumer, n, name, event, topic, run, thread, attempt, code, message, time_ms)
             SELECT ?1, ?2, (SELECT name FROM consumers WHERE consumer = ?1), e.id, e.topic, e.run, e.thread, ?3, ?4, ?5, ?6
             FROM (SELECT 1) LEFT JOIN events e ON e.n = ?2",
            params![it.consumer, it.n, it.attempt, code, filled(&it.message), it.at_ms],
        )?;
        self.done(it.consumer, it.n)
    }

    pub(super) fn redriven(&self, at: Position, it: &Redriven) -> Changed {
        let sql = "UPDATE dead_letters SET redriven_n = ?3 WHERE consumer = ?1 AND n = ?2";
        self.run(sql, params![it.consumer, it.n, at.n]).map(drop)
    }

    pub(super) fn consumer_gone(&mut self, it: &ConsumerGone) -> Changed {
        self.consumers.remove(&it.consumer);
        let sql = "UPDATE consumers SET gone = ?2 WHERE consumer = ?1";
        self.run(sql, params![it.consumer, it.why])?;
        let sql = "DELETE FROM deliveries WHERE consumer = ?1";
        self.run(sql, params![it.consumer]).map(drop)
    }
}
