//! Effects: what the log is told of a call that changes something, and what a call with a key is given in another life.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod common;

use std::collections::VecDeque;

use common::{World, spec};
use loom_core::record::{Epoch, Outgoing};
use loom_core::{
    CallId, Code, Delivery, Durability, EffectClass, Handle, Invoke, Level, Limits, Opened,
    Partition, Position, ProbeAnswer, Probed, ProviderSpec, Record, Resolution, Resolve, SessionId,
};
use serde_json::Value;

const DAY: u64 = 86_400_000;

/// A core over a log that answers when it is told to, and that the next life is folded from.
struct Life {
    w: World,
    limits: Limits,
    log: Vec<(Position, Record)>,
    epoch: u32,
    kept: bool,
    /// With the log, and not answered.
    out: VecDeque<Outgoing>,
    caller: SessionId,
    provider: SessionId,
    tool: Handle,
    class: EffectClass,
}

/// What the lives before have left.
#[derive(Default)]
struct Past {
    log: Vec<(Position, Record)>,
    epoch: u32,
    wall_ms: u64,
}

impl Life {
    fn new(class: EffectClass) -> Self {
        Self::with(class, Limits::default(), true)
    }

    fn with(class: EffectClass, limits: Limits, kept: bool) -> Self {
        Self::begin(class, limits, kept, Past::default())
    }

    fn begin(class: EffectClass, limits: Limits, kept: bool, past: Past) -> Self {
        let Past {
            mut log,
            epoch,
            wall_ms,
        } = past;
        let mut w = World::with(limits.clone());
        #[cfg(feature = "planted")]
        if let Some(bug) = planted::PLANTED.get() {
            w.core.plant(bug);
        }
        w.at.wall_ms = w.at.wall_ms.max(wall_ms + 10);
        let epoch = epoch + 1;
        let position = Position {
            partition: 3,
            epoch,
            n: log.len() as u64 + 1,
        };
        let head = Epoch {
            epoch,
            at_ms: w.at.wall_ms,
            ..Epoch::default()
        };
        log.push((position, Record::Epoch(head)));
        let mut folded = Partition::new(&limits);
        for (position, record) in &log {
            folded.apply(*position, record);
        }
        let folded = Partition::restore(&folded.snapshot(), &limits).unwrap();
        let opened = Opened {
            partition: 3,
            epoch,
            oldest: 0,
            kept,
            how: Durability::default(),
        };
        w.core
            .open_partition("default", opened, folded, w.at)
            .unwrap();
        let (caller, provider) = (w.session(), w.session());
        let tool = provide(&mut w, provider, class);
        Self {
            w,
            limits,
            log,
            epoch,
            kept,
            out: VecDeque::new(),
            caller,
            provider,
            tool,
            class,
        }
    }

    /// The process dies: what the log has not answered may be lost, and here it is.
    fn crash(self) -> Self {
        let log = self.log.clone();
        self.crash_with(log)
    }

    /// It dies, and the log has what it was given last.
    fn crash_late(mut self) -> Self {
        self.pump();
        self.crash()
    }

    fn crash_with(self, log: Vec<(Position, Record)>) -> Self {
        let (class, limits, kept) = (self.class, self.limits.clone(), self.kept);
        let past = Past {
            log,
            epoch: self.epoch,
            wall_ms: self.w.at.wall_ms,
        };
        drop(self);
        let mut life = Self::begin(class, limits, kept, past);
        life.pump();
        life
    }

    fn collect(&mut self) {
        self.out.extend(self.w.core.take_records());
    }

    /// Answers the first batch that waits for the log.
    fn answer(&mut self) -> bool {
        self.collect();
        let Some(out) = self.out.pop_front() else {
            return false;
        };
        let first = Position {
            partition: 3,
            epoch: self.epoch,
            n: self.log.len() as u64 + 1,
        };
        for (n, record) in (first.n..).zip(out.batch) {
            self.log.push((Position { n, ..first }, record));
        }
        if let Some(ticket) = out.ticket {
            self.w.core.logged(ticket, first, self.w.at);
        }
        true
    }

    /// Answers all that is told to the log.
    fn pump(&mut self) {
        while self.answer() {}
    }

    fn refuse(&mut self) {
        self.collect();
        let out = self.out.pop_front().unwrap();
        let error = loom_core::Error {
            code: Code::Exhausted,
            message: "no space is left".to_owned(),
            field: Some("data".to_owned()),
            limit: None,
            hint: None,
            retry_after_ms: None,
        };
        self.w.core.refused(out.ticket.unwrap(), error, self.w.at);
    }

