//! Turns and invocations: taking them, and saying how they ended.

use std::sync::Arc;

use bytes::Bytes;
use loom_core::{Code, Delivery, Error, Handle, Health, LeaseId, Moment, Notice, Position, Result};
use loom_proto::v1::{self, frame::Body};

use super::{ACKED, Client, Held, LinkState, Note, Registration, Turn};
use crate::convert::payload;
use crate::planted::Planted;

impl Client {
    /// Ends lease `done` well, if one is given, and gives the next work of a handle. Without work, one READY comes when there
    /// is some.
    ///
    /// # Errors
    /// `FENCED` for a handle that was removed.
    pub fn take(
        &mut self,
        handle: Handle,
        done: Option<LeaseId>,
        at: Moment,
    ) -> Result<Option<Delivery>> {
        if let Some(lease) = done {
            self.done(lease);
        }
        loop {
            let Some(found) = self.registrations.get_mut(&handle.0) else {
                return match done {
                    Some(_) => Ok(None),
                    None => Err(Error::fenced("this registration was removed")),
                };
            };
            let is_up = found.health == Health::Up;
            let next = if is_up { found.queue.pop() } else { None };
            let Some((lane, delivery)) = next else {
                found.armed = true;
                return Ok(None);
            };
            let Some(lease) = delivery.lease else {
                continue;
            };
            self.deal(lease.0, delivery.envelope.size());
            if !self.leases.contains_key(&lease.0) {
                continue;
            }
            if is_over(&delivery, at) {
                self.expire(lease, lane);
                continue;
            }
            return Ok(Some(delivery));
        }
    }

    /// A delivery was dealt with: what it has spent is granted anew. One of an earlier life of the node, or of a session
    /// before, has spent nothing here.
    pub(super) fn deal(&mut self, lease: u64, bytes: usize) {
        if self.leases.get(&lease).is_some_and(|it| it.wire.is_some()) {
            self.deal_with(bytes);
        }
    }

    fn deal_with(&mut self, bytes: usize) {
        self.dealt.frames = self.dealt.frames.saturating_add(1);
        self.dealt.bytes = self.dealt.bytes.saturating_add(bytes as u64);
    }

    /// Its time is over before it was begun: the node is told, and counts it.
    fn expire(&mut self, lease: LeaseId, lane: u64) {
        if let Some(held) = self.leases.remove(&lease.0) {
            self.release(held.handle, lane);
            if let Some(wire) = held.wire {
                self.by_wire.remove(&wire);
                let detail = br#"{"message":"its time was over before it was begun"}"#;
                let fail = v1::Fail {
                    lease: wire,
                    code: u32::from(Code::Timeout.number()),
                    detail: Bytes::from_static(detail),
                };
                self.send(&Body::Fail(fail));
            }
        }
    }

    fn release(&mut self, handle: u64, lane: u64) {
        let Some(found) = self.registrations.get_mut(&handle) else {
            return;
        };
        found.queue.release(lane);
        self.wake(handle);
    }

    /// Tells the worker of a handle that there is work, if it waits for that.
    pub(super) fn wake(&mut self, handle: u64) {
        let Some(found) = self.registrations.get_mut(&handle) else {
            return;
        };
        if found.armed && found.health == Health::Up && found.queue.is_ready() {
            found.armed = false;
            self.note(Note::Core(Notice::Ready(Handle(handle))));
        }
    }

    /// Ends a lease: its lane is free. Gives its number at the node, if it has one there.
    fn end(&mut self, lease: LeaseId) -> Option<(Held, Option<u64>)> {
        let held = self.leases.remove(&lease.0)?;
        let wire = held.wire;
        if let Some(wire) = wire {
            self.by_wire.remove(&wire);
        }
        self.forget_turn(&held);
        self.release_quietly(held.handle, held.lane);
        Some((held, wire))
    }

    /// As [`Self::release`], for one who takes next.
    fn release_quietly(&mut self, handle: u64, lane: u64) {
        if let Some(found) = self.registrations.get_mut(&handle) {
            found.queue.release(lane);
        }
    }

    /// Ends what a stream had given last, of which its reader will say nothing any more.
    pub(super) fn end_current(&mut self, handle: u64) {
        let current = self.leases.iter().find(|(_, held)| held.handle == handle);
        if let Some(lease) = current.map(|(lease, _)| LeaseId(*lease)) {
            self.done(lease);
        }
    }

    fn done(&mut self, lease: LeaseId) {
        let Some((held, wire)) = self.end(lease) else {
            return;
        };
        if let Some(found) = self.registrations.get_mut(&held.handle) {
            found.done += 1;
        }
        if let Some(turn) = held.turn().filter(|_| !held.again) {
            self.remember(turn);
        }
        let Some(wire) = wire else { return };
        if self.quoting.contains_key(&wire) && !self.bugs.has(Planted::AckOvertakes) {
            let ack = v1::Ack {
                leases: vec![wire],
                goes_on: false,
            };
            self.send_after(wire, Body::Ack(ack));
        } else {
            self.acks.push(wire);
        }
    }

