//! What changes in runs and threads while a portion is read; written once at its end.

use std::collections::BTreeMap;

use loom_core::Envelope;
use rusqlite::{Connection, Result, params};

/// What one portion adds to a run.
#[derive(Debug, Default)]
pub(crate) struct Run {
    root: Option<(String, String, String)>,
    times: Span,
    places: Span,
    events: u64,
    pub(crate) turns: u64,
    pub(crate) calls: u64,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) cost: f64,
    pub(crate) gaps: u64,
}

impl Run {
    /// Something of it happened at this time.
    pub(crate) fn seen(&mut self, at_ms: u64) {
        self.times.add(at_ms);
    }
}

#[derive(Debug, Default)]
struct Thread {
    times: Span,
    places: Span,
    events: u64,
}

/// The first and the last of what was seen.
#[derive(Debug, Default)]
struct Span(Option<(u64, u64)>);

impl Span {
    fn add(&mut self, value: u64) {
        let (first, last) = self.0.unwrap_or((value, value));
        self.0 = Some((first.min(value), last.max(value)));
    }

    fn first(&self) -> Option<u64> {
        self.0.map(|(first, _)| first)
    }

    fn last(&self) -> Option<u64> {
        self.0.map(|(_, last)| last)
    }
}

/// The sums of one portion.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    runs: BTreeMap<String, Run>,
    threads: BTreeMap<String, Thread>,
}

impl Totals {
    /// What is added to a run by the record at this place.
    pub(crate) fn run(&mut self, run: &str, n: u64) -> &mut Run {
        if !self.runs.contains_key(run) {
            self.runs.insert(run.to_owned(), Run::default());
        }
        let entry = self.runs.entry(run.to_owned()).or_default();
        entry.places.add(n);
        entry
    }

    /// Counts an event. `said` is its run, thread and agent.
    pub(crate) fn event(&mut self, n: u64, env: &Envelope, said: (&str, &str, &str)) {
        let (run, thread, agent) = said;
        let of_run = self.run(run, n);
        of_run.events += 1;
        of_run.seen(env.time_ms);
        if env.id == env.run {
            of_run.root = Some((env.topic.to_string(), agent.to_owned(), thread.to_owned()));
        }
        let of_thread = self.threads.entry(thread.to_owned()).or_default();
        of_thread.events += 1;
        of_thread.times.add(env.time_ms);
        of_thread.places.add(n);
    }

    /// Writes the sums, and forgets them.
    pub(crate) fn flush(&mut self, db: &Connection) -> Result<()> {
        let mut write = db.prepare_cached(
            "INSERT INTO runs (run, root, agent, thread, started_ms, last_ms, first_n, last_n, events, turns, calls, requests,
                errors, input_tokens, output_tokens, cost, gaps)
             VALUES (?1, ?2, ?3, ?4, coalesce(?5, 0), coalesce(?6, 0), ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)
             ON CONFLICT (run) DO UPDATE SET
                root = coalesce(root, ?2), agent = coalesce(agent, ?3), thread = coalesce(thread, ?4),
                started_ms = min(coalesce(?5, started_ms), started_ms), last_ms = max(coalesce(?6, last_ms), last_ms),
                last_n = max(last_n, ?8), events = events + ?9, turns = turns + ?10, calls = calls + ?11,
                requests = requests + ?12, errors = errors + ?13, input_tokens = input_tokens + ?14,
                output_tokens = output_tokens + ?15, cost = cost + ?16, gaps = gaps + ?17",
        )?;
        for (run, of) in std::mem::take(&mut self.runs) {
            let root = of.root.as_ref();
            write.execute(params![
                run,
                root.map(|(topic, _, _)| topic),
                root.map(|(_, agent, _)| agent),
                root.map(|(_, _, thread)| thread),
                of.times.first(),
                of.times.last(),
                of.places.first(),
                of.places.last(),
                of.events,
                of.turns,
                of.calls,
                of.requests,
                of.errors,
                of.input_tokens,
                of.output_tokens,
                of.cost,
                of.gaps,
            ])?;
        }
        let mut write = db.prepare_cached(
            "INSERT INTO threads (thread, started_ms, last_ms, last_n, events) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (thread) DO UPDATE SET started_ms = min(started_ms, ?2), last_ms = max(last_ms, ?3),
                last_n = max(last_n, ?4), events = events + ?5",
        )?;
        for (thread, of) in std::mem::take(&mut self.threads) {
            write.execute(params![
                thread,
                of.times.first(),
                of.times.last(),
                of.places.last(),
                of.events
            ])?;
        }
        Ok(())
    }
}
