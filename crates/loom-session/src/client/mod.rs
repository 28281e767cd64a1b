//! The other end of a session: what an app registers, publishes and calls, whether its link is up or lost.
//!
//! Its operations mirror those of a session in process. Numbers of handles, calls, leases and tickets are its own; they
//! stay when the node or the connection behind them changes.

mod calls;
mod coming;
mod going;
mod leaving;
mod link;
mod restart;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use loom_core::{
    Code, Delivery, Envelope, Error, Handle, Health, Ids, LeaseId, Nanos, Notice, Origin, Position,
    Result, Ticket,
};
use loom_proto::v1::{self, frame::Body};
use rustc_hash::FxHashMap;

use crate::attached::Flow;
use crate::channel::{Channel, Class, Progress};
use crate::limits::Limits;
use crate::planted::Bugs;
use crate::queue::Queue;

pub use self::calls::{Invocation, Sending, Sent};

/// Who attaches, and where.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// 16 random bytes, drawn once by the process.
    pub session: [u8; 16],
    /// The app's name.
    pub name: String,
    /// Empty: the one of the credential.
    pub namespace: String,
    /// The credential.
    pub token: String,
    /// What it calls itself: "loom-python/0.1.0".
    pub agent: String,
    /// So long its session is to be kept without a connection; 0: as the node does.
    pub keep_ms: u64,
    /// Frames are never cut into parts.
    pub whole: bool,
    /// What it holds to.
    pub limits: Limits,
}

/// How a link stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// It has not been up yet.
    Connecting,
    /// The node answers.
    Up,
    /// It was up; it is tried again.
    Lost,
    /// The node does not take this session: it is not tried again.
    Refused(Error),
    /// It was closed.
    Closed,
}

/// What has changed about a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkChange {
    /// How it stands now.
    pub state: LinkState,
    /// Whether the session goes on where it was. Where it does not, everything was registered again, and what was
    /// published meanwhile may have been missed.
    pub resumed: bool,
    /// The newest position that was seen before: durable events behind it come again to groups; streams may have missed
    /// them.
    pub missed_from: Option<Position>,
    /// Why it was lost, or is not up yet.
    pub reason: String,
    /// One side does not trust the other: it is tried again, but somebody has to change something.
    pub untrusted: Option<Error>,
    /// Realtime events that were dropped since the last change: there was no room to keep them, or their turn was given to
    /// others.
    pub dropped: u64,
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Nobody answered, or the connection broke.
    Broken(String),
    /// One of the two does not trust the other's certificate.
    Untrusted(Error),
    /// The other side ended the stream well.
    Ended,
}

/// What a session finds in its inbox.
#[derive(Debug)]
pub enum Note {
    /// As in process; a registration is answered as an offer is, with its handle as the ticket.
    Core(Notice),
    /// The directory's entries, each JSON.
    Entries(u64, Vec<Bytes>),
    /// What is kept: keys, JSON, and until when; whether that is the memory, and not states of an agent.
    Kept(u64, Vec<(String, Bytes, Option<u64>)>, bool),
    /// Events of the log, where to go on, and whether there were no more.
    Page(u64, Vec<Arc<Envelope>>, String, bool),
    /// The link has changed.
    Link(LinkChange),
}

/// A registration: the frames that make it, and what was delivered to it.
#[derive(Debug)]
struct Registration {
    frames: Vec<Body>,
    queue: Queue,
    /// Its worker waits to be told that there is work.
    armed: bool,
    /// The node has taken it.
    is_accepted: bool,
    /// Turns that ended well.
    done: u64,
    /// Only of one that is up something is taken; one in quarantine keeps nothing. As at the node.
    health: Health,
}

/// A turn or an invocation that was delivered and has not ended.
#[derive(Debug)]
struct Held {
    handle: u64,
    lane: u64,
    /// Its number at the node; none: the node does not know of it any more.
    wire: Option<u64>,
    /// Of a durable event.
    position: Option<Position>,
    durable: bool,
    /// It is to be given again: its end is none that it could be known by.
    again: bool,
    /// Chunks that may be sent in all, and were.
    credit: u64,
    chunks: u64,
}

