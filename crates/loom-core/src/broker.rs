//! The action broker's providers: who offers which version of a capability, how each fares, and who gets a call.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::arena::{Handle, JobId, LeaseId, ProviderId, SessionId};
use crate::books::Timings;
use crate::breaker::{Admits, Breaker, Ended, Rules, Turned};
use crate::bulkhead::Bulkhead;
use crate::bus::Source;
use crate::core::{Core, Kind, Registration, Todo};
use crate::directory::DirectoryKind;
use crate::envelope::{EffectClass, Origin};
use crate::error::{Code, Error, Result};
use crate::health::Health;
use crate::input::ProviderSpec;
use crate::job::Stage;
use crate::limits::Limits;
use crate::notice::Notice;
use crate::planted::Planted;
use crate::retry::{Budget, Verdict, is_pressed, verdict};
use crate::selection::Table;
use crate::space::SpaceId;
use crate::stats::Outcomes;
use crate::time::{Moment, Nanos};
use crate::topic::{check_capability, check_name};
use crate::version::Version;

/// Versions of capabilities without a provider that are still known by name.
const KNOWN_GONE: usize = 1_024;
/// Versions that an error names.
const NAMED_VERSIONS: usize = 8;

/// A name that providers offer, in one version or several.
pub(crate) struct Capability {
    pub(crate) releases: BTreeMap<Arc<Version>, Release>,
    pub(crate) budget: Budget,
}

/// One version of a capability.
#[derive(Default)]
pub(crate) struct Release {
    pub(crate) providers: Vec<ProviderId>,
    turn: usize,
    pub(crate) calls: u64,
    pub(crate) outcomes: Outcomes,
    pub(crate) errors: BTreeMap<Code, u64>,
    pub(crate) duration: Timings,
}

impl Capability {
    fn new(limits: &Limits) -> Self {
        Self {
            releases: BTreeMap::new(),
            budget: Budget::new(limits),
        }
    }

    /// The version that was asked for, or all, the newest first.
    fn wanted(&self, version: Option<&Version>) -> impl Iterator<Item = (&Arc<Version>, &Release)> {
        let range = match version {
            Some(version) => self.releases.range::<Version, _>(version..=version),
            None => self.releases.range::<Version, _>(..),
        };
        range.rev()
    }
}

/// One that offers a capability.
pub(crate) struct Provider {
    pub(crate) capability: Arc<str>,
    pub(crate) version: Arc<Version>,
    /// The agent or the app it belongs to.
    pub(crate) name: Arc<str>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) space: SpaceId,
    pub(crate) session: SessionId,
    pub(crate) handle: Handle,
    pub(crate) effect: EffectClass,
    /// It can be asked whether an effect was done.
    probes: bool,
    /// Effects that it is being asked about.
    pub(crate) probing: BTreeSet<u128>,
    /// Effects that it will be asked about.
    pub(crate) to_probe: VecDeque<u128>,
    /// How it fares, as its supervisor says.
    state: Health,
    /// How it fares, as the directory shows it.
    pub(crate) health: Health,
    pub(crate) breaker: Breaker,
    /// The job that decides whether it is well again.
    pub(crate) probe: Option<JobId>,
    pub(crate) bulkhead: Bulkhead,
    pub(crate) queue: VecDeque<JobId>,
    /// Its invocations under way.
    pub(crate) held: BTreeSet<LeaseId>,
    pub(crate) retries: u64,
    armed: bool,
    /// Removed; lives until its last invocation ends.
    closing: bool,
}

impl Provider {
    pub(crate) fn outstanding(&self) -> usize {
        self.queue.len() + self.held.len()
    }

    pub(crate) fn is_free(&self) -> bool {
        self.state == Health::Up && self.held.len() < self.bulkhead.width() as usize
    }

    /// Whether it can be asked now if an effect was done; a breaker counts calls, and lets probes through.
    pub(crate) fn can_probe(&self) -> bool {
        self.probes && self.state == Health::Up && !self.closing
    }

    fn is_usable(&self, table: Option<&Table>, now: Nanos) -> bool {
        self.state == Health::Up
            && !matches!(self.breaker.admits(now), Admits::None(_))
            && !self.is_drained(table)
    }

