//! What a session may do: six lists of filters that its credential has, and what follows from them. What no list names is
//! denied; a session without grants is the process of the engine itself, and may do everything.

use std::sync::Arc;

use crate::arena::{Handle, SessionId, SubId, Ticket};
use crate::books::Reason;
use crate::core::{Core, Kind};
use crate::error::{Code, Error, Result};
use crate::input::{GrantTexts, ProviderSpec};
use crate::lane::As;
use crate::limits::Limits;
use crate::notice::Notice;
use crate::planted::Planted;
use crate::subscription::Subscription;
use crate::ticket::Waiting;
use crate::time::Moment;
use crate::topic::{Filter, check_topic};

/// Capabilities of the node that look and change nothing; `observe` is enough for them, and all others under `loom.` need
/// `admin`.
const LOOKS: [&str; 12] = [
    "loom.node.dead",
    "loom.node.dead.list",
    "loom.node.dead.show",
    "loom.node.effects",
    "loom.node.effects.list",
    "loom.node.effects.show",
    "loom.node.list",
    "loom.node.logs",
    "loom.node.runs",
    "loom.node.sessions",
    "loom.node.stats",
    "loom.node.why",
];

/// What stands before all that is the engine's own.
const OWN: &str = "loom.";
const ENGINE: &str = "loom";

fn is_own(name: &str) -> bool {
    name.starts_with(OWN) || name == ENGINE
}

/// What a session may do, each as filters: over topics where it publishes and hears, over names of capabilities where it
/// calls and provides, over both where it observes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants {
    publish: Vec<Filter>,
    subscribe: Vec<Filter>,
    call: Vec<Filter>,
    provide: Vec<Filter>,
    observe: Vec<Filter>,
    admin: Vec<Filter>,
}

impl Grants {
    /// All that a credential can grant.
    pub fn all() -> Self {
        let all = || vec![Filter::everything()];
        Self {
            publish: all(),
            subscribe: all(),
            call: all(),
            provide: all(),
            observe: all(),
            admin: all(),
        }
    }

    /// Reads the lists.
    ///
    /// # Errors
    /// `INVALID_PARAMS` that names the list, and what in it is no filter or too much.
    pub fn parse(texts: &GrantTexts<'_>, limits: &Limits) -> Result<Self> {
        let read = |field: &'static str, texts: &[&str]| read_list(field, texts, limits);
        Ok(Self {
            publish: read("publish", texts.publish)?,
            subscribe: read("subscribe", texts.subscribe)?,
            call: read("call", texts.call)?,
            provide: read("provide", texts.provide)?,
            observe: read("observe", texts.observe)?,
            admin: read("admin", texts.admin)?,
        })
    }

    /// Whether an event may be published there; what is the engine's own nobody publishes.
    pub fn may_publish(&self, topic: &str) -> bool {
        self.publish.iter().any(|filter| filter.matches(topic))
    }

    /// Whether an event of this topic may be shown: one of the engine's own to who observes.
    pub fn may_hear(&self, topic: &str) -> bool {
        let list = if is_own(topic) {
            &self.observe
        } else {
            &self.subscribe
        };
        list.iter().any(|filter| filter.matches(topic))
    }

    /// Whether a capability may be called; those of the node need `observe` or `admin`.
    pub fn may_call(&self, capability: &str) -> bool {
        if is_own(capability) {
            let looks = LOOKS.contains(&capability);
            return self.may_administer(capability) || (looks && self.may_observe(capability));
        }
        self.call.iter().any(|filter| filter.names(capability))
    }

    /// Whether a capability may be provided; those of the node are provided by the node.
    pub fn may_provide(&self, capability: &str) -> bool {
        !is_own(capability) && self.provide.iter().any(|filter| filter.names(capability))
    }

    /// Whether something may be observed: an agent, a capability, an event of the engine.
    pub fn may_observe(&self, name: &str) -> bool {
        self.observe.iter().any(|filter| filter.names(name))
    }

    /// Whether something may be changed that others have.
    pub fn may_administer(&self, name: &str) -> bool {
        self.admin.iter().any(|filter| filter.names(name))
    }

    /// Whether the directory shows an agent or a capability: only what may be called or observed is there.
    pub fn may_see(&self, name: &str) -> bool {
        if is_own(name) {
            return self.may_call(name);
        }
        self.call.iter().any(|filter| filter.names(name)) || self.may_observe(name)
    }

    /// Whether a filter asks for anything that may be heard.
    pub fn may_hear_of(&self, filter: &Filter) -> bool {
        let subscribed = self.subscribe.iter().filter_map(|it| it.meet(filter));
        let mut subscribed = subscribed.map(|it| is_own(it.as_str()));
        if subscribed.any(|own| !own) {
            return true;
        }
        let own = Filter::own();
        let observed = self.observe.iter().filter_map(|it| it.meet(filter));
        observed.into_iter().any(|it| it.meet(&own).is_some())
    }

