//! The ledger of effects, for people: what there is, what is known of one, and the last word on one that nobody knows of.

use serde::Serialize;
use smallvec::smallvec;

use crate::arena::{SessionId, Ticket};
use crate::bus::Keeper;
use crate::core::Core;
use crate::effect::{Awaited, Coming, settled};
use crate::envelope::Position;
use crate::error::{Code, Error, Result, to_json};
use crate::ident::show_uuid;
use crate::partition::{Effect, EffectState};
use crate::record::{Body, Level, Record, Settled};
use crate::time::{Moment, Nanos};

/// Effects that one page of a listing has.
const PAGE: usize = 256;

/// Counts of effects; what there is now is counted by the log's fold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct EffectCounts {
    pub intended: u64,
    pub replayed: u64,
    pub probed: u64,
    pub reconciled: u64,
    pub refuted: u64,
    pub resolved: u64,
    pub unlogged: u64,
}

/// Effects of all namespaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "docs/stats.md says what each is")]
pub struct EffectStats {
    #[serde(flatten)]
    pub counts: EffectCounts,
    pub open: usize,
    pub unknown: usize,
    pub kept: usize,
    pub evicted: u64,
    pub forgotten: u64,
}

/// What a person says of an effect that nobody knows of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// It was done; calls with its key are given this result.
    Done(Box<[u8]>),
    /// It was not done; a call with its key does it anew.
    Failed,
}

/// An effect to settle.
#[derive(Debug, Clone)]
pub struct Resolve<'a> {
    /// Which.
    pub effect: u128,
    /// What became of it.
    pub says: Resolution,
    /// Why, in words; may be empty.
    pub note: &'a str,
}

/// What is shown of an effect.
#[derive(Serialize)]
struct Shown<'a> {
    id: String,
    state: &'static str,
    capability: &'a str,
    version: &'a str,
    effect: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    key: &'a str,
    caller: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    provider: &'a str,
    attempts: u32,
    position: String,
    intended_ms: u64,
    since_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    thread_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    by: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    note: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_bytes: Option<usize>,
}

impl<'a> Shown<'a> {
    fn of(effect: &'a Effect, partition: u32) -> Self {
        let intent = &effect.intent;
        let position = Position {
            partition,
            epoch: effect.epoch,
            n: effect.n,
        };
        let code = u16::try_from(effect.code).ok().and_then(Code::from_number);
        Self {
            id: show_uuid(effect.id()),
            state: effect.state().name(),
            capability: &intent.capability,
            version: &intent.version,
            effect: effect.class().name(),
            key: &intent.key,
            caller: &intent.caller,
            provider: &effect.provider,
            attempts: effect.attempts,
            position: position.to_string(),
            intended_ms: intent.at_ms,
            since_ms: effect.since_ms,
            run_id: intent.run.map(|run| show_uuid(run.into())),
            event_id: intent.event.map(|event| show_uuid(event.into())),
            thread_id: &intent.thread,
            by: &effect.by,
            note: &effect.note,
            code: code.map(Code::name),
            result_bytes: effect.result.as_ref().map(Vec::len),
        }
    }
}

impl Core {
    /// A page of the effects of a namespace that are open, unknown or kept, behind this id: JSON, and whether there are more.
    pub fn list_effects(&self, namespace: &str, unknown: bool, after: u128) -> (Vec<u8>, bool) {
        let partition = self.partition_of(namespace).unwrap_or_default();
        let Some(effects) = self.effects(partition) else {
            return (b"[]".to_vec(), false);
        };
        let mut behind = effects
            .behind(after)
            .filter(|effect| !unknown || effect.state() == EffectState::Unknown);
        let page: Vec<Shown<'_>> = behind
            .by_ref()
            .take(PAGE)
            .map(|effect| Shown::of(effect, partition))
            .collect();
        (to_json(&page), behind.next().is_some())
    }

