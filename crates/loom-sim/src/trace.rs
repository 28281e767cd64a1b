//! What happened in a run: its hash, its lines where they are wanted, and the law that was broken.

use std::fmt;

/// A promise that the engine did not keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The promise, by its id in `spec/requirements.toml` where it has one.
    pub law: &'static str,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.law, self.what)
    }
}

pub(crate) type Check<T = ()> = Result<T, Violation>;

pub(crate) fn broken<T>(law: &'static str, what: impl Into<String>) -> Check<T> {
    Err(Violation {
        law,
        what: what.into(),
    })
}

pub(crate) fn ensure(holds: bool, law: &'static str, what: impl FnOnce() -> String) -> Check {
    if holds {
        Ok(())
    } else {
        Err(Violation { law, what: what() })
    }
}

/// The FNV-1a hash of all lines, and the lines.
pub(crate) struct Trace {
    pub(crate) hash: u64,
    pub(crate) lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn new(kept: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            lines: kept.then(Vec::new),
        }
    }

    pub(crate) fn note(&mut self, line: String) {
        for byte in line.bytes().chain([b'\n']) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(line);
        }
    }
}
