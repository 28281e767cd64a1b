//! All sessions of a node, and the connections that carry them: who may attach, what is resumed, what is fenced, and what
//! is given up.
//!
//! It does no I/O and reads no clock. The driver tells it what came over which connection, and asks it what to send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use loom_core::{Attach, Code, Core, Envelope, Error, Grants, Moment, Nanos, SessionId};
use loom_proto::Encoded;
use loom_proto::v1::{self, Packet, frame::Body};
use rustc_hash::FxHashMap;

use crate::attached::{Attached, ReadErrand};
use crate::authority::{ANYWHERE, Authority};
use crate::channel::{Channel, Class, Progress};
use crate::convert::{show_envelope, show_error};
use crate::limits::Limits;
use crate::planted::{Bugs, Planted};

/// A connection, as the driver numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// The id of a session: 16 bytes that its process drew.
pub type SessionKey = [u8; 16];

/// The protocol's version.
pub const VERSION: u32 = 1;

/// Pages of a read hold so many bytes at most.
const PAGE_BYTES: usize = 48 << 10;

/// What a node is.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Its life: 16 random bytes.
    pub boot: [u8; 16],
    /// What it holds to.
    pub limits: Limits,
    /// What it calls itself: "loom/0.1.0".
    pub agent: String,
    /// Filters of the topics whose events are durable.
    pub durable: Vec<String>,
    /// Its log outlives it: what calls with a key have done is known in its next life.
    pub keeps_log: bool,
}

/// What has to be done where it may wait for the disk; the answer is told to the hub.
#[derive(Debug, Clone)]
pub enum Errand {
    /// Open the log of a namespace; [`Hub::opened`] with what came of it.
    Open(ConnId, String),
    /// Read the log; [`Hub::has_read`] with what came of it.
    Read(SessionKey, ReadErrand),
}

/// What a look into the log has given.
#[derive(Debug)]
pub struct Looked {
    /// Events in order.
    pub events: Vec<Arc<Envelope>>,
    /// Where to go on.
    pub next: String,
    /// There were no more.
    pub at_end: bool,
}

#[derive(Debug)]
struct Conn {
    since: Nanos,
    heard: Nanos,
    /// When the last heartbeat went out.
    beat: Nanos,
    whole: bool,
    session: Option<SessionKey>,
    /// A hello that waits for the log of its namespace.
    hello: Option<Box<v1::Hello>>,
}

#[derive(Debug)]
struct Entry {
    attached: Attached,
    epoch: u64,
    conn: Option<ConnId>,
    /// When its connection has gone.
    lost: Nanos,
    keep_ms: u64,
    credential: String,
    expires_ms: Option<u64>,
    grants: Arc<Grants>,
    /// When its turns were made to hold last, while nobody is connected.
    renewed: Nanos,
    since_ms: u64,
    agent: String,
}

/// One session, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its id.
    pub session: SessionKey,
    /// The app's name.
    pub name: String,
    /// Where it is.
    pub namespace: String,
    /// Whether a connection carries it.
    pub is_connected: bool,
    /// The id of its credential.
    pub credential: String,
    /// What its client says it is.
    pub agent: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Turns and invocations that are out.
    pub leases: usize,
    /// Agents, providers and streams.
    pub registrations: usize,
    /// Calls and requests that wait.
    pub calls: usize,
    /// How far the node's end has got.
    pub progress: Progress,
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attachments that were accepted.
    pub attached: u64,
    /// Of these, those that went on where they were.
    pub resumed: u64,
    /// Attachments that were refused.
    pub refused: u64,
    /// Connections that a newer one of the same session has ended.
    pub fenced: u64,
    /// Connections over which nothing came for too long.
    pub silent: u64,
    /// Connections that broke the protocol.
    pub broken: u64,
    /// Sessions that did not come back in time.
    pub expired: u64,
}

/// All sessions of a node.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    authority: Authority,
    conns: BTreeMap<ConnId, Conn>,
    sessions: BTreeMap<SessionKey, Entry>,
    by_core: FxHashMap<SessionId, SessionKey>,
    /// Namespaces whose logs are open.
    open: BTreeSet<String>,
    ready: BTreeSet<ConnId>,
    closing: Vec<(ConnId, Option<Encoded>)>,
    errands: Vec<Errand>,
    draining: Option<u64>,
    /// When the core is to be ticked, and when connections and sessions are to be looked through: not later than that.
    core_due: Option<Nanos>,
    scan_at: Option<Nanos>,
    counts: Counts,
    pub(crate) bugs: Bugs,
}

