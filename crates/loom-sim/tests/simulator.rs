//! The simulator holds the engine to its promises, gives the same trace for the same seed, and catches planted bugs.

use std::time::Duration;

use loom_core::Planted;
use loom_sim::{Campaign, Catch, Setup, hunt, simulate};

/// Seeds that a bug is caught in at the latest.
const MOST_SEEDS: u64 = 600;

/// What one bug may take of the 90 seconds that all have together.
const LONGEST: Duration = Duration::from_secs(20);

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
                #[expect(clippy::disallowed_methods, reason = "how long a hunt takes is what is asked")]
                let began = std::time::Instant::now();
                let caught = hunt_for!($bug);
                let took = began.elapsed();
                let caught = caught.unwrap_or_else(|| panic!("{:?} was not caught", Planted::$bug));
                println!("{} ({} seeds, {took:.2?})", show(Planted::$bug, &caught), caught.runs);
                let kept = simulate(caught.seed, Setup::default()).violation;
                assert_eq!(kept, None, "without the bug, seed {} keeps every promise", caught.seed);
                assert!(took < LONGEST, "the bugs together may take 90 s, this one alone took {took:?}");
            }
        )*

        const HUNTED: &[Planted] = &[$(Planted::$bug),*];
    };
}

catches! {
    a_grant_that_is_looked_at_only_to_subscribe_is_caught: GrantsNotKept,
    a_lane_that_is_given_ahead_out_of_order_is_caught: AheadReordered,
    work_that_is_not_announced_is_caught: LostWake,
    a_lane_that_gives_its_newest_event_first_is_caught: NewestFirst,
    a_loss_that_is_not_counted_is_caught: UncountedLoss,
    a_second_outcome_is_caught: SecondOutcome,
    a_deadline_that_passes_unnoticed_is_caught: ForgottenDeadline,
    an_event_that_is_delivered_twice_is_caught: DeliveredTwice,
    two_turns_at_once_in_a_lane_are_caught: TwoTurns,
    an_answer_after_the_outcome_is_caught: LateAnswer,
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
    a_retry_of_what_may_not_be_done_twice_is_caught: UnsafeRetried,
    a_retry_after_the_deadline_is_caught: RetryOutlives,
    retries_without_a_budget_are_caught: BudgetIgnored,
    two_calls_that_probe_at_once_are_caught: ManyProbes,
    a_breaker_that_ejects_all_is_caught: AllEjected,
    a_follower_that_is_forgotten_with_its_leader_is_caught: FollowerForgotten,
    a_join_with_other_arguments_is_caught: OtherArguments,
    a_drained_provider_that_is_chosen_is_caught: DrainedChosen,
    weights_that_are_ignored_are_caught: WeightsIgnored,
    a_run_that_is_not_counted_is_caught: RunUncounted,
    topics_that_are_never_forgotten_are_caught: TopicKept,
    background_that_is_not_shed_first_is_caught: BackgroundUnshed,
}

#[test]
fn every_planted_bug_is_hunted() {
    assert_eq!(HUNTED.len(), Planted::ALL.len());
    assert!(Planted::ALL.iter().all(|bug| HUNTED.contains(bug)));
}

// requirement: CONSERVATION, TICKETS-ORDERED, EVENT-ONCE, LANE-GROUP, CALL-ONE-OUTCOME, STREAM-CREDIT, BOUNDED
// requirement: CALL-RETRY, CALL-BUDGET, CALL-BREAKER, CALL-JOIN, CALL-PROVIDERS, CALL-WEIGHTS, CALL-VERSIONS, LOSS-TOLD
// requirement: LANE-FAIR, QOS-LAGGING, HEALTH-QUARANTINED, DIRECTORY-EVENTS, RUN-BOUNDED, STATS-TOPIC, STATS-QOS
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