    /// Whether this job, which was queued now, is the one that decides if the provider is well again.
    pub(crate) fn begin_probe(&mut self, job: JobId, now: Nanos, until: Nanos) -> bool {
        let probe = self.state == Health::Up && self.breaker.admits(now) == Admits::Probe;
        if probe {
            self.breaker.probe(until);
            self.probe = Some(job);
        }
        probe
    }

    /// Takes a job out of the queue that nobody waits for.
    pub(crate) fn unqueue(&mut self, job: JobId, now: Nanos) {
        if self.queue.front() == Some(&job) {
            self.queue.pop_front();
        } else {
            self.queue.retain(|other| *other != job);
        }
        if self.probe == Some(job) {
            self.probe = None;
            self.breaker.give_up_probe(now);
        }
    }

    fn is_drained(&self, table: Option<&Table>) -> bool {
        table.is_some_and(|table| table.weight(&self.name) == 0)
    }
}

/// What a call asks for.
pub(crate) struct Wish<'a> {
    pub(crate) space: SpaceId,
    pub(crate) name: &'a str,
    pub(crate) version: Option<&'a str>,
    /// Who failed last: taken only if there is nobody else.
    pub(crate) avoid: Option<ProviderId>,
}

/// Who gets it.
pub(crate) struct Choice {
    pub(crate) name: Arc<str>,
    pub(crate) version: Arc<Version>,
    pub(crate) provider: ProviderId,
}

/// An attempt of a job that has ended.
#[derive(Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) provider: ProviderId,
    pub(crate) job: JobId,
    /// As many as may be were under way.
    pub(crate) full: bool,
}

type Candidates = SmallVec<[ProviderId; 4]>;

impl Core {
    /// Offers a capability.
    ///
    /// # Errors
    /// `INVALID_PARAMS`, `EXHAUSTED`; `DENIED` for one that the session may not provide.
    pub fn provide(
        &mut self,
        session: SessionId,
        spec: &ProviderSpec<'_>,
        at: Moment,
    ) -> Result<Handle> {
        let space = self.session(session)?.space;
        self.check_provider(spec)?;
        self.check_provide(session, spec)?;
        let namespace = self
            .space(space)
            .map(|space| Arc::clone(&space.name))
            .unwrap_or_default();
        let origin = Origin::new(&namespace, spec.name);
        let name: Arc<str> = spec.name.into();
        let handle = self.enrol(Registration {
            session,
            space,
            origin: Arc::clone(&origin),
            name: Arc::clone(&name),
            kind: Kind::Root,
            bound: self.grants_of(session).is_some(),
        })?;
        let version = self.open_release(space, &name, spec.version);
        let provider = self.providers.insert(Provider {
            capability: Arc::clone(&name),
            version: Arc::clone(&version),
            name: spec.provider.into(),
            origin,
            space,
            session,
            handle,
            effect: spec.effect,
            probes: spec.probes,
            probing: BTreeSet::new(),
            to_probe: VecDeque::new(),
            state: Health::Up,
            health: Health::Up,
            breaker: Breaker::new(),
            probe: None,
            bulkhead: Bulkhead::new(spec.concurrency),
            queue: VecDeque::new(),
            held: BTreeSet::new(),
            retries: 0,
            armed: true,
            closing: false,
        });
        if let Some(found) = self.handles.get_mut(handle) {
            found.kind = Kind::Provider(provider);
        }
        if let Some(release) = self.release_mut(space, &name, &version) {
            release.providers.push(provider);
        }
        self.enter(
            space,
            DirectoryKind::Capability,
            (spec.name, handle, spec.info),
        );
        self.probe_all(provider, at);
        self.flush(at);
        Ok(handle)
    }

    fn check_provider(&self, spec: &ProviderSpec<'_>) -> Result<()> {
        check_capability(spec.name, &self.limits)?;
        check_name("version", spec.version, &self.limits)?;
        check_name("provider", spec.provider, &self.limits)?;
        self.check_info(spec.info)?;
        self.check_concurrency(spec.concurrency)
    }

    fn open_release(&mut self, space: SpaceId, name: &Arc<str>, version: &str) -> Arc<Version> {
        let version = Arc::new(Version::read(version));
        let Some(found) = self.spaces.get_mut(space.0 as usize) else {
            return version;
        };
        found
            .gone
            .retain(|(gone, other)| gone != name || *other != version);
        let capability = found
            .capabilities
            .entry(Arc::clone(name))
            .or_insert_with(|| Capability::new(&self.limits));
        if let Some((known, _)) = capability.releases.get_key_value(&*version) {
            return Arc::clone(known);
        }
        capability
            .releases
            .insert(Arc::clone(&version), Release::default());
        version
    }

