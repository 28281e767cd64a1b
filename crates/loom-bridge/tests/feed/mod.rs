//! A node's port, and connections whose bytes nobody wrote, over every way in, with and without a credential; beside them a
//! session that says nothing wrong. The fuzzer feeds it, and a test of every run.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use loom_bridge::{Door, ServeConfig, Serving};
use loom_core::{Core, Error, Grants, Moment, Nanos, Result, SessionId};
use loom_proto::v1::{self, Frame, Packet, frame::Body};
use loom_proto::{Message, json};
use loom_session::{Authority, Credential, HubConfig, Looked, ReadErrand};

/// So long a connection that sends no more may stay, and an answer may take: far longer than is allowed.
const PATIENCE: Duration = Duration::from_secs(12);
/// Packets of one input.
const PACKETS: usize = 32;

type Waker = Arc<dyn Fn(SessionId) + Send + Sync>;

struct Engine {
    core: Mutex<Core>,
    waker: OnceLock<Waker>,
    start: Instant,
}

impl Door for Engine {
    fn with(&self, step: &mut dyn FnMut(&mut Core, Moment)) -> Result<()> {
        let now = self.start.elapsed();
        let at = Moment {
            now: Nanos(1_000_000_000 + u64::try_from(now.as_nanos()).unwrap()),
            wall_ms: 1_800_000_000_000 + u64::try_from(now.as_millis()).unwrap(),
        };
        let mut core = self.core.lock().unwrap();
        step(&mut core, at);
        for session in core.take_woken() {
            self.waker.get().unwrap()(session);
        }
        Ok(())
    }

    fn watch(&self, waker: Waker) {
        assert!(self.waker.set(waker).is_ok());
    }

    fn open(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn read(&self, _: &ReadErrand) -> Result<Looked> {
        Err(Error::invalid("data", "there is no log"))
    }
}

fn credential(name: &str, namespace: &str) -> Credential {
    use sha2::Digest;
    Credential {
        id: name.to_owned(),
        hash: sha2::Sha256::digest(name.as_bytes()).into(),
        namespace: namespace.to_owned(),
        grants: Arc::new(Grants::all()),
        expires_ms: None,
    }
}

fn hello(session: u64, token: &str) -> Packet {
    let mut id = vec![token.len().to_le_bytes()[0]; 16];
    id.splice(..8, session.to_be_bytes());
    let hello = v1::Hello {
        versions: vec![1],
        token: token.to_owned(),
        session: Bytes::from(id),
        epoch: 1,
        name: token.to_owned(),
        credit: Some(v1::Credit {
            frames: 1 << 30,
            bytes: 1 << 40,
        }),
        keep_ms: u64::from(token != "good"),
        ..v1::Hello::default()
    };
    packet(0, 0, Body::Hello(hello))
}

fn packet(first: u64, received: u64, body: Body) -> Packet {
    Packet {
        first,
        received,
        frames: vec![Frame { body: Some(body) }],
    }
}

// -- what goes over a connection -------------------------------------------------------------------

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn h2_frame(out: &mut Vec<u8>, kind: u8, flags: u8, data: &[u8]) {
    out.extend(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
    out.extend([kind, flags, 0, 0, 0, 1]);
    out.extend(data);
}

/// The request of a gRPC call on stream 1.
fn call(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.extend([0, u8::try_from(name.len()).unwrap()]);
        block.extend(name.as_bytes());
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    }
    let mut out = PREFACE.to_vec();
    h2_frame(&mut out, 1, 4, &block);
    out
}

/// A message of gRPC, in frames of HTTP/2 that are not too large.
fn message(out: &mut Vec<u8>, data: &[u8]) {
    let mut framed = vec![0];
    framed.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    framed.extend(data);
    for piece in framed.chunks(16_384) {
        h2_frame(out, 0, 0, piece);
    }
}

fn upgrade(address: SocketAddr, protocol: &str) -> Vec<u8> {
    format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {address}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )
    .into_bytes()
}

