//! Durable topics: what the log is given, and what follows when it answers.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod common;

use common::{World, done};
use loom_core::{
    Durability, Level, Limits, Offer, Opened, Options, Partition, Position, Publish, Qos, Record,
    SessionId, Ticket,
};

fn opened() -> Opened {
    Opened {
        partition: 1,
        epoch: 1,
        oldest: 0,
        kept: true,
        how: Durability {
            filters: vec!["d.>".to_owned()],
            ..Durability::default()
        },
    }
}

fn position(n: u64) -> Position {
    Position {
        partition: 1,
        epoch: 1,
        n,
    }
}

fn world() -> World {
    let mut w = World::new();
    let folded = Partition::new(&Limits::default());
    let at = w.at;
    w.core
        .open_partition("default", opened(), folded, at)
        .unwrap();
    w
}

fn logging(w: &mut World, session: SessionId, publish: Publish<'_>) -> Ticket {
    match w.offer(session, publish).unwrap() {
        Offer::Logging(ticket) => ticket,
        other => panic!("not logged: {other:?}"),
    }
}

fn durable(w: &mut World, session: SessionId, topic: &str) -> Ticket {
    let publish = w.publish(session, topic);
    logging(w, session, publish)
}

// requirement: TICKETS-ORDERED, DUR-LEVEL
#[test]
fn a_durable_event_is_answered_when_the_log_has_it_in_the_order_of_the_tickets() {
    let mut w = world();
    let s = w.session();
    let (first, second) = (durable(&mut w, s, "d.a"), durable(&mut w, s, "d.a"));
    let out = w.core.take_records();
    assert!(!w.core.has_records());
    let sent: Vec<_> = out.iter().map(|o| (o.ticket, o.level)).collect();
    assert_eq!(
        sent,
        [(Some(first), Level::Disk), (Some(second), Level::Disk)]
    );
    assert!(matches!(out[0].batch[0], Record::Event(_)));
    w.core.logged(second, position(2), w.at);
    assert!(w.seen(s).accepted.is_empty(), "the first is not answered");
    w.core.logged(first, position(1), w.at);
    let accepted = w.seen(s).accepted;
    let tickets: Vec<_> = accepted.iter().map(|(ticket, _)| *ticket).collect();
    assert_eq!(tickets, [first, second]);
    assert_eq!(accepted[1].1.position, Some(position(2)));
    assert_eq!(accepted[1].1.level, Level::Disk);
}

// requirement: DUR-LEVEL
#[test]
fn what_is_durable_is_said_by_the_topic_or_by_the_publisher() {
    let mut w = world();
    let s = w.session();
    let plain = w.publish(s, "plain");
    assert_eq!(done(w.offer(s, plain).unwrap()).level, Level::Accepted);
    let realtime = Publish {
        qos: Qos::Realtime,
        ..w.publish(s, "d.a")
    };
    assert!(w.offer(s, realtime).is_err(), "realtime is never durable");
    let asked = Publish {
        ack: Some(Level::Os),
        ..w.publish(s, "plain")
    };
    let ticket = logging(&mut w, s, asked);
    assert_eq!(w.core.take_records()[0].level, Level::Os);
    let eager = Publish {
        eager: true,
        ..w.publish(s, "d.a")
    };
    assert!(matches!(w.offer(s, eager).unwrap(), Offer::NoRoom));
    assert!(!w.core.has_records());
    let id = Options {
        dedup: Some("one".to_owned()),
        ..Options::default()
    };
    let named = Publish {
        options: Some(Box::new(id)),
        ..w.publish(s, "plain")
    };
    assert_eq!(w.offer(s, named).unwrap_err().field.as_deref(), Some("id"));
    w.core.logged(ticket, position(1), w.at);
}
