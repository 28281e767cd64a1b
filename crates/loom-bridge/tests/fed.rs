//! What the fuzzer does for hours, for a moment: bytes that nobody wrote, at a node's port.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test says what it expects by failing, and has a clock of its own"
)]

mod feed;

use std::path::{Path, PathBuf};

fn files(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let entries = std::fs::read_dir(root.join(folder)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder} has nothing");
    paths
}

// requirement: FUZZ-PORT
#[test]
fn whatever_comes_over_any_protocol_the_connection_ends_and_a_session_goes_on() {
    let mut port = feed::Port::new();
    for path in files("fuzz/corpus/port") {
        port.feed(&std::fs::read(path).unwrap());
    }
    // Each golden packet over each way in, whole and with a byte that is not its own.
    for (number, path) in files("spec/vectors/frames").into_iter().enumerate() {
        let golden = std::fs::read(path).unwrap();
        for way in 0..12 {
            let mut input = vec![way];
            let is_packets = matches!(way, 2 | 7 | 8);
            if is_packets {
                input.extend(u16::try_from(golden.len()).unwrap().to_be_bytes());
            }
            input.extend(&golden);
            port.feed(&input);
            let head = if is_packets { 3 } else { 1 };
            if input.len() > head {
                let at = head + (number * 31 + usize::from(way)) % (input.len() - head);
                input[at] ^= 1 << (number % 8);
                port.feed(&input);
            }
        }
    }
}