/// A message of a WebSocket, masked with nothing: 2 is binary, 1 is text.
fn ws_message(out: &mut Vec<u8>, kind: u8, data: &[u8]) {
    out.push(0x80 | kind);
    match u16::try_from(data.len()) {
        Ok(size @ 0..126) => out.push(0x80 | size.to_be_bytes()[1]),
        Ok(size) => {
            out.push(0xfe);
            out.extend(size.to_be_bytes());
        }
        Err(_) => {
            out.push(0xff);
            out.extend((data.len() as u64).to_be_bytes());
        }
    }
    out.extend([0; 4]);
    out.extend(data);
}

/// The packets of an input: what decodes has the number that is due, or hardly one would be taken in.
fn packets(mut data: &[u8]) -> Vec<Vec<u8>> {
    let mut next = 1;
    let mut all = Vec::new();
    while let [high, low, rest @ ..] = data {
        let size = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (one, rest) = rest.split_at(size);
        data = rest;
        all.push(match Packet::decode(one) {
            Ok(mut packet) => {
                packet.first = next;
                next += packet.frames.len() as u64;
                packet.encode_to_vec()
            }
            Err(_) => one.to_vec(),
        });
        if all.len() == PACKETS {
            break;
        }
    }
    all
}

fn script(address: SocketAddr, session: u64, way: u8, data: &[u8]) -> Vec<u8> {
    let known = hello(session, "other");
    let mut out;
    match way % 12 {
        0 => out = data.to_vec(),
        1 => {
            out = PREFACE.to_vec();
            out.extend(data);
        }
        2 => {
            out = call("/loom.v1.Bridge/Attach");
            message(&mut out, &known.encode_to_vec());
            for packet in packets(data) {
                message(&mut out, &packet);
            }
        }
        3 => {
            out = call("/loom.v1.Bridge/Attach");
            message(&mut out, data);
        }
        4 => {
            // Two messages one behind the other are one whose repeated fields have both.
            out = call("/loom.v1.Bridge/Exchange");
            message(&mut out, &[known.encode_to_vec(), data.to_vec()].concat());
            h2_frame(&mut out, 0, 1, b"");
        }
        5 => {
            out = call("/loom.v1.Bridge/Exchange");
            message(&mut out, data);
            h2_frame(&mut out, 0, 1, b"");
        }
        6 => {
            out = call("/grpc.health.v1.Health/Check");
            message(&mut out, data);
            h2_frame(&mut out, 0, 1, b"");
        }
        7 => {
            out = upgrade(address, "loom.v1.proto");
            ws_message(&mut out, 2, &known.encode_to_vec());
            for packet in packets(data) {
                ws_message(&mut out, 2, &packet);
            }
        }
        8 => {
            out = upgrade(address, "loom.v1.json");
            ws_message(&mut out, 1, json::encode(&known).0.as_bytes());
            for packet in packets(data) {
                let text = match Packet::decode(packet.as_slice()) {
                    Ok(packet) => json::encode(&packet).0.into_bytes(),
                    Err(_) => packet,
                };
                ws_message(&mut out, 1, &text);
            }
        }
        9 => {
            out = upgrade(address, "loom.v1.json");
            ws_message(&mut out, 1, json::encode(&known).0.as_bytes());
            ws_message(&mut out, 1, data);
            ws_message(&mut out, 2, data);
        }
        10 => {
            out = upgrade(address, "loom.v1.proto");
            ws_message(&mut out, 2, &known.encode_to_vec());
            out.extend(data);
        }
        _ => {
            out = upgrade(address, "loom.v1.json");
            out.extend(data);
        }
    }
    out
}

// -- who goes on -----------------------------------------------------------------------------------

/// A session that says nothing wrong.
struct Good {
    stream: TcpStream,
    came: Vec<u8>,
    sent: u64,
    received: u64,
}

