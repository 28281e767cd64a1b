//! The JSON form carries all that the protobuf form carries, and whatever comes in, nothing breaks.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a test says what it expects by failing"
)]

use bytes::Bytes;
use loom_proto::json::{self, DEPTH};
use loom_proto::{Message, v1};
use proptest::prelude::*;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};

fn pool() -> DescriptorPool {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
    let set = protox::compile(["loom/v1/envelope.proto", "loom/v1/frame.proto"], [root]).unwrap();
    DescriptorPool::from_file_descriptor_set(set).unwrap()
}

/// Draws numbers from the bytes that proptest chose, so that a failure shrinks.
struct Dice<'a>(std::slice::Iter<'a, u8>);

impl Dice<'_> {
    fn below(&mut self, n: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % n
    }

    fn number(&mut self) -> u64 {
        [0, 1, 7, 1 << 31, (1 << 53) - 1, u64::MAX][self.below(6)]
    }

    fn text(&mut self) -> String {
        [
            "",
            "a.b",
            "q\"uo\\te",
            "line\nfeed\u{1}\u{7f}",
            "größe 🧵",
            "</script>\u{2028}",
        ][self.below(6)]
        .to_owned()
    }

    fn json(&mut self) -> &'static [u8] {
        [
            &b"null"[..],
            b"{\"a\":[1,2,{\"b\":\"}]\\\"\"}]}",
            b"18446744073709551616.5e3",
            b"\"\\ud800 and \\u0000\"",
            b"[]",
            "\"ä\"".as_bytes(),
        ][self.below(6)]
    }
}

/// Fields whose bytes are JSON by definition.
fn is_json(field: &FieldDescriptor) -> bool {
    let of = field.parent_message().name().to_owned();
    matches!(field.name(), "info" | "detail" | "entries")
        || (of == "Report" && field.name() == "data")
}

fn value(field: &FieldDescriptor, dice: &mut Dice<'_>) -> Value {
    match field.kind() {
        Kind::Uint32 => Value::U32(dice.number() as u32),
        Kind::Uint64 => Value::U64(dice.number()),
        Kind::Bool => Value::Bool(dice.below(2) == 1),
        Kind::Double => Value::F64([0.0, 1.5, -2e300, 1e-9][dice.below(4)]),
        Kind::String => Value::String(dice.text()),
        // One beyond those that are known: a newer peer may have it.
        Kind::Enum(kind) => Value::EnumNumber(dice.below(kind.values().len() + 1) as i32),
        Kind::Bytes if is_json(field) => Value::Bytes(Bytes::from_static(dice.json())),
        Kind::Bytes => {
            let length = [0, 1, 16, 32, 300][dice.below(5)];
            Value::Bytes(
                (0..length)
                    .map(|at| at as u8 ^ dice.below(256) as u8)
                    .collect(),
            )
        }
        Kind::Message(kind) => Value::Message(message(&kind, dice)),
        kind => panic!("no field is a {kind:?}"),
    }
}

fn message(kind: &MessageDescriptor, dice: &mut Dice<'_>) -> DynamicMessage {
    let mut made = DynamicMessage::new(kind.clone());
    if kind.name() == "Payload" {
        let json = dice.below(2) == 1;
        let data = if json {
            Bytes::from_static(dice.json())
        } else {
            Bytes::from(vec![0xff; dice.below(40)])
        };
        let of = if json || data.is_empty() {
            ""
        } else {
            "image/png"
        };
        made.set_field_by_name("data", Value::Bytes(data));
        made.set_field_by_name("content_type", Value::String(of.to_owned()));
        return made;
    }
    if kind.name() == "Frame" {
        let bodies: Vec<_> = kind.fields().collect();
        let body = &bodies[dice.below(bodies.len())];
        made.set_field(body, value(body, dice));
        return made;
    }
    for field in kind.fields() {
        if dice.below(3) == 0 {
            continue;
        }
        let filled = if field.is_map() {
            let Kind::Message(entry) = field.kind() else {
                panic!("a map has entries")
            };
            let weight = value(&entry.map_entry_value_field(), dice);
            Value::Map([(MapKey::String(dice.text()), weight)].into())
        } else if field.is_list() {
            let count = dice.below(4);
            Value::List((0..count).map(|_| value(&field, dice)).collect())
        } else {
            value(&field, dice)
        };
        made.set_field(&field, filled);
    }
    made
}

fn packet(pool: &DescriptorPool, choices: &[u8]) -> v1::Packet {
    let kind = pool.get_message_by_name("loom.v1.Packet").unwrap();
    let made = message(&kind, &mut Dice(choices.iter()));
    v1::Packet::decode(made.encode_to_vec().as_slice()).unwrap()
}

