//! A node's port: listeners, connections, and how they end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use loom_core::spec::limits;
use loom_core::{Code, Error, Result};
use loom_session::{Authority, Counts, Hub, HubConfig, Shown};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::admission::{Admission, Counts as Visits, HANDSHAKE, Stay};
use crate::config::ServeConfig;
use crate::door::Door;
use crate::http::Service;
use crate::idle::Counted;
use crate::node::Node;
use crate::origin::Rules;
use crate::socket::{self, Boxed, Watched};
use crate::{runtime, server_tls, sizes};

/// Connections that the system keeps until they are accepted.
const BACKLOG: u32 = sizes::CONNECTIONS;
/// What the end of the runtime may take beyond what it was given.
const GRACE: Duration = Duration::from_secs(2);

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Open,
    /// Nobody comes in any more.
    Draining,
    Over,
}

/// A bridge that serves. It ends with [`Serving::stop`], or when it is dropped.
pub struct Serving {
    node: Arc<Node>,
    admission: Arc<Admission>,
    phase: watch::Sender<Phase>,
    handle: tokio::runtime::Handle,
    ended: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
    unix: Vec<PathBuf>,
    process: u32,
}

/// What a bridge counts.
#[derive(Debug, Clone, Copy)]
pub struct Stats {
    /// Connections that stand.
    pub connections: usize,
    /// Of these, those that have shown no credential yet.
    pub strangers: usize,
    /// What became of connections.
    pub visits: Visits,
    /// What became of attachments.
    pub sessions: Counts,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) node: Arc<Node>,
    pub(crate) rules: Rules,
    pub(crate) phase: watch::Receiver<Phase>,
    admission: Arc<Admission>,
    tls: Option<TlsAcceptor>,
    http: auto::Builder<TokioExecutor>,
}

impl Serving {
    /// Binds the addresses, and serves from then on those whose credentials are in `authority`: a client that came before
    /// they are known would be refused for good.
    ///
    /// # Errors
    /// An address cannot be bound, a certificate cannot be read, an origin is none.
    pub fn start(
        door: Arc<dyn Door>,
        config: &ServeConfig,
        hub: HubConfig,
        authority: Authority,
    ) -> Result<Self> {
        let runtime = runtime::build("loom-bridge")?;
        let _inside = runtime.enter();
        let tcp = config.listen.iter().map(|address| bind(*address));
        let tcp = tcp.collect::<Result<Vec<_>>>()?;
        let unix = config.unix.iter().map(bind_unix);
        let unix = unix.collect::<Result<Vec<_>>>()?;
        let addresses = tcp.iter().map(TcpListener::local_addr);
        let addresses = addresses.collect::<std::io::Result<Vec<_>>>();
        let addresses = addresses.map_err(|error| refused("listen", &error))?;
        let (phase, phases) = watch::channel(Phase::Open);
        let admission = Arc::<Admission>::default();
        let node = Node::new(door, Hub::new(hub));
        node.step(|hub, core, at| hub.set_authority(authority, core, at))?;
        let shared = Arc::new(Shared {
            node: Arc::clone(&node),
            rules: Rules::new(&addresses, &config.origins, &config.hosts)?,
            phase: phases,
            admission: Arc::clone(&admission),
            tls: config.tls.as_ref().map(server_tls::acceptor).transpose()?,
            http: http(),
        });
        let (end, ended) = mpsc::sync_channel(1);
        let handle = runtime.handle().clone();
        let work = serve(shared, tcp, unix);
        let thread = std::thread::Builder::new().name("loom-bridge".to_owned());
        let thread = thread.spawn(move || {
            runtime.block_on(work);
            runtime.shutdown_timeout(GRACE);
            // Who waits for it may have given up.
            let _ = end.send(());
        });
        let thread =
            thread.map_err(|error| Error::new(Code::Exhausted, format!("no thread: {error}")))?;
        Ok(Self {
            node,
            admission,
            phase,
            handle,
            ended,
            thread: Some(thread),
            addresses,
            unix: config.unix.clone(),
            process: std::process::id(),
        })
    }

