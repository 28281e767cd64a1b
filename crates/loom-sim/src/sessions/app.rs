//! What the apps at the ends do: publish, ask, call, register, work, and hear of it.

use bytes::Bytes;
use loom_core::{CallId, Code, Delivery, Handle, LeaseId, Level, Notice, Options, Qos, Ticket};
use loom_proto::v1::{self, frame::Body};
use loom_session::{Invocation, LinkState, Note, Sending, Sent};

use super::book::{Call, Ear, Event, GROUPS, Wait, Within};
use super::{Reg, Sort, Turn, World};
use crate::trace::{Check, broken, ensure};

const TOPICS: &[&str] = &["d.a", "d.b", "b.a", "b.a", "r.a"];
const KEYS: &[&str] = &["k", "l"];
/// Calls that share a key do the same.
const SHARED: u64 = 5;

fn data(tag: u64, size: usize) -> Bytes {
    let mut text = tag.to_string();
    text.push_str(&".".repeat(size));
    Bytes::from(text)
}

pub(super) fn tag_of(payload: &[u8]) -> u64 {
    let digits = payload.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |all, digit| all * 10 + u64::from(digit - b'0'))
}

impl World {
    fn draw_size(&mut self) -> usize {
        match self.dice.between(0, 99) {
            0..=1 => {
                self.seen.note("event in parts");
                self.dice.count(66 << 10, 150 << 10)
            }
            2..=10 => self.dice.count(200, 3_000),
            _ => self.dice.count(0, 40),
        }
    }

    // -- what apps start ---------------------------------------------------------------------------------

    pub(super) fn publish(&mut self) -> Check {
        match self.some_end() {
            Some(end) => self.publish_of(end, 40),
            None => Ok(()),
        }
    }

    /// A process goes on where it stood: its app does not know yet that its session may be over.
    pub(super) fn thaw(&mut self, end: usize) -> Check {
        for _ in 0..self.dice.between(0, 4) {
            self.publish_of(end, 90)?;
            self.send(end)?;
            self.work_on(end, false)?;
        }
        Ok(())
    }

    /// `within`: of a hundred events so many are published in a turn, if one runs.
    fn publish_of(&mut self, end: usize, within: u64) -> Check {
        let topic = self.dice.word(TOPICS);
        let key = self.dice.chance(70).then(|| self.dice.word(KEYS));
        let size = self.draw_size();
        let quoted = self.some_turn(end).filter(|_| self.dice.chance(within));
        let within = quoted.and_then(|(_, lease)| self.within(end, lease));
        let tag = self.book.events.len() as u64;
        let options = key.map(|key| {
            Box::new(Options {
                key: Some(key.to_owned()),
                ..Options::default()
            })
        });
        let sending = Sending {
            sender: quoted.map_or(0, |(handle, _)| handle),
            turn: quoted.map(|(_, lease)| lease),
            topic,
            payload: data(tag, size),
            qos: if topic == "r.a" {
                Qos::Realtime
            } else {
                Qos::Batched
            },
            options,
            ack: (topic.starts_with("d.") && self.dice.chance(20)).then_some(Level::Os),
        };
        let at = self.at;
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        let quoting = quoted.is_some() && !found.risky;
        let sent = found.machine.offer(sending, at);
        self.note(format!(
            "{end} publishes {tag} {topic} {key:?} {quoted:?}: {}",
            sent.is_ok()
        ));
        let accepted = matches!(sent, Ok(Sent::Done(_)));
        self.book.events.push(Event {
            topic,
            key,
            publisher: end,
            position: None,
            accepted: false,
            quoting,
            turn: within.filter(|_| sent.is_ok()),
        });
        match sent {
            Ok(Sent::Waits(ticket)) => self.book.wait(end, ticket.0, Wait::Publish(tag)),
            Ok(Sent::Done(_)) => {}
            Err(error) => {
                self.seen
                    .note_if("client full", error.code == Code::Exhausted);
                let known = matches!(error.code, Code::Exhausted | Code::Fenced);
                ensure(known, "SESSION-FULL", || format!("{error:?}"))?;
            }
        }
        ensure(!accepted || topic == "r.a", "SESSION-EVENTS", || {
            "only realtime is accepted at once".to_owned()
        })
    }

