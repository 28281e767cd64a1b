//! The world of sessions: a node with its log, clients with apps, and wires between them that are cut, get stuck, end late
//! or lie; all of it from one seed. Packets are encoded and decoded on the way. A book of its own knows what apps did and
//! saw, and what the wires carried.

#![expect(
    clippy::unnecessary_wraps,
    clippy::struct_excessive_bools,
    reason = "each act may find a promise broken, and what may go wrong at once is told apart"
)]

mod app;
mod book;
mod faults;
mod node;
mod tap;
mod wire;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use loom_core::{LeaseId, Limits, Moment, Nanos};
use loom_proto::Encoded;
use loom_proto::v1::{self, Packet, frame::Body};
use loom_session::{Client, ClientConfig, ConnId, Hub, LinkState, Why};

use self::book::{Book, Ear, GROUPS};
use self::node::{Node, token};
use self::tap::{Purse, Tap, cost_to_client, cost_to_node};
use self::wire::{Twist, Wire};
use crate::dice::Dice;
use crate::trace::{Check, Trace, broken, ensure};
use crate::{Run, Seen};

/// What a campaign of this world must have seen at least once.
pub const RARE_IN_SESSIONS: &[&str] = &[
    "call indeterminate",
    "call timed out",
    "call went well",
    "client closed",
    "client full",
    "client killed",
    "connection fenced",
    "connection found silent",
    "cut inside a packet",
    "cut inside of parts",
    "drained",
    "durable turn given again",
    "durable turn given back",
    "durable turn that ended fenced",
    "end of a connection told late",
    "event in parts",
    "frames sent again",
    "hello that comes late",
    "frame of a connection that is over",
    "loop stalled",
    "node restarted with a durable turn running",
    "packet that comes twice",
    "packet that was overtaken",
    "process frozen",
    "publish indeterminate",
    "publish withdrawn",
    "resumed",
    "session begun anew with a durable turn running",
    "session expired",
    "stuck both ways",
    "stuck one way",
    "token expired",
    "token revoked",
    "wire full",
];

/// How to run a seed of this world: tests plant their bug here.
#[derive(Clone, Copy)]
pub struct SessionSetup {
    /// Done to each hub before anybody attaches.
    pub hub: fn(&mut Hub),
    /// Done to each client before it connects.
    pub client: fn(&mut Client),
    /// Keep the lines of the trace.
    pub traced: bool,
}

impl Default for SessionSetup {
    fn default() -> Self {
        Self {
            hub: |_| {},
            client: |_| {},
            traced: false,
        }
    }
}

/// What is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Group(usize),
    Plain,
    Stream,
    Asked,
    Provider(&'static str),
}

impl Sort {
    fn filters(self) -> &'static [&'static str] {
        match self {
            Self::Group(group) => GROUPS.get(group).map_or(&[], |(_, filters)| filters),
            Self::Plain => &["b.>", "r.>"],
            Self::Stream => &["b.>"],
            Self::Asked => &["q.>"],
            Self::Provider(_) => &[],
        }
    }

    fn ear(self, end: usize, handle: u64) -> Ear {
        match self {
            Self::Group(group) => Ear::Group(group),
            _ => Ear::Own(end, handle),
        }
    }

    fn frame(self, handle: u64, name: String) -> Body {
        let filters: Vec<String> = self.filters().iter().map(|it| (*it).to_owned()).collect();
        match self {
            Self::Stream => Body::Subscribe(v1::Subscribe {
                handle,
                filters,
                qos: v1::Qos::Batched as i32,
            }),
            Self::Provider(capability) => Body::Provide(v1::Provide {
                handle,
                name: capability.to_owned(),
                version: "1".to_owned(),
                effect: if capability == "unsafe" {
                    v1::EffectClass::Unsafe as i32
                } else {
                    v1::EffectClass::Pure as i32
                },
                concurrency: 4,
                info: Bytes::from_static(b"{}"),
                provider: name,
                probes: false,
            }),
            _ => Body::Register(v1::Register {
                handle,
                name,
                filters,
                concurrency: 4,
                info: Bytes::from_static(b"{}"),
                ..v1::Register::default()
            }),
        }
    }
}

struct Reg {
    sort: Sort,
    name: String,
    /// Its worker was told that there is work.
    ready: bool,
    accepted: bool,
}

/// A turn or an invocation that runs.
struct Turn {
    handle: u64,
    lease: LeaseId,
    sort: Sort,
    tag: u64,
    key: Option<String>,
    durable: bool,
    asked: bool,
    streamed: bool,
    chunks: u64,
    life: u64,
    again: bool,
}

