//! Sockets, and the watch over what comes before a credential.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::admission::Visit;

/// Bytes in both directions.
pub(crate) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

pub(crate) type Boxed = Box<dyn Bytes>;

pub(crate) fn of_tcp(stream: TcpStream) -> Boxed {
    // Without it small packets would wait for answers to earlier ones. A socket that is closed already says so when read.
    let _ = stream.set_nodelay(true);
    Box::new(stream)
}

pub(crate) fn of_unix(stream: UnixStream) -> Boxed {
    Box::new(stream)
}

/// A server's socket: what it reads before there is a credential is bounded, whatever protocol it is for.
pub(crate) struct Watched {
    inner: Boxed,
    visit: Visit,
}

impl Watched {
    pub(crate) fn new(inner: Boxed, visit: Visit) -> Self {
        Self { inner, visit }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.visit.has_read(buf.filled().len() - before) {
            return read;
        }
        let message = "more bytes before a credential than are allowed";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, message)))
    }
}

impl AsyncWrite for Watched {
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
