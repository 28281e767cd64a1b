//! The checks between the steps: both books against each other, and what must be left at rest.

use loom_core::{Gauges, Reason};

use crate::event::space_name;
use crate::sums;
use crate::trace::{Check, broken, ensure};
use crate::waits::{Wait, Wanted};
use crate::world::{Taker, World};

impl World {
    /// Reads all inboxes, lets those look for work who were not told of any, and holds both books against each other.
    pub(crate) fn check(&mut self) -> Check {
        self.note("check");
        self.drain_every()?;
        self.probe()?;
        self.drain_every()?;
        self.check_waits()?;
        self.look()?;
        self.check_entries()?;
        self.check_books()
    }

    pub(crate) fn drain_every(&mut self) -> Check {
        for session in self.live_peers() {
            self.drain_all(session)?;
        }
        Ok(())
    }

    /// No wake-up is lost: who found nothing and was not told since finds nothing.
    pub(crate) fn probe(&mut self) -> Check {
        for taker in self.live_takers() {
            let idle = self
                .takers
                .get(&taker)
                .is_some_and(|call| !call.busy && !call.called);
            let streaming = matches!(taker, Taker::Sub(index)
                if self.book.subs.get(index).is_some_and(|s| s.stream && s.ahead.is_none() && !s.open.is_empty()));
            if idle && !streaming {
                let found = self.take(taker, None)?;
                ensure(!found, "WAKE-LOOP", || {
                    format!("{taker:?} had work and was not told")
                })?;
            }
        }
        Ok(())
    }

    pub(crate) fn check_waits(&mut self) -> Check {
        for (call, wait) in &self.waits.all {
            let over = wait.is_over() || is_doubted(wait);
            ensure(wait.told || wait.gone || !over, "CALL-ONE-OUTCOME", || {
                format!("{call:?} is over and has no outcome")
            })?;
        }
        let due = (
            self.waits.cancels_due.first(),
            self.waits.credits_due.first(),
        );
        ensure(due.0.is_none(), "CALL-CANCEL", || {
            format!("{due:?} was never told")
        })?;
        ensure(due.1.is_none(), "STREAM-CREDIT", || {
            format!("{due:?} was never told")
        })
    }

    pub(crate) fn check_books(&mut self) -> Check {
        let (audit, stats) = (self.core.audit(), self.core.stats());
        ensure(audit.balanced, "CONSERVATION", || format!("{audit:?}"))?;
        for (index, sub) in self
            .book
            .subs
            .iter()
            .enumerate()
            .filter(|(_, sub)| sub.live)
        {
            let space = space_name(sub.space);
            let row = audit
                .subscriptions
                .iter()
                .find(|row| row.name == sub.name && row.namespace == space);
            let Some(row) = row else {
                return broken("CONSERVATION", format!("{} is not in the audit", sub.name));
            };
            self.seen.note_if("event expired", row.expired > 0);
            let counted = stats
                .subscriptions
                .iter()
                .find(|row| row.name == sub.name && row.namespace == space);
            let Some(counted) = counted else {
                return broken("CONSERVATION", format!("{} is not in the stats", sub.name));
            };
            self.book.check_row(index, row, counted, &self.limits)?;
            sums::check_row(sub, counted, &self.limits)?;
            self.seen.note_if("subscription lagging", counted.lagging);
        }
        self.check_totals(&stats)?;
        let gauges = audit.gauges;
        let leased = self.held.len();
        ensure(gauges.leased == leased, "BOUNDED", || {
            format!("{leased} leases, {gauges:?}")
        })?;
        ensure(gauges.tickets == 0, "BOUNDED", || format!("{gauges:?}"))
    }

    /// Nothing is left to do: every queue is empty and who still waits has nobody to wait for.
    pub(crate) fn check_rest(&mut self) -> Check {
        self.check()?;
        let audit = self.core.audit();
        let stats = self.core.stats();
        let lags = stats.subscriptions.iter().find(|row| row.lagging);
        ensure(lags.is_none(), "QOS-LAGGING", || {
            format!("{lags:?} has nothing to do")
        })?;
        for row in &audit.subscriptions {
            ensure(row.queued == 0 && row.leased == 0, "SETTLES", || {
                format!("{row:?}")
            })?;
        }
        let gauges = audit.gauges;
        let rest = gauges.parked + gauges.tickets + gauges.inbox + gauges.leased + gauges.lanes;
        ensure(rest == 0, "SETTLES", || format!("{gauges:?}"))?;
        for (call, wait) in &self.waits.all {
            let waiting = matches!(&wait.wanted, Wanted::Request(asked) if asked.waiting);
            ensure(wait.told || wait.gone || waiting, "SETTLES", || {
                format!("{call:?} has no outcome, and all work is done")
            })?;
        }
        self.book.check_rings()
    }

    /// All sessions have ended: nothing is left.
    pub(crate) fn check_gone(&mut self) -> Check {
        let gauges = self.core.gauges();
        ensure(gauges == Gauges::default(), "BOUNDED", || {
            format!("left behind: {gauges:?}")
        })
    }

    /// Notes the rare states that only the engine's own counts show.
    pub(crate) fn look_back(&mut self) {
        let lost = |reason| self.core.dropped(reason) > 0;
        let (lagging, overflow) = (lost(Reason::Lagging), lost(Reason::Overflow));
        self.seen
            .note_if("lagging subscription lost an event", lagging);
        self.seen.note_if("realtime event overflowed", overflow);
    }
}

fn is_doubted(wait: &Wait) -> bool {
    matches!(&wait.wanted, Wanted::Request(asked) if asked.doubted)
}
