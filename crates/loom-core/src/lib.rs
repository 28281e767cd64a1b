//! The engine of Loom as a state machine: an event bus, an action broker and a directory.
//!
//! It does no I/O, reads no clock, starts no thread and draws no random number: every call is told the
//! [`Moment`], and the seed of the ids is given once. A shell puts one lock around a [`Core`] and drives it;
//! a simulator drives the same code with a virtual clock.
//!
//! It is not a server and not a log: what needs a log leaves under a ticket by [`Core::take_records`], and comes back
//! through [`Core::logged`] or [`Core::refused`].
#![warn(missing_docs)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        reason = "a test says what it expects by failing"
    )
)]

mod ack;
mod arena;
mod audit;
mod books;
mod breaker;
mod broker;
mod bulkhead;
mod bus;
mod consume;
mod core;
mod credit;
mod directory;
mod durable;
mod effect;
mod envelope;
mod error;
mod grants;
mod group;
mod health;
mod holding;
mod ident;
mod input;
mod job;
mod keeping;
mod lane;
mod ledger;
mod limits;
mod logs;
mod notice;
mod park;
mod part;
mod partition;
mod planted;
mod probe;
mod read;
pub mod record;
mod recorder;
mod report;
mod request;
mod run;

mod redrive;
mod retry;
mod roster;
mod selection;
mod session;
mod space;
#[path = "gen/mod.rs"]
pub mod spec;
mod stats;
mod stream;
mod subscription;
mod ticket;
mod time;
mod timers;
mod topic;
mod topics;
mod trie;
mod turn;
mod version;

pub use crate::arena::{CallId, Handle, Key, LeaseId, SessionId, Ticket};
pub use crate::audit::{Audit, AuditedSubscription};
pub use crate::books::{Dropped, Reason, Summary};
pub use crate::core::Core;
pub use crate::directory::DirectoryKind;
pub use crate::envelope::{EffectClass, Envelope, Extra, Origin, Position, Qos};
pub use crate::error::{Code, Detail, Error, Result};
pub use crate::grants::Grants;
pub use crate::health::Health;
pub use crate::ident::{Ident, Ids, parse_uuid, show_uuid};
pub use crate::input::{
    AgentSpec, Attach, Fault, GrantTexts, Invoke, LogLine, Options, ProviderSpec, Publish, Reply,
    Report, Request, Start,
};
pub use crate::ledger::{EffectCounts, EffectStats, Resolution, Resolve};
pub use crate::limits::Limits;
pub use crate::logs::digest;
pub use crate::notice::{Delivery, Notice, Offer, Receipt, Work};
pub use crate::part::{Durability, Opened};
pub use crate::partition::{
    Begun, ConsumerState, DeadLetter, Effect, EffectState, KeptMemory, KeptState, Partition,
};
#[cfg(feature = "planted")]
pub use crate::planted::Planted;
pub use crate::probe::{ProbeAnswer, Probed};
pub use crate::read::{Fed, Read};
pub use crate::record::{Level, Outgoing, Record};
pub use crate::recorder::{Recording, Told};
pub use crate::roster::SessionInfo;
pub use crate::selection::Weights;
pub use crate::stats::{
    CapabilityStats, ClassStats, ConsumerStats, EventCounts, Gauges, LogStats, ProviderStats,
    Stats, SubscriptionStats, TopicStats, Waits,
};
pub use crate::time::{Moment, Nanos};
pub use crate::topic::{Filter, check_name, check_topic};