    /// What waits for the log: kinds of records and levels.
    fn told(&mut self) -> Vec<(Vec<&'static str>, Level)> {
        self.collect();
        let all = self.out.iter();
        all.map(|out| (out.batch.iter().map(word).collect(), out.level))
            .collect()
    }

    fn call_of(&mut self, key: Option<&'static str>, payload: &[u8]) -> loom_core::Result<CallId> {
        let invoke = Invoke {
            key,
            payload: payload.into(),
            timeout_ms: 60_000,
            ..self.w.invoke(self.caller, "tool")
        };
        self.w.core.call(self.caller, invoke, self.w.at)
    }

    fn keyed(&mut self) -> CallId {
        self.call_of(Some("k"), b"{}").unwrap()
    }

    fn take(&mut self) -> Option<Delivery> {
        self.w.take(self.provider, self.tool)
    }

    fn give(&mut self, work: &Delivery, text: &str) {
        self.w.result(self.provider, work, text).unwrap();
    }

    fn outcome(&mut self) -> (Option<Code>, Value) {
        self.w.outcome(self.caller)
    }

    fn outcomes(&mut self) -> usize {
        self.w.seen(self.caller).outcomes.len()
    }

    fn probes(&mut self) -> Vec<u128> {
        let seen = self.w.seen(self.provider);
        seen.probes.into_iter().map(|(_, effect)| effect).collect()
    }

    fn say(&mut self, effect: u128, says: Probed) -> bool {
        let (session, tool, at) = (self.provider, self.tool, self.w.at);
        let answer = ProbeAnswer {
            handle: tool,
            effect,
            says,
        };
        self.w.core.probed(session, answer, at).unwrap()
    }

    fn listed(&self, unknown: bool) -> Vec<Value> {
        let (page, more) = self.w.core.list_effects("default", unknown, 0);
        assert!(!more);
        serde_json::from_slice(&page).unwrap()
    }

    fn state(&self, effect: u128) -> Option<String> {
        let (shown, _) = self.w.core.show_effect("default", effect)?;
        let shown: Value = serde_json::from_slice(&shown).unwrap();
        Some(shown["state"].as_str().unwrap().to_owned())
    }

    fn resolve(&mut self, effect: u128, says: Resolution) -> loom_core::Result<()> {
        let at = self.w.at;
        let resolve = Resolve {
            effect,
            says,
            note: "looked",
        };
        let ticket = self.w.core.resolve(self.caller, resolve, at)?;
        self.pump();
        let accepted = self.w.seen(self.caller).accepted;
        assert_eq!((accepted[0].0, accepted[0].1.id), (ticket, effect));
        Ok(())
    }

    /// A keyed call is made and its provider has it; the effect's id.
    fn dispatch(&mut self) -> (Delivery, u128) {
        self.keyed();
        self.pump();
        let work = self.take().unwrap();
        let effect = work.work.unwrap().effect.unwrap();
        (work, effect)
    }

    fn law(&self) {
        let log = self.log.iter();
        let mut folded = Partition::new(&self.limits);
        for (position, record) in log {
            folded.apply(*position, record);
        }
        let live = self.w.core.partition(3).unwrap();
        assert_eq!(folded.hash(), live.hash(), "live and replayed are the same");
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.pump();
        self.law();
        for session in [self.caller, self.provider] {
            self.w.core.close(session, self.w.at);
        }
        self.pump();
        self.law();
    }
}

fn provide(w: &mut World, session: SessionId, class: EffectClass) -> Handle {
    let spec = ProviderSpec {
        effect: class,
        probes: class == EffectClass::Probeable,
        ..spec("tool")
    };
    w.core.provide(session, &spec, w.at).unwrap()
}

fn word(record: &Record) -> &'static str {
    match record {
        Record::Intent(..) => "intent",
        Record::Dispatched(_) => "dispatched",
        Record::Outcome(..) => "outcome",
        Record::Settled(..) => "settled",
        _ => "other",
    }
}

const CLASSES: [EffectClass; 3] = [
    EffectClass::Idempotent,
    EffectClass::Probeable,
    EffectClass::Unsafe,
];

// requirement: EFFECT-INTENT
#[test]
fn a_call_that_is_not_pure_is_given_to_its_provider_when_its_intent_is_in_the_log() {
    for class in CLASSES {
        for (key, level) in [(None, Level::Os), (Some("k"), Level::Disk)] {
            let mut life = Life::new(class);
            life.call_of(key, b"{}").unwrap();
            assert_eq!(life.told(), [(vec!["intent"], level)]);
            assert!(life.take().is_none(), "{class:?} {key:?}");
            assert!(life.answer());
            let work = life.take().unwrap();
            assert_eq!(life.told(), [(vec!["dispatched"], Level::Accepted)]);
            life.give(&work, "17");
        }
    }
}

