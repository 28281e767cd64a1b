use proptest::prelude::*;

use super::*;

const REPEATED: [Code; 5] = [
    Code::ProviderUnavailable,
    Code::Unavailable,
    Code::Exhausted,
    Code::Timeout,
    Code::Indeterminate,
];
const NEVER: [Code; 5] = [
    Code::InvalidParams,
    Code::Denied,
    Code::Conflict,
    Code::Cancelled,
    Code::NotFound,
];

fn says(retry: Option<bool>) -> Detail {
    Detail {
        retry,
        ..Detail::default()
    }
}

// requirement: CALL-RETRY
#[test]
fn every_code_is_classified() {
    for code in Code::ALL {
        let (repeated, never) = (REPEATED.contains(&code), NEVER.contains(&code));
        assert_eq!(may_pass(code, &says(None)), repeated, "{code:?}");
        assert_eq!(may_pass(code, &says(Some(true))), !never, "{code:?}");
        assert!(!may_pass(code, &says(Some(false))), "{code:?}");
    }
}

// requirement: CALL-BREAKER
#[test]
fn the_callers_faults_say_nothing_of_a_provider() {
    let failed = [
        Code::CapabilityError,
        Code::ToolError,
        Code::Timeout,
        Code::ProviderUnavailable,
        Code::Indeterminate,
        Code::Internal,
    ];
    for code in Code::ALL {
        let expected = if failed.contains(&code) {
            Verdict::Failed
        } else {
            Verdict::Nothing
        };
        assert_eq!(verdict(Some(code)), expected, "{code:?}");
    }
    assert_eq!(verdict(None), Verdict::Well);
}

// requirement: CALL-RETRY
#[test]
fn only_work_that_does_no_harm_twice_is_repeated() {
    use EffectClass::{Idempotent, Probeable, Pure, Unsafe};
    let table = [
        (Pure, true),
        (Idempotent, true),
        (Probeable, false),
        (Unsafe, false),
    ];
    for (effect, alone) in table {
        assert_eq!(is_repeatable(effect, false, false), alone);
        assert!(
            is_repeatable(effect, true, false),
            "its provider said that it did nothing"
        );
        assert_eq!(
            is_repeatable(effect, true, true),
            alone,
            "a key makes nothing known"
        );
    }
}

proptest! {
    // requirement: CALL-RETRY
    #[test]
    fn a_pause_stays_under_its_bound_and_over_what_was_asked(
        attempt in 1u32..80, seed: u64, asked in proptest::option::of(0u64..20_000),
    ) {
        let limits = Limits::default();
        let detail = Detail { retry_after_ms: asked, ..Detail::default() };
        let pause = pause(attempt, &detail, &limits, &mut Ids::new(seed));
        let doubled = u128::from(limits.retry_base_ms) << (attempt - 1).min(60);
        let bound = doubled.min(u128::from(limits.retry_cap_seconds) * 1_000);
        let asked = u128::from(asked.unwrap_or(0));
        prop_assert!(u128::from(pause) >= asked * 1_000_000);
        prop_assert!(u128::from(pause) <= bound.max(asked) * 1_000_000);
    }

    // requirement: CALL-BUDGET
    #[test]
    fn retries_add_a_tenth_to_the_load_and_two(wants in proptest::collection::vec(0u8..4, 0..400)) {
        let limits = Limits::default();
        let mut budget = Budget::new(&limits);
        let (mut calls, mut retries) = (0u32, 0u32);
        for want in wants {
            budget.earn(&limits);
            calls += 1;
            for _ in 0..want {
                retries += u32::from(budget.spend());
            }
            prop_assert!(retries * 10 <= calls + 20);
        }
    }
}

// requirement: CALL-BUDGET
#[test]
fn a_budget_saves_ten_retries_at_most() {
    let limits = Limits::default();
    let mut budget = Budget::new(&limits);
    for _ in 0..10_000 {
        budget.earn(&limits);
    }
    let spent = (0..100).filter(|_| budget.spend()).count();
    assert_eq!(spent, 10);
}
