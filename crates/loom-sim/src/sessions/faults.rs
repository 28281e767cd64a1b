//! What goes wrong in the world of sessions.

use loom_core::Nanos;
use loom_session::Why;

use super::book::{Ear, GROUPS};
use super::{End, World};
use crate::trace::Check;

impl World {
    pub(super) fn fault(&mut self) -> Check {
        match self.dice.between(0, 99) {
            0..=39 => self.cut(),
            40..=54 => {
                self.get_stuck();
                Ok(())
            }
            55..=62 => self.freeze(),
            63..=68 => {
                self.stall();
                Ok(())
            }
            69..=79 => self.restart(),
            80..=83 => self.lose_process(),
            84..=86 => {
                self.join();
                Ok(())
            }
            87..=88 => {
                self.revoke();
                Ok(())
            }
            89..=91 => self.drain_node(),
            _ => {
                let millis = self.dice.between(1_000, 80_000);
                self.pass(millis)
            }
        }
    }

    fn some_wire(&mut self) -> Option<u64> {
        let held = self
            .wires
            .iter()
            .filter(|(_, wire)| wire.at_client && wire.at_node);
        let held: Vec<u64> = held.map(|(conn, _)| *conn).collect();
        self.dice.pick(&held)
    }

    /// A connection ends; its ends learn of that at once, later, or only by silence.
    fn cut(&mut self) -> Check {
        let Some(conn) = self.some_wire() else {
            return Ok(());
        };
        let how = self.dice.between(0, 3);
        self.note(format!("cut {conn}, {how}"));
        let Some(wire) = self.wires.get_mut(&conn) else {
            return Ok(());
        };
        let end = wire.end;
        let keep = (
            self.dice.count(0, wire.to_node.flying()),
            self.dice.count(0, wire.to_client.flying()),
        );
        let inside = (how == 1 && keep.0 > 0) || (how == 2 && keep.1 > 0);
        self.seen.note_if("cut inside a packet", inside);
        let parts = self
            .ends
            .get(end)
            .is_some_and(|it| it.heard_by_client.has_parts() || it.heard_by_node.has_parts());
        self.seen.note_if("cut inside of parts", parts);
        let why = Why::Broken("cut".to_owned());
        match how {
            0 => {
                wire.to_node.cut(0);
                wire.to_client.cut(0);
                wire.at_node = false;
                self.client_loses(end, conn, &why);
                self.node_loses(conn)
            }
            1 => {
                wire.to_node.cut(keep.0);
                if self.dice.chance(25) {
                    // The node hears nothing any more, not even that.
                    wire.to_node.ended = false;
                    wire.to_node.stuck_until = Nanos(u64::MAX);
                } else if self.dice.chance(50) {
                    let millis = self.dice.between(50, 4_000);
                    wire.to_node.stuck_until = self.at.now.plus_millis(millis);
                }
                self.client_loses_only(end, conn, &why);
                Ok(())
            }
            2 => {
                wire.to_client.cut(keep.1);
                wire.at_node = false;
                wire.to_node.cut(0);
                self.node_loses(conn)
            }
            _ => {
                // The node's side ends the stream well.
                wire.to_client.ended = true;
                wire.ends_well = true;
                wire.at_node = false;
                wire.to_node.cut(0);
                self.node_loses(conn)
            }
        }
    }

    /// A client that has waited too long for a welcome tries again; what it has said comes late.
    pub(super) fn give_up(&mut self, end: usize) {
        let conn = self.ends.get(end).and_then(|found| found.wire);
        let doomed = |wire: &mut super::wire::Wire| std::mem::take(&mut wire.doomed);
        if let Some(conn) = conn
            && self.wires.get_mut(&conn).is_some_and(doomed)
        {
            if let Some(wire) = self.wires.get_mut(&conn) {
                wire.to_node.ended = true;
            }
            self.client_loses_only(end, conn, &Why::Broken("no welcome".to_owned()));
        }
    }

    /// The client knows; what it has sent is still under way.
    fn client_loses_only(&mut self, end: usize, conn: u64, why: &Why) {
        let ended = self.wires.get(&conn).is_some_and(|wire| wire.to_node.ended);
        self.client_loses(end, conn, why);
        if let Some(wire) = self.wires.get_mut(&conn) {
            wire.to_node.ended = ended;
        }
    }

    fn get_stuck(&mut self) {
        let Some(conn) = self.some_wire() else { return };
        let until = self.at.now.plus_millis(self.dice.between(500, 40_000));
        let (up, down) = match self.dice.between(0, 2) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        self.seen.note(if up && down {
            "stuck both ways"
        } else {
            "stuck one way"
        });
        self.note(format!("{conn} is stuck: {up} {down}"));
        if let Some(wire) = self.wires.get_mut(&conn) {
            if up {
                wire.to_node.stuck_until = until;
            }
            if down {
                wire.to_client.stuck_until = until;
            }
        }
    }

    fn freeze(&mut self) -> Check {
        // One with a durable turn, if there is one: others are to do its work meanwhile.
        let within = |end: &End| end.is_well() && end.turns.iter().any(|turn| turn.durable);
        let all = (0..).zip(&self.ends).filter(|(_, end)| within(end));
        let busy: Vec<usize> = all.map(|(at, _)| at).collect();
        let Some(end) = self.dice.pick(&busy).or_else(|| self.some_end()) else {
            return Ok(());
        };
        let millis = self.dice.between(500, 120_000);
        let until = self.at.now.plus_millis(millis);
        self.seen.note("process frozen");
        self.note(format!("{end} is frozen"));
        if let Some(found) = self.ends.get_mut(end) {
            (found.frozen, found.frozen_until, found.risky) = (true, until, true);
        }
        // Nobody else does anything until it goes on: its session may be over by then.
        if self.dice.chance(20) {
            return self.pass(millis);
        }
        Ok(())
    }

