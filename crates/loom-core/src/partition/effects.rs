//! Effects as the log tells of them: what was intended, what was given to a provider, how it ended, and what nobody knows.
//!
//! It is folded from records and from nothing else, so that it is the same in another life. It decides nothing: what is
//! done about an effect is in `effect.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use prost::Message;
use smallvec::SmallVec;

use crate::envelope::{EffectClass, Position};
use crate::error::Code;
use crate::limits::Limits;
use crate::record::{Dispatched, Intent, Outcome, Record, Settled};

/// How an effect stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EffectState {
    /// It will be given to a provider.
    Planned,
    /// A provider has it.
    Dispatched,
    /// It was done.
    Confirmed,
    /// It was not done, or the provider's own error is its outcome.
    Failed,
    /// Whether it was done is not known.
    Unknown,
    /// It was unknown; now it is known to be done.
    Reconciled,
}

impl EffectState {
    /// All of them, in the order of their numbers, from 1.
    pub const ALL: [Self; 6] = [
        Self::Planned,
        Self::Dispatched,
        Self::Confirmed,
        Self::Failed,
        Self::Unknown,
        Self::Reconciled,
    ];

    /// Its number, as records have it.
    pub const fn number(self) -> u32 {
        self as u32 + 1
    }

    /// Reads the number.
    pub fn from_number(number: u32) -> Option<Self> {
        let at = usize::try_from(number).ok()?.checked_sub(1)?;
        Self::ALL.get(at).copied()
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Dispatched => "dispatched",
            Self::Confirmed => "confirmed",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Reconciled => "reconciled",
        }
    }
}

/// One change outside, as far as it is known.
#[derive(Clone, PartialEq, Message)]
pub struct Effect {
    /// What was intended.
    #[prost(message, required, tag = "1")]
    pub intent: Intent,
    /// The place of the intent in the log.
    #[prost(uint64, tag = "2")]
    pub n: u64,
    /// Which life of the log it was intended in.
    #[prost(uint32, tag = "3")]
    pub epoch: u32,
    /// How it stands, by number.
    #[prost(uint32, tag = "4")]
    pub(crate) state: u32,
    /// How often it was given to a provider, over all lives.
    #[prost(uint32, tag = "5")]
    pub attempts: u32,
    /// Who had it last.
    #[prost(string, tag = "6")]
    pub provider: String,
    /// When it came to stand as it does, in milliseconds since 1970.
    #[prost(uint64, tag = "7")]
    pub since_ms: u64,
    /// The error's number; 0: none.
    #[prost(uint32, tag = "8")]
    pub code: u32,
    /// The error's detail as JSON.
    #[prost(string, tag = "9")]
    pub detail: String,
    /// What a call with its key is given; none: it was not done, or nobody knows.
    #[prost(bytes = "vec", optional, tag = "10")]
    pub result: Option<Vec<u8>>,
    /// Who settled it; empty: its call.
    #[prost(string, tag = "11")]
    pub by: String,
    /// What was said then.
    #[prost(string, tag = "12")]
    pub note: String,
}

impl Effect {
    /// Its id.
    pub fn id(&self) -> u128 {
        self.intent.effect.map(u128::from).unwrap_or_default()
    }

    /// How it stands.
    pub fn state(&self) -> EffectState {
        EffectState::from_number(self.state).unwrap_or(EffectState::Unknown)
    }

    /// The effect class of its capability when it was intended.
    pub fn class(&self) -> EffectClass {
        class_of(&self.intent)
    }

    /// Whether its call had an idempotency key.
    pub fn is_keyed(&self) -> bool {
        !self.intent.key.is_empty()
    }

    /// Its caller read chunks, which are not kept.
    pub(crate) fn is_streamed(&self) -> bool {
        self.intent.streamed
    }

    /// It has no outcome yet.
    pub fn is_open(&self) -> bool {
        self.state() <= EffectState::Dispatched
    }

    /// What a call with its key is given.
    pub(crate) fn outcome(&self) -> Option<std::result::Result<&[u8], (Code, &str)>> {
        match self.state() {
            EffectState::Confirmed | EffectState::Reconciled => {
                Some(Ok(self.result.as_deref().unwrap_or_default()))
            }
            EffectState::Failed => {
                let code = u16::try_from(self.code).ok().and_then(Code::from_number)?;
                Some(Err((code, &self.detail)))
            }
            _ => None,
        }
    }

    fn bytes(&self) -> usize {
        self.result.as_ref().map_or(0, Vec::len) + self.detail.len() + self.intent.key.len()
    }

    /// It has ended, and goes after a while.
    fn is_kept(&self) -> bool {
        !self.is_open() && self.state() != EffectState::Unknown
    }
}

fn class_of(intent: &Intent) -> EffectClass {
    let number = u8::try_from(intent.class).unwrap_or(u8::MAX);
    EffectClass::from_number(number).unwrap_or(EffectClass::Unsafe)
}

