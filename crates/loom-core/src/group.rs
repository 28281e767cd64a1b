//! Groups: of the members that hear an event one gets it, and what waits for one that leaves goes to another.

use crate::arena::{GroupId, SubId, Ticket};
use crate::bus::Plan;
use crate::core::{Core, Todo};
use crate::envelope::{Envelope, Qos};
use crate::ident::Ident;
use crate::lane::{As, Item};
use crate::planted::Planted;
use crate::ticket::Waiting;
use crate::time::Moment;
use crate::topics::Target;

impl Core {
    /// The member that has something of this lane, else the next one, those with room first.
    pub(crate) fn pick_member(
        &mut self,
        group: GroupId,
        members: &[SubId],
        lane: &Ident,
    ) -> Option<SubId> {
        // Two may hold a lane where one came back from quarantine in the middle of a turn: what waits comes first.
        let waits = |member: &&SubId| self.awaits_lane(**member, lane);
        let holds = |member: &&SubId| self.holds_lane(**member, lane);
        let sticky = members
            .iter()
            .find(waits)
            .or_else(|| members.iter().find(holds));
        if let Some(member) = sticky.filter(|_| !self.has(Planted::KeyMoves)) {
            return Some(*member);
        }
        let found = self.groups.get_mut(group)?;
        let start = found.turn;
        found.turn = found.turn.wrapping_add(1);
        let limits = &self.limits;
        let order =
            (0..members.len()).filter_map(|step| members.get((start + step) % members.len()));
        let roomy = order.clone().find(|member| {
            let sub = self.subs.get(**member);
            sub.is_some_and(|sub| !sub.lagging && sub.lanes.items() < limits.queue_items)
        });
        roomy
            .or_else(|| members.get(start % members.len()))
            .copied()
    }

    fn awaits_lane(&self, member: SubId, lane: &Ident) -> bool {
        let Some(sub) = self.subs.get(member) else {
            return false;
        };
        sub.lanes.waits(lane) || sub.awaited.contains_key(lane)
    }

    pub(crate) fn holds_lane(&self, member: SubId, lane: &Ident) -> bool {
        let Some(sub) = self.subs.get(member) else {
            return false;
        };
        sub.lanes.find(lane).is_some() || sub.awaited.contains_key(lane)
    }

    /// Of those that still hear it, the member of the group an event goes to now.
    fn heir(&mut self, left: SubId, env: &Envelope) -> Option<SubId> {
        let sub = self.subs.get(left)?;
        let (space, group) = (sub.space, sub.group?);
        let (topic, _) = self.topic(space, &env.topic).ok()?;
        let targets = &self.topics.get(topic)?.targets;
        let members = targets.iter().find_map(|target| match target {
            Target::Group(other, members) if *other == group => Some(members.clone()),
            _ => None,
        })?;
        self.pick_member(group, &members, env.lane())
    }

    /// Gives an event that was queued at one that left to another member, if there is one with room. The match goes with
    /// it: it is among the `matched` of the member that has it now, and of nobody else.
    pub(crate) fn hand_over(&mut self, left: SubId, item: &Item, at: Moment) -> bool {
        let Some(heir) = self.heir(left, &item.env) else {
            return false;
        };
        let Some(sub) = self.subs.get_mut(heir) else {
            return false;
        };
        if sub.lagging || !sub.has_room(&item.env, &self.limits) {
            return false;
        }
        sub.books.class(item.env.qos).matched += 1;
        let realtime = sub.class(item.env.qos) == Qos::Realtime;
        let kind = if realtime { As::Realtime } else { As::Ordinary };
        if let Some(sub) = self.subs.get_mut(left) {
            sub.books.class(item.env.qos).matched -= 1;
        }
        self.ask_instead(&item.env, left, heir);
        let since = Moment { now: item.at, ..at };
        self.push(heir, &item.env, kind, since);
        self.topics.books(item.env.books).rejoin();
        true
    }

    /// Aims offers that wait at another member than the one that left.
    pub(crate) fn hand_over_offers(&mut self, left: SubId) {
        let aimed = self.tickets.iter().filter(
            |(_, waiting)| matches!(waiting, Waiting::Parked(p) if p.plan.targets.contains(&left)),
        );
        let aimed: Vec<Ticket> = aimed.map(|(ticket, _)| ticket).collect();
        for ticket in aimed {
            let Some(waiting) = self.parked_offer(ticket) else {
                continue;
            };
            let env = std::sync::Arc::clone(&waiting.plan.env);
            if let Some(heir) = self.heir(left, &env) {
                self.aim_instead(ticket, left, heir);
                self.ask_instead(&env, left, heir);
            }
        }
    }

    /// An offer that waits is not for this subscription any more: it is for another member of its group, or passes by.
    pub(crate) fn pass_by(&mut self, ticket: Ticket, left: SubId) {
        let Some(waiting) = self.parked_offer(ticket) else {
            return;
        };
        let env = std::sync::Arc::clone(&waiting.plan.env);
        if let Some(heir) = self.heir(left, &env) {
            self.aim_instead(ticket, left, heir);
            self.ask_instead(&env, left, heir);
        } else {
            if let Some(waiting) = self.parked_offer_mut(ticket) {
                waiting.plan.targets.retain(|target| *target != left);
                waiting.listed.retain(|target| *target != left);
                waiting.last = None;
            }
            if let Some(sub) = self.subs.get_mut(left) {
                sub.forget_awaited(env.lane());
            }
            self.decline_for(left, &env, None);
        }
        if let Some(sub) = self.subs.get_mut(left) {
            sub.parked.retain(|(_, other)| *other != ticket);
        }
        self.todo.push_back(Todo::Retry(ticket));
        self.todo.push_back(Todo::Unpark(left));
    }

    fn aim_instead(&mut self, ticket: Ticket, left: SubId, heir: SubId) {
        let Some(waiting) = self.parked_offer_mut(ticket) else {
            return;
        };
        let Plan { env, targets, .. } = &mut waiting.plan;
        for target in targets.iter_mut().filter(|target| **target == left) {
            *target = heir;
        }
        let lane = env.lane().clone();
        waiting.listed.retain(|target| *target != left);
        waiting.last = None;
        if let Some(sub) = self.subs.get_mut(left) {
            sub.forget_awaited(&lane);
        }
        if let Some(sub) = self.subs.get_mut(heir) {
            *sub.awaited.entry(lane).or_default() += 1;
        }
    }
}