    pub(super) fn request(&mut self) -> Check {
        let Some(end) = self.some_end() else {
            return Ok(());
        };
        let tag = self.book.events.len() as u64;
        let timeout_ms = self.dice.between(50, 20_000);
        let wait = self.dice.chance(30);
        let at = self.at;
        let sending = Sending {
            sender: 0,
            turn: None,
            topic: "q.a",
            payload: data(tag, 5),
            qos: Qos::Batched,
            options: None,
            ack: None,
        };
        self.book.events.push(Event {
            topic: "q.a",
            key: None,
            publisher: end,
            position: None,
            accepted: false,
            quoting: false,
            turn: None,
        });
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        let asked = found.machine.request(sending, (timeout_ms, 1, wait), at);
        self.note(format!("{end} asks {tag}: {asked:?}"));
        self.book_call(end, asked, (timeout_ms, 0))
    }

    fn book_call(
        &mut self,
        end: usize,
        begun: loom_core::Result<CallId>,
        (timeout_ms, granted): (u64, u64),
    ) -> Check {
        match begun {
            Ok(call) => {
                let call_book = Call {
                    deadline: self.at.now.plus_millis(timeout_ms),
                    granted,
                    chunks: 0,
                };
                self.book.calls.insert((end, call.0), call_book);
                Ok(())
            }
            Err(error) => ensure(error.code == Code::Exhausted, "SESSION-FULL", || {
                format!("{error:?}")
            }),
        }
    }

    pub(super) fn call(&mut self) -> Check {
        let Some(end) = self.some_end() else {
            return Ok(());
        };
        let capability = self.dice.word(&["pure", "unsafe", "unsafe", "stream"]);
        let tag = self.next_tag();
        let shared = self.dice.between(0, SHARED - 1);
        let key = (capability == "unsafe" && self.dice.chance(50)).then(|| format!("k{shared}"));
        let payload = match &key {
            Some(_) => data(1_000_000 + shared, 0),
            None => data(tag, 3),
        };
        let credit = if capability == "stream" {
            self.dice.between(1, 3)
        } else {
            0
        };
        let timeout_ms = self.dice.between(50, 30_000);
        let at = self.at;
        let call = Invocation {
            sender: 0,
            turn: None,
            capability,
            version: None,
            payload,
            timeout_ms,
            key: key.as_deref(),
            credit,
        };
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        let begun = found.machine.call(&call, at);
        self.note(format!("{end} calls {capability} {tag} {key:?}: {begun:?}"));
        self.book_call(end, begun, (timeout_ms, credit))
    }

    /// Cancels or grants more to a call, or takes a publish back.
    pub(super) fn think_again(&mut self) -> Check {
        let Some(end) = self.some_end() else {
            return Ok(());
        };
        let calls = self.book.calls.range((end, 0)..=(end, u64::MAX));
        let calls: Vec<(u64, u64)> = calls.map(|((_, call), it)| (*call, it.granted)).collect();
        let open: Vec<u64> = self
            .book
            .open(end)
            .filter(|(_, what)| matches!(what, Wait::Publish(_)))
            .map(|(ticket, _)| *ticket)
            .collect();
        let cancels = self.dice.chance(30);
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        if let Some((call, granted)) = self.dice.pick(&calls) {
            if granted > 0 && !cancels {
                let total = granted + 2;
                found.machine.grant(CallId(call), total);
                if let Some(call) = self.book.calls.get_mut(&(end, call)) {
                    call.granted = total;
                }
            } else if cancels {
                found.machine.cancel(CallId(call));
            }
        } else if let Some(ticket) = self.dice.pick(&open)
            && found.machine.withdraw(Ticket(ticket))
        {
            self.seen.note("publish withdrawn");
            self.book.answered(end, ticket)?;
        }
        self.hear(end)
    }

    pub(super) fn ask(&mut self) -> Check {
        let Some(end) = self.some_end() else {
            return Ok(());
        };
        let kind = self.dice.word(&["agent", "capability"]).to_owned();
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        if let Ok(ticket) = found.machine.ask(|number| {
            Body::Directory(v1::Directory {
                r#ref: number,
                kind,
            })
        }) {
            self.book.wait(end, ticket.0, Wait::Question);
        }
        Ok(())
    }

    // -- registrations -------------------------------------------------------------------------------------

    pub(super) fn enrol(&mut self) -> Check {
        let Some(end) = self.some_end() else {
            return Ok(());
        };
        let sort = match self.dice.between(0, 9) {
            0..=3 => Sort::Group(self.dice.count(0, GROUPS.len() - 1)),
            4..=5 => Sort::Plain,
            6 => Sort::Stream,
            7 => Sort::Asked,
            _ => Sort::Provider(self.dice.word(&["pure", "unsafe", "stream"])),
        };
        self.enrol_as(end, sort)
    }

