//! Publishing: who sends, what, and how the engine answers.

use loom_core::{Handle, Ident, LeaseId, Offer, Options, Publish, Qos, SessionId, show_uuid};

use crate::event::{Event, Stamp, State, space_name, tag};
use crate::habits::Habits;
use crate::trace::{Check, broken, ensure};
use crate::world::{Held, World};

pub(crate) const TOPICS: &[&str] = &["a", "a.b", "a.c", "a.b.c", "b", "b.a", "x.y"];
const KEYS: &[&str] = &["k0", "k1", "0190163d-8694-739b-aea5-966c26f8ad91"];
const THREADS: &[&str] = &["t0", "t1"];

/// Who sends, in which turn.
pub(crate) struct From {
    pub(crate) session: SessionId,
    pub(crate) space: usize,
    pub(crate) handle: Handle,
    pub(crate) sender: String,
    pub(crate) turn: Option<(LeaseId, Held)>,
}

impl World {
    /// Someone to send, in a turn of its session if that has one and the dice say so.
    pub(crate) fn some_sender(&mut self, in_turn: u64) -> Option<From> {
        let at = self.some_peer()?;
        let peer = self.peers.get(at)?;
        let (session, space) = (peer.id, peer.space);
        let own = self
            .book
            .subs
            .iter()
            .filter(|sub| sub.live && sub.session == session);
        let mut handles: Vec<(Handle, String)> =
            own.map(|sub| (sub.handle, sub.name.clone())).collect();
        handles.push((peer.root, peer.name.clone()));
        let (handle, name) = self.dice.pick(&handles)?;
        let open = self.held.iter().filter(|(_, held)| held.session == session);
        let open: Vec<LeaseId> = open.map(|(lease, _)| *lease).collect();
        let turn = if self.dice.chance(in_turn) {
            self.dice.pick(&open)
        } else {
            None
        };
        let turn = turn.and_then(|lease| Some((lease, self.held.get(&lease)?.clone())));
        let sender = format!("{}/{name}", space_name(space));
        Some(From {
            session,
            space,
            handle,
            sender,
            turn,
        })
    }

    /// An event as it will be stamped, with its options.
    pub(crate) fn draft(&mut self, from: &From, habits: &Habits) -> (Event, Option<Box<Options>>) {
        let alone = self
            .book
            .subs
            .first()
            .is_some_and(|sub| sub.group == sub.name);
        let spawned = alone && self.dice.chance(3);
        let topic = if spawned {
            "spawn.a0"
        } else {
            self.dice.word(TOPICS)
        };
        let mut event = Event::new(from.space, from.sender.clone(), topic);
        event.size = self.dice.pick(&[9, 9, 12, 40, 90]).unwrap_or(9);
        event.stamp = from
            .turn
            .as_ref()
            .map(|(_, held)| Stamp::of(&held.envelope));
        event.thread = event.stamp.as_ref().map(|stamp| stamp.thread.clone());
        let mut options = Options::default();
        if self.dice.chance(20) {
            let thread = self.dice.word(THREADS);
            options.thread_id = Some(thread.to_owned());
            event.thread = Some(Ident::parse(thread));
        }
        event.lane.clone_from(&event.thread);
        if self.dice.chance(habits.keyed) {
            let key = self.dice.word(KEYS);
            options.key = Some(key.to_owned());
            event.lane = Some(Ident::parse(key));
        }
        if self.dice.chance(habits.mortal) {
            let ttl = self.dice.between(1, 30);
            options.ttl_ms = Some(ttl);
            event.expires = Some(self.at.now.plus_millis(ttl));
        }
        if self.dice.chance(habits.many_causes) {
            event.causes = self.draw_causes(from.session);
            options.causes = event.causes.iter().map(|id| show_uuid(*id)).collect();
        }
        event.targets = self.book.targets(from.space, topic);
        let many = event.targets.iter().any(|target| target.members.len() > 1);
        self.seen.note_if("group with several members", many);
        (event, Some(Box::new(options)))
    }

    /// Events that a session holds, for one that follows from several.
    fn draw_causes(&mut self, session: SessionId) -> Vec<u128> {
        let held = self.held.values().filter(|held| held.session == session);
        let held: Vec<u128> = held.map(|held| held.envelope.id).collect();
        let count = self.dice.count(1, 3);
        let causes: Vec<u128> = (0..count).filter_map(|_| self.dice.pick(&held)).collect();
        self.seen
            .note_if("event with several causes", causes.len() > 1);
        causes
    }