    /// The addresses that were bound, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Takes a new table of credentials. Sessions whose credential is not in it end now.
    ///
    /// # Errors
    /// The engine is closed.
    pub fn allow(&self, authority: Authority) -> Result<()> {
        let _inside = self.handle.enter();
        self.node
            .step(|hub, core, at| hub.set_authority(authority, core, at))
    }

    /// All sessions.
    pub fn sessions(&self) -> Vec<Shown> {
        self.node.look(Hub::sessions)
    }

    /// What was counted.
    pub fn stats(&self) -> Stats {
        let (connections, strangers, visits) = self.admission.counts();
        Stats {
            connections,
            strangers,
            visits,
            sessions: self.node.look(Hub::counts),
        }
    }

    /// Lets nobody in any more, and waits until nothing is under way; `false`: time ran out. The bridge goes on until it is
    /// stopped.
    ///
    /// # Errors
    /// The engine is closed.
    pub fn drain(&self, within: Duration) -> Result<bool> {
        let ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let inside = self.handle.enter();
        self.phase.send_replace(Phase::Draining);
        self.node.step(|hub, _, _| hub.drain(ms))?;
        drop(inside);
        let node = Arc::clone(&self.node);
        let (tell, told) = mpsc::sync_channel(1);
        let task = self.handle.spawn(async move {
            node.drained().await;
            // Who waits may have given up.
            let _ = tell.send(());
        });
        let done = told.recv_timeout(within).is_ok();
        task.abort();
        Ok(done)
    }

    /// Ends all connections and the thread. `false`: the thread is late; it is left to itself.
    pub fn stop(&mut self) -> bool {
        let Some(thread) = self.thread.take() else {
            return true;
        };
        if self.process != std::process::id() {
            // The thread, the sockets and their paths are those of the process that was forked.
            std::mem::forget(thread);
            return true;
        }
        {
            let _inside = self.handle.enter();
            // Where the engine is closed its sessions have ended as well.
            let _ = self.node.step(Hub::stop);
        }
        self.phase.send_replace(Phase::Over);
        for path in &self.unix {
            // Somebody may have taken it away before.
            let _ = std::fs::remove_file(path);
        }
        let ended = self.ended.recv_timeout(2 * GRACE).is_ok();
        if ended {
            // One that died has left its message where the process writes those.
            let _ = thread.join();
        }
        ended
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop();
    }
}

fn refused(field: &str, error: &std::io::Error) -> Error {
    Error::new(
        Code::Unavailable,
        format!("it cannot be listened there: {error}"),
    )
    .field(field)
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listen = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrNotAvailable => {
                format!("{} is no address of this machine", address.ip())
            }
            std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 are for the administrator: choose a higher one".to_owned()
            }
            _ => {
                format!("is another node running? choose another address than {address}, or port 0")
            }
        };
        refused("listen", &error).hint(hint)
    })
}

