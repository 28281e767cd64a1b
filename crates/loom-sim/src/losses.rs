//! Losses that must be told, and told at most once in a while.

use std::collections::BTreeMap;
use std::sync::Arc;

use loom_core::{Dropped, Envelope, Reason, Stats, show_uuid};
use serde_json::Value;

use crate::event::space_name;
use crate::trace::{Check, broken, ensure};
use crate::watch::Losses;
use crate::world::World;

type Rows = BTreeMap<(usize, String), Dropped>;

impl World {
    /// A loss that was told: of a subscription that is known, and the first for a while.
    pub(crate) fn check_told(&mut self, at: usize, env: &Arc<Envelope>) -> Check {
        let told = || {
            let body = String::from_utf8_lossy(&env.payload);
            format!("{} {body}", env.topic)
        };
        let Some(space) = self.watch.streams.get(at).map(|stream| stream.space) else {
            return broken("SIM-BOOK", "the simulator lost a watcher");
        };
        let Some((key, count)) = self.read_told(space, env) else {
            return broken("LOSS-TOLD", told());
        };
        let now = self.at.now;
        let soon = self.watch.was_told(&key, now);
        let before = self.watch.told.insert(key, (now, count));
        let more = before.is_none_or(|(_, before)| count > before);
        ensure(!soon && more, "LOSS-TOLD", || {
            format!("{} at {now:?}, and {before:?} was told before", told())
        })?;
        self.seen.note_if("second loss told", before.is_some());
        self.check_cause(env)
    }

    /// Whose loss it is and how many that makes, if it is a possible one.
    fn read_told(&self, space: usize, env: &Envelope) -> Option<(Losses, u64)> {
        let body: Value = serde_json::from_slice(&env.payload).ok()?;
        let text = |field: &str| body.get(field).and_then(Value::as_str).unwrap_or_default();
        let reason = Reason::ALL.into_iter().find(|reason| {
            text("reason") == reason.token()
                && *env.topic == format!("loom.dropped.{}", reason.token())
        })?;
        let name = text("subscription").strip_prefix(&format!("{}/", space_name(space)))?;
        let topic = text("topic");
        let mut subs = self.book.subs.iter();
        let known = subs.any(|sub| sub.space == space && sub.name == name && sub.hears(topic));
        let caused = env.causation.map(show_uuid).as_deref() == Some(text("event_id"));
        let count = body.get("dropped").and_then(Value::as_u64)?;
        let own = known && caused && count > 0 && !topic.starts_with("loom.");
        own.then(|| ((space, name.to_owned(), reason), count))
    }

    /// What follows from an event is of its run and its thread.
    fn check_cause(&self, env: &Envelope) -> Check {
        let mut events = self.book.events.iter();
        let cause = events.find(|event| event.id.is_some() && event.id == env.causation);
        let Some(cause) = cause else { return Ok(()) };
        let run = cause.stamp.as_ref().map(|stamp| stamp.run).or(cause.id);
        let thread = cause.thread.as_ref();
        let same = Some(env.run) == run && thread.is_none_or(|thread| *thread == env.thread);
        ensure(same, "RUN-STAMPED", || {
            format!("{env:?} follows from an event of run {run:?}")
        })
    }

    /// Every loss was told, now or a short while ago, as far as the watchers have heard all.
    pub(crate) fn check_losses(&mut self, stats: &Stats, totals: [u64; 4]) -> Check {
        let all = stats.subscriptions.iter();
        let rows: Rows = all
            .filter_map(|row| {
                let space = (0..2).find(|space| row.namespace == space_name(*space))?;
                let watcher = row.name.starts_with("watcher");
                let name = if watcher {
                    row.filters.concat()
                } else {
                    row.name.clone()
                };
                Some(((space, name), row.dropped))
            })
            .collect();
        let gone = self.find_gone(&rows);
        let before = self.watch.totals;
        for ((reason, total), before) in Reason::ALL.into_iter().zip(totals).zip(before) {
            let listed = self.check_rows(&rows, reason)?;
            if total > before + listed {
                self.check_gone_told(&gone, reason)?;
            }
        }
        self.watch.rows = rows;
        self.watch.absent.extend(gone);
        self.watch.totals = totals;
        Ok(())
    }

    /// Holds the losses of those that are there against what was told; how many there were.
    fn check_rows(&self, rows: &Rows, reason: Reason) -> Check<u64> {
        let mut all = 0;
        for (key, dropped) in rows {
            let was = self.watch.rows.get(key).map_or(0, |was| lost(was, reason));
            let fresh = lost(dropped, reason).saturating_sub(was);
            all += fresh;
            let mut subs = self.book.subs.iter().rev();
            let sub = subs.find(|sub| (sub.space, &sub.name) == (key.0, &key.1));
            let quiet = sub.is_none_or(crate::sub::Sub::hears_engine);
            let told = quiet || fresh == 0 || self.is_told(key, reason);
            ensure(told, "LOSS-TOLD", || {
                format!("{key:?} lost {fresh} as {reason:?}, and it was not told")
            })?;
        }
        Ok(all)
    }

    /// More was lost than those lost who are there: one of those who went was told of.
    fn check_gone_told(&self, gone: &[usize], reason: Reason) -> Check {
        let gone: Vec<_> = gone
            .iter()
            .filter_map(|at| self.book.subs.get(*at))
            .collect();
        let told = gone
            .iter()
            .any(|sub| sub.hears_engine() || self.is_told(&(sub.space, sub.name.clone()), reason));
        ensure(told, "LOSS-TOLD", || {
            let names: Vec<&str> = gone.iter().map(|sub| &*sub.name).collect();
            format!("one of {names:?} lost events as {reason:?}, and it was not told")
        })
    }

    /// Whether losses of a subscription were told not long ago, or that may have been missed.
    fn is_told(&self, key: &(usize, String), reason: Reason) -> bool {
        let now = self.at.now;
        self.watch.was_told(&(key.0, key.1.clone(), reason), now)
            || self.watch.is_blind(key.0, reason, now)
    }

    /// Subscriptions that have gone since the last look.
    fn find_gone(&self, rows: &Rows) -> Vec<usize> {
        let subs = self.book.subs.iter().enumerate();
        let gone = subs.filter(|(_, sub)| {
            let listed = rows.contains_key(&(sub.space, sub.name.clone()));
            !sub.live && (sub.stream || !listed)
        });
        let fresh = gone.filter(|(at, _)| !self.watch.absent.contains(at));
        fresh.map(|(at, _)| at).collect()
    }
}

fn lost(dropped: &Dropped, reason: Reason) -> u64 {
    match reason {
        Reason::Overflow => dropped.overflow,
        Reason::Lagging => dropped.lagging,
        Reason::Unsubscribed => dropped.unsubscribed,
        Reason::SessionGone => dropped.session_gone,
    }
}