    pub(super) fn enrol_as(&mut self, end: usize, sort: Sort) -> Check {
        let tag = self.next_tag();
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        if found.regs.len() > 6 {
            return Ok(());
        }
        let name = match sort {
            Sort::Group(group) => GROUPS.get(group).map_or("", |(name, _)| name).to_owned(),
            _ => format!("a{tag}"),
        };
        let shown = name.clone();
        let Ok(handle) = found.machine.enrol(|handle| sort.frame(handle, shown)) else {
            return Ok(());
        };
        let reg = Reg {
            sort,
            name,
            ready: false,
            accepted: false,
        };
        found.regs.insert(handle.0, reg);
        self.book.wait(end, handle.0, Wait::Registration);
        self.note(format!("{end} enrols {handle:?} {sort:?}"));
        Ok(())
    }

    pub(super) fn remove(&mut self) -> Check {
        let Some(end) = self.some_end() else {
            return Ok(());
        };
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        let all: Vec<u64> = found
            .regs
            .iter()
            .filter(|(_, reg)| reg.accepted)
            .map(|(handle, _)| *handle)
            .collect();
        let Some(handle) = self.dice.pick(&all) else {
            return Ok(());
        };
        found.regs.remove(&handle);
        found.machine.remove(Handle(handle));
        self.book.since.remove(&Ear::Own(end, handle));
        // What it has published may come behind its end.
        let own = self.book.events.iter_mut().filter(|it| it.publisher == end);
        own.for_each(|event| event.quoting = false);
        self.note(format!("{end} removes {handle}"));
        Ok(())
    }

    // -- work ----------------------------------------------------------------------------------------------

    /// Takes what there is of one registration that was told to be ready.
    pub(super) fn take_one(&mut self) -> Check<bool> {
        let Some(end) = self.some_end() else {
            return Ok(false);
        };
        let Some(found) = self.ends.get(end) else {
            return Ok(false);
        };
        let ready: Vec<u64> = found
            .regs
            .iter()
            .filter(|(_, reg)| reg.ready)
            .map(|(handle, _)| *handle)
            .collect();
        match self.dice.pick(&ready) {
            Some(handle) => self.take(end, handle, None),
            None => Ok(false),
        }
    }