/// Only the owner of the path may connect. One that nobody listens on any more is replaced.
fn bind_unix(path: &PathBuf) -> Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let listen = || {
        if std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    listen().map_err(|error| {
        let hint = format!(
            "{} takes a folder that is there and that you may write to, a path of at most 107 bytes, and no other node there",
            path.display()
        );
        refused("unix", &error).hint(hint)
    })
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    let keepalive = Duration::from_millis(limits::WIRE_PING_MS);
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_headers(limits::WIRE_HEADERS)
        .max_buf_size(limits::WIRE_HEADER_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(sizes::STREAMS)
        .max_pending_accept_reset_streams(limits::WIRE_RESETS)
        .max_local_error_reset_streams(limits::WIRE_RESETS)
        .max_header_list_size(sizes::HEADER)
        .initial_stream_window_size(sizes::WINDOW)
        .initial_connection_window_size(sizes::WINDOWS)
        .max_frame_size(sizes::FRAME)
        .max_send_buf_size(limits::WIRE_WINDOW_BYTES)
        .keep_alive_interval(keepalive)
        .keep_alive_timeout(keepalive);
    http
}

async fn serve(shared: Arc<Shared>, tcp: Vec<TcpListener>, unix: Vec<UnixListener>) {
    for listener in tcp {
        drop(tokio::spawn(accept_tcp(Arc::clone(&shared), listener)));
    }
    for listener in unix {
        drop(tokio::spawn(accept_unix(Arc::clone(&shared), listener)));
    }
    let mut phase = shared.phase.clone();
    let node = &shared.node;
    tokio::select! {
        () = past(&mut phase, Phase::Draining) => {}
        _ = node.pump() => {}
        _ = node.tick() => {}
    }
    // What connections were told last may leave them.
    node.flushed(GRACE / 4).await;
}

/// Returns when this phase is over.
async fn past(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    // Where nobody is left who could change it, all is over.
    drop(phases.wait_for(|now| *now > phase).await);
}

async fn accept_tcp(shared: Arc<Shared>, listener: TcpListener) {
    let mut phase = shared.phase.clone();
    loop {
        let accepted = tokio::select! {
            accepted = async {
                shared.admission.room().await;
                listener.accept().await
            } => accepted,
            () = past(&mut phase, Phase::Open) => return,
        };
        match accepted {
            Ok((stream, _)) => enter(&shared, socket::of_tcp(stream), true),
            Err(error) => pause(&error).await,
        }
    }
}

async fn accept_unix(shared: Arc<Shared>, listener: UnixListener) {
    let mut phase = shared.phase.clone();
    loop {
        let accepted = tokio::select! {
            accepted = async {
                shared.admission.room().await;
                listener.accept().await
            } => accepted,
            () = past(&mut phase, Phase::Open) => return,
        };
        match accepted {
            Ok((stream, _)) => enter(&shared, socket::of_unix(stream), false),
            Err(error) => pause(&error).await,
        }
    }
}

/// A connection that ended before it was accepted is nobody's loss; where files run out, it is better soon.
async fn pause(error: &std::io::Error) {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if !matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    ) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn enter(shared: &Arc<Shared>, stream: Boxed, may_tls: bool) {
    let Some(stay) = shared.admission.enter() else {
        return;
    };
    let shared = Arc::clone(shared);
    drop(tokio::spawn(async move {
        let visit = stay.visit().clone();
        tokio::select! {
            () = visit.overdue() => {}
            () = connection(shared, stream, may_tls, stay) => {}
        }
    }));
}

/// Lets the other side read why it was not let in: what it still sends would else take that away from it.
async fn parted(mut stream: Watched) {
    if stream.shutdown().await.is_ok() {
        let mut rest = [0; 1024];
        while matches!(stream.read(&mut rest).await, Ok(read) if read > 0) {}
    }
}

async fn connection(shared: Arc<Shared>, stream: Boxed, may_tls: bool, stay: Arc<Stay>) {
    let watched = Watched::new(stream, stay.visit().clone());
    let stream: Boxed = match shared.tls.as_ref().filter(|_| may_tls) {
        None => Box::new(watched),
        // What fails here is the peer's affair; one that is late is overdue.
        Some(tls) => match tls.accept(watched).into_fallible().await {
            Ok(stream) => Box::new(stream),
            Err((_, stream)) => return parted(stream).await,
        },
    };
    let mut phase = shared.phase.clone();
    let visit = stay.visit().clone();
    let service = Service::new(Arc::clone(&shared), stay, !may_tls);
    let io = TokioIo::new(Counted::new(stream, visit));
    let served = shared.http.serve_connection_with_upgrades(io, service);
    tokio::pin!(served);
    tokio::select! {
        // How a connection ended is told by its sessions.
        _ = served.as_mut() => {}
        () = past(&mut phase, Phase::Draining) => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
}
