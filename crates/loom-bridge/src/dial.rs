//! A client's way to its node: it connects, carries packets, notices that the connection is gone, and connects again.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use futures_util::StreamExt;
use hyper::client::conn::http2;
use hyper::{StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use loom_core::spec::limits;
use loom_core::{Code, Error, Moment, Nanos, Result};
use loom_proto::Encoded;
use loom_session::{Client, LinkState, PACKET_BYTES, Why};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc as channel, oneshot};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest};
use tonic::body::Body;

use crate::attend::STALL;
use crate::carrier::{Broken, Inlet, Outlet};
use crate::config::{Address, Target, Way};
use crate::node::{sleep_or_wait, until};
use crate::runtime::Shared;
use crate::socket::{self, Boxed};
use crate::websocket::{self, Form};
use crate::{client_tls, grpc, sizes};

/// A connection that is not there by then is tried anew.
const CONNECT: Duration = Duration::from_millis(limits::HANDSHAKE_MS);
/// Packets between a session and its carrier.
const WAITING: usize = 4;
/// Packets that are taken in before others have their turn.
const TURN: usize = 32;

/// Who tells the time: the same clock as the one that the client's other calls are told of.
pub type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;
/// Is called from any thread, without a lock, when the client's inbox got something.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Keeps a client connected. It ends with [`Dialing::stop`], or when it is dropped.
pub struct Dialing {
    line: Arc<Line>,
    ended: Mutex<mpsc::Receiver<()>>,
    runtime: Arc<Shared>,
}

struct Line {
    client: Arc<Mutex<Client>>,
    clock: Clock,
    wake: Wake,
    /// There is something to transmit, or to look at.
    kicked: Notify,
    stopped: Notify,
}

/// A target that was found to be sound.
struct Route {
    way: Way,
    address: Address,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    uri: Uri,
}

impl Dialing {
    /// Connects the client from now on whenever it wants to be connected.
    ///
    /// # Errors
    /// The target's name, certificates or authorities cannot be used; there is no thread left.
    pub fn start(
        target: Target,
        client: Arc<Mutex<Client>>,
        clock: Clock,
        wake: Wake,
    ) -> Result<Self> {
        let route = Route::new(target)?;
        let runtime = Shared::get()?;
        let line = Arc::new(Line {
            client,
            clock,
            wake,
            kicked: Notify::new(),
            stopped: Notify::new(),
        });
        let (end, ended) = mpsc::sync_channel(1);
        let work = Arc::clone(&line);
        drop(runtime.spawn(async move {
            tokio::select! {
                () = work.stopped.notified() => {}
                () = work.dial(&route) => {}
            }
            // Who waits for it may have given up.
            let _ = end.send(());
        }));
        Ok(Self {
            line,
            ended: Mutex::new(ended),
            runtime,
        })
    }

    /// Says that the client has something to transmit. It costs little, and may be called from any thread.
    pub fn kick(&self) {
        if self.runtime.is_ours() {
            self.line.kicked.notify_one();
        }
    }

    /// Ends it, and the connection. `false`: it took too long.
    pub fn stop(&self, within: Duration) -> bool {
        if !self.runtime.is_ours() {
            return true;
        }
        self.line.stopped.notify_one();
        self.wait(within)
    }

    /// Waits until a client that was closed has said all, over as many connections as that takes, then ends it. Gives
    /// how many frames the node has not confirmed by then.
    pub fn finish(&self, within: Duration) -> usize {
        if !self.runtime.is_ours() {
            return 0;
        }
        self.line.kicked.notify_one();
        self.wait(within);
        self.line.stopped.notify_one();
        self.line.step(|client, _| client.unsaid())
    }

    fn wait(&self, within: Duration) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        !matches!(
            ended.recv_timeout(within),
            Err(mpsc::RecvTimeoutError::Timeout)
        )
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        if self.runtime.is_ours() {
            self.line.stopped.notify_one();
        }
    }
}

impl Line {
    /// One step of the client; then its loop is woken if there is something for it.
    fn step<T>(&self, step: impl FnOnce(&mut Client, Moment) -> T) -> T {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let done = step(&mut client, (self.clock)());
        let woken = client.take_woken();
        drop(client);
        if woken {
            (self.wake)();
        }
        done
    }

    async fn dial(&self, route: &Route) {
        loop {
            if !self.wanted().await {
                return;
            }
            let carrier = tokio::select! {
                carrier = tokio::time::timeout(CONNECT, route.connect()) => {
                    carrier.unwrap_or_else(|_| Err(Broken::gone("nobody answered in time")))
                }
                () = self.overdue() => continue,
            };
            let why = match carrier {
                Err(broken) => why(broken),
                Ok(carrier) => self.carry(carrier).await,
            };
            self.step(|client, at| client.disconnected(&why, at));
            if self.step(|client, _| client.is_over()) {
                return;
            }
        }
    }