// requirement: WIRE-JSON
#[test]
fn every_packet_survives_json_and_back() {
    let pool = pool();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let choices = proptest::collection::vec(any::<u8>(), 0..400);
    runner
        .run(&choices, |choices| {
            let sent = packet(&pool, &choices);
            let (text, attachments) = json::encode(&sent);
            prop_assert_eq!(json::attachments(&text), Ok(attachments.len()));
            let came = json::decode(&text, attachments);
            prop_assert_eq!(came.as_ref(), Ok(&sent), "{}", text);
            Ok(())
        })
        .unwrap();
}

// requirement: WIRE-GOLDEN, WIRE-FORWARD
#[test]
fn golden_frames_are_the_same_in_both_forms() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../spec/vectors/frames");
    let mut seen = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|kind| kind != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let golden = v1::Packet::decode(
            std::fs::read(path.with_extension("bin"))
                .unwrap()
                .as_slice(),
        );
        let golden = golden.unwrap();
        let beside: Vec<Bytes> = (0..json::attachments(&text).unwrap())
            .map(|k| {
                std::fs::read(path.with_extension(format!("{k}.bin")))
                    .unwrap()
                    .into()
            })
            .collect();
        assert_eq!(
            json::decode(&text, beside.clone()).as_ref(),
            Ok(&golden),
            "{}",
            path.display()
        );
        let (written, attachments) = json::encode(&golden);
        if golden.frames.iter().all(|frame| frame.body.is_some()) {
            let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(value(&written), value(&text), "{}", path.display());
        }
        assert_eq!(attachments, beside, "{}", path.display());
        seen += 1;
    }
    assert!(seen > 49, "there are {seen} golden packets");
}