/// All effects of a partition that are open, unknown, or kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Effects {
    all: BTreeMap<u128, Effect>,
    /// Those of one capability and key, whatever the version.
    keyed: BTreeMap<u128, SmallVec<[u128; 1]>>,
    /// Those that have ended, by when.
    kept: BTreeSet<(u64, u128)>,
    kept_bytes: usize,
    unknown: BTreeSet<(u64, u128)>,
    unknown_keyed: usize,
    /// The latest moment that a record told of.
    now_ms: u64,
    bounds: Bounds,
    /// Kept outcomes that went before their time.
    pub(crate) evicted: u64,
    /// Unknown effects without a key that were too many.
    pub(crate) forgotten: u64,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    results: usize,
    bytes: usize,
    unknown: usize,
    kept_ms: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self::of(&Limits::default())
    }
}

impl Bounds {
    const fn of(limits: &Limits) -> Self {
        Self {
            results: limits.kept_results,
            bytes: limits.kept_result_bytes,
            unknown: limits.unknown_effects,
            kept_ms: limits.kept_result_seconds * 1_000,
        }
    }
}

/// The form of it in a snapshot.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Image {
    #[prost(uint64, tag = "1")]
    now_ms: u64,
    /// By id.
    #[prost(message, repeated, tag = "2")]
    all: Vec<Effect>,
    #[prost(uint64, tag = "3")]
    evicted: u64,
    #[prost(uint64, tag = "4")]
    forgotten: u64,
}

/// What names a call with a key in its namespace, whatever the version.
pub(crate) fn scope(capability: &str, key: &str) -> u128 {
    id_of(&[capability, key])
}

/// The id of the effect of a call with a key: the same in every life.
pub(crate) fn keyed_effect(namespace: &str, capability: &str, version: &str, key: &str) -> u128 {
    let id = id_of(&[namespace, capability, version, key]);
    id & !(0xf << 76) & !(0x3 << 62) | 0x8 << 76 | 0x2 << 62
}

/// What arguments hash to.
pub(crate) fn hash_of(arguments: &[u8]) -> [u8; 32] {
    *blake3::hash(arguments).as_bytes()
}

fn id_of(parts: &[&str]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        // With its length, so that no two lists of parts are one text.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let hash = *hasher.finalize().as_bytes();
    hash.first_chunk::<16>()
        .map_or(0, |half| u128::from_le_bytes(*half))
}