    pub(crate) fn hops_over(&mut self, from: &From) -> bool {
        let over = from
            .turn
            .as_ref()
            .is_some_and(|(_, held)| usize::from(held.envelope.hop) + 1 > self.limits.hops);
        self.seen.note_if("hop limit reached", over);
        over
    }

    pub(crate) fn publish(&mut self, habits: &Habits) -> Check {
        let Some(from) = self.some_sender(35) else {
            return Ok(());
        };
        let (mut event, options) = self.draft(&from, habits);
        let realtime = self.dice.chance(habits.realtime);
        let qos = self
            .dice
            .pick(&[Qos::Batched, Qos::Batched, Qos::Background]);
        event.qos = if realtime {
            Qos::Realtime
        } else {
            qos.unwrap_or(Qos::Batched)
        };
        let (qos, topic, size) = (event.qos, event.topic, event.size);
        let over = self.hops_over(&from);
        let eager = qos == Qos::Batched && self.dice.chance(25);
        let index = self.book.offer(event);
        let offer = self.core.offer(
            from.session,
            Publish {
                sender: from.handle,
                turn: from.turn.as_ref().map(|(lease, _)| *lease),
                topic,
                payload: tag(b'E', index, size),
                qos,
                options,
                ack: None,
                eager,
            },
            self.at,
        );
        self.note(format!(
            "offer {index} {} {topic} {qos:?} {offer:?}",
            from.sender
        ));
        let refused = offer
            .as_ref()
            .is_err_and(|error| error.limit == Some("run_events"));
        let accepted = matches!(offer, Ok(Offer::Done(_) | Offer::Parked(_)));
        self.count_run(&from, (accepted, refused))?;
        match offer {
            Ok(Offer::NoRoom) => {
                self.seen.note("eager publish found no room");
                ensure(eager, "QOS-BATCHED", || {
                    format!("event {index} was not eager, and was not taken")
                })?;
                self.book.refuse(index)
            }
            Ok(offer) => {
                ensure(!over, "EVENT-HOPS", || {
                    format!("event {index} went too far")
                })?;
                self.offered(index, from.session, offer)
            }
            Err(error) => {
                let full = self.book.may_be_full(index, &self.limits);
                let meant = match error.limit {
                    Some("hops") => over,
                    Some("run_events") => true,
                    Some("queue_items") => qos != Qos::Realtime && full,
                    Some("parked_offers") => qos != Qos::Realtime,
                    _ => false,
                };
                self.seen
                    .note_if("background publish refused", qos == Qos::Background && full);
                ensure(meant, "BAD-INPUT", || {
                    format!("event {index} was refused: {error}")
                })?;
                self.book.refuse(index)
            }
        }
    }

    /// What follows from a turn counts for its run.
    pub(crate) fn count_run(&mut self, from: &From, taken: (bool, bool)) -> Check {
        self.seen.note_if("run refused", taken.1);
        let Some((_, held)) = &from.turn else {
            return Ok(());
        };
        self.book
            .count_run(held.envelope.run, taken, self.at.now, &self.limits)
    }

    pub(crate) fn offered(&mut self, index: usize, session: SessionId, offer: Offer) -> Check {
        let known = self.book.event(index)?;
        let (qos, matched) = (known.qos, known.targets.len());
        match offer {
            Offer::Done(receipt) => {
                let same = receipt.matched == matched && receipt.position.is_none();
                ensure(same, "TOPIC-MATCH", || {
                    format!("event {index} matched {receipt:?}, and should {matched}")
                })?;
                self.book.event(index)?.id = Some(receipt.id);
                self.book.apply(index, true)?;
                if qos == Qos::Background {
                    let rows = self.core.audit().subscriptions;
                    self.book.check_half(index, &rows, &self.limits)?;
                }
                Ok(())
            }
            Offer::Parked(ticket) => {
                self.seen.note("batched publish parked");
                ensure(qos != Qos::Realtime, "QOS-REALTIME", || {
                    format!("event {index} was parked")
                })?;
                self.tickets.insert(ticket, (session, index));
                self.book.wait(index, State::Parked)
            }
            Offer::NoRoom => ensure(false, "QOS-BATCHED", || {
                format!("event {index} was given up")
            }),
            Offer::Logging(ticket) => broken(
                "TICKETS-ORDERED",
                format!("{ticket:?}: event {index} is not durable"),
            ),
        }
    }
}
