//! Watchers: streams that hear what the engine says itself, and the book it is held against: who is there, how each
//! fares, and which losses were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use loom_core::{
    DirectoryKind, Dropped, Envelope, Handle, Nanos, Notice, Qos, Reason, SessionId, Stats,
};

use crate::event::space_name;
use crate::health::half;
use crate::trace::{Check, broken, ensure};
use crate::world::World;

/// What a watcher hears: few events each, so that short queues lose few.
const HEARD: &[&str] = &[
    "loom.dropped.overflow",
    "loom.dropped.lagging",
    "loom.dropped.unsubscribed",
    "loom.dropped.session_gone",
    "loom.directory.agent.*",
    "loom.directory.capability.*",
];
const DIRECTORY: &[DirectoryKind] = &[DirectoryKind::Agent, DirectoryKind::Capability];
/// Losses of one subscription for one reason are told at most once in so many milliseconds.
const PAUSE_MS: u64 = 1_000;

/// An entry: its namespace, its half, its name.
type Name = (usize, DirectoryKind, String);

/// Losses of a subscription, by its namespace and its name.
pub(crate) type Losses = (usize, String, Reason);

pub(crate) struct Stream {
    pub(crate) space: usize,
    session: SessionId,
    handle: Handle,
    filter: &'static str,
    lost: u64,
    /// When it lost something last.
    blind: Option<Nanos>,
}

struct Entry {
    info: String,
    health: String,
}

#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) streams: Vec<Stream>,
    entries: BTreeMap<Name, BTreeMap<Handle, Entry>>,
    /// What must be said of the directory since the last look.
    due: Vec<(usize, String, String)>,
    /// When a loss of a subscription was told last, and how many it was of.
    pub(crate) told: BTreeMap<Losses, (Nanos, u64)>,
    /// The engine's counts of losses at the last look, in all and of each subscription.
    pub(crate) totals: [u64; 4],
    pub(crate) rows: BTreeMap<(usize, String), Dropped>,
    /// Subscriptions that had gone then.
    pub(crate) absent: BTreeSet<usize>,
    /// Turns of the watchers.
    pub(crate) ended: u64,
}

impl Entry {
    /// As the directory shows it: with its health, if it is an object.
    fn show(&self) -> String {
        let health = &self.health;
        match self.info.strip_suffix('}') {
            Some(open) => format!("{open},\"health\":\"{health}\"}}"),
            None => self.info.clone(),
        }
    }
}

impl Watch {
    pub(crate) fn enter(
        &mut self,
        name: (usize, DirectoryKind, &str),
        handle: Handle,
        info: String,
    ) {
        let name = (name.0, name.1, name.2.to_owned());
        let health = "up".to_owned();
        let entry = Entry { info, health };
        let shown = entry.show();
        let offered = self.entries.entry(name.clone()).or_default();
        let first = offered.is_empty();
        offered.insert(handle, entry);
        self.owe(&name, if first { "joined" } else { "changed" }, shown);
    }

    /// A handle goes; one of a stream has no entry.
    pub(crate) fn leave(&mut self, handle: Handle) {
        let Some(name) = self.find(handle) else {
            return;
        };
        let Some(offered) = self.entries.get_mut(&name) else {
            return;
        };
        let gone = offered.remove(&handle);
        let last = offered.is_empty();
        if last {
            self.entries.remove(&name);
        }
        if let Some(gone) = gone {
            self.owe(&name, if last { "left" } else { "changed" }, gone.show());
        }
    }

    /// An entry is shown so from now on.
    pub(crate) fn fare(&mut self, handle: Handle, health: &str) {
        let Some(name) = self.find(handle) else {
            return;
        };
        let offered = self.entries.get_mut(&name);
        let Some(entry) = offered.and_then(|offered| offered.get_mut(&handle)) else {
            return;
        };
        if entry.health == health {
            return;
        }
        health.clone_into(&mut entry.health);
        let shown = entry.show();
        self.owe(&name, "changed", shown);
    }

    fn find(&self, handle: Handle) -> Option<Name> {
        let mut entries = self.entries.iter();
        let found = entries.find(|(_, offered)| offered.contains_key(&handle));
        found.map(|(name, _)| name.clone())
    }

    fn owe(&mut self, name: &Name, what: &str, shown: String) {
        let topic = format!("loom.directory.{}.{what}", half(name.1));
        self.due.push((name.0, topic, shown));
    }