impl Effects {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            bounds: Bounds::of(limits),
            ..Self::default()
        }
    }

    /// Takes in one record of the log; those of another kind change nothing.
    pub(crate) fn apply(&mut self, position: Position, record: &Record) {
        match record {
            Record::Intent(intent, _) => self.intend(position, intent),
            Record::Dispatched(dispatched) => self.dispatch(dispatched),
            Record::Outcome(outcome, body) => self.end(outcome, body),
            Record::Settled(settled, body) => self.settle(settled, body),
            _ => {}
        }
    }

    fn intend(&mut self, position: Position, intent: &Intent) {
        let Some(id) = intent.effect.map(u128::from) else {
            return;
        };
        if class_of(intent) == EffectClass::Pure {
            return;
        }
        let before = self.remove(id);
        self.pass(intent.at_ms);
        self.insert(Effect {
            intent: intent.clone(),
            n: position.n,
            epoch: position.epoch,
            state: EffectState::Planned.number(),
            attempts: before.map_or(0, |before| before.attempts),
            since_ms: intent.at_ms,
            ..Effect::default()
        });
    }

    fn dispatch(&mut self, dispatched: &Dispatched) {
        let found = dispatched.effect.and_then(|id| self.remove(id.into()));
        if let Some(mut effect) = found {
            if effect.is_open() {
                effect.state = EffectState::Dispatched.number();
                effect.attempts += 1;
                effect.provider.clone_from(&dispatched.provider);
                effect.since_ms = dispatched.at_ms;
            }
            self.insert(effect);
        }
        self.pass(dispatched.at_ms);
    }

    fn end(&mut self, outcome: &Outcome, body: &[u8]) {
        let found = outcome.effect.and_then(|id| self.remove(id.into()));
        // Of a call that changes nothing the outcome is recorded, but nothing is folded: not even the time.
        let Some(mut effect) = found else { return };
        self.pass(outcome.at_ms);
        let unknown = outcome.code == u32::from(Code::Indeterminate.number());
        let asked_for = outcome.last && effect.is_keyed();
        if !unknown && !asked_for {
            return; // nobody will ask for it again
        }
        effect.state = match outcome.code {
            0 => EffectState::Confirmed,
            _ if unknown => EffectState::Unknown,
            _ => EffectState::Failed,
        }
        .number();
        effect.since_ms = outcome.at_ms;
        effect.code = outcome.code;
        effect.detail.clone_from(&outcome.detail);
        effect.result = (outcome.code == 0).then(|| body.to_vec());
        self.insert(effect);
    }

    fn settle(&mut self, settled: &Settled, body: &[u8]) {
        let found = settled.effect.and_then(|id| self.remove(id.into()));
        self.pass(settled.at_ms);
        let Some(mut effect) = found else { return };
        let state = EffectState::from_number(settled.state).unwrap_or(EffectState::Unknown);
        effect.state = state.number();
        effect.since_ms = settled.at_ms;
        effect.by.clone_from(&settled.by);
        effect.note.clone_from(&settled.note);
        effect.code = settled.code;
        effect.detail.clone_from(&settled.detail);
        effect.result = (state == EffectState::Reconciled).then(|| body.to_vec());
        self.insert(effect);
    }

    fn insert(&mut self, effect: Effect) {
        let (id, since) = (effect.id(), effect.since_ms);
        if effect.is_keyed() {
            let scope = scope(&effect.intent.capability, &effect.intent.key);
            self.keyed.entry(scope).or_default().push(id);
        }
        if effect.is_kept() {
            self.kept.insert((since, id));
            self.kept_bytes += effect.bytes();
        } else if !effect.is_open() {
            self.unknown.insert((since, id));
            self.unknown_keyed += usize::from(effect.is_keyed());
        }
        self.all.insert(id, effect);
        self.shed();
    }

    fn remove(&mut self, id: u128) -> Option<Effect> {
        let effect = self.all.remove(&id)?;
        if effect.is_keyed() {
            let scope = scope(&effect.intent.capability, &effect.intent.key);
            if let Some(ids) = self.keyed.get_mut(&scope) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.keyed.remove(&scope);
                }
            }
        }
        let entry = (effect.since_ms, id);
        if self.kept.remove(&entry) {
            self.kept_bytes -= effect.bytes();
        } else if self.unknown.remove(&entry) {
            self.unknown_keyed -= usize::from(effect.is_keyed());
        }
        Some(effect)
    }

    /// Time has passed: what was kept long enough goes.
    fn pass(&mut self, at_ms: u64) {
        self.now_ms = self.now_ms.max(at_ms);
        let before = self.now_ms.saturating_sub(self.bounds.kept_ms);
        while let Some((since, id)) = self.kept.first().copied()
            && since < before
        {
            self.remove(id);
        }
    }

    /// What is too much goes, the oldest first: but no unknown effect with a key, or its call would be made again blindly.
    fn shed(&mut self) {
        while (self.kept.len() > self.bounds.results || self.kept_bytes > self.bounds.bytes)
            && let Some((_, id)) = self.kept.first().copied()
        {
            self.remove(id);
            self.evicted += 1;
        }
        if self.unknown.len() <= self.bounds.unknown {
            return;
        }
        let oldest = self
            .unknown
            .iter()
            .copied()
            .find(|(_, id)| self.all.get(id).is_some_and(|effect| !effect.is_keyed()));
        if let Some((_, id)) = oldest {
            self.remove(id);
            self.forgotten += 1;
        }
    }

    pub(crate) fn get(&self, id: u128) -> Option<&Effect> {
        self.all.get(&id)
    }

    /// Those of a capability and a key, whatever the version; what is over at this moment is not among them.
    pub(crate) fn find(
        &self,
        capability: &str,
        key: &str,
        wall_ms: u64,
    ) -> impl Iterator<Item = &Effect> {
        let before = wall_ms.saturating_sub(self.bounds.kept_ms);
        let ids = self.keyed.get(&scope(capability, key));
        ids.into_iter()
            .flatten()
            .filter_map(|id| self.all.get(id))
            .filter(move |effect| !effect.is_kept() || effect.since_ms >= before)
    }

    /// Those whose ids are behind this one, by id.
    pub(crate) fn behind(&self, after: u128) -> impl Iterator<Item = &Effect> {
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        self.all.range(behind).map(|(_, effect)| effect)
    }

    /// Those nobody knows of, the oldest first.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = &Effect> {
        self.unknown.iter().filter_map(|(_, id)| self.all.get(id))
    }

    /// Those without an outcome that an earlier life of the log intended.
    pub(crate) fn orphans(&self, epoch: u32) -> impl Iterator<Item = &Effect> {
        self.all
            .values()
            .filter(move |effect| effect.is_open() && effect.epoch < epoch)
    }

    /// No more effects with a key may become unknown.
    pub(crate) fn is_full(&self) -> bool {
        self.unknown_keyed >= self.bounds.unknown
    }

    /// How many are open, unknown and kept.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let (unknown, kept) = (self.unknown.len(), self.kept.len());
        (self.all.len() - unknown - kept, unknown, kept)
    }

    /// A bug that the simulator asks for.
    pub(super) fn forget_kept(&mut self) {
        while let Some((_, id)) = self.kept.first().copied() {
            self.remove(id);
        }
    }

    pub(super) fn save(&self) -> Image {
        Image {
            now_ms: self.now_ms,
            all: self.all.values().cloned().collect(),
            evicted: self.evicted,
            forgotten: self.forgotten,
        }
    }

    pub(super) fn load(image: Image, limits: &Limits) -> Self {
        let mut effects = Self {
            now_ms: image.now_ms,
            evicted: image.evicted,
            forgotten: image.forgotten,
            ..Self::new(limits)
        };
        for effect in image.all {
            effects.remove(effect.id());
            effects.insert(effect);
        }
        effects
    }
}

#[cfg(test)]
mod tests;