    /// A durable turn has ended well here: should it come again, the node had not heard of that.
    fn remember(&mut self, turn: Turn) {
        if !self.acked_known.insert(turn) {
            return;
        }
        if self.acked.len() >= ACKED
            && let Some(oldest) = self.acked.pop_front()
        {
            self.acked_known.remove(&oldest);
        }
        self.acked.push_back(turn);
    }

    /// Puts the ends that were gathered behind what was sent before them.
    pub(super) fn flush_acks(&mut self) {
        if !self.acks.is_empty() {
            let leases = std::mem::take(&mut self.acks);
            self.send(&Body::Ack(v1::Ack {
                leases,
                goes_on: false,
            }));
        }
    }

    /// Answers a request. `false`: nobody waits any more, as far as is known here.
    ///
    /// # Errors
    /// `FENCED` where the turn is over, or the link was closed.
    pub fn reply(
        &mut self,
        lease: LeaseId,
        data: Bytes,
        content_type: Option<&str>,
    ) -> Result<bool> {
        self.check_size(data.len())?;
        let Some(wire) = self.wire_of(lease)? else {
            return Ok(false);
        };
        let payload = Some(payload(data, content_type.unwrap_or_default()));
        self.send_after(
            wire,
            Body::Reply(v1::Reply {
                lease: wire,
                payload,
            }),
        );
        Ok(true)
    }

    /// Ends an invocation well.
    ///
    /// # Errors
    /// `FENCED` where the turn is over, or the link was closed.
    pub fn result(&mut self, lease: LeaseId, data: Bytes) -> Result<bool> {
        self.check_size(data.len())?;
        let handle = self.leases.get(&lease.0).map(|held| held.handle);
        let Some((_, wire)) = self.end(lease) else {
            return Ok(false);
        };
        if let Some(handle) = handle {
            self.wake(handle);
        }
        let Some(wire) = wire else { return Ok(false) };
        let payload = Some(payload(data, ""));
        self.flush_acks();
        self.send_after(
            wire,
            Body::Result(v1::Result {
                lease: wire,
                payload,
            }),
        );
        Ok(true)
    }

    /// Ends a turn or an invocation with an error.
    ///
    /// # Errors
    /// `FENCED` where the turn is over, or the link was closed.
    pub fn fail(&mut self, lease: LeaseId, code: Code, detail: &[u8]) -> Result<bool> {
        let handle = self.leases.get(&lease.0).map(|held| held.handle);
        let Some((_, wire)) = self.end(lease) else {
            return Ok(false);
        };
        if let Some(handle) = handle {
            self.wake(handle);
        }
        let Some(wire) = wire else { return Ok(false) };
        let fail = v1::Fail {
            lease: wire,
            code: u32::from(code.number()),
            detail: Bytes::copy_from_slice(detail),
        };
        self.flush_acks();
        self.send_after(wire, Body::Fail(fail));
        Ok(true)
    }

    /// Sends one chunk. `false`: no credit; a CREDIT says when there is some.
    ///
    /// # Errors
    /// `FENCED` where the turn is over, or the link was closed.
    pub fn chunk(&mut self, lease: LeaseId, data: Bytes) -> Result<bool> {
        self.check_size(data.len())?;
        let Some(held) = self.leases.get_mut(&lease.0) else {
            return Ok(false);
        };
        if held.chunks >= held.credit {
            return Ok(false);
        }
        held.chunks += 1;
        let Some(wire) = held.wire else {
            return Ok(true);
        };
        let payload = Some(payload(data, ""));
        self.send_after(
            wire,
            Body::Chunk(v1::Chunk {
                lease: wire,
                call: 0,
                payload,
            }),
        );
        Ok(true)
    }

    /// Acknowledges a durable turn that goes on.
    ///
    /// # Errors
    /// `FENCED` where the turn is over.
    pub fn ack(&mut self, lease: LeaseId) -> Result<()> {
        self.about(lease, |lease| {
            Body::Ack(v1::Ack {
                leases: vec![lease],
                goes_on: true,
            })
        })
    }

    /// Lets a durable event be given again, after a pause.
    ///
    /// # Errors
    /// `FENCED` where the turn is over.
    pub fn nak(&mut self, lease: LeaseId, after_ms: Option<u64>) -> Result<()> {
        if let Some(held) = self.leases.get_mut(&lease.0) {
            held.again = true;
        }
        self.about(lease, |lease| Body::Nak(v1::Nak { lease, after_ms }))
    }

