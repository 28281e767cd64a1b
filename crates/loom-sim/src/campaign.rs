//! Many seeds one after the other.

use std::ops::Range;

use crate::{Run, Seen, SessionSetup, Setup, simulate, simulate_sessions};

/// What many runs showed together.
#[derive(Debug, Clone, Default)]
pub struct Campaign {
    /// How many were run.
    pub runs: u64,
    /// The rare states that any of them reached.
    pub seen: Seen,
    /// The first that broke a promise.
    pub failed: Option<Run>,
}

impl Campaign {
    /// Runs a range of seeds up to the first that fails; `after` is told of each run.
    pub fn run(seeds: Range<u64>, setup: Setup, after: impl FnMut(&Run)) -> Self {
        Self::of(seeds, |seed| simulate(seed, setup), after)
    }

    /// As [`Self::run`], in the world of sessions.
    pub fn run_sessions(seeds: Range<u64>, setup: SessionSetup, after: impl FnMut(&Run)) -> Self {
        Self::of(seeds, |seed| simulate_sessions(seed, setup), after)
    }

    fn of(seeds: Range<u64>, simulate: impl Fn(u64) -> Run, mut after: impl FnMut(&Run)) -> Self {
        let mut campaign = Self::default();
        for seed in seeds {
            let run = simulate(seed);
            campaign.runs += 1;
            campaign.seen.add(&run.seen);
            after(&run);
            if run.violation.is_some() {
                campaign.failed = Some(run);
                break;
            }
        }
        campaign
    }
}

/// How a planted bug was caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catch {
    /// The seed that caught it.
    pub seed: u64,
    /// How many seeds it took.
    pub runs: u64,
    /// The promise that was seen broken.
    pub law: &'static str,
    /// What was seen.
    pub what: String,
}

/// Runs seeds until one fails.
pub fn hunt(seeds: Range<u64>, setup: Setup) -> Option<Catch> {
    Campaign::run(seeds, setup, |_| {}).catch()
}

/// Runs seeds of the world of sessions until one fails.
pub fn hunt_in_sessions(seeds: Range<u64>, setup: SessionSetup) -> Option<Catch> {
    Campaign::run_sessions(seeds, setup, |_| {}).catch()
}

impl Campaign {
    fn catch(self) -> Option<Catch> {
        let campaign = self;
        let run = campaign.failed?;
        let violation = run.violation?;
        Some(Catch {
            seed: run.seed,
            runs: campaign.runs,
            law: violation.law,
            what: violation.what,
        })
    }
}