impl Good {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut good = Self {
            stream,
            came: Vec::new(),
            sent: 0,
            received: 0,
        };
        let mut out = upgrade(address, "loom.v1.proto");
        ws_message(&mut out, 2, &hello(1, "good").encode_to_vec());
        good.stream.write_all(&out).unwrap();
        while !good.came.ends_with(b"\r\n\r\n") {
            let mut one = [0];
            good.stream.read_exact(&mut one).unwrap();
            good.came.push(one[0]);
        }
        good.came.clear();
        assert!(matches!(good.hears(), Body::Welcome(_)));
        good
    }

    fn more(&mut self, size: usize) -> Vec<u8> {
        let mut data = vec![0; size];
        self.stream
            .read_exact(&mut data)
            .expect("the good one goes on");
        data
    }

    /// The next packet that says something.
    fn hears(&mut self) -> Body {
        loop {
            let head = self.more(2);
            let size = match head[1] {
                126 => usize::from(u16::from_be_bytes(self.more(2).try_into().unwrap())),
                127 => u64::from_be_bytes(self.more(8).try_into().unwrap())
                    .try_into()
                    .unwrap(),
                size => usize::from(size),
            };
            let data = self.more(size);
            assert_eq!(head[0], 0x82, "closed: {data:?}");
            let packet = Packet::decode(data.as_slice()).unwrap();
            if packet.first > 0 {
                self.received = packet.first + packet.frames.len() as u64 - 1;
            }
            for frame in packet.frames {
                match frame.body {
                    Some(Body::Heartbeat(_) | Body::Credit(_)) | None => {}
                    Some(body) => return body,
                }
            }
        }
    }

    fn goes_on(&mut self) {
        self.sent += 1;
        let publish = v1::Publish {
            r#ref: self.sent,
            topic: "good.one".to_owned(),
            payload: Some(v1::Payload {
                data: Bytes::from_static(b"1"),
                content_type: String::new(),
            }),
            ..v1::Publish::default()
        };
        let packet = packet(self.sent, self.received, Body::Publish(publish));
        let mut out = Vec::new();
        ws_message(&mut out, 2, &packet.encode_to_vec());
        self.stream.write_all(&out).unwrap();
        match self.hears() {
            Body::Accepted(accepted) => assert_eq!(accepted.r#ref, self.sent),
            other => panic!("{other:?}"),
        }
    }
}

/// A node that is fed, one input after the other.
pub(crate) struct Port {
    engine: Arc<Engine>,
    serving: Serving,
    good: Good,
    sessions: u64,
}

impl Port {
    pub(crate) fn new() -> Self {
        let engine = Arc::new(Engine {
            core: Mutex::new(Core::new(loom_core::Limits::default(), 7)),
            waker: OnceLock::new(),
            start: Instant::now(),
        });
        let config = ServeConfig {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            ..ServeConfig::default()
        };
        let hub = HubConfig {
            boot: [7; 16],
            limits: loom_session::Limits::default(),
            agent: "loom/test".to_owned(),
            durable: Vec::new(),
            keeps_log: false,
        };
        let door: Arc<dyn Door> = engine.clone();
        let known = vec![credential("good", "default"), credential("other", "other")];
        let serving = Serving::start(door, &config, hub, Authority::new(known)).unwrap();
        let good = Good::new(serving.addresses()[0]);
        Self {
            engine,
            serving,
            good,
            sessions: 0,
        }
    }

    /// Sends what these bytes say and hangs up: the connection ends, and the good one goes on.
    ///
    /// # Panics
    /// It does not hold.
    pub(crate) fn feed(&mut self, data: &[u8]) {
        let Some((way, data)) = data.split_first() else {
            return;
        };
        self.sessions += 1;
        let address = self.serving.addresses()[0];
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may be refused before all is sent.
        let _ = stream.write_all(&script(address, self.sessions, *way, data));
        let _ = stream.shutdown(Shutdown::Write);
        let begun = Instant::now();
        let mut answer = [0; 8_192];
        loop {
            match stream.read(&mut answer) {
                Ok(1..) if begun.elapsed() < PATIENCE => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    panic!("it stays though nothing comes any more")
                }
                // An end is an end, however it comes.
                Ok(0) | Err(_) => break,
                Ok(_) => panic!("it goes on and on"),
            }
        }
        self.good.goes_on();
        if self.sessions.is_multiple_of(64) {
            let audit = self.engine.core.lock().unwrap().audit();
            assert!(audit.balanced, "{audit:?}");
        }
    }
}
