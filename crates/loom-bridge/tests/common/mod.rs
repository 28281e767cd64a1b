//! An engine behind a door, a node that serves it, and clients over real sockets.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use loom_bridge::{Address, ClientTls, Clock, Dialing, Door, ServeConfig, Serving, Target, Way};
use loom_core::{Core, Error, Grants, Handle, Moment, Nanos, Notice, Qos, Result, SessionId};
use loom_proto::v1::{self, frame::Body};
use loom_session::{
    Authority, Client, ClientConfig, Credential, HubConfig, LinkState, Looked, Note, ReadErrand,
    Sending, Sent,
};

pub(crate) const TOKEN: &str = "loom_secret";
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn moment() -> Moment {
    static START: OnceLock<Instant> = OnceLock::new();
    let now = START.get_or_init(Instant::now).elapsed();
    Moment {
        now: Nanos(now.as_nanos() as u64 + 1_000_000_000),
        wall_ms: 1_800_000_000_000 + now.as_millis() as u64,
    }
}

type Waker = Arc<dyn Fn(SessionId) + Send + Sync>;

/// An engine without a log.
pub(crate) struct Engine {
    core: Mutex<Core>,
    waker: OnceLock<Waker>,
}

impl Door for Engine {
    fn with(&self, step: &mut dyn FnMut(&mut Core, Moment)) -> Result<()> {
        let mut core = self.core.lock().unwrap();
        step(&mut core, moment());
        for session in core.take_woken() {
            self.waker.get().unwrap()(session);
        }
        Ok(())
    }

    fn watch(&self, waker: Waker) {
        assert!(self.waker.set(waker).is_ok());
    }

    fn open(&self, namespace: &str) -> Result<()> {
        match namespace {
            "broken" => Err(Error::invalid("namespace", "its log is damaged")),
            _ => Ok(()),
        }
    }

    fn read(&self, _: &ReadErrand) -> Result<Looked> {
        Err(Error::invalid("data", "there is no log"))
    }
}

pub(crate) struct World {
    pub(crate) engine: Arc<Engine>,
    pub(crate) serving: Serving,
}

pub(crate) fn authority(tokens: &[&str]) -> Authority {
    use sha2::Digest;
    let credential = |token: &&str| Credential {
        id: (*token).to_owned(),
        hash: sha2::Sha256::digest(token.as_bytes()).into(),
        namespace: "*".to_owned(),
        grants: Arc::new(Grants::all()),
        expires_ms: None,
    };
    Authority::new(tokens.iter().map(credential).collect())
}

/// Without heartbeats: what is late must not be carried by them.
fn limits() -> loom_session::Limits {
    loom_session::Limits {
        heartbeat_ms: 3_600_000,
        silence_ms: 7_200_000,
        ..loom_session::Limits::default()
    }
}

pub(crate) fn hub() -> HubConfig {
    HubConfig {
        boot: [7; 16],
        limits: limits(),
        agent: "loom/test".to_owned(),
        durable: Vec::new(),
        keeps_log: false,
    }
}

pub(crate) fn local() -> ServeConfig {
    ServeConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        ..ServeConfig::default()
    }
}

impl World {
    pub(crate) fn new(config: &ServeConfig) -> Self {
        Self::with(config, hub())
    }

    pub(crate) fn with(config: &ServeConfig, hub: HubConfig) -> Self {
        let engine = Self::engine();
        let door: Arc<dyn Door> = engine.clone();
        let serving = Serving::start(door, config, hub, authority(&[TOKEN])).unwrap();
        Self { engine, serving }
    }

