//! Who may stay connected: how many there are, and how long one may stay that has shown no credential.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use loom_core::spec::limits;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The credential has to be there by then.
pub(crate) const HANDSHAKE: Duration = Duration::from_millis(limits::HANDSHAKE_MS);
/// So long one without a credential stays when others wait to come in.
const PATIENCE: Duration = Duration::from_millis(limits::HANDSHAKE_MS / 5);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a task that died has left is whole: each step ends with the books in order.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The door of a node.
#[derive(Default)]
pub(crate) struct Admission {
    books: Mutex<Books>,
    /// There is room again.
    left: Notify,
}

#[derive(Default)]
struct Books {
    next: u64,
    connections: usize,
    /// Those without a credential, the oldest first.
    strangers: BTreeMap<u64, Visit>,
    counts: Counts,
}

/// What became of those who came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Refused: there were too many.
    pub refused: u64,
    /// Closed without having shown a credential in time, or after too many bytes.
    pub strangers: u64,
    /// Closed because nothing could be written for too long.
    pub stalled: u64,
    /// Closed because too much came that brings nothing.
    pub floods: u64,
}

/// One connection.
#[derive(Clone)]
pub(crate) struct Visit(Arc<Inner>);

struct Inner {
    number: u64,
    admission: Arc<Admission>,
    /// Attachments that have shown a credential.
    known: AtomicUsize,
    read: AtomicUsize,
    since: Mutex<Instant>,
    failed: AtomicUsize,
    is_cut: AtomicBool,
    cut: Notify,
    is_overdue: AtomicBool,
}

impl Admission {
    /// Waits until one more may come in without a credential; the one that has stood there longest has to go for it.
    pub(crate) async fn room(&self) {
        loop {
            let left = self.left.notified();
            let oldest = {
                let books = lock(&self.books);
                if books.strangers.len() < limits::WIRE_HANDSHAKES {
                    return;
                }
                books.strangers.values().next().cloned()
            };
            let Some(oldest) = oldest else { return };
            let until = *lock(&oldest.0.since) + PATIENCE;
            tokio::select! {
                () = left => {}
                () = tokio::time::sleep_until(until) => {
                    oldest.end();
                    // It goes when its task has its turn.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// One has come; `None`: there are too many.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Arc<Stay>> {
        let mut books = lock(&self.books);
        if books.connections == limits::WIRE_CONNECTIONS {
            books.counts.refused += 1;
            return None;
        }
        books.connections += 1;
        books.counts.accepted += 1;
        books.next += 1;
        let visit = Visit(Arc::new(Inner {
            number: books.next,
            admission: Arc::clone(self),
            known: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
            since: Mutex::new(Instant::now()),
            failed: AtomicUsize::new(0),
            is_cut: AtomicBool::new(false),
            cut: Notify::new(),
            is_overdue: AtomicBool::new(false),
        }));
        books.strangers.insert(visit.0.number, visit.clone());
        Some(Arc::new(Stay(visit)))
    }

    pub(crate) fn counts(&self) -> (usize, usize, Counts) {
        let books = lock(&self.books);
        (books.connections, books.strangers.len(), books.counts)
    }
}

impl Visit {
    /// Counts what came in; `false`: without a credential that is too much.
    pub(crate) fn has_read(&self, bytes: usize) -> bool {
        if self.0.known.load(Ordering::Relaxed) > 0 {
            return true;
        }
        let before = self.0.read.fetch_add(bytes, Ordering::Relaxed);
        before + bytes <= limits::WIRE_HANDSHAKE_BYTES
    }

    /// A question that needs no credential was answered: the time begins anew.
    pub(crate) fn calm(&self) {
        self.0.read.store(0, Ordering::Relaxed);
        *lock(&self.0.since) = Instant::now();
    }

    /// The connection is flooded.
    pub(crate) fn is_flooded(&self) {
        lock(&self.0.admission.books).counts.floods += 1;
    }

    /// Ends the connection.
    pub(crate) fn end(&self) {
        self.0.is_cut.store(true, Ordering::Release);
        self.0.cut.notify_waiters();
    }

    /// An attachment ended without having shown a credential. Who goes on like that is ended, also one that has another.
    pub(crate) fn has_failed(&self) {
        if self.0.failed.fetch_add(1, Ordering::Relaxed) >= limits::WIRE_RESETS {
            self.end();
        }
    }

    /// Returns when the connection has to end: no credential came in time, or it was cut.
    pub(crate) async fn overdue(&self) {
        loop {
            let cut = self.0.cut.notified();
            if self.0.is_cut.load(Ordering::Acquire) {
                break;
            }
            let known = self.0.known.load(Ordering::Relaxed) > 0;
            let since = if known {
                Instant::now()
            } else {
                *lock(&self.0.since)
            };
            tokio::select! {
                () = cut => break,
                () = tokio::time::sleep_until(since + HANDSHAKE) => {
                    let known = known || self.0.known.load(Ordering::Relaxed) > 0;
                    if !known && lock(&self.0.since).elapsed() >= HANDSHAKE {
                        break;
                    }
                }
            }
        }
        // Its attachment may have found so as well.
        if !self.0.is_overdue.swap(true, Ordering::Relaxed) {
            lock(&self.0.admission.books).counts.strangers += 1;
        }
    }
}

/// A connection that stands; those who use it share this.
pub(crate) struct Stay(Visit);

impl Stay {
    pub(crate) fn visit(&self) -> &Visit {
        &self.0
    }

    /// An attachment has shown a credential; it is known as long as this is kept.
    pub(crate) fn known(self: &Arc<Self>) -> Known {
        let inner = &self.0.0;
        if inner.known.fetch_add(1, Ordering::Relaxed) == 0 {
            lock(&inner.admission.books).strangers.remove(&inner.number);
            inner.admission.left.notify_one();
        }
        Known(Arc::clone(self))
    }

    pub(crate) fn has_stalled(&self) {
        lock(&self.0.0.admission.books).counts.stalled += 1;
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let inner = &self.0.0;
        let mut books = lock(&inner.admission.books);
        books.strangers.remove(&inner.number);
        books.connections -= 1;
        drop(books);
        inner.admission.left.notify_one();
    }
}

/// An attachment with a credential.
pub(crate) struct Known(Arc<Stay>);

impl Drop for Known {
    fn drop(&mut self) {
        let visit = &self.0.0;
        visit.calm();
        let inner = &visit.0;
        if inner.known.fetch_sub(1, Ordering::Relaxed) == 1 {
            lock(&inner.admission.books)
                .strangers
                .insert(inner.number, visit.clone());
        }
    }
}
