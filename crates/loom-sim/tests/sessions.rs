//! The world of sessions holds node and clients to their promises over wires that fail, and catches the bugs planted for it.

use loom_session::Planted;
use loom_sim::{Campaign, RARE_IN_SESSIONS, SessionSetup, hunt_in_sessions, simulate_sessions};

/// Seeds that a bug is caught in at the latest.
const MOST_SEEDS: u64 = 3_000;

macro_rules! catches {
    ($($name:ident: $bug:ident),* $(,)?) => {
        $(
            // requirement: SIM-CATCHES
            #[test]
            fn $name() {
                let setup = SessionSetup {
                    hub: |hub| hub.plant(Planted::$bug),
                    client: |client| client.plant(Planted::$bug),
                    traced: false,
                };
                let caught = hunt_in_sessions(0..MOST_SEEDS, setup);
                let caught = caught.unwrap_or_else(|| panic!("{:?} was not caught", Planted::$bug));
                println!(
                    "{:?}: {} seeds, seed {}, {}: {}",
                    Planted::$bug, caught.runs, caught.seed, caught.law, caught.what
                );
                let kept = simulate_sessions(caught.seed, SessionSetup::default()).violation;
                assert_eq!(kept, None, "without the bug, seed {} keeps every promise", caught.seed);
            }
        )*

        const HUNTED: &[Planted] = &[$(Planted::$bug),*];
    };
}

catches! {
    credit_that_is_added_up_is_caught: CreditAsDelta,
    a_late_end_of_a_connection_that_takes_the_session_is_caught: CleanedBySession,
    frames_of_a_fenced_connection_that_are_taken_are_caught: FencedHeard,
    a_frame_that_is_taken_twice_is_caught: DuplicateTaken,
    frames_that_are_not_sent_again_are_caught: ResendDropped,
    an_end_of_a_turn_that_overtakes_what_it_published_is_caught: AckOvertakes,
    a_session_that_is_resumed_in_vain_is_caught: ResumedInVain,
    a_lease_of_an_earlier_life_that_is_quoted_is_caught: OldLeaseQuoted,
    an_older_attachment_that_takes_over_is_caught: EpochIgnored,
    a_session_that_is_kept_for_ever_is_caught: KeptForever,
    a_session_that_ends_with_its_connection_is_caught: ReleasedAtOnce,
    a_publish_that_is_sent_again_without_its_id_is_caught: SentAgainUnnamed,
    a_client_that_does_not_come_back_after_a_clean_end_is_caught: EndIsFinal,
    a_turn_that_is_begun_again_after_it_ended_well_is_caught: AckedForgotten,
    what_an_ended_turn_has_sent_and_a_root_says_again_is_caught: EndedUnfenced,
    deliveries_beyond_what_was_granted_are_caught: GrantIgnored,
    a_half_of_a_frame_that_is_forgotten_is_caught: PartsForgotten,
}

#[test]
fn every_bug_of_sessions_is_hunted() {
    assert_eq!(HUNTED.len(), Planted::ALL.len());
    assert!(Planted::ALL.iter().all(|bug| HUNTED.contains(bug)));
}

// requirement: SESSION-CUT, SESSION-FENCED, SESSION-KEPT, SESSION-AGAIN, SESSION-CREDIT, SESSION-DEADLINE, SESSION-ENDS-ONCE
// requirement: SESSION-ORDER, SESSION-PUBLISH-ONCE, SESSION-UNSAFE-ONCE, SESSION-ACK-AFTER, SESSION-TURN-FENCED
#[test]
fn sessions_keep_their_promises_and_every_rare_state_is_reached() {
    let campaign = Campaign::run_sessions(0..2_000, SessionSetup::default(), |_| {});
    let failed = campaign.failed.map(|run| (run.seed, run.violation));
    assert_eq!(
        failed, None,
        "again: cargo run -p loom-sim --release -- sessions --seed S --trace"
    );
    assert_eq!(
        campaign.seen.missing_of(RARE_IN_SESSIONS),
        Vec::<&str>::new()
    );
}

// requirement: SIM-DETERMINISTIC
#[test]
fn the_same_seed_gives_the_same_sessions() {
    for seed in 0..50 {
        let runs = [0, 1].map(|_| simulate_sessions(seed, SessionSetup::default()));
        assert_eq!(runs[0], runs[1]);
    }
}
