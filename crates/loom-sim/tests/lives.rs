//! The world of the log holds the engine to its promises over restarts, and catches the bugs planted for it.

use std::ops::Range;

use loom_core::Planted;
use loom_sim::{Run, Setup, simulate_life};

const MOST_SEEDS: u64 = 600;

fn first_broken(seeds: Range<u64>, setup: Setup) -> Option<Run> {
    seeds
        .map(|seed| simulate_life(seed, setup))
        .find(|run| run.violation.is_some())
}

macro_rules! catches {
    ($($name:ident: $bug:ident),* $(,)?) => {
        $(
            // requirement: SIM-CATCHES
            #[test]
            fn $name() {
                let setup = Setup {
                    prepare: |core| core.plant(Planted::$bug),
                    traced: false,
                };
                let Some(run) = first_broken(0..MOST_SEEDS, setup) else {
                    panic!("{:?} was not caught", Planted::$bug);
                };
                println!("{:?}: seed {}, {:?}", Planted::$bug, run.seed, run.violation);
                let kept = simulate_life(run.seed, Setup::default()).violation;
                assert_eq!(kept, None, "without the bug, seed {} keeps every promise", run.seed);
            }
        )*

        const HUNTED: &[Planted] = &[$(Planted::$bug),*];
    };
}

catches! {
    an_event_that_shows_before_it_is_logged_is_caught: ShownEarly,
    answers_of_the_log_applied_out_of_order_are_caught: LogUnordered,
    a_floor_that_moves_past_a_parked_event_is_caught: FloorOverParked,
    ids_that_are_forgotten_at_a_restart_are_caught: IdsForgotten,
    attempts_that_are_forgotten_at_a_restart_are_caught: AttemptsForgotten,
    an_ack_before_the_turn_ends_is_caught: AckedEarly,
    an_event_that_is_given_again_while_its_loop_moves_is_caught: GivenWhileLeased,
    a_dead_letter_that_is_dropped_is_caught: DeadDropped,
    a_dead_event_that_is_redriven_twice_is_caught: RedrivenTwice,
    a_group_that_is_never_idle_though_nobody_belongs_to_it_is_caught: IdleRenewed,
    a_group_that_is_ended_untold_is_caught: EndUntold,
    a_restart_that_forgets_which_client_had_a_turn_is_caught: ClientsForgotten,
}

// requirement: SIM-CATCHES
#[test]
fn every_bug_of_the_log_is_hunted() {
    assert_eq!(HUNTED.len(), Planted::OF_THE_LOG.len());
    assert!(Planted::OF_THE_LOG.iter().all(|bug| HUNTED.contains(bug)));
}

// requirement: TICKETS-ORDERED, DUR-ACK, DUR-RESTART, DUR-RETRY, DUR-LEASE, DUR-BEHIND, DUR-GROUP, DUR-FOLD, DEDUP-ONCE
// requirement: DLQ-AFTER-MAX, DLQ-REDRIVE, DUR-NEEDS, DUR-HOLD, GRACE-KEPT, GRACE-OVER, AHEAD-ORDER
#[test]
fn the_engine_keeps_its_promises_over_restarts() {
    if let Some(run) = first_broken(0..700, Setup::default()) {
        let traced = Setup {
            traced: true,
            ..Setup::default()
        };
        let lines = simulate_life(run.seed, traced).lines;
        let from = lines.len().saturating_sub(60);
        panic!(
            "seed {}: {:?}\n{}",
            run.seed,
            run.violation,
            lines.get(from..).unwrap_or_default().join("\n")
        );
    }
}

// requirement: SIM-DETERMINISTIC
#[test]
fn the_same_seed_gives_the_same_life() {
    for seed in 0..20 {
        let runs = [0, 1].map(|_| simulate_life(seed, Setup::default()).hash);
        assert_eq!(runs[0], runs[1]);
    }
}
