//! What comes over a connection and brings nothing, yet has to be read and answered: so much of it, and no more.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use loom_core::spec::limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::admission::Visit;
use crate::socket::Boxed;

/// The time over which it is counted.
const WINDOW: Duration = Duration::from_secs(10);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;

/// What came so far.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    since: Option<Instant>,
    count: usize,
}

impl Idle {
    /// Whether so much more may come.
    pub(crate) fn may_take(&mut self, more: usize) -> bool {
        let now = Instant::now();
        if self.since.is_none_or(|since| now - since >= WINDOW) {
            self.since = Some(now);
            self.count = 0;
        }
        self.count += more;
        self.count <= limits::WIRE_IDLE
    }
}

/// Where the frames of HTTP/2 begin in what comes.
#[derive(Debug)]
enum At {
    /// So much of the preface has come.
    Preface(usize),
    /// A head, of which so much has come.
    Head([u8; HEAD], usize),
    /// A body, of which so much is missing.
    Body(usize),
    /// This is no HTTP/2.
    Elsewhere,
}

impl At {
    /// Goes on over what came; how many frames of it bring nothing.
    fn step(&mut self, mut data: &[u8]) -> usize {
        let mut idle = 0;
        while !data.is_empty() {
            match self {
                Self::Elsewhere => return 0,
                Self::Preface(have) => {
                    let wanted = PREFACE.get(*have..).unwrap_or_default();
                    let some = wanted.len().min(data.len());
                    let (came, rest) = data.split_at(some);
                    if !wanted.starts_with(came) {
                        *self = Self::Elsewhere;
                        return 0;
                    }
                    data = rest;
                    *self = if *have + some == PREFACE.len() {
                        Self::Head([0; HEAD], 0)
                    } else {
                        Self::Preface(*have + some)
                    };
                }
                Self::Head(head, have) => {
                    let (came, rest) = data.split_at((HEAD - *have).min(data.len()));
                    for (to, from) in head.iter_mut().skip(*have).zip(came) {
                        *to = *from;
                    }
                    data = rest;
                    *have += came.len();
                    if *have == HEAD {
                        idle += usize::from(is_idle(*head));
                        *self = Self::Body(size(*head));
                    }
                }
                Self::Body(left) => {
                    let some = (*left).min(data.len());
                    data = data.split_at(some).1;
                    *left -= some;
                }
            }
            if matches!(self, Self::Body(0)) {
                *self = Self::Head([0; HEAD], 0);
            }
        }
        idle
    }
}

fn size([a, b, c, ..]: [u8; HEAD]) -> usize {
    usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)
}

/// Data and headers that bring something, and windows, which come with what was sent, are none of these.
fn is_idle(head: [u8; HEAD]) -> bool {
    let [.., kind, flags, _, _, _, _] = head;
    match kind {
        // One that is empty brings the end of its stream, or nothing.
        0 => size(head) == 0 && flags & 1 == 0,
        1 | 8 => false,
        // Priorities, resets, settings, pushes, pings, ends, more headers, and what nobody knows.
        _ => true,
    }
}

/// A connection of which what brings nothing is counted.
pub(crate) struct Counted {
    inner: Boxed,
    visit: Visit,
    at: At,
    idle: Idle,
}

impl Counted {
    pub(crate) fn new(inner: Boxed, visit: Visit) -> Self {
        Self {
            inner,
            visit,
            at: At::Preface(0),
            idle: Idle::default(),
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let came = buf.filled().get(before..).unwrap_or_default();
        let idle = self.at.step(came);
        if idle == 0 || self.idle.may_take(idle) {
            return read;
        }
        self.visit.is_flooded();
        let message = "more frames that bring nothing than are allowed";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, message)))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, size: u8) {
        out.extend([0, 0, size, kind, flags, 0, 0, 0, 1]);
        out.extend(vec![kind; usize::from(size)]);
    }

    // requirement: BRIDGE-FLOODS
    #[test]
    fn frames_that_bring_nothing_are_counted_wherever_they_are_cut() {
        let mut bytes = PREFACE.to_vec();
        for (kind, flags, size) in [
            (4, 0, 6),
            (1, 4, 200),
            (0, 0, 30),
            (6, 0, 8),
            (6, 1, 8),
            (0, 0, 0),
            (0, 1, 0),
            (8, 0, 4),
            (9, 0, 0),
            (3, 0, 4),
            (250, 0, 77),
            (0, 0, 9),
        ] {
            frame(&mut bytes, kind, flags, size);
        }
        for piece in 1..bytes.len() {
            let mut at = At::Preface(0);
            let count: usize = bytes.chunks(piece).map(|it| at.step(it)).sum();
            assert_eq!(count, 7, "in pieces of {piece}");
            assert!(matches!(at, At::Head(_, 0)));
        }
        let mut at = At::Preface(0);
        let upgrade = [b"PRI * HTTP/1.1\r\n", bytes.as_slice()].concat();
        assert_eq!(at.step(&upgrade), 0, "what is no HTTP/2 is not looked into");
    }

    // requirement: BRIDGE-FLOODS
    #[tokio::test(start_paused = true)]
    async fn what_may_come_may_come_again_after_ten_seconds() {
        let mut idle = Idle::default();
        assert!(idle.may_take(limits::WIRE_IDLE));
        assert!(!idle.may_take(1));
        tokio::time::advance(WINDOW).await;
        assert!(idle.may_take(limits::WIRE_IDLE));
    }
}
