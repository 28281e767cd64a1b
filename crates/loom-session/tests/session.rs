//! A node and its clients over a wire that exists in memory: every packet is encoded and decoded.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what it expects by failing"
)]

mod wire;

use bytes::Bytes;
use loom_core::{Code, Notice, Qos};
use loom_proto::v1::{self, frame::Body};
use loom_session::{Invocation, LinkState, Note, Sending, Sent};

use wire::{World, agent, event};

fn readies(notes: &[Note]) -> usize {
    let ready = |note: &&Note| matches!(note, Note::Core(Notice::Ready(_)));
    notes.iter().filter(ready).count()
}

// requirement: SESSION-EVENTS
#[test]
fn an_event_of_one_client_reaches_the_agent_of_another_and_both_know_it() {
    let mut world = World::new();
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let handle = world.clients[bob]
        .machine
        .enrol(|n| agent(n, "hears", &["greeting.>"]))
        .unwrap();
    world.settle();
    let at = world.at();
    let sent = world.clients[alice]
        .machine
        .offer(event("greeting.hello", "\"hi\""), at)
        .unwrap();
    let Sent::Waits(ticket) = sent else {
        panic!("a batched event waits for its node")
    };
    world.settle();
    let told = world.clients[alice].machine.drain(64);
    let receipt = told.iter().find_map(|note| match note {
        Note::Core(Notice::Accepted(known, receipt)) if *known == ticket => Some(receipt.clone()),
        _ => None,
    });
    assert_eq!(receipt.expect("accepted").matched, 1);
    let notes = world.clients[bob].machine.drain(64);
    assert_eq!(readies(&notes), 1);
    let taken = world.clients[bob]
        .machine
        .take(handle, None, at)
        .unwrap()
        .expect("an event");
    assert_eq!(taken.envelope.topic.as_ref(), "greeting.hello");
    assert_eq!(taken.envelope.payload.as_ref(), b"\"hi\"");
    assert_eq!(taken.envelope.origin.sender.as_ref(), "default/alice");
    assert!(
        world.clients[bob]
            .machine
            .take(handle, taken.lease, at)
            .unwrap()
            .is_none()
    );
    world.settle();
    assert!(world.audit_is_balanced());
    assert_eq!(world.leased(), 0);
}