// requirement: EFFECT-PURE
#[test]
fn a_pure_call_waits_for_nothing_and_the_log_hears_nothing_of_it() {
    for key in [None, Some("k")] {
        let mut life = Life::new(EffectClass::Pure);
        life.call_of(key, b"{}").unwrap();
        let work = life.take().unwrap();
        assert_eq!(work.work.unwrap().effect, None);
        life.give(&work, "17");
        assert_eq!(life.outcome(), (None, 17.into()));
        assert!(life.told().is_empty());
    }
}

// requirement: EFFECT-MEMORY
#[test]
fn where_nothing_outlives_the_process_only_calls_with_a_key_are_logged_and_what_is_unknown() {
    let mut life = Life::with(EffectClass::Unsafe, Limits::default(), false);
    life.call_of(None, b"{}").unwrap();
    let work = life.take().unwrap();
    assert!(life.told().is_empty());
    life.w.pass(60_000);
    assert_eq!(life.outcome().0, Some(Code::Indeterminate));
    assert_eq!(life.told(), [(vec!["intent", "outcome"], Level::Os)]);
    life.pump();
    assert_eq!(life.listed(true).len(), 1);
    life.give(&work, "17");
    life.pump();
    assert_eq!(life.listed(true).len(), 0, "its answer came late");
    life.keyed();
    assert_eq!(life.told(), [(vec!["intent"], Level::Disk)]);
}

// requirement: EFFECT-OUTCOME
#[test]
fn the_result_of_a_keyed_call_is_handed_out_when_it_is_on_the_disk_and_of_another_at_once() {
    let mut life = Life::new(EffectClass::Unsafe);
    let (work, _) = life.dispatch();
    life.pump();
    life.give(&work, "17");
    assert_eq!(life.told(), [(vec!["outcome"], Level::Disk)]);
    assert_eq!(life.outcomes(), 0);
    let joined = life.keyed();
    assert!(life.answer());
    let seen = life.w.seen(life.caller);
    assert_eq!(seen.outcomes.len(), 2);
    assert_eq!(seen.outcomes[1].0, joined);

    life.call_of(None, b"{}").unwrap();
    life.pump();
    let work = life.take().unwrap();
    life.pump();
    life.give(&work, "17");
    assert_eq!(life.outcome(), (None, 17.into()));
    assert_eq!(life.told(), [(vec!["outcome"], Level::Os)]);
}

// requirement: EFFECT-KEPT
#[test]
fn a_call_with_the_key_of_one_that_has_ended_is_given_its_outcome_in_this_life_and_the_next() {
    for class in CLASSES {
        let mut life = Life::new(class);
        let (work, _) = life.dispatch();
        life.give(&work, "17");
        life.pump();
        assert_eq!(life.outcome(), (None, 17.into()));
        for _ in 0..2 {
            life.keyed();
            assert_eq!(life.outcome(), (None, 17.into()));
            assert!(life.take().is_none(), "it is not done again");
            let other = life.call_of(Some("k"), b"[1]").unwrap_err();
            assert_eq!(
                (other.code, other.field.as_deref()),
                (Code::Conflict, Some("key"))
            );
            life = life.crash();
        }
        assert_eq!(life.w.core.stats().effects.kept, 1);
        life.w.at.wall_ms += DAY;
        let (work, _) = life.dispatch();
        life.give(&work, "18");
        life.pump();
        assert_eq!(
            life.outcome(),
            (None, 18.into()),
            "a day later it is another call"
        );
    }
}

// requirement: EFFECT-KEPT
#[test]
fn an_error_that_will_not_pass_is_kept_and_one_that_may_pass_is_not() {
    for (code, kept) in [(Code::ToolError, true), (Code::Exhausted, false)] {
        let limits = Limits {
            call_attempts: 1,
            ..Limits::default()
        };
        let mut life = Life::with(EffectClass::Unsafe, limits, true);
        let (work, _) = life.dispatch();
        life.w.fail(life.provider, &work, code).unwrap();
        life.pump();
        assert_eq!(life.outcome().0, Some(code));
        life = life.crash();
        life.keyed();
        life.pump();
        assert_eq!(life.take().is_some(), !kept, "{code:?}");
        if kept {
            let (again, detail) = life.outcome();
            assert_eq!(
                (again, &detail["message"]),
                (Some(code), &"it broke".into())
            );
        }
    }
}

