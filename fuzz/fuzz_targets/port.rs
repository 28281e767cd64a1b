//! A node's port: bytes as every protocol it takes, with and without a credential.
#![no_main]

#[path = "../../crates/loom-bridge/tests/feed/mod.rs"]
mod feed;

use std::sync::{LazyLock, Mutex};

static PORT: LazyLock<Mutex<feed::Port>> = LazyLock::new(|| Mutex::new(feed::Port::new()));

libfuzzer_sys::fuzz_target!(|data: &[u8]| PORT.lock().expect("one thread").feed(data));
