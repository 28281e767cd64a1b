//! A node whose clients say what bytes make of them, beside one that says nothing wrong. The fuzzer feeds it, and a test of
//! every run.

use std::sync::Arc;

use bytes::Bytes;
use loom_core::{Core, Grants, Limits, Moment, Nanos};
use loom_proto::v1::{self, Frame, Packet, frame::Body};
use loom_proto::{Message, json};
use loom_session::{Authority, ConnId, Credential, Errand, Hub, HubConfig, Looked};

const GOOD: ConnId = ConnId(1);
/// Connections of the others.
const OTHERS: usize = 4;
/// Steps that one input makes at most.
const STEPS: usize = 256;

struct Node {
    core: Core,
    hub: Hub,
    now: u64,
    /// What the good one has sent, and heard.
    sent: u64,
    accepted: u64,
    heard: u64,
    /// Per connection of the others: the next number, so that what is said is taken in.
    next: [u64; OTHERS],
    epoch: u64,
}

/// Takes pieces of an input from its front.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self) -> &'a [u8] {
        let high = self.byte().unwrap_or(0);
        let size = usize::from(u16::from_be_bytes([high, self.byte().unwrap_or(0)]));
        let (taken, rest) = self.0.split_at(size.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

fn hello(session: u8, epoch: u64, token: &str) -> v1::Hello {
    v1::Hello {
        versions: vec![1],
        token: token.to_owned(),
        session: Bytes::copy_from_slice(&[session; 16]),
        epoch,
        name: "one".to_owned(),
        credit: Some(v1::Credit {
            frames: 1 << 30,
            bytes: 1 << 40,
        }),
        ..v1::Hello::default()
    }
}

fn others() -> impl Iterator<Item = ConnId> {
    (0..OTHERS as u64).map(|other| ConnId(2 + other))
}

/// One of them is given frames in one piece.
fn is_whole(conn: ConnId) -> bool {
    conn.0 == 3
}

fn packet(first: u64, bodies: Vec<Body>) -> Packet {
    let frames = bodies.into_iter().map(|body| Frame { body: Some(body) });
    Packet {
        first,
        received: 0,
        frames: frames.collect(),
    }
}

fn credential(id: &str, token: &str, namespace: &str) -> Credential {
    use sha2::Digest;
    Credential {
        id: id.to_owned(),
        hash: sha2::Sha256::digest(token.as_bytes()).into(),
        namespace: namespace.to_owned(),
        grants: Arc::new(Grants::all()),
        expires_ms: None,
    }
}

/// Does what these bytes say, and holds the good one to what it may expect.
///
/// # Panics
/// It does not hold.
pub(crate) fn feed(data: &[u8]) {
    let mut node = Node::new();
    let mut rest = Rest(data);
    for _ in 0..STEPS {
        let Some(what) = rest.byte() else { break };
        node.step(what, &mut rest);
    }
    node.end();
}

impl Node {
    fn new() -> Self {
        let config = HubConfig {
            boot: [1; 16],
            limits: loom_session::Limits::default(),
            agent: "loom/test".to_owned(),
            durable: Vec::new(),
            keeps_log: false,
        };
        let mut node = Self {
            core: Core::new(Limits::default(), 7),
            hub: Hub::new(config),
            now: 1_000_000_000,
            sent: 0,
            accepted: 0,
            heard: 0,
            next: [1; OTHERS],
            epoch: 1,
        };
        let known = vec![
            credential("good", "good", "default"),
            credential("other", "other", "other"),
        ];
        let at = node.at();
        node.hub
            .set_authority(Authority::new(known), &mut node.core, at);
        node.hub.connected(GOOD, false, at);
        node.gets(GOOD, packet(0, vec![Body::Hello(hello(1, 1, "good"))]));
        let register = v1::Register {
            handle: 1,
            name: "good".to_owned(),
            filters: vec!["good.>".to_owned()],
            concurrency: 8,
            info: Bytes::from_static(b"{}"),
            ..v1::Register::default()
        };
        node.says(Body::Register(register));
        for conn in others() {
            node.hub.connected(conn, is_whole(conn), at);
        }
        node
    }

    fn at(&self) -> Moment {
        Moment {
            now: Nanos(self.now),
            wall_ms: 1_700_000_000_000 + self.now / 1_000_000,
        }
    }

    fn gets(&mut self, conn: ConnId, packet: Packet) {
        let at = self.at();
        self.hub.received(conn, packet, &mut self.core, at);
        self.settle();
    }

    /// What a driver does after each step.
    fn settle(&mut self) {
        let at = self.at();
        loop {
            let errands = self.hub.take_errands();
            let woken = self.core.take_woken();
            if errands.is_empty() && woken.is_empty() {
                break;
            }
            for errand in errands {
                match errand {
                    Errand::Open(conn, _) => self.hub.opened(conn, Ok(()), &mut self.core, at),
                    Errand::Read(key, read) => {
                        let nothing = Looked {
                            events: Vec::new(),
                            next: read.start.clone(),
                            at_end: true,
                        };
                        self.hub
                            .has_read((key, &read), Ok(nothing), &mut self.core, at);
                    }
                }
            }
            for session in woken {
                self.hub.woken(session, &mut self.core, at);
            }
        }
        self.hub.take_ready();
        for (conn, _) in self.hub.take_closing() {
            assert!(conn != GOOD, "the good one was sent away");
            self.reconnect(conn);
        }
    }

    fn reconnect(&mut self, conn: ConnId) {
        let at = self.at();
        self.hub.disconnected(conn, at);
        self.hub.connected(conn, is_whole(conn), at);
    }

    /// A frame of the good one.
    fn says(&mut self, body: Body) {
        self.sent += 1;
        self.gets(GOOD, packet(self.sent, vec![body]));
        self.hears();
    }

    fn hears(&mut self) {
        let at = self.at();
        let mut begun = Vec::new();
        while let Some(packet) = self.hub.transmit(GOOD, &mut self.core, at) {
            for frame in packet.packet().frames {
                match frame.body {
                    Some(Body::Accepted(_)) => self.accepted += 1,
                    Some(Body::Deliver(deliver)) => {
                        self.heard += 1;
                        begun.extend(deliver.targets.iter().map(|target| target.lease));
                    }
                    Some(Body::Error(error)) => panic!("refused: {error:?}"),
                    _ => {}
                }
            }
        }
        if !begun.is_empty() {
            let ack = v1::Ack {
                leases: begun,
                goes_on: false,
            };
            self.says(Body::Ack(ack));
        }
    }

    fn step(&mut self, what: u8, rest: &mut Rest<'_>) {
        let number = usize::from(what >> 4) % OTHERS;
        let conn = ConnId(2 + number as u64);
        let at = self.at();
        match what & 15 {
            // As it stands there, in both forms.
            0 | 1 => {
                if let Ok(packet) = Packet::decode(rest.bytes()) {
                    self.gets(conn, packet);
                }
            }
            2 => {
                let text = String::from_utf8_lossy(rest.bytes()).into_owned();
                let count = json::attachments(&text).unwrap_or(0).min(8);
                let data = vec![Bytes::from_static(b"\xff\x00x"); count];
                if let Ok(packet) = json::decode(&text, data) {
                    self.gets(conn, packet);
                }
            }
            // With the number that is due: else hardly one would be taken in.
            3..=8 => {
                if let Ok(mut packet) = Packet::decode(rest.bytes()) {
                    packet.first = self.next[number];
                    packet.received = 0;
                    self.next[number] += packet.frames.len() as u64;
                    self.gets(conn, packet);
                }
            }
            9 => self.reconnect(conn),
            // A session that is let in; the one before goes on when it is the same.
            10 | 11 => {
                self.reconnect(conn);
                self.epoch += 1;
                let session = 2 + rest.byte().unwrap_or(0) % 4;
                let hello = hello(session, self.epoch, "other");
                self.gets(conn, packet(0, vec![Body::Hello(hello)]));
                self.next[number] = 1;
            }
            12 => {
                let _ = rest.byte();
                for _ in 0..8 {
                    if self.hub.transmit(conn, &mut self.core, at).is_none() {
                        break;
                    }
                }
            }
            13 => {
                let seconds = 1 + u64::from(rest.byte().unwrap_or(0)) % 90;
                for _ in 0..seconds.div_ceil(5) {
                    self.now += 5_000_000_000;
                    // It is alive, and says so.
                    let beat = v1::Heartbeat {
                        alive: true,
                        stack: String::new(),
                    };
                    self.gets(GOOD, packet(0, vec![Body::Heartbeat(beat)]));
                    let at = self.at();
                    self.hub.tick(&mut self.core, at);
                    self.settle();
                    self.hears();
                }
            }
            _ => self.goes_on(),
        }
    }

    /// The good one is heard, and hears, whatever the others do.
    fn goes_on(&mut self) {
        let before = (self.accepted, self.heard);
        let publish = v1::Publish {
            r#ref: self.sent + 1,
            topic: "good.one".to_owned(),
            payload: Some(v1::Payload {
                data: Bytes::from_static(b"1"),
                content_type: String::new(),
            }),
            ..v1::Publish::default()
        };
        self.says(Body::Publish(publish));
        assert_eq!((self.accepted, self.heard), (before.0 + 1, before.1 + 1));
    }

    fn end(mut self) {
        self.goes_on();
        let audit = self.core.audit();
        assert!(audit.balanced, "{audit:?}");
        let at = self.at();
        for conn in others() {
            self.hub.disconnected(conn, at);
        }
        self.hub.disconnected(GOOD, at);
        for _ in 0..20 {
            self.now += 5_000_000_000;
            let at = self.at();
            self.hub.tick(&mut self.core, at);
            self.settle();
        }
        assert_eq!(self.hub.connections(), 0);
        assert_eq!(self.hub.sessions().len(), 0, "sessions that nobody has");
        let audit = self.core.audit();
        let left = audit.gauges;
        let left = (left.sessions, left.handles, left.leased, left.pending);
        assert_eq!((left, audit.subscriptions.len()), ((0, 0, 0, 0), 0));
        assert!(audit.balanced, "{audit:?}");
    }
}