    /// The filters for what these ask for and may be heard of it, besides the engine's own.
    pub(crate) fn narrow(&self, filters: &[Filter]) -> Vec<Filter> {
        let mut all: Vec<Filter> = Vec::new();
        for filter in filters {
            for granted in &self.subscribe {
                let Some(both) = granted.meet(filter).filter(|it| !is_own(it.as_str())) else {
                    continue;
                };
                if all.iter().any(|known| known.covers(&both)) {
                    continue;
                }
                all.retain(|known| !both.covers(known));
                all.push(both);
            }
        }
        all
    }
}

fn read_list(field: &'static str, texts: &[&str], limits: &Limits) -> Result<Vec<Filter>> {
    if texts.len() > limits.grant_filters {
        let message = format!(
            "{} filters of at most {}",
            texts.len(),
            limits.grant_filters
        );
        return Err(Error::invalid(field, message)
            .limit("grant_filters")
            .hint("a filter with * or > stands for many names"));
    }
    let over_names = matches!(field, "call" | "provide" | "observe" | "admin");
    let read = |text: &&str| {
        let read = if over_names {
            Filter::parse_names(text, limits)
        } else {
            Filter::parse(text, limits)
        };
        read.map_err(|error| error.field(field))
    };
    texts.iter().map(read).collect()
}

/// Nobody but the engine speaks under its name.
pub(crate) fn check_is_not_own(field: &str, name: &str) -> Result<()> {
    if !is_own(name) {
        return Ok(());
    }
    let message = format!("{name:?} is the engine's own: loom, and what begins with loom.");
    Err(Error::new(Code::Denied, message)
        .field(field)
        .hint("take another name"))
}

/// Says that something was not granted; what it names is the word of who asked.
fn denied(field: &str, what: &str, list: &str) -> Error {
    Error::new(
        Code::Denied,
        format!("{what:?} is not among what this session may {list}"),
    )
    .field(field)
    .hint(format!(
        "its token needs a {list} grant for it: loom token create NAME --{list} FILTER"
    ))
}

impl Core {
    pub(crate) fn grants_of(&self, session: SessionId) -> Option<&Arc<Grants>> {
        self.sessions.get(session)?.grants.as_ref()
    }

