//! A simulator of the engine: many sessions that publish, ask, call, work, fail and leave, under a virtual clock and a
//! log that delays and refuses, all from one seed. A second book holds the engine to its promises. A world of its own is
//! that of the log itself: its machine on a disk that loses what it may; another that of sessions over a wire.
//!
//! It is not a benchmark and not a shell: no time is read, no thread is started.
#![warn(missing_docs)]

mod actions;
mod afar;
mod book;
mod calls;
mod campaign;
mod checks;
mod coming;
mod dice;
mod event;
mod fuse;
mod habits;
mod health;
mod inbox;
mod life;
mod log;
mod losses;
mod misuse;
mod pace;
mod publishing;
mod requests;
mod seen;
mod serving;
mod sessions;
mod sub;
mod sums;
mod trace;
mod waits;
mod watch;
mod work;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom_core::Core;

pub use crate::campaign::{Campaign, Catch, hunt, hunt_in_sessions};
pub use crate::life::simulate_life;
pub use crate::log::{
    Damages, LogCampaign, LogRun, LogSetup, RARE_IN_A_LOG, damage_drawn, exhaust_log,
    flip_every_bit, simulate_log, truncate_everywhere,
};
pub use crate::seen::{RARE, Seen};
pub use crate::sessions::{RARE_IN_SESSIONS, SessionSetup, simulate_sessions};
pub use crate::trace::Violation;

use crate::dice::Dice;
use crate::habits::Habits;
use crate::trace::{Check, Trace, broken};
use crate::world::World;

/// What a run of one seed showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The seed, from which all else follows.
    pub seed: u64,
    /// The hash of all that happened.
    pub hash: u64,
    /// The rare states it reached.
    pub seen: Seen,
    /// The promise that was broken, if one was.
    pub violation: Option<Violation>,
    /// What happened, line by line, if it was asked for.
    pub lines: Vec<String>,
}

/// How to run a seed.
#[derive(Clone, Copy)]
pub struct Setup {
    /// Done to the engine before anything else: tests plant their bug here.
    pub prepare: fn(&mut Core),
    /// Keep the lines of the trace.
    pub traced: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            prepare: |_| {},
            traced: false,
        }
    }
}

/// Runs one seed to its end, or to the first promise that is broken.
pub fn simulate(seed: u64, setup: Setup) -> Run {
    let mut dice = Dice::new(seed);
    let limits = habits::draw_limits(&mut dice);
    let habits = Habits::draw(&mut dice);
    let mut core = Core::new(limits, seed);
    (setup.prepare)(&mut core);
    let mut world = World::new(core, dice, Trace::new(setup.traced));
    let ended = catch_unwind(AssertUnwindSafe(|| live(&mut world, &habits)));
    let ended = ended.unwrap_or_else(|_| broken("NO-PANIC", "the engine panicked"));
    world.look_back();
    Run {
        seed,
        hash: world.trace.hash,
        seen: world.seen,
        violation: ended.err(),
        lines: world.trace.lines.unwrap_or_default(),
    }
}

fn live(world: &mut World, habits: &Habits) -> Check {
    if habits.watched {
        world.start_watching()?;
    }
    world.attach()?;
    world.attach()?;
    for _ in 0..3 {
        world.register(habits)?;
    }
    let steps = world.dice.between(50, 400);
    for _ in 0..steps {
        world.step(habits)?;
    }
    world.settle()?;
    world.leave()
}
