//! Text to values.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use loom_core::spec::limits;
use serde::de::{Deserialize, Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::table::{Attached, Enum, Hex, Id, Inline, Named, Object};
use super::{Malformed, Result};
use crate::v1::{Frame, Packet};

/// The number of all names that an enumeration does not have: no version will give it to one.
const UNKNOWN: i32 = -1;

pub(super) struct In {
    attachments: Vec<Option<Bytes>>,
}

impl In {
    pub(super) fn new(attachments: Vec<Bytes>) -> Self {
        Self {
            attachments: attachments.into_iter().map(Some).collect(),
        }
    }

    pub(super) fn packet(&mut self, text: &str) -> Result<Packet> {
        let mut packet = Packet::default();
        for (name, raw) in members(text)? {
            match &*name {
                "first" => number(raw).map(|first| packet.first = first),
                "received" => number(raw).map(|received| packet.received = received),
                "frames" => self.frames(raw).map(|frames| packet.frames = frames),
                _ => Ok(()),
            }
            .map_err(|error| error.within(&name))?;
        }
        Ok(packet)
    }

    fn frames(&mut self, raw: &str) -> Result<Vec<Frame>> {
        items(raw)?
            .into_iter()
            .map(|raw| self.object(raw))
            .collect()
    }

    pub(super) fn object<T: Object>(&mut self, raw: &str) -> Result<T> {
        let mut value = T::default();
        for (name, raw) in members(raw)? {
            value
                .read(&name, raw, self)
                .map_err(|error| error.within(&name))?;
        }
        Ok(value)
    }

    /// The attachment of this number; each is used once, so that a packet holds no more than it brought.
    pub(super) fn attachment(&mut self, raw: &str) -> Result<Bytes> {
        let index: usize = number(raw)?;
        self.attachments
            .get_mut(index)
            .and_then(Option::take)
            .ok_or_else(|| {
                Malformed::new(format!("names {index}, which is not there or used twice"))
            })
    }
}

/// How deep brackets are nested, in JSON or in something else.
pub(super) fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let (mut quoted, mut escaped) = (false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The members of an object, none of them twice.
pub(super) fn members(raw: &str) -> Result<Vec<(Cow<'_, str>, &str)>> {
    let mut from = serde_json::Deserializer::from_str(raw);
    let found = from
        .deserialize_map(Members)
        .and_then(|found| from.end().map(|()| found))
        .map_err(|error| Malformed::new(format!("is not as it should be: {error}")))?;
    let mut names: Vec<&str> = found.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(pair) => Err(Malformed::new(format!(
            "has {:?} twice",
            pair.first().copied().unwrap_or_default()
        ))),
        None => Ok(found),
    }
}

fn items(raw: &str) -> Result<Vec<&str>> {
    let mut from = serde_json::Deserializer::from_str(raw);
    from.deserialize_seq(Items)
        .and_then(|found| from.end().map(|()| found))
        .map_err(|error| Malformed::new(format!("is not as it should be: {error}")))
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Cow<'de, str>, &'de str)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some((Name(name), raw)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
            if found.len() == limits::PACKET_MEMBERS {
                return Err(serde::de::Error::custom(format_args!(
                    "more than {} members",
                    limits::PACKET_MEMBERS
                )));
            }
            found.push((name, raw.get()));
        }
        Ok(found)
    }
}

struct Items;

impl<'de> Visitor<'de> for Items {
    type Value = Vec<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(
        self,
        mut seq: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(raw) = seq.next_element::<&'de RawValue>()? {
            if found.len() == limits::PACKET_ITEMS {
                return Err(serde::de::Error::custom(format_args!(
                    "more than {} items",
                    limits::PACKET_ITEMS
                )));
            }
            found.push(raw.get());
        }
        Ok(found)
    }
}

/// A member's name, copied only where it has escapes.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(Text)
    }
}

pub(super) fn number<N: FromStr>(raw: &str) -> Result<N> {
    raw.parse()
        .map_err(|_| Malformed::new("is no whole number, or one that is too large"))
}

pub(super) fn text(raw: &str) -> Result<String> {
    serde_json::from_str(raw).map_err(|_| Malformed::new("is no text"))
}

fn truth(raw: &str) -> Result<bool> {
    raw.parse()
        .map_err(|_| Malformed::new("is neither true nor false"))
}