// requirement: EFFECT-ID
#[test]
fn the_effect_id_stays_over_attempts_and_for_a_key_over_lives() {
    let mut life = Life::new(EffectClass::Idempotent);
    let (work, first) = life.dispatch();
    life.w
        .fail(life.provider, &work, Code::ProviderUnavailable)
        .unwrap();
    life.w.pass(1_000);
    let again = life.take().unwrap();
    assert_eq!(
        (again.attempt, again.work.unwrap().effect),
        (2, Some(first))
    );
    life = life.crash_late();
    let (_, later) = life.dispatch();
    assert_eq!(later, first);
}

/// A keyed call that a crash cut off after its intent, and after it was given to its provider; and what is unknown then.
fn cut_off(class: EffectClass) -> [(Life, Value); 2] {
    [false, true].map(|dispatched| {
        let mut life = Life::new(class);
        life.keyed();
        life.pump();
        if dispatched {
            life.take().unwrap();
        }
        let life = life.crash_late();
        let mut unknown = life.listed(true);
        assert_eq!((unknown.len(), &unknown[0]["by"]), (1, &"recovery".into()));
        (life, unknown.remove(0))
    })
}

// requirement: EFFECT-CRASH
#[test]
fn an_idempotent_call_cut_off_by_a_crash_is_done_again_with_the_same_effect_id() {
    for (mut life, unknown) in cut_off(EffectClass::Idempotent) {
        let (work, effect) = life.dispatch();
        assert_eq!(unknown["id"], loom_core::show_uuid(effect));
        life.give(&work, "17");
        life.pump();
        assert_eq!(life.outcome(), (None, 17.into()));
        assert!(life.listed(true).is_empty());
    }
}

// requirement: EFFECT-CRASH
#[test]
fn a_probeable_call_cut_off_by_a_crash_is_probed_and_what_the_probe_says_is_kept() {
    for (mut life, _) in cut_off(EffectClass::Probeable) {
        let probes = life.probes();
        life.keyed();
        assert!(life.take().is_none(), "the probe comes first");
        assert!(life.say(probes[0], Probed::Done(b"17".as_slice().into())));
        assert_eq!(life.outcomes(), 0, "it is not on the disk yet");
        life.pump();
        assert_eq!(life.outcome(), (None, 17.into()));
        assert_eq!(life.state(probes[0]).as_deref(), Some("reconciled"));
        life = life.crash();
        life.keyed();
        assert_eq!(life.outcome(), (None, 17.into()));
    }
}

// requirement: EFFECT-CRASH
#[test]
fn an_unsafe_call_cut_off_by_a_crash_is_left_unknown() {
    for (mut life, _) in cut_off(EffectClass::Unsafe) {
        let refused = life.call_of(Some("k"), b"{}").unwrap_err();
        assert_eq!(refused.code, Code::Indeterminate);
        let hint = refused.hint.unwrap();
        assert!(hint.contains("loom effects resolve") && hint.ends_with("--done or --failed"));
        assert!(life.take().is_none() && life.probes().is_empty());
    }
}

// requirement: EFFECT-CRASH
#[test]
fn what_the_log_never_had_is_a_new_call_in_the_next_life() {
    for class in CLASSES {
        let mut life = Life::new(class);
        life.keyed();
        let before = life.log.clone();
        life = life.crash_with(before);
        assert!(life.listed(true).is_empty());
        let (work, _) = life.dispatch();
        life.give(&work, "17");
        life.pump();
        assert_eq!(life.outcome(), (None, 17.into()));
    }
}

// requirement: EFFECT-PROBE
#[test]
fn a_probe_that_says_not_done_lets_the_call_be_made_and_one_that_cannot_tell_does_not() {
    for (says, runs) in [(Probed::NotDone, true), (Probed::Unknown, false)] {
        let mut life = Life::new(EffectClass::Probeable);
        life.dispatch();
        life = life.crash_late();
        let effect = life.probes()[0];
        life.keyed();
        assert!(life.say(effect, says));
        life.pump();
        let work = life.take();
        assert_eq!(work.is_some(), runs);
        if let Some(work) = work {
            assert_eq!(work.work.unwrap().effect, Some(effect));
            life.give(&work, "18");
            life.pump();
            assert_eq!(life.outcome(), (None, 18.into()));
        } else {
            assert_eq!(life.outcome().0, Some(Code::Indeterminate));
            assert_eq!(life.state(effect).as_deref(), Some("unknown"));
        }
    }
}

