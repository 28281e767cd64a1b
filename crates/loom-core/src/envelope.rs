//! The immutable record that travels. Sender, namespace, run and causes are stamped by the engine.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::arena::{CallId, TopicId};
use crate::error::{Code, Error, Result};
use crate::ident::Ident;
use crate::time::Nanos;

/// The delivery class of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// Bounded, newest wins, every drop counted.
    Realtime,
    /// The sender waits for room; the default.
    Batched,
    /// Bounded memory, then refused.
    Background,
}

impl Qos {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Realtime, Self::Batched, Self::Background];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Realtime => "realtime",
            Self::Batched => "batched",
            Self::Background => "background",
        }
    }

    /// Its number, as it crosses languages.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Reads the number.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for any other than 0, 1, 2.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Realtime),
            1 => Ok(Self::Batched),
            2 => Ok(Self::Background),
            _ => Err(Error::invalid(
                "qos",
                format!("there is no delivery class {number}"),
            )),
        }
    }
}

/// What a capability does to the world outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EffectClass {
    /// Nothing.
    Pure,
    /// Doing it twice is doing it once.
    Idempotent,
    /// Whether it was done can be asked.
    Probeable,
    /// Anything.
    Unsafe,
}

impl EffectClass {
    /// Its number, as it crosses languages.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Idempotent => "idempotent",
            Self::Probeable => "probeable",
            Self::Unsafe => "unsafe",
        }
    }

    /// Reads the number as it crosses languages.
    ///
    /// # Errors
    /// `INVALID_PARAMS` for any other than 0 to 3.
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Pure),
            1 => Ok(Self::Idempotent),
            2 => Ok(Self::Probeable),
            3 => Ok(Self::Unsafe),
            _ => Err(Error::invalid(
                "effect",
                format!("there is no effect class {number}"),
            )),
        }
    }
}

/// An opaque place in a log; only the log makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Which log.
    pub partition: u32,
    /// Which life of it.
    pub epoch: u32,
    /// Where; rises, with gaps.
    pub n: u64,
}

/// Its text is ordered as it is: each number is hexadecimal, after a letter that says how many digits it has, so that
/// texts of one log compare like the positions that they stand for.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [u64::from(self.partition), u64::from(self.epoch), self.n];
        for (at, part) in parts.into_iter().enumerate() {
            let digits = format!("{part:x}");
            let count = u8::try_from(digits.len()).unwrap_or(u8::MAX);
            let dash = if at == 0 { "" } else { "-" };
            write!(f, "{dash}{}{digits}", char::from(b'a' + count - 1))?;
        }
        Ok(())
    }
}

impl FromStr for Position {
    type Err = Error;

    /// Reads what [`fmt::Display`] has written.
    ///
    /// # Errors
    /// `INVALID_CURSOR` for any other text.
    fn from_str(text: &str) -> Result<Self> {
        let broken = || {
            Error::new(Code::InvalidCursor, format!("{text:?} is no position"))
                .field("position")
                .hint("give one that event.position or receipt.position has shown")
        };
        let mut parts = text.split('-').map(|part| {
            let number = u64::from_str_radix(part.get(1..)?, 16).ok()?;
            Some(number)
        });
        let mut next = || parts.next().flatten();
        let read = (next(), next(), next());
        let (Some(partition), Some(epoch), Some(n)) = read else {
            return Err(broken());
        };
        let found = Self {
            partition: u32::try_from(partition).map_err(|_| broken())?,
            epoch: u32::try_from(epoch).map_err(|_| broken())?,
            n,
        };
        // One text for each: digits of another count or case, and what stands behind, are refused.
        if found.to_string() == text {
            Ok(found)
        } else {
            Err(broken())
        }
    }
}

/// Who sends: both parts come from the registration, never from the sender's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The namespace.
    pub namespace: Arc<str>,
    /// `namespace/name`.
    pub sender: Arc<str>,
}

impl Origin {
    pub(crate) fn new(namespace: &Arc<str>, name: &str) -> Arc<Self> {
        Arc::new(Self {
            namespace: Arc::clone(namespace),
            sender: format!("{namespace}/{name}").into(),
        })
    }
}

/// The fields that few events have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extra {
    /// None: JSON.
    pub content_type: Option<Arc<str>>,
    /// Free pairs, in the order given.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// What policies match.
    pub labels: Vec<Box<str>>,
    /// W3C trace context.
    pub traceparent: Option<Box<str>>,
    /// The events this one follows from, where there is more than one.
    pub causes: Vec<u128>,
    /// The publisher's own id: a second event of the topic with it is the same one.
    pub dedup: Option<Box<str>>,
    /// The one consumer that it is for: it was dead and published anew.
    pub only: Option<u32>,
}