    pub(crate) fn engine() -> Arc<Engine> {
        Arc::new(Engine {
            core: Mutex::new(Core::new(loom_core::Limits::default(), 7)),
            waker: OnceLock::new(),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.serving.addresses()[0]
    }

    pub(crate) fn target(&self, way: Way, tls: Option<ClientTls>) -> Target {
        let address = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: self.address().port(),
        };
        Target { way, address, tls }
    }

    /// Waits until what the node counts is so.
    pub(crate) fn until(&self, what: &str, is_so: impl Fn(&loom_bridge::Stats) -> bool) {
        let begun = Instant::now();
        while !is_so(&self.serving.stats()) {
            assert!(
                begun.elapsed() < PATIENCE,
                "{what}: {:?}",
                self.serving.stats()
            );
            std::thread::yield_now();
        }
    }
}

/// A client that keeps what it was told.
pub(crate) struct Peer {
    pub(crate) client: Arc<Mutex<Client>>,
    pub(crate) dialing: Dialing,
    bell: Arc<(Mutex<u64>, Condvar)>,
    notes: Vec<Note>,
    ahead: Option<loom_core::Delivery>,
}

impl Peer {
    pub(crate) fn new(number: u8, target: Target) -> Self {
        Self::with(number, target, TOKEN, "")
    }

    pub(crate) fn with(number: u8, target: Target, token: &str, namespace: &str) -> Self {
        let client = client(number, token, namespace);
        let bell = Arc::new((Mutex::new(0), Condvar::new()));
        let ring = Arc::clone(&bell);
        let wake = Arc::new(move || {
            *ring.0.lock().unwrap() += 1;
            ring.1.notify_all();
        });
        let clock: Clock = Arc::new(moment);
        let dialing = Dialing::start(target, Arc::clone(&client), clock, wake).unwrap();
        Self {
            client,
            dialing,
            bell,
            notes: Vec::new(),
            ahead: None,
        }
    }

    /// A dialing whose client nobody uses.
    pub(crate) fn start(target: Target) -> Result<Dialing> {
        Dialing::start(
            target,
            client(1, TOKEN, ""),
            Arc::new(moment),
            Arc::new(|| {}),
        )
    }

    /// One operation of the client; then its carrier is told.
    pub(crate) fn act<T>(&self, act: impl FnOnce(&mut Client, Moment) -> T) -> T {
        let done = act(&mut self.client.lock().unwrap(), moment());
        self.dialing.kick();
        done
    }