impl Held {
    /// Which durable turn it is; none: it is no durable one.
    fn turn(&self) -> Option<Turn> {
        self.position
            .filter(|_| self.durable)
            .map(|position| (self.handle, position))
    }
}

/// A durable turn: its registration, and the place of its event in the log.
type Turn = (u64, Position);

/// A lease that is quoted: its number at the node, 0: none; and of which durable turn it is.
#[derive(Debug, Clone, Copy, Default)]
struct Quoted {
    wire: u64,
    turn: Option<Turn>,
}

/// What quotes one lease and waits for credit.
#[derive(Debug, Default)]
struct Quoting {
    frames: usize,
    /// The durable turn of that lease.
    turn: Option<Turn>,
}

/// A publish without an answer.
#[derive(Debug)]
struct Publishing {
    frame: v1::Publish,
    /// The durable turn that it quotes, be that over here.
    turn: Option<Turn>,
}

/// A call or a request without an outcome.
#[derive(Debug)]
struct Calling {
    frame: Body,
    /// The durable turn that it quotes, be that over here.
    turn: Option<Turn>,
    deadline: Nanos,
    is_sent: bool,
    is_cancelled: bool,
}

/// Answers that come in several frames.
#[derive(Debug, Default)]
struct Gathered {
    entries: Vec<Bytes>,
    kept: Vec<(String, Bytes, Option<u64>)>,
    events: Vec<Arc<Envelope>>,
}

/// A connection while it is there.
#[derive(Debug, Clone, Copy)]
struct Wire {
    since: Nanos,
    heard: Nanos,
    beat: Nanos,
    is_welcome: bool,
}

/// What a node has said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    /// Names its life.
    boot: [u8; 16],
    /// Its log outlives it.
    keeps_log: bool,
}

impl Life {
    /// Whether a node knows the calls with a key that an earlier life of it has begun.
    fn remembers(self, before: Self) -> bool {
        self.boot == before.boot || self.keeps_log && before.keeps_log
    }
}

/// The client's end of a session.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    core_limits: loom_core::Limits,
    ids: Ids,
    state: LinkState,
    /// Why the last connection was none, as it was told.
    trouble: String,
    wire: Option<Wire>,
    epoch: u64,
    life: Option<Life>,
    /// Something that the node has sent was lost here: the session cannot go on, it begins anew.
    is_spoiled: bool,
    /// The namespace as the node says it.
    namespace: String,
    durable: Vec<loom_core::Filter>,
    pub(crate) channel: Channel,
    failures: u32,
    retry_at: Option<Nanos>,
    next: u64,
    registrations: BTreeMap<u64, Registration>,
    publishes: BTreeMap<u64, Publishing>,
    calls: BTreeMap<u64, Calling>,
    deadlines: BTreeSet<(Nanos, u64)>,
    asks: BTreeMap<u64, Body>,
    gathered: BTreeMap<u64, Gathered>,
    leases: FxHashMap<u64, Held>,
    by_wire: FxHashMap<u64, u64>,
    /// Durable turns that ended well lately, the oldest first: what of them comes again was not heard of.
    acked: VecDeque<Turn>,
    acked_known: BTreeSet<Turn>,
    /// Durable turns that wait or run here, by what they are turns of.
    turns: BTreeMap<Turn, u64>,
    acks: Vec<u64>,
    /// What waits for credit, in order, and what of it quotes which lease.
    outbound: VecDeque<Body>,
    outbound_bytes: usize,
    quoting: FxHashMap<u64, Quoting>,
    gone: Flow,
    allowed: Flow,
    dealt: Flow,
    granted: Flow,
    inbox: VecDeque<Note>,
    is_woken: bool,
    has_renewed: bool,
    stack: String,
    newest: Option<Position>,
    dropped: u64,
    /// After it was closed: frames that a node which knew the session no more could not be told.
    forgone: usize,
    origin: Option<Arc<Origin>>,
    pub(crate) bugs: Bugs,
}

/// Ended durable turns that are remembered.
const ACKED: usize = 4 * loom_core::spec::limits::SESSION_FRAMES;

