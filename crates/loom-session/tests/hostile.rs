//! A node whose clients lie, ask on and do not listen; and a client whose node lies.

use std::sync::Arc;

use bytes::Bytes;
use loom_core::{Code, Core, Grants, Moment, Nanos, Notice, Qos};
use loom_proto::Message;
use loom_proto::v1::{self, Frame, Packet, frame::Body};
use loom_session::{
    Authority, Client, ClientConfig, ConnId, Credential, Errand, Hub, HubConfig, Limits, Note,
    Sending, Sent, Why,
};
use sha2::Digest;

const TOKEN: &str = "loom_secret";

struct Node {
    core: Core,
    hub: Hub,
    now: u64,
}

fn unnumbered(body: Body) -> Packet {
    numbered(0, vec![body])
}

fn numbered(first: u64, bodies: Vec<Body>) -> Packet {
    let frames = bodies.into_iter().map(|body| Frame { body: Some(body) });
    Packet {
        first,
        received: 0,
        frames: frames.collect(),
    }
}

fn hello(session: u8, epoch: u64) -> v1::Hello {
    v1::Hello {
        versions: vec![1],
        token: TOKEN.to_owned(),
        session: Bytes::copy_from_slice(&[session; 16]),
        epoch,
        name: "mallory".to_owned(),
        credit: Some(v1::Credit {
            frames: u64::MAX,
            bytes: u64::MAX,
        }),
        ..v1::Hello::default()
    }
}

fn publish(reference: u64) -> Body {
    Body::Publish(v1::Publish {
        r#ref: reference,
        topic: "n.one".to_owned(),
        payload: Some(v1::Payload {
            data: Bytes::from_static(b"1"),
            content_type: String::new(),
        }),
        ..v1::Publish::default()
    })
}

fn question(reference: u64) -> Body {
    Body::Directory(v1::Directory {
        r#ref: reference,
        kind: "agent".to_owned(),
    })
}

impl Node {
    fn new() -> Self {
        let config = HubConfig {
            boot: [1; 16],
            limits: Limits::default(),
            agent: "loom/test".to_owned(),
            durable: Vec::new(),
        };
        let mut node = Self {
            core: Core::new(loom_core::Limits::default(), 7),
            hub: Hub::new(config),
            now: 1_000_000_000,
        };
        let credential = Credential {
            id: "one".to_owned(),
            hash: sha2::Sha256::digest(TOKEN.as_bytes()).into(),
            namespace: "*".to_owned(),
            grants: Arc::new(Grants::all()),
            expires_ms: None,
        };
        let at = node.at();
        node.hub
            .set_authority(Authority::new(vec![credential]), &mut node.core, at);
        node
    }

    fn at(&self) -> Moment {
        Moment {
            now: Nanos(self.now),
            wall_ms: 1_700_000_000_000 + self.now / 1_000_000,
        }
    }

    fn gets(&mut self, conn: u64, packet: Packet) {
        let at = self.at();
        self.hub.received(ConnId(conn), packet, &mut self.core, at);
        for errand in self.hub.take_errands() {
            if let Errand::Open(conn, _) = errand {
                self.hub.opened(conn, Ok(()), &mut self.core, at);
            }
        }
        for session in self.core.take_woken() {
            self.hub.woken(session, &mut self.core, at);
        }
    }

    fn connect(&mut self, conn: u64, hello: v1::Hello) {
        let at = self.at();
        self.hub.connected(ConnId(conn), false, at);
        self.gets(conn, unnumbered(Body::Hello(hello)));
    }

    /// What the node sends over a connection now.
    fn sends(&mut self, conn: u64) -> Vec<Body> {
        let at = self.at();
        let mut all = Vec::new();
        while let Some(packet) = self.hub.transmit(ConnId(conn), &mut self.core, at) {
            all.extend(packet.frames.into_iter().filter_map(|it| it.body));
        }
        all
    }

    /// How a connection was closed: the code, and whether the session is kept.
    fn closed(&mut self, conn: u64) -> Option<(Code, bool)> {
        let closing = self.hub.take_closing();
        let found = closing.into_iter().find(|(it, _)| *it == ConnId(conn))?;
        match found.1?.frames.pop()?.body? {
            Body::Error(error) => {
                let code = Code::from_number(u16::try_from(error.code).ok()?)?;
                Some((code, error.keeps))
            }
            _ => None,
        }
    }
}