    pub(crate) fn release_mut(
        &mut self,
        space: SpaceId,
        name: &str,
        version: &Version,
    ) -> Option<&mut Release> {
        let capability = self.space_mut(space)?.capabilities.get_mut(name)?;
        capability.releases.get_mut(version)
    }

    pub(crate) fn release(
        &self,
        space: SpaceId,
        name: &str,
        version: &Version,
    ) -> Option<&Release> {
        let capability = self.space(space)?.capabilities.get(name)?;
        capability.releases.get(version)
    }

    /// Its queued calls move, its running ones are tried again or end; work under way may still end its leases.
    pub(crate) fn remove_provider(&mut self, id: ProviderId, at: Moment) {
        let Some(provider) = self
            .providers
            .get_mut(id)
            .filter(|provider| !provider.closing)
        else {
            return;
        };
        provider.closing = true;
        let (space, handle) = (provider.space, provider.handle);
        let (name, version) = (
            Arc::clone(&provider.capability),
            Arc::clone(&provider.version),
        );
        let held: Vec<LeaseId> = provider.held.iter().copied().collect();
        if let Some(found) = self.space_mut(space) {
            found.unlist_provider(&name, &version, id);
        }
        for lease in held {
            self.lose_work(id, lease, at);
        }
        self.clear_queue(id, at);
        self.lose_probes(id, at);
        self.leave(space, DirectoryKind::Capability, (&name, handle));
        self.reclaim_provider(id);
    }

    pub(crate) fn reclaim_provider(&mut self, id: ProviderId) {
        if self
            .providers
            .get(id)
            .is_some_and(|provider| provider.closing && provider.held.is_empty())
            && let Some(provider) = self.providers.remove(id)
        {
            self.release_handle(provider.session, provider.handle);
        }
    }

    /// All that waits for a provider has to find another place; `provider_queue` bounds it.
    fn clear_queue(&mut self, id: ProviderId, at: Moment) {
        let Some(provider) = self.providers.get_mut(id) else {
            return;
        };
        let queue = std::mem::take(&mut provider.queue);
        if provider.probe.is_some_and(|probe| queue.contains(&probe)) {
            provider.probe = None;
            provider.breaker.give_up_probe(at.now);
        }
        for job in queue {
            if let Some(found) = self.jobs.get_mut(job) {
                found.stage = Stage::Unplaced;
            }
            self.todo.push_back(Todo::Place(job));
        }
    }

    /// Says how a provider fares: one that is not up is given nothing. What waits for it goes to another one, or waits while
    /// it restarts.
    pub(crate) fn set_provider_state(
        &mut self,
        id: ProviderId,
        state: Health,
        at: Moment,
    ) -> Result<()> {
        let Some(provider) = self.providers.get_mut(id).filter(|p| !p.closing) else {
            return Err(Error::fenced("this provider was removed"));
        };
        if std::mem::replace(&mut provider.state, state) == state {
            return Ok(());
        }
        if state != Health::Up || !provider.breaker.is_closed() {
            self.clear_queue(id, at);
        }
        if state == Health::Up {
            self.probe_all(id, at);
        } else {
            self.lose_probes(id, at);
        }
        self.show_provider(id);
        self.poke_provider(id);
        Ok(())
    }

    /// Tells the directory how a provider fares, if that has changed.
    pub(crate) fn show_provider(&mut self, id: ProviderId) {
        let Some(provider) = self.providers.get_mut(id).filter(|p| !p.closing) else {
            return;
        };
        let health = match provider.state {
            Health::Up if provider.breaker.is_probing() => Health::Probing,
            Health::Up if !provider.breaker.is_closed() => Health::Ejected,
            state => state,
        };
        if std::mem::replace(&mut provider.health, health) == health {
            return;
        }
        let (space, handle) = (provider.space, provider.handle);
        let name = Arc::clone(&provider.capability);
        self.set_health(space, DirectoryKind::Capability, (&name, handle), health);
    }