// requirement: SESSION-CALLS
#[test]
fn a_call_goes_to_a_provider_elsewhere_and_its_result_comes_back_once() {
    let mut world = World::new();
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let handle = world.clients[bob]
        .machine
        .enrol(|n| wire::provider(n, "sum"))
        .unwrap();
    world.settle();
    let at = world.at();
    let call = world.clients[alice]
        .machine
        .call(&wire::invocation("sum", "[1,2]"), at)
        .unwrap();
    world.settle();
    world.clients[bob].machine.drain(64);
    let work = world.clients[bob]
        .machine
        .take(handle, None, at)
        .unwrap()
        .expect("work");
    assert_eq!(work.envelope.payload.as_ref(), b"[1,2]");
    assert!(
        world.clients[bob]
            .machine
            .result(work.lease.unwrap(), Bytes::from_static(b"3"))
            .unwrap()
    );
    world.settle();
    let notes = world.clients[alice].machine.drain(64);
    let ends: Vec<_> = notes
        .iter()
        .filter_map(|note| match note {
            Note::Core(Notice::Outcome(known, code, body)) if *known == call => {
                Some((*code, body.to_vec()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(ends, [(None, b"3".to_vec())]);
}

// requirement: STREAM-CREDIT
#[test]
fn a_provider_elsewhere_learns_of_every_grant_of_its_reader() {
    let mut world = World::new();
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let handle = world.clients[bob]
        .machine
        .enrol(|n| wire::provider(n, "count"))
        .unwrap();
    world.settle();
    let at = world.at();
    let invocation = Invocation {
        credit: 2,
        ..wire::invocation("count", "{}")
    };
    let call = world.clients[alice].machine.call(&invocation, at).unwrap();
    world.settle();
    world.clients[bob].machine.drain(64);
    let work = world.clients[bob]
        .machine
        .take(handle, None, at)
        .unwrap()
        .expect("work");
    let lease = work.lease.unwrap();
    let sent = |world: &mut World| {
        let chunk = Bytes::from_static(b"1");
        world.clients[bob].machine.chunk(lease, chunk).unwrap()
    };
    // It stops by itself where its credit ends: the node never sees it wait.
    assert_eq!(
        [sent(&mut world), sent(&mut world), sent(&mut world)],
        [true, true, false]
    );
    world.settle();
    world.clients[alice].machine.grant(call, 3);
    world.settle();
    assert_eq!([sent(&mut world), sent(&mut world)], [true, false]);
}

// requirement: SESSION-CUT
#[test]
fn what_is_cut_anywhere_comes_once_and_in_order() {
    for seed in 0..200 {
        let mut world = World::new();
        world.cutting(seed, 6);
        let (alice, bob) = (world.client("alice"), world.client("bob"));
        let handle = world.clients[bob]
            .machine
            .enrol(|n| agent(n, "hears", &["n.>"]))
            .unwrap();
        world.settle();
        let mut came = Vec::new();
        let mut accepted = 0;
        for n in 0..120 {
            let at = world.at();
            let mut sending = event("n.one", &n.to_string());
            // One thread: one lane, so that the order can be seen.
            sending.options = Some(Box::new(loom_core::Options {
                key: Some("k".into()),
                ..Default::default()
            }));
            world.clients[alice].machine.offer(sending, at).unwrap();
            if n % 7 == 0 {
                world.some_steps();
            }
            world.take_all(bob, handle, &mut came);
            accepted += world.accepted(alice);
        }
        world.whole();
        for _ in 0..400 {
            world.settle();
            world.take_all(bob, handle, &mut came);
            accepted += world.accepted(alice);
        }
        let expected: Vec<String> = (0..120).map(|n| n.to_string()).collect();
        assert_eq!(came, expected, "seed {seed}");
        assert_eq!(accepted, 120, "seed {seed}");
        assert!(world.audit_is_balanced());
        assert_eq!(world.leased(), 0, "seed {seed}");
    }
}

// requirement: SESSION-LARGE
#[test]
fn a_large_payload_goes_in_parts_and_what_is_small_passes_it() {
    let mut world = World::new();
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let handle = world.clients[bob]
        .machine
        .enrol(|n| agent(n, "hears", &["big"]))
        .unwrap();
    world.settle();
    let at = world.at();
    let large = format!("\"{}\"", "x".repeat(900_000));
    world.clients[alice]
        .machine
        .offer(event("big", &large), at)
        .unwrap();
    world.settle();
    world.clients[bob].machine.drain(64);
    let taken = world.clients[bob]
        .machine
        .take(handle, None, at)
        .unwrap()
        .expect("an event");
    assert_eq!(taken.envelope.payload.len(), large.len());
    assert!(
        world.largest <= loom_session::PACKET_BYTES,
        "{}",
        world.largest
    );
}

// requirement: SESSION-FENCED
#[test]
fn a_newer_attachment_of_a_session_fences_the_older_and_a_late_end_of_that_hurts_nobody() {
    let mut world = World::new();
    let alice = world.client("alice");
    world.settle();
    let old = world.clients[alice].conn.unwrap();
    world.reattach(alice);
    world.settle();
    assert_eq!(world.hub.counts().fenced, 1);
    // The driver of the old connection notices its end only now.
    world.hub_disconnected(old);
    assert_eq!(world.clients[alice].machine.state(), &LinkState::Up);
    assert!(world.hub.sessions()[0].is_connected);
}

// requirement: SESSION-KEPT
#[test]
fn a_session_that_does_not_come_back_in_time_is_released_with_all_its_state() {
    let mut world = World::new();
    let bob = world.client("bob");
    world.clients[bob]
        .machine
        .enrol(|n| agent(n, "hears", &["n.>"]))
        .unwrap();
    world.settle();
    world.unplug(bob);
    world.pass(59_000);
    assert_eq!(world.hub.sessions().len(), 1);
    world.pass(2_000);
    assert_eq!(world.hub.sessions().len(), 0);
    assert_eq!(world.hub.counts().expired, 1);
    assert!(
        world
            .core
            .directory("default", loom_core::DirectoryKind::Agent)
            .is_empty()
    );
}

// requirement: SESSION-AGAIN
#[test]
fn a_client_whose_session_is_gone_registers_again_by_itself_and_says_so() {
    let mut world = World::new();
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let handle = world.clients[bob]
        .machine
        .enrol(|n| agent(n, "hears", &["n.>"]))
        .unwrap();
    world.settle();
    world.restart_node();
    world.settle();
    let notes = world.clients[bob].machine.drain(64);
    let links: Vec<_> = notes
        .iter()
        .filter_map(|note| match note {
            Note::Link(change) => Some((change.state.clone(), change.resumed)),
            _ => None,
        })
        .collect();
    assert_eq!(links.last(), Some(&(LinkState::Up, false)));
    let at = world.at();
    world.clients[alice]
        .machine
        .offer(event("n.one", "1"), at)
        .unwrap();
    world.settle();
    let taken = world.clients[bob].machine.take(handle, None, at).unwrap();
    assert!(taken.is_some());
}

// requirement: SESSION-SILENT
#[test]
fn a_connection_that_is_half_open_is_found_in_15_seconds_by_both_sides() {
    let mut world = World::new();
    let alice = world.client("alice");
    world.settle();
    world.mute(alice);
    world.pass(15_100);
    assert_eq!(world.hub.counts().silent, 1);
    assert!(
        world.clients[alice].was_lost,
        "the client has found it, too"
    );
}

// requirement: SESSION-TOKEN
#[test]
fn without_a_credential_that_counts_nobody_attaches_and_a_revoked_one_ends_its_sessions() {
    let mut world = World::new();
    let eve = world.client_with("eve", "loom_wrong");
    world.settle();
    let LinkState::Refused(error) = world.clients[eve].machine.state() else {
        panic!("refused")
    };
    assert_eq!(error.code, Code::Unauthenticated);
    let alice = world.client("alice");
    world.settle();
    assert_eq!(world.clients[alice].machine.state(), &LinkState::Up);
    world.revoke();
    world.settle();
    assert!(matches!(
        world.clients[alice].machine.state(),
        LinkState::Refused(_)
    ));
    assert_eq!(world.hub.sessions().len(), 0);
}

// requirement: SESSION-FULL
#[test]
fn a_client_keeps_a_bounded_amount_for_a_node_that_is_away_and_realtime_keeps_the_newest() {
    let mut world = World::new();
    let alice = world.client("alice");
    world.settle();
    world.unplug(alice);
    let at = world.at();
    let client = &mut world.clients[alice].machine;
    let mut refused = None;
    for n in 0..20_000 {
        if let Err(error) = client.offer(event("n.one", &n.to_string()), at) {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("a full client says so");
    assert_eq!(
        (error.code, error.limit),
        (Code::Exhausted, Some("session_frames"))
    );
    let realtime = Sending {
        qos: Qos::Realtime,
        ..event("n.one", "0")
    };
    assert_eq!(
        client.offer(realtime, at).unwrap_err().code,
        Code::Exhausted
    );
}

#[test]
fn an_invocation_quotes_what_it_follows_from() {
    let call = Invocation {
        key: Some("k"),
        ..wire::invocation("sum", "1")
    };
    assert_eq!(call.key, Some("k"));
    assert!(matches!(
        agent(1, "a", &[]),
        Body::Register(v1::Register { handle: 1, .. })
    ));
}

// requirement: SESSION-LARGE
#[test]
fn what_is_too_large_for_any_node_is_refused_before_it_is_sent_and_the_session_goes_on() {
    let mut world = World::new();
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let handle = world.clients[bob]
        .machine
        .enrol(|n| wire::provider(n, "sum"))
        .unwrap();
    world.settle();
    let at = world.at();
    let large = "1".repeat(9 << 20);
    let refused = [
        world.clients[alice]
            .machine
            .offer(event("big", &large), at)
            .err(),
        world.clients[alice]
            .machine
            .call(&wire::invocation("sum", &large), at)
            .err(),
    ];
    for error in refused {
        let error = error.expect("it is refused");
        assert_eq!(
            (error.code, error.limit),
            (Code::InvalidParams, Some("kept_payload_bytes"))
        );
    }
    let call = world.clients[alice]
        .machine
        .call(&wire::invocation("sum", "1"), at)
        .unwrap();
    world.settle();
    let work = world.clients[bob]
        .machine
        .take(handle, None, at)
        .unwrap()
        .expect("work");
    let lease = work.lease.unwrap();
    let machine = &mut world.clients[bob].machine;
    assert!(machine.result(lease, Bytes::from(large)).is_err());
    assert!(machine.fail(lease, Code::InvalidParams, b"{}").unwrap());
    world.settle();
    let notes = world.clients[alice].machine.drain(64);
    let ends = |note: &Note| matches!(note, Note::Core(Notice::Outcome(known, Some(Code::InvalidParams), _)) if *known == call);
    assert!(notes.iter().any(ends));
    assert_eq!(world.clients[bob].machine.state(), &LinkState::Up);
}

// requirement: HEALTH-RESTARTING
#[test]
fn an_agent_that_restarts_takes_nothing_that_waits_at_its_client_until_it_is_up() {
    let mut world = World::new();
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let machine = &mut world.clients[bob].machine;
    let handle = machine.enrol(|n| agent(n, "hears", &["n.>"])).unwrap();
    let status = |status| {
        Body::Status(v1::Status {
            handle: handle.0,
            status,
        })
    };
    world.settle();
    world.clients[bob].machine.tell(handle, status(1)).unwrap();
    let at = world.at();
    world.clients[alice]
        .machine
        .offer(event("n.one", "1"), at)
        .unwrap();
    world.settle();
    let machine = &mut world.clients[bob].machine;
    machine.drain(64);
    assert!(machine.take(handle, None, at).unwrap().is_none());
    machine.tell(handle, status(0)).unwrap();
    world.settle();
    let machine = &mut world.clients[bob].machine;
    assert_eq!(readies(&machine.drain(64)), 1);
    assert!(machine.take(handle, None, at).unwrap().is_some());
}