/// One client and its app.
struct End {
    machine: Client,
    key: [u8; 16],
    token: usize,
    expires: bool,
    /// The wire that its driver holds.
    wire: Option<u64>,
    /// The connection that the node welcomed last.
    carrier: Option<u64>,
    frozen_until: Nanos,
    stalled: bool,
    stalled_until: Nanos,
    regs: BTreeMap<u64, Reg>,
    turns: Vec<Turn>,
    /// How often its session was begun.
    life: u64,
    /// The life of the node that it was welcomed by last.
    boot: Bytes,
    /// Its leases may lapse: its loop stood still once.
    risky: bool,
    /// It was closed or killed.
    is_gone: bool,
    refused: bool,
    frozen: bool,
    whole: bool,
    /// What it spends of what it heard was granted; what the node spends of what it heard.
    spends: (Tap, Purse),
    is_sent: (Tap, Purse),
    /// Granted by the other side, as heard.
    heard_by_client: Tap,
    heard_by_node: Tap,
    /// When the node last had no connection for it.
    lost_at: Option<Nanos>,
}

impl End {
    fn is_running(&self) -> bool {
        !self.is_gone && !self.frozen
    }

    fn is_well(&self) -> bool {
        self.is_running() && !self.refused && !self.stalled
    }
}

struct World {
    node: Node,
    /// When the node is there again; none: it is.
    back_at: Option<Nanos>,
    limits: loom_session::Limits,
    setup: SessionSetup,
    ends: Vec<End>,
    wires: BTreeMap<u64, Wire>,
    next_conn: u64,
    tags: u64,
    book: Book,
    dice: Dice,
    at: Moment,
    trace: Trace,
    seen: Seen,
    /// How many of a hundred acts are faults.
    faults: u64,
    twists: bool,
    twisted: bool,
    /// Nothing has happened that may lose what is not durable.
    is_whole: bool,
    healed: bool,
}

/// Runs one seed of the world of sessions to its end, or to the first promise that is broken.
pub fn simulate_sessions(seed: u64, setup: SessionSetup) -> Run {
    let mut dice = Dice::new(seed ^ 0x5e55_1000);
    let limits = draw_limits(&mut dice);
    let sessions = draw_session_limits(&mut dice);
    let trace = Trace::new(setup.traced);
    let mut world = match World::new(dice, (limits, sessions), setup, trace) {
        Ok(world) => world,
        Err(violation) => {
            return Run {
                seed,
                hash: 0,
                seen: Seen::default(),
                violation: Some(violation),
                lines: Vec::new(),
            };
        }
    };
    let ended = catch_unwind(AssertUnwindSafe(|| world.live()));
    let ended = ended.unwrap_or_else(|_| broken("NO-PANIC", "a machine panicked"));
    Run {
        seed,
        hash: world.trace.hash,
        seen: world.seen,
        violation: ended.err(),
        lines: world.trace.lines.unwrap_or_default(),
    }
}

fn draw_limits(dice: &mut Dice) -> Limits {
    Limits {
        max_deliver: 1_000,
        redeliver_base_ms: dice.between(5, 50),
        redeliver_cap_seconds: 1,
        ack_batch: dice.count(1, 6),
        ack_delay_ms: dice.between(1, 40),
        // Longer than it takes to find that a connection is dead.
        lease_ms: dice.between(27_000, 40_000),
        resume_grace_ms: dice.between(1_000, 60_000),
        batched_wait_ms: dice.between(50, 2_000),
        queue_items: dice.count(8, 200),
        ..Limits::default()
    }
}

fn draw_session_limits(dice: &mut Dice) -> loom_session::Limits {
    loom_session::Limits {
        window_frames: dice.between(4, 60),
        window_bytes: dice.between(4_000, 300_000),
        ahead: dice.count(2, 20),
        keep_ms: dice.between(10_000, 60_000),
        ..loom_session::Limits::default()
    }
}

impl World {
    fn new(
        mut dice: Dice,
        (limits, sessions): (Limits, loom_session::Limits),
        setup: SessionSetup,
        trace: Trace,
    ) -> Check<Self> {
        let at = Moment {
            now: Nanos(1_000_000),
            wall_ms: 1_800_000_000_000,
        };
        let faults = dice.between(1, 12);
        let twists = dice.chance(30);
        Ok(Self {
            node: Node::new(limits, sessions.clone(), setup, at)?,
            back_at: None,
            limits: sessions,
            setup,
            ends: Vec::new(),
            wires: BTreeMap::new(),
            next_conn: 0,
            tags: 0,
            book: Book::default(),
            dice,
            at,
            trace,
            seen: Seen::default(),
            faults,
            twists,
            twisted: false,
            is_whole: true,
            healed: false,
        })
    }