    /// Lets the lease of a durable turn hold for another term.
    ///
    /// # Errors
    /// `FENCED` where the turn is over.
    pub fn extend(&mut self, lease: LeaseId) -> Result<()> {
        self.about(lease, |lease| Body::Extend(v1::Extend { lease }))
    }

    /// Lets a durable event become a dead letter.
    ///
    /// # Errors
    /// `FENCED` where the turn is over.
    pub fn term(&mut self, lease: LeaseId, reason: &str) -> Result<()> {
        let reason = reason.to_owned();
        self.about(lease, |lease| Body::Term(v1::Term { lease, reason }))
    }

    /// Says something of a turn: a step, a commit; the frame is given its number at the node.
    ///
    /// # Errors
    /// `FENCED` where the turn is over.
    pub fn about(&mut self, lease: LeaseId, make: impl FnOnce(u64) -> Body) -> Result<()> {
        if let Some(wire) = self.wire_of(lease)? {
            let frame = make(wire);
            self.check_frame(&frame)?;
            self.send_after(wire, frame);
        }
        Ok(())
    }

    fn wire_of(&self, lease: LeaseId) -> Result<Option<u64>> {
        match self.leases.get(&lease.0) {
            Some(held) => Ok(held.wire),
            None => Err(
                Error::fenced("this turn is over, or not one of this session")
                    .hint("a context may be used only while its handler runs"),
            ),
        }
    }

    // -- deliveries that came ---------------------------------------------------------------------

    /// Takes a delivery in.
    pub(super) fn deliver(&mut self, handle: u64, wire: u64, lane: u64, mut delivery: Delivery) {
        if self.state == LinkState::Closed {
            // The node gives it to others when the session ends, and to this one no more than was granted.
            return;
        }
        let position = delivery.envelope.position;
        self.newest = self.newest.max(position);
        let bytes = delivery.envelope.size();
        if delivery.durable && self.is_known(handle, wire, position) {
            self.deal_with(bytes);
            return;
        }
        let lease = self.number();
        if let (true, Some(position)) = (delivery.durable, position) {
            self.turns.insert((handle, position), lease);
        }
        let lane = if delivery.work.is_some() { lease } else { lane };
        delivery.lease = Some(LeaseId(lease));
        let held = Held {
            handle,
            lane,
            wire: Some(wire),
            position,
            durable: delivery.durable,
            again: false,
            credit: delivery.work.map_or(0, |work| work.credit),
            chunks: 0,
        };
        self.leases.insert(lease, held);
        self.by_wire.insert(wire, lease);
        // The node may have sent it before it heard that nobody takes it any more.
        let takes = |found: &&mut Registration| found.health != Health::Quarantined;
        let Some(found) = self.registrations.get_mut(&handle).filter(takes) else {
            self.give_up(lease, bytes);
            return;
        };
        if found.queue.push(lane, delivery) {
            self.wake(handle);
        }
    }

    /// A durable event that comes again: its turn still waits or runs here, or has ended well here and the node had not heard of it.
    fn is_known(&mut self, handle: u64, wire: u64, position: Option<Position>) -> bool {
        let Some(position) = position else {
            return false;
        };
        if let Some(lease) = self.turns.get(&(handle, position))
            && let Some(held) = self.leases.get_mut(lease)
        {
            // The turn here has a new lease: the one it had was of an earlier life of the node, or has lapsed.
            if let Some(lapsed) = held.wire.replace(wire) {
                self.by_wire.remove(&lapsed);
                self.acks.push(lapsed);
            }
            self.by_wire.insert(wire, *lease);
            return true;
        }
        let is_over = self.acked_known.contains(&(handle, position));
        if is_over && !self.bugs.has(Planted::AckedForgotten) {
            self.acks.push(wire);
            return true;
        }
        false
    }

    /// What a call's provider is told by its number at the node.
    pub(super) fn local(&self, wire: u64) -> Option<LeaseId> {
        self.by_wire.get(&wire).map(|lease| LeaseId(*lease))
    }

    pub(super) fn origin(&mut self, sender: &str) -> Arc<loom_core::Origin> {
        if let Some(known) = &self.origin
            && known.sender.as_ref() == sender
        {
            return Arc::clone(known);
        }
        let namespace = sender.split('/').next().unwrap_or_default();
        let origin = Arc::new(loom_core::Origin {
            namespace: namespace.into(),
            sender: sender.into(),
        });
        self.origin = Some(Arc::clone(&origin));
        origin
    }
}

fn is_over(delivery: &Delivery, at: Moment) -> bool {
    let env = &delivery.envelope;
    !delivery.durable
        && (env.expires.is_some_and(|end| end <= at.now)
            || env.deadline.is_some_and(|end| end <= at.now))
}
