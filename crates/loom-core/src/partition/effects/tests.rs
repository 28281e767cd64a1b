use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::record::Body;
use crate::record::Id;

#[expect(clippy::unnecessary_wraps, reason = "records have it so")]
fn id(effect: u128) -> Option<Id> {
    Some(effect.into())
}

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

fn small() -> Limits {
    Limits {
        kept_results: 3,
        kept_result_bytes: 40,
        unknown_effects: 2,
        ..Limits::default()
    }
}

/// Effects, and a log that numbers what they are told.
struct Fold {
    effects: Effects,
    epoch: u32,
    n: u64,
}

impl Fold {
    fn new(limits: &Limits) -> Self {
        Self {
            effects: Effects::new(limits),
            epoch: 1,
            n: 0,
        }
    }

    fn tell(&mut self, record: &Record) {
        self.n += 1;
        let position = Position {
            partition: 0,
            epoch: self.epoch,
            n: self.n,
        };
        self.effects.apply(position, record);
    }

    fn intend(&mut self, effect: u128, key: &str, at_ms: u64) {
        let intent = Intent {
            effect: id(effect),
            capability: "card.charge".to_owned(),
            version: "1".to_owned(),
            class: 3,
            key: key.to_owned(),
            at_ms,
            ..Intent::default()
        };
        self.tell(&Record::Intent(intent, Body::from(Vec::new())));
    }

    fn dispatch(&mut self, effect: u128, at_ms: u64) {
        let dispatched = Dispatched {
            effect: id(effect),
            provider: "bank".to_owned(),
            attempt: 1,
            at_ms,
            call: None,
        };
        self.tell(&Record::Dispatched(dispatched));
    }

    fn end(&mut self, effect: u128, code: u32, result: &[u8], at_ms: u64) {
        let outcome = Outcome {
            effect: id(effect),
            code,
            at_ms,
            last: true,
            ..Outcome::default()
        };
        self.tell(&Record::Outcome(outcome, Body::from(result.to_vec())));
    }

    fn settle(&mut self, effect: u128, state: EffectState, result: &[u8], at_ms: u64) {
        let settled = Settled {
            effect: id(effect),
            state: state.number(),
            by: "operator".to_owned(),
            note: "looked".to_owned(),
            at_ms,
            ..Settled::default()
        };
        self.tell(&Record::Settled(settled, Body::from(result.to_vec())));
    }

    fn state(&self, effect: u128) -> Option<EffectState> {
        self.effects.get(effect).map(Effect::state)
    }

    fn done(&mut self, effect: u128, key: &str, result: &[u8], at_ms: u64) {
        self.intend(effect, key, at_ms);
        self.dispatch(effect, at_ms);
        self.end(effect, 0, result, at_ms);
    }
}

fn indeterminate() -> u32 {
    Code::Indeterminate.number().into()
}

// requirement: EFFECT-STATES
#[test]
fn an_effect_is_planned_then_dispatched_then_confirmed() {
    let mut fold = Fold::new(&Limits::default());
    fold.intend(7, "may", 10);
    assert_eq!(fold.state(7), Some(EffectState::Planned));
    fold.dispatch(7, 11);
    fold.dispatch(7, 12);
    let effect = fold.effects.get(7).unwrap();
    assert_eq!(
        (effect.state(), effect.attempts),
        (EffectState::Dispatched, 2)
    );
    assert_eq!((effect.provider.as_str(), effect.outcome()), ("bank", None));
    fold.end(7, 0, b"17", 13);
    let effect = fold.effects.get(7).unwrap();
    assert_eq!(effect.state(), EffectState::Confirmed);
    assert_eq!(effect.outcome(), Some(Ok(b"17".as_slice())));
    assert_eq!(fold.effects.counts(), (0, 0, 1));
}

// requirement: EFFECT-KEPT
#[test]
fn only_the_last_outcome_of_a_keyed_call_is_kept() {
    let mut fold = Fold::new(&Limits::default());
    fold.done(1, "", b"17", 1);
    assert_eq!(fold.state(1), None);

    fold.intend(2, "k", 1);
    let passing = Outcome {
        effect: id(2),
        code: Code::Exhausted.number().into(),
        at_ms: 2,
        ..Outcome::default()
    };
    fold.tell(&Record::Outcome(passing, Body::from(Vec::new())));
    assert_eq!(fold.state(2), None);

    fold.intend(3, "k", 3);
    fold.end(3, Code::ToolError.number().into(), b"", 4);
    let found = fold.effects.get(3).unwrap();
    assert_eq!(found.state(), EffectState::Failed);
    assert_eq!(found.outcome(), Some(Err((Code::ToolError, ""))));
}