    /// Whether a provider that is there may be usable at this moment.
    pub(crate) fn is_reachable(&self, wish: &Wish<'_>, now: Nanos) -> bool {
        let Some(found) = self.space(wish.space) else {
            return false;
        };
        let Some(capability) = found.capabilities.get(wish.name) else {
            return false;
        };
        let table = found.tables.get(wish.name);
        let version = wish.version.map(Version::read);
        let mut providers = capability
            .wanted(version.as_ref())
            .flat_map(|(_, release)| &release.providers);
        providers.any(|id| {
            self.providers.get(*id).is_some_and(|provider| {
                provider.state == Health::Restarting || provider.is_usable(table, now)
            })
        })
    }

    /// Who gets a call: of the newest version that somebody can serve, if none was asked for.
    ///
    /// With a selection table they take turns by their weights; else, and among those of one name, the one with the least to
    /// do, of equals one after the other.
    pub(crate) fn pick_provider(&mut self, wish: &Wish<'_>, at: Moment) -> Result<Choice> {
        let (name, version, candidates) = self.candidates(wish, at)?;
        let most = self.limits.provider_queue;
        let has_room = |id: &ProviderId| {
            self.providers
                .get(*id)
                .is_some_and(|provider| provider.queue.len() < most)
        };
        let mut free: Candidates = candidates.into_iter().filter(has_room).collect();
        if free.is_empty() {
            let message = format!("{most} calls wait for each provider of {name:?} already");
            return Err(Error::exhausted("provider_queue", message)
                .field("capability")
                .retry_after(self.limits.retry_base_ms));
        }
        if let Some(avoid) = wish.avoid.filter(|_| free.len() > 1) {
            free.retain(|id| *id != avoid);
        }
        self.take_turns(wish.space, &name, &mut free);
        let Some(provider) = self.least_busy(wish.space, (&name, &version), &free) else {
            return Err(Error::new(
                Code::Internal,
                "a provider was lost while it was chosen",
            ));
        };
        Ok(Choice {
            name,
            version,
            provider,
        })
    }

    /// For who may not call it, a capability is one that nobody ever offered.
    pub(crate) fn check_call(&self, source: &Source, name: &str) -> Result<()> {
        if !source.bound || self.may_call(source.session, name) {
            return Ok(());
        }
        let namespace = self.space(source.space).map(|space| &*space.name);
        Err(unknown(name, namespace.unwrap_or_default()))
    }

    /// A node that was started again does not know what others offered before: until they had their time to come back, what
    /// is unknown to a session elsewhere may only be away, and so may what it is not to know of.
    pub(crate) fn not_back_yet(
        &self,
        error: Error,
        source: &Source,
        name: &str,
        at: Moment,
    ) -> Error {
        let reserved = name.starts_with("loom.");
        if error.code != Code::NotFound || reserved || !self.is_elsewhere(source.session) {
            return error;
        }
        let part = self.partition_in(source.space);
        let part = part.and_then(|part| self.parts.get(&part));
        let until_ms = part.filter(|part| part.opened.epoch > 1);
        let left_ms = until_ms.map_or(0, |part| part.grace_ms.saturating_sub(at.wall_ms));
        if left_ms == 0 {
            return error;
        }
        let message = format!(
            "nobody offers {name:?} since the node was started again; who did before has {left_ms} ms left to come back"
        );
        let away = Error::new(Code::ProviderUnavailable, message);
        Error {
            field: error.field,
            hint: error.hint,
            ..away.retry_after(self.limits.retry_base_ms)
        }
    }

    /// Those who can be given a call of a capability now, all of one version.
    fn candidates(
        &self,
        wish: &Wish<'_>,
        at: Moment,
    ) -> Result<(Arc<str>, Arc<Version>, Candidates)> {
        let Some(found) = self.space(wish.space) else {
            return Err(Error::new(Code::Internal, "there is no such namespace"));
        };
        let name = wish.name;
        let Some((name, capability)) = found.capabilities.get_key_value(name) else {
            return Err(unknown(name, &found.name));
        };
        let asked = wish.version.map(Version::read);
        if let Some(version) = asked
            .as_ref()
            .filter(|v| !capability.releases.contains_key(*v))
        {
            return Err(no_version(name, version, capability));
        }
        let drained = self.has(Planted::DrainedChosen);
        let many = self.has(Planted::ManyProbes);
        let table = found.tables.get(name).filter(|_| !drained);
        for (version, release) in capability.wanted(asked.as_ref()) {
            let usable = release.providers.iter().copied().filter(|id| {
                self.providers.get(*id).is_some_and(|provider| {
                    let probes = many && provider.breaker.is_probing();
                    probes || provider.is_usable(table, at.now)
                })
            });
            let usable: Candidates = usable.collect();
            if !usable.is_empty() {
                return Ok((Arc::clone(name), Arc::clone(version), usable));
            }
        }
        let providers = capability
            .wanted(asked.as_ref())
            .flat_map(|(_, release)| &release.providers);
        let providers = providers.filter_map(|id| self.providers.get(*id));
        Err(self.no_provider(wish, table, providers, at))
    }

