//! What a campaign must have seen at least once; one that has not proves nothing.

use std::collections::BTreeMap;

/// Rare states by name.
pub const RARE: &[&str] = &[
    "call chosen among several",
    "call chosen by weight",
    "call joined one in flight",
    "call lost with its provider may be tried again",
    "call refused, nobody is usable",
    "call that waits for itself refused",
    "call tried again",
    "half-open probe failed",
    "half-open probe went well",
    "join whose leader left",
    "join with other arguments refused",
    "pause told to a caller",
    "provider ejected",
    "retry that succeeded",
    "retry without budget",
    "run refused",
    "topic forgotten, its counts kept",
    "agent quarantined with turns open",
    "agent released from quarantine",
    "agent restarting",
    "directory told of a change",
    "event with several causes",
    "provider quarantined with calls queued",
    "second loss told",
    "subscription lagging",
    "answer of a provider that comes late",
    "background publish refused",
    "batched publish parked",
    "eager publish found no room",
    "batched publish taken after it was parked",
    "call indeterminate",
    "call of a provider that went",
    "call timed out",
    "cancel told to a provider",
    "chunk waited for credit",
    "credit told to a provider",
    "credit that comes twice",
    "deadlock refused",
    "event expired",
    "foreign lease refused",
    "group with several members",
    "hop limit reached",
    "lagging subscription lost an event",
    "realtime event overflowed",
    "reply copied to its thread",
    "reply that comes late",
    "reply that comes twice",
    "request declined by all",
    "request heard by a later agent",
    "request parked",
    "request timed out",
    "request to many",
    "session closed with turns open",
    "subscription removed with turns open",
    "the engine's own event delivered",
    "filter denied",
];

/// How often each was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    counts: BTreeMap<&'static str, u64>,
}

impl Seen {
    pub(crate) fn note(&mut self, state: &'static str) {
        *self.counts.entry(state).or_default() += 1;
    }

    pub(crate) fn note_if(&mut self, state: &'static str, seen: bool) {
        if seen {
            self.note(state);
        }
    }

    /// Adds what another run saw.
    pub fn add(&mut self, other: &Self) {
        for (state, count) in &other.counts {
            *self.counts.entry(state).or_default() += count;
        }
    }

    /// How often a state was seen.
    pub fn count(&self, state: &str) -> u64 {
        self.counts.get(state).copied().unwrap_or_default()
    }

    /// The rare states that were never seen.
    pub fn missing(&self) -> Vec<&'static str> {
        self.missing_of(RARE)
    }

    /// Those of these states that were never seen.
    pub fn missing_of(&self, states: &[&'static str]) -> Vec<&'static str> {
        let states = states.iter().copied();
        states.filter(|state| self.count(state) == 0).collect()
    }
}
