//! The connection: dialling, saying hello, heartbeats, and noticing that it is dead.

use bytes::Bytes;
use loom_core::{Code, Error, Moment, Nanos, Result};
use loom_proto::Encoded;
use loom_proto::v1::{self, Packet, frame::Body};

use super::{Client, Life, LinkChange, LinkState, Note, Why, Wire};
use crate::attached::quarter;
use crate::convert::read_error;
use crate::hub::VERSION;
use crate::planted::Planted;

impl Client {
    /// When a connection is to be tried; none: there is one, or none is wanted any more.
    pub fn wants_connection(&self) -> Option<Nanos> {
        let is_wanted = match self.state {
            LinkState::Refused(_) => false,
            // For what the node has not confirmed, if it has ever known the session.
            LinkState::Closed => self.life.is_some() && self.unsaid() > self.forgone,
            _ => true,
        };
        self.retry_at.filter(|_| is_wanted && self.wire.is_none())
    }

    /// A connection is there: the hello goes first.
    pub fn connected(&mut self, at: Moment) {
        self.epoch += 1;
        self.wire = Some(Wire {
            since: at.now,
            heard: at.now,
            beat: at.now,
            is_welcome: false,
        });
        self.channel.pause();
        let limits = &self.config.limits;
        let hello = v1::Hello {
            versions: vec![VERSION],
            token: self.config.token.clone(),
            session: Bytes::copy_from_slice(&self.config.session),
            epoch: self.epoch,
            name: self.config.name.clone(),
            namespace: self.config.namespace.clone(),
            boot: self
                .life
                .filter(|_| !self.is_spoiled)
                .map(|life| Bytes::copy_from_slice(&life.boot))
                .unwrap_or_default(),
            received: self.channel.received(),
            agent: self.config.agent.clone(),
            credit: Some(v1::Credit {
                frames: limits.window_frames,
                bytes: limits.window_bytes,
            }),
            keep_ms: self.config.keep_ms,
        };
        self.channel.push_loose(&Body::Hello(hello));
    }

    /// The connection is gone, or could not be made.
    pub fn disconnected(&mut self, why: &Why, at: Moment) {
        self.wire = None;
        self.channel.pause();
        let limits = &self.config.limits;
        let most = limits
            .reconnect_base_ms
            .saturating_mul(1 << self.failures.min(20))
            .min(limits.reconnect_cap_ms);
        self.failures = self.failures.saturating_add(1);
        let pause = self.ids.draw() % (most + 1);
        let is_final = self.bugs.has(Planted::EndIsFinal) && *why == Why::Ended;
        self.retry_at = Some(at.now.plus_millis(pause)).filter(|_| !is_final);
        let (reason, untrusted) = match why {
            Why::Broken(reason) => (reason.clone(), None),
            Why::Untrusted(error) => (error.message.clone(), Some(error.clone())),
            Why::Ended => ("the node ended the connection".to_owned(), None),
        };
        let state = match self.state {
            LinkState::Up => LinkState::Lost,
            // What goes on as it was is told once.
            LinkState::Connecting | LinkState::Lost if reason != self.trouble => self.state.clone(),
            _ => return,
        };
        self.announce(state, false, reason, untrusted);
    }

    fn change(&mut self, state: LinkState, resumed: bool, reason: String) {
        self.announce(state, resumed, reason, None);
    }

    fn announce(
        &mut self,
        state: LinkState,
        resumed: bool,
        reason: String,
        untrusted: Option<Error>,
    ) {
        if self.state == LinkState::Closed {
            return;
        }
        self.state = state.clone();
        self.trouble.clone_from(&reason);
        // Of what nobody has read yet, the newest reason is enough.
        if let Some(Note::Link(before)) = self.inbox.back()
            && before.state == state
        {
            self.dropped = self.dropped.saturating_add(before.dropped);
            self.inbox.pop_back();
        }
        let change = LinkChange {
            state,
            resumed,
            missed_from: self.newest,
            reason,
            untrusted,
            dropped: std::mem::take(&mut self.dropped),
        };
        self.note(Note::Link(change));
    }

    /// A packet came.
    ///
    /// # Errors
    /// What ends the connection: the driver closes it and says [`Self::disconnected`].
    pub fn received(&mut self, packet: Packet, at: Moment) -> Result<()> {
        let known = self.channel.received();
        let done = self.take_packet(packet, at);
        // What came with a frame that cannot be taken is lost, and does not come again.
        self.is_spoiled |= done.is_err() && self.channel.received() != known;
        done
    }

    /// Lets the node know what has come, without waiting for more.
    pub(super) fn confirm(&mut self) {
        self.channel.push_loose(&Body::Heartbeat(v1::Heartbeat {
            alive: std::mem::take(&mut self.has_renewed),
            stack: self.stack.clone(),
        }));
    }

    fn take_packet(&mut self, packet: Packet, at: Moment) -> Result<()> {
        let Some(wire) = &mut self.wire else {
            return Ok(());
        };
        wire.heard = at.now;
        if !wire.is_welcome {
            return self.greeted(packet, at);
        }
        let numbered = packet.first > 0;
        for frame in self.channel.accept(packet)? {
            match frame.body {
                // Its coming is all it says; one that a later version has added is skipped.
                None | Some(Body::Heartbeat(_)) => {}
                Some(Body::Error(error)) if !numbered => return Err(self.ended(error)),
                Some(body) => self.take_in(body, at)?,
            }
        }
        self.pump();
        self.regrant();
        Ok(())
    }