fn client() -> Client {
    let config = ClientConfig {
        session: [9; 16],
        name: "alice".to_owned(),
        namespace: String::new(),
        token: TOKEN.to_owned(),
        agent: "test".to_owned(),
        keep_ms: 0,
        whole: false,
        limits: Limits::default(),
    };
    Client::new(config, 1)
}

fn at(now: u64) -> Moment {
    Moment {
        now: Nanos(now),
        wall_ms: 1_700_000_000_000,
    }
}

fn welcome(resumed: bool) -> Packet {
    unnumbered(Body::Welcome(v1::Welcome {
        version: 1,
        boot: Bytes::copy_from_slice(&[1; 16]),
        resumed,
        namespace: "default".to_owned(),
        credit: Some(v1::Credit {
            frames: 100,
            bytes: 1 << 20,
        }),
        ..v1::Welcome::default()
    }))
}

fn event(json: &'static str) -> Sending<'static> {
    Sending {
        sender: 0,
        turn: None,
        topic: "n.one",
        payload: Bytes::from_static(json.as_bytes()),
        qos: Qos::Batched,
        options: None,
        ack: None,
    }
}

// requirement: SESSION-BROKEN
#[test]
fn a_packet_that_is_numbered_and_empty_changes_nothing() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    node.gets(1, numbered(1, vec![publish(1), publish(2)]));
    node.gets(1, numbered(1, Vec::new()));
    node.gets(1, numbered(3, vec![publish(3)]));
    let accepted = node.sends(1);
    let accepted = accepted.iter().filter(|it| matches!(it, Body::Accepted(_)));
    assert_eq!(accepted.count(), 3);
}

// requirement: SESSION-BROKEN
#[test]
fn the_highest_numbers_are_refused_and_break_nothing() {
    let mut node = Node::new();
    let last = v1::Hello {
        received: u64::MAX,
        boot: Bytes::copy_from_slice(&[1; 16]),
        ..hello(1, 2)
    };
    node.connect(1, hello(1, 1));
    node.connect(2, last);
    assert!(matches!(node.sends(2).first(), Some(Body::Welcome(it)) if !it.resumed));
    let mut packet = numbered(0, Vec::new());
    packet.received = u64::MAX;
    node.gets(2, packet);
    assert!(node.closed(2).is_some());
    node.connect(3, hello(2, u64::MAX));
    let bodies = vec![
        Body::Credit(v1::Credit {
            frames: u64::MAX,
            bytes: u64::MAX,
        }),
        Body::Grant(v1::Grant {
            call: u64::MAX,
            lease: u64::MAX,
            total: u64::MAX,
        }),
        Body::Nak(v1::Nak {
            lease: u64::MAX,
            after_ms: Some(u64::MAX),
        }),
        Body::Ack(v1::Ack {
            leases: vec![u64::MAX; 64],
            goes_on: false,
        }),
        Body::Call(v1::Call {
            call: u64::MAX,
            capability: "none".to_owned(),
            timeout_ms: u64::MAX,
            credit: u64::MAX,
            ..v1::Call::default()
        }),
        Body::Unsubscribe(v1::Unsubscribe { handle: u64::MAX }),
        Body::Withdraw(v1::Withdraw { r#ref: u64::MAX }),
        Body::Status(v1::Status {
            handle: u64::MAX,
            status: u32::MAX,
        }),
    ];
    node.gets(3, numbered(1, bodies));
    assert_eq!(node.closed(3), None);
    node.gets(3, numbered(u64::MAX, vec![publish(1)]));
    assert_eq!(node.closed(3), Some((Code::InvalidParams, true)));
}

// requirement: SESSION-BROKEN
#[test]
fn a_gap_ends_the_connection_only_and_a_broken_frame_the_session() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    node.gets(1, numbered(2, vec![publish(2)]));
    assert_eq!(node.closed(1), Some((Code::InvalidParams, true)));
    assert_eq!(node.hub.sessions().len(), 1);
    node.connect(2, hello(2, 1));
    let wrong = Body::Accepted(v1::Accepted::default());
    node.gets(2, numbered(1, vec![wrong, publish(1)]));
    assert_eq!(node.closed(2), Some((Code::InvalidParams, false)));
    assert_eq!(node.hub.sessions().len(), 1, "what came with it is lost");
}

// requirement: SESSION-BROKEN
#[test]
fn numbers_of_calls_and_publishes_that_are_under_way_are_not_used_again() {
    let mut node = Node::new();
    let waits = |call| {
        Body::Request(v1::Request {
            call,
            topic: "q.one".to_owned(),
            timeout_ms: 60_000,
            wait: true,
            ..v1::Request::default()
        })
    };
    node.connect(1, hello(1, 1));
    node.gets(1, numbered(1, vec![waits(5)]));
    assert_eq!(node.closed(1), None);
    node.gets(1, numbered(2, vec![waits(5)]));
    assert_eq!(node.closed(1), Some((Code::InvalidParams, false)));
    node.connect(2, hello(2, 1));
    node.gets(2, numbered(1, vec![waits(0)]));
    assert_eq!(node.closed(2), Some((Code::InvalidParams, false)));
}

// requirement: SESSION-BROKEN
#[test]
fn a_second_hello_and_frames_without_a_number_end_the_connection() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    node.gets(1, unnumbered(Body::Hello(hello(1, 2))));
    assert!(node.closed(1).is_some());
    node.connect(2, hello(1, 3));
    node.gets(2, unnumbered(publish(1)));
    assert!(node.closed(2).is_some());
    assert_eq!(node.hub.connections(), 0);
}