    fn note(&mut self, line: impl Into<String>) {
        let line = format!("{} {}", self.at.now.0 / 1_000, line.into());
        self.trace.note(line);
    }

    fn next_tag(&mut self) -> u64 {
        self.tags += 1;
        self.tags
    }

    fn some_end(&mut self) -> Option<usize> {
        let well = (0..).zip(&self.ends).filter(|(_, end)| end.is_well());
        let well: Vec<usize> = well.map(|(at, _)| at).collect();
        self.dice.pick(&well)
    }

    fn live(&mut self) -> Check {
        for _ in 0..self.dice.between(2, 4) {
            self.join();
        }
        for _ in 0..4 {
            self.enrol()?;
        }
        self.pass(50)?;
        for _ in 0..self.dice.between(40, 260) {
            self.act()?;
            self.flow()?;
            self.look()?;
        }
        self.settle()?;
        self.check_rest()?;
        self.leave()
    }

    /// A process starts.
    fn join(&mut self) {
        let number = self.ends.len();
        if number >= 8 {
            return;
        }
        let id = u8::try_from(number).unwrap_or(u8::MAX) + 1;
        let whole = self.dice.chance(25);
        let config = ClientConfig {
            session: [id; 16],
            name: format!("app{number}"),
            namespace: String::new(),
            token: token(number),
            agent: "simulated".to_owned(),
            keep_ms: 0,
            whole,
            limits: self.limits.clone(),
        };
        let mut machine = Client::new(config, self.dice.roll());
        (self.setup.client)(&mut machine);
        self.node.tokens.insert(number, None);
        self.node.set_authority(self.at);
        self.ends.push(End {
            machine,
            key: [id; 16],
            token: number,
            expires: false,
            wire: None,
            carrier: None,
            frozen_until: Nanos(0),
            stalled: false,
            stalled_until: Nanos(0),
            regs: BTreeMap::new(),
            turns: Vec::new(),
            life: 0,
            boot: Bytes::new(),
            risky: false,
            is_gone: false,
            refused: false,
            frozen: false,
            whole,
            spends: Default::default(),
            is_sent: Default::default(),
            heard_by_client: Tap::default(),
            heard_by_node: Tap::default(),
            lost_at: None,
        });
    }

    fn act(&mut self) -> Check {
        if self.dice.chance(self.faults) {
            return self.fault();
        }
        match self.dice.between(0, 99) {
            0..=24 => self.publish(),
            25..=27 => self.request(),
            28..=34 => self.call(),
            35..=54 => self.take_one().map(drop),
            55..=69 => match self.some_end() {
                Some(end) => self.work_on(end, false).map(drop),
                None => Ok(()),
            },
            70..=71 => self.enrol(),
            72 => self.remove(),
            73..=74 => self.think_again(),
            75 => self.ask(),
            76..=83 => {
                let at = self.at;
                if self.back_at.is_none() {
                    self.node.serve_log(&mut self.dice, false, at);
                }
                Ok(())
            }
            84..=98 => {
                let millis = self.dice.between(1, 60);
                self.pass(millis)
            }
            _ => {
                let millis = self.dice.between(100, 6_000);
                self.pass(millis)
            }
        }
    }

    // -- the wires -----------------------------------------------------------------------------------------

    /// Everything that can move does, some of it.
    fn flow(&mut self) -> Check {
        for end in 0..self.ends.len() {
            self.dial(end);
            self.send(end)?;
            self.give_up(end);
        }
        for conn in self.wires.keys().copied().collect::<Vec<_>>() {
            self.arrive_at_node(conn)?;
            self.serve()?;
            self.arrive_at_client(conn)?;
        }
        self.wires
            .retain(|_, wire| wire.at_client || wire.at_node || !wire.to_node.is_over());
        for end in 0..self.ends.len() {
            self.hear(end)?;
        }
        Ok(())
    }

    fn dial(&mut self, end: usize) {
        let at = self.at;
        let Some(found) = self.ends.get_mut(end).filter(|it| it.is_running()) else {
            return;
        };
        if found
            .machine
            .wants_connection()
            .is_none_or(|when| when > at.now)
        {
            return;
        }
        if self.back_at.is_some() {
            let why = Why::Broken("nobody is there".to_owned());
            found.machine.disconnected(&why, at);
            return;
        }
        self.next_conn += 1;
        found.wire = Some(self.next_conn);
        found.machine.connected(at);
        let whole = found.whole;
        let mut wire = Wire::new(end);
        wire.doomed = !self.healed && self.dice.chance(self.faults);
        if wire.doomed {
            let millis = self.dice.between(1, 4_000);
            wire.to_node.stuck_until = at.now.plus_millis(millis);
            self.seen.note("hello that comes late");
        }
        self.wires.insert(self.next_conn, wire);
        self.node.hub.connected(ConnId(self.next_conn), whole, at);
        self.note(format!("{end} dials {}", self.next_conn));
    }