impl Hub {
    /// A node without sessions. Nobody may attach before [`Self::set_authority`].
    pub fn new(config: HubConfig) -> Self {
        Self {
            config,
            authority: Authority::default(),
            conns: BTreeMap::new(),
            sessions: BTreeMap::new(),
            by_core: FxHashMap::default(),
            open: BTreeSet::new(),
            ready: BTreeSet::new(),
            closing: Vec::new(),
            errands: Vec::new(),
            draining: None,
            core_due: None,
            scan_at: None,
            counts: Counts::default(),
            bugs: Bugs::default(),
        }
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// All sessions, in the order of their ids.
    pub fn sessions(&self) -> Vec<Shown> {
        let all = self.sessions.iter();
        all.map(|(key, entry)| {
            let (leases, registrations, calls) = entry.attached.counts();
            Shown {
                session: *key,
                name: entry.attached.name.clone(),
                namespace: entry.attached.namespace.clone(),
                is_connected: entry.conn.is_some(),
                credential: entry.credential.clone(),
                agent: entry.agent.clone(),
                since_ms: entry.since_ms,
                leases,
                registrations,
                calls,
                progress: entry.attached.channel.progress(),
            }
        })
        .collect()
    }

    /// Connections, whether they have said who they are or not.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Takes a new table of credentials: sessions whose credential does not count any more end now, those of one that has
    /// changed go on with what it grants.
    pub fn set_authority(&mut self, authority: Authority, core: &mut Core, at: Moment) {
        self.authority = authority;
        self.check_credentials(core, at);
    }

    fn check_credentials(&mut self, core: &mut Core, at: Moment) {
        let mut revoked = Vec::new();
        for (key, entry) in &mut self.sessions {
            match self.authority.get(&entry.credential, at.wall_ms) {
                Some(found) if found.covers(&entry.attached.namespace) => {
                    entry.expires_ms = found.expires_ms;
                    entry.grants = Arc::clone(&found.grants);
                    // The session is there as long as its entry is.
                    let _ =
                        core.set_grants(entry.attached.core, Some(Arc::clone(&found.grants)), at);
                }
                _ => revoked.push(*key),
            }
        }
        for key in revoked {
            let error = Error::new(
                Code::Unauthenticated,
                "the credential of this session was revoked, or has expired",
            );
            self.end_session(key, Some(&error), core, at);
        }
    }

    /// A connection is there. `whole`: its frames are never cut into parts.
    pub fn connected(&mut self, conn: ConnId, whole: bool, at: Moment) {
        let state = Conn {
            since: at.now,
            heard: at.now,
            beat: at.now,
            whole,
            session: None,
            hello: None,
        };
        self.conns.insert(conn, state);
        self.scan_by(at.now.plus_millis(self.config.limits.handshake_ms));
    }

    /// A connection is gone; its session is kept for a while.
    pub fn disconnected(&mut self, conn: ConnId, at: Moment) {
        self.ready.remove(&conn);
        let Some(state) = self.conns.remove(&conn) else {
            return;
        };
        self.let_go(conn, state.session, at);
    }

    /// Only what the connection itself carries ends with it: not what a newer one has taken over.
    fn let_go(&mut self, conn: ConnId, session: Option<SessionKey>, at: Moment) {
        let Some(entry) = session.and_then(|key| self.sessions.get_mut(&key)) else {
            return;
        };
        if entry.conn == Some(conn) || self.bugs.has(Planted::CleanedBySession) {
            entry.conn = None;
            entry.lost = at.now;
            entry.renewed = at.now;
            if self.bugs.has(Planted::ReleasedAtOnce) {
                entry.keep_ms = 0;
            }
            entry.attached.channel.pause();
            let end = at
                .now
                .plus_millis(entry.keep_ms.min(self.config.limits.heartbeat_ms));
            self.scan_by(end);
        }
    }

    /// A packet came over a connection.
    pub fn received(&mut self, conn: ConnId, packet: Packet, core: &mut Core, at: Moment) {
        let Some(state) = self.conns.get_mut(&conn) else {
            return;
        };
        state.heard = at.now;
        let Some(key) = state.session else {
            self.greet(conn, packet, core, at);
            return;
        };
        let known = self.received_of(key);
        if let Err(error) = self.take_in((conn, key), packet, core, at) {
            self.counts.broken += 1;
            // Where none of its frames was taken in, they come again over the next connection. Else some may be lost:
            // the session cannot go on.
            let keeps = known.is_some() && known == self.received_of(key);
            self.close(conn, &error, keeps, at);
            if !keeps {
                self.end_session(key, None, core, at);
            }
        }
    }

    fn received_of(&self, key: SessionKey) -> Option<u64> {
        let entry = self.sessions.get(&key);
        entry.map(|entry| entry.attached.channel.received())
    }

    // -- attaching --------------------------------------------------------------------------------

    fn greet(&mut self, conn: ConnId, packet: Packet, core: &mut Core, at: Moment) {
        if let Err(error) = self.greeted(conn, packet, core, at) {
            self.counts.refused += 1;
            self.close(conn, &error, false, at);
        }
    }

    fn greeted(
        &mut self,
        conn: ConnId,
        packet: Packet,
        core: &mut Core,
        at: Moment,
    ) -> Result<(), Error> {
        let mut frames = packet.frames.into_iter();
        let first = frames.next().and_then(|frame| frame.body);
        let (Some(Body::Hello(hello)), None) = (first, frames.next()) else {
            let message = "the first packet of a connection holds a hello and nothing else";
            return Err(Error::new(Code::Unauthenticated, message));
        };
        if self
            .conns
            .get(&conn)
            .is_some_and(|state| state.hello.is_some())
        {
            return Err(Error::invalid("hello", "a second hello"));
        }
        self.admit(conn, hello, core, at)
    }

    fn admit(
        &mut self,
        conn: ConnId,
        mut hello: v1::Hello,
        core: &mut Core,
        at: Moment,
    ) -> Result<(), Error> {
        if self.draining.is_some() {
            return Err(
                Error::new(Code::Unavailable, "the node is about to stop").retry_after(1_000)
            );
        }
        if !hello.versions.contains(&VERSION) {
            let message = format!(
                "this node speaks version {VERSION} of the protocol, the client {:?}",
                hello.versions.iter().take(8).collect::<Vec<_>>()
            );
            return Err(Error::new(Code::NotSupported, message).field("versions"));
        }
        let Some(credential) = self.authority.find(&hello.token, at.wall_ms) else {
            let error = Error::new(
                Code::Unauthenticated,
                "there is no such credential, or it has expired",
            );
            return Err(error
                .field("token")
                .hint("loom token create makes one; LOOM_TOKEN or token= carries it"));
        };
        if hello.namespace.is_empty() {
            let own = credential.namespace.as_str();
            let own = if own == ANYWHERE { "default" } else { own };
            own.clone_into(&mut hello.namespace);
        }
        if !credential.covers(&hello.namespace) {
            let message = "this credential is for another namespace";
            return Err(Error::new(Code::Denied, message).field("namespace"));
        }
        if self.open.contains(&hello.namespace) {
            return self.attach(conn, &hello, core, at);
        }
        loom_core::check_name("namespace", &hello.namespace, core.limits())?;
        self.errands
            .push(Errand::Open(conn, hello.namespace.clone()));
        if let Some(state) = self.conns.get_mut(&conn) {
            state.hello = Some(Box::new(hello));
        }
        Ok(())
    }

    /// The log of the namespace that a connection's hello names was opened, or was not.
    pub fn opened(&mut self, conn: ConnId, done: Result<(), Error>, core: &mut Core, at: Moment) {
        let Some(hello) = self
            .conns
            .get_mut(&conn)
            .and_then(|state| state.hello.take())
        else {
            return;
        };
        let done = done.and_then(|()| {
            self.open.insert(hello.namespace.clone());
            // Its credential may have been revoked meanwhile.
            self.admit(conn, *hello, core, at)
        });
        if let Err(error) = done {
            self.counts.refused += 1;
            self.close(conn, &error, false, at);
        }
    }

    fn attach(
        &mut self,
        conn: ConnId,
        hello: &v1::Hello,
        core: &mut Core,
        at: Moment,
    ) -> Result<(), Error> {
        let key = SessionKey::try_from(hello.session.as_ref())
            .map_err(|_| Error::invalid("session", "the id of a session has 16 bytes"))?;
        let resumed = match self.sessions.get(&key) {
            Some(entry) => {
                self.check_same(entry, hello, at)?;
                let is_known = hello.boot.as_ref() == self.config.boot;
                let goes_on = (is_known || self.bugs.has(Planted::ResumedInVain))
                    && entry.attached.channel.can_resume(hello.received)
                    && self
                        .conns
                        .get(&conn)
                        .is_some_and(|it| it.whole == entry.attached.channel.is_whole());
                let older = entry.conn;
                self.fence(older, at);
                if !goes_on {
                    self.end_session(key, None, core, at);
                }
                goes_on
            }
            None => false,
        };
        if !resumed {
            self.begin((conn, key), hello, core, at)?;
        }
        self.welcome((conn, key), hello, resumed, at)
    }

    /// A session belongs to the credential it began with: its id alone is no proof.
    fn check_same(&self, entry: &Entry, hello: &v1::Hello, at: Moment) -> Result<(), Error> {
        let same = self
            .authority
            .find(&hello.token, at.wall_ms)
            .is_some_and(|found| found.id == entry.credential);
        if !same || entry.attached.namespace != hello.namespace {
            let message = "this session was begun with another credential";
            return Err(Error::new(Code::Denied, message).field("session"));
        }
        if hello.epoch <= entry.epoch && !self.bugs.has(Planted::EpochIgnored) {
            let message = format!(
                "attachment {} of this session is over: there was a newer one",
                hello.epoch
            );
            return Err(Error::fenced(message).field("epoch"));
        }
        Ok(())
    }

    fn fence(&mut self, conn: Option<ConnId>, at: Moment) {
        if let Some(conn) = conn {
            self.counts.fenced += 1;
            if self.bugs.has(Planted::FencedHeard) || self.bugs.has(Planted::CleanedBySession) {
                return;
            }
            let error = Error::fenced("this session has attached anew: this connection is over");
            self.close(conn, &error, true, at);
        }
    }

    fn begin(
        &mut self,
        (conn, key): (ConnId, SessionKey),
        hello: &v1::Hello,
        core: &mut Core,
        at: Moment,
    ) -> Result<(), Error> {
        if self.sessions.len() >= self.config.limits.sessions {
            let message = format!("this node keeps {} sessions already", self.sessions.len());
            return Err(Error::exhausted("sessions", message).retry_after(1_000));
        }
        let Some(credential) = self.authority.find(&hello.token, at.wall_ms) else {
            return Err(Error::new(
                Code::Unauthenticated,
                "there is no such credential",
            ));
        };
        let (id, expires_ms) = (credential.id.clone(), credential.expires_ms);
        let attach = Attach {
            namespace: &hello.namespace,
            name: &hello.name,
            grants: Some(Arc::clone(&credential.grants)),
            client: u128::from_be_bytes(key),
            is_node: false,
        };
        let session = core.attach_as(attach)?;
        let whole = self.conns.get(&conn).is_some_and(|state| state.whole);
        let mut channel = Channel::new(self.config.limits.frame_bytes, whole);
        channel.bugs = self.bugs;
        let attached = Attached::new(core, session, (&hello.name, &hello.namespace), channel)?;
        let most = self.config.limits.keep_ms;
        self.by_core.insert(session, key);
        let entry = Entry {
            attached,
            epoch: hello.epoch,
            conn: None,
            lost: at.now,
            keep_ms: if hello.keep_ms == 0 {
                most
            } else {
                hello.keep_ms.min(most)
            },
            credential: id,
            expires_ms,
            grants: Arc::clone(&credential.grants),
            renewed: at.now,
            since_ms: at.wall_ms,
            agent: hello.agent.chars().take(64).collect(),
        };
        self.sessions.insert(key, entry);
        Ok(())
    }

    fn welcome(
        &mut self,
        (conn, key): (ConnId, SessionKey),
        hello: &v1::Hello,
        resumed: bool,
        at: Moment,
    ) -> Result<(), Error> {
        let limits = &self.config.limits;
        let Some(entry) = self.sessions.get_mut(&key) else {
            return Err(Error::new(
                Code::Internal,
                "the session that was just begun is gone",
            ));
        };
        entry.epoch = hello.epoch;
        entry.conn = Some(conn);
        if resumed {
            entry.attached.channel.resume(hello.received)?;
            self.counts.resumed += 1;
        }
        if let Some(credit) = hello.credit.filter(|_| !resumed) {
            entry.attached.allow(credit);
        }
        // One that goes on is told of nothing but what stands in credit frames: those come again if they were lost.
        let credit = if resumed {
            entry.attached.granted()
        } else {
            entry.attached.grant(limits)
        };
        let welcome = v1::Welcome {
            version: VERSION,
            boot: Bytes::copy_from_slice(&self.config.boot),
            resumed,
            received: entry.attached.channel.received(),
            namespace: entry.attached.namespace.clone(),
            agent: self.config.agent.clone(),
            credit: Some(credit),
            heartbeat_ms: limits.heartbeat_ms,
            keep_ms: entry.keep_ms,
            time_ms: at.wall_ms,
            payload_bytes: limits.frame_bytes as u64,
            durable: self.config.durable.clone(),
            keeps_log: self.config.keeps_log,
        };
        entry.attached.channel.push_loose(&Body::Welcome(welcome));
        self.counts.attached += 1;
        if let Some(state) = self.conns.get_mut(&conn) {
            state.session = Some(key);
            let due = state.beat.plus_millis(limits.heartbeat_ms);
            self.scan_by(due);
        }
        self.ready.insert(conn);
        Ok(())
    }

    // -- what comes ------------------------------------------------------------------------------------

    fn take_in(
        &mut self,
        (conn, key): (ConnId, SessionKey),
        packet: Packet,
        core: &mut Core,
        at: Moment,
    ) -> Result<(), Error> {
        let limits = &self.config.limits;
        let is_heard =
            |entry: &&mut Entry| entry.conn == Some(conn) || self.bugs.has(Planted::FencedHeard);
        let Some(entry) = self.sessions.get_mut(&key).filter(is_heard) else {
            return Err(Error::fenced(
                "this session has ended, or has attached anew",
            ));
        };
        let numbered = packet.first > 0;
        for frame in entry.attached.channel.accept(packet)? {
            match frame.body {
                // One that a later version has added: to be skipped.
                None => {}
                Some(Body::Heartbeat(beat)) => heard_beat(&entry.attached, &beat, core, at),
                Some(body) if numbered => entry.attached.take_in(body, core, at, limits)?,
                Some(_) => return Err(Error::invalid("first", "this frame has to be numbered")),
            }
        }
        self.attend(key, core, at);
        Ok(())
    }

    /// Does what follows from what a session has said.
    fn attend(&mut self, key: SessionKey, core: &mut Core, at: Moment) {
        let Some(entry) = self.sessions.get_mut(&key) else {
            return;
        };
        entry.attached.pump(core, at, &self.config.limits);
        for read in entry.attached.reads.drain(..) {
            self.errands.push(Errand::Read(key, read));
        }
        let due = entry.attached.due.take();
        let carrier = entry.conn;
        // One that leaves waits to hear that all it has said was taken.
        let has_left = entry.attached.has_left;
        let last = has_left.then(|| entry.attached.channel.last_word());
        self.tick_by(due);
        if has_left {
            self.end_session(key, None, core, at);
            if let Some(conn) = carrier {
                self.conns.remove(&conn);
                self.ready.remove(&conn);
                self.closing.push((conn, last));
            }
            return;
        }
        self.ready.extend(carrier);
    }

    /// The inbox of a core's session got something.
    pub fn woken(&mut self, session: SessionId, core: &mut Core, at: Moment) {
        let Some(entry) = self
            .by_core
            .get(&session)
            .and_then(|key| self.sessions.get_mut(key))
        else {
            return;
        };
        // Without a connection all stays where its own bounds hold: in the core.
        if let Some(conn) = entry.conn {
            entry.attached.pump(core, at, &self.config.limits);
            let due = entry.attached.due.take();
            self.tick_by(due);
            self.ready.insert(conn);
        }
    }

    /// What reading the log for a session has given.
    pub fn has_read(
        &mut self,
        (key, read): (SessionKey, &ReadErrand),
        looked: Result<Looked, Error>,
        core: &mut Core,
        at: Moment,
    ) {
        let Some(entry) = self.sessions.get_mut(&key) else {
            return;
        };
        if read.finds {
            let place = looked.map(|it| it.events.first().and_then(|env| env.position));
            let (limits, conn) = (&self.config.limits, entry.conn);
            if let Err(error) = entry.attached.found(place, core, at, limits) {
                self.counts.broken += 1;
                if let Some(conn) = conn {
                    self.close(conn, &error, false, at);
                }
                self.end_session(key, None, core, at);
                return;
            }
            self.attend(key, core, at);
            return;
        }
        let reference = read.reference;
        let grants = &entry.grants;
        let pages =
            looked.map(|looked| pages(reference, &looked, at, |env| grants.may_hear(&env.topic)));
        entry.attached.has_read(reference, pages);
        if let Some(conn) = entry.conn {
            self.ready.insert(conn);
        }
    }

    // -- what goes ---------------------------------------------------------------------------------------

    /// Connections that may have something to transmit.
    pub fn take_ready(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.ready).into_iter().collect()
    }

