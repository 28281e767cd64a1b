//! What groups hold of the log, and how they stop: one that nobody belongs to for long is ended, and one that still needs
//! what went because the log was too large goes on behind it. Either is told, and never passed over.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::smallvec;

use crate::consume::ConsumerId;
use crate::core::Core;
use crate::error::{Code, Error};
use crate::planted::Planted;
use crate::record::{ConsumerGone, Level, Record};
use crate::report::Subject;
use crate::ticket::Then;
use crate::time::Moment;
use crate::timers::Timer;

/// Records that may stand between a group and its floor in the log before that is written again: as many for each group, so
/// that writing floors is not what makes it necessary.
const FLOOR_RECORDS: u64 = 1_024;

impl Core {
    /// The lowest position that is kept and that a consumer, an open turn or a dead letter still needs; none: nothing is
    /// needed.
    pub fn needs(&self, partition: u32) -> Option<u64> {
        let part = self.parts.get(&partition)?;
        part.folded.needs(part.opened.oldest)
    }

    /// The lowest position that a turn is open on: what it has is kept however large the log is.
    pub fn in_turn(&self, partition: u32) -> Option<u64> {
        let part = self.parts.get(&partition)?;
        let all = part.consumers.values();
        all.filter_map(crate::consume::Consuming::in_turn).min()
    }

    /// Before retention looks: groups that have come far are where they are also in the log, and those that nobody has
    /// belonged to for longer than the limit are ended.
    pub fn stop_holding(&mut self, partition: u32, at: Moment) {
        self.bring_forward(partition);
        self.expire_idle(partition, at);
        self.flush(at);
    }

    /// A group that seldom hears anything has nothing to ack, and would hold the log where it heard something last.
    fn bring_forward(&mut self, partition: u32) {
        let Some(part) = self.parts.get(&partition) else {
            return;
        };
        let end = part.folded.end();
        let far = FLOOR_RECORDS * part.consumers.len() as u64;
        let late = part.consumers.iter().filter(|(_, found)| {
            found.attended && found.taken(end) >= found.floor.saturating_add(far)
        });
        let late: Vec<u32> = late.map(|(number, _)| *number).collect();
        for number in late {
            self.write_progress(ConsumerId { partition, number }, true);
        }
    }

    /// Ends the consumers that nobody has belonged to for longer than the limit: they hold nothing any more.
    fn expire_idle(&mut self, partition: u32, at: Moment) {
        let idle_ms = self.limits.consumer_idle_seconds.saturating_mul(1_000);
        let Some(part) = self.parts.get(&partition) else {
            return;
        };
        let renewed = self.has(Planted::IdleRenewed);
        let idle = part.consumers.iter().filter(|(number, found)| {
            let seen = part.folded.consumer(**number).map(|state| state.seen_ms);
            let since = seen.map(|seen| seen.max(found.left_ms).saturating_add(idle_ms));
            let is_alone = !found.attended && !renewed && found.in_turn().is_none();
            is_alone && since.is_some_and(|over| over <= at.wall_ms)
        });
        let idle: Vec<u32> = idle.map(|(number, _)| *number).collect();
        for number in idle {
            self.expire_consumer(ConsumerId { partition, number }, "idle");
        }
    }

    /// Lets a consumer hold nothing any more: one that nobody belongs to.
    fn expire_consumer(&mut self, id: ConsumerId, why: &str) {
        let Some(found) = self.consuming_mut(id).filter(|found| found.born) else {
            return;
        };
        found.born = false;
        let record = Record::ConsumerGone(ConsumerGone {
            consumer: id.number,
            why: why.to_owned(),
        });
        self.append(id.partition, Level::Os, smallvec![record], Then::Gone(id));
    }

