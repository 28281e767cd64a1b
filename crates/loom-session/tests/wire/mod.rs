//! A node, its clients, and wires between them that can be cut, muted and taken away.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use loom_core::{
    Core, EffectClass, Grants, Handle, Ids, Limits, Moment, Nanos, Notice, Qos, SessionId,
};
use loom_proto::Encoded;
use loom_proto::Message;
use loom_proto::v1::{self, Packet, frame::Body};
use loom_session::{
    Authority, Client, ClientConfig, ConnId, Credential, Errand, Hub, HubConfig, Invocation,
    LinkState, Note, Sending, Why,
};

pub(crate) struct End {
    pub(crate) machine: Client,
    pub(crate) conn: Option<ConnId>,
    pub(crate) was_lost: bool,
    to_node: VecDeque<Bytes>,
    to_client: VecDeque<Bytes>,
    muted: bool,
    away: bool,
}

pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) hub: Hub,
    pub(crate) clients: Vec<End>,
    pub(crate) largest: usize,
    keeps_log: bool,
    now: u64,
    next: u64,
    boot: u8,
    cuts: Option<(Ids, u64)>,
}

const TOKEN: &str = "loom_secret";

pub(crate) fn agent(handle: u64, name: &str, filters: &[&str]) -> Body {
    Body::Register(v1::Register {
        handle,
        name: name.to_owned(),
        filters: filters.iter().map(|it| (*it).to_owned()).collect(),
        concurrency: 8,
        info: Bytes::from_static(b"{}"),
        ..v1::Register::default()
    })
}

pub(crate) fn provider(handle: u64, name: &str) -> Body {
    Body::Provide(v1::Provide {
        handle,
        name: name.to_owned(),
        version: "1".to_owned(),
        effect: v1::EffectClass::Pure as i32,
        concurrency: 8,
        info: Bytes::from_static(b"{}"),
        provider: "bob".to_owned(),
        probes: false,
    })
}

pub(crate) fn event<'a>(topic: &'a str, json: &str) -> Sending<'a> {
    Sending {
        sender: 0,
        turn: None,
        topic,
        payload: Bytes::copy_from_slice(json.as_bytes()),
        qos: Qos::Batched,
        options: None,
        ack: None,
    }
}

pub(crate) fn invocation<'a>(capability: &'a str, json: &str) -> Invocation<'a> {
    let _ = EffectClass::Pure;
    Invocation {
        sender: 0,
        turn: None,
        capability,
        version: None,
        payload: Bytes::copy_from_slice(json.as_bytes()),
        timeout_ms: 10_000,
        key: None,
        credit: 0,
    }
}

fn hub(boot: u8, keeps_log: bool) -> Hub {
    Hub::new(HubConfig {
        boot: [boot; 16],
        limits: loom_session::Limits::default(),
        agent: "loom/test".to_owned(),
        durable: Vec::new(),
        keeps_log,
    })
}