    /// The next packet of a connection, or none: then it has no more for now.
    pub fn transmit(&mut self, conn: ConnId, core: &mut Core, at: Moment) -> Option<Encoded> {
        let key = self.conns.get(&conn)?.session?;
        let entry = self
            .sessions
            .get_mut(&key)
            .filter(|entry| entry.conn == Some(conn))?;
        if entry.attached.channel.queued_bytes() == 0 {
            entry.attached.pump(core, at, &self.config.limits);
        }
        let due = entry.attached.due.take();
        let packet = entry.attached.channel.transmit();
        self.tick_by(due);
        packet
    }

    /// Connections to be closed, each with what is to be sent before.
    pub fn take_closing(&mut self) -> Vec<(ConnId, Option<Encoded>)> {
        std::mem::take(&mut self.closing)
    }

    /// What has to be done where it may wait for the disk.
    pub fn take_errands(&mut self) -> Vec<Errand> {
        std::mem::take(&mut self.errands)
    }

    fn close(&mut self, conn: ConnId, error: &Error, keeps: bool, at: Moment) {
        self.ready.remove(&conn);
        let Some(state) = self.conns.remove(&conn) else {
            return;
        };
        self.let_go(conn, state.session, at);
        let mut shown = show_error(0, error);
        shown.keeps = keeps;
        let last = Encoded::alone(&Body::Error(shown));
        self.closing.push((conn, Some(last)));
    }

