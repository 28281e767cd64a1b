//! The decoder of packets, in both forms: whatever comes, it decodes or refuses, and what it decodes can be sent on.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use loom_proto::v1::Packet;
use loom_proto::{Message, json};

fuzz_target!(|data: &[u8]| {
    if let Ok(packet) = Packet::decode(data) {
        let again = Packet::decode(packet.encode_to_vec().as_slice()).expect("what was encoded");
        // Compared as bytes: one that holds NaN is not equal to itself.
        assert_eq!(again.encode_to_vec(), packet.encode_to_vec());
        sent_on(&packet);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let count = json::attachments(text).unwrap_or(0).min(16);
        let data: Vec<Bytes> = (0..count).map(|it| Bytes::from(vec![it as u8; it])).collect();
        if let Ok(packet) = json::decode(text, data) {
            sent_on(&packet);
        }
    }
});

/// What was taken in goes to others in JSON, and they can read it.
fn sent_on(packet: &Packet) {
    let (text, attachments) = json::encode(packet);
    match json::decode(&text, attachments) {
        Ok(read) => {
            let (again, _) = json::encode(&read);
            assert_eq!(again, text);
        }
        Err(error) => panic!("{error}: {text}"),
    }
}
