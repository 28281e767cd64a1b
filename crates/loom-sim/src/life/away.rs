//! How a life ends: everybody leaves. The log waits for nobody longer than it may, and lets nobody keep it too large; who
//! held what goes is told.

use loom_core::{Handle, Offer, Publish, Qos, SessionId};

use super::Life;
use crate::trace::{Check, broken, ensure};

/// The one partition of a life.
const PART: u32 = 1;

impl Life {
    pub(super) fn all_leave(&mut self) -> Check {
        self.note("all leave");
        let Ok(id) = self.core.attach("n", "ear") else {
            return broken("LEASE-FENCED", "nobody may attach any more");
        };
        let topics = ["loom.error.cursor_expired"];
        let Ok(ear) = self.core.subscribe(id, &topics, Qos::Batched) else {
            return broken("LEASE-FENCED", "nobody may listen any more");
        };
        for at in 0..self.peers.len() {
            let session = self.session(at);
            if let Some(peer) = self.peers.get_mut(at).filter(|peer| peer.live) {
                peer.live = false;
                self.core.close(session, self.at);
            }
        }
        self.agents.clear();
        self.held.clear();
        self.rest()?;
        let told = if self.dice.chance(50) {
            self.wait_for_long()?
        } else {
            self.grow_too_large(id)?
        };
        self.rest()?;
        let heard = self.hear(id, ear);
        ensure(heard == told, "DUR-HOLD", || {
            format!("{heard} were told of what they lost, not {told}")
        })
    }

    /// The log answers until there is nothing more.
    fn rest(&mut self) -> Check {
        while self.serve_all()? {}
        self.look()
    }

    /// What was told, also what there was no room for.
    fn hear(&mut self, id: SessionId, ear: Handle) -> u64 {
        let (mut heard, mut done) = (0, None);
        while let Ok(Some(given)) = self.core.take(id, ear, done, self.at) {
            done = given.lease;
            heard += 1;
        }
        heard + self.core.lost(id, ear).unwrap_or_default()
    }

    /// Nobody comes for longer than a group is waited for: each is ended, once, whatever is written meanwhile.
    fn wait_for_long(&mut self) -> Check<u64> {
        let groups = self
            .core
            .partition(PART)
            .map(|part| part.consumers().count());
        let idle_ms = self.limits.consumer_idle_seconds * 1_000;
        for part in [idle_ms / 2, idle_ms / 2 - 1, 1, 1] {
            self.note(format!("nobody for {part} ms"));
            self.at.now = self.at.now.plus_millis(part);
            self.at.wall_ms += part;
            self.core.tick(self.at);
            self.core.flush_acks();
            self.core.stop_holding(PART, self.at);
            self.rest()?;
        }
        let needs = self.core.needs(PART);
        ensure(needs.is_none(), "DUR-NEEDS", || {
            format!("{needs:?} is needed by a group that is away for too long")
        })?;
        self.seen.note("group ended");
        Ok(groups.unwrap_or_default() as u64)
    }

    /// The log deletes what everybody still needs, and what is dead.
    fn grow_too_large(&mut self, id: SessionId) -> Check<u64> {
        let Ok(sender) = self.core.root(id) else {
            return broken("LEASE-FENCED", "a live session has no root");
        };
        let publish = Publish {
            sender,
            turn: None,
            topic: "d.a",
            payload: Box::from(&b"{}"[..]),
            qos: Qos::Batched,
            options: None,
            ack: None,
            eager: false,
        };
        let offer = self.core.offer(id, publish, self.at);
        ensure(matches!(offer, Ok(Offer::Logging(_))), "DUR-LEVEL", || {
            format!("{offer:?} is not logged")
        })?;
        self.rest()?;
        let groups: Vec<u32> = match self.core.partition(PART) {
            Some(part) => part.consumers().map(|it| it.consumer).collect(),
            None => Vec::new(),
        };
        let dead = self.core.dead("n");
        let with_dead = groups.iter();
        let with_dead = with_dead.filter(|group| dead.iter().any(|it| it.consumer == **group));
        let told = groups.len() + with_dead.count();
        let oldest = self.next;
        self.note(format!("all before {oldest} is deleted"));
        for _ in 0..2 {
            let files = ["{}".to_owned(), "{}".to_owned()];
            self.core.deleted(PART, Some(oldest), &files, self.at);
        }
        let needs = self.core.needs(PART);
        ensure(
            needs.is_none_or(|needs| needs >= oldest),
            "DUR-HOLD",
            || format!("{needs:?} is needed, and deleted"),
        )?;
        self.seen.note("group let go");
        Ok(told as u64)
    }
}