    /// Returns when a connection is wanted; what is due meanwhile is done. `false`: none will be.
    async fn wanted(&self) -> bool {
        loop {
            if self.step(|client, _| client.is_over()) {
                return false;
            }
            let (dial, due, at) = self.step(|client, at| {
                // Without a connection there is none that could be dead.
                let _ = client.tick(at);
                (client.wants_connection(), client.next_deadline(), at.now)
            });
            if dial.is_some_and(|dial| dial <= at) {
                return true;
            }
            self.rest(dial.into_iter().chain(due).min(), at).await;
        }
    }

    /// Does what is due while a connection is being made, for ever; or returns when none is wanted any more.
    async fn overdue(&self) {
        loop {
            let (dial, due, at) = self.step(|client, at| {
                let _ = client.tick(at);
                (client.wants_connection(), client.next_deadline(), at.now)
            });
            if dial.is_none() {
                return;
            }
            self.rest(due, at).await;
        }
    }

    async fn rest(&self, next: Option<Nanos>, now: Nanos) {
        tokio::select! {
            () = self.kicked.notified() => {}
            () = sleep_or_wait(next.map(|next| until(next, now))) => {}
        }
    }

    async fn carry(&self, (mut inlet, mut outlet): (Inlet, Outlet)) -> Why {
        self.step(Client::connected);
        let ended = tokio::select! {
            biased;
            ended = self.take_in(&mut inlet) => ended,
            ended = self.send_out(&mut outlet) => ended,
        };
        // It may be dead: who waits for it waits for nothing.
        let _ = tokio::time::timeout(CONNECT / 10, outlet.close(None)).await;
        match ended {
            Ok(()) => Why::Ended,
            Err(broken) => why(broken),
        }
    }

    async fn take_in(&self, inlet: &mut Inlet) -> std::result::Result<(), Broken> {
        loop {
            for _ in 0..TURN {
                let Some(packet) = inlet.next().await else {
                    return Ok(());
                };
                let packet = packet?;
                self.step(|client, at| client.received(packet, at))
                    .map_err(|error| Broken::gone(error.message))?;
                self.kicked.notify_one();
            }
            tokio::task::yield_now().await;
        }
    }

    async fn send_out(&self, outlet: &mut Outlet) -> std::result::Result<(), Broken> {
        loop {
            let (packets, more, due, at) = self
                .step(|client, at| {
                    client.tick(at).map(|()| {
                        let packets: Vec<Encoded> = std::iter::from_fn(|| client.transmit())
                            .take(limits::WIRE_BATCH)
                            .collect();
                        let more = packets.len() == limits::WIRE_BATCH;
                        let over = *client.state() == LinkState::Closed && client.is_flushed();
                        (packets, more || over, client.next_deadline(), at.now)
                    })
                })
                .map_err(|error| Broken::gone(error.message))?;
            if !packets.is_empty() {
                match tokio::time::timeout(STALL, outlet.send(packets)).await {
                    Ok(sent) => sent?,
                    Err(_) => return Err(Broken::gone("nothing could be written for too long")),
                }
            } else if more {
                // It was closed, and the node has all.
                return Ok(());
            }
            if !more {
                self.rest(due, at).await;
            }
        }
    }
}

fn why(broken: Broken) -> Why {
    match broken.untrusted {
        None => Why::Broken(broken.reason),
        Some(error) => Why::Untrusted(*error),
    }
}

impl Route {
    fn new(target: Target) -> Result<Self> {
        let (host, port) = match &target.address {
            Address::Tcp { host, port } => (host.clone(), Some(*port)),
            Address::Unix(_) => ("localhost".to_owned(), None),
        };
        let protocol = match target.way {
            Way::Grpc => "h2",
            Way::WebSocket => "http/1.1",
        };
        let tls = match (&target.tls, &target.address) {
            (Some(tls), Address::Tcp { .. }) => Some((
                client_tls::connector(tls, protocol)?,
                client_tls::name(tls, &host)?,
            )),
            (Some(_), Address::Unix(_)) => {
                return Err(Error::invalid("url", "there is no TLS on a Unix socket"));
            }
            (None, _) => None,
        };
        let scheme = match (target.way, tls.is_some()) {
            (Way::Grpc, true) => "https",
            (Way::Grpc, false) => "http",
            (Way::WebSocket, true) => "wss",
            (Way::WebSocket, false) => "ws",
        };
        let name = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        let authority = port.map_or(name.clone(), |port| format!("{name}:{port}"));
        let path = match target.way {
            Way::Grpc => "",
            Way::WebSocket => "/v1/ws",
        };
        let uri = format!("{scheme}://{authority}{path}").parse::<Uri>();
        let uri = uri.map_err(|error| {
            Error::new(
                Code::InvalidParams,
                format!("{authority:?} is no host: {error}"),
            )
            .field("url")
        })?;
        Ok(Self {
            way: target.way,
            address: target.address,
            tls,
            uri,
        })
    }

