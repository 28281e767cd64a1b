//! Versions of a capability, in the order of their age: numbers count as numbers, `2-beta` comes before `2`.

use std::cmp::Ordering;
use std::sync::Arc;

/// One run of a version's text; the order of the variants is the order of age.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Run {
    /// Begins with a hyphen or an underscore: before the release.
    Before(Box<str>),
    /// The end of a part.
    End,
    /// A number: its digits without leading zeros, the longer the larger.
    Number(usize, Box<str>),
    Word(Box<str>),
}

/// A version, ordered by age; two that differ only in their text (`1` and `01`) stay apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    runs: Box<[Run]>,
    pub(crate) text: Arc<str>,
}

impl Version {
    pub(crate) fn read(text: &str) -> Self {
        let mut runs = Vec::new();
        for part in text.split('.') {
            let mut rest = part;
            while let Some(first) = rest.chars().next() {
                let digits = first.is_ascii_digit();
                let end = rest
                    .find(|c: char| c.is_ascii_digit() != digits)
                    .unwrap_or(rest.len());
                let (run, left) = rest.split_at(end);
                runs.push(read_run(run, first));
                rest = left;
            }
            runs.push(Run::End);
        }
        Self {
            runs: runs.into(),
            text: text.into(),
        }
    }
}

fn read_run(run: &str, first: char) -> Run {
    match first {
        '0'..='9' => {
            let digits = run.trim_start_matches('0');
            Run::Number(digits.len(), digits.into())
        }
        '-' | '_' => Run::Before(run.into()),
        _ => Run::Word(run.into()),
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_age = self.runs.cmp(&other.runs);
        by_age.then_with(|| self.text.cmp(&other.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // requirement: CALL-VERSIONS
    #[test]
    fn versions_are_ordered_by_their_numbers_and_a_release_is_newer_than_what_led_to_it() {
        let sorted = [
            "1-beta",
            "1",
            "1.0",
            "1.2",
            "1.2a",
            "1.10-rc2",
            "1.10-rc10",
            "1.10",
            "2",
            "10",
            "v2",
            "v10",
        ];
        for (at, older) in sorted.iter().enumerate() {
            for newer in sorted.iter().skip(at + 1) {
                assert!(
                    Version::read(older) < Version::read(newer),
                    "{older} {newer}"
                );
            }
        }
        assert_ne!(Version::read("1"), Version::read("01"));
    }

    #[test]
    fn numbers_of_any_length_are_compared() {
        let long = "9".repeat(100);
        assert!(Version::read(&long) > Version::read("18446744073709551616"));
    }
}
