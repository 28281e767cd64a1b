//! What a shell asks of the open logs.

use crate::arena::{Handle, SessionId};
use crate::core::{Core, Kind};
use crate::envelope::Position;
use crate::error::{Code, Error, Result};
use crate::time::Moment;

/// blake3 of some bytes.
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    blake3::hash(bytes).into()
}

impl Core {
    /// The open logs: their namespaces and numbers, by number.
    pub fn partitions(&self) -> impl Iterator<Item = (&str, u32)> {
        self.parts
            .iter()
            .map(|(number, part)| (&*part.namespace, *number))
    }

    /// The oldest position that a log keeps.
    pub fn oldest(&self, partition: u32) -> u64 {
        self.parts
            .get(&partition)
            .map_or(0, |part| part.opened.oldest)
    }

    /// Checks a place that somebody wants to read a log from.
    ///
    /// # Errors
    /// `INVALID_CURSOR` for one of another log or another life of it, `CURSOR_EXPIRED` for what is not kept any more.
    pub fn cursor(&self, partition: u32, at: Position) -> Result<u64> {
        let part = self
            .parts
            .get(&partition)
            .ok_or_else(|| Error::new(Code::NotSupported, "no log is open here").field("start"))?;
        part.folded.check_cursor(partition, part.opened.oldest, at)
    }

    /// Retention has deleted files of a log, up to this position: each is told on `loom.log.deleted` with its facts, in
    /// JSON, and the groups that needed what they held are told so.
    pub fn deleted(&mut self, partition: u32, oldest: Option<u64>, files: &[String], at: Moment) {
        let before = self.oldest(partition);
        if let Some(oldest) = oldest {
            self.set_oldest(partition, oldest);
        }
        let space = self
            .parts
            .get(&partition)
            .and_then(|part| self.space_index.get(&part.namespace).copied());
        if let Some(space) = space {
            for facts in files {
                self.say(space, "loom.log.deleted".to_owned(), None, || {
                    facts.clone().into_bytes()
                });
            }
        }
        if let Some(oldest) = oldest {
            self.go_on_behind(partition, (before, oldest));
        }
        self.flush(at);
    }

    /// The name that a handle sends as.
    ///
    /// # Errors
    /// `FENCED` for a handle of another session.
    pub fn name_of(&self, session: SessionId, handle: Handle) -> Result<&str> {
        self.registration(session, handle).map(|found| &*found.name)
    }

    /// How many events a subscription has lost so far.
    ///
    /// # Errors
    /// `FENCED` for a handle of another session; `INVALID_PARAMS` for one that hears nothing.
    pub fn lost(&self, session: SessionId, handle: Handle) -> Result<u64> {
        let Kind::Subscription(sub) = self.registration(session, handle)?.kind else {
            return Err(Error::invalid("handle", "only a subscription loses events"));
        };
        let total = self.subs.get(sub).map(|sub| sub.books.total());
        Ok(total.map_or(0, |total| total.dropped.total()))
    }
}
