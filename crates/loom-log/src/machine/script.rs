//! What is done one after the other, with nothing else under way: making safe what was recovered, beginning a segment,
//! overwriting what a failed write left.

use std::collections::VecDeque;

use super::{Active, Machine, Next, Phase, Planted, Purpose, Refusal};
use crate::format::{HEADER_BYTES, Header};
use crate::storage::{Directory, Failure, File, Op};

/// Things to do in this order.
#[derive(Debug)]
pub(super) struct Script {
    left: VecDeque<Op>,
    under_way: bool,
}

impl Script {
    pub(super) fn new(ops: impl IntoIterator<Item = Op>) -> Self {
        Self {
            left: ops.into_iter().collect(),
            under_way: false,
        }
    }

    pub(super) const fn is_under_way(&self) -> bool {
        self.under_way
    }

    pub(super) fn next(&mut self) -> Option<Op> {
        let op = self.left.pop_front();
        self.under_way = op.is_some();
        op
    }
}

impl Machine {
    pub(super) fn script_done(&mut self, result: Result<(), Failure>) {
        self.script.under_way = false;
        let Err(failure) = result else { return };
        let may_wait = matches!(self.phase, Phase::Rotating | Phase::Repairing);
        let closes = self.closing.is_some() && self.phase == Phase::Repairing;
        if !may_wait || closes || failure != Failure::NoSpace {
            return self.fence(failure);
        }
        // The next segment is made anew, or the zeros are written again, when the next batch comes.
        self.script.left.clear();
        if self.phase == Phase::Rotating {
            self.next = Next::Failed;
        }
        self.phase = Phase::Open;
        self.refuse_pending(&Refusal::NoRoom(failure));
    }

    /// Says that the machine may go on.
    pub(super) fn script_ended(&mut self) -> bool {
        match self.phase {
            Phase::Rotating => {
                self.active = Some(Active {
                    first: self.written,
                    bytes: self.bounds.segment_bytes,
                    at: HEADER_BYTES,
                });
                self.next = Next::None;
            }
            Phase::Repairing => self.smeared = None,
            _ => {}
        }
        self.phase = Phase::Open;
        true
    }

    /// Overwrites what a write without space left behind, before anything is written there again.
    pub(super) fn repair(&mut self) -> bool {
        let Some((from, to)) = self.smeared else {
            return false;
        };
        let Some(active) = self.active else {
            return false;
        };
        if !self.is_quiet() || (self.pending.is_empty() && self.closing.is_none()) {
            return false;
        }
        let file = File::Segment(active.first);
        self.script = Script::new([Op::Zero { file, from, to }, Op::Sync { file }]);
        self.phase = Phase::Repairing;
        true
    }

    /// Makes the next segment while there is room in this one.
    pub(super) fn prepare_early(&mut self) {
        let half = |active: Active| active.at >= active.bytes / 2;
        if self.next == Next::None && self.active.is_some_and(half) && self.closing.is_none() {
            self.make_next(false);
        }
    }

    fn make_next(&mut self, needed: bool) {
        let bytes = self.bounds.segment_bytes;
        self.issue(
            Purpose::Next,
            Op::Create {
                file: File::Next,
                bytes,
            },
        );
        self.next = Next::Making { needed };
    }

    pub(super) fn next_done(&mut self, result: Result<(), Failure>) {
        let needed = self.next == Next::Making { needed: true };
        match result {
            Ok(()) => self.next = Next::Ready,
            Err(failure) => {
                self.next = Next::Failed;
                if needed {
                    self.refuse_pending(&Refusal::NoRoom(failure));
                }
            }
        }
    }

    /// Whether the batch that comes next does not fit into the segment.
    pub(super) fn needs_room(&self) -> bool {
        self.pending
            .front()
            .is_some_and(|append| !self.fits(append, 0))
    }

    /// Leads to a segment with room, one thing at a time.
    pub(super) fn make_room(&mut self) -> bool {
        if self.written > self.synced && !self.bug.is(Planted::RotatesUnsynced) {
            return self.begin_sync();
        }
        match self.next {
            Next::None | Next::Failed => self.make_next(true),
            Next::Ready if self.is_quiet() => {
                self.rotate();
                return true;
            }
            Next::Making { .. } | Next::Ready => {}
        }
        false
    }

    fn rotate(&mut self) {
        let first = self.written;
        let header = Header {
            log: self.log,
            first,
            epoch: self.epoch,
            bytes: self.bounds.segment_bytes,
        };
        let write = Op::Write {
            file: File::Next,
            at: 0,
            bytes: header.encode(),
        };
        let sync = Op::Sync { file: File::Next };
        let (from, to) = (File::Next, File::Segment(first));
        let rename = Op::Rename { from, to };
        let directory = Directory::Log;
        let mut script = vec![write, sync, rename, Op::SyncDirectory { directory }];
        if self.bug.is(Planted::HeaderUnsynced) {
            script.remove(1);
        }
        if self.bug.is(Planted::NamesUnsynced) {
            script.pop();
        }
        self.script = Script::new(script);
        self.phase = Phase::Rotating;
    }
}
