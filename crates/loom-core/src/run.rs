//! How much follows from one root event: a run that feeds itself is stopped before it fills the engine.

use rustc_hash::FxHashMap;

use crate::core::Core;
use crate::error::{Error, Result};
use crate::planted::Planted;
use crate::time::Nanos;

/// What a run published in this half of the window and in the half before.
#[derive(Default)]
struct Count {
    now: usize,
    before: usize,
}

/// Events of the runs that were active of late: two halves, each half a window long or half the table large. The older is
/// dropped whole, and with it the runs that are idle.
#[derive(Default)]
pub(crate) struct Runs {
    young: FxHashMap<u128, Count>,
    old: FxHashMap<u128, Count>,
    turned: Nanos,
}

impl Runs {
    /// The count of a run, brought into the young half.
    fn count(&mut self, run: u128, now: Nanos, (most, half_ms): (usize, u64)) -> &mut Count {
        let since = self.turned.plus_millis(half_ms);
        if now >= since || self.young.len() >= most / 2 {
            self.old = std::mem::take(&mut self.young);
            if now >= since.plus_millis(half_ms) {
                self.old = FxHashMap::default();
            }
            self.turned = now;
        }
        self.young.entry(run).or_insert_with(|| {
            let before = self.old.remove(&run).map_or(0, |count| count.now);
            Count { now: 0, before }
        })
    }
}

impl Core {
    /// Counts one more event of a run, or refuses it. Root events are not counted: they begin one.
    pub(crate) fn count_run(&mut self, run: u128, now: Nanos) -> Result<()> {
        if self.has(Planted::RunUncounted) {
            return Ok(());
        }
        let bounds = (self.limits.runs, self.limits.run_window_ms / 2);
        let most = self.limits.run_events;
        let count = self.runs.count(run, now, bounds);
        if count.now + count.before < most {
            count.now += 1;
            return Ok(());
        }
        let message = format!("this run has published {most} events within a minute or less");
        Err(Error::exhausted("run_events", message)
            .field("run_id")
            .hint(
                "agents that answer each other need an end; a new thread starts from a root event",
            )
            .retry_after(bounds.1))
    }

    /// Takes one back that was not published after all.
    pub(crate) fn uncount_run(&mut self, run: u128, now: Nanos) {
        let bounds = (self.limits.runs, self.limits.run_window_ms / 2);
        let count = self.runs.count(run, now, bounds);
        count.now = count.now.saturating_sub(1);
    }

    /// Refuses an event that is for more subscriptions than one step may serve.
    pub(crate) fn check_fanout(&self, targets: usize) -> Result<()> {
        let most = self.limits.fanout;
        if targets <= most {
            return Ok(());
        }
        let message = format!("this event is for {targets} subscriptions of at most {most}");
        Err(Error::exhausted("fanout", message)
            .field("topic")
            .hint("publish to narrower topics, or let a group share the events"))
    }
}