    /// A client's driver sends what its machine has, as far as there is room.
    fn send(&mut self, end: usize) -> Check {
        loop {
            let Some(found) = self
                .ends
                .get_mut(end)
                .filter(|it| it.is_running() || it.is_gone)
            else {
                return Ok(());
            };
            let Some(conn) = found.wire else {
                return Ok(());
            };
            let has_room = self
                .wires
                .get(&conn)
                .is_some_and(|wire| wire.to_node.has_room());
            self.seen.note_if("wire full", !has_room);
            let Some(packet) = has_room.then(|| found.machine.transmit()).flatten() else {
                return Ok(());
            };
            let packet = packet.packet();
            if let Some(found) = self.ends.get_mut(end) {
                let (tap, purse) = &mut found.spends;
                self.seen.note_if("frames sent again", tap.knows(&packet));
                let heard = tap.hear(&packet);
                self.book.check_roots(&heard, &found.boot)?;
                let costs: u64 = heard.iter().map(cost_to_node).sum();
                purse.spent += costs;
                let purse = *purse;
                ensure(purse.spent <= purse.allowed, "SESSION-CREDIT", || {
                    format!(
                        "client {end} sent {}, was granted {}",
                        purse.spent, purse.allowed
                    )
                })?;
            }
            let twist = self.draw_twist(&packet);
            if let Some(wire) = self.wires.get_mut(&conn) {
                wire.to_node.write(&packet, twist);
            }
        }
    }

    fn draw_twist(&mut self, packet: &Packet) -> Twist {
        if !self.twists || self.healed || packet.first == 0 || !self.dice.chance(6) {
            return Twist::None;
        }
        if self.dice.chance(60) {
            self.seen.note("packet that comes twice");
            return Twist::Twice;
        }
        self.seen.note("packet that was overtaken");
        self.twisted = true;
        Twist::Overtaken
    }

    fn draw_bytes(&mut self) -> usize {
        if self.healed || self.dice.chance(70) {
            return usize::MAX;
        }
        self.dice.count(0, 3_000)
    }

    fn arrive_at_node(&mut self, conn: u64) -> Check {
        let (bytes, at) = (self.draw_bytes(), self.at);
        let Some(wire) = self.wires.get_mut(&conn) else {
            return Ok(());
        };
        wire.to_node.carry(bytes, at.now);
        while let Some(packet) = self.wires.get_mut(&conn).and_then(|it| it.to_node.read()) {
            if self.back_at.is_none() {
                self.node_hears(conn, packet)?;
            }
        }
        let late = self.dice.chance(30) || self.healed;
        let Some(wire) = self.wires.get_mut(&conn) else {
            return Ok(());
        };
        if wire.at_node && wire.to_node.is_over() && late {
            wire.at_node = false;
            wire.to_client.cut(0);
            self.node_loses(conn)?;
        }
        Ok(())
    }

    /// A connection that a newer one of a session that is still there has taken over: it changes nothing any more.
    fn is_past(&self, conn: u64) -> bool {
        let end = self
            .wires
            .get(&conn)
            .and_then(|wire| self.ends.get(wire.end));
        let taken_over = end.filter(|end| end.carrier.is_some_and(|carrier| carrier > conn));
        taken_over.is_some_and(|end| {
            let known = self.node.hub.sessions();
            !end.is_gone && known.iter().any(|it| it.session == end.key)
        })
    }

    fn node_hears(&mut self, conn: u64, packet: Packet) -> Check {
        let at = self.at;
        let is_past = self.is_past(conn);
        let before = is_past.then(|| self.node.show());
        self.seen
            .note_if("frame of a connection that is over", is_past);
        let end = self.wires.get(&conn).map(|wire| wire.end);
        if let Some(found) = end
            .and_then(|end| self.ends.get_mut(end))
            .filter(|_| !is_past)
        {
            for body in found.heard_by_node.hear(&packet) {
                if let Body::Credit(credit) = body {
                    found.is_sent.1.allowed = found.is_sent.1.allowed.max(credit.frames);
                }
            }
        }
        let is_hello = packet
            .frames
            .iter()
            .any(|it| matches!(it.body, Some(Body::Hello(_))));
        let Node { hub, core, .. } = &mut self.node;
        let known = hub.counts();
        hub.received(ConnId(conn), packet, core, at);
        let broken_now = hub.counts().broken - known.broken;
        self.seen
            .note_if("connection fenced", hub.counts().fenced > known.fenced);
        self.seen
            .note_if("resumed", hub.counts().resumed > known.resumed);
        ensure(broken_now == 0 || self.twisted, "SESSION-PROTOCOL", || {
            format!("connection {conn} was closed for a mistake of a client that makes none")
        })?;
        match before {
            Some(before) if !is_hello => {
                let now = self.node.show();
                ensure(before == now, "SESSION-FENCED", || {
                    format!("connection {conn} is over and had an effect: {before} became {now}")
                })
            }
            _ => Ok(()),
        }
    }

