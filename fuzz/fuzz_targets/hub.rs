//! The hub of sessions, fed with frames: what others send disturbs nobody and leaves nothing.
#![no_main]

#[path = "../../crates/loom-session/tests/feed/mod.rs"]
mod feed;

libfuzzer_sys::fuzz_target!(|data: &[u8]| feed::feed(data));