// requirement: EFFECT-PROBE
#[test]
fn a_probe_that_fails_or_does_not_answer_is_asked_again_a_few_times() {
    let mut life = Life::new(EffectClass::Probeable);
    life.dispatch();
    life = life.crash_late();
    let effect = life.probes()[0];
    life.keyed();
    assert!(life.say(effect, Probed::Failed));
    assert!(life.probes().is_empty());
    life.w.pass(1_000);
    assert_eq!(life.probes(), [effect]);
    life.w.pass(10_000);
    assert!(!life.say(effect, Probed::NotDone), "it came too late");
    life.w.pass(2_000);
    assert_eq!(life.probes(), [effect]);
    assert!(life.say(effect, Probed::Failed));
    assert_eq!(life.outcome().0, Some(Code::Indeterminate));
    life.w.pass(DAY);
    assert!(life.probes().is_empty());
    assert_eq!(life.w.core.stats().effects.counts.probed, 3);
}

// requirement: EFFECT-PROBE
#[test]
fn what_is_unknown_is_probed_when_its_provider_comes_a_few_at_a_time() {
    let mut life = Life::new(EffectClass::Probeable);
    let keys = ["a", "b", "c", "d", "e", "f"];
    for key in keys {
        life.call_of(Some(key), b"{}").unwrap();
    }
    life = life.crash_late();
    let first = life.probes();
    assert!(life.say(first[0], Probed::Done(b"1".as_slice().into())));
    assert!(life.say(first[1], Probed::NotDone));
    let next = life.probes();
    for effect in first[2..].iter().chain(&next) {
        life.say(*effect, Probed::Unknown);
    }
    life.pump();
    assert_eq!(
        (first.len(), next.len(), life.listed(true).len()),
        (4, 2, 4)
    );
    assert!(life.probes().is_empty(), "each is asked once");
    life = life.crash_late();
    assert_eq!(
        life.probes().len(),
        4,
        "a provider that starts anew is asked again"
    );
}

// requirement: EFFECT-PROBE
#[test]
fn a_provider_that_goes_leaves_its_probes_to_another_one() {
    let mut life = Life::new(EffectClass::Probeable);
    life.dispatch();
    life = life.crash_late();
    let effect = life.probes()[0];
    life.keyed();
    let other = life.w.session();
    let handle = provide(&mut life.w, other, EffectClass::Probeable);
    assert!(life.w.seen(other).probes.is_empty());
    life.w
        .core
        .remove(life.provider, life.tool, life.w.at)
        .unwrap();
    assert_eq!(life.w.seen(other).probes, [(handle, effect)]);
    life.w.core.remove(other, handle, life.w.at).unwrap();
    assert_eq!(life.outcome().0, Some(Code::Indeterminate));
}

// requirement: EFFECT-PROBE
#[test]
fn a_lost_call_of_a_probeable_one_is_probed_when_its_work_has_ended_within_the_same_call() {
    let mut life = Life::new(EffectClass::Probeable);
    let (work, effect) = life.dispatch();
    let other = life.w.session();
    let handle = provide(&mut life.w, other, EffectClass::Probeable);
    life.w
        .core
        .remove(life.provider, life.tool, life.w.at)
        .unwrap();
    life.pump();
    assert!(
        life.w.seen(other).probes.is_empty(),
        "it may still take effect"
    );
    life.w.fail(life.provider, &work, Code::Cancelled).unwrap();
    assert_eq!(life.w.seen(other).probes, [(handle, effect)]);
    let at = life.w.at;
    let answer = ProbeAnswer {
        handle,
        effect,
        says: Probed::NotDone,
    };
    life.w.core.probed(other, answer, at).unwrap();
    life.pump();
    let again = life.w.take(other, handle).unwrap();
    assert_eq!(
        (again.attempt, again.work.unwrap().effect),
        (2, Some(effect))
    );
    life.w.result(other, &again, "17").unwrap();
    life.pump();
    assert_eq!(life.outcome(), (None, 17.into()));
}

// requirement: EFFECT-LATE
#[test]
fn a_late_answer_settles_an_unknown_effect_and_is_given_to_the_next_call_only() {
    for class in CLASSES {
        let mut life = Life::new(class);
        let (work, effect) = life.dispatch();
        life.pump();
        life.w.pass(60_000);
        assert_eq!(life.outcome().0, Some(Code::Indeterminate));
        assert_eq!(life.told(), [(vec!["outcome"], Level::Os)]);
        life.pump();
        assert_eq!(life.state(effect).as_deref(), Some("unknown"));
        assert!(life.probes().is_empty(), "its work goes on");
        life.give(&work, "17");
        assert_eq!(life.outcomes(), 0, "nobody waits any more");
        life.pump();
        assert_eq!(life.state(effect).as_deref(), Some("reconciled"));
        life.keyed();
        assert_eq!(life.outcome(), (None, 17.into()));
    }
}

