//! Sessions over every carrier, with a real engine and real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test says what it expects by failing, and has a clock of its own"
)]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Peer, World, local};
use loom_bridge::{Address, ServeConfig, Target, Way};
use loom_core::{Code, Notice};
use loom_session::{Invocation, Note};

fn sum(capability: &str) -> Invocation<'_> {
    Invocation {
        sender: 0,
        turn: None,
        capability,
        version: None,
        payload: Bytes::from_static(b"[1,2]"),
        timeout_ms: 10_000,
        key: None,
        credit: 0,
    }
}

fn carries_events_and_calls(first: u8, target: &dyn Fn() -> Target) {
    let mut alice = Peer::new(first, target());
    let mut bob = Peer::new(first + 1, target());
    assert!(!alice.up());
    assert!(!bob.up());
    let hears = bob.register(&format!("hears{first}"), &format!("greeting{first}.>"));
    let ticket = alice.publish(&format!("greeting{first}.hello"), "\"hi\"");
    assert_eq!(alice.accepted(ticket), 1);
    assert_eq!(bob.hear(hears), "\"hi\"");

    // Sessions of clients that went are kept: each has names of its own.
    let name = format!("sum{first}");
    let sums = bob.provide(&name);
    let call = alice
        .act(|client, at| client.call(&sum(&name), at))
        .unwrap();
    let work = bob.take(sums);
    assert_eq!(work.envelope.payload.as_ref(), b"[1,2]");
    let lease = work.lease.unwrap();
    assert!(
        bob.act(|client, _| client.result(lease, "3".into()))
            .unwrap()
    );
    let result = alice.wait("the result", |note| match note {
        Note::Core(Notice::Outcome(known, None, body)) if *known == call => Some(body.to_vec()),
        _ => None,
    });
    assert_eq!(result, b"3");

    // Data that no packet holds goes in parts.
    let large = Bytes::from(format!("\"{}\"", "x".repeat(900_000)));
    let ticket = alice.publish(&format!("greeting{first}.long"), large.clone());
    alice.accepted(ticket);
    let hears_long = bob.take(hears);
    assert!(*hears_long.envelope.payload == *large);
}

// requirement: BRIDGE-CARRIERS
#[test]
fn grpc_carries_events_and_calls() {
    let world = World::new(&local());
    carries_events_and_calls(1, &|| world.target(Way::Grpc, None));
}

// requirement: BRIDGE-CARRIERS
#[test]
fn a_websocket_carries_events_and_calls() {
    let world = World::new(&local());
    carries_events_and_calls(1, &|| world.target(Way::WebSocket, None));
}

// requirement: BRIDGE-CARRIERS
#[test]
fn a_unix_socket_carries_events_and_calls_and_only_its_owner_may_use_it() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("loom.sock");
    let config = ServeConfig {
        unix: vec![path.clone()],
        ..ServeConfig::default()
    };
    let mut world = World::new(&config);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (first, way) in [(1, Way::Grpc), (3, Way::WebSocket)] {
        carries_events_and_calls(first, &|| Target {
            way,
            address: Address::Unix(path.clone()),
            tls: None,
        });
    }
    assert!(world.serving.stop());
    assert!(!path.exists());
}

// requirement: BRIDGE-CARRIERS
#[test]
fn a_thousand_events_come_in_order_over_each_carrier() {
    let world = World::new(&local());
    for (way, at) in [(Way::Grpc, 1), (Way::WebSocket, 3)] {
        let mut alice = Peer::new(at, world.target(way, None));
        let mut bob = Peer::new(at + 1, world.target(way, None));
        let topic = format!("n{at}.one");
        let hears = bob.register("hears", &topic);
        alice.up();
        for n in 0..1_000 {
            let sending = loom_session::Sending {
                sender: 0,
                turn: None,
                topic: &topic,
                payload: Bytes::from(n.to_string()),
                qos: loom_core::Qos::Batched,
                options: Some(Box::new(loom_core::Options {
                    key: Some("k".into()),
                    ..Default::default()
                })),
                ack: None,
            };
            alice.act(|client, at| client.offer(sending, at)).unwrap();
        }
        for n in 0..1_000 {
            assert_eq!(bob.hear(hears), n.to_string());
        }
    }
}

// requirement: BRIDGE-RESUME
#[test]
fn a_session_whose_connection_is_cut_goes_on_where_it_was() {
    for way in [Way::Grpc, Way::WebSocket] {
        let config = ServeConfig {
            hosts: vec!["127.0.0.1".to_owned()],
            ..local()
        };
        let world = World::new(&config);
        let proxy = common::Proxy::new(world.address());
        let mut alice = Peer::new(1, proxy.target(way));
        let mut bob = Peer::new(2, world.target(way, None));
        alice.up();
        let hears = alice.register("hears", "n.>");
        for round in 0..5 {
            proxy.cut();
            alice.lost();
            let ticket = bob.publish("n.one", round.to_string());
            assert_eq!(bob.accepted(ticket), 1);
            assert!(alice.up(), "it is the same session");
            assert_eq!(alice.hear(hears), round.to_string());
        }
        assert_eq!(world.serving.stats().sessions.resumed, 5);
    }
}