/// The record.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// `UUIDv7`.
    pub id: u128,
    /// Where it was published; for an invocation, the capability's name.
    pub topic: Arc<str>,
    /// Opaque bytes.
    pub payload: Box<[u8]>,
    /// Who sent it, in which namespace.
    pub origin: Arc<Origin>,
    /// The conversation.
    pub thread: Ident,
    /// The root event of all that follows causally.
    pub run: u128,
    /// The request that this exchange belongs to.
    pub correlation: Option<u128>,
    /// The event whose turn sent this one.
    pub causation: Option<u128>,
    /// Who waits for an answer.
    pub reply_to: Option<CallId>,
    /// When nobody waits any more.
    pub deadline: Option<Nanos>,
    /// How long it may wait in a queue.
    pub ttl_ms: Option<u64>,
    /// The end of that.
    pub expires: Option<Nanos>,
    /// The lane.
    pub key: Option<Ident>,
    /// Milliseconds since the epoch.
    pub time_ms: u64,
    /// Turns between the root and this.
    pub hop: u16,
    /// The delivery class.
    pub qos: Qos,
    /// Few events have these.
    pub extra: Option<Box<Extra>>,
    /// Where the log put it.
    pub position: Option<Position>,
    /// Whose books it is counted in.
    pub(crate) books: TopicId,
}

impl Envelope {
    /// One that came from another process: its sender, times and causes are what that one says. Fields without a value
    /// there are to be set by the caller.
    pub fn arrived(id: u128, topic: Arc<str>, payload: Box<[u8]>, origin: Arc<Origin>) -> Self {
        Self {
            id,
            topic,
            payload,
            origin,
            thread: Ident::Uuid(id),
            run: id,
            correlation: None,
            causation: None,
            reply_to: None,
            deadline: None,
            ttl_ms: None,
            expires: None,
            key: None,
            time_ms: 0,
            hop: 0,
            qos: Qos::Batched,
            extra: None,
            position: None,
            books: TopicId(0),
        }
    }

    /// The lane it falls into: its key, else its thread.
    pub fn lane(&self) -> &Ident {
        self.key.as_ref().unwrap_or(&self.thread)
    }

    /// What it takes of a queue's bytes.
    pub fn size(&self) -> usize {
        self.payload.len()
    }

    /// Whether it must not be started any more.
    pub(crate) fn is_over(&self, now: Nanos) -> bool {
        self.expires.is_some_and(|at| at <= now) || self.deadline.is_some_and(|at| at <= now)
    }

    /// Whether it is one of the engine's own.
    pub(crate) fn is_of_engine(&self) -> bool {
        self.topic.starts_with("loom.")
    }

    /// The type of the payload.
    pub fn content_type(&self) -> &str {
        let given = self
            .extra
            .as_ref()
            .and_then(|extra| extra.content_type.as_deref());
        given.unwrap_or("application/json")
    }

    /// Whether the payload is JSON.
    pub fn is_json(&self) -> bool {
        let kind = self.content_type();
        kind == "application/json" || kind.ends_with("+json")
    }
}

#[cfg(test)]
mod tests {
    use super::Position;
    use crate::error::Code;

    fn position(epoch: u32, n: u64) -> Position {
        Position {
            partition: 1,
            epoch,
            n,
        }
    }

    // requirement: SDKLOG-POSITION
    #[test]
    fn texts_of_positions_are_ordered_as_the_positions_are_and_read_back() {
        let edges = [
            0,
            1,
            9,
            15,
            16,
            255,
            256,
            4_095,
            1 << 32,
            u64::MAX - 1,
            u64::MAX,
        ];
        let epochs = [1, 15, 16, u32::MAX];
        let all: Vec<Position> = epochs
            .into_iter()
            .flat_map(|epoch| edges.map(|n| position(epoch, n)))
            .collect();
        for one in &all {
            assert_eq!(one.to_string().parse::<Position>().ok(), Some(*one));
            for other in &all {
                assert_eq!(one.cmp(other), one.to_string().cmp(&other.to_string()));
            }
        }
    }

    // requirement: SDKLOG-POSITION
    #[test]
    fn what_is_no_position_is_refused() {
        let wrong = [
            "",
            "-",
            "a1",
            "a1-a1",
            "a1-a1-",
            "a1-a1-a1-a1",
            "a1-a1-b1",
            "a1-a1-aF",
            "a1-a1-a+1",
            "é1-a1-a1",
            "a1-a1-ué",
            "a1-i100000000-a1",
            "now",
            " a1-a1-a1",
        ];
        for text in wrong {
            let error = text.parse::<Position>().err();
            assert_eq!(
                error.map(|error| error.code),
                Some(Code::InvalidCursor),
                "{text:?}"
            );
        }
    }
}