    pub(super) fn take(&mut self, end: usize, handle: u64, done: Option<LeaseId>) -> Check<bool> {
        let at = self.at;
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(false);
        };
        let taken = match found.machine.take(Handle(handle), done, at) {
            Ok(taken) => taken,
            Err(error) => {
                ensure(error.code == Code::Fenced, "LEASE-FENCED", || {
                    format!("{error:?}")
                })?;
                None
            }
        };
        let Some(reg) = found.regs.get_mut(&handle) else {
            return ensure(taken.is_none(), "LEASE-FENCED", || {
                format!("{handle} was removed, and hears on")
            })
            .map(|()| false);
        };
        reg.ready = taken.is_some();
        let sort = reg.sort;
        match taken {
            Some(delivery) => self.begin(end, (handle, sort), &delivery).map(|()| true),
            None => Ok(false),
        }
    }

    fn begin(&mut self, end: usize, (handle, sort): (u64, Sort), it: &Delivery) -> Check {
        let tag = tag_of(&it.envelope.payload);
        let Some(lease) = it.lease else {
            return broken("LEASE-FENCED", "a turn without a lease");
        };
        self.note(format!(
            "{end} begins {tag} at {handle}, attempt {}",
            it.attempt
        ));
        let key = it.envelope.key.as_ref().map(ToString::to_string);
        if it.work.is_none() {
            let place = (sort.ear(end, handle), sort.filters());
            let position = it.envelope.position;
            self.book.is_whole = self.is_whole;
            self.book.handed(place, (end, handle), tag, position)?;
            self.check_lane(end, handle, key.as_deref())?;
        } else if sort == Sort::Provider("unsafe") {
            self.book.begun(&format!("unsafe {tag}"))?;
        }
        self.seen
            .note_if("durable turn given again", it.durable && it.attempt > 1);
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        found.turns.push(Turn {
            handle,
            lease,
            sort,
            tag,
            key,
            durable: it.durable,
            asked: it.asked,
            streamed: it.work.is_some_and(|work| work.streamed),
            chunks: 0,
            life: found.life,
            again: false,
        });
        Ok(())
    }

    /// One turn of a lane at a time.
    fn check_lane(&self, end: usize, handle: u64, key: Option<&str>) -> Check {
        // What is not durable and came before a node's end goes beside what comes after it.
        let is_durable = matches!(self.ends.get(end).and_then(|it| it.regs.get(&handle)), Some(reg) if matches!(reg.sort, Sort::Group(_)));
        let counts = key.is_some() && (self.is_whole || is_durable);
        let Some(found) = self.ends.get(end).filter(|_| counts) else {
            return Ok(());
        };
        let same = |turn: &&Turn| {
            turn.handle == handle && turn.key.as_deref() == key && turn.life == found.life
        };
        ensure(
            !found.turns.iter().any(|turn| same(&turn)),
            "SESSION-ORDER",
            || format!("two turns at once of key {key:?} at {handle} of client {end}"),
        )
    }

    /// The durable turn of a lease.
    fn within(&self, end: usize, lease: LeaseId) -> Option<Within> {
        let found = self.ends.get(end)?;
        let turn = found.turns.iter().find(|it| it.lease == lease)?;
        turn.durable.then(|| Within {
            end,
            handle: turn.handle,
            tag: turn.tag,
            boot: found.boot.clone(),
        })
    }

    fn some_turn(&mut self, end: usize) -> Option<(u64, LeaseId)> {
        let found = self.ends.get(end)?;
        let own = |turn: &&Turn| {
            found.regs.contains_key(&turn.handle)
                && turn.life == found.life
                && !matches!(turn.sort, Sort::Provider(_) | Sort::Stream | Sort::Asked)
        };
        let turns: Vec<(u64, LeaseId)> = found
            .turns
            .iter()
            .filter(own)
            .map(|turn| (turn.handle, turn.lease))
            .collect();
        self.dice.pick(&turns)
    }

    /// Ends one turn, or says something of it. Whether there was one.
    pub(super) fn work_on(&mut self, end: usize, well: bool) -> Check<bool> {
        let count = self.ends.get(end).map_or(0, |found| found.turns.len());
        if count == 0 {
            return Ok(false);
        }
        let at = self.dice.count(0, count - 1);
        let chance = if well { 100 } else { self.dice.between(0, 99) };
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(false);
        };
        let turn = found.turns.remove(at);
        self.note(format!("{end} goes on with {} ({chance})", turn.tag));
        match turn.sort {
            Sort::Provider(_) => self.end_call(end, turn, chance)?,
            _ => self.end_turn(end, turn, chance)?,
        }
        self.hear(end)?;
        Ok(true)
    }

    fn end_call(&mut self, end: usize, mut turn: Turn, chance: u64) -> Check {
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        if turn.streamed && (chance < 50 || turn.chunks < 1) {
            let text = (turn.chunks + 1).to_string();
            if found
                .machine
                .chunk(turn.lease, text.into())
                .unwrap_or(false)
            {
                turn.chunks += 1;
            }
            if chance < 100 {
                found.turns.push(turn);
                return Ok(());
            }
        }
        if chance < 10 && turn.sort == Sort::Provider("pure") {
            let done = found.machine.fail(turn.lease, Code::CapabilityError, b"{}");
            return ensure(done.is_ok(), "LEASE-FENCED", || format!("{done:?}"));
        }
        let done = found.machine.result(turn.lease, Bytes::from_static(b"1"));
        ensure(done.is_ok(), "LEASE-FENCED", || format!("{done:?}"))
    }

    fn end_turn(&mut self, end: usize, mut turn: Turn, chance: u64) -> Check {
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        if turn.asked {
            let done = found
                .machine
                .reply(turn.lease, Bytes::from_static(b"2"), None);
            ensure(done.is_ok(), "LEASE-FENCED", || format!("{done:?}"))?;
        }
        if turn.durable && chance < 8 {
            let done = found.machine.nak(turn.lease, Some(chance * 10));
            ensure(done.is_ok(), "LEASE-FENCED", || format!("{done:?}"))?;
            turn.again = true;
            self.seen.note("durable turn given back");
        } else if chance < 14 {
            let done = found.machine.fail(turn.lease, Code::HandlerError, b"{}");
            return ensure(done.is_ok(), "LEASE-FENCED", || format!("{done:?}"));
        }
        if !turn.again {
            let ear = turn.sort.ear(end, turn.handle);
            self.book.ended(ear, (end, turn.handle), turn.tag);
        }
        self.take(end, turn.handle, Some(turn.lease)).map(drop)
    }

    // -- what apps are told ----------------------------------------------------------------------------------

    /// Reads a client's inbox.
    pub(super) fn hear(&mut self, end: usize) -> Check {
        let Some(found) = self
            .ends
            .get_mut(end)
            .filter(|it| it.is_running() && !it.stalled)
        else {
            return Ok(());
        };
        found.machine.renew();
        let notes = found.machine.drain(usize::MAX);
        for note in notes {
            match note {
                Note::Core(notice) => self.hear_core(end, notice)?,
                Note::Entries(number, _) | Note::Kept(number, ..) | Note::Page(number, ..) => {
                    self.book.answered(end, number)?;
                }
                Note::Link(change) => self.hear_link(end, &change)?,
            }
        }
        Ok(())
    }

    fn hear_link(&mut self, end: usize, change: &loom_session::LinkChange) -> Check {
        self.note(format!(
            "{end} is {:?}, resumed {}",
            change.state, change.resumed
        ));
        let Some(found) = self.ends.get_mut(end) else {
            return Ok(());
        };
        match &change.state {
            LinkState::Refused(error) => {
                let may = !self.node.tokens.contains_key(&found.token) || found.expires;
                found.refused = true;
                ensure(may, "SESSION-FENCED", || {
                    format!("client {end} was refused for good: {error:?}")
                })
            }
            LinkState::Up if !change.resumed => {
                let running = found.turns.iter().any(|turn| turn.durable);
                self.seen
                    .note_if("session begun anew with a durable turn running", running);
                found.life += 1;
                self.is_whole &= found.life <= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn hear_core(&mut self, end: usize, notice: Notice) -> Check {
        match notice {
            Notice::Ready(handle) => {
                let found = self.ends.get_mut(end);
                if let Some(reg) = found.and_then(|it| it.regs.get_mut(&handle.0)) {
                    reg.ready = true;
                }
                Ok(())
            }
            Notice::Accepted(ticket, receipt) => {
                let what = self.book.answered(end, ticket.0)?;
                // What is not synced may go with the power.
                let synced = receipt.position.filter(|_| receipt.level == Level::Disk);
                self.accepted(end, ticket.0, what, synced);
                Ok(())
            }
            Notice::Refused(ticket, error) => self.refused(end, ticket.0, &error),
            Notice::Outcome(call, code, _) => {
                self.note(format!("{end}: {call:?} ended, {code:?}"));
                self.seen
                    .note_if("call indeterminate", code == Some(Code::Indeterminate));
                self.seen
                    .note_if("call timed out", code == Some(Code::Timeout));
                self.seen.note_if("call went well", code.is_none());
                self.book.outcome(end, call.0)
            }
            Notice::Chunk(call, body) => self.book.chunk(end, call.0, &body),
            Notice::Answer(call, _) => {
                let known = self.book.calls.contains_key(&(end, call.0));
                ensure(known, "SESSION-ENDS-ONCE", || {
                    "an answer after the outcome".to_owned()
                })
            }
            Notice::Removed(handle, error) => {
                broken("LEASE-FENCED", format!("{handle:?} {error:?}"))
            }
            _ => Ok(()),
        }
    }

    fn accepted(
        &mut self,
        end: usize,
        ticket: u64,
        what: Wait,
        position: Option<loom_core::Position>,
    ) {
        self.note(format!("{end}: {what:?} accepted at {position:?}"));
        let tags = self.book.events.len() as u64;
        match what {
            Wait::Publish(tag) => {
                let event = usize::try_from(tag).ok();
                if let Some(event) = event.and_then(|at| self.book.events.get_mut(at)) {
                    event.accepted = true;
                    event.position = position;
                }
            }
            Wait::Registration => {
                let found = self.ends.get_mut(end);
                if let Some(reg) = found.and_then(|it| it.regs.get_mut(&ticket)) {
                    reg.accepted = true;
                    let ear = reg.sort.ear(end, ticket);
                    self.book.since.entry(ear).or_insert(tags);
                }
            }
            Wait::Question => {}
        }
    }

    fn refused(&mut self, end: usize, ticket: u64, error: &loom_core::Error) -> Check {
        let what = self.book.answered(end, ticket)?;
        self.note(format!("{end}: {what:?} refused, {error:?}"));
        match what {
            Wait::Publish(tag) => {
                self.seen
                    .note_if("publish indeterminate", error.code == Code::Indeterminate);
                let is_fenced = error.code == Code::Fenced && self.book.is_of_ended(tag);
                self.seen
                    .note_if("durable turn that ended fenced", is_fenced);
                let risky = self.ends.get(end).is_none_or(|found| found.risky);
                if risky {
                    Ok(())
                } else {
                    self.book.refused(tag, error.code)
                }
            }
            Wait::Registration => {
                if let Some(found) = self.ends.get_mut(end) {
                    found.regs.remove(&ticket);
                }
                Ok(())
            }
            Wait::Question => Ok(()),
        }
    }
}