// requirement: BRIDGE-RESUME
#[test]
fn a_client_whose_node_has_stopped_comes_back_to_the_next_one() {
    let mut world = World::new(&local());
    let address = world.address();
    let mut alice = Peer::new(1, world.target(Way::Grpc, None));
    alice.up();
    assert!(world.serving.stop());
    alice.lost();
    let config = ServeConfig {
        listen: vec![address],
        ..ServeConfig::default()
    };
    let mut hub = common::hub();
    hub.boot = [8; 16];
    let _next = World::with(&config, hub);
    assert!(!alice.up(), "it is a new session");
}

// requirement: BRIDGE-CREDENTIALS
#[test]
fn who_has_no_credential_is_refused_and_not_tried_again() {
    let world = World::new(&local());
    for way in [Way::Grpc, Way::WebSocket] {
        let mut stranger = Peer::with(1, world.target(way, None), "loom_wrong", "");
        assert_eq!(stranger.refused().code, Code::Unauthenticated);
    }
    let broken = Peer::with(2, world.target(Way::Grpc, None), common::TOKEN, "broken");
    let begun = std::time::Instant::now();
    while world.serving.stats().sessions.refused < 3 {
        assert!(begun.elapsed() < common::PATIENCE);
        std::thread::yield_now();
    }
    assert!(!matches!(
        broken.client.lock().unwrap().state(),
        loom_session::LinkState::Up
    ));
    broken.act(|client, _| client.close());
}

// requirement: BRIDGE-CREDENTIALS
#[test]
fn a_revoked_credential_ends_its_sessions_at_once() {
    let world = World::new(&local());
    let mut alice = Peer::new(1, world.target(Way::WebSocket, None));
    alice.up();
    world.serving.allow(common::authority(&[])).unwrap();
    assert_eq!(alice.refused().code, Code::Unauthenticated);
    assert!(world.serving.sessions().is_empty());
}

// requirement: BRIDGE-DRAIN
#[test]
fn a_drain_waits_for_what_is_under_way_and_lets_nobody_in() {
    let world = World::new(&local());
    let mut alice = Peer::new(1, world.target(Way::Grpc, None));
    let mut bob = Peer::new(2, world.target(Way::Grpc, None));
    let sums = bob.provide("sum");
    alice.up();
    let call = alice
        .act(|client, at| client.call(&sum("sum"), at))
        .unwrap();
    let lease = bob.take(sums).lease.unwrap();
    assert!(!world.serving.drain(Duration::from_millis(50)).unwrap());
    assert!(std::net::TcpStream::connect(world.address()).is_err());
    bob.act(|client, _| client.result(lease, "3".into()))
        .unwrap();
    alice.wait("the result", |note| match note {
        Note::Core(Notice::Outcome(known, None, _)) if *known == call => Some(()),
        _ => None,
    });
    assert!(world.serving.drain(common::PATIENCE).unwrap());
}

// requirement: BRIDGE-STOP
#[test]
fn a_closed_client_tells_its_node_and_leaves_nothing() {
    let world = World::new(&local());
    for way in [Way::Grpc, Way::WebSocket] {
        let mut alice = Peer::new(1, world.target(way, None));
        alice.up();
        alice.act(|client, _| client.close());
        world.until("it is gone", |stats| stats.connections == 0);
        assert!(world.serving.sessions().is_empty());
        assert!(alice.dialing.stop(common::PATIENCE));
    }
}

// requirement: BRIDGE-STOP
#[test]
fn many_clients_share_one_thread_and_come_and_go() {
    let world = World::new(&local());
    let mut peers: Vec<Peer> = (1..=60)
        .map(|n| {
            let way = if n % 2 == 0 {
                Way::Grpc
            } else {
                Way::WebSocket
            };
            Peer::new(n, world.target(way, None))
        })
        .collect();
    for peer in &mut peers {
        peer.up();
    }
    let stats = world.serving.stats();
    assert_eq!((stats.connections, stats.strangers), (60, 0));
    for peer in &peers {
        assert!(peer.dialing.stop(common::PATIENCE));
    }
    world.until("all are gone", |stats| stats.connections == 0);
    world.until("none is connected", |_| {
        let sessions = world.serving.sessions();
        sessions.len() == 60 && sessions.iter().all(|session| !session.is_connected)
    });
}
