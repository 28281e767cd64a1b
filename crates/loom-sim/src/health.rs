//! How agents and providers fare, as those who supervise them would say it.

use loom_core::{Code, DirectoryKind, Health};

use crate::trace::{Check, broken, ensure};
use crate::world::{Taker, World};

const STATES: &[Health] = &[
    Health::Up,
    Health::Up,
    Health::Restarting,
    Health::Quarantined,
];

impl World {
    pub(crate) fn turn_health(&mut self) -> Check {
        let takers = self.live_takers();
        match (self.dice.pick(&takers), self.dice.pick(STATES)) {
            (Some(taker), Some(state)) => self.put_health(taker, state),
            _ => Ok(()),
        }
    }

    /// All are up, so that all work can be done.
    pub(crate) fn raise_all(&mut self) -> Check {
        for taker in self.live_takers() {
            if self.health(taker) != Health::Up {
                self.put_health(taker, Health::Up)?;
                self.look()?;
            }
        }
        Ok(())
    }

    fn put_health(&mut self, taker: Taker, state: Health) -> Check {
        let Some((session, handle, _)) = self.taker(taker) else {
            return Ok(());
        };
        let put = self.core.set_state(session, handle, state, self.at);
        self.note(format!("{taker:?} is {state:?} -> {put:?}"));
        if self.is_stream(taker) {
            let refused = put.is_err_and(|error| error.code == Code::InvalidParams);
            return ensure(refused, "BAD-INPUT", || {
                format!("{taker:?} is a stream, and was put {state:?}")
            });
        }
        if let Err(error) = put {
            return broken("LEASE-FENCED", format!("{taker:?} was refused: {error}"));
        }
        if self.health(taker) == state {
            return Ok(());
        }
        match taker {
            Taker::Sub(index) => {
                self.watch.fare(handle, token(state));
                self.put_agent(index, state)
            }
            Taker::Provider(index) => {
                self.put_provider(index, state);
                Ok(())
            }
        }
    }

    fn put_agent(&mut self, index: usize, state: Health) -> Check {
        let sub = self.book.sub(index)?;
        let (was, space) = (std::mem::replace(&mut sub.health, state), sub.space);
        let open = !sub.open.is_empty();
        if state == Health::Quarantined {
            self.seen.note_if("agent quarantined with turns open", open);
            return self.book.shed(index);
        }
        self.seen.note_if("agent restarting", state != Health::Up);
        if was == Health::Quarantined {
            self.seen.note("agent released from quarantine");
            self.ask_waiting(space)?;
        }
        Ok(())
    }

    /// What waits for a provider that is not up goes to another, waits while it restarts, or ends.
    fn put_provider(&mut self, index: usize, state: Health) {
        let Some(provider) = self.providers.get_mut(index) else {
            return;
        };
        provider.health = state;
        let key = (provider.space, provider.capability);
        let whole = provider.breaker.is_whole();
        let jobs = self.jobs.iter();
        let queued = jobs
            .filter(|job| !job.over && job.lease.is_none() && (job.space, job.capability) == key)
            .count();
        let quarantined = state == Health::Quarantined && queued > 0;
        self.seen
            .note_if("provider quarantined with calls queued", quarantined);
        if state != Health::Up || !whole {
            *self.waits.gone.entry(key).or_default() += 1;
            self.blur(key);
        }
    }
}

/// The directory's word for it.
pub(crate) const fn token(state: Health) -> &'static str {
    match state {
        Health::Up => "up",
        Health::Restarting => "restarting",
        Health::Quarantined => "quarantined",
        Health::Ejected => "ejected",
        Health::Probing => "probing",
    }
}

/// Which half of the directory, as it stands in topics.
pub(crate) const fn half(kind: DirectoryKind) -> &'static str {
    match kind {
        DirectoryKind::Agent => "agent",
        DirectoryKind::Capability => "capability",
    }
}