    fn node_loses(&mut self, conn: u64) -> Check {
        if self.back_at.is_some() {
            return Ok(());
        }
        let at = self.at;
        let before = self.is_past(conn).then(|| self.node.show());
        self.note(format!("the node loses {conn}"));
        self.node.hub.disconnected(ConnId(conn), at);
        let Some(before) = before else { return Ok(()) };
        self.seen.note("end of a connection told late");
        let now = self.node.show();
        ensure(before == now, "SESSION-FENCED", || {
            format!("the late end of {conn} had an effect: {before} became {now}")
        })
    }

    /// The node's driver does what its hub wants.
    fn serve(&mut self) -> Check {
        if self.back_at.is_some() {
            return Ok(());
        }
        let (at, all) = (self.at, self.healed);
        self.node.serve_errands(&mut self.dice, all, at);
        self.node.wake(at);
        let mut ready = std::mem::take(&mut self.node.blocked);
        ready.extend(self.node.hub.take_ready());
        for conn in ready {
            self.node_sends(conn)?;
        }
        for (conn, packet) in self.node.hub.take_closing() {
            self.node_closes(conn, packet);
        }
        Ok(())
    }

    fn node_sends(&mut self, conn: ConnId) -> Check {
        let at = self.at;
        loop {
            let Some(wire) = self.wires.get(&conn.0).filter(|wire| wire.at_node) else {
                return Ok(());
            };
            let end = wire.end;
            if !wire.to_client.has_room() {
                self.seen.note("wire full");
                self.node.blocked.push(conn);
                return Ok(());
            }
            let Node { hub, core, .. } = &mut self.node;
            let Some(packet) = hub.transmit(conn, core, at) else {
                return Ok(());
            };
            let packet = packet.packet();
            self.node_spends(end, conn, &packet)?;
            let twist = self.draw_twist(&packet);
            if let Some(wire) = self.wires.get_mut(&conn.0) {
                wire.to_client.write(&packet, twist);
            }
        }
    }

    fn node_spends(&mut self, end: usize, conn: ConnId, packet: &Packet) -> Check {
        let window = self.limits.window_frames;
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        for frame in &packet.frames {
            if let Some(Body::Welcome(welcome)) = &frame.body {
                found.carrier = Some(conn.0);
                if !welcome.resumed {
                    let purse = Purse {
                        spent: 0,
                        allowed: window,
                    };
                    found.is_sent = (Tap::default(), purse);
                    found.heard_by_node = Tap::default();
                }
            }
        }
        let (tap, purse) = &mut found.is_sent;
        let costs: u64 = tap.hear(packet).iter().map(cost_to_client).sum();
        purse.spent += costs;
        let purse = *purse;
        ensure(purse.spent <= purse.allowed, "SESSION-CREDIT", || {
            format!(
                "the node sent {} to {end}, was granted {}",
                purse.spent, purse.allowed
            )
        })
    }

    fn node_closes(&mut self, conn: ConnId, packet: Option<Encoded>) {
        self.note(format!("the node closes {}", conn.0));
        let lingers = self.dice.chance(50);
        let Some(wire) = self.wires.get_mut(&conn.0) else {
            return;
        };
        if let Some(packet) = packet {
            wire.to_client.write(&packet.packet(), Twist::None);
        }
        wire.to_client.ended = true;
        wire.ends_well = true;
        if !lingers {
            wire.at_node = false;
            wire.to_node.cut(0);
        }
    }

    fn arrive_at_client(&mut self, conn: u64) -> Check {
        let (bytes, at) = (self.draw_bytes(), self.at);
        let Some(wire) = self.wires.get_mut(&conn) else {
            return Ok(());
        };
        let end = wire.end;
        let is_held = wire.at_client && self.ends.get(end).is_some_and(|it| !it.frozen);
        if !is_held {
            return Ok(());
        }
        wire.to_client.carry(bytes, at.now);
        while let Some(packet) = self.wires.get_mut(&conn).and_then(|it| it.to_client.read()) {
            if !self.client_hears(end, conn, packet)? {
                return Ok(());
            }
        }
        let Some(wire) = self.wires.get_mut(&conn) else {
            return Ok(());
        };
        if wire.at_client && wire.to_client.is_over() {
            let why = if wire.ends_well {
                Why::Ended
            } else {
                Why::Broken("cut".to_owned())
            };
            self.client_loses(end, conn, &why);
        }
        Ok(())
    }