impl Client {
    /// A client that has not connected yet. Its pauses follow from the seed.
    pub fn new(config: ClientConfig, seed: u64) -> Self {
        let channel = Channel::new(config.limits.frame_bytes, config.whole);
        Self {
            namespace: config.namespace.clone(),
            config,
            core_limits: loom_core::Limits::default(),
            ids: Ids::new(seed),
            state: LinkState::Connecting,
            trouble: String::new(),
            wire: None,
            epoch: 0,
            life: None,
            is_spoiled: false,
            durable: Vec::new(),
            channel,
            failures: 0,
            retry_at: Some(Nanos(0)),
            next: 0,
            registrations: BTreeMap::new(),
            publishes: BTreeMap::new(),
            calls: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            asks: BTreeMap::new(),
            gathered: BTreeMap::new(),
            leases: FxHashMap::default(),
            by_wire: FxHashMap::default(),
            acked: VecDeque::new(),
            acked_known: BTreeSet::new(),
            turns: BTreeMap::new(),
            acks: Vec::new(),
            outbound: VecDeque::new(),
            outbound_bytes: 0,
            quoting: FxHashMap::default(),
            gone: Flow::default(),
            allowed: Flow::default(),
            dealt: Flow::default(),
            granted: Flow::default(),
            inbox: VecDeque::new(),
            is_woken: false,
            has_renewed: true,
            stack: String::new(),
            newest: None,
            dropped: 0,
            forgone: 0,
            origin: None,
            bugs: Bugs::default(),
        }
    }

    /// How the link stands.
    pub fn state(&self) -> &LinkState {
        &self.state
    }

    /// The namespace it is in, once the node has said so.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Takes up to `most` notes out of the inbox.
    pub fn drain(&mut self, most: usize) -> Vec<Note> {
        let count = most.min(self.inbox.len());
        self.inbox.drain(..count).collect()
    }

    /// Notes that wait.
    pub fn waiting(&self) -> usize {
        self.inbox.len()
    }

    /// Whether the inbox got its first note since this was asked last: its loop has to be woken.
    pub fn take_woken(&mut self) -> bool {
        std::mem::take(&mut self.is_woken)
    }

    /// Calls, requests, publishes and questions without an answer, and leases that have not ended.
    pub fn open(&self) -> (usize, usize) {
        let waits = self.publishes.len() + self.calls.len() + self.asks.len();
        (waits, self.leases.len())
    }

    /// How far this end has got; what waits for credit is queued.
    pub fn progress(&self) -> Progress {
        let progress = self.channel.progress();
        Progress {
            queued: progress.queued + self.outbound.len(),
            ..progress
        }
    }

