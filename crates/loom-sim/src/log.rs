//! The world of the log: the log machine on a disk that keeps only what it has promised, and the publisher's own list.

mod book;
mod damage;
mod disk;
mod world;

use std::collections::BTreeMap;

use loom_log::{Machine, Recovery};

use crate::dice::Dice;
use crate::trace::{Check, Violation};

pub use self::damage::{Damages, damage_drawn, flip_every_bit, truncate_everywhere};
use self::world::World;

/// How to run a seed.
#[derive(Clone, Copy)]
pub struct LogSetup {
    /// Done to each machine: tests plant their bug here.
    pub machine: fn(&mut Machine),
    /// Done to each recovery: and here.
    pub recovery: fn(Recovery) -> Recovery,
    /// How many crashes are tried out after each step.
    pub probes: u32,
}

impl Default for LogSetup {
    fn default() -> Self {
        Self {
            machine: |_| {},
            recovery: |recovery| recovery,
            probes: 2,
        }
    }
}

/// What the rare states of a log are called; a campaign that does not reach all of them proves little.
pub const RARE_IN_A_LOG: [&str; 11] = [
    "busy",
    "chunked",
    "closed",
    "fenced",
    "killed",
    "power cut",
    "refused for space",
    "rotated",
    "storm",
    "torn",
    "lives",
];

/// What a run of one seed showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRun {
    /// The seed, from which all else follows.
    pub seed: u64,
    /// How many crashes were recovered from and judged.
    pub points: u64,
    /// How often each rare state was reached.
    pub seen: BTreeMap<&'static str, u64>,
    /// The promise that was broken, if one was.
    pub violation: Option<Violation>,
}

/// What many runs of the log showed together.
#[derive(Debug, Clone, Default)]
pub struct LogCampaign {
    /// How many seeds were run.
    pub runs: u64,
    /// How many crashes were recovered from and judged.
    pub points: u64,
    /// How often each rare state was reached.
    pub seen: BTreeMap<&'static str, u64>,
    /// The first that broke a promise.
    pub failed: Option<LogRun>,
}

impl LogCampaign {
    /// Runs seeds from `from` on until so many crashes are judged, or one breaks a promise; `after` is told of each.
    pub fn run(from: u64, points: u64, setup: LogSetup, mut after: impl FnMut(&Self)) -> Self {
        let mut campaign = Self::default();
        for seed in from.. {
            let run = simulate_log(seed, setup);
            campaign.runs += 1;
            campaign.points += run.points;
            for (what, count) in &run.seen {
                *campaign.seen.entry(what).or_default() += count;
            }
            let broken = run.violation.is_some();
            if broken {
                campaign.failed = Some(run);
            }
            after(&campaign);
            if broken || campaign.points >= points {
                break;
            }
        }
        campaign
    }

    /// The rare states that were never reached.
    pub fn missing(&self) -> Vec<&'static str> {
        let reached = |what: &&str| self.seen.contains_key(*what);
        RARE_IN_A_LOG
            .into_iter()
            .filter(|what| !reached(what))
            .collect()
    }
}

/// Runs one seed to its end, or to the first promise that is broken.
pub fn simulate_log(seed: u64, setup: LogSetup) -> LogRun {
    let mut world = World::new(Dice::new(seed), setup);
    let ended = live(&mut world);
    LogRun {
        seed,
        points: world.points,
        seen: world.seen,
        violation: ended.err(),
    }
}

fn live(world: &mut World) -> Check {
    world.open()?;
    for _ in 0..world.dice.between(100, 500) {
        world.step()?;
    }
    world.note("lives");
    world.rest()
}

/// Tries every crash there is in one small history: at each moment, each combination of what the unsynced pages and names
/// may be, where these are no more than `most`. The seed chooses the history and the order in which things are done.
pub fn exhaust_log(seed: u64, most: usize, setup: LogSetup) -> LogRun {
    let mut world = World::new(Dice::new(seed), LogSetup { probes: 0, ..setup });
    let ended = small(&mut world, most);
    LogRun {
        seed,
        points: world.points,
        seen: world.seen,
        violation: ended.err(),
    }
}

fn small(world: &mut World, most: usize) -> Check {
    world.small(3 * 4096);
    world.open()?;
    for _ in 0..world.dice.between(2, 6) {
        world.submit_small()?;
        world.probe_all(most)?;
        for _ in 0..world.dice.between(0, 4) {
            world.finish_one()?;
            world.probe_all(most)?;
        }
        if world.dice.chance(10) {
            let power = world.dice.chance(50);
            world.crash(power)?;
            world.probe_all(most)?;
        }
    }
    while world.finish_one()? {
        world.probe_all(most)?;
    }
    world.rest()
}