    /// `false`: the client's driver has closed the connection.
    fn client_hears(&mut self, end: usize, conn: u64, packet: Packet) -> Check<bool> {
        let at = self.at;
        let Some(found) = self.ends.get_mut(end).filter(|it| it.wire == Some(conn)) else {
            return Ok(false);
        };
        for frame in &packet.frames {
            if let Some(Body::Welcome(welcome)) = &frame.body
                && !welcome.resumed
            {
                found.boot = welcome.boot.clone();
                let purse = Purse {
                    spent: 0,
                    allowed: welcome.credit.map_or(0, |it| it.frames),
                };
                found.spends = (Tap::default(), purse);
                found.heard_by_client = Tap::default();
            }
        }
        for body in found.heard_by_client.hear(&packet) {
            if let Body::Credit(credit) = body {
                found.spends.1.allowed = found.spends.1.allowed.max(credit.frames);
            }
        }
        let Err(error) = found.machine.received(packet, at) else {
            return Ok(true);
        };
        self.note(format!("{end} closes {conn}: {error:?}"));
        let is_mistake = error.code == loom_core::Code::InvalidParams;
        ensure(!is_mistake || self.twisted, "SESSION-PROTOCOL", || {
            format!("the node made a mistake: {error:?}")
        })?;
        self.client_loses(end, conn, &Why::Broken(error.message));
        Ok(false)
    }

    fn client_loses(&mut self, end: usize, conn: u64, why: &Why) {
        let at = self.at;
        self.note(format!("{end} loses {conn}: {why:?}"));
        if let Some(wire) = self.wires.get_mut(&conn) {
            wire.at_client = false;
            wire.to_client.cut(0);
            wire.to_node.ended = true;
        }
        if let Some(found) = self.ends.get_mut(end).filter(|it| it.wire == Some(conn)) {
            found.wire = None;
            found.machine.disconnected(why, at);
        }
    }

    // -- time ----------------------------------------------------------------------------------------------

    fn next_due(&self) -> Option<Nanos> {
        let up = self.back_at.is_none();
        let node = [
            self.node.hub.next_deadline().filter(|_| up),
            self.node.core.alarm().filter(|_| up),
            self.back_at,
        ];
        let ends = self.ends.iter().flat_map(|end| {
            let machine = [end.machine.next_deadline(), end.machine.wants_connection()];
            let running = end.is_running();
            machine
                .into_iter()
                .map(move |due| due.filter(|_| running))
                .chain([
                    Some(end.frozen_until).filter(|_| end.frozen),
                    Some(end.stalled_until).filter(|_| end.stalled),
                ])
        });
        node.into_iter().chain(ends).flatten().min()
    }

    /// Time passes; what is due is done when it is, and no earlier.
    fn pass(&mut self, millis: u64) -> Check {
        let target = self.at.now.plus_millis(millis);
        for _ in 0..30_000 {
            let next = self
                .next_due()
                .filter(|due| *due < target)
                .unwrap_or(target);
            // Clocks of processes tick in milliseconds.
            let next = Nanos(next.0.max(self.at.now.0).div_ceil(1_000_000) * 1_000_000);
            self.at.wall_ms += (next.0 - self.at.now.0) / 1_000_000;
            self.at.now = next;
            self.tick()?;
            self.flow()?;
            self.check_ends()?;
            if self.at.now >= target {
                return Ok(());
            }
        }
        broken("SETTLES", "something is due again and again")
    }

    fn tick(&mut self) -> Check {
        let at = self.at;
        if self.back_at.is_some_and(|back| back <= at.now) {
            self.back_at = None;
            self.note("the node is back");
        }
        if self.back_at.is_none() {
            let Node { hub, core, .. } = &mut self.node;
            let known = hub.counts();
            if core.alarm().is_some_and(|due| due <= at.now) {
                core.tick(at);
            }
            if hub.next_deadline().is_some_and(|due| due <= at.now) {
                hub.tick(core, at);
            }
            let counts = hub.counts();
            self.seen
                .note_if("connection found silent", counts.silent > known.silent);
            self.seen
                .note_if("session expired", counts.expired > known.expired);
        }
        for end in 0..self.ends.len() {
            self.tick_end(end)?;
        }
        self.serve()
    }