    fn end_session(&mut self, key: SessionKey, error: Option<&Error>, core: &mut Core, at: Moment) {
        let Some(entry) = self.sessions.remove(&key) else {
            return;
        };
        if let (Some(conn), Some(error)) = (entry.conn, error) {
            self.close(conn, error, false, at);
        }
        self.by_core.remove(&entry.attached.core);
        core.close(entry.attached.core, at);
    }

    // -- time ----------------------------------------------------------------------------------------------

    /// Ends what is due: handshakes, connections that are dead, sessions that did not come back; sends heartbeats.
    pub fn tick(&mut self, core: &mut Core, at: Moment) {
        if self.core_due.is_some_and(|due| due <= at.now) {
            self.core_due = core.tick(at);
        }
        if self.scan_at.is_some_and(|due| due <= at.now) {
            self.tick_conns(core, at);
            self.tick_sessions(core, at);
            self.scan_at = self.next_scan();
        }
    }

    /// The core is to be ticked for what our sessions wait for.
    fn tick_by(&mut self, due: Option<Nanos>) {
        if let Some(due) = due {
            self.core_due = Some(self.core_due.map_or(due, |known| known.min(due)));
        }
    }

    /// Connections and sessions are to be looked through at this time, or before.
    fn scan_by(&mut self, due: Nanos) {
        self.scan_at = Some(self.scan_at.map_or(due, |known| known.min(due)));
    }

