//! The log loses nothing that it acknowledged and calls no power cut damage; and a log that did would be caught.

use std::time::Duration;

use loom_log::Planted;
use loom_sim::{
    Damages, LogCampaign, LogRun, LogSetup, damage_drawn, exhaust_log, flip_every_bit,
    simulate_log, truncate_everywhere,
};

/// Crashes that a bug is caught in at the latest.
const MOST_POINTS: u64 = 150_000;
/// What one bug may take.
const LONGEST: Duration = Duration::from_secs(30);
/// No more ways than these are tried out at one moment.
const WAYS: usize = 1 << 10;

fn caught_in(setup: LogSetup) -> (Option<LogRun>, u64) {
    let campaign = LogCampaign::run(0, MOST_POINTS, setup, |_| {});
    (campaign.failed, campaign.points)
}

macro_rules! catches {
    ($($name:ident: $bug:ident),* $(,)?) => {
        $(
            // requirement: SIM-CATCHES
            #[test]
            fn $name() {
                #[expect(clippy::disallowed_methods, reason = "how long a hunt takes is what is asked")]
                let began = std::time::Instant::now();
                let (caught, points) = caught_in(LogSetup {
                    machine: |machine| machine.plant(Planted::$bug),
                    recovery: |recovery| recovery.plant(Planted::$bug),
                    ..LogSetup::default()
                });
                let took = began.elapsed();
                let caught = caught.unwrap_or_else(|| panic!("{:?} was not caught", Planted::$bug));
                let violation = caught.violation.unwrap();
                println!("{:?}: seed {}, {points} crashes, {took:.2?}: {violation}", Planted::$bug, caught.seed);
                let kept = simulate_log(caught.seed, LogSetup::default()).violation;
                assert_eq!(kept, None, "without the bug, seed {} keeps every promise", caught.seed);
                assert!(took < LONGEST, "this bug alone took {took:?}");
            }
        )*

        const HUNTED: &[Planted] = &[$(Planted::$bug),*];
    };
}

catches! {
    an_answer_before_the_sync_is_caught: AckBeforeSync,
    an_answer_to_a_write_that_failed_is_caught: AckFailed,
    a_sync_that_answers_for_later_writes_is_caught: SyncCoversLater,
    a_mark_of_a_sync_that_is_not_done_is_caught: SyncedTooHigh,
    a_log_that_goes_on_after_a_failed_sync_is_caught: GoesOnAfterFailure,
    a_segment_begun_before_the_last_one_is_synced_is_caught: RotatesUnsynced,
    a_segment_named_before_its_header_is_synced_is_caught: HeaderUnsynced,
    names_that_are_not_synced_are_caught: NamesUnsynced,
    a_batch_in_several_frames_is_caught: BatchSplit,
    what_a_write_without_space_left_is_caught: FullUnrepaired,
    a_frame_that_is_not_checked_is_caught: CrcSkipped,
    a_stale_tail_that_is_kept_is_caught: TailKept,
    a_tail_in_memory_that_is_trusted_is_caught: TailTrusted,
    chunks_that_are_not_synced_are_caught: ChunksUnsynced,
    chunks_that_nobody_looks_for_are_caught: ChunksTrusted,
}

// requirement: LOG-ACKED, LOG-TORN, LOG-BATCH, LOG-CLOSED, LOG-FULL, LOG-FENCED
#[test]
fn the_log_keeps_its_promises_through_drawn_crashes_and_every_rare_state_is_reached() {
    let campaign = LogCampaign::run(0, 100_000, LogSetup::default(), |_| {});
    let failed = campaign
        .failed
        .as_ref()
        .map(|run| (run.seed, run.violation.clone()));
    assert_eq!(failed, None);
    assert!(campaign.points >= 100_000);
    assert_eq!(campaign.missing(), Vec::<&str>::new());
}

// requirement: LOG-ACKED, LOG-TORN
#[test]
fn the_log_keeps_its_promises_in_every_way_that_crashes_of_small_histories_may_go() {
    let mut points = 0;
    for seed in 0..200 {
        let run = exhaust_log(seed, WAYS, LogSetup::default());
        assert_eq!(run.violation, None, "seed {seed}");
        points += run.points;
    }
    assert!(points > 10_000, "{points} crashes");
}

// requirement: SIM-DETERMINISTIC
#[test]
fn the_same_seed_gives_the_same_history_of_a_log() {
    for seed in 0..20 {
        let runs = [(); 2].map(|()| simulate_log(seed, LogSetup::default()));
        assert_eq!(runs[0], runs[1]);
    }
}

fn all(damages: impl IntoIterator<Item = Damages>) -> Damages {
    damages
        .into_iter()
        .fold(Damages::default(), |sum, one| Damages {
            tried: sum.tried + one.tried,
            whole: sum.whole + one.whole,
            cut: sum.cut + one.cut,
            reported: sum.reported + one.reported,
            accepted: sum.accepted + one.accepted,
            violation: sum.violation.or(one.violation),
        })
}

/// Much of what is tried must end in a report, else the log is too small to show anything.
fn holds(damages: &Damages) {
    assert_eq!(damages.violation, None);
    assert!(damages.reported > damages.tried / 10);
    assert!(damages.whole > 0 && damages.cut > 0 && damages.accepted > 0);
}

// requirement: LOG-DAMAGE, LOG-LOSS
#[test]
fn any_one_bit_that_flips_leaves_each_record_exact_or_is_reported() {
    holds(&all(
        (0..2).map(|seed| flip_every_bit(seed, LogSetup::default()))
    ));
}

// requirement: LOG-DAMAGE, LOG-TORN
#[test]
fn a_segment_cut_at_any_byte_leaves_each_record_exact_or_is_reported() {
    holds(&all(
        (0..2).map(|seed| truncate_everywhere(seed, LogSetup::default()))
    ));
}

// requirement: LOG-DAMAGE, LOG-LOSS
#[test]
fn ten_thousand_drawn_damages_leave_each_record_exact_or_are_reported() {
    let damages = all((0..50).map(|seed| damage_drawn(seed, 200, LogSetup::default())));
    holds(&damages);
    assert_eq!(damages.tried, 10_000);
}

fn is_caught_by_damage(recovery: fn(loom_log::Recovery) -> loom_log::Recovery) -> bool {
    let setup = LogSetup {
        recovery,
        ..LogSetup::default()
    };
    let damages = all((0..10).map(|seed| damage_drawn(seed, 200, setup)));
    damages.violation.is_some_and(|it| it.law == "LOG-DAMAGE")
}

// requirement: SIM-CATCHES
#[test]
fn damage_that_is_cut_off_like_a_torn_tail_is_caught() {
    assert!(is_caught_by_damage(|it| it.plant(Planted::CutBelowFloor)));
}

// requirement: SIM-CATCHES
#[test]
fn a_recovery_that_does_not_look_behind_damage_is_caught() {
    assert!(is_caught_by_damage(|it| it.plant(Planted::StopsAtHole)));
}

// requirement: SIM-CATCHES
#[test]
fn a_recovery_that_takes_damaged_frames_is_caught() {
    assert!(is_caught_by_damage(|it| it.plant(Planted::CrcSkipped)));
}

#[test]
fn every_planted_bug_of_the_log_is_hunted() {
    let by_damage = [Planted::CutBelowFloor, Planted::StopsAtHole];
    assert_eq!(HUNTED.len() + by_damage.len(), Planted::ALL.len());
    let hunted = |bug: &Planted| HUNTED.contains(bug) || by_damage.contains(bug);
    assert!(Planted::ALL.iter().all(hunted));
}
