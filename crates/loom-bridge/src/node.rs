//! A node's sessions behind their lock, and the connections that are to be told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use loom_core::spec::limits;
use loom_core::{Core, Moment, Nanos, Result, SessionId};
use loom_proto::Encoded;
use loom_session::{ConnId, Errand, Hub};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use crate::admission::lock;
use crate::door::Door;

/// Deadlines are looked at so often at most: all of them are walked.
const LOOK: Duration = Duration::from_millis(10);

pub(crate) struct Node {
    door: Arc<dyn Door>,
    /// Locked inside the engine's lock, never the other way round.
    hub: Mutex<Hub>,
    ends: Mutex<BTreeMap<ConnId, Arc<End>>>,
    next: AtomicU64,
    woken: Arc<Woken>,
    /// Something happened that may have brought a deadline nearer.
    moved: Notify,
}

/// Sessions whose inbox got something.
#[derive(Default)]
struct Woken {
    sessions: Mutex<BTreeSet<SessionId>>,
    some: Notify,
}

/// What the task of a connection waits for.
#[derive(Default)]
pub(crate) struct End {
    /// There may be something to transmit, or it is to close.
    pub(crate) told: Notify,
    closing: Mutex<Option<Closing>>,
    /// Its packets hold frames of any size.
    whole: bool,
}

/// A connection is to close, after this packet.
struct Closing(Option<Encoded>);

/// What a connection has to send now.
pub(crate) struct Batch {
    pub(crate) packets: Vec<Encoded>,
    /// It closes after them.
    pub(crate) closes: bool,
    /// There is more.
    pub(crate) more: bool,
}

impl Node {
    pub(crate) fn new(door: Arc<dyn Door>, hub: Hub) -> Arc<Self> {
        let woken = Arc::new(Woken::default());
        let waker = Arc::clone(&woken);
        door.watch(Arc::new(move |session| {
            let mut sessions = lock(&waker.sessions);
            let is_first = sessions.is_empty();
            sessions.insert(session);
            drop(sessions);
            if is_first {
                waker.some.notify_one();
            }
        }));
        Arc::new(Self {
            door,
            hub: Mutex::new(hub),
            ends: Mutex::default(),
            next: AtomicU64::new(1),
            woken,
            moved: Notify::new(),
        })
    }

    /// One step of the hub with the engine; then those are told whom it concerns.
    pub(crate) fn step<T>(
        self: &Arc<Self>,
        step: impl FnOnce(&mut Hub, &mut Core, Moment) -> T,
    ) -> Result<T> {
        let done = self.still(step);
        self.moved.notify_one();
        done
    }

    /// One that brings no deadline nearer.
    fn still<T>(
        self: &Arc<Self>,
        step: impl FnOnce(&mut Hub, &mut Core, Moment) -> T,
    ) -> Result<T> {
        let mut step = Some(step);
        let mut done = None;
        self.door.with(&mut |core, at| {
            let mut hub = self.hub.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(step) = step.take() {
                done = Some(step(&mut hub, core, at));
            }
            self.tell(&mut hub);
        })?;
        done.ok_or_else(|| loom_core::Error::fenced("the engine did not take the step"))
    }

    fn tell(self: &Arc<Self>, hub: &mut Hub) {
        let ready = hub.take_ready();
        let closing = hub.take_closing();
        if !ready.is_empty() || !closing.is_empty() {
            let ends = lock(&self.ends);
            for end in ready.iter().filter_map(|conn| ends.get(conn)) {
                end.told.notify_one();
            }
            for (conn, last) in closing {
                if let Some(end) = ends.get(&conn) {
                    *lock(&end.closing) = Some(Closing(last));
                    end.told.notify_one();
                }
            }
        }
        for errand in hub.take_errands() {
            self.run(errand);
        }
    }