// requirement: EFFECT-KEPT
#[test]
fn a_kept_outcome_is_found_for_a_day_by_its_key_and_not_later() {
    let mut fold = Fold::new(&Limits::default());
    fold.done(1, "may", b"17", HOUR);
    fold.done(2, "june", b"18", 2 * HOUR);
    let find = |fold: &Fold, key: &str, at: u64| {
        let found = fold.effects.find("card.charge", key, at);
        found.map(Effect::id).collect::<Vec<_>>()
    };
    assert_eq!(find(&fold, "may", HOUR + DAY), [1]);
    assert!(find(&fold, "may", HOUR + DAY + 1).is_empty());
    assert!(find(&fold, "july", HOUR).is_empty());
    assert!(
        fold.effects
            .find("card.chargem", "ay", HOUR)
            .next()
            .is_none()
    );
    fold.intend(3, "august", HOUR + DAY + 1);
    assert_eq!((fold.state(1), fold.state(2).is_some()), (None, true));
}

// requirement: EFFECT-KEPT
#[test]
fn kept_outcomes_are_bounded_in_number_and_bytes_and_the_oldest_go_first() {
    let mut fold = Fold::new(&small());
    for at in 1..=4_u8 {
        fold.done(at.into(), &format!("k{at}"), b"1", at.into());
    }
    assert_eq!((fold.state(1), fold.effects.counts()), (None, (0, 0, 3)));
    fold.done(5, "k5", &[0; 34], 5);
    assert_eq!(fold.effects.evicted, 3);
    assert_eq!((fold.state(3), fold.state(4).is_some()), (None, true));
    assert!(fold.effects.find("card.charge", "k3", 5).next().is_none());
}

// requirement: EFFECT-UNKNOWN
#[test]
fn an_effect_without_an_outcome_of_an_earlier_life_is_an_orphan() {
    let mut fold = Fold::new(&Limits::default());
    fold.intend(1, "a", 1);
    fold.intend(2, "b", 2);
    fold.dispatch(2, 3);
    fold.done(3, "c", b"", 4);
    let orphans = |fold: &Fold, epoch| {
        let orphans = fold.effects.orphans(epoch);
        orphans.map(Effect::id).collect::<Vec<_>>()
    };
    assert!(orphans(&fold, 1).is_empty());
    fold.epoch = 2;
    fold.intend(4, "d", 5);
    assert_eq!(orphans(&fold, 2), [1, 2]);
    fold.settle(2, EffectState::Unknown, b"", 6);
    assert_eq!(orphans(&fold, 2), [1]);
    assert_eq!(fold.state(2), Some(EffectState::Unknown));
}

// requirement: EFFECT-RESOLVE
#[test]
fn what_was_unknown_is_settled_as_done_with_a_result_or_as_failed_without_one() {
    let mut fold = Fold::new(&Limits::default());
    for effect in [1, 2] {
        fold.intend(effect, "k", 1);
        fold.end(effect, indeterminate(), b"", 2);
    }
    assert_eq!(
        fold.effects.unknown().map(Effect::id).collect::<Vec<_>>(),
        [1, 2]
    );
    fold.settle(1, EffectState::Reconciled, b"17", 3);
    fold.settle(2, EffectState::Failed, b"", 4);
    let done = fold.effects.get(1).unwrap();
    assert_eq!(done.outcome(), Some(Ok(b"17".as_slice())));
    assert_eq!(
        (done.by.as_str(), done.note.as_str()),
        ("operator", "looked")
    );
    assert_eq!(fold.effects.get(2).unwrap().outcome(), None);
    assert_eq!(fold.effects.counts(), (0, 0, 2));
}

// requirement: EFFECT-UNKNOWN
#[test]
fn too_many_unknown_effects_lose_those_without_a_key_and_never_one_with_a_key() {
    let mut fold = Fold::new(&small());
    for (effect, key) in [(1_u8, "a"), (2, ""), (3, ""), (4, "b"), (5, "c")] {
        fold.intend(effect.into(), key, effect.into());
        assert_eq!(fold.effects.is_full(), effect == 5);
        fold.end(effect.into(), indeterminate(), b"", effect.into());
    }
    let left: Vec<u128> = fold.effects.unknown().map(Effect::id).collect();
    assert_eq!((left, fold.effects.forgotten), (vec![1, 4, 5], 2));
}

// requirement: EFFECT-ID
#[test]
fn the_effect_id_of_a_key_is_the_same_in_every_life_and_another_for_every_other_call() {
    let first = keyed_effect("shop", "card.charge", "1", "order-17");
    assert_eq!(first, keyed_effect("shop", "card.charge", "1", "order-17"));
    assert_eq!((first >> 76 & 0xf, first >> 62 & 0x3), (8, 2));
    let others = [
        keyed_effect("shop2", "card.charge", "1", "order-17"),
        keyed_effect("shop", "card.refund", "1", "order-17"),
        keyed_effect("shop", "card.charge", "2", "order-17"),
        keyed_effect("shop", "card.charge", "1", "order-18"),
        keyed_effect("shop", "card.charge", "", "1order-17"),
    ];
    assert!(others.iter().all(|other| *other != first));
}