    fn tick_end(&mut self, end: usize) -> Check {
        let at = self.at;
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        let was_frozen = found.frozen;
        found.frozen &= found.frozen_until > at.now;
        found.stalled &= found.stalled_until > at.now;
        if was_frozen && found.is_well() && !self.healed {
            self.thaw(end)?;
        }
        let Some(found) = self.ends.get_mut(end).filter(|it| it.is_running()) else {
            return Ok(());
        };
        let is_due = found
            .machine
            .next_deadline()
            .is_some_and(|due| due <= at.now);
        if is_due
            && let Err(error) = found.machine.tick(at)
            && let Some(conn) = found.wire
        {
            self.client_loses(end, conn, &Why::Broken(error.message));
        }
        Ok(())
    }

    // -- what must hold ------------------------------------------------------------------------------------

    fn check_ends(&mut self) -> Check {
        let now = self.at.now;
        for at in 0..self.ends.len() {
            let Some(end) = self
                .ends
                .get(at)
                .filter(|it| it.is_running() && !it.stalled)
            else {
                continue;
            };
            ensure(end.machine.waiting() == 0, "SESSION-ENDS-ONCE", || {
                format!("client {at} has notes and was not woken")
            })?;
            self.book.check_deadlines(at, now)?;
        }
        if self.back_at.is_none() {
            self.check_kept()
        } else {
            Ok(())
        }
    }

    fn look(&mut self) -> Check {
        self.check_ends()?;
        if self.back_at.is_none() && self.dice.chance(10) {
            ensure(self.node.core.audit().balanced, "CONSERVATION", || {
                format!("{:?}", self.node.core.audit())
            })?;
        }
        Ok(())
    }

    /// A session whose connection is gone is kept as long as was promised, and no longer.
    fn check_kept(&mut self) -> Check {
        let shown = self.node.hub.sessions();
        let (now, keep, beat) = (self.at.now, self.limits.keep_ms, self.limits.heartbeat_ms);
        for (at, end) in self.ends.iter_mut().enumerate() {
            let found = shown.iter().find(|it| it.session == end.key);
            let is_lost = found.is_some_and(|it| !it.is_connected);
            let since = end.lost_at.filter(|_| is_lost || found.is_none());
            ensure(
                !is_lost || since.is_none_or(|since| now <= since.plus_millis(keep + beat)),
                "SESSION-KEPT",
                || format!("the session of {at} is kept since {since:?}, it is {now:?}"),
            )?;
            let is_forgiven = end.is_gone || end.refused || end.expires || self.twisted;
            let early = found.is_none()
                && since.is_some_and(|since| now < since.plus_millis(keep))
                && !is_forgiven;
            ensure(!early, "SESSION-KEPT", || {
                format!("the session of {at} was lost at {since:?} and is gone at {now:?}")
            })?;
            end.lost_at = if is_lost { since.or(Some(now)) } else { None };
        }
        Ok(())
    }

    fn is_quiet(&self) -> bool {
        let living = self
            .ends
            .iter()
            .enumerate()
            .filter(|(_, end)| !end.is_gone && !end.refused);
        let mut quiet = living.map(|(at, end)| {
            *end.machine.state() == LinkState::Up
                && end.machine.open() == (0, 0)
                && end.machine.is_flushed()
                && self.book.open(at).next().is_none()
        });
        quiet.all(|it| it)
            && self.book.calls.is_empty()
            && self.node.hub.sessions().iter().all(|it| it.is_connected)
            && (0..GROUPS.len()).all(|group| self.book.missing(group).is_empty())
    }

    /// All is well again, and everybody does what there is to do.
    fn settle(&mut self) -> Check {
        self.note("settle");
        self.heal()?;
        let mut quiet = 0;
        for _ in 0..1_500 {
            self.attend()?;
            self.flow()?;
            let at = self.at;
            let mut moved = false;
            if self.back_at.is_none() {
                moved |= self.node.serve_log(&mut self.dice, true, at);
            }
            for end in 0..self.ends.len() {
                moved |= self.work_all(end)?;
            }
            self.look()?;
            if moved {
                self.pass(1)?;
                continue;
            }
            quiet = if self.is_quiet() { quiet + 1 } else { 0 };
            if quiet > 40 {
                return Ok(());
            }
            self.pass(if quiet > 0 { 300 } else { 500 })?;
        }
        let left: Vec<_> = self
            .ends
            .iter()
            .filter(|end| !end.is_gone)
            .map(|end| {
                (
                    end.machine.state().clone(),
                    end.machine.open(),
                    end.machine.is_flushed(),
                )
            })
            .collect();
        let missing: Vec<_> = (0..GROUPS.len()).map(|it| self.book.missing(it)).collect();
        broken(
            "SETTLES",
            format!(
                "{left:?}, missing {missing:?}, {:?}",
                self.node.hub.sessions()
            ),
        )
    }