// requirement: EFFECT-PROBE
#[test]
fn a_call_whose_time_was_up_is_probed_when_its_work_has_stopped() {
    let mut life = Life::new(EffectClass::Probeable);
    let (work, effect) = life.dispatch();
    life.w.pass(60_000);
    life.pump();
    assert!(life.probes().is_empty());
    life.w.fail(life.provider, &work, Code::Cancelled).unwrap();
    assert_eq!(life.probes(), [effect]);
    assert!(life.say(effect, Probed::Done(b"17".as_slice().into())));
    life.pump();
    assert_eq!(life.state(effect).as_deref(), Some("reconciled"));
    life.outcome();
}

/// A keyed call that a crash cut off, and that a person has settled, in the life after that; and its effect.
fn settled(says: &Resolution, state: &str) -> (Life, u128) {
    let mut life = Life::new(EffectClass::Unsafe);
    let (_, effect) = life.dispatch();
    life = life.crash_late();
    assert!(life.call_of(Some("k"), b"{}").is_err());
    life.resolve(effect, says.clone()).unwrap();
    assert_eq!(life.state(effect).as_deref(), Some(state));
    let again = life.resolve(effect, says.clone()).unwrap_err();
    assert_eq!(
        (again.code, again.field.as_deref()),
        (Code::Conflict, Some("effect"))
    );
    (life.crash(), effect)
}

// requirement: EFFECT-RESOLVE
#[test]
fn what_a_person_says_was_done_is_given_to_the_next_call_with_its_key() {
    let (mut life, _) = settled(&Resolution::Done(b"17".as_slice().into()), "reconciled");
    life.keyed();
    assert_eq!(life.outcome(), (None, 17.into()));
}

// requirement: EFFECT-RESOLVE
#[test]
fn what_a_person_says_was_not_done_is_done_anew_by_the_next_call_with_its_key() {
    let (mut life, effect) = settled(&Resolution::Failed, "failed");
    let (work, same) = life.dispatch();
    assert_eq!(same, effect);
    life.give(&work, "18");
    life.pump();
    assert_eq!(life.outcome(), (None, 18.into()));
}

// requirement: EFFECT-RESOLVE
#[test]
fn only_what_is_there_and_unknown_can_be_settled() {
    let mut life = Life::new(EffectClass::Unsafe);
    let (_, effect) = life.dispatch();
    life.pump();
    let running = life.resolve(effect, Resolution::Failed).unwrap_err();
    assert_eq!(running.code, Code::Conflict);
    let missing = life.resolve(1, Resolution::Failed).unwrap_err();
    assert_eq!(missing.code, Code::NotFound);
    let long = "x".repeat(1 << 20);
    let (caller, at) = (life.caller, life.w.at);
    let resolve = Resolve {
        effect,
        says: Resolution::Failed,
        note: &long,
    };
    let long = life.w.core.resolve(caller, resolve, at);
    assert_eq!(long.unwrap_err().field.as_deref(), Some("note"));
}

// requirement: EFFECT-REFUSED
#[test]
fn a_log_that_refuses_an_intent_ends_the_call_and_its_provider_never_sees_it() {
    let mut life = Life::new(EffectClass::Unsafe);
    life.keyed();
    life.refuse();
    let (code, detail) = life.outcome();
    assert_eq!(
        (code, &detail["field"]),
        (Some(Code::Exhausted), &"data".into())
    );
    assert!(life.take().is_none());
    life.pump();
    assert!(life.listed(false).is_empty());
    let (work, _) = life.dispatch();
    life.give(&work, "17");
}

// requirement: EFFECT-REFUSED
#[test]
fn a_result_that_the_log_refuses_is_not_handed_out_and_is_not_done_again() {
    let mut life = Life::new(EffectClass::Unsafe);
    let (work, _) = life.dispatch();
    life.pump();
    life.give(&work, "17");
    life.refuse();
    assert_eq!(life.outcome().0, Some(Code::Indeterminate));
    let again = life.call_of(Some("k"), b"{}").unwrap_err();
    assert_eq!(again.code, Code::Indeterminate);
    assert_eq!(life.w.core.stats().effects.counts.unlogged, 1);
}