/// Other ids would let keyed effects of logs that exist happen twice.
// requirement: EFFECT-ID
#[test]
fn the_effect_id_of_a_key_is_the_one_that_older_logs_have() {
    let id = keyed_effect("default", "card.charge", "1", "order-17");
    let shown = crate::ident::show_uuid(id);
    assert_eq!(shown, "36c5ff49-aa22-8443-9e0f-4b63198809e0");
}

#[test]
fn a_pure_call_and_records_of_other_kinds_leave_no_effect() {
    let mut fold = Fold::new(&Limits::default());
    let intent = Intent {
        effect: id(1),
        key: "k".to_owned(),
        ..Intent::default()
    };
    fold.tell(&Record::Intent(intent, Body::from(Vec::new())));
    fold.dispatch(2, 1);
    fold.end(3, 0, b"", 1);
    fold.settle(4, EffectState::Unknown, b"", 1);
    assert_eq!(fold.effects.counts(), (0, 0, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Intend(u128, bool),
    Dispatch(u128),
    End(u128, u32, Vec<u8>),
    Settle(u128, EffectState),
    Epoch,
}

fn step() -> impl Strategy<Value = Step> {
    let effect = 1..8_u128;
    let code = prop::sample::select(vec![0, 0, 4, indeterminate()]);
    let states = vec![
        EffectState::Unknown,
        EffectState::Failed,
        EffectState::Reconciled,
    ];
    prop_oneof![
        4 => (effect.clone(), any::<bool>()).prop_map(|(effect, keyed)| Step::Intend(effect, keyed)),
        3 => effect.clone().prop_map(Step::Dispatch),
        4 => (effect.clone(), code, prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(effect, code, result)| Step::End(effect, code, result)),
        2 => (effect, prop::sample::select(states))
            .prop_map(|(effect, state)| Step::Settle(effect, state)),
        1 => Just(Step::Epoch),
    ]
}

impl Fold {
    fn take(&mut self, step: &Step, at: u64) {
        match step {
            Step::Intend(effect, keyed) => {
                let key = if *keyed {
                    format!("k{}", effect / 2)
                } else {
                    String::new()
                };
                self.intend(*effect, &key, at);
            }
            Step::Dispatch(effect) => self.dispatch(*effect, at),
            Step::End(effect, code, result) => self.end(*effect, *code, result, at),
            Step::Settle(effect, state) => self.settle(*effect, *state, b"{}", at),
            Step::Epoch => self.epoch += 1,
        }
    }

    /// The side lists say what walking all effects says.
    fn check(&self) {
        let all: Vec<&Effect> = self.effects.behind(0).collect();
        let of = |wanted: &dyn Fn(&Effect) -> bool| all.iter().filter(|e| wanted(e)).count();
        let unknown = of(&|e| e.state() == EffectState::Unknown);
        let open = of(&Effect::is_open);
        assert_eq!(
            self.effects.counts(),
            (open, unknown, all.len() - open - unknown)
        );
        let bytes: usize = all.iter().filter(|e| e.is_kept()).map(|e| e.bytes()).sum();
        assert_eq!(bytes, self.effects.kept_bytes);
        let keyed = of(&|e| e.state() == EffectState::Unknown && e.is_keyed());
        assert_eq!(keyed, self.effects.unknown_keyed);
        let named: usize = self.effects.keyed.values().map(SmallVec::len).sum();
        assert_eq!(named, of(&Effect::is_keyed));
    }
}

proptest! {
    // requirement: EFFECT-FOLD
    #[test]
    fn a_snapshot_at_any_place_and_the_records_behind_it_give_what_all_records_give(
        steps in prop::collection::vec(step(), 1..80),
        cut in 0..80_usize,
    ) {
        let (mut whole, mut first) = (Fold::new(&small()), Fold::new(&small()));
        let cut = cut.min(steps.len());
        let mut restored = None;
        for (at, step) in steps.iter().enumerate() {
            if at == cut {
                let bytes = first.effects.save().encode_to_vec();
                let image = Image::decode(bytes.as_slice()).unwrap();
                restored = Some(Fold {
                    effects: Effects::load(image, &small()),
                    epoch: first.epoch,
                    n: first.n,
                });
            }
            let at = at as u64 * 2 * HOUR;
            whole.take(step, at);
            whole.check();
            first.take(step, at);
            if let Some(restored) = &mut restored {
                restored.take(step, at);
                restored.check();
            }
        }
        let last = restored.unwrap_or(first);
        prop_assert_eq!(
            last.effects.save().encode_to_vec(),
            whole.effects.save().encode_to_vec()
        );
    }
}