    /// One effect as JSON, and its result if it has one.
    pub fn show_effect(&self, namespace: &str, effect: u128) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        let partition = self.partition_of(namespace)?;
        let found = self.effects(partition)?.get(effect)?;
        let shown = to_json(&Shown::of(found, partition));
        Some((shown, found.result.clone()))
    }

    /// Settles an effect that nobody knows of, as a person says it is. [`Notice::Accepted`] follows when it is on the disk.
    ///
    /// # Errors
    /// `NOT_FOUND` for an effect that is not kept; `CONFLICT` for one that is known, or about to be; `INVALID_PARAMS` for a
    /// result or a note over the limit; `FENCED`; `DENIED` without
    /// an admin grant.
    pub fn resolve(
        &mut self,
        session: SessionId,
        resolve: Resolve<'_>,
        at: Moment,
    ) -> Result<Ticket> {
        let Resolve { effect, says, note } = resolve;
        let space = self.session(session)?.space;
        self.check_admin(session, "loom.node.effects.resolve")?;
        let most = self.limits.error_detail_bytes;
        if note.len() > most {
            let message = format!("the note has {} bytes of at most {most}", note.len());
            return Err(Error::invalid("note", message).limit("error_detail_bytes"));
        }
        if let Resolution::Done(result) = &says {
            self.check_payload(result, Keeper::Log)?;
        }
        let partition = self.partition_in(space).unwrap_or_default();
        let Some(found) = self
            .effects(partition)
            .and_then(|effects| effects.get(effect))
        else {
            let message = format!("there is no effect {} that is kept", show_uuid(effect));
            return Err(Error::new(Code::NotFound, message)
                .field("effect")
                .hint("loom effects list shows those there are"));
        };
        let (key, state) = ((partition, effect), found.state());
        if !self.is_unknown(key) {
            let known = match state {
                EffectState::Unknown => "being settled by somebody else",
                known => known.name(),
            };
            let message = format!("effect {} is {known}, not unknown", show_uuid(effect));
            let hint = "loom effects show tells what became of it";
            return Err(Error::new(Code::Conflict, message)
                .field("effect")
                .hint(hint));
        }
        if self
            .ledger
            .probes
            .get(&key)
            .is_some_and(|probe| probe.job.is_some())
        {
            let message = "a call with its key waits for a probe of it";
            return Err(Error::new(Code::Conflict, message)
                .field("effect")
                .retry_after(self.limits.probe_pause_ms));
        }
        self.end_probe(key, at);
        self.ledger.counts.resolved += 1;
        let (state, body) = match says {
            Resolution::Done(result) => (EffectState::Reconciled, Body::from(result)),
            Resolution::Failed => (EffectState::Failed, Body::from(Vec::new())),
        };
        let settled = Settled {
            note: note.to_owned(),
            ..settled(effect, state, "operator", at)
        };
        self.expect(key, Coming::Settled);
        let record = Record::Settled(settled, body);
        let awaited = Awaited::Resolved(session, key);
        let ticket = self.tell_log(partition, Level::Disk, smallvec![record], awaited);
        self.flush(at);
        Ok(ticket)
    }

    /// What an earlier life of the log has left without an outcome is unknown from now on.
    pub(crate) fn settle_orphans(&mut self, partition: u32) {
        let Some(part) = self.parts.get(&partition) else {
            return;
        };
        let (epoch, wall_ms) = (part.opened.epoch, part.folded.clock_ms());
        let effects = part.folded.effects();
        let at = Moment {
            now: Nanos::default(),
            wall_ms,
        };
        let orphans: Vec<u128> = effects.orphans(epoch).map(Effect::id).collect();
        for effect in orphans {
            let settled = Settled {
                note: "the engine ended before its outcome".to_owned(),
                ..settled(effect, EffectState::Unknown, "recovery", at)
            };
            let record = Record::Settled(settled, Body::from(Vec::new()));
            let key = (partition, effect);
            self.tell_coming(key, Level::Os, smallvec![record], Coming::Unknown);
        }
    }

    /// Counts of effects, and how many there are.
    pub(crate) fn effect_stats(&self) -> EffectStats {
        let mut stats = EffectStats {
            counts: self.ledger.counts,
            ..EffectStats::default()
        };
        for part in self.parts.values() {
            let effects = part.folded.effects();
            let (open, unknown, kept) = effects.counts();
            stats.open += open;
            stats.unknown += unknown;
            stats.kept += kept;
            stats.evicted += effects.evicted;
            stats.forgotten += effects.forgotten;
        }
        stats
    }
}