    fn tick_sessions(&mut self, core: &mut Core, at: Moment) {
        let kept: Vec<SessionKey> = self.sessions.keys().copied().collect();
        for key in kept {
            let Some(entry) = self.sessions.get_mut(&key) else {
                continue;
            };
            if entry.expires_ms.is_some_and(|end| end <= at.wall_ms) {
                let error = Error::new(
                    Code::Unauthenticated,
                    "the credential of this session has expired",
                );
                self.end_session(key, Some(&error), core, at);
                continue;
            }
            if entry.conn.is_some() {
                continue;
            }
            if entry.lost.plus_millis(entry.keep_ms) <= at.now
                && !self.bugs.has(Planted::KeptForever)
            {
                self.counts.expired += 1;
                self.end_session(key, None, core, at);
            } else {
                // Its turns hold as long as it may come back.
                entry.renewed = at.now;
                core.renew(entry.attached.core, at);
            }
        }
    }

    fn tick_conns(&mut self, core: &mut Core, at: Moment) {
        let limits = self.config.limits.clone();
        let all: Vec<ConnId> = self.conns.keys().copied().collect();
        for conn in all {
            let Some(state) = self.conns.get_mut(&conn) else {
                continue;
            };
            match state.session {
                None if state.since.plus_millis(limits.handshake_ms) <= at.now => {
                    self.counts.refused += 1;
                    let message = "no hello came in time";
                    let error = Error::new(Code::Timeout, message).limit("handshake_ms");
                    self.close(conn, &error, false, at);
                }
                Some(_) if state.heard.plus_millis(limits.silence_ms) <= at.now => {
                    self.counts.silent += 1;
                    let error =
                        Error::new(Code::Timeout, "nothing came for too long").limit("silence_ms");
                    self.close(conn, &error, true, at);
                }
                Some(key) if state.beat.plus_millis(limits.heartbeat_ms) <= at.now => {
                    state.beat = at.now;
                    if let Some(entry) = self.sessions.get_mut(&key) {
                        let beat = v1::Heartbeat {
                            alive: true,
                            stack: String::new(),
                        };
                        entry.attached.channel.push_loose(&Body::Heartbeat(beat));
                        entry.attached.pump(core, at, &limits);
                        self.ready.insert(conn);
                    }
                }
                _ => {}
            }
        }
    }