    fn note(&mut self, note: Note) {
        if self.inbox.is_empty() {
            self.is_woken = true;
        }
        self.inbox.push_back(note);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn check_open(&self) -> Result<()> {
        match &self.state {
            LinkState::Closed => Err(Error::fenced("this link was closed")),
            LinkState::Refused(error) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// What spends no credit is kept for a node that is away within the same bounds.
    fn check_room(&self) -> Result<()> {
        self.check_open()?;
        let limits = &self.config.limits;
        let has_room = (self.channel.held() as u64) < limits.window_frames.saturating_mul(2)
            && (self.channel.held_bytes() as u64) < limits.window_bytes.saturating_mul(2);
        if has_room {
            return Ok(());
        }
        let message = "the node has not taken what was said before, and no more can be kept";
        Err(Error::exhausted("session_frames", message).retry_after(100))
    }

    fn send(&mut self, body: &Body) {
        self.channel.push(body, Class::Data);
    }

    // -- registrations ----------------------------------------------------------------------------

    /// Registers an agent, a provider or a stream under a number of its own, which the frame is given. Accepted or refused
    /// follows, with the number as its ticket.
    ///
    /// # Errors
    /// When the link was closed or refused.
    pub fn enrol(&mut self, make: impl FnOnce(u64) -> Body) -> Result<Handle> {
        self.check_room()?;
        if self.registrations.len() >= self.config.limits.registrations {
            let most = self.config.limits.registrations;
            let message = format!("this session has {most} registrations already");
            return Err(Error::exhausted("registrations", message));
        }
        let number = self.number();
        let frame = make(number);
        self.registrations.insert(
            number,
            Registration {
                frames: vec![frame.clone()],
                queue: Queue::default(),
                armed: true,
                is_accepted: false,
                done: 0,
                health: Health::Up,
            },
        );
        self.send(&frame);
        Ok(Handle(number))
    }

    /// Says more of a registration (its status, its code): said again wherever it is registered again.
    ///
    /// # Errors
    /// `FENCED` for a registration that is not there.
    pub fn tell(&mut self, handle: Handle, frame: Body) -> Result<()> {
        self.check_room()?;
        let health = match &frame {
            Body::Status(it) => Some(Health::from_number(
                u8::try_from(it.status).unwrap_or(u8::MAX),
            )?),
            _ => None,
        };
        let Some(found) = self.registrations.get_mut(&handle.0) else {
            return Err(Error::fenced("this registration was removed"));
        };
        let same = std::mem::discriminant(&frame);
        found
            .frames
            .retain(|known| std::mem::discriminant(known) != same);
        self.send(&frame);
        if let Some(found) = self.registrations.get_mut(&handle.0) {
            found.frames.push(frame);
        }
        if let Some(health) = health {
            self.stands(handle.0, health);
        }
        Ok(())
    }

    /// An agent is up, restarting or quarantined: what waits for it here waits, or is given up, as it would at the node.
    fn stands(&mut self, handle: u64, health: Health) {
        let Some(found) = self.registrations.get_mut(&handle) else {
            return;
        };
        found.health = health;
        if health == Health::Quarantined {
            let gone = found.queue.restart(|_| false, |lane| lane);
            self.give_all_up(gone);
        }
        self.wake(handle);
    }

    /// How many turns of an agent have ended well here.
    pub fn turns_done(&self, handle: Handle) -> u64 {
        self.registrations
            .get(&handle.0)
            .map_or(0, |found| found.done)
    }

    /// Takes a registration back. What was read last of a stream has ended with it; turns of an agent go on.
    pub fn remove(&mut self, handle: Handle) {
        let found = self.registrations.get(&handle.0);
        let is_stream =
            found.is_some_and(|found| matches!(found.frames.first(), Some(Body::Subscribe(_))));
        // With the session all of them go.
        if self.state != LinkState::Closed && self.forget(handle.0) {
            if is_stream {
                self.end_current(handle.0);
            }
            self.send(&Body::Unsubscribe(v1::Unsubscribe { handle: handle.0 }));
        }
    }

    /// Forgets a registration, and gives up what was delivered to it and was not begun. `false`: it was not there.
    fn forget(&mut self, handle: u64) -> bool {
        let Some(mut gone) = self.registrations.remove(&handle) else {
            return false;
        };
        let gone = gone.queue.restart(|_| false, |lane| lane);
        self.give_all_up(gone);
        true
    }

    fn give_all_up(&mut self, gone: Vec<Delivery>) {
        for delivery in gone {
            if let Some(lease) = delivery.lease {
                self.give_up(lease.0, delivery.envelope.size());
            }
        }
    }

    fn forget_turn(&mut self, held: &Held) {
        if let Some(turn) = held.turn() {
            self.turns.remove(&turn);
        }
    }

    /// Gives up a delivery that nobody wants any more. `false`: it was begun.
    fn give_up_waiting(&mut self, lease: LeaseId) -> bool {
        let Some(held) = self.leases.get(&lease.0) else {
            return false;
        };
        let found = self.registrations.get_mut(&held.handle);
        let Some(delivery) = found.and_then(|found| found.queue.remove(held.lane, lease)) else {
            return false;
        };
        self.give_up(lease.0, delivery.envelope.size());
        true
    }

    /// A delivery that nobody begins any more.
    fn give_up(&mut self, lease: u64, bytes: usize) {
        self.deal(lease, bytes);
        let Some(held) = self.leases.remove(&lease) else {
            return;
        };
        self.forget_turn(&held);
        if let Some(wire) = held.wire {
            self.by_wire.remove(&wire);
            let detail = br#"{"message":"it was given up before it began"}"#;
            self.send(&Body::Fail(v1::Fail {
                lease: wire,
                code: u32::from(Code::Cancelled.number()),
                detail: Bytes::from_static(detail),
            }));
        }
    }

    // -- questions --------------------------------------------------------------------------------

    /// Asks the node for something; the frame is given the number that its answer will carry.
    ///
    /// # Errors
    /// When the link was closed or refused; `EXHAUSTED` for too many questions at once.
    pub fn ask(&mut self, make: impl FnOnce(u64) -> Body) -> Result<Ticket> {
        self.check_room()?;
        if self.asks.len() >= ASKS {
            let message = format!("{ASKS} questions to the node have no answer yet");
            return Err(Error::exhausted("session_frames", message).retry_after(100));
        }
        let number = self.number();
        let frame = make(number);
        self.check_frame(&frame)?;
        self.asks.insert(number, frame.clone());
        self.send(&frame);
        Ok(Ticket(number))
    }

    /// Refuses data that no node takes: sent, it would end the session.
    pub(super) fn check_size(&self, bytes: usize) -> Result<()> {
        let most = self.core_limits.kept_payload_bytes;
        if bytes <= most {
            return Ok(());
        }
        let message = format!("the payload has {bytes} bytes of at most {most}");
        Err(Error::invalid("payload", message)
            .limit("kept_payload_bytes")
            .hint("send a reference to where it lies, or several pieces"))
    }

    /// Refuses a frame that no node takes, whatever makes it so large.
    pub(super) fn check_frame(&self, body: &Body) -> Result<()> {
        let (bytes, most) = (body.encoded_len(), self.config.limits.frame_bytes);
        if bytes <= most {
            return Ok(());
        }
        let message = format!("this has {bytes} bytes, and a frame takes {most}");
        Err(Error::invalid("payload", message).limit("kept_payload_bytes"))
    }

    /// Says something that has no answer.
    ///
    /// # Errors
    /// When the link was closed or refused; `EXHAUSTED` where the node has not taken what was said before.
    pub fn say(&mut self, frame: &Body) -> Result<()> {
        self.check_room()?;
        self.check_frame(frame)?;
        self.send(frame);
        Ok(())
    }

    /// Says a line of log, or an error that was decided here; the frame is given what it arose in.
    ///
    /// # Errors
    /// When the link was closed or refused; `FENCED` where the turn is over.
    pub fn report(
        &mut self,
        turn: Option<LeaseId>,
        make: impl FnOnce(u64) -> v1::Report,
    ) -> Result<()> {
        self.check_open()?;
        let lease = self.quoted(turn)?.wire;
        let frame = Body::Report(make(lease));
        self.check_frame(&frame)?;
        self.send_after(lease, frame);
        Ok(())
    }

    /// Says a step of a turn; one of a turn that is over is none.
    ///
    /// # Errors
    /// When the link was closed or refused.
    pub fn step(&mut self, lease: LeaseId, step: v1::Step) -> Result<()> {
        self.check_open()?;
        if let Some(Held {
            wire: Some(wire), ..
        }) = self.leases.get(&lease.0)
        {
            let wire = *wire;
            let frame = Body::Step(v1::Step {
                lease: wire,
                ..step
            });
            self.check_frame(&frame)?;
            self.send_after(wire, frame);
        }
        Ok(())
    }

    /// The event loop goes on.
    pub fn renew(&mut self) {
        self.has_renewed = true;
        self.stack.clear();
    }

    /// It stands still: where.
    pub fn stalls(&mut self, stack: &str) {
        stack.clone_into(&mut self.stack);
    }

    /// A lease as the node knows it, to quote it.
    fn quoted(&self, lease: Option<LeaseId>) -> Result<Quoted> {
        let Some(lease) = lease else {
            return Ok(Quoted::default());
        };
        match self.leases.get(&lease.0) {
            Some(
                held @ Held {
                    wire: Some(wire), ..
                },
            ) => Ok(Quoted {
                wire: *wire,
                turn: held.turn(),
            }),
            // What it follows from went with an earlier life of the node: it becomes a root.
            Some(held) if !held.durable => Ok(Quoted::default()),
            _ => Err(
                Error::fenced("this turn is over, or not one of this session")
                    .field("lease")
                    .hint("a context may be used only while its handler runs"),
            ),
        }
    }
}

/// Questions at once.
const ASKS: usize = 1_024;