    /// The loop of an app stands still; its link goes on.
    fn stall(&mut self) {
        let Some(end) = self.some_end() else { return };
        let until = self.at.now.plus_millis(self.dice.between(500, 60_000));
        self.seen.note("loop stalled");
        self.note(format!("{end} stalls"));
        if let Some(found) = self.ends.get_mut(end) {
            (found.stalled, found.stalled_until, found.risky) = (true, until, true);
            found.machine.stalls("somewhere");
        }
    }

    pub(super) fn restart(&mut self) -> Check {
        if self.back_at.is_some() {
            return Ok(());
        }
        let running = self
            .ends
            .iter()
            .any(|end| end.turns.iter().any(|turn| turn.durable));
        self.seen
            .note_if("node restarted with a durable turn running", running);
        self.is_whole = false;
        let at = self.at;
        self.node.restart(&mut self.dice, at)?;
        self.note(format!("the node restarts: life {}", self.node.boot));
        for wire in self.wires.values_mut() {
            if wire.at_node {
                let keep = self.dice.count(0, wire.to_client.flying());
                wire.to_client.cut(keep);
            }
            wire.at_node = false;
            wire.to_node.cut(0);
        }
        for end in &mut self.ends {
            (end.carrier, end.lost_at) = (None, None);
        }
        // A group that was not synced is gone with the power.
        for (group, (name, _)) in GROUPS.iter().enumerate() {
            let is_there = self.node.written.values().any(
                |record| matches!(record, loom_core::Record::Consumer(it) if it.group == *name),
            );
            if !is_there {
                self.book.since.remove(&Ear::Group(group));
            }
        }
        self.back_at = Some(at.now.plus_millis(self.dice.between(0, 3_000)));
        Ok(())
    }

    /// A process ends, well or not.
    fn lose_process(&mut self) -> Check {
        let Some(end) = self.some_end() else {
            return Ok(());
        };
        let well = self.dice.chance(50);
        self.is_whole = false;
        self.note(format!("{end} ends, well: {well}"));
        self.seen.note(if well {
            "client closed"
        } else {
            "client killed"
        });
        if well && let Some(found) = self.ends.get_mut(end) {
            found.machine.close();
            self.flow()?;
        }
        self.book.forget(end);
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        found.is_gone = true;
        found.regs.clear();
        found.turns.clear();
        if let Some(conn) = found.wire {
            self.client_loses(end, conn, &Why::Ended);
        }
        Ok(())
    }

    fn revoke(&mut self) {
        let Some(end) = self.some_end() else { return };
        let Some(found) = self.ends.get_mut(end) else {
            return;
        };
        let at = self.at;
        self.is_whole = false;
        if self.dice.chance(50) {
            self.seen.note("token revoked");
            self.node.tokens.remove(&found.token);
        } else {
            self.seen.note("token expired");
            let end_ms = at.wall_ms + self.dice.between(10, 20_000);
            self.node.tokens.insert(found.token, Some(end_ms));
        }
        found.expires = true;
        self.note(format!("the token of {end} goes"));
        if self.back_at.is_none() {
            self.node.set_authority(at);
        }
    }

    fn drain_node(&mut self) -> Check {
        if self.back_at.is_some() {
            return Ok(());
        }
        self.seen.note("drained");
        self.note("drain");
        self.is_whole = false;
        self.node.hub.drain(5_000);
        for _ in 0..20 {
            let at = self.at;
            self.pass(250)?;
            self.node.serve_log(&mut self.dice, true, at);
            if self.node.hub.is_drained() {
                break;
            }
        }
        self.restart()
    }

    /// Nothing more goes wrong.
    pub(super) fn heal(&mut self) -> Check {
        self.healed = true;
        let now = self.at.now;
        for end in &mut self.ends {
            end.frozen_until = now;
            end.stalled_until = now;
        }
        for wire in self.wires.values_mut() {
            let for_ever = wire.to_node.stuck_until == Nanos(u64::MAX);
            if !for_ever {
                wire.to_node.stuck_until = now;
            }
            wire.to_client.stuck_until = now;
        }
        self.pass(1)?;
        self.join();
        Ok(())
    }

    /// Each group that consumes has a member.
    pub(super) fn attend(&mut self) -> Check {
        let Some(last) = self.ends.len().checked_sub(1) else {
            return Ok(());
        };
        for group in 0..GROUPS.len() {
            let living = (0..self.ends.len()).rev();
            let host = living.clone().find(|at| self.is_host(*at)).unwrap_or(last);
            if self.book.since.contains_key(&Ear::Group(group)) && !self.has_member(group) {
                self.enrol_as(host, super::Sort::Group(group))?;
            }
        }
        Ok(())
    }

    fn is_host(&self, at: usize) -> bool {
        let found = self.ends.get(at);
        found.is_some_and(|end| end.is_well() && !end.expires && end.regs.len() < 6)
    }

    fn has_member(&self, group: usize) -> bool {
        let living = self.ends.iter().filter(|end| end.is_well() && !end.expires);
        let mut regs = living.flat_map(|end| end.regs.values());
        regs.any(|reg| reg.sort == super::Sort::Group(group))
    }
}
