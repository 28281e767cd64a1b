//! The simulator holds the engine to its promises, gives the same trace for the same seed, and catches planted bugs.

use loom_core::Planted;
use loom_sim::{Campaign, Catch, Setup, hunt, simulate};

/// Seeds that a bug is caught in at the latest.
const MOST_SEEDS: u64 = 600;

macro_rules! hunt_for {
    ($bug:ident) => {
        hunt(
            0..MOST_SEEDS,
            Setup {
                prepare: |core| core.plant(Planted::$bug),
                traced: false,
            },
        )
    };
}

fn show(bug: Planted, caught: &Catch) -> String {
    format!(
        "{bug:?}: seed {}, {}: {}",
        caught.seed, caught.law, caught.what
    )
}

macro_rules! catches {
    ($($name:ident: $bug:ident),* $(,)?) => {
        $(
            // requirement: SIM-CATCHES
            #[test]
            fn $name() {
                let caught = hunt_for!($bug);
                let caught = caught.unwrap_or_else(|| panic!("{:?} was not caught", Planted::$bug));
                println!("{}", show(Planted::$bug, &caught));
            }
        )*

        const HUNTED: &[Planted] = &[$(Planted::$bug),*];
    };
}

catches! {
    work_that_is_not_announced_is_caught: LostWake,
    a_lane_that_gives_its_newest_event_first_is_caught: NewestFirst,
    a_loss_that_is_not_counted_is_caught: UncountedLoss,
    a_second_outcome_is_caught: SecondOutcome,
    a_deadline_that_passes_unnoticed_is_caught: ForgottenDeadline,
    an_event_that_is_delivered_twice_is_caught: DeliveredTwice,
    two_turns_at_once_in_a_lane_are_caught: TwoTurns,
    an_answer_after_the_outcome_is_caught: LateAnswer,
    an_event_that_shows_before_it_is_logged_is_caught: ShownEarly,
    answers_of_the_log_applied_out_of_order_are_caught: LogUnordered,
    credit_that_is_added_up_is_caught: CreditAsDelta,
    an_event_that_starts_after_its_time_is_caught: ExpiredStarts,
    a_key_that_moves_while_it_is_held_is_caught: KeyMoves,
    a_decline_that_is_forgotten_is_caught: ForgottenDecline,
    a_provider_that_is_not_told_of_a_cancel_is_caught: UntoldCancel,
    a_turn_that_a_foreign_session_may_end_is_caught: ForeignLease,
    a_realtime_event_dropped_before_older_ones_is_caught: NewestDropped,
    a_loss_that_is_told_too_often_is_caught: LossToldTwice,
    a_subscription_that_lags_too_long_is_caught: LagsLonger,
    a_lane_that_starves_another_is_caught: LaneStarves,
    a_change_of_health_that_is_not_told_is_caught: HealthUntold,
    a_quarantined_agent_that_hears_on_is_caught: QuarantinedHears,
}

#[test]
fn every_planted_bug_is_hunted() {
    assert_eq!(HUNTED.len(), Planted::ALL.len());
    assert!(Planted::ALL.iter().all(|bug| HUNTED.contains(bug)));
}

// requirement: CONSERVATION, TICKETS-ORDERED, EVENT-ONCE, LANE-GROUP, CALL-ONE-OUTCOME, STREAM-CREDIT, BOUNDED
#[test]
fn the_engine_keeps_its_promises_and_every_rare_state_is_reached() {
    let campaign = Campaign::run(0..2_000, Setup::default(), |_| {});
    let failed = campaign.failed.map(|run| (run.seed, run.violation));
    assert_eq!(
        failed, None,
        "again: cargo run -p loom-sim --release -- --seed S --trace"
    );
    assert_eq!(campaign.seen.missing(), Vec::<&str>::new());
}

// requirement: SIM-DETERMINISTIC
#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..100 {
        let setup = Setup {
            traced: true,
            ..Setup::default()
        };
        let (first, second) = (simulate(seed, setup), simulate(seed, setup));
        assert_eq!(first.hash, second.hash);
        assert_eq!(first, second);
    }
}

// requirement: SIM-DETERMINISTIC
#[test]
fn another_seed_gives_another_trace() {
    let hashes: std::collections::BTreeSet<u64> = (0..100)
        .map(|seed| simulate(seed, Setup::default()).hash)
        .collect();
    assert_eq!(hashes.len(), 100);
}