    /// The first note of this kind, waited for; it is taken out.
    pub(crate) fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&Note) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            let rung = *self.bell.0.lock().unwrap();
            self.notes.extend(self.client.lock().unwrap().drain(10_000));
            if let Some((at, found)) = self
                .notes
                .iter()
                .enumerate()
                .find_map(|(at, note)| pick(note).map(|found| (at, found)))
            {
                self.notes.remove(at);
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{what} never came; there is {:?}",
                self.notes
            );
            let (bell, moved) = &*self.bell;
            let guard = bell.lock().unwrap();
            drop(
                moved
                    .wait_timeout_while(guard, left, |now| *now == rung)
                    .unwrap(),
            );
        }
    }

    pub(crate) fn up(&mut self) -> bool {
        self.wait("the link", |note| match note {
            Note::Link(change) if change.state == LinkState::Up => Some(change.resumed),
            _ => None,
        })
    }

    pub(crate) fn refused(&mut self) -> Error {
        self.wait("a refusal", |note| match note {
            Note::Link(change) => match &change.state {
                LinkState::Refused(error) => Some(error.clone()),
                _ => None,
            },
            Note::Core(_) | Note::Entries(..) | Note::Kept(..) | Note::Page(..) => None,
        })
    }

    pub(crate) fn lost(&mut self) -> String {
        self.wait("the loss", |note| match note {
            Note::Link(change) if change.state == LinkState::Lost => Some(change.reason.clone()),
            _ => None,
        })
    }

    pub(crate) fn register(&mut self, name: &str, filter: &str) -> Handle {
        let handle = self
            .act(|client, _| {
                client.enrol(|n| {
                    Body::Register(v1::Register {
                        handle: n,
                        name: name.to_owned(),
                        filters: vec![filter.to_owned()],
                        concurrency: 8,
                        info: Bytes::from_static(b"{}"),
                        ..v1::Register::default()
                    })
                })
            })
            .unwrap();
        self.accepted(handle.0);
        handle
    }

    pub(crate) fn provide(&mut self, name: &str) -> Handle {
        let handle = self
            .act(|client, _| {
                client.enrol(|n| {
                    Body::Provide(v1::Provide {
                        handle: n,
                        name: name.to_owned(),
                        version: "1".to_owned(),
                        effect: v1::EffectClass::Pure as i32,
                        concurrency: 8,
                        info: Bytes::from_static(b"{}"),
                        provider: "app".to_owned(),
                        probes: false,
                    })
                })
            })
            .unwrap();
        self.accepted(handle.0);
        handle
    }

    pub(crate) fn accepted(&mut self, ticket: u64) -> usize {
        self.wait("an acceptance", |note| match note {
            Note::Core(Notice::Accepted(known, receipt)) if known.0 == ticket => {
                Some(receipt.matched)
            }
            Note::Core(Notice::Refused(known, error)) if known.0 == ticket => {
                panic!("refused: {error:?}")
            }
            _ => None,
        })
    }

    /// Publishes, and gives the ticket.
    pub(crate) fn publish(&self, topic: &str, payload: impl Into<Bytes>) -> u64 {
        let sending = Sending {
            sender: 0,
            turn: None,
            topic,
            payload: payload.into(),
            qos: Qos::Batched,
            options: None,
            ack: None,
        };
        match self.act(|client, at| client.offer(sending, at)).unwrap() {
            Sent::Waits(ticket) => ticket.0,
            Sent::Done(_) => panic!("a batched event waits for its node"),
        }
    }

    pub(crate) fn ready(&mut self, handle: Handle) {
        self.wait("work", |note| match note {
            Note::Core(Notice::Ready(known)) if *known == handle => Some(()),
            _ => None,
        });
    }

    /// The next event or invocation; its turn is left open.
    pub(crate) fn take(&mut self, handle: Handle) -> loom_core::Delivery {
        if let Some(taken) = self.ahead.take() {
            return taken;
        }
        loop {
            if let Some(taken) = self
                .act(|client, at| client.take(handle, None, at))
                .unwrap()
            {
                return taken;
            }
            self.ready(handle);
        }
    }

    /// The next event, whose turn ends at once.
    pub(crate) fn hear(&mut self, handle: Handle) -> Bytes {
        let taken = self.take(handle);
        self.ahead = self
            .act(|client, at| client.take(handle, taken.lease, at))
            .unwrap();
        Bytes::copy_from_slice(&taken.envelope.payload)
    }
}

fn client(number: u8, token: &str, namespace: &str) -> Arc<Mutex<Client>> {
    let config = ClientConfig {
        session: [number; 16],
        name: format!("app{number}"),
        namespace: namespace.to_owned(),
        token: token.to_owned(),
        agent: "test/1".to_owned(),
        keep_ms: 0,
        whole: false,
        limits: limits(),
    };
    Arc::new(Mutex::new(Client::new(config, u64::from(number))))
}

/// Stands between a client and a node, and cuts.
pub(crate) struct Proxy {
    port: u16,
    streams: Arc<Mutex<Vec<std::net::TcpStream>>>,
}

impl Proxy {
    pub(crate) fn new(node: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let streams: Arc<Mutex<Vec<std::net::TcpStream>>> = Arc::default();
        let kept = Arc::clone(&streams);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = std::net::TcpStream::connect(node) else {
                    continue;
                };
                kept.lock().unwrap().push(client.try_clone().unwrap());
                kept.lock().unwrap().push(server.try_clone().unwrap());
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, client),
                ] {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self { port, streams }
    }

    pub(crate) fn target(&self, way: Way) -> Target {
        let address = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: self.port,
        };
        Target {
            way,
            address,
            tls: None,
        }
    }

    pub(crate) fn cut(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
