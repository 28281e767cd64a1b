//! Sessions elsewhere: what they may hear, and whether they take ahead of the ends of their turns.

use std::sync::Arc;

use loom_core::{Code, Error, GrantTexts, Grants, Limits, SessionId};

use crate::dice::Dice;
use crate::publishing::TOPICS;
use crate::sub::hears;
use crate::trace::{Check, broken, ensure};
use crate::world::World;

/// Topics that may be heard, and events of the engine; none: everything.
pub(crate) type MayHear = Option<(&'static [&'static str], &'static [&'static str])>;

const GRANTED: &[MayHear] = &[
    Some((&["a.>", "b", "spawn.>"], &[])),
    Some((
        &["*.b", "x.*", "thread.>", "spawn.*"],
        &["loom.error.>", "loom.directory.*.joined"],
    )),
    Some((&["a", "*.*"], &["loom.>"])),
    Some((&[">"], &[])),
    Some((&["b.>"], &[">"])),
];

/// How a session stays.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stay {
    pub(crate) may_hear: MayHear,
    pub(crate) ahead: bool,
    /// As many as may be out, if it takes ahead.
    pub(crate) most: Option<usize>,
}

/// Which sessions are elsewhere.
pub(crate) struct Afar {
    dice: Dice,
    /// Of a hundred sessions.
    share: u64,
}

impl Afar {
    pub(crate) fn new(dice: &Dice) -> Self {
        let mut dice = dice.apart(0x0061_6661_7261_6661);
        let share = if dice.chance(40) { 60 } else { 0 };
        Self { dice, share }
    }

    pub(crate) fn draw(&mut self, most: usize) -> Stay {
        if !self.dice.chance(self.share) {
            return Stay::default();
        }
        let granted = self.dice.chance(60);
        let may_hear = self.dice.pick(GRANTED).flatten().filter(|_| granted);
        let ahead = self.dice.chance(60);
        Stay {
            may_hear,
            ahead,
            most: ahead.then_some(most),
        }
    }
}

pub(crate) fn grants_of(may_hear: MayHear, limits: &Limits) -> Option<Arc<Grants>> {
    let (subscribe, observe) = may_hear?;
    let texts = GrantTexts {
        publish: &[">"],
        subscribe,
        call: &[">"],
        provide: &[">"],
        observe,
        admin: &[">"],
    };
    Grants::parse(&texts, limits).ok().map(Arc::new)
}

pub(crate) fn may_hear(granted: MayHear, topic: &str) -> bool {
    let Some((subscribe, observe)) = granted else {
        return true;
    };
    let list = if topic.starts_with("loom.") {
        observe
    } else {
        subscribe
    };
    list.iter().any(|filter| hears(filter, topic))
}

impl World {
    pub(crate) fn stay_of(&self, session: SessionId) -> Stay {
        let peer = self.peers.iter().find(|peer| peer.id == session);
        peer.map(|peer| peer.stay).unwrap_or_default()
    }

    /// Only a filter of which nothing may be heard is refused.
    pub(crate) fn check_denied(&mut self, filters: &[String], stay: Stay, error: &Error) -> Check {
        if error.code != Code::Denied {
            return broken("BAD-INPUT", format!("{filters:?} were refused: {error}"));
        }
        let heard = |filter: &String| {
            let mut topics = TOPICS.iter();
            topics.any(|topic| hears(filter, topic) && may_hear(stay.may_hear, topic))
        };
        ensure(!filters.iter().all(heard), "AUTHZ-SUBSCRIBE", || {
            format!("{filters:?} may be heard by {stay:?}, and were denied")
        })?;
        self.seen.note("filter denied");
        Ok(())
    }
}
