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

// requirement: COLLAB-NO-LEAK
#[test]
fn a_stream_that_is_left_leaves_nothing_at_the_node() {
    let mut world = World::new();
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let handle = world.clients[bob]
        .machine
        .enrol(|n| {
            Body::Subscribe(v1::Subscribe {
                handle: n,
                filters: vec!["greeting.>".into()],
                ..Default::default()
            })
        })
        .unwrap();
    world.settle();
    let at = world.at();
    for _ in 0..3 {
        let sent = event("greeting.hello", "1");
        world.clients[alice].machine.offer(sent, at).unwrap();
    }
    world.settle();
    let taken = world.clients[bob].machine.take(handle, None, at).unwrap();
    assert!(taken.is_some());
    world.clients[bob].machine.remove(handle);
    world.settle();
    assert!(world.audit_is_balanced());
    assert_eq!(world.leased(), 0);
    assert_eq!(world.clients[bob].machine.open(), (0, 0));
}

// requirement: CALL-CANCEL
#[test]
fn a_call_that_is_cancelled_before_its_provider_begins_is_never_begun() {
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
    world.clients[alice].machine.cancel(call);
    world.settle();
    let taken = world.clients[bob].machine.take(handle, None, at).unwrap();
    assert!(taken.is_none());
    assert_eq!(world.leased(), 0);
    assert_eq!(world.clients[bob].machine.open(), (0, 0));
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

// requirement: HEALTH-QUARANTINED
#[test]
fn what_is_on_its_way_to_an_agent_in_quarantine_is_declined_and_not_given_out_later() {
    let mut world = World::new();
    let (bob, alice) = (world.client("bob"), world.client("alice"));
    let machine = &mut world.clients[bob].machine;
    let handle = machine.enrol(|n| agent(n, "hears", &["n.>"])).unwrap();
    let status = |status| {
        Body::Status(v1::Status {
            handle: handle.0,
            status,
        })
    };
    world.settle();
    let at = world.at();
    let asked = world.clients[alice]
        .machine
        .request(event("n.one", "1"), (10_000, 0, false), at)
        .unwrap();
    world.some_steps();
    assert_eq!(world.leased(), 1); // it left the node before that heard of the quarantine
    assert_eq!(world.clients[bob].machine.open().1, 0);
    world.clients[bob].machine.tell(handle, status(2)).unwrap();
    world.settle();
    let notes = world.clients[alice].machine.drain(64);
    let ends =
        |note: &Note| matches!(note, Note::Core(Notice::Outcome(call, ..)) if *call == asked);
    assert!(notes.iter().any(ends));
    world.clients[bob].machine.tell(handle, status(0)).unwrap();
    world.settle();
    let machine = &mut world.clients[bob].machine;
    assert!(machine.take(handle, None, at).unwrap().is_none());
    assert_eq!(world.leased(), 0);
}

/// What an agent of the world has heard.
fn heard(world: &mut World, client: usize, handle: loom_core::Handle) -> Vec<String> {
    let mut came = Vec::new();
    world.take_all(client, handle, &mut came);
    world.settle();
    came
}

// requirement: SESSION-FLUSH
#[test]
fn a_client_that_is_closed_is_told_that_its_last_frames_were_taken() {
    let mut world = World::new();
    let (bob, alice) = (world.client("bob"), world.client("alice"));
    let machine = &mut world.clients[bob].machine;
    let handle = machine.enrol(|n| agent(n, "hears", &["n.>"])).unwrap();
    world.settle();
    let at = world.at();
    let machine = &mut world.clients[alice].machine;
    machine.offer(event("n.one", "1"), at).unwrap();
    machine.close();
    assert_eq!((machine.unsaid(), machine.is_over()), (1, false));
    world.settle();
    let machine = &world.clients[alice].machine;
    assert_eq!((machine.unsaid(), machine.is_over()), (0, true));
    assert!(machine.is_flushed());
    assert_eq!(heard(&mut world, bob, handle), ["1"]);
    assert_eq!(world.hub.sessions().len(), 1);
}

// requirement: SESSION-FLUSH
#[test]
fn what_waits_for_credit_is_said_before_a_session_ends() {
    let mut world = World::new();
    let (bob, alice) = (world.client("bob"), world.client("alice"));
    let machine = &mut world.clients[bob].machine;
    let handle = machine.enrol(|n| agent(n, "hears", &["n.>"])).unwrap();
    world.settle();
    let at = world.at();
    let most = loom_session::Limits::default().window_frames;
    let machine = &mut world.clients[alice].machine;
    for n in 0..most + 100 {
        machine.offer(event("n.one", &n.to_string()), at).unwrap();
    }
    machine.close();
    let mut came = Vec::new();
    for _ in 0..50 {
        world.settle();
        came.extend(heard(&mut world, bob, handle));
    }
    let all: Vec<String> = (0..most + 100).map(|n| n.to_string()).collect();
    assert_eq!(came, all);
    assert_eq!(world.clients[alice].machine.unsaid(), 0);
}

/// How much each client has not said, and whether it is over.
fn ends(world: &World) -> Vec<(usize, bool)> {
    let all = world.clients.iter();
    all.map(|end| (end.machine.unsaid(), end.machine.is_over()))
        .collect()
}

// requirement: SESSION-FLUSH
#[test]
fn a_client_that_is_closed_while_its_link_is_down_dials_again_for_what_is_left() {
    let mut world = World::new();
    let (bob, alice) = (world.client("bob"), world.client("alice"));
    let carol = world.client("carol");
    let machine = &mut world.clients[bob].machine;
    let handle = machine.enrol(|n| agent(n, "hears", &["n.>"])).unwrap();
    world.settle();
    let at = world.at();
    let asked = world.clients[carol]
        .machine
        .request(event("n.one", "1"), (60_000, 0, false), at)
        .unwrap();
    world.settle();
    let machine = &mut world.clients[bob].machine;
    let taken = machine.take(handle, None, at).unwrap().unwrap();
    world.unplug(alice);
    world.unplug(bob);
    let machine = &mut world.clients[alice].machine;
    machine.offer(event("n.two", "2"), at).unwrap();
    machine.close();
    let machine = &mut world.clients[bob].machine;
    let lease = taken.lease.unwrap();
    assert!(
        machine
            .reply(lease, Bytes::from_static(b"2"), None)
            .unwrap()
    );
    machine.take(handle, Some(lease), at).unwrap();
    machine.close();
    assert_eq!((machine.unsaid(), machine.is_over()), (2, false));
    assert!(machine.take(handle, None, at).unwrap().is_none());
    for client in [alice, bob] {
        world.plug(client);
    }
    world.settle();
    assert_eq!(ends(&world), [(0, true), (0, true), (0, false)]);
    assert_eq!(world.hub.sessions().len(), 1);
    assert!(world.audit_is_balanced());
    let notes = world.clients[carol].machine.drain(64);
    let answers =
        |note: &Note| matches!(note, Note::Core(Notice::Answer(call, _)) if *call == asked);
    assert!(notes.iter().any(answers));
}

// requirement: SESSION-FLUSH
#[test]
fn a_client_that_is_closed_says_how_much_a_node_that_forgot_it_was_not_told() {
    let mut world = World::new();
    let (bob, alice) = (world.client("bob"), world.client("alice"));
    let machine = &mut world.clients[bob].machine;
    let handle = machine.enrol(|n| agent(n, "hears", &["n.>"])).unwrap();
    let machine = &mut world.clients[alice].machine;
    let speaks = machine.enrol(|n| agent(n, "speaks", &["n.>"])).unwrap();
    world.settle();
    let at = world.at();
    world.unplug(alice);
    let machine = &mut world.clients[alice].machine;
    machine
        .report(None, |lease| v1::Report {
            sender: speaks.0,
            lease,
            level: "info".to_owned(),
            ..v1::Report::default()
        })
        .unwrap();
    let sending = Sending {
        sender: speaks.0,
        ..event("n.one", "1")
    };
    machine.offer(sending, at).unwrap();
    machine.close();
    world.restart_node();
    world.plug(alice);
    world.settle();
    let machine = &world.clients[alice].machine;
    assert_eq!((machine.unsaid(), machine.is_over()), (1, true)); // the report; the event was never sent before
    assert_eq!(heard(&mut world, bob, handle), ["1"]);
    assert_eq!(world.hub.sessions().len(), 1);
}

// requirement: SESSION-UNSAFE-ONCE
#[test]
fn a_call_with_a_key_is_not_begun_again_by_a_node_that_cannot_remember_it() {
    for keeps_log in [false, true] {
        let mut world = World::with_log(keeps_log);
        let (bob, alice) = (world.client("bob"), world.client("alice"));
        let machine = &mut world.clients[bob].machine;
        let handle = machine.enrol(|n| wire::provider(n, "buy")).unwrap();
        world.settle();
        let at = world.at();
        let call = Invocation {
            key: Some("order-1"),
            ..wire::invocation("buy", "1")
        };
        let call = world.clients[alice].machine.call(&call, at).unwrap();
        world.settle();
        let machine = &mut world.clients[bob].machine;
        assert!(machine.take(handle, None, at).unwrap().is_some());
        world.restart_node();
        world.settle();
        let is_again = world.clients[bob].machine.take(handle, None, at).unwrap();
        assert_eq!(is_again.is_some(), keeps_log);
        let notes = world.clients[alice].machine.drain(64);
        let ends = |note: &Note| matches!(note, Note::Core(Notice::Outcome(known, Some(Code::Indeterminate), _)) if *known == call);
        assert_eq!(notes.iter().any(ends), !keeps_log);
    }
}