// requirement: SESSION-FENCED
#[test]
fn what_still_comes_over_a_connection_that_has_left_is_not_heard() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    node.gets(
        1,
        numbered(1, vec![Body::Drain(v1::Drain { within_ms: 0 })]),
    );
    assert_eq!(node.hub.sessions().len(), 0);
    node.connect(2, hello(1, 2));
    node.gets(1, numbered(1, vec![publish(1)]));
    let sent = node.sends(2);
    assert!(!sent.iter().any(|it| matches!(it, Body::Accepted(_))));
    assert!(node.hub.sessions()[0].is_connected);
}

// requirement: SESSION-BOUNDED
#[test]
fn a_client_that_asks_on_and_does_not_listen_is_sent_away() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    let mut first = 1;
    let mut closed = None;
    while closed.is_none() && first < 100_000 {
        let bodies: Vec<Body> = (first..first + 512).map(question).collect();
        node.gets(1, numbered(first, bodies));
        first += 512;
        closed = node.closed(1);
    }
    assert_eq!(closed, Some((Code::Exhausted, false)));
    assert!(first < 12_000, "after {first} questions");
}

// requirement: SESSION-BOUNDED
#[test]
fn a_client_that_confirms_nothing_is_granted_no_more() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    let mut granted = match node.sends(1).first() {
        Some(Body::Welcome(welcome)) => welcome.credit.unwrap().frames,
        other => panic!("{other:?}"),
    };
    let mut sent = 0;
    while sent < granted && sent < 200_000 {
        let count = (granted - sent).min(512);
        let bodies: Vec<Body> = (sent + 1..=sent + count).map(publish).collect();
        node.gets(1, numbered(sent + 1, bodies));
        sent += count;
        for body in node.sends(1) {
            if let Body::Credit(credit) = body {
                granted = granted.max(credit.frames);
            }
        }
    }
    assert!(sent < 25_000, "it could send {sent}");
    assert_eq!(node.closed(1), None);
}

// requirement: SESSION-BOUNDED
#[test]
fn parts_of_frames_are_kept_up_to_what_two_may_have() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    let most = Limits::default().frame_bytes as u64;
    let part = |id| {
        Body::Part(v1::Part {
            id,
            bytes: most,
            data: Bytes::from_static(b"x"),
            last: false,
        })
    };
    node.gets(1, numbered(1, vec![part(1), part(2)]));
    assert_eq!(node.closed(1), None);
    node.gets(1, numbered(3, vec![part(3)]));
    assert_eq!(node.closed(1), Some((Code::InvalidParams, false)));
}

// requirement: SESSION-BOUNDED
#[test]
fn reads_of_the_log_at_once_are_counted_until_they_are_answered() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    let read = |reference| {
        Body::Read(v1::Read {
            r#ref: reference,
            filters: vec!["n.>".to_owned()],
            start: "beginning".to_owned(),
        })
    };
    let at = node.at();
    let mut errands = 0;
    for number in 1..=10 {
        node.hub.received(
            ConnId(1),
            numbered(number, vec![read(number)]),
            &mut node.core,
            at,
        );
        errands += node.hub.take_errands().len();
    }
    assert_eq!(errands, Limits::default().reads);
}