    /// The node ended the connection. One that another attachment of this session has taken over ends for good.
    fn ended(&mut self, error: v1::Error) -> Error {
        let keeps = error.keeps;
        let (code, detail) = read_error(error);
        let error = Error::new(code, detail.message);
        let is_final = matches!(
            code,
            Code::Fenced | Code::Unauthenticated | Code::Denied | Code::NotSupported
        );
        if is_final && !(keeps && code != Code::Fenced) {
            self.change(
                LinkState::Refused(error.clone()),
                false,
                error.message.clone(),
            );
            self.retry_at = None;
            if self.state == LinkState::Closed {
                self.forgo();
            } else {
                self.end_all(&error);
            }
        }
        error
    }

    fn greeted(&mut self, packet: Packet, at: Moment) -> Result<()> {
        let mut frames = packet.frames.into_iter();
        match frames.next().and_then(|frame| frame.body) {
            Some(Body::Welcome(welcome)) => self.welcomed(welcome, at),
            Some(Body::Error(error)) => Err(self.ended(error)),
            _ => Err(Error::invalid(
                "welcome",
                "a node answers a hello by a welcome or an error",
            )),
        }
    }

    fn welcomed(&mut self, welcome: v1::Welcome, at: Moment) -> Result<()> {
        let boot = <[u8; 16]>::try_from(welcome.boot.as_ref())
            .map_err(|_| Error::invalid("boot", "the life of a node has 16 bytes"))?;
        if let Some(wire) = &mut self.wire {
            wire.is_welcome = true;
        }
        let limits = &self.core_limits;
        let durable = welcome.durable.iter();
        self.durable = durable
            .filter_map(|text| loom_core::Filter::parse(text, limits).ok())
            .collect();
        self.namespace = welcome.namespace;
        if !std::mem::take(&mut self.is_spoiled) {
            self.failures = 0;
        }
        self.retry_at = None;
        let life = Life {
            boot,
            keeps_log: welcome.keeps_log,
        };
        let before = self.life.replace(life);
        if welcome.resumed {
            let resumed = self.channel.resume(welcome.received);
            self.is_spoiled = resumed.is_err();
            resumed?;
        } else {
            let remembers = before.map(|before| life.remembers(before));
            let is_elsewhere = before.is_some_and(|before| before.boot == life.boot);
            let credit = welcome.credit.unwrap_or_default();
            self.restart(credit, remembers, is_elsewhere, at);
        }
        self.change(LinkState::Up, welcome.resumed, String::new());
        self.pump();
        Ok(())
    }

    /// Lets the node send more, when enough was taken.
    fn regrant(&mut self) {
        let limits = &self.config.limits;
        let frames = self.dealt.frames.saturating_add(limits.window_frames);
        let bytes = self.dealt.bytes.saturating_add(limits.window_bytes);
        if frames.saturating_sub(self.granted.frames) >= quarter(limits.window_frames)
            || bytes.saturating_sub(self.granted.bytes) >= quarter(limits.window_bytes)
        {
            self.granted.frames = frames;
            self.granted.bytes = bytes;
            self.channel.push(
                &Body::Credit(v1::Credit { frames, bytes }),
                crate::channel::Class::Control,
            );
        }
    }

    /// The next packet, or none: then all is on its way.
    pub fn transmit(&mut self) -> Option<Encoded> {
        let wire = self.wire?;
        if wire.is_welcome {
            self.flush_acks();
            self.regrant();
            self.pump();
        } else if !self.channel.has_loose() {
            return None;
        }
        self.channel.transmit()
    }

    /// Whether everything that has to reach the node has reached it.
    pub fn is_flushed(&self) -> bool {
        self.acks.is_empty() && self.outbound.is_empty() && self.channel.held() == 0
    }

    /// Ends what is due; sends heartbeats.
    ///
    /// # Errors
    /// The connection is dead: the driver closes it and says [`Self::disconnected`].
    pub fn tick(&mut self, at: Moment) -> Result<()> {
        self.end_overdue(at);
        let limits = self.config.limits.clone();
        let Some(wire) = &mut self.wire else {
            return Ok(());
        };
        if !wire.is_welcome {
            if wire.since.plus_millis(limits.handshake_ms) <= at.now {
                return Err(Error::new(
                    Code::Timeout,
                    "the node did not answer the hello in time",
                ));
            }
            return Ok(());
        }
        if wire.heard.plus_millis(limits.silence_ms) <= at.now {
            return Err(Error::new(
                Code::Timeout,
                "nothing came from the node for too long",
            ));
        }
        if wire.beat.plus_millis(limits.heartbeat_ms) <= at.now {
            wire.beat = at.now;
            self.confirm();
        }
        Ok(())
    }

    /// When [`Self::tick`] is due next.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let limits = &self.config.limits;
        let wire = self.wire.map(|wire| {
            if wire.is_welcome {
                wire.beat
                    .plus_millis(limits.heartbeat_ms)
                    .min(wire.heard.plus_millis(limits.silence_ms))
            } else {
                wire.since.plus_millis(limits.handshake_ms)
            }
        });
        wire.into_iter().chain(self.next_end()).min()
    }
}