    /// When [`Self::tick`] is due next. It may find that nothing is: who is heard of meanwhile puts off what was due.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.core_due.into_iter().chain(self.scan_at).min()
    }

    fn next_scan(&self) -> Option<Nanos> {
        let limits = &self.config.limits;
        let conns = self.conns.values().map(|state| match state.session {
            None => state.since.plus_millis(limits.handshake_ms),
            Some(_) => state
                .beat
                .plus_millis(limits.heartbeat_ms)
                .min(state.heard.plus_millis(limits.silence_ms)),
        });
        let lost = self.sessions.values().filter(|entry| entry.conn.is_none());
        let sessions = lost.map(|entry| {
            let end = entry.lost.plus_millis(entry.keep_ms);
            end.min(entry.renewed.plus_millis(limits.heartbeat_ms))
        });
        conns.chain(sessions).min()
    }

    // -- the end -------------------------------------------------------------------------------------------

    /// The node is about to stop: nobody attaches any more, nothing new is taken, clients are told.
    pub fn drain(&mut self, within_ms: u64) {
        self.draining = Some(within_ms);
        for entry in self.sessions.values_mut() {
            entry.attached.drain();
            entry
                .attached
                .channel
                .push(&Body::Drain(v1::Drain { within_ms }), Class::Control);
            if let Some(conn) = entry.conn {
                self.ready.insert(conn);
            }
        }
    }

    /// Whether nothing is under way any more.
    pub fn is_drained(&self) -> bool {
        let mut connected = self.sessions.values().filter(|entry| entry.conn.is_some());
        connected.all(|entry| entry.attached.is_idle())
    }

    /// Ends all sessions and connections.
    pub fn stop(&mut self, core: &mut Core, at: Moment) {
        let error = Error::new(Code::Unavailable, "the node has stopped").retry_after(1_000);
        let all: Vec<ConnId> = self.conns.keys().copied().collect();
        for conn in all {
            self.close(conn, &error, true, at);
        }
        let kept: Vec<SessionKey> = self.sessions.keys().copied().collect();
        for key in kept {
            self.end_session(key, None, core, at);
        }
    }
}

fn heard_beat(attached: &Attached, beat: &v1::Heartbeat, core: &mut Core, at: Moment) {
    if beat.alive {
        core.renew(attached.core, at);
    } else if !beat.stack.is_empty() {
        core.stalls(attached.core, &beat.stack);
    }
}

fn pages(
    reference: u64,
    looked: &Looked,
    at: Moment,
    may_hear: impl Fn(&Envelope) -> bool,
) -> Vec<v1::Page> {
    let mut all = Vec::new();
    let mut page = v1::Page {
        r#ref: reference,
        ..v1::Page::default()
    };
    let mut bytes = 0;
    for env in looked.events.iter().filter(|env| may_hear(env)) {
        let more = env.size() + 512;
        if bytes + more > PAGE_BYTES && !page.events.is_empty() {
            all.push(std::mem::replace(
                &mut page,
                v1::Page {
                    r#ref: reference,
                    ..v1::Page::default()
                },
            ));
            bytes = 0;
        }
        bytes += more;
        page.events.push(show_envelope(env, at));
    }
    page.next.clone_from(&looked.next);
    page.at_end = looked.at_end;
    all.push(page);
    all
}