fn authority() -> Authority {
    use sha2::Digest;
    Authority::new(vec![Credential {
        id: "one".to_owned(),
        hash: sha2::Sha256::digest(TOKEN.as_bytes()).into(),
        namespace: "*".to_owned(),
        grants: Arc::new(Grants::all()),
        expires_ms: None,
    }])
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_log(false)
    }

    /// `keeps_log`: the node says that it remembers what its earlier lives have begun.
    pub(crate) fn with_log(keeps_log: bool) -> Self {
        let mut world = Self {
            core: Core::new(Limits::default(), 7),
            hub: hub(1, keeps_log),
            clients: Vec::new(),
            largest: 0,
            keeps_log,
            now: 1_000_000_000,
            next: 0,
            boot: 1,
            cuts: None,
        };
        let at = world.at();
        world.hub.set_authority(authority(), &mut world.core, at);
        world
    }

    pub(crate) fn at(&self) -> Moment {
        Moment {
            now: Nanos(self.now),
            wall_ms: 1_700_000_000_000 + self.now / 1_000_000,
        }
    }

    pub(crate) fn client(&mut self, name: &str) -> usize {
        self.client_with(name, TOKEN)
    }

    pub(crate) fn client_with(&mut self, name: &str, token: &str) -> usize {
        let number = self.clients.len();
        let config = ClientConfig {
            session: [u8::try_from(number).unwrap() + 1; 16],
            name: name.to_owned(),
            namespace: String::new(),
            token: token.to_owned(),
            agent: "test".to_owned(),
            keep_ms: 0,
            whole: false,
            limits: loom_session::Limits::default(),
        };
        self.clients.push(End {
            machine: Client::new(config, number as u64),
            conn: None,
            was_lost: false,
            to_node: VecDeque::new(),
            to_client: VecDeque::new(),
            muted: false,
            away: false,
        });
        number
    }

    /// One of so many packets is the last of its connection.
    pub(crate) fn cutting(&mut self, seed: u64, one_of: u64) {
        self.cuts = Some((Ids::new(seed), one_of));
    }

    pub(crate) fn whole(&mut self) {
        self.cuts = None;
    }

    pub(crate) fn mute(&mut self, client: usize) {
        self.clients[client].muted = true;
    }

    pub(crate) fn unplug(&mut self, client: usize) {
        self.clients[client].away = true;
        self.cut(client);
    }

    pub(crate) fn plug(&mut self, client: usize) {
        self.clients[client].away = false;
    }

    pub(crate) fn reattach(&mut self, client: usize) {
        let at = self.at();
        let end = &mut self.clients[client];
        end.to_node.clear();
        end.to_client.clear();
        end.conn = None;
        end.machine.disconnected(&Why::Ended, at);
    }

    pub(crate) fn hub_disconnected(&mut self, conn: ConnId) {
        let at = self.at();
        self.hub.disconnected(conn, at);
    }

    pub(crate) fn revoke(&mut self) {
        let at = self.at();
        self.hub
            .set_authority(Authority::default(), &mut self.core, at);
    }

    pub(crate) fn restart_node(&mut self) {
        for client in 0..self.clients.len() {
            self.cut(client);
        }
        self.boot += 1;
        self.hub = hub(self.boot, self.keeps_log);
        self.core = Core::new(Limits::default(), u64::from(self.boot));
        let at = self.at();
        self.hub.set_authority(authority(), &mut self.core, at);
    }

    fn cut(&mut self, client: usize) {
        let at = self.at();
        let end = &mut self.clients[client];
        let Some(conn) = end.conn.take() else { return };
        end.to_node.clear();
        end.to_client.clear();
        end.was_lost = true;
        end.machine.disconnected(&Why::Broken("cut".to_owned()), at);
        self.hub.disconnected(conn, at);
    }

    fn draws_cut(&mut self) -> bool {
        self.cuts
            .as_mut()
            .is_some_and(|(ids, one_of)| ids.draw() % *one_of == 0)
    }

    fn dial(&mut self, client: usize) {
        let at = self.at();
        let end = &mut self.clients[client];
        if end.away || end.conn.is_some() {
            return;
        }
        if let Some(when) = end.machine.wants_connection() {
            self.now = self.now.max(when.0);
            self.next += 1;
            end.conn = Some(ConnId(self.next));
            end.machine.connected(at);
            self.hub.connected(ConnId(self.next), false, at);
        }
    }

    /// One packet of one client each way; whether anything moved.
    fn step(&mut self, client: usize) -> bool {
        self.dial(client);
        let at = self.at();
        let mut moved = false;
        while let Some(packet) = self.clients[client].machine.transmit() {
            let bytes = packet.bytes().clone();
            self.largest = self.largest.max(bytes.len());
            if !self.clients[client].muted {
                self.clients[client].to_node.push_back(bytes);
            }
            moved = true;
        }
        if let Some(bytes) = self.clients[client].to_node.pop_front() {
            moved = true;
            if self.draws_cut() {
                self.cut(client);
            } else if let Some(conn) = self.clients[client].conn {
                let packet = Packet::decode(bytes).unwrap();
                self.hub.received(conn, packet, &mut self.core, at);
            }
        }
        self.node(at);
        if let Some(bytes) = self.clients[client].to_client.pop_front() {
            moved = true;
            if self.draws_cut() {
                self.cut(client);
            } else {
                let packet = Packet::decode(bytes).unwrap();
                let end = &mut self.clients[client];
                if end.machine.received(packet, at).is_err() {
                    self.cut(client);
                }
            }
        }
        moved
    }

    fn node(&mut self, at: Moment) {
        for errand in self.hub.take_errands() {
            if let Errand::Open(conn, _) = errand {
                self.hub.opened(conn, Ok(()), &mut self.core, at);
            }
        }
        let woken: Vec<SessionId> = self.core.take_woken();
        for session in woken {
            self.hub.woken(session, &mut self.core, at);
        }
        for conn in self.hub.take_ready() {
            while let Some(packet) = self.hub.transmit(conn, &mut self.core, at) {
                self.post(conn, &packet);
            }
        }
        for (conn, packet) in self.hub.take_closing() {
            if let Some(packet) = packet {
                self.post(conn, &packet);
            }
        }
    }

    fn post(&mut self, conn: ConnId, packet: &Encoded) {
        let bytes = packet.bytes().clone();
        self.largest = self.largest.max(bytes.len());
        let end = self.clients.iter_mut().find(|end| end.conn == Some(conn));
        if let Some(end) = end.filter(|end| !end.muted) {
            end.to_client.push_back(bytes);
        }
    }

    pub(crate) fn some_steps(&mut self) {
        for client in 0..self.clients.len() {
            self.step(client);
        }
    }

    pub(crate) fn settle(&mut self) {
        for _ in 0..500 {
            let all: Vec<bool> = (0..self.clients.len())
                .map(|client| self.step(client))
                .collect();
            if !all.contains(&true) {
                return;
            }
        }
    }

    /// Time passes, and all that is due is done.
    pub(crate) fn pass(&mut self, millis: u64) {
        let mut left = millis;
        while left > 0 {
            let slice = left.min(500);
            left -= slice;
            self.now += slice * 1_000_000;
            let at = self.at();
            self.hub.tick(&mut self.core, at);
            for client in 0..self.clients.len() {
                if self.clients[client].machine.tick(at).is_err() {
                    self.cut(client);
                }
            }
            self.settle();
        }
    }

    pub(crate) fn take_all(&mut self, client: usize, handle: Handle, came: &mut Vec<String>) {
        let at = self.at();
        let machine = &mut self.clients[client].machine;
        machine.drain(1_024);
        let mut done = None;
        while let Some(taken) = machine.take(handle, done, at).unwrap() {
            came.push(String::from_utf8(taken.envelope.payload.to_vec()).unwrap());
            done = taken.lease;
        }
    }

    pub(crate) fn accepted(&mut self, client: usize) -> usize {
        let notes = self.clients[client].machine.drain(1_024);
        notes
            .iter()
            .filter(|note| matches!(note, Note::Core(Notice::Accepted(..))))
            .count()
    }

    pub(crate) fn audit_is_balanced(&self) -> bool {
        serde_json::to_value(self.core.audit()).unwrap()["balanced"] == true
    }

    pub(crate) fn leased(&self) -> u64 {
        let audit = serde_json::to_value(self.core.audit()).unwrap();
        let all = audit["subscriptions"].as_array().unwrap().iter();
        all.map(|it| it["leased"].as_u64().unwrap_or(0)).sum()
    }

    #[expect(dead_code, reason = "not every test file looks at it")]
    pub(crate) fn is_up(&self, client: usize) -> bool {
        self.clients[client].machine.state() == &LinkState::Up
    }
}