    async fn connect(&self) -> std::result::Result<(Inlet, Outlet), Broken> {
        let stream = match &self.address {
            Address::Tcp { host, port } => TcpStream::connect((host.as_str(), *port))
                .await
                .map(socket::of_tcp),
            Address::Unix(path) => UnixStream::connect(path).await.map(socket::of_unix),
        };
        let stream = stream.map_err(|error| Broken::failed(&error))?;
        let stream: Boxed = match &self.tls {
            None => stream,
            Some((tls, name)) => Box::new(
                tls.connect(name.clone(), stream)
                    .await
                    .map_err(|error| Broken::failed(&error))?,
            ),
        };
        match self.way {
            Way::Grpc => self.grpc(stream).await,
            Way::WebSocket => self.websocket(stream).await,
        }
    }

    /// The node does not know the name by which it was called.
    fn unnamed(&self) -> Broken {
        let host = self.uri.host().unwrap_or_default();
        let message = format!("the node does not answer to the name {host:?}");
        let error = Error::new(Code::Denied, message.clone())
            .field("url")
            .hint(format!("`loom up --host {host}` lets it; or connect by its address, or over loom:// or looms://"));
        Broken {
            untrusted: Some(Box::new(error)),
            ..Broken::gone(message)
        }
    }

    async fn grpc(&self, stream: Boxed) -> std::result::Result<(Inlet, Outlet), Broken> {
        let ping = Duration::from_millis(limits::WIRE_PING_MS);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(sizes::WINDOW)
            .initial_connection_window_size(sizes::WINDOWS)
            .max_frame_size(sizes::FRAME)
            .max_send_buf_size(limits::WIRE_WINDOW_BYTES)
            .keep_alive_interval(ping)
            .keep_alive_timeout(ping)
            .keep_alive_while_idle(true)
            .handshake::<_, Body>(TokioIo::new(stream))
            .await
            .map_err(|error| Broken::failed(&error))?;
        // It ends with the last of its streams, and those tell why; before there is one, it does.
        let (told, why) = oneshot::channel();
        drop(tokio::spawn(async move {
            if let Err(error) = connection.await {
                // Nobody may wait for it any more.
                let _ = told.send(Broken::failed(&error));
            }
        }));
        let (packets, waiting) = channel::channel(WAITING);
        let mut client = tonic::client::Grpc::with_origin(Sender(sender), self.uri.clone())
            .max_decoding_message_size(PACKET_BYTES);
        let request = tonic::Request::new(grpc::receiving(waiting).boxed());
        let path = hyper::http::uri::PathAndQuery::from_static(grpc::ATTACH);
        let asked = async {
            client
                .ready()
                .await
                .map_err(|error| Broken::failed(&error))?;
            let answer = client.streaming(request, path, grpc::Packets).await;
            answer.map_err(|status| Broken::failed(&status))
        };
        let answer = match asked.await {
            Ok(answer) => answer,
            Err(broken) => {
                drop(client);
                return Err(why.await.unwrap_or(broken));
            }
        };
        let inlet = Inlet::Grpc(Box::new(answer.into_inner()));
        Ok((inlet, Outlet::Question(packets)))
    }

    async fn websocket(&self, stream: Boxed) -> std::result::Result<(Inlet, Outlet), Broken> {
        let form = Form::Proto;
        let mut request = self
            .uri
            .clone()
            .into_client_request()
            .map_err(Broken::gone)?;
        let protocol = hyper::header::HeaderValue::from_static(form.name());
        request
            .headers_mut()
            .insert(hyper::header::SEC_WEBSOCKET_PROTOCOL, protocol);
        let config = Some(websocket::config(form));
        let (socket, _) = client_async_with_config(request, stream, config)
            .await
            .map_err(|error| match &error {
                tungstenite::Error::Http(answer) if answer.status() == StatusCode::FORBIDDEN => {
                    self.unnamed()
                }
                _ => Broken::failed(&error),
            })?;
        let (inlet, outlet) = websocket::halves(socket, form);
        Ok((Inlet::WebSocket(inlet), Outlet::WebSocket(outlet)))
    }
}

/// A connection's sender, as tonic wants it.
struct Sender(http2::SendRequest<Body>);

impl tower_service::Service<hyper::Request<Body>> for Sender {
    type Response = hyper::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<
        Box<dyn Future<Output = std::result::Result<Self::Response, hyper::Error>> + Send>,
    >;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::result::Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
