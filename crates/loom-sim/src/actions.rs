//! One random step after the other, and the work that settles a run.

use loom_core::{Code, LeaseId};

use crate::habits::{Habits, Step};
use crate::misuse::fault_of;
use crate::trace::{Check, broken, ensure};
use crate::world::{Held, Taker, World};

/// Codes that handlers fail with; none that the engine itself gives to a wait.
const FAILURES: &[Code] = &[Code::HandlerError, Code::ToolError, Code::InvalidParams];

impl World {
    pub(crate) fn step(&mut self, habits: &Habits) -> Check {
        self.act(habits)?;
        self.look()
    }

    fn act(&mut self, habits: &Habits) -> Check {
        match habits.draw_step(&mut self.dice) {
            Step::Attach => self.attach(),
            Step::Register => self.register(habits),
            Step::Subscribe => self.subscribe(habits),
            Step::Provide => self.provide(),
            Step::Remove => self.remove(),
            Step::Close => self.close_one(),
            Step::Publish => self.publish(habits),
            Step::Request => self.request(habits),
            Step::Invoke => self.invoke(habits),
            Step::Take => self.take_some(),
            Step::Finish => self.finish_some(),
            Step::Fail => self.fail_some(),
            Step::Reply => self.reply_some(),
            Step::Result => self.result_some(),
            Step::Chunk => self.chunk_some(),
            Step::Grant => self.grant_some(),
            Step::Cancel => self.cancel_some(),
            Step::Drain => self.drain_some(),
            Step::Pass => self.pass_some(),
            Step::Misuse => self.misuse(),
            Step::Health => self.turn_health(),
            Step::Mood => {
                self.turn_mood();
                Ok(())
            }
            Step::Weigh => self.weigh(),
            Step::Check => self.check(),
            Step::Settle => self.settle(),
        }
    }

    pub(crate) fn take_some(&mut self) -> Check {
        let takers = self.live_takers();
        match self.dice.pick(&takers) {
            Some(taker) => self.take(taker, None).map(|_| ()),
            None => Ok(()),
        }
    }

    pub(crate) fn some_held(&mut self, wanted: impl Fn(&Held) -> bool) -> Option<(LeaseId, Held)> {
        let fit = self.held.iter().filter(|(_, held)| wanted(held));
        let fit: Vec<LeaseId> = fit.map(|(lease, _)| *lease).collect();
        let lease = self.dice.pick(&fit)?;
        Some((lease, self.held.get(&lease)?.clone()))
    }

    /// Ends a turn, mostly with the next take of the same handle.
    pub(crate) fn finish_some(&mut self) -> Check {
        let Some((lease, held)) = self.some_held(|_| true) else {
            return Ok(());
        };
        let mut takers = self.live_takers();
        takers.retain(|taker| {
            self.taker(*taker)
                .is_some_and(|(session, _, _)| session == held.session)
        });
        let other = self.dice.pick(&takers).filter(|_| self.dice.chance(20));
        let taker = other.unwrap_or(held.taker);
        self.take(taker, Some(lease)).map(|_| ())
    }

    pub(crate) fn fail_some(&mut self) -> Check {
        let Some((lease, held)) = self.some_held(|_| true) else {
            return Ok(());
        };
        if held.job.is_some() {
            return self.fail_work(lease, &held);
        }
        let code = self.dice.pick(FAILURES).unwrap_or(Code::HandlerError);
        let open = held.call.is_some_and(|call| !self.waits.is_over(call));
        let heard = self
            .core
            .fail(held.session, fault_of(lease, code, None), self.at);
        self.note(format!("fail {lease:?} {code:?} -> {heard:?}"));
        let Ok(heard) = heard else {
            return broken(
                "LEASE-FENCED",
                format!("{lease:?} could not fail: {heard:?}"),
            );
        };
        let waited = held.asked && !held.answered && open;
        ensure(waited || !heard, "CALL-LATE", || {
            format!("{lease:?} failed late and was heard")
        })?;
        self.end_held(lease, Some(code))
    }

    pub(crate) fn drain_some(&mut self) -> Check {
        let live = self.live_peers();
        let Some(session) = self.dice.pick(&live) else {
            return Ok(());
        };
        let most = self.dice.count(1, 6);
        self.drain(session, most)
    }

    pub(crate) fn pass_some(&mut self) -> Check {
        let nanos = match self.dice.between(0, 9) {
            0..=4 => self.dice.between(1, 1_000_000),
            5..=7 => self.dice.between(1, 20) * 1_000_000,
            8 => self.dice.between(20, 200) * 1_000_000,
            _ => self.dice.between(1, 5) * 1_000_000_000,
        };
        let told = self.dice.chance(85);
        self.pass(nanos, told)
    }

    /// Does all the work there is, without letting time pass.
    pub(crate) fn settle(&mut self) -> Check {
        self.note("settle");
        self.look()?;
        self.raise_all()?;
        for _ in 0..400 {
            let mut moved = false;
            self.drain_every()?;
            for taker in self.live_takers() {
                moved |= self.take(taker, None)?;
                self.look()?;
            }
            let held: Vec<LeaseId> = self.held.keys().copied().collect();
            for lease in held {
                moved = true;
                self.end_somehow(lease)?;
                self.look()?;
            }
            let gauges = self.core.gauges();
            if !moved && gauges.inbox == 0 && gauges.pausing == 0 {
                return self.check_rest();
            }
            let pause = self.next.filter(|_| !moved);
            if let Some(next) = pause.filter(|next| *next > self.at.now) {
                self.pass(next.0 - self.at.now.0, true)?;
                self.look()?;
            } else if !moved {
                self.tick()?;
            }
        }
        broken("SETTLES", "the work never ends")
    }

    pub(crate) fn end_somehow(&mut self, lease: LeaseId) -> Check {
        let Some(held) = self.held.get(&lease).cloned() else {
            return Ok(());
        };
        let answer = self.dice.chance(60);
        match held.taker {
            Taker::Provider(_) if answer => self.give_result(lease, &held),
            Taker::Sub(_) if answer && held.asked && !held.answered => {
                self.give_reply(lease, &held)
            }
            _ => self.take(held.taker, Some(lease)).map(|_| ()),
        }
    }

    /// Everybody leaves, in an order of the dice's.
    pub(crate) fn leave(&mut self) -> Check {
        while let Some(at) = self.some_peer() {
            self.close(at)?;
            self.look()?;
        }
        self.stop_watching();
        self.check_gone()
    }
}