    /// Why none of those who offer a capability can be used, and when that may be over.
    fn no_provider<'a>(
        &self,
        wish: &Wish<'_>,
        table: Option<&Table>,
        providers: impl Iterator<Item = &'a Provider>,
        at: Moment,
    ) -> Error {
        let mut name = format!("{:?}", wish.name);
        if let Some(version) = wish.version {
            name = format!("version {version:?} of {name}");
        }
        let mut message = format!("nobody offers {name} now");
        let mut soonest: Option<u64> = None;
        for provider in providers {
            let floor = self.limits.retry_base_ms;
            let after = match (provider.state, provider.breaker.admits(at.now)) {
                (Health::Quarantined, _) => {
                    message = format!("who offers {name} is in quarantine");
                    continue;
                }
                _ if provider.is_drained(table) => {
                    message = format!("who offers {name} is drained: it has the weight 0");
                    continue;
                }
                (Health::Up, Admits::None(until)) => {
                    (until.0 - at.now.0.min(until.0)).div_ceil(1_000_000)
                }
                _ => floor,
            };
            soonest = Some(
                soonest
                    .map_or(after, |soonest| soonest.min(after))
                    .max(floor),
            );
        }
        let error = Error::new(Code::ProviderUnavailable, message).field("capability");
        let Some(after) = soonest else { return error };
        let message = format!(
            "who offers {name} failed too often or restarts; it is tried again in {after} ms"
        );
        Error { message, ..error }.retry_after(after)
    }

    /// Leaves those of the name whose turn it is by the selection table, if there is one.
    fn take_turns(&mut self, space: SpaceId, name: &Arc<str>, free: &mut Candidates) {
        if self.has(Planted::WeightsIgnored) {
            return;
        }
        let providers = &self.providers;
        let Some(table) = self
            .spaces
            .get_mut(space.0 as usize)
            .and_then(|space| space.tables.get_mut(name))
        else {
            return;
        };
        let names = free
            .iter()
            .filter_map(|id| providers.get(*id).map(|p| &p.name));
        let Some(turn) = table.next(names) else {
            return;
        };
        free.retain(|id| providers.get(*id).is_some_and(|p| p.name == turn));
    }

    fn least_busy(
        &mut self,
        space: SpaceId,
        release: (&Arc<str>, &Arc<Version>),
        free: &Candidates,
    ) -> Option<ProviderId> {
        let (name, version) = release;
        let turn = match self.release_mut(space, name, version) {
            Some(release) => {
                release.turn = release.turn.wrapping_add(1);
                release.turn
            }
            None => 0,
        };
        let count = free.len();
        let order = (0..count).filter_map(|step| free.get((turn + step) % count.max(1)));
        let load = |id: &&ProviderId| {
            self.providers
                .get(**id)
                .map_or(usize::MAX, Provider::outstanding)
        };
        order.min_by_key(load).copied()
    }

    /// A provider that restarts, where what was under way before may wait for it.
    pub(crate) fn find_restarting(
        &self,
        space: SpaceId,
        name: &str,
        version: &Version,
    ) -> Option<ProviderId> {
        let most = self.limits.provider_queue;
        let release = self.release(space, name, version)?;
        let mut providers = release.providers.iter().copied();
        providers.find(|id| {
            self.providers.get(*id).is_some_and(|provider| {
                provider.state == Health::Restarting && provider.queue.len() < most
            })
        })
    }

    pub(crate) fn poke_provider(&mut self, id: ProviderId) {
        let Some(provider) = self.providers.get_mut(id) else {
            return;
        };
        if provider.armed && provider.is_free() && !provider.queue.is_empty() {
            provider.armed = false;
            let (session, handle) = (provider.session, provider.handle);
            self.notify(session, Notice::Ready(handle));
        }
    }

    /// The next job that a provider may begin; without one it is told when there is.
    pub(crate) fn next_job(&mut self, id: ProviderId) -> Option<JobId> {
        let provider = self.providers.get_mut(id)?;
        let next = provider
            .queue
            .front()
            .copied()
            .filter(|_| provider.is_free());
        provider.armed |= next.is_none();
        next
    }

    /// The lease of an invocation has ended; whether as many as may be were under way.
    pub(crate) fn free_work(&mut self, id: ProviderId, lease: LeaseId) -> bool {
        let Some(provider) = self.providers.get_mut(id) else {
            return false;
        };
        let full = !provider.is_free();
        provider.held.remove(&lease);
        full
    }

    /// Takes into account how an attempt ended at its provider.
    pub(crate) fn judge_provider(&mut self, attempt: Attempt, code: Option<Code>, at: Moment) {
        let Attempt {
            provider: id,
            job,
            full,
        } = attempt;
        let verdict = verdict(code);
        let may_eject = verdict == Verdict::Failed && self.may_eject(id);
        let (rules, pause) = (Rules::of(&self.limits), self.limits.window_halving_ms);
        let Some(provider) = self.providers.get_mut(id).filter(|p| !p.closing) else {
            return;
        };
        if is_pressed(code) {
            provider.bulkhead.pressed(at.now, pause);
        } else if verdict == Verdict::Well {
            provider.bulkhead.well(full);
        }
        let probe = provider.probe == Some(job);
        if probe {
            provider.probe = None;
        }
        let turned = if verdict == Verdict::Nothing {
            if probe {
                provider.breaker.give_up_probe(at.now);
            }
            Turned::Not
        } else {
            let ended = Ended {
                well: verdict == Verdict::Well,
                probe,
                now: at.now,
            };
            provider.breaker.record(ended, &rules, may_eject)
        };
        if turned == Turned::Opened {
            self.clear_queue(id, at);
        }
        self.show_provider(id);
    }

    /// Whether one more provider may be ejected: never more than half of those of a version, unless it is the only one.
    fn may_eject(&self, id: ProviderId) -> bool {
        let Some(provider) = self.providers.get(id) else {
            return false;
        };
        let Some(release) = self.release(provider.space, &provider.capability, &provider.version)
        else {
            return false;
        };
        let all = release.providers.len();
        let others = release.providers.iter().filter(|other| **other != id);
        let ejected = others.filter(|other| {
            self.providers
                .get(**other)
                .is_some_and(|provider| !provider.breaker.is_closed())
        });
        all == 1 || self.has(Planted::AllEjected) || (ejected.count() + 1) * 2 <= all
    }
}