// requirement: SESSION-BOUNDED
#[test]
fn what_a_client_says_while_its_node_is_away_is_bounded() {
    let mut client = client();
    let report = || {
        Body::Report(v1::Report {
            level: "info".to_owned(),
            data: Bytes::from_static(b"{}"),
            ..v1::Report::default()
        })
    };
    let refused = (0..100_000).find_map(|_| client.say(report()).err());
    assert_eq!(refused.expect("a bound").code, Code::Exhausted);
}

// requirement: SESSION-BROKEN
#[test]
fn a_client_begins_anew_where_a_frame_of_its_node_was_lost() {
    let mut client = client();
    client.connected(at(1));
    client.transmit();
    client.received(welcome(false), at(2)).unwrap();
    let Sent::Waits(ticket) = client.offer(event("1"), at(3)).unwrap() else {
        panic!("it waits")
    };
    let wrong = Body::Publish(v1::Publish::default());
    let error = client.received(numbered(1, vec![wrong]), at(4));
    assert!(error.is_err());
    client.disconnected(&Why::Broken("it lies".to_owned()), at(5));
    client.connected(at(6));
    let packet = client.transmit().expect("a hello");
    let Some(Body::Hello(hello)) = packet.frames[0].body.clone() else {
        panic!("a hello")
    };
    assert!(hello.boot.is_empty(), "it does not ask to go on");
    client.received(welcome(false), at(7)).unwrap();
    let notes = client.drain(64);
    assert!(notes.iter().any(|note| matches!(
        note,
        Note::Core(Notice::Refused(known, error))
            if *known == ticket && error.code == Code::Indeterminate
    )));
}

// requirement: SESSION-ENDS-ONCE
#[test]
fn all_that_waits_ends_when_a_node_refuses_the_session() {
    let mut client = client();
    client.connected(at(1));
    client.transmit();
    client.received(welcome(false), at(2)).unwrap();
    client.offer(event("1"), at(3)).unwrap();
    client.ask(question).expect("a question");
    while client.transmit().is_some() {}
    let error = v1::Error {
        code: u32::from(Code::Unauthenticated.number()),
        ..v1::Error::default()
    };
    assert!(
        client
            .received(unnumbered(Body::Error(error)), at(4))
            .is_err()
    );
    assert_eq!(client.open(), (0, 0));
    let ends = client.drain(64);
    let refused = ends
        .iter()
        .filter(|note| matches!(note, Note::Core(Notice::Refused(..))));
    assert_eq!(refused.count(), 2);
}

// requirement: SESSION-ENDS-ONCE
#[test]
fn a_publish_that_was_withdrawn_is_not_answered() {
    let mut client = client();
    client.connected(at(1));
    client.transmit();
    client.received(welcome(false), at(2)).unwrap();
    let Sent::Waits(ticket) = client.offer(event("1"), at(3)).unwrap() else {
        panic!("it waits")
    };
    assert!(client.withdraw(ticket));
    client.drain(64);
    let error = v1::Error {
        r#ref: ticket.0,
        code: u32::from(Code::Exhausted.number()),
        ..v1::Error::default()
    };
    client
        .received(numbered(1, vec![Body::Error(error)]), at(4))
        .unwrap();
    assert!(client.drain(64).is_empty());
}

// requirement: SESSION-AGAIN
#[test]
fn a_registration_that_a_stopping_node_does_not_take_is_kept_for_its_next_life() {
    let mut client = client();
    client.connected(at(1));
    client.transmit();
    client.received(welcome(false), at(2)).unwrap();
    let handle = client
        .enrol(|handle| {
            Body::Register(v1::Register {
                handle,
                name: "hears".to_owned(),
                ..v1::Register::default()
            })
        })
        .unwrap();
    let error = v1::Error {
        r#ref: handle.0,
        code: u32::from(Code::Unavailable.number()),
        ..v1::Error::default()
    };
    client
        .received(numbered(1, vec![Body::Error(error)]), at(3))
        .unwrap();
    client.disconnected(&Why::Ended, at(4));
    client.connected(at(5));
    client.transmit();
    client.received(welcome(false), at(6)).unwrap();
    let packet = client.transmit().expect("it registers again");
    assert!(packet.encoded_len() > 0);
    assert!(packet.frames.iter().any(|frame| matches!(
        &frame.body,
        Some(Body::Register(it)) if it.handle == handle.0
    )));
}