    /// Whether a client's app had something to do.
    fn work_all(&mut self, end: usize) -> Check<bool> {
        let Some(found) = self.ends.get(end).filter(|it| !it.is_gone && !it.refused) else {
            return Ok(false);
        };
        let ready = found.regs.iter().filter(|(_, reg)| reg.ready);
        let mut moved = false;
        for handle in ready.map(|(handle, _)| *handle).collect::<Vec<_>>() {
            moved |= self.take(end, handle, None)?;
        }
        while self.work_on(end, true)? {
            moved = true;
        }
        Ok(moved)
    }

    fn check_rest(&mut self) -> Check {
        self.note("rest");
        let audit = self.node.core.audit();
        ensure(audit.balanced, "CONSERVATION", || format!("{audit:?}"))?;
        let gauges = &audit.gauges;
        let rests = gauges.leased == 0 && gauges.pending == 0 && gauges.parked == 0;
        ensure(rests, "BOUNDED", || format!("{gauges:?}"))?;
        for shown in self.node.hub.sessions() {
            let rests = shown.leases == 0 && shown.calls == 0;
            ensure(rests, "BOUNDED", || format!("{shown:?}"))?;
        }
        self.check_log()?;
        self.check_purses()?;
        if self.is_whole {
            self.check_heard(&audit)
        } else {
            Ok(())
        }
    }

    /// Each durable event is in the log once if it was accepted, and never twice.
    fn check_log(&self) -> Check {
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        for record in self.node.written.values() {
            if let loom_core::Record::Event(env) = record {
                *counts.entry(app::tag_of(&env.payload)).or_default() += 1;
            }
        }
        for (tag, event) in (0..).zip(&self.book.events) {
            let count = counts.get(&tag).copied().unwrap_or_default();
            let fits = count <= 1 && (count == 1 || event.position.is_none());
            ensure(
                fits || !event.topic.starts_with("d."),
                "SESSION-PUBLISH-ONCE",
                || {
                    format!(
                        "event {tag} is {count} times in the log, {:?}",
                        event.position
                    )
                },
            )?;
        }
        Ok(())
    }

    /// At rest everybody may send as much as at the start, but for what is too little to be told.
    fn check_purses(&self) -> Check {
        let window = self.limits.window_frames;
        let least = window - (window / 4).max(1);
        for (at, end) in self.ends.iter().enumerate() {
            if end.is_gone || end.refused {
                continue;
            }
            for (who, purse) in [("client", end.spends.1), ("node", end.is_sent.1)] {
                let left = purse.allowed.saturating_sub(purse.spent);
                ensure((least..=window).contains(&left), "SESSION-CREDIT", || {
                    format!("at rest the {who} of {at} has credit for {left} of {window}")
                })?;
            }
        }
        Ok(())
    }

    /// Where no session was lost, each accepted event was given to each that hears it, or counted.
    fn check_heard(&self, audit: &loom_core::Audit) -> Check {
        for (at, end) in self.ends.iter().enumerate() {
            for (handle, reg) in end.regs.iter().filter(|(_, reg)| reg.sort == Sort::Plain) {
                let unheard = self.book.unheard(Ear::Own(at, *handle), reg.sort.filters());
                let named = audit
                    .subscriptions
                    .iter()
                    .filter(|it| it.name.ends_with(&reg.name));
                let counted: u64 = named.map(|it| it.dropped + it.expired).sum();
                ensure(unheard as u64 <= counted, "SESSION-EVENTS", || {
                    format!(
                        "{} of {at} missed {unheard} events, {counted} counted",
                        reg.name
                    )
                })?;
            }
        }
        Ok(())
    }

    fn leave(&mut self) -> Check {
        self.note("all leave");
        for end in &mut self.ends {
            end.machine.close();
        }
        let most = self.limits.keep_ms + 6_000;
        let mut passed = 0;
        while passed < most && !self.node.hub.sessions().is_empty() {
            self.flow()?;
            self.pass(1_000)?;
            passed += 1_000;
        }
        let left = self.node.hub.sessions();
        ensure(left.is_empty(), "SESSION-KEPT", || format!("{left:?}"))?;
        for _ in 0..20 {
            let at = self.at;
            self.node.serve_log(&mut self.dice, true, at);
            self.pass(50)?;
        }
        let audit = self.node.core.audit();
        let gauges = &audit.gauges;
        let rests = gauges.sessions == 0
            && gauges.handles == 0
            && gauges.leased == 0
            && gauges.pending == 0
            && gauges.parked == 0
            && gauges.inbox == 0;
        ensure(rests && audit.balanced, "BOUNDED", || format!("{gauges:?}"))
    }
}