    /// Whether this session may publish there.
    #[cold]
    pub(crate) fn check_publish(&self, session: SessionId, topic: &str) -> Result<()> {
        match self.grants_of(session) {
            Some(grants) if !grants.may_publish(topic) => {
                check_topic(topic, &self.limits)?;
                Err(denied("topic", topic, "publish"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a session's grants allow a call of this capability; one without grants may call everything.
    pub fn may_call(&self, session: SessionId, capability: &str) -> bool {
        self.grants_of(session)
            .is_none_or(|grants| grants.may_call(capability))
    }

    /// Only the node itself offers what stands under `loom.`.
    pub(crate) fn check_provide(&self, session: SessionId, spec: &ProviderSpec<'_>) -> Result<()> {
        let found = self.session(session)?;
        if is_own(spec.name) && !found.is_node {
            let message = format!(
                "{:?} is the node's own; only it provides under loom.",
                spec.name
            );
            return Err(Error::new(Code::Denied, message).field("capability"));
        }
        match &found.grants {
            Some(grants) if !found.is_node && !grants.may_provide(spec.name) => {
                Err(denied("capability", spec.name, "provide"))
            }
            _ => Ok(()),
        }
    }

    /// Whether this session may change what is not its own.
    pub(crate) fn check_admin(&self, session: SessionId, name: &str) -> Result<()> {
        match &self.session(session)?.grants {
            Some(grants) if !grants.may_administer(name) => Err(denied("grants", name, "admin")),
            _ => Ok(()),
        }
    }

    /// Each of these must ask for something that may be heard.
    pub(crate) fn check_hearing(&self, session: SessionId, filters: &[Filter]) -> Result<()> {
        let Some(grants) = self.grants_of(session) else {
            return Ok(());
        };
        let deaf = filters.iter().find(|filter| !grants.may_hear_of(filter));
        let Some(deaf) = deaf else {
            return Ok(());
        };
        let list = if is_own(deaf.as_str()) {
            "observe"
        } else {
            "subscribe"
        };
        Err(denied("filters", deaf.as_str(), list))
    }

    /// An agent hears what is spawned by its name, has the place in the log of its group, and keeps its own states: it is for
    /// those to register who may hear `spawn.` and that name. Under `loom.` stand the coordinators that clients bring with
    /// them; `loom` itself is the engine.
    pub(crate) fn check_agent(&self, session: SessionId, name: &str, group: &str) -> Result<()> {
        let found = self.session(session)?;
        let Some(grants) = found.grants.as_ref().filter(|_| !found.is_node) else {
            return Ok(());
        };
        for (field, who) in [("name", name), ("group", group)] {
            if who == ENGINE {
                check_is_not_own(field, who)?;
            }
            let topic = format!("spawn.{who}");
            if !grants.may_hear(&topic) {
                return Err(denied(field, &topic, "subscribe"));
            }
        }
        Ok(())
    }

    /// Whether a subscription is given events of this topic: its filters say what it asks for, the grants of its session
    /// what it may hear of that.
    pub(crate) fn may_reach(&self, sub: &Subscription, topic: &str) -> bool {
        let Some(grants) = self.grants_of(sub.session) else {
            return true;
        };
        grants.may_hear(topic) || self.has(Planted::GrantsNotKept)
    }

    /// What a subscription hears of the log: its filters, as far as its session may hear what they ask for.
    pub(crate) fn heard_by(&self, sub: &Subscription) -> Vec<Filter> {
        let Some(grants) = self.grants_of(sub.session) else {
            return sub.filters.clone();
        };
        grants.narrow(&sub.filters)
    }

    /// Gives a session other grants, from now on: what is queued for it and may not be heard any more is taken out as if
    /// it had been unsubscribed, providers that may not be provided any more are removed ([`Notice::Removed`]). Turns and
    /// calls that are under way go on.
    ///
    /// # Errors
    /// `FENCED` when the session has ended.
    pub fn set_grants(
        &mut self,
        session: SessionId,
        grants: Option<Arc<Grants>>,
        at: Moment,
    ) -> Result<()> {
        let found = self
            .sessions
            .get_mut(session)
            .ok_or_else(|| Error::fenced("this session has ended"))?;
        found.grants = grants;
        let grants = found.grants.clone();
        let (root, space, is_node) = (found.root, found.space, found.is_node);
        let handles: Vec<Handle> = found.handles.iter().copied().collect();
        if let Some(space) = self.space_mut(space) {
            // What was matched before is matched anew.
            space.version += 1;
        }
        for handle in handles.into_iter().chain([root]) {
            let Some(found) = self.handles.get_mut(handle) else {
                continue;
            };
            found.bound = grants.is_some();
            match found.kind {
                Kind::Root => {}
                Kind::Subscription(sub) => self.hear_as_granted(sub, at),
                Kind::Provider(provider) => {
                    let refused = grants
                        .as_ref()
                        .is_some_and(|it| !is_node && !it.may_provide(&found.name));
                    if refused {
                        let error = denied("capability", &found.name, "provide");
                        self.remove_provider(provider, at);
                        self.notify(session, Notice::Removed(handle, error));
                    }
                }
            }
        }
        self.wake_waiting(space, at);
        self.flush(at);
        Ok(())
    }

    /// Other grants hold for a subscription: its group consumes what is heard now, and what is not leaves its queue.
    fn hear_as_granted(&mut self, id: SubId, at: Moment) {
        let Some(sub) = self.subs.get(id).filter(|sub| !sub.is_deaf()) else {
            return;
        };
        if let Some(consumer) = sub.consumer {
            let most = self.consuming(consumer).map_or(0, |it| it.max_deliver);
            self.enlist(id, crate::partition::START_NOW, most, at);
        }
        self.take_back(id, at);
    }

    /// Takes what may not be heard any more out of a subscription's queue. One step: `queue_items` and `parked_offers`
    /// bound it.
    fn take_back(&mut self, id: SubId, at: Moment) {
        let Some(sub) = self.subs.get(id) else { return };
        let heard = |topic: &str| self.may_reach(sub, topic);
        let items = sub.lanes.find_all(|env| !heard(&env.topic));
        let is_claimed = |lease: &&crate::arena::LeaseId| {
            let lease = self.leases.get(**lease);
            lease.is_some_and(|lease| !heard(&lease.env.topic))
        };
        let claimed: Vec<_> = sub.claimed.iter().filter(is_claimed).copied().collect();
        for (lane, seq) in items {
            let item = self
                .subs
                .get_mut(id)
                .and_then(|sub| sub.lanes.remove(lane, seq));
            let Some(item) = item else { continue };
            self.leaves_queue(id, lane, &item);
            if let As::Durable { .. } = item.kind {
                self.unqueue(id, &item);
            } else if !self.hand_over(id, &item, at) {
                self.lose(id, &item.env, Reason::Unsubscribed, at);
            }
        }
        for lease in claimed {
            if let Some(sub) = self.subs.get_mut(id) {
                sub.claimed.retain(|other| *other != lease);
            }
            self.return_claim(lease, at);
        }
        self.aim_offers_anew(id);
        self.made_room(id);
    }

    /// Offers that wait, and were for a subscription that may not hear them any more, go to another member of its group or
    /// pass it by.
    fn aim_offers_anew(&mut self, id: SubId) {
        let Some(sub) = self.subs.get(id) else { return };
        let aimed = self.tickets.iter().filter(|(_, waiting)| {
            matches!(waiting, Waiting::Parked(p)
                if p.plan.targets.contains(&id) && !self.may_reach(sub, &p.plan.env.topic))
        });
        let aimed: Vec<Ticket> = aimed.map(|(ticket, _)| ticket).collect();
        for ticket in aimed {
            self.pass_by(ticket, id);
        }
    }
}