    /// A new stream takes the name of one that went.
    pub(crate) fn forget_stream(&mut self, space: usize, name: &str) {
        self.rows.remove(&(space, name.to_owned()));
        self.told
            .retain(|(other, sub, _), _| *other != space || sub != name);
    }

    /// What the directory must show.
    fn shown(&self, space: usize, kind: DirectoryKind) -> Vec<Vec<u8>> {
        let own = self
            .entries
            .iter()
            .filter(|((other, half, _), _)| (*other, *half) == (space, kind));
        own.flat_map(|(_, offered)| offered.values())
            .map(|entry| entry.show().into_bytes())
            .collect()
    }

    /// Whether a loss at this time need not be told, since one was a short while ago.
    pub(crate) fn was_told(&self, key: &Losses, now: Nanos) -> bool {
        let told = self.told.get(key);
        told.is_some_and(|(at, _)| now < at.plus_millis(PAUSE_MS))
    }

    /// Whether the watcher of a reason may have missed something that was told less than a pause ago.
    pub(crate) fn is_blind(&self, space: usize, reason: Reason, now: Nanos) -> bool {
        let filter = format!("loom.dropped.{}", reason.token());
        let mut streams = self.streams.iter();
        streams.any(|stream| {
            stream.space == space
                && stream.filter == filter
                && stream
                    .blind
                    .is_some_and(|at| now < at.plus_millis(PAUSE_MS))
        })
    }

    /// Notes which watchers lost something.
    fn find_blind(&mut self, stats: &Stats, now: Nanos) {
        for stream in &mut self.streams {
            let own = stats.subscriptions.iter().find(|row| {
                row.namespace == space_name(stream.space)
                    && row.name.starts_with("watcher")
                    && row.filters.first().is_some_and(|f| f == stream.filter)
            });
            let lost = own.map_or(0, |row| row.dropped.total());
            if lost > stream.lost {
                stream.lost = lost;
                stream.blind = Some(now);
            }
        }
    }
}

