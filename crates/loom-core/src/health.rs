//! How a registration fares, as the runtime that supervises it says: what it hears follows from that.

use crate::arena::{Handle, SessionId, SubId};
use crate::books::Reason;
use crate::core::{Core, Kind, Todo};
use crate::directory::DirectoryKind;
use crate::error::{Error, Result};
use crate::lane::As;
use crate::planted::Planted;
use crate::time::Moment;

/// How a registration fares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// It takes work.
    #[default]
    Up,
    /// It takes nothing now; what is for it waits in its queue, within the queue's bounds.
    Restarting,
    /// It hears nothing until it is up again; it stays registered.
    Quarantined,
    /// A provider that failed too often; no supervisor sets it.
    Ejected,
    /// An ejected provider that one call tries; no supervisor sets it.
    Probing,
}

impl Health {
    /// Reads the number as it crosses languages.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for any other than 0, 1, 2.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Up),
            1 => Ok(Self::Restarting),
            2 => Ok(Self::Quarantined),
            _ => {
                let message =
                    format!("there is no state {number}; 0 up, 1 restarting, 2 quarantined");
                Err(Error::invalid("state", message))
            }
        }
    }

    /// Its word in the directory.
    pub const fn token(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Restarting => "restarting",
            Self::Quarantined => "quarantined",
            Self::Ejected => "ejected",
            Self::Probing => "probing",
        }
    }
}

impl Core {
    /// Says how an agent or a provider fares: the directory shows it, and what it is given follows from it.
    ///
    /// Turns that are under way go on. What is queued at a quarantined agent goes to another member of its group that has
    /// room, else it is lost, counted as unsubscribed.
    ///
    /// # Errors
    /// `FENCED` for a handle of another session; `INVALID_PARAMS` for one that is neither an agent nor a provider.
    pub fn set_state(
        &mut self,
        session: SessionId,
        handle: Handle,
        state: Health,
        at: Moment,
    ) -> Result<()> {
        match self.registration(session, handle)?.kind {
            Kind::Subscription(sub) => self.set_agent_state(sub, state, at)?,
            Kind::Provider(provider) => self.set_provider_state(provider, state, at)?,
            Kind::Root => {
                return Err(Error::invalid("handle", "this handle has no state to set"));
            }
        }
        self.flush(at);
        Ok(())
    }

    fn set_agent_state(&mut self, id: SubId, state: Health, at: Moment) -> Result<()> {
        let hears = self.has(Planted::QuarantinedHears);
        let Some(sub) = self.subs.get_mut(id).filter(|sub| !sub.closing) else {
            return Err(Error::fenced("this agent was removed"));
        };
        if sub.is_stream() {
            return Err(Error::invalid("handle", "a stream has no state to set"));
        }
        if hears && state == Health::Quarantined {
            let (space, handle, name) = (sub.space, sub.handle, sub.name.clone());
            self.set_health(space, DirectoryKind::Agent, (&name, handle), state);
            return Ok(());
        }
        let was = std::mem::replace(&mut sub.health, state);
        if was == state {
            return Ok(());
        }
        let (space, handle, name) = (sub.space, sub.handle, sub.name.clone());
        let deaf = |health| health == Health::Quarantined;
        if deaf(state) {
            self.unhear(id);
            self.shed_queue(id, Reason::Unsubscribed, at);
        } else if deaf(was) {
            self.hear(id);
            if let Some(consumer) = self.subs.get(id).and_then(|sub| sub.consumer) {
                self.rejoin(consumer, at);
            }
        }
        self.set_health(space, DirectoryKind::Agent, (&name, handle), state);
        if deaf(was) {
            self.wake_waiting(space, at);
        }
        self.poke(id);
        Ok(())
    }

    /// Enters the filters of a subscription: from now on it hears.
    pub(crate) fn hear(&mut self, id: SubId) {
        let Some(sub) = self.subs.get(id) else { return };
        let Some(space) = self.spaces.get_mut(sub.space.0 as usize) else {
            return;
        };
        for filter in &sub.filters {
            space.trie.insert(filter, id);
        }
        space.version += 1;
    }

    /// Takes its filters back: from now on it hears nothing.
    pub(crate) fn unhear(&mut self, id: SubId) {
        let Some(sub) = self.subs.get(id) else { return };
        let Some(space) = self.spaces.get_mut(sub.space.0 as usize) else {
            return;
        };
        for filter in &sub.filters {
            space.trie.remove(filter, id);
        }
        space.version += 1;
    }

    /// Empties the queue of one that hears nothing any more: to another member of its group that has room, else it is
    /// dropped. Those who wait for room may go. One step: `queue_items` and `parked_offers` bound it.
    pub(crate) fn shed_queue(&mut self, id: SubId, reason: Reason, at: Moment) {
        let Some(sub) = self.subs.get_mut(id) else {
            return;
        };
        let parked = std::mem::take(&mut sub.parked);
        let claimed = std::mem::take(&mut sub.claimed);
        let consumer = sub.consumer;
        let items = sub.lanes.clear();
        let awaited = !sub.awaited.is_empty();
        sub.lagging = false;
        for (lane, item) in items {
            self.leaves_queue(id, lane, &item);
            if let As::Durable { .. } = item.kind {
                self.unqueue(id, &item);
            } else if !self.hand_over(id, &item, at) {
                self.lose(id, &item.env, reason, at);
            }
        }
        for lease in claimed {
            self.return_claim(lease, at);
        }
        if let Some(consumer) = consumer {
            self.rejoin(consumer, at);
        }
        if awaited {
            self.hand_over_offers(id);
        }
        self.todo
            .extend(parked.into_iter().map(|(_, ticket)| Todo::Retry(ticket)));
    }
}