// requirement: WIRE-FORWARD
#[test]
fn a_packet_with_a_member_of_an_enumeration_that_is_not_known_is_read() {
    let text = r#"{"frames":[{"accepted":{"ref":7,"level":"moon"}},{"deliver":{"event":{"topic":"a","qos":"express"}}}]}"#;
    let mut frames = json::decode(text, Vec::new()).unwrap().frames.into_iter();
    let Some(v1::frame::Body::Accepted(accepted)) = frames.next().unwrap().body else {
        panic!("a receipt")
    };
    assert_eq!((accepted.r#ref, accepted.level), (7, -1));
    let Some(v1::frame::Body::Deliver(deliver)) = frames.next().unwrap().body else {
        panic!("a delivery")
    };
    let event = deliver.event.unwrap();
    assert_eq!((event.topic.as_str(), event.qos), ("a", -1));
}

// requirement: WIRE-JSON
#[test]
fn every_frame_and_field_has_the_name_of_its_proto() {
    let pool = pool();
    let frame = pool.get_message_by_name("loom.v1.Frame").unwrap();
    for body in frame.fields() {
        let Kind::Message(kind) = body.kind() else {
            panic!("a body is a message")
        };
        for field in kind.fields() {
            // All dice show 1: every field is set, and none to its default where that can be.
            let mut made = DynamicMessage::new(kind.clone());
            let ones = [1; 64];
            let mut dice = Dice(ones.iter());
            let one = if field.is_map() {
                Value::Map([(MapKey::String("a".into()), Value::F64(1.0))].into())
            } else if field.is_list() {
                Value::List(vec![value(&field, &mut dice)])
            } else {
                value(&field, &mut dice)
            };
            made.set_field(&field, one);
            let mut whole = DynamicMessage::new(frame.clone());
            whole.set_field(&body, Value::Message(made));
            let frame = v1::Frame::decode(whole.encode_to_vec().as_slice()).unwrap();
            let (text, _) = json::encode(&v1::Packet {
                frames: vec![frame],
                ..Default::default()
            });
            let begins = format!("\"frames\":[{{\"{}\":{{\"{}\":", body.name(), field.name());
            assert!(text.contains(&begins), "{text} does not hold {begins}");
        }
    }
}

fn publish(payload: v1::Payload) -> v1::Packet {
    let frame = v1::Publish {
        topic: "a".into(),
        payload: Some(payload),
        ..Default::default()
    };
    v1::Packet {
        first: 3,
        frames: vec![v1::Frame {
            body: Some(v1::frame::Body::Publish(frame)),
        }],
        ..Default::default()
    }
}

// requirement: WIRE-JSON
#[test]
fn json_stands_inline_and_other_data_travels_beside_the_text() {
    let json = publish(v1::Payload {
        data: Bytes::from_static(b"{\"n\": 1}"),
        ..Default::default()
    });
    let (text, attachments) = json::encode(&json);
    assert_eq!(
        text,
        r#"{"first":3,"frames":[{"publish":{"topic":"a","payload":{"json":{"n": 1}}}}]}"#
    );
    assert!(attachments.is_empty());

    let picture = v1::Payload {
        data: Bytes::from_static(b"\x89PNG"),
        content_type: "image/png".into(),
    };
    let (text, attachments) = json::encode(&publish(picture));
    assert_eq!(
        text,
        r#"{"first":3,"attachments":1,"frames":[{"publish":{"topic":"a","payload":{"attachment":0,"type":"image/png"}}}]}"#
    );
    assert_eq!(attachments, [Bytes::from_static(b"\x89PNG")]);
}

// requirement: WIRE-JSON
#[test]
fn data_that_calls_itself_json_and_is_not_never_breaks_the_text() {
    let hostile = [
        &b"1,\"sender\":9"[..],
        b"\"",
        b"{\"a\":1}}",
        b"nan",
        b"\xff\xfe",
        b" ",
    ];
    for data in hostile {
        let sent = publish(v1::Payload {
            data: Bytes::from_static(data),
            ..Default::default()
        });
        let (text, attachments) = json::encode(&sent);
        assert_eq!(attachments, [Bytes::from_static(data)], "{text}");
        assert_eq!(json::decode(&text, attachments), Ok(sent));
        let report = v1::Report {
            data: Bytes::from_static(data),
            ..Default::default()
        };
        let frame = v1::Frame {
            body: Some(v1::frame::Body::Report(report)),
        };
        let (text, _) = json::encode(&v1::Packet {
            frames: vec![frame],
            ..Default::default()
        });
        assert!(json::decode(&text, vec![]).is_ok(), "{text}");
    }
}

// requirement: WIRE-JSON
#[test]
fn what_is_nested_too_deep_is_refused_and_never_sent_inline() {
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let sent = publish(v1::Payload {
        data: deep(DEPTH).into(),
        ..Default::default()
    });
    let (text, attachments) = json::encode(&sent);
    assert_eq!(attachments.len(), 0);
    assert_eq!(json::decode(&text, vec![]), Ok(sent));

    let sent = publish(v1::Payload {
        data: deep(DEPTH + 1).into(),
        ..Default::default()
    });
    let (text, attachments) = json::encode(&sent);
    assert_eq!(attachments.len(), 1);
    assert_eq!(json::decode(&text, attachments), Ok(sent));

    let text = format!(
        "{{\"frames\":[{{\"publish\":{{\"payload\":{{\"json\":{}}}}}}}]}}",
        deep(100_000)
    );
    let refused = json::decode(&text, vec![]).unwrap_err();
    assert!(refused.to_string().contains("attachment"), "{refused}");
}

// requirement: WIRE-JSON
#[test]
fn weights_survive_to_the_last_bit() {
    for bits in [
        0x656d_7573_6572_0000,
        1,
        0x3ff0_0000_0000_0001,
        0x7fef_ffff_ffff_ffff,
    ] {
        let route = v1::Route {
            weights: [("a".to_owned(), f64::from_bits(bits))].into(),
            ..v1::Route::default()
        };
        let frame = v1::Frame {
            body: Some(v1::frame::Body::Route(route)),
        };
        let packet = v1::Packet {
            frames: vec![frame],
            ..v1::Packet::default()
        };
        let (text, _) = json::encode(&packet);
        assert_eq!(json::decode(&text, vec![]).unwrap(), packet, "{text}");
    }
    for (number, named) in [
        (f64::NAN, "\"NaN\""),
        (f64::INFINITY, "\"Infinity\""),
        (f64::NEG_INFINITY, "\"-Infinity\""),
    ] {
        let text = format!(r#"{{"frames":[{{"route":{{"weights":{{"a":{named}}}}}}}]}}"#);
        let read = json::decode(&text, vec![]).unwrap();
        let Some(v1::frame::Body::Route(route)) = &read.frames[0].body else {
            panic!("{read:?}");
        };
        assert_eq!(route.weights["a"].to_bits(), number.to_bits());
        let (again, _) = json::encode(&read);
        assert!(again.contains(named), "{again}");
    }
    let infinite = r#"{"frames":[{"route":{"weights":{"a":1e999}}}]}"#;
    assert!(json::decode(infinite, vec![]).is_err());
}

// requirement: WIRE-JSON
#[test]
fn a_malformed_packet_is_refused_with_the_field() {
    let cases = [
        ("[]", ""),
        ("{\"first\":-1}", "first"),
        ("{\"first\":1.5}", "first"),
        ("{\"first\":1,\"first\":2}", ""),
        ("{\"first\":1} {}", ""),
        ("{\"frames\":{}}", "frames"),
        (
            "{\"frames\":[{\"publish\":{\"qos\":[]}}]}",
            "frames.publish.qos",
        ),
        (
            "{\"frames\":[{\"publish\":{\"topic\":7}}]}",
            "frames.publish.topic",
        ),
        (
            "{\"frames\":[{\"hello\":{\"session\":\"xyz\"}}]}",
            "frames.hello.session",
        ),
        (
            "{\"frames\":[{\"hello\":{\"session\":\"é\"}}]}",
            "frames.hello.session",
        ),
        (
            "{\"frames\":[{\"ack\":{\"leases\":[1,\"2\"]}}]}",
            "frames.ack.leases",
        ),
        ("{\"frames\":[{\"ack\":{},\"nak\":{}}]}", "frames.nak"),
        (
            "{\"frames\":[{\"reply\":{\"payload\":{\"attachment\":0}}}]}",
            "frames.reply.payload.attachment",
        ),
        ("{\"attachments\":1}", "attachments"),
        ("{\"attachments\":99999999}", "attachments"),
    ];
    for (text, field) in cases {
        let refused = json::decode(text, vec![]).expect_err(text);
        assert_eq!(refused.field, field, "{text}: {refused}");
    }
    let twice = r#"{"attachments":1,"frames":[{"reply":{"payload":{"attachment":0}}},{"reply":{"payload":{"attachment":0}}}]}"#;
    assert!(json::decode(twice, vec![Bytes::from_static(b"x")]).is_err());
}

// requirement: WIRE-JSON
#[test]
fn a_newer_peer_may_send_fields_frames_and_names_that_are_unknown_here() {
    let text = r#"{"first":1,"new":{"a":[1]},"frames":[{"teleport":{"x":1}},{"extend":{"lease":4,"why":"x"}}]}"#;
    let came = json::decode(text, vec![]).unwrap();
    let extend = v1::Extend { lease: 4 };
    assert_eq!(
        came.frames,
        [
            v1::Frame { body: None },
            v1::Frame {
                body: Some(v1::frame::Body::Extend(extend))
            }
        ]
    );
}

// requirement: WIRE-ENUM
#[test]
fn a_name_that_an_enumeration_does_not_have_is_not_its_default() {
    let of = |ack: &str| {
        let text = format!(r#"{{"first":1,"frames":[{{"publish":{{"topic":"a","ack":{ack}}}}}]}}"#);
        let frame = json::decode(&text, vec![]).unwrap().frames.pop();
        match frame.and_then(|it| it.body) {
            Some(v1::frame::Body::Publish(it)) => v1::AckLevel::try_from(it.ack).ok(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(of("\"disk\""), Some(v1::AckLevel::Disk));
    for wrong in ["\"Disk\"", "\"durable\"", "\"\"", "9", "-1"] {
        assert_eq!(of(wrong), None, "{wrong}");
    }
}

// requirement: WIRE-JSON
#[test]
fn a_million_members_are_refused() {
    let many: Vec<String> = (0..1_000_000).map(|n| format!("\"{n}\":1")).collect();
    let text = format!("{{{}}}", many.join(","));
    assert!(json::decode(&text, vec![]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    // requirement: WIRE-JSON
    // requirement: FUZZ-DECODE
    #[test]
    fn whatever_comes_nothing_panics(
        choices in proptest::collection::vec(any::<u8>(), 0..200),
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<char>()), 0..6),
        arbitrary in ".{0,64}",
    ) {
        let _ = json::decode(&arbitrary, vec![Bytes::new()]);
        thread_local!(static POOL: DescriptorPool = pool());
        let (text, attachments) = json::encode(&POOL.with(|pool| packet(pool, &choices)));
        let mut text: Vec<char> = text.chars().collect();
        for (at, c) in cuts {
            let at = at.index(text.len());
            text[at] = c;
        }
        let text: String = text.into_iter().collect();
        if let Ok(count) = json::attachments(&text) {
            let _ = json::decode(&text, vec![Bytes::from_static(b"x"); count.min(9)]);
        }
        let _ = json::decode(&text, attachments);
    }

    // requirement: FUZZ-DECODE
    #[test]
    fn what_was_decoded_can_be_sent_on_in_both_forms(
        choices in proptest::collection::vec(any::<u8>(), 0..200),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        thread_local!(static POOL: DescriptorPool = pool());
        let mut bytes = POOL.with(|pool| packet(pool, &choices)).encode_to_vec();
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        if let Ok(packet) = v1::Packet::decode(bytes.as_slice()) {
            let again = v1::Packet::decode(packet.encode_to_vec().as_slice()).unwrap();
            prop_assert_eq!(again.encode_to_vec(), packet.encode_to_vec());
            let (text, attachments) = json::encode(&packet);
            let read = json::decode(&text, attachments);
            prop_assert!(read.is_ok(), "{:?}: {}", read, text);
            prop_assert_eq!(json::encode(&read.unwrap()).0, text);
        }
    }
}