impl World {
    pub(crate) fn start_watching(&mut self) -> Check {
        for space in 0..2 {
            let name = format!("watcher{space}");
            let session = self.core.attach(&space_name(space), &name);
            let Ok(session) = session else {
                return broken("BAD-INPUT", format!("a watcher was refused: {session:?}"));
            };
            for filter in HEARD {
                let handle = self.core.subscribe(session, &[filter], Qos::Realtime);
                let Ok(handle) = handle else {
                    return broken("BAD-INPUT", format!("a stream was refused: {handle:?}"));
                };
                self.watch.streams.push(Stream {
                    space,
                    session,
                    handle,
                    filter,
                    lost: 0,
                    blind: None,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn stop_watching(&mut self) {
        for stream in std::mem::take(&mut self.watch.streams) {
            self.core.close(stream.session, self.at);
        }
    }

    /// Holds what the engine has said since the last look against what it had to say.
    pub(crate) fn look(&mut self) -> Check {
        self.observe()?;
        let due = std::mem::take(&mut self.watch.due);
        if self.watch.streams.is_empty() {
            return Ok(());
        }
        let mut said = Vec::new();
        for at in 0..self.watch.streams.len() {
            said.push(self.listen(at)?);
        }
        let totals = Reason::ALL.map(|reason| self.core.dropped(reason));
        let stats = (totals != self.watch.totals).then(|| self.core.stats());
        if let Some(stats) = &stats {
            self.watch.find_blind(stats, self.at.now);
        }
        self.check_directory(&said, &due)?;
        for (at, events) in said.iter().enumerate() {
            for env in events {
                if env.topic.starts_with("loom.dropped.") {
                    self.check_told(at, env)?;
                }
            }
        }
        stats.map_or(Ok(()), |stats| self.check_losses(&stats, totals))
    }

    /// All that one watcher has to read.
    fn listen(&mut self, at: usize) -> Check<Vec<Arc<Envelope>>> {
        let Some(stream) = self.watch.streams.get(at) else {
            return Ok(Vec::new());
        };
        let (session, handle, space) = (stream.session, stream.handle, stream.space);
        self.wake();
        let mut heard = Vec::new();
        loop {
            let given = self.core.take(session, handle, None, self.at);
            let Ok(given) = given else {
                return broken("LEASE-FENCED", format!("a watcher was refused: {given:?}"));
            };
            let Some(delivery) = given else { break };
            self.watch.ended += 1;
            let env = delivery.envelope;
            let own = *env.origin.sender == format!("{}/loom", space_name(space))
                && *env.origin.namespace == space_name(space)
                && env.qos == Qos::Realtime;
            ensure(own, "EVENT-RESERVED", || {
                format!("{env:?} is not the engine's")
            })?;
            heard.push(env);
        }
        let notices = self.core.drain(session, usize::MAX).unwrap_or_default();
        let mut all = notices.iter();
        let ready = all.all(|notice| matches!(notice, Notice::Ready(_)));
        ensure(ready, "WAKE-LOOP", || {
            format!("a watcher was told {notices:?}")
        })?;
        Ok(heard)
    }

    /// What was said of the directory is what happened there, in that order.
    fn check_directory(
        &mut self,
        said: &[Vec<Arc<Envelope>>],
        due: &[(usize, String, String)],
    ) -> Check {
        for (stream, events) in self.watch.streams.iter().zip(said) {
            let Some(prefix) = stream.filter.strip_suffix('*') else {
                continue;
            };
            let due = due
                .iter()
                .filter(|(space, topic, _)| *space == stream.space && topic.starts_with(prefix));
            let due: Vec<(&str, &[u8])> = due
                .map(|(_, topic, shown)| (&**topic, shown.as_bytes()))
                .collect();
            let said: Vec<(&str, &[u8])> = events
                .iter()
                .map(|env| (&*env.topic, &*env.payload))
                .collect();
            // A short queue keeps the newest.
            let missed = due.len().saturating_sub(said.len());
            let told = missed == 0 || stream.blind == Some(self.at.now);
            // Of a provider, what comes and goes within a step is told too.
            let provider = prefix.ends_with("capability.");
            let extra = said.iter().filter(|one| !due.contains(one));
            let brief = due.iter().all(|one| said.contains(one))
                && extra.into_iter().all(|one| one.0.ends_with("changed"));
            let blind = stream.blind == Some(self.at.now);
            let same = due.ends_with(&said) || (provider && (brief || blind));
            ensure(told && same, "DIRECTORY-EVENTS", || {
                format!("said: {}; happened: {}", show_said(&said), show_said(&due))
            })?;
            let changed = due.iter().any(|(topic, _)| topic.ends_with("changed"));
            self.seen.note_if("directory told of a change", changed);
        }
        Ok(())
    }

    /// How the directory shows each provider.
    pub(crate) fn shown_capabilities(&self) -> Vec<(Handle, String)> {
        let kind = DirectoryKind::Capability;
        let mut all = Vec::new();
        for space in 0..2 {
            let entries = self.watch.entries.iter();
            let own = entries.filter(|((other, half, _), _)| (*other, *half) == (space, kind));
            let handles = own.flat_map(|(_, offered)| offered.keys().copied());
            let shown = self.listed(space, kind);
            all.extend(handles.zip(shown).map(|(handle, shown)| {
                let shown = show_bytes(&shown);
                let health = shown.rsplit('"').nth(1).unwrap_or_default();
                (handle, health.to_owned())
            }));
        }
        all
    }

    /// The directory without what each has to do at the moment.
    fn listed(&self, space: usize, kind: DirectoryKind) -> Vec<Vec<u8>> {
        let entries = self.core.directory(&space_name(space), kind);
        let still = entries.iter().map(|entry| {
            let shown = show_bytes(entry);
            match shown.split_once(",\"queued\":") {
                Some((steady, _)) => format!("{steady}}}").into_bytes(),
                None => entry.clone(),
            }
        });
        still.collect()
    }

    /// The directory lists who is there, and how each fares.
    pub(crate) fn check_entries(&self) -> Check {
        for space in 0..2 {
            for kind in DIRECTORY {
                let shown = self.listed(space, *kind);
                let due = self.watch.shown(space, *kind);
                ensure(shown == due, "DIRECTORY-LIST", || {
                    let (shown, due) = (shown.concat(), due.concat());
                    let (shown, due) = (show_bytes(&shown), show_bytes(&due));
                    format!("{kind:?} {shown} should be {due}")
                })?;
            }
        }
        Ok(())
    }
}

fn show_bytes(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn show_said(said: &[(&str, &[u8])]) -> String {
    let all = said.iter();
    let all = all.map(|(topic, shown)| format!("{topic} {}", show_bytes(shown)));
    all.collect::<Vec<_>>().join(", ")
}
