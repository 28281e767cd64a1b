//! What the fuzzer does for hours, for a moment: bytes that nobody wrote, into a node with sessions.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what it expects by failing"
)]

mod feed;

use std::path::Path;

use proptest::prelude::*;

fn files(folder: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut paths: Vec<_> = std::fs::read_dir(root.join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder} has nothing");
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

// requirement: FUZZ-HUB
#[test]
fn what_the_fuzzer_keeps_goes_well() {
    for input in files("fuzz/corpus/hub") {
        feed::feed(&input);
    }
}

/// A step with a golden packet, some of whose bytes were changed.
#[derive(Debug, Clone)]
struct Step {
    what: u8,
    frame: prop::sample::Index,
    changes: Vec<(prop::sample::Index, u8)>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let changes = prop::collection::vec((index(), any::<u8>()), 0..3);
    // The others are let in first, as often as not.
    let what = prop_oneof![2 => any::<u8>(), 1 => (0..16_u8).prop_map(|it| (it << 4) + 10)];
    let step = (what, index(), changes).prop_map(|(what, frame, changes)| Step {
        what,
        frame,
        changes,
    });
    prop::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    // requirement: FUZZ-HUB
    #[test]
    fn whatever_others_send_a_session_goes_on_and_nothing_is_left(steps in steps()) {
        thread_local!(static GOLDEN: Vec<Vec<u8>> = files("spec/vectors/frames"));
        let mut input = Vec::new();
        for step in steps {
            let mut frame = GOLDEN.with(|golden| step.frame.get(golden).clone());
            for (at, byte) in step.changes {
                if !frame.is_empty() {
                    let at = at.index(frame.len());
                    frame[at] = byte;
                }
            }
            input.push(step.what);
            match step.what & 15 {
                0..=8 => {
                    input.extend(u16::try_from(frame.len()).unwrap().to_be_bytes());
                    input.extend(frame);
                }
                10..=13 => input.push(step.what >> 4),
                _ => {}
            }
        }
        feed::feed(&input);
    }
}