    /// Does what may wait for the disk on a thread that may.
    fn run(self: &Arc<Self>, errand: Errand) {
        let node = Arc::clone(self);
        // Its end is told to the hub; the bounds of the hub bound how many there are.
        drop(spawn_blocking(move || {
            let told = match errand {
                Errand::Open(conn, namespace) => {
                    let done = node.door.open(&namespace);
                    node.step(|hub, core, at| hub.opened(conn, done, core, at))
                }
                Errand::Read(key, read) => {
                    let looked = node.door.read(&read);
                    node.step(|hub, core, at| hub.has_read((key, &read), looked, core, at))
                }
            };
            // An engine that is closed has ended the session as well.
            drop(told);
        }));
    }

    /// A connection is there.
    pub(crate) fn connect(self: &Arc<Self>, whole: bool) -> Result<(ConnId, Arc<End>)> {
        let conn = ConnId(self.next.fetch_add(1, Ordering::Relaxed));
        let end = Arc::new(End {
            whole,
            ..End::default()
        });
        lock(&self.ends).insert(conn, Arc::clone(&end));
        self.step(|hub, _, at| hub.connected(conn, whole, at))?;
        Ok((conn, end))
    }

    /// It is gone.
    pub(crate) fn disconnect(self: &Arc<Self>, conn: ConnId) {
        lock(&self.ends).remove(&conn);
        // Where the engine is closed there is no session that could be kept.
        let _ = self.step(|hub, _, at| hub.disconnected(conn, at));
    }

    /// What is to be sent over a connection now, some of it.
    pub(crate) fn batch(self: &Arc<Self>, conn: ConnId, end: &End) -> Result<Batch> {
        let mut batch = Batch {
            packets: Vec::new(),
            closes: false,
            more: false,
        };
        let mut bytes = 0;
        self.still(|hub, core, at| {
            while let Some(packet) = hub.transmit(conn, core, at) {
                if end.whole {
                    bytes += packet.bytes().len();
                }
                batch.packets.push(packet);
                if batch.packets.len() == limits::WIRE_BATCH || bytes > limits::WIRE_WINDOW_BYTES {
                    batch.more = true;
                    break;
                }
            }
        })?;
        if !batch.more
            && let Some(Closing(last)) = lock(&end.closing).take()
        {
            batch.packets.extend(last);
            batch.closes = true;
        }
        Ok(batch)
    }

    /// Takes sessions' notices to their connections, for ever.
    pub(crate) async fn pump(self: &Arc<Self>) -> loom_core::Error {
        loop {
            self.woken.some.notified().await;
            let sessions = std::mem::take(&mut *lock(&self.woken.sessions));
            let done = self.step(|hub, core, at| {
                for session in sessions {
                    hub.woken(session, core, at);
                }
            });
            if let Err(error) = done {
                return error;
            }
        }
    }

    /// Makes due what is, for ever.
    pub(crate) async fn tick(self: &Arc<Self>) -> loom_core::Error {
        loop {
            let looked = self.still(|hub, core, at| {
                hub.tick(core, at);
                (hub.next_deadline(), at.now)
            });
            let (next, now) = match looked {
                Ok(looked) => looked,
                Err(error) => return error,
            };
            let left = next.map(|next| until(next, now));
            tokio::time::sleep(LOOK.min(left.unwrap_or(LOOK))).await;
            tokio::select! {
                () = self.moved.notified() => {}
                () = sleep_or_wait(left.map(|left| left.saturating_sub(LOOK))) => {}
            }
        }
    }

    /// Returns when nothing is under way.
    pub(crate) async fn drained(&self) {
        while !self.look(Hub::is_drained) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns when all connections are gone, or when this has taken too long.
    pub(crate) async fn flushed(&self, within: Duration) {
        let gone = async {
            while !lock(&self.ends).is_empty() {
                tokio::time::sleep(LOOK).await;
            }
        };
        // Those that are late are cut.
        let _ = tokio::time::timeout(within, gone).await;
    }

    /// What the hub knows.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Hub) -> T) -> T {
        look(&self.hub.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(crate) fn until(then: Nanos, now: Nanos) -> Duration {
    Duration::from_nanos(then.0.saturating_sub(now.0))
}

/// Sleeps so long, or for ever.
pub(crate) async fn sleep_or_wait(left: Option<Duration>) {
    match left {
        Some(left) => tokio::time::sleep(left).await,
        None => std::future::pending().await,
    }
}
