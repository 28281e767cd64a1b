//! A node whose clients lie, ask on and do not listen; and a client whose node lies.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

use std::sync::Arc;

use bytes::Bytes;
use loom_core::record::Level;
use loom_core::{Code, Core, Delivery, Error, Grants, Handle, Moment, Nanos, Notice, Qos, Record};
use loom_proto::Message;
use loom_proto::v1::{self, Frame, Packet, frame::Body};
use loom_session::{
    Authority, Client, ClientConfig, ConnId, Credential, Errand, Hub, HubConfig, Invocation,
    Limits, Looked, Note, Sending, Sent, Why,
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
            keeps_log: false,
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
            all.extend(packet.packet().frames.into_iter().filter_map(|it| it.body));
        }
        all
    }

    /// How a connection was closed: the code, and whether the session is kept.
    fn closed(&mut self, conn: u64) -> Option<(Code, bool)> {
        let closing = self.hub.take_closing();
        let found = closing.into_iter().find(|(it, _)| *it == ConnId(conn))?;
        match found.1?.packet().frames.pop()?.body? {
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
    let refused = (0..100_000).find_map(|_| client.say(&report()).err());
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
    let packet = client.transmit().expect("a hello").packet();
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
    let packet = client.transmit().expect("it registers again").packet();
    assert!(packet.encoded_len() > 0);
    assert!(packet.frames.iter().any(|frame| matches!(
        &frame.body,
        Some(Body::Register(it)) if it.handle == handle.0
    )));
}

// requirement: SESSION-PUBLISH-ONCE
#[test]
fn a_durable_event_of_before_the_first_welcome_is_sent_again_under_the_id_it_had() {
    let mut client = client();
    let published = |client: &mut Client| {
        let packets = std::iter::from_fn(|| client.transmit());
        let frames = packets.flat_map(|packet| packet.packet().frames);
        let ids = frames.filter_map(|frame| match frame.body {
            Some(Body::Publish(it)) => Some(it.options.unwrap_or_default().id),
            _ => None,
        });
        ids.collect::<Vec<_>>()
    };
    let welcomed = |boot: u8| {
        unnumbered(Body::Welcome(v1::Welcome {
            boot: Bytes::copy_from_slice(&[boot; 16]),
            credit: Some(v1::Credit {
                frames: 100,
                bytes: 1 << 20,
            }),
            durable: vec!["n.>".to_owned()],
            ..v1::Welcome::default()
        }))
    };
    client.offer(event("1"), at(1)).unwrap();
    client.connected(at(2));
    assert!(published(&mut client).is_empty());
    client.received(welcomed(1), at(3)).unwrap();
    let first = published(&mut client);
    assert_eq!(first.len(), 1);
    assert!(!first[0].is_empty());
    client.disconnected(&Why::Broken("cut".to_owned()), at(4));
    client.connected(at(5));
    client.transmit();
    client.received(welcomed(2), at(6)).unwrap();
    assert_eq!(published(&mut client), first);
}

/// A group that begins at a time.
fn late(handle: u64) -> Body {
    Body::Register(v1::Register {
        handle,
        name: "late".to_owned(),
        filters: vec!["n.>".to_owned()],
        concurrency: 1,
        info: Bytes::from_static(b"{}"),
        start: "time:1700000000000".to_owned(),
        ..v1::Register::default()
    })
}

fn answers(bodies: Vec<Body>) -> Vec<(u64, Option<Code>)> {
    let told = bodies.into_iter().filter_map(|body| match body {
        Body::Done(done) => Some((done.r#ref, None)),
        Body::Error(error) => {
            let code = u16::try_from(error.code).ok().and_then(Code::from_number);
            Some((error.r#ref, code))
        }
        Body::Accepted(accepted) => Some((accepted.r#ref, None)),
        _ => None,
    });
    told.collect()
}

fn found(node: &mut Node) -> Option<Errand> {
    node.hub.take_errands().pop()
}

// requirement: SDKLOG-START
#[test]
fn what_follows_a_group_that_begins_at_a_time_waits_until_the_log_was_read() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    node.sends(1);
    let speaks = Body::Publish(v1::Publish {
        sender: 7,
        ..match publish(8) {
            Body::Publish(it) => it,
            _ => v1::Publish::default(),
        }
    });
    let at = node.at();
    let packet = numbered(1, vec![late(7), speaks, late(9)]);
    node.hub.received(ConnId(1), packet, &mut node.core, at);
    assert!(answers(node.sends(1)).is_empty());
    for expected in [vec![(7, None), (8, None)], vec![(9, Some(Code::NotFound))]] {
        let Some(Errand::Read(key, read)) = found(&mut node) else {
            panic!("the log is read once for each")
        };
        assert_eq!(
            (read.start.as_str(), read.reference),
            ("time:1700000000000", expected[0].0)
        );
        let looked = match expected[0].1 {
            None => Ok(Looked {
                events: Vec::new(),
                next: String::new(),
                at_end: true,
            }),
            Some(code) => Err(Error::new(code, "no log")),
        };
        node.hub.has_read((key, &read), looked, &mut node.core, at);
        assert_eq!(answers(node.sends(1)), expected);
    }
    assert!(found(&mut node).is_none());
}

// requirement: SESSION-BOUNDED
#[test]
fn what_waits_for_the_place_of_a_group_is_bounded() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    let at = node.at();
    let packet = numbered(1, vec![late(7)]);
    node.hub.received(ConnId(1), packet, &mut node.core, at);
    let is_closed = (2..100_000).any(|number| {
        let packet = numbered(number, vec![Body::Withdraw(v1::Withdraw { r#ref: 1 })]);
        node.hub.received(ConnId(1), packet, &mut node.core, at);
        node.closed(1).is_some()
    });
    assert!(is_closed);
    assert!(node.hub.sessions().is_empty());
}

// requirement: STREAM-OVER-CREDIT
#[test]
fn a_stream_of_more_chunks_than_were_granted_fails_and_the_session_goes_on() {
    let mut node = Node::new();
    let mut shop = hello(2, 1);
    shop.name = "shop".to_owned();
    node.connect(1, hello(1, 1));
    node.connect(2, shop);
    let provide = Body::Provide(v1::Provide {
        handle: 2,
        name: "count".to_owned(),
        version: "1".to_owned(),
        effect: v1::EffectClass::Pure as i32,
        concurrency: 2,
        info: Bytes::from_static(b"{}"),
        provider: "shop".to_owned(),
        probes: false,
    });
    node.gets(2, numbered(1, vec![provide]));
    let call = |call| {
        Body::Call(v1::Call {
            call,
            capability: "count".to_owned(),
            payload: Some(v1::Payload::default()),
            timeout_ms: 3_000,
            credit: 2,
            ..v1::Call::default()
        })
    };
    let lease = |node: &mut Node| {
        let frames = node.sends(2);
        let lease = frames.into_iter().find_map(|body| match body {
            Body::ActionCall(it) => Some(it.lease),
            _ => None,
        });
        lease.expect("its work")
    };
    let streamed = |lease, chunks| {
        let chunk = Body::Chunk(v1::Chunk {
            lease,
            call: 0,
            payload: Some(v1::Payload::default()),
        });
        let result = Body::Result(v1::Result {
            lease,
            payload: Some(v1::Payload::default()),
        });
        let mut all = vec![chunk; chunks];
        all.push(result);
        all
    };
    // How many chunks came, and the code and the payload of each end.
    let heard = |node: &mut Node| {
        let (mut chunks, mut ends) = (0, Vec::new());
        for body in node.sends(1) {
            match body {
                Body::Chunk(_) => chunks += 1,
                Body::Outcome(it) => ends.push((it.code, it.payload.unwrap_or_default().data)),
                _ => {}
            }
        }
        (chunks, ends)
    };
    node.gets(1, numbered(1, vec![call(1)]));
    let first = lease(&mut node);
    node.gets(2, numbered(2, streamed(first, 5)));
    let (chunks, ends) = heard(&mut node);
    assert_eq!((chunks, ends.len()), (2, 1));
    assert_eq!(ends[0].0, u32::from(Code::Exhausted.number()));
    let detail: serde_json::Value = serde_json::from_slice(&ends[0].1).unwrap();
    assert_eq!(
        (&detail["field"], &detail["limit"]),
        (&"credit".into(), &"stream_chunks".into())
    );
    let calls = node.core.stats().calls;
    assert_eq!((calls.ok, calls.error), (0, 1), "counted");
    node.gets(1, numbered(2, vec![call(2)]));
    let second = lease(&mut node);
    node.gets(2, numbered(8, streamed(second, 2)));
    let (chunks, ends) = heard(&mut node);
    assert_eq!((chunks, ends.len(), ends[0].0), (2, 1, 0));
}

fn durable_turn(handle: u64, lease: u64) -> Body {
    let (envelope, target) = delivered(handle, lease);
    Body::Turn(v1::Turn {
        event: Some(envelope),
        target: Some(target),
        ..v1::Turn::default()
    })
}

fn batched_turn(handle: u64, lease: u64) -> Body {
    let (envelope, target) = delivered(handle, lease);
    Body::Deliver(v1::Deliver {
        event: Some(envelope),
        targets: vec![target],
    })
}

fn delivered(handle: u64, lease: u64) -> (v1::Envelope, v1::Target) {
    let envelope = v1::Envelope {
        id: Bytes::copy_from_slice(&[1; 16]),
        topic: "n.one".to_owned(),
        payload: Some(v1::Payload {
            data: Bytes::from_static(b"1"),
            content_type: String::new(),
        }),
        sender: "default/other".to_owned(),
        thread_id: Bytes::copy_from_slice(&[1; 16]),
        run_id: Bytes::copy_from_slice(&[1; 16]),
        qos: v1::Qos::Batched as i32,
        position: "a1-a1-c52b".to_owned(),
        ..v1::Envelope::default()
    };
    let target = v1::Target {
        handle,
        lease,
        lane: 1,
        attempt: 1,
        ..v1::Target::default()
    };
    (envelope, target)
}

// requirement: FAULT-FROZEN
#[test]
fn a_durable_turn_whose_session_is_over_sends_nothing_any_more() {
    let mut client = client();
    client.connected(at(1));
    client.transmit();
    client.received(welcome(false), at(2)).unwrap();
    let handle = client
        .enrol(|handle| {
            Body::Register(v1::Register {
                handle,
                name: "hears".to_owned(),
                concurrency: 1,
                ..v1::Register::default()
            })
        })
        .unwrap();
    let turn = durable_turn(handle.0, 5);
    client.received(numbered(1, vec![turn]), at(3)).unwrap();
    let taken = client
        .take(handle, None, at(4))
        .unwrap()
        .expect("its event");
    let invocation = loom_session::Invocation {
        sender: handle.0,
        turn: taken.lease,
        capability: "card.charge",
        version: None,
        payload: Bytes::from_static(b"{}"),
        timeout_ms: 60_000,
        key: Some("once"),
        credit: 0,
    };
    let sent = client.call(&invocation, at(5)).unwrap();
    while client.transmit().is_some() {}
    client.disconnected(&Why::Ended, at(6));
    let unsent = client.call(&invocation, at(7)).unwrap();
    let publish = Sending {
        sender: handle.0,
        turn: taken.lease,
        ..event("2")
    };
    let Sent::Waits(ticket) = client.offer(publish, at(8)).unwrap() else {
        panic!("it waits")
    };
    let root = client.call(
        &loom_session::Invocation {
            turn: None,
            ..invocation
        },
        at(8),
    );
    client.connected(at(9));
    client.transmit();
    // The node goes on where it was, and has given the turn to another session.
    client.received(welcome(false), at(10)).unwrap();
    let mut calls = Vec::new();
    while let Some(packet) = client.transmit() {
        for frame in packet.packet().frames {
            match frame.body {
                Some(Body::Call(call)) => calls.push(call.call),
                Some(Body::Publish(publish)) => panic!("{publish:?}"),
                _ => {}
            }
        }
    }
    assert_eq!(calls, [root.unwrap().0], "only what no turn has sent");
    let mut ends = std::collections::BTreeMap::new();
    for note in client.drain(64) {
        match note {
            Note::Core(Notice::Outcome(call, code, _)) => {
                ends.insert(call.0, code);
            }
            Note::Core(Notice::Refused(known, error)) => {
                ends.insert(known.0, Some(error.code));
            }
            _ => {}
        }
    }
    let expected = [
        (sent.0, Some(Code::Indeterminate)),
        (unsent.0, Some(Code::Fenced)),
        (ticket.0, Some(Code::Fenced)),
    ];
    assert_eq!(ends, expected.into());
}

/// A client with an agent that has begun a turn.
struct Turning {
    client: Client,
    handle: Handle,
    turn: Delivery,
    now: u64,
}

/// What a turn has sent, by when and how.
struct Outcomes {
    published: u64,
    called: u64,
    asked: u64,
    held: u64,
    held_call: u64,
}

impl Turning {
    fn begin(make: fn(u64, u64) -> Body) -> Self {
        let mut client = client();
        client.connected(at(1));
        client.transmit();
        client.received(welcome(false), at(2)).unwrap();
        let register = |handle| {
            Body::Register(v1::Register {
                handle,
                name: "hears".to_owned(),
                concurrency: 1,
                ..v1::Register::default()
            })
        };
        let handle = client.enrol(register).unwrap();
        let turn = make(handle.0, 5);
        client.received(numbered(1, vec![turn]), at(3)).unwrap();
        let turn = client.take(handle, None, at(4)).unwrap().unwrap();
        Self {
            client,
            handle,
            turn,
            now: 4,
        }
    }

    fn at(&mut self) -> Moment {
        self.now += 1;
        at(self.now)
    }

    /// Publishes something durable in the turn.
    fn publish(&mut self, json: &'static str) -> u64 {
        let sending = Sending {
            sender: self.handle.0,
            turn: self.turn.lease,
            ack: Some(Level::Disk),
            ..event(json)
        };
        let at = self.at();
        match self.client.offer(sending, at).unwrap() {
            Sent::Waits(ticket) => ticket.0,
            Sent::Done(receipt) => panic!("it waits: {receipt:?}"),
        }
    }

    fn call(&mut self) -> u64 {
        let invocation = Invocation {
            sender: self.handle.0,
            turn: self.turn.lease,
            capability: "card.charge",
            version: None,
            payload: Bytes::from_static(b"{}"),
            timeout_ms: 60_000,
            key: Some("once"),
            credit: 0,
        };
        let at = self.at();
        self.client.call(&invocation, at).unwrap().0
    }

    fn ask(&mut self) -> u64 {
        let sending = Sending {
            turn: self.turn.lease,
            ..event("\"asked\"")
        };
        let (at, within) = (self.at(), (60_000, 1, false));
        self.client.request(sending, within, at).unwrap().0
    }

    /// Says of the turn what can be said, before and after the connection is lost, and ends it.
    fn says_all_and_ends(&mut self) -> Outcomes {
        let (published, called, asked) = (self.publish("1"), self.call(), self.ask());
        while self.client.transmit().is_some() {}
        self.lose();
        let (held, held_call) = (self.publish("2"), self.call());
        let realtime = Sending {
            turn: self.turn.lease,
            qos: Qos::Realtime,
            ..event("3")
        };
        let at = self.at();
        self.client.offer(realtime, at).unwrap();
        self.end();
        let at = self.at();
        self.client.offer(event("\"root\""), at).unwrap();
        Outcomes {
            published,
            called,
            asked,
            held,
            held_call,
        }
    }

    fn end(&mut self) {
        let at = self.at();
        let next = self.client.take(self.handle, self.turn.lease, at).unwrap();
        assert!(next.is_none());
    }

    fn lose(&mut self) {
        let at = self.at();
        self.client.disconnected(&Why::Ended, at);
    }

    /// Connects to a node that knows the session no more; what the client says to it.
    fn begin_anew(&mut self, boot: u8) -> Vec<Body> {
        let at = self.at();
        self.client.connected(at);
        self.client.transmit();
        let mut welcome = welcome(false);
        if let Some(Body::Welcome(it)) = &mut welcome.frames[0].body {
            it.boot = Bytes::copy_from_slice(&[boot; 16]);
        }
        self.client.received(welcome, at).unwrap();
        self.says()
    }

    fn says(&mut self) -> Vec<Body> {
        let packets = std::iter::from_fn(|| self.client.transmit());
        let frames = packets.flat_map(|packet| packet.packet().frames);
        frames.filter_map(|frame| frame.body).collect()
    }

    /// The node gives the event under another lease; whether it is begun.
    fn comes_again(&mut self, make: fn(u64, u64) -> Body) -> bool {
        let at = self.at();
        let turn = make(self.handle.0, 6);
        self.client.received(numbered(1, vec![turn]), at).unwrap();
        self.client.take(self.handle, None, at).unwrap().is_some()
    }

    /// How what was waited for has ended.
    fn ends(&mut self) -> Vec<(u64, Option<Code>)> {
        let notes = self.client.drain(64).into_iter();
        let mut ends: Vec<_> = notes
            .filter_map(|note| match note {
                Note::Core(Notice::Outcome(call, code, _)) => Some((call.0, code)),
                Note::Core(Notice::Refused(known, error)) => Some((known.0, Some(error.code))),
                _ => None,
            })
            .collect();
        ends.sort_unstable();
        ends
    }
}

/// What was published, and under which lease; and the numbers of the calls.
fn spoken(said: &[Body]) -> (Vec<(String, u64)>, Vec<u64>) {
    let text = |it: &v1::Publish| {
        let data = it.payload.clone().unwrap_or_default().data;
        String::from_utf8(data.to_vec()).unwrap()
    };
    let published = said.iter().filter_map(|body| match body {
        Body::Publish(it) => Some((text(it), it.lease)),
        _ => None,
    });
    let called = said.iter().filter_map(|body| match body {
        Body::Call(it) => Some(it.call),
        Body::Request(it) => Some(it.call),
        _ => None,
    });
    (published.collect(), called.collect())
}

// requirement: SESSION-TURN-FENCED
#[test]
fn a_durable_turn_that_has_ended_sends_nothing_as_a_root_when_its_session_is_over() {
    let mut world = Turning::begin(durable_turn);
    let sent = world.says_all_and_ends();
    let (published, called) = spoken(&world.begin_anew(1));
    assert_eq!(published, [("\"root\"".to_owned(), 0)]);
    assert!(called.is_empty(), "{called:?}");
    let expected = [
        (sent.published, Some(Code::Indeterminate)),
        (sent.called, Some(Code::Indeterminate)),
        (sent.asked, Some(Code::Indeterminate)),
        (sent.held, Some(Code::Fenced)),
        (sent.held_call, Some(Code::Fenced)),
    ];
    assert_eq!(world.ends(), expected);
    // It has not ended well after all: should it come again, it is not acknowledged but done.
    assert!(world.comes_again(durable_turn));
}

// requirement: SESSION-TURN-FENCED
#[test]
fn a_turn_that_nobody_else_is_given_sends_as_a_root_what_it_has_not_been_answered() {
    // A batched turn is given to nobody when its session is over; a durable one waits in another life of the node.
    for (make, boot) in [(batched_turn as fn(u64, u64) -> Body, 1), (durable_turn, 2)] {
        let mut world = Turning::begin(make);
        let sent = world.says_all_and_ends();
        let (mut published, called) = spoken(&world.begin_anew(boot));
        published.sort();
        let all = ["\"root\"", "1", "2", "3"];
        assert_eq!(published, all.map(|text| (text.to_owned(), 0)));
        // Only the same life of a node without a log knows what it had begun.
        let mut again = vec![sent.held_call];
        let mut ends = vec![(sent.asked, Some(Code::Unavailable))];
        if boot == 1 {
            again.insert(0, sent.called);
        } else {
            ends.insert(0, (sent.called, Some(Code::Indeterminate)));
        }
        assert_eq!((called, world.ends()), (again, ends));
    }
}

// requirement: SESSION-TURN-FENCED
#[test]
fn a_durable_turn_whose_events_were_all_taken_is_acknowledged_when_it_comes_again() {
    let mut world = Turning::begin(durable_turn);
    let published = world.publish("1");
    while world.client.transmit().is_some() {}
    let accepted = Body::Accepted(v1::Accepted {
        r#ref: published,
        id: Bytes::copy_from_slice(&[2; 16]),
        ..v1::Accepted::default()
    });
    let at = world.at();
    let packet = numbered(2, vec![accepted]);
    world.client.received(packet, at).unwrap();
    world.end();
    world.lose();
    let said = world.begin_anew(1);
    assert_eq!(spoken(&said), (vec![], vec![]));
    assert!(!world.comes_again(durable_turn));
    let acks = |body: &Body| matches!(body, Body::Ack(it) if it.leases == [6]);
    assert!(world.says().iter().any(acks));
    assert_eq!(world.ends(), []);
}

// requirement: SESSION-TURN-FENCED
#[test]
fn a_client_that_is_closed_says_nothing_of_a_durable_turn_as_a_root_and_counts_it() {
    for ends in [true, false] {
        let mut world = Turning::begin(durable_turn);
        world.publish("1");
        while world.client.transmit().is_some() {}
        world.lose();
        world.publish("2");
        if ends {
            world.end();
        }
        world.client.close();
        // The two events, and that the turn has ended.
        assert_eq!(world.client.unsaid(), 2 + usize::from(ends));
        let (published, _) = spoken(&world.begin_anew(1));
        assert_eq!(published, []);
        assert_eq!(world.client.unsaid(), 2 + usize::from(ends));
    }
}

/// The errors that the node answered, by their numbers: code, field, message.
fn errors(bodies: Vec<Body>) -> Vec<(u64, u32, String, String)> {
    let error = |body| match body {
        Body::Error(it) => Some((it.r#ref, it.code, it.field, it.message)),
        _ => None,
    };
    bodies.into_iter().filter_map(error).collect()
}

// requirement: WIRE-ENUM
#[test]
fn a_name_that_an_enumeration_does_not_have_is_refused_and_is_no_default() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    let _ = node.sends(1);
    let text = r#"{"first":1,"frames":[
        {"publish":{"ref":1,"topic":"n.one","payload":{"json":1},"ack":"Disk"}},
        {"publish":{"ref":2,"topic":"n.one","payload":{"json":1},"ack":9}},
        {"publish":{"ref":3,"topic":"n.one","payload":{"json":1},"qos":"nope"}},
        {"subscribe":{"handle":4,"filters":["n.>"],"qos":"Realtime"}},
        {"provide":{"handle":5,"name":"c","version":"1","provider":"mallory","concurrency":1,"info":{},"effect":"pur"}},
        {"publish":{"ref":6,"topic":"n.one","payload":{"json":1},"qos":"realtime","ack":"accepted"}}
    ]}"#;
    node.gets(1, loom_proto::json::decode(text, Vec::new()).unwrap());
    let told: Vec<(u64, u32, String)> = errors(node.sends(1))
        .into_iter()
        .map(|(number, code, field, _)| (number, code, field))
        .collect();
    let invalid = u32::from(Code::InvalidParams.number());
    let expected = [
        (1, "ack"),
        (2, "ack"),
        (3, "qos"),
        (4, "qos"),
        (5, "effect"),
    ];
    assert_eq!(
        told,
        expected.map(|(number, field)| (number, invalid, field.to_owned()))
    );
}

// requirement: MEMORY-READABLE
#[test]
fn what_others_could_not_read_is_not_put_into_the_memory() {
    let long = "k".repeat(257);
    let cases: [(&str, &[u8], &str, &str); 8] = [
        ("bad", b"\xff\x00nope", "", "value"),
        ("nan", b"NaN", "", "value"),
        ("two", b"{\"a\":1}{}", "", "value"),
        ("none", b"", "", "value"),
        ("typed", b"1", "image/png", "value"),
        ("", b"1", "", "key"),
        ("a\x1b[31m", b"1", "", "key"),
        (&long, b"1", "", "key"),
    ];
    for (key, data, kind, field) in cases {
        let report = kept(key, data, kind).expect("a report");
        assert_eq!(report["field"], field, "{key:?}: {report}");
        assert_eq!(report["code"], "INVALID_PARAMS", "{key:?}: {report}");
    }
    // No log is open here: what is well comes so far.
    let well = kept(&"k".repeat(256), b"{\"a\":[1,null]}", "application/json").expect("a report");
    assert_eq!(well["code"], "NOT_SUPPORTED", "{well}");
}

/// What the node reports of a value that it did not keep.
fn kept(key: &str, data: &'static [u8], kind: &str) -> Option<serde_json::Value> {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    let _ = node.sends(1);
    let hears = Body::Subscribe(v1::Subscribe {
        handle: 1,
        filters: vec!["loom.>".to_owned()],
        ..v1::Subscribe::default()
    });
    let keep = Body::Keep(v1::Keep {
        key: key.to_owned(),
        value: Some(v1::Payload {
            data: Bytes::from_static(data),
            content_type: kind.to_owned(),
        }),
        ..v1::Keep::default()
    });
    node.gets(1, numbered(1, vec![hears, keep]));
    let told = node.sends(1).into_iter().find_map(|body| match body {
        Body::Deliver(it) => it.event?.payload,
        _ => None,
    });
    serde_json::from_slice(&told?.data).ok()
}

// requirement: WIRE-FORWARD
#[test]
fn what_a_newer_node_names_in_an_enumeration_costs_its_client_nothing() {
    let mut client = client();
    client.connected(at(1));
    client.transmit();
    client.received(welcome(false), at(2)).unwrap();
    let Sent::Waits(ticket) = client.offer(event("1"), at(3)).unwrap() else {
        panic!("it waits")
    };
    let stream = client
        .enrol(|handle| {
            Body::Subscribe(v1::Subscribe {
                handle,
                filters: vec!["n.>".to_owned()],
                ..v1::Subscribe::default()
            })
        })
        .unwrap();
    client.transmit();
    let id = "01".repeat(16);
    let (ticket, stream) = (ticket.0, stream.0);
    for (first, moon) in [(1, "\"moon\""), (4, "9")] {
        let text = format!(
            r#"{{"first":{first},"frames":[
                {{"accepted":{{"ref":{stream},"id":"{id}"}}}},
                {{"accepted":{{"ref":{ticket},"id":"{id}","level":{moon}}}}},
                {{"deliver":{{"event":{{"id":"{id}","topic":"n.one","qos":{moon},"payload":{{"json":1}}}},
                              "targets":[{{"handle":{stream},"lease":{first}}}]}}}}
            ]}}"#
        );
        let packet = loom_proto::json::decode(&text, Vec::new()).unwrap();
        client.received(packet, at(4)).unwrap();
    }
    let levels: Vec<_> = client
        .drain(64)
        .into_iter()
        .filter_map(|note| match note {
            Note::Core(Notice::Accepted(known, receipt)) if known.0 == ticket => {
                Some(receipt.level)
            }
            _ => None,
        })
        .collect();
    assert_eq!(levels, [loom_core::record::Level::Accepted]);
    let mut done = None;
    let mut classes = Vec::new();
    while let Some(it) = client.take(Handle(stream), done, at(5)).unwrap() {
        classes.push(it.envelope.qos);
        done = it.lease;
    }
    assert_eq!(classes, [Qos::Batched, Qos::Batched]);
}

// requirement: DIRECTORY-READABLE
#[test]
fn what_a_registration_says_of_itself_can_be_read_by_all() {
    let mut node = Node::new();
    node.connect(1, hello(1, 1));
    let _ = node.sends(1);
    let text = r#"{"first":1,"frames":[
        {"register":{"handle":1,"name":"bare","filters":["a","b"],"concurrency":2,"info":{}}},
        {"register":{"handle":2,"name":"liar","filters":["c"],"group":"g","concurrency":1,
            "info":{"name":5,"filters":[1],"group":{},"concurrency":"x","more":1.50}}},
        {"provide":{"handle":3,"name":"cap","version":"2","provider":"mallory","effect":"pure","concurrency":1,
            "info":{"name":"billing","version":[],"effect":7,"tags":["t"]}}},
        {"register":{"handle":4,"name":"x","filters":["a"],"concurrency":1,"info":{"description":5}}},
        {"register":{"handle":5,"name":"x","filters":["a"],"concurrency":1,"info":{"capabilities":[1]}}},
        {"provide":{"handle":6,"name":"x","version":"1","provider":"mallory","concurrency":1,"info":{"timeout":"1"}}},
        {"provide":{"handle":7,"name":"x","version":"1","provider":"mallory","concurrency":1,"info":{"tags":null}}},
        {"provide":{"handle":8,"name":"x","version":"1","provider":"mallory","concurrency":1,"info":{"input":true}}},
        {"provide":{"handle":9,"name":"x","version":"1","provider":"mallory","concurrency":1,"info":[]}}
    ]}"#;
    node.gets(1, loom_proto::json::decode(text, Vec::new()).unwrap());
    let told: Vec<_> = errors(node.sends(1))
        .into_iter()
        .map(|(number, code, field, _)| (number, code, field))
        .collect();
    let invalid = u32::from(Code::InvalidParams.number());
    let expected = [
        (4, "info.description"),
        (5, "info.capabilities"),
        (6, "info.timeout"),
        (7, "info.tags"),
        (8, "info.input"),
        (9, "info"),
    ];
    assert_eq!(
        told,
        expected.map(|(number, field)| (number, invalid, field.to_owned()))
    );
    let listed = |kind| {
        let all = node.core.directory("default", kind).into_iter();
        all.map(|it| serde_json::from_slice(&it).unwrap())
            .collect::<Vec<serde_json::Value>>()
    };
    let agents = listed(loom_core::DirectoryKind::Agent);
    let of = |it: &serde_json::Value| {
        ["name", "filters", "group", "concurrency", "more"].map(|name| it[name].to_string())
    };
    assert_eq!(
        agents.iter().map(of).collect::<Vec<_>>(),
        [
            ["\"bare\"", "[\"a\",\"b\"]", "\"bare\"", "2", "null"],
            ["\"liar\"", "[\"c\"]", "\"g\"", "1", "1.5"]
        ]
    );
    let cap = &listed(loom_core::DirectoryKind::Capability)[0];
    assert_eq!(
        (&cap["name"], &cap["version"], &cap["effect"], &cap["tags"]),
        (
            &"cap".into(),
            &"2".into(),
            &"pure".into(),
            &serde_json::json!(["t"])
        )
    );
}

/// Answers all that the core leaves for its log and asks of it; its first record is the second.
fn serve(node: &mut Node, log: &mut Vec<Record>) {
    let place = |n: usize| loom_core::Position {
        partition: 1,
        epoch: 1,
        n: n as u64 + 2,
    };
    loop {
        let (out, reads) = (node.core.take_records(), node.core.take_reads());
        if out.is_empty() && reads.is_empty() {
            return;
        }
        let at = node.at();
        for one in out {
            let position = place(log.len());
            log.extend(one.batch);
            if let Some(ticket) = one.ticket {
                node.core.logged(ticket, position, at);
            }
        }
        for read in reads {
            let all = log.iter().enumerate().filter_map(|(n, record)| {
                let Record::Event(env) = record else {
                    return None;
                };
                let position = place(n);
                (position.n >= read.from).then(|| (position, Arc::clone(env)))
            });
            let fed = loom_core::Fed {
                token: read.token,
                events: all.collect(),
                next: place(log.len()).n,
                at_end: true,
            };
            node.core.fed(fed, at);
        }
        for session in node.core.take_woken() {
            node.hub.woken(session, &mut node.core, at);
        }
    }
}

// requirement: DUR-NAK-BOUNDED
#[test]
fn an_event_that_is_to_wait_longer_than_may_be_is_given_again_after_the_usual_pause() {
    let mut node = Node::new();
    let mut log = Vec::new();
    let opened = loom_core::Opened {
        partition: 1,
        epoch: 1,
        oldest: 0,
        kept: true,
        how: loom_core::Durability {
            filters: vec!["n.>".to_owned()],
            ..loom_core::Durability::default()
        },
    };
    let folded = loom_core::Partition::new(&loom_core::Limits::default());
    let at = node.at();
    node.core
        .open_partition("default", opened, folded, at)
        .unwrap();
    node.connect(1, hello(1, 1));
    let hears = Body::Subscribe(v1::Subscribe {
        handle: 1,
        filters: vec!["loom.error.>".to_owned()],
        ..v1::Subscribe::default()
    });
    let agent = Body::Register(v1::Register {
        handle: 2,
        name: "hears".to_owned(),
        filters: vec!["n.>".to_owned()],
        concurrency: 1,
        info: Bytes::from_static(b"{}"),
        ..v1::Register::default()
    });
    node.gets(1, numbered(1, vec![hears, agent]));
    serve(&mut node, &mut log);
    node.gets(1, numbered(3, vec![publish(3)]));
    // It is logged, its turn is, and then it comes.
    let turn = (0..3).find_map(|_| {
        serve(&mut node, &mut log);
        node.sends(1).into_iter().find_map(|body| match body {
            Body::Turn(it) => it.target,
            _ => None,
        })
    });
    let lease = turn.expect("its turn").lease;
    let nak = Body::Nak(v1::Nak {
        lease,
        after_ms: Some(u64::MAX),
    });
    let ack = Body::Ack(v1::Ack {
        leases: vec![lease],
        goes_on: false,
    });
    node.gets(1, numbered(4, vec![nak, ack]));
    let most = node.at().wall_ms + loom_core::Limits::default().redeliver_cap_seconds * 1_000;
    serve(&mut node, &mut log);
    let waits: Vec<_> = log
        .iter()
        .filter_map(|record| match record {
            Record::Waits(it) => Some(it.until_ms <= most),
            _ => None,
        })
        .collect();
    assert_eq!(waits, [true]);
    let told = node.sends(1).into_iter().find_map(|body| match body {
        Body::Deliver(it) => it.event?.payload,
        _ => None,
    });
    let report: serde_json::Value = serde_json::from_slice(&told.expect("a report").data).unwrap();
    assert_eq!(
        (&report["code"], &report["field"], &report["limit"]),
        (
            &"INVALID_PARAMS".into(),
            &"after_ms".into(),
            &"ttl_ms_max".into()
        )
    );
}