    /// The log knows that a consumer is gone; one that came back meanwhile begins anew.
    pub(crate) fn gone(&mut self, id: ConsumerId) {
        self.forget_waits(id);
        self.end_stall(id);
        let due = self.consuming_mut(id).and_then(|it| it.acks_due.take());
        if let Some(due) = due {
            self.timers.remove(due, Timer::Acks(id));
        }
        let Some(part) = self.parts.get_mut(&id.partition) else {
            return;
        };
        let end = part.folded.end();
        let Some(found) = part.consumers.get_mut(&id.number) else {
            return;
        };
        let group = Arc::clone(&found.group);
        if found.is_declared() {
            found.begin_anew(end);
        } else {
            part.consumers.remove(&id.number);
        }
        if self.has(Planted::EndUntold) {
            return;
        }
        let seconds = self.limits.consumer_idle_seconds;
        let message = format!(
            "nobody has belonged to {group:?} for longer than [log] retention_idle ({seconds} s), so the log holds \
             nothing for it any more"
        );
        let error = Error::new(Code::CursorExpired, message)
            .limit("consumer_idle_seconds")
            .hint(
                "its agents begin anew: with start=\"beginning\" at the oldest event that is kept, else with what comes",
            );
        self.tell_group(id.partition, group, &error);
    }

    /// A group that was ended is back, and begins anew.
    pub(crate) fn tell_missed(&mut self, id: ConsumerId, needed: u64) {
        let Some(found) = self.consuming(id) else {
            return;
        };
        let group = Arc::clone(&found.group);
        let message = format!(
            "{group:?} was ended because nobody belonged to it; it begins anew, and what it had not done from position \
             {needed:x} on is not given to it"
        );
        let error = Error::new(Code::CursorExpired, message).hint(
            "what is still kept of it can be read by ctx.watch(…, start=\"beginning\"); \
             [log] retention_idle says how long a group is waited for",
        );
        self.tell_group(id.partition, group, &error);
    }

    /// What was before this position is not kept any more, whoever needed it: the log was too large. Who did is told,
    /// once for each loss, or once while nobody belongs to it.
    pub(crate) fn go_on_behind(&mut self, partition: u32, (before, oldest): (u64, u64)) {
        let Some(part) = self.parts.get_mut(&partition) else {
            return;
        };
        let end = part.folded.end();
        let mut letters: BTreeMap<u32, usize> = BTreeMap::new();
        for letter in part.folded.dead() {
            if (before..oldest).contains(&letter.n) {
                *letters.entry(letter.consumer).or_default() += 1;
            }
        }
        let mut told = Vec::new();
        for (number, found) in &mut part.consumers {
            let needs = found.needs(end);
            let is_new = found.attended || found.told_below == 0;
            let is_late = found.born && needs < oldest;
            if is_late {
                found.told_below = oldest;
            }
            let dead = letters.get(number).copied().unwrap_or_default();
            if (is_late && is_new) || dead > 0 {
                let late = (is_late && is_new).then_some(needs);
                told.push((Arc::clone(&found.group), late, dead));
            }
        }
        if self.has(Planted::EndUntold) {
            return;
        }
        for (group, late, dead) in told {
            if let Some(needs) = late {
                let message = format!(
                    "{group:?} had not done what stood from position {needs:x} on, and the log was over its limit of \
                     bytes: what stood before {oldest:x} is not kept any more"
                );
                let error = Error::new(Code::CursorExpired, message).hint(
                    "it goes on with what is kept; give it more members, or the log more room: [log] retention_bytes",
                );
                self.tell_group(partition, Arc::clone(&group), &error);
            }
            if dead > 0 {
                let message = format!(
                    "{dead} dead events of {group:?} are not kept any more, as the log was over its limit of bytes"
                );
                let error = Error::new(Code::CursorExpired, message).hint(
                    "they cannot be published anew; publish dead events sooner, or raise [log] retention_bytes",
                );
                self.tell_group(partition, group, &error);
            }
        }
    }

    /// What a consumer should have been given is not kept any more: it goes on behind it. Said unless it was when it
    /// was deleted.
    pub(crate) fn tell_expired(&mut self, id: ConsumerId, n: u64) {
        let Some(found) = self.consuming(id).filter(|it| n >= it.told_below) else {
            return;
        };
        let group = Arc::clone(&found.group);
        let message = format!("{group:?} needs position {n:x}, and it is not kept any more");
        let error = Error::new(Code::CursorExpired, message)
            .hint("it goes on with what is kept; [log] retention_bytes says how much that is");
        self.tell_group(id.partition, group, &error);
    }

    fn tell_group(&mut self, partition: u32, group: Arc<str>, error: &Error) {
        if let Some(space) = self.space_of(partition) {
            let subject = Subject::group(group);
            self.tell_error(space, error.code, &error.detail(), &subject);
        }
    }
}
