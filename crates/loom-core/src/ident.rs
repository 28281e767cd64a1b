//! Ids: UUIDs as numbers, names as text, and the minting of `UUIDv7` from a seed and a counter.

use std::fmt;
use std::sync::Arc;

/// What names a thread or a lane: a UUID, kept as a number, or a name of the user's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ident {
    /// A UUID; it was written, and is shown, in the canonical form.
    Uuid(u128),
    /// Anything else.
    Name(Arc<str>),
}

impl Ident {
    /// Reads a text; only the canonical form of a UUID becomes a number, so that showing gives the text back.
    pub fn parse(text: &str) -> Self {
        parse_uuid(text).map_or_else(|| Self::Name(text.into()), Self::Uuid)
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(id) => f.write_str(&show_uuid(*id)),
            Self::Name(name) => f.write_str(name),
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The canonical text of a UUID.
pub fn show_uuid(id: u128) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in id.to_be_bytes().into_iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for half in [byte >> 4, byte & 15] {
            text.push(char::from(
                HEX.get(usize::from(half)).copied().unwrap_or(b'0'),
            ));
        }
    }
    text
}

/// Reads a UUID in its canonical form: 36 characters, lower case.
pub fn parse_uuid(text: &str) -> Option<u128> {
    let bytes = text.as_bytes();
    if bytes.len() != 36 {
        return None;
    }
    let mut id: u128 = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let digit = match (at, byte) {
            (8 | 13 | 18 | 23, b'-') => continue,
            (8 | 13 | 18 | 23, _) => return None,
            (_, b'0'..=b'9') => byte - b'0',
            (_, b'a'..=b'f') => byte - b'a' + 10,
            _ => return None,
        };
        id = id << 4 | u128::from(digit);
    }
    Some(id)
}

/// An id that follows from another one and from nothing else (a UUID of version 8).
pub(crate) fn derive_id(id: u128) -> u128 {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are mixed")]
    let mut draw = Ids::new((id >> 64) as u64 ^ (id as u64).rotate_left(23));
    let mixed = u128::from(draw.draw()) << 64 | u128::from(draw.draw());
    mixed & !(0xf << 76) & !(0x3 << 62) | 0x8 << 76 | 0x2 << 62
}

/// Mints `UUIDv7` ids: the wall clock, a counter, and numbers that follow from a seed.
///
/// Two with the same seed that are asked at the same times give the same ids; within one the ids rise.
#[derive(Debug, Clone)]
pub struct Ids {
    state: u64,
    millis: u64,
    count: u64,
}

impl Ids {
    /// Starts from a seed: the shell's randomness enters here, and only here.
    pub const fn new(seed: u64) -> Self {
        Self {
            state: seed,
            millis: 0,
            count: 0,
        }
    }

    /// The next number that follows from the seed (splitmix64).
    pub fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next id. The counter has 26 bits in a millisecond; then the id's clock runs ahead of the wall.
    pub fn mint(&mut self, wall_ms: u64) -> u128 {
        if wall_ms > self.millis {
            self.millis = wall_ms;
            self.count = 0;
        } else {
            self.count += 1;
            if self.count >> 26 != 0 {
                self.millis += 1;
                self.count = 0;
            }
        }
        let high = u128::from(self.millis & 0xffff_ffff_ffff) << 80
            | 0x7 << 76
            | u128::from(self.count >> 14) << 64;
        let low = 0x2 << 62 | u128::from(self.count & 0x3fff) << 48;
        high | low | u128::from(self.draw() >> 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canonical_uuid_becomes_a_number_and_comes_back_as_it_was() {
        let text = "018f2b1c-5d3e-7a4b-8c5d-0123456789ab";
        assert!(matches!(Ident::parse(text), Ident::Uuid(_)));
        assert_eq!(Ident::parse(text).to_string(), text);
    }

    #[test]
    fn anything_else_stays_a_name() {
        for text in [
            "",
            "order-7",
            "018F2B1C-5D3E-7A4B-8C5D-0123456789AB",
            "018f2b1c5d3e",
        ] {
            assert_eq!(Ident::parse(text), Ident::Name(text.into()));
        }
    }

    #[test]
    fn minted_ids_rise_and_say_version_seven() {
        let mut ids = Ids::new(7);
        let mut last = 0;
        for at in 0..1_000u64 {
            let id = ids.mint(1_700_000_000_000 + at / 100);
            assert!(id > last);
            assert_eq!((id >> 76 & 0xf, id >> 62 & 0x3), (7, 2));
            last = id;
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_ids() {
        assert_eq!(Ids::new(1).mint(5), Ids::new(1).mint(5));
        assert_ne!(Ids::new(1).mint(5), Ids::new(2).mint(5));
    }
}