// requirement: EFFECT-KEPT
#[test]
fn a_keyed_call_that_nobody_had_begun_is_new_when_it_is_made_again_at_once() {
    for before_intent in [true, false] {
        let mut life = Life::new(EffectClass::Unsafe);
        life.keyed();
        if !before_intent {
            life.pump();
        }
        life.w.pass(60_000);
        assert_eq!(life.outcome().0, Some(Code::Timeout));
        life.keyed();
        assert!(life.take().is_none());
        life.pump();
        let work = life.take().unwrap();
        assert_eq!(work.attempt, 1);
        life.give(&work, "17");
        life.pump();
        assert_eq!(life.outcome(), (None, 17.into()));
    }
}

// requirement: EFFECT-KEPT
#[test]
fn a_stream_with_a_key_is_not_given_twice() {
    let mut life = Life::new(EffectClass::Unsafe);
    let stream = |life: &mut Life| {
        let invoke = Invoke {
            key: Some("k"),
            credit: 4,
            ..life.w.invoke(life.caller, "tool")
        };
        life.w.core.call(life.caller, invoke, life.w.at)
    };
    stream(&mut life).unwrap();
    life.pump();
    let work = life.take().unwrap();
    life.give(&work, "");
    life.pump();
    assert_eq!(life.outcome().0, None);
    assert_eq!(stream(&mut life).unwrap_err().code, Code::Conflict);
}

// requirement: EFFECT-UNKNOWN
#[test]
fn when_too_many_keyed_effects_are_unknown_new_ones_are_refused() {
    let limits = Limits {
        unknown_effects: 2,
        ..Limits::default()
    };
    let mut life = Life::with(EffectClass::Unsafe, limits, true);
    for key in ["a", "b"] {
        life.call_of(Some(key), b"{}").unwrap();
    }
    life = life.crash_late();
    let full = life.call_of(Some("c"), b"{}").unwrap_err();
    assert_eq!(
        (full.code, full.limit),
        (Code::Exhausted, Some("unknown_effects"))
    );
    assert!(
        life.call_of(None, b"{}").is_ok(),
        "without a key it may be forgotten"
    );
    let listed = life.listed(true);
    let id = loom_core::parse_uuid(listed[0]["id"].as_str().unwrap()).unwrap();
    life.resolve(id, Resolution::Failed).unwrap();
    assert!(life.call_of(Some("c"), b"{}").is_ok());
}

// requirement: EFFECT-CRASH
#[test]
fn a_class_that_was_loosened_does_not_let_an_unknown_effect_be_done_again() {
    let mut life = Life::new(EffectClass::Unsafe);
    life.dispatch();
    life.class = EffectClass::Idempotent;
    life = life.crash_late();
    let refused = life.call_of(Some("k"), b"{}").unwrap_err();
    assert_eq!(refused.code, Code::Indeterminate);
}

// requirement: EFFECT-LIST
#[test]
fn a_listing_says_of_each_effect_what_is_known_page_by_page() {
    let mut life = Life::new(EffectClass::Unsafe);
    let (_, effect) = life.dispatch();
    life.pump();
    let listed = life.listed(false);
    let shown = &listed[0];
    assert_eq!(shown["id"], loom_core::show_uuid(effect));
    assert_eq!(
        ["state", "capability", "effect", "key", "provider", "caller"].map(|f| &shown[f]),
        ["dispatched", "tool", "unsafe", "k", "app", "default/app"]
    );
    assert_eq!(
        (&shown["attempts"], &shown["result_bytes"]),
        (&1.into(), &Value::Null)
    );
    assert!(life.listed(true).is_empty());
    for _ in 0..300 {
        life.call_of(None, b"{}").unwrap();
    }
    life.pump();
    let (first, more) = life.w.core.list_effects("default", false, 0);
    assert!(more);
    let first: Vec<Value> = serde_json::from_slice(&first).unwrap();
    let last = loom_core::parse_uuid(first[255]["id"].as_str().unwrap()).unwrap();
    let (second, more) = life.w.core.list_effects("default", false, last);
    let second: Vec<Value> = serde_json::from_slice(&second).unwrap();
    assert_eq!((first.len() + second.len(), more), (301, false));
    assert_eq!(life.w.core.list_effects("elsewhere", false, 0).0, b"[]");
}

#[cfg(feature = "planted")]
mod planted {
    use std::cell::Cell;
    use std::panic::catch_unwind;

    use loom_core::Planted;

    thread_local! {
        /// The bug that every life of this thread begins with.
        pub(super) static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
    }