/// Nobody ever offered it, or whoever asks may not know that somebody does.
fn unknown(name: &str, namespace: &str) -> Error {
    let message = format!("no capability {name:?} was ever offered in {namespace:?}");
    Error::new(Code::NotFound, message)
        .field("capability")
        .hint("look at ctx.capabilities() for those there are")
}

fn no_version(name: &str, version: &Version, capability: &Capability) -> Error {
    let newest = capability.releases.keys().rev().take(NAMED_VERSIONS);
    let newest: Vec<&str> = newest.map(|version| &*version.text).collect();
    let message = format!("version {:?} of {name:?} was never offered", version.text);
    Error::new(Code::NotFound, message)
        .field("version")
        .hint(format!("there are {}", newest.join(", ")))
}

impl crate::space::Space {
    fn unlist_provider(&mut self, name: &Arc<str>, version: &Arc<Version>, id: ProviderId) {
        let Some(release) = self
            .capabilities
            .get_mut(name)
            .and_then(|capability| capability.releases.get_mut(version))
        else {
            return;
        };
        release.providers.retain(|other| *other != id);
        if !release.providers.is_empty() {
            return;
        }
        self.gone.push_back((Arc::clone(name), Arc::clone(version)));
        if self.gone.len() > KNOWN_GONE
            && let Some((name, version)) = self.gone.pop_front()
            && let Some(capability) = self.capabilities.get_mut(&name)
        {
            capability.releases.remove(&version);
            if capability.releases.is_empty() {
                self.capabilities.remove(&name);
            }
        }
    }
}
