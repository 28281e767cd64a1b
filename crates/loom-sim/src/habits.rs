//! What a run leans to: which steps it takes how often, and with which limits.

use loom_core::Limits;

use crate::dice::Dice;

/// A step that a run may take.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Attach,
    Register,
    Subscribe,
    Provide,
    Remove,
    Close,
    Publish,
    Request,
    Invoke,
    Take,
    Finish,
    Fail,
    Reply,
    Result,
    Chunk,
    Grant,
    Cancel,
    Drain,
    Pass,
    Misuse,
    Health,
    Mood,
    Weigh,
    Check,
    Settle,
}

impl Step {
    /// Whether it is about calls: four runs of ten lean to these.
    const fn is_of_broker(self) -> bool {
        matches!(
            self,
            Self::Provide
                | Self::Invoke
                | Self::Result
                | Self::Chunk
                | Self::Grant
                | Self::Mood
                | Self::Weigh
        )
    }
}

/// How often a step is taken in an ordinary run.
const USUAL: &[(Step, u64)] = &[
    (Step::Attach, 2),
    (Step::Register, 5),
    (Step::Subscribe, 2),
    (Step::Provide, 3),
    (Step::Remove, 1),
    (Step::Close, 1),
    (Step::Publish, 34),
    (Step::Request, 14),
    (Step::Invoke, 14),
    (Step::Take, 26),
    (Step::Finish, 10),
    (Step::Fail, 4),
    (Step::Reply, 9),
    (Step::Result, 7),
    (Step::Chunk, 8),
    (Step::Grant, 5),
    (Step::Cancel, 3),
    (Step::Drain, 12),
    (Step::Pass, 12),
    (Step::Misuse, 3),
    (Step::Health, 3),
    (Step::Mood, 1),
    (Step::Weigh, 1),
    (Step::Check, 4),
    (Step::Settle, 1),
];

/// What a run leans to: the dice change how often each step is taken, and leave some out.
pub(crate) struct Habits {
    weights: Vec<(Step, u64)>,
    pub(crate) keyed: u64,
    pub(crate) mortal: u64,
    pub(crate) wide: u64,
    pub(crate) realtime: u64,
    pub(crate) grouped: u64,
    pub(crate) many_causes: u64,
    pub(crate) watched: bool,
    pub(crate) joined: u64,
}

impl Habits {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let mut weights = USUAL.to_vec();
        let broker = dice.chance(40);
        for (step, weight) in &mut weights {
            if broker && step.is_of_broker() {
                *weight *= 4;
            }
            *weight = match dice.between(0, 9) {
                0 => 0,
                1 | 2 => *weight * 3,
                3 => weight.div_ceil(3),
                _ => *weight,
            };
        }
        Self {
            weights,
            keyed: dice.between(10, 90),
            mortal: if dice.chance(50) {
                dice.between(0, 40)
            } else {
                0
            },
            wide: if dice.chance(40) {
                dice.between(5, 40)
            } else {
                0
            },
            realtime: dice.between(0, 60),
            grouped: if dice.chance(50) {
                dice.between(20, 90)
            } else {
                0
            },
            many_causes: if dice.chance(40) {
                dice.between(5, 40)
            } else {
                0
            },
            watched: dice.chance(60),
            joined: dice.between(0, 70),
        }
    }

    pub(crate) fn draw_step(&self, dice: &mut Dice) -> Step {
        let all: u64 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = dice.between(0, all.max(1) - 1);
        for (step, weight) in &self.weights {
            if at < *weight {
                return *step;
            }
            at -= weight;
        }
        Step::Check
    }
}

/// Small limits, so that what is rare with the real ones is common.
pub(crate) fn draw_limits(dice: &mut Dice) -> Limits {
    // One run of three never ejects a provider.
    let breaker_failures = dice.pick(&[usize::MAX, 1, 2, 3, 4, 6]).unwrap_or(1);
    let breaker_calls = if breaker_failures == usize::MAX {
        usize::MAX
    } else {
        dice.count(2, 8)
    };
    Limits {
        ahead_items: 4,
        lane_ahead: 2,
        queue_items: if dice.chance(20) {
            dice.count(7, 20)
        } else {
            dice.count(1, 6)
        },
        queue_bytes: if dice.chance(30) {
            90_000
        } else {
            dice.count(40, 400)
        },
        batched_wait_ms: dice.between(1, 40),
        hops: dice.count(2, 6),
        parked_offers: dice.count(1, 5),
        provider_queue: dice.count(1, 4),
        pending_calls: dice.count(4, 30),
        stream_chunks_max: dice.count(1, 5),
        topic_cache: dice.count(1, 8),
        run_events: if dice.chance(25) {
            dice.count(2, 12)
        } else {
            Limits::default().run_events
        },
        run_window_ms: dice.between(20, 5_000),
        call_attempts: dice.count(1, 4),
        retry_base_ms: dice.between(1, 40),
        retry_percent: dice.count(0, 100),
        retry_saved: dice.count(1, 5),
        retry_start: dice.count(0, 3),
        breaker_failures,
        breaker_calls,
        breaker_percent: dice.count(30, 90),
        breaker_window_ms: dice.between(20, 1_000),
        breaker_open_ms: dice.between(1, 100),
        // Which of two calls decides cannot be seen from outside: the core's own tests know.
        breaker_probe_ms: 3_599_000,
        breaker_longest_seconds: 1,
        ..Limits::default()
    }
}