    /// Tells a story to an engine with the bug, which must break it; without it the story is a test of its own above.
    fn breaks(bug: Planted, story: fn()) {
        PLANTED.set(Some(bug));
        let broken = catch_unwind(story).is_err();
        PLANTED.set(None);
        assert!(broken, "{bug:?} was not caught");
    }

    // requirement: SIM-CATCHES
    #[test]
    fn a_call_that_does_not_wait_for_its_intent_is_caught() {
        breaks(
            Planted::IntentUnawaited,
            super::a_call_that_is_not_pure_is_given_to_its_provider_when_its_intent_is_in_the_log,
        );
    }

    // requirement: SIM-CATCHES
    #[test]
    fn outcomes_that_are_forgotten_at_a_restart_are_caught() {
        breaks(
            Planted::KeptForgotten,
            super::a_call_with_the_key_of_one_that_has_ended_is_given_its_outcome_in_this_life_and_the_next,
        );
    }

    // requirement: SIM-CATCHES
    #[test]
    fn an_effect_id_that_changes_over_attempts_is_caught() {
        breaks(
            Planted::EffectIdChanges,
            super::the_effect_id_stays_over_attempts_and_for_a_key_over_lives,
        );
    }

    // requirement: SIM-CATCHES
    #[test]
    fn an_unsafe_call_that_is_done_again_after_a_crash_is_caught() {
        breaks(
            Planted::UnknownRetried,
            super::an_unsafe_call_cut_off_by_a_crash_is_left_unknown,
        );
    }
}

/// Payloads of 10 bytes are small, of 20 large, and calls hold 50.
fn tight() -> Limits {
    Limits {
        payload_bytes: 10,
        kept_payload_bytes: 20,
        held_payload_bytes: 50,
        ..Limits::default()
    }
}

// requirement: LARGE-CALL
#[test]
fn what_the_log_keeps_of_a_call_may_be_large_and_nothing_else() {
    let unsafe_ = EffectClass::Unsafe;
    let keyless: (_, Option<&str>) = (unsafe_, None);
    for ((class, key), kept, most) in [
        ((unsafe_, Some("k")), true, 20),
        ((unsafe_, Some("k")), false, 20),
        (keyless, true, 20),
        (keyless, false, 10),
        ((EffectClass::Pure, Some("k")), true, 10),
        ((EffectClass::Pure, None), true, 10),
    ] {
        let about = format!("{class:?} {key:?} {kept}");
        let limit = if most == 20 {
            "kept_payload_bytes"
        } else {
            "payload_bytes"
        };
        let mut life = Life::with(class, tight(), kept);
        let over = life.call_of(key, &vec![b'1'; most + 1]).unwrap_err();
        assert_eq!(over.limit, Some(limit), "{about}");
        assert_eq!(over.hint.unwrap().contains("key"), most == 10, "{about}");
        life.call_of(key, &vec![b'1'; most]).unwrap();
        life.pump();
        let work = life.take().unwrap();
        let over = life.w.result(life.provider, &work, &"2".repeat(most + 1));
        assert_eq!(over.unwrap_err().limit, Some(limit), "{about}");
        life.give(&work, &"2".repeat(most));
        life.pump();
        assert_eq!(life.outcomes(), 1, "{about}");
        life.w.check();
    }
}

// requirement: LARGE-CALL
#[test]
fn a_large_outcome_answers_the_next_call_with_its_key_in_another_life() {
    let mut life = Life::with(EffectClass::Unsafe, tight(), true);
    let (work, _) = life.dispatch();
    let result = format!("\"{}\"", "r".repeat(18));
    life.give(&work, &result);
    life.pump();
    life = life.crash();
    life.keyed();
    assert_eq!(life.outcome(), (None, Value::String("r".repeat(18))));
}

// requirement: LARGE-BOUNDED
#[test]
fn calls_of_a_namespace_hold_so_many_bytes_of_large_arguments_and_further_ones_are_refused() {
    let mut life = Life::with(EffectClass::Unsafe, tight(), true);
    for _ in 0..2 {
        life.call_of(None, &[b'1'; 20]).unwrap();
    }
    life.w.check();
    let full = life.call_of(None, &[b'1'; 20]).unwrap_err();
    assert_eq!(
        (full.code, full.limit),
        (Code::Exhausted, Some("held_payload_bytes"))
    );
    life.call_of(None, &[b'1'; 10]).unwrap();
    life.pump();
    let work = life.take().unwrap();
    life.give(&work, "1");
    life.call_of(None, &[b'1'; 20]).unwrap();
    life.w.pass(60_000);
    life.w.check();
    life.call_of(None, &[b'1'; 20]).unwrap();
}
