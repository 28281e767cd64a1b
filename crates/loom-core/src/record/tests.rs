use super::{Body, Id, Intent, Progress, Record, Sent};
use crate::arena::{CallId, TopicId};
use crate::envelope::{Envelope, Extra, Origin, Position, Qos};
use crate::error::Code;
use crate::ident::Ident;
use std::sync::Arc;

const AT: Position = Position {
    partition: 1,
    epoch: 2,
    n: 3,
};

fn envelope() -> Envelope {
    Envelope {
        id: u128::MAX - 1,
        topic: "question.asked".into(),
        payload: b"{\"text\":1}".as_slice().into(),
        origin: Arc::new(Origin {
            namespace: "default".into(),
            sender: "default/planner".into(),
        }),
        thread: Ident::Name("a thread".into()),
        run: 7,
        correlation: Some(8),
        causation: Some(9),
        reply_to: Some(CallId(4)),
        deadline: None,
        ttl_ms: Some(10),
        expires: None,
        key: Some(Ident::Uuid(11)),
        time_ms: 12,
        hop: 13,
        qos: Qos::Background,
        extra: Some(Box::new(Extra {
            content_type: Some("text/plain".into()),
            headers: vec![("a".into(), String::new().into()), ("b".into(), "c".into())],
            labels: vec!["secret".into()],
            traceparent: Some("00".into()),
            causes: vec![14, 15],
            dedup: Some("order-1".into()),
            only: Some(3),
        })),
        position: None,
        books: TopicId(0),
    }
}

fn through(record: &Record) -> Record {
    let mut head = Vec::new();
    record.encode_head(&mut head);
    Record::decode(record.kind(), &head, record.body().to_vec(), AT).unwrap()
}

// requirement: LOG-RECORD
#[test]
fn an_event_comes_back_as_it_was_but_for_who_waits_for_it() {
    let sent = envelope();
    let Record::Event(back) = through(&Record::Event(Arc::new(sent.clone()))) else {
        panic!("an event became something else");
    };
    assert_eq!(back.position, Some(AT));
    assert_eq!(back.reply_to, None);
    let expected = Envelope {
        reply_to: None,
        position: Some(AT),
        ..sent
    };
    assert_eq!(format!("{back:?}"), format!("{expected:?}"));
}

// requirement: LOG-RECORD
#[test]
fn a_recorded_event_keeps_the_turn_that_sent_it() {
    let envelope = Arc::new(envelope());
    let sent = Sent {
        turn: 5,
        envelope,
        matched: 3,
        asks: true,
    };
    let Record::Sent(back) = through(&Record::Sent(sent)) else {
        panic!("it became something else");
    };
    assert_eq!((back.turn, back.matched, back.asks), (5, 3, true));
    assert_eq!(back.envelope.position, None);
}

// requirement: LOG-RECORD
#[test]
fn heads_and_bodies_come_back() {
    let intent = Intent {
        effect: Some(Id::from(1 << 100 | 1)),
        capability: "mail.send".into(),
        ..Intent::default()
    };
    let body = Body::from(b"{}".to_vec());
    let Record::Intent(back, arguments) = through(&Record::Intent(intent.clone(), body)) else {
        panic!("it became something else");
    };
    assert_eq!(back, intent);
    assert_eq!(&*arguments, b"{}");
    let progress = Progress {
        consumer: 1,
        floor: 300,
        acked: vec![1, 2, 900],
        open: vec![250],
    };
    let Record::Progress(back) = through(&Record::Progress(progress.clone())) else {
        panic!("it became something else");
    };
    assert_eq!(back, progress);
}

// requirement: LOG-RECORD
#[test]
fn a_kind_of_a_newer_version_is_refused_and_bytes_that_are_no_record_too() {
    let error = Record::decode(99, &[], Vec::new(), AT).unwrap_err();
    assert_eq!(error.code, Code::NotSupported);
    let error = Record::decode(10, &[0xff; 9], Vec::new(), AT).unwrap_err();
    assert_eq!(error.code, Code::Internal);
}