/// Hexadecimal text, with or without the dashes of a UUID.
fn hex(raw: &str) -> Result<Bytes> {
    let wrong = || Malformed::new("is neither hexadecimal nor a UUID");
    let text = text(raw)?;
    let digits: Vec<u8> = match text.len() {
        36 => text.bytes().filter(|byte| *byte != b'-').collect(),
        _ => text.into_bytes(),
    };
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(wrong());
    }
    pairs
        .iter()
        .map(
            |pair| match pair.map(|digit| char::from(digit).to_digit(16)) {
                [Some(high), Some(low)] => u8::try_from(high * 16 + low).map_err(|_| wrong()),
                _ => Err(wrong()),
            },
        )
        .collect::<Result<Vec<u8>>>()
        .map(Bytes::from)
}

fn list<T>(raw: &str, mut read: impl FnMut(&str) -> Result<T>) -> Result<Vec<T>> {
    items(raw)?.into_iter().map(&mut read).collect()
}

fn inline(raw: &str) -> Bytes {
    Bytes::copy_from_slice(raw.as_bytes())
}

/// What has one form in JSON.
pub(super) trait Readable: Sized {
    fn read(raw: &str, from: &mut In) -> Result<Self>;
}

macro_rules! readable {
    ($($type:ty: $read:expr),* $(,)?) => {$(
        impl Readable for $type {
            fn read(raw: &str, _: &mut In) -> Result<Self> {
                $read(raw)
            }
        }
    )*};
}
readable! {
    u32: number,
    u64: number,
    bool: truth,
    String: text,
    Option<u64>: |raw| number(raw).map(Some),
    Option<bool>: |raw| truth(raw).map(Some),
    Vec<u32>: |raw| list(raw, number),
    Vec<u64>: |raw| list(raw, number),
    Vec<String>: |raw| list(raw, text),
    BTreeMap<String, f64>: weights,
}

fn weights(raw: &str) -> Result<BTreeMap<String, f64>> {
    members(raw)?
        .into_iter()
        .map(|(name, raw)| match weight(raw) {
            Some(weight) => Ok((name.into_owned(), weight)),
            None => Err(Malformed::new("is no number").within(&name)),
        })
        .collect()
}

fn weight(raw: &str) -> Option<f64> {
    Some(match raw {
        r#""NaN""# => f64::NAN,
        r#""Infinity""# => f64::INFINITY,
        r#""-Infinity""# => f64::NEG_INFINITY,
        // Not by serde_json, whose numbers may be off by the last bit.
        _ => raw.parse().ok().filter(|weight: &f64| weight.is_finite())?,
    })
}

impl<T: Object> Readable for Option<T> {
    fn read(raw: &str, from: &mut In) -> Result<Self> {
        from.object(raw).map(Some)
    }
}

impl<T: Object> Readable for Vec<T> {
    fn read(raw: &str, from: &mut In) -> Result<Self> {
        items(raw)?
            .into_iter()
            .map(|raw| from.object(raw))
            .collect()
    }
}

impl Hex {
    pub(super) fn read(raw: &str) -> Result<Bytes> {
        hex(raw)
    }
}

impl Id {
    pub(super) fn read(raw: &str) -> Result<Bytes> {
        hex(raw)
    }

    pub(super) fn read_all(raw: &str) -> Result<Vec<Bytes>> {
        list(raw, hex)
    }
}

impl Inline {
    pub(super) fn read(raw: &str) -> Bytes {
        inline(raw)
    }

    pub(super) fn read_all(raw: &str) -> Result<Vec<Bytes>> {
        list(raw, |raw| Ok(inline(raw)))
    }
}

impl Attached {
    pub(super) fn read(raw: &str, from: &mut In) -> Result<Bytes> {
        let mut data = Bytes::new();
        for (name, raw) in members(raw)? {
            if name == "attachment" {
                data = from
                    .attachment(raw)
                    .map_err(|error| error.within("attachment"))?;
            }
        }
        Ok(data)
    }
}

impl<E: Named> Enum<E> {
    pub(super) fn read(raw: &str) -> Result<i32> {
        if raw.starts_with('"') {
            // One that is not known here is no default: it is refused where it would count, as an unknown number is.
            return Ok(E::number(&text(raw)?).unwrap_or(UNKNOWN));
        }
        number(raw)
    }
}
