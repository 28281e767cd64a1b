//! What comes to a port that is not as it should be, and what may come without a credential.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test says what it expects by failing, and has a clock of its own"
)]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Peer, TOKEN, World, local};
use futures_util::{SinkExt, StreamExt};
use loom_bridge::Way;
use loom_proto::v1::{self, Packet, frame::Body};
use loom_proto::{Message as _, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

/// So long nothing takes that should happen at once.
const SOON: Duration = Duration::from_secs(10);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.unwrap()
}

async fn connect(world: &World) -> TcpStream {
    TcpStream::connect(world.address()).await.unwrap()
}

/// Asks, and gives all that comes until the other side closes.
async fn ask(world: &World, request: &str) -> String {
    let mut stream = connect(world).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

fn get(path: &str, host: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n")
}

async fn websocket(
    world: &World,
    protocol: &str,
    origin: Option<&str>,
) -> Result<WebSocketStream<TcpStream>, Error> {
    let mut request = format!("ws://{}/v1/ws", world.address())
        .into_client_request()
        .unwrap();
    let headers = request.headers_mut();
    if !protocol.is_empty() {
        headers.insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    }
    if let Some(origin) = origin {
        headers.insert("Origin", origin.parse().unwrap());
    }
    client_async(request, connect(world).await)
        .await
        .map(|(socket, _)| socket)
}

fn frame(body: Body) -> v1::Frame {
    v1::Frame { body: Some(body) }
}

fn hello(session: u8) -> Packet {
    let hello = v1::Hello {
        versions: vec![1],
        token: TOKEN.to_owned(),
        session: Bytes::from(vec![session; 16]),
        epoch: 1,
        name: "raw".to_owned(),
        credit: Some(v1::Credit {
            frames: 100,
            bytes: 1 << 20,
        }),
        ..v1::Hello::default()
    };
    Packet {
        frames: vec![frame(Body::Hello(hello))],
        ..Packet::default()
    }
}

fn publish(reference: u64, topic: &str, payload: v1::Payload) -> v1::Frame {
    frame(Body::Publish(v1::Publish {
        r#ref: reference,
        topic: topic.to_owned(),
        payload: Some(payload),
        ..v1::Publish::default()
    }))
}

async fn closed_with(socket: &mut WebSocketStream<TcpStream>) -> CloseCode {
    loop {
        match soon(socket.next()).await {
            Some(Ok(Message::Close(Some(frame)))) => return frame.code,
            Some(Ok(_)) => {}
            other => panic!("closed without saying why: {other:?}"),
        }
    }
}

async fn text(socket: &mut WebSocketStream<TcpStream>) -> String {
    loop {
        match soon(socket.next()).await {
            Some(Ok(Message::Text(text))) => return text.to_string(),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => panic!("no text: {other:?}"),
        }
    }
}

// requirement: BRIDGE-HEALTH
#[tokio::test]
async fn health_is_told_to_anybody_and_tells_nothing_else() {
    let world = World::new(&local());
    let host = world.address().to_string();
    for path in ["/healthz", "/readyz"] {
        let answer = ask(&world, &get(path, &host, "")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "it has no body: {answer}");
    }
    for path in ["/", "/metrics", "/v1/ws", "/loom.v1.Bridge/Attach"] {
        let answer = ask(&world, &get(path, &host, "")).await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{path}: {answer}");
        assert!(
            answer.ends_with("\r\n\r\n"),
            "{path} tells nothing: {answer}"
        );
    }
}

// requirement: BRIDGE-ORIGIN
#[tokio::test]
async fn another_host_or_origin_is_forbidden_on_every_path() {
    let world = World::new(&local());
    let mine = world.address().to_string();
    let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: loom.v1.json\r\n";
    let evil = "evil.example:7420";
    for path in ["/healthz", "/v1/ws", "/loom.v1.Bridge/Attach"] {
        for (host, origin) in [
            (evil, ""),
            (mine.as_str(), "Origin: https://evil.example\r\n"),
            (mine.as_str(), "Origin: null\r\n"),
        ] {
            let answer = ask(&world, &get(path, host, &format!("{upgrade}{origin}"))).await;
            assert!(
                answer.starts_with("HTTP/1.1 403 "),
                "{path} {host} {origin}: {answer}"
            );
        }
    }
    assert!(
        websocket(&world, "loom.v1.json", Some("https://evil.example"))
            .await
            .is_err()
    );
    let own = format!("http://{mine}");
    assert!(websocket(&world, "loom.v1.json", Some(&own)).await.is_ok());
}

// requirement: BRIDGE-SUBPROTOCOL
#[tokio::test]
async fn a_websocket_without_a_subprotocol_that_is_known_is_refused() {
    let world = World::new(&local());
    for protocol in ["", "graphql-ws", "loom.v2.proto", "loom.v1"] {
        match websocket(&world, protocol, None).await {
            Err(Error::Http(answer)) => assert_eq!(answer.status(), 400, "{protocol}"),
            other => panic!("{protocol}: {other:?}"),
        }
    }
    let several = websocket(&world, "other, loom.v1.json", None).await;
    assert!(several.is_ok(), "the first one that is known is taken");
}

// requirement: BRIDGE-JSON
#[tokio::test]
async fn a_browser_speaks_json_and_sends_a_picture_as_it_is() {
    let world = World::new(&local());
    let target = world.target(Way::Grpc, None);
    let bob = tokio::task::spawn_blocking(move || {
        let mut bob = Peer::new(2, target);
        let hears = bob.register("hears", "picture.>");
        (bob, hears)
    });
    let (mut bob, hears) = bob.await.unwrap();
    let mut socket = websocket(&world, "loom.v1.json", None).await.unwrap();
    let (greeting, _) = json::encode(&hello(1));
    socket.send(Message::Text(greeting.into())).await.unwrap();
    let welcome = text(&mut socket).await;
    assert!(welcome.contains("\"welcome\":{\"version\":1,"), "{welcome}");
    let picture = v1::Payload {
        data: Bytes::from_static(b"\x89PNG\xff"),
        content_type: "image/png".to_owned(),
    };
    let packet = Packet {
        first: 1,
        frames: vec![publish(1, "picture.taken", picture)],
        ..Packet::default()
    };
    let (said, attachments) = json::encode(&packet);
    socket.send(Message::Text(said.into())).await.unwrap();
    for data in attachments {
        socket.send(Message::Binary(data)).await.unwrap();
    }
    let accepted = text(&mut socket).await;
    assert!(accepted.contains("\"accepted\":{\"ref\":1,"), "{accepted}");
    let came = tokio::task::spawn_blocking(move || bob.hear(hears))
        .await
        .unwrap();
    assert_eq!(came.as_ref(), b"\x89PNG\xff");

    // What is no packet ends the connection, with the reason.
    let wrong = r#"{"first":2,"frames":[{"publish":{"topic":7}}]}"#;
    socket.send(Message::Text(wrong.into())).await.unwrap();
    assert_eq!(closed_with(&mut socket).await, CloseCode::Protocol);
}

// requirement: BRIDGE-OVERSIZE
#[tokio::test]
async fn a_packet_that_is_too_large_ends_the_connection_and_says_so() {
    let world = World::new(&local());
    let mut socket = websocket(&world, "loom.v1.proto", None).await.unwrap();
    let greeting = hello(1).encode_to_vec();
    socket.send(Message::Binary(greeting.into())).await.unwrap();
    soon(socket.next()).await.unwrap().unwrap();
    let large = vec![0; loom_session::PACKET_BYTES + 1];
    socket.send(Message::Binary(large.into())).await.unwrap();
    assert_eq!(closed_with(&mut socket).await, CloseCode::Size);
    assert_eq!(world.serving.sessions().len(), 1, "its session is kept");
}

// requirement: BRIDGE-STRANGERS
#[tokio::test]
async fn without_a_credential_nobody_sends_more_than_a_little() {
    let world = World::new(&local());
    // Headers without an end, over HTTP/1.
    let mut stream = connect(&world).await;
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\n")
        .await
        .unwrap();
    let sent = soon(async {
        let mut sent = 0_usize;
        while stream
            .write_all(b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n")
            .await
            .is_ok()
        {
            sent += 48;
        }
        sent
    })
    .await;
    assert!(
        sent < 8 << 20,
        "what the sockets' buffers hold at most, not {sent}"
    );
    // A first message that is announced as large, over a WebSocket that may carry such.
    let socket = websocket(&world, "loom.v1.json", None).await.unwrap();
    let mut stream = socket.into_inner();
    let announced = [0x81, 0xff, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0];
    stream.write_all(&announced).await.unwrap();
    let sent = soon(stream.write_all(&vec![b'x'; 8 << 20])).await;
    assert!(sent.is_err(), "all of it was taken in");
    assert!(world.serving.sessions().is_empty());
}

// requirement: BRIDGE-STRANGERS
#[tokio::test]
async fn who_says_nothing_is_closed_in_five_seconds_whatever_it_has_begun() {
    let world = World::new(&local());
    let mut silent = connect(&world).await;
    let mut headers = connect(&world).await;
    headers
        .write_all(b"GET /healthz HTTP/1.1\r\nHost:")
        .await
        .unwrap();
    let mut preface = connect(&world).await;
    preface.write_all(b"PRI * HTTP/2.0\r\n\r\n").await.unwrap();
    let mut settings = connect(&world).await;
    settings
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut upgraded = websocket(&world, "loom.v1.proto", None).await.unwrap();
    let begun = std::time::Instant::now();
    let mut rest = Vec::new();
    for stream in [&mut silent, &mut headers, &mut preface, &mut settings] {
        // An error is an end as well.
        let _ = soon(stream.read_to_end(&mut rest)).await;
    }
    while let Some(Ok(_)) = soon(upgraded.next()).await {}
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    world.until("all are gone", |stats| stats.connections == 0);
    let visits = world.serving.stats().visits;
    // HTTP itself ends those whose headers never end, if it comes first.
    assert!(
        (3..=5).contains(&visits.strangers),
        "each is counted once: {visits:?}"
    );
}

// requirement: BRIDGE-STRANGERS
#[test]
fn idle_strangers_do_not_keep_others_out() {
    let world = World::new(&local());
    let strangers: Vec<_> = (0..400)
        .map(|_| std::net::TcpStream::connect(world.address()).unwrap())
        .collect();
    let mut alice = Peer::new(1, world.target(Way::Grpc, None));
    alice.up();
    let stats = world.serving.stats();
    assert!(stats.strangers <= 256, "{stats:?}");
    drop(strangers);
}

// requirement: BRIDGE-STREAMS
#[tokio::test]
async fn rapid_resets_end_the_connection_and_disturb_nobody() {
    let world = World::new(&local());
    let target = world.target(Way::Grpc, None);
    let alice = tokio::task::spawn_blocking(move || {
        let mut alice = Peer::new(1, target);
        alice.up();
        let hears = alice.register("hears", "n.>");
        (alice, hears)
    });
    let (mut alice, hears) = alice.await.unwrap();
    let (client, connection) = h2::client::handshake(connect(&world).await).await.unwrap();
    let over = tokio::spawn(connection);
    let mut client = client;
    // It has a credential: what a stranger may send does not bound it.
    let request = hyper::Request::post("http://localhost/loom.v1.Bridge/Attach")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (answer, mut attached) = client.send_request(request, false).unwrap();
    attached.send_data(framed(&hello(2)), false).unwrap();
    let mut welcome = soon(answer).await.unwrap().into_body();
    soon(welcome.data()).await.unwrap().unwrap();
    let resets = soon(async {
        let mut resets = 0_usize;
        loop {
            let Ok(ready) = client.clone().ready().await else {
                return resets;
            };
            client = ready;
            let request = hyper::Request::post("http://localhost/loom.v1.Bridge/Attach")
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            let Ok((_, mut stream)) = client.send_request(request, false) else {
                return resets;
            };
            stream.send_reset(h2::Reason::CANCEL);
            resets += 1;
            tokio::task::yield_now().await;
        }
    })
    .await;
    let _ = soon(over).await.unwrap();
    assert!(resets >= 20, "{resets}");
    world.until("it is gone", |stats| stats.connections == 1);
    let came = tokio::task::spawn_blocking(move || {
        let ticket = alice.publish("n.one", "1");
        alice.accepted(ticket);
        alice.hear(hears)
    });
    assert_eq!(came.await.unwrap(), "1");
}

// requirement: BRIDGE-STREAMS
#[tokio::test]
async fn a_client_may_not_open_more_streams_than_are_allowed() {
    let world = World::new(&local());
    let (mut client, mut connection) = h2::client::handshake(connect(&world).await).await.unwrap();
    let settled = soon(std::future::poll_fn(|cx| {
        let _ = std::pin::Pin::new(&mut connection).poll(cx);
        match connection.max_concurrent_send_streams() {
            16 => std::task::Poll::Ready(16),
            _ => std::task::Poll::Pending,
        }
    }));
    assert_eq!(settled.await, 16);
    let over = tokio::spawn(connection);
    let request = || {
        hyper::Request::post("http://localhost/nothing")
            .header("x", "y".repeat(20_000))
            .body(())
            .unwrap()
    };
    let (answer, _) = client.send_request(request(), true).unwrap();
    let answer = soon(answer).await;
    assert!(
        answer
            .as_ref()
            .map_or(true, |answer| answer.status() == 431),
        "headers that are too large: {answer:?}"
    );
    drop(client);
    let _ = soon(over).await;
}

// requirement: BRIDGE-EXCHANGE
#[tokio::test]
async fn an_exchange_asks_once_and_leaves_nothing() {
    let world = World::new(&local());
    let (mut client, connection) = h2::client::handshake(connect(&world).await).await.unwrap();
    drop(tokio::spawn(connection));
    let mut packet = hello(3);
    let payload = v1::Payload {
        data: Bytes::from_static(b"1"),
        ..v1::Payload::default()
    };
    packet.frames.push(publish(1, "n.one", payload.clone()));
    packet.frames.push(publish(2, "loom.forged", payload));
    packet.frames.push(frame(Body::Directory(v1::Directory {
        r#ref: 3,
        kind: "agent".to_owned(),
    })));
    let answer = exchange(&mut client, &packet).await;
    let bodies: Vec<Body> = answer.frames.into_iter().filter_map(|it| it.body).collect();
    assert!(matches!(bodies[0], Body::Welcome(_)), "{bodies:?}");
    assert!(
        bodies
            .iter()
            .any(|it| matches!(it, Body::Accepted(it) if it.r#ref == 1))
    );
    assert!(
        bodies
            .iter()
            .any(|it| matches!(it, Body::Error(it) if it.r#ref == 2))
    );
    assert!(
        bodies
            .iter()
            .any(|it| matches!(it, Body::Entries(it) if it.r#ref == 3 && it.last))
    );
    assert!(world.serving.sessions().is_empty());

    let Some(Body::Hello(wrong)) = &mut packet.frames[0].body else {
        panic!("the first one is the hello")
    };
    wrong.token = "loom_wrong".to_owned();
    let answer = exchange(&mut client, &packet).await;
    assert!(
        matches!(answer.frames[0].body, Some(Body::Error(_))),
        "{answer:?}"
    );
    assert_eq!(answer.frames.len(), 1);
}

/// A packet as gRPC frames it.
fn framed(packet: &Packet) -> Bytes {
    let data = packet.encode_to_vec();
    let mut framed = vec![0];
    framed.extend((data.len() as u32).to_be_bytes());
    framed.extend(data);
    framed.into()
}

async fn exchange(client: &mut h2::client::SendRequest<Bytes>, packet: &Packet) -> Packet {
    let request = hyper::Request::post("http://localhost/loom.v1.Bridge/Exchange")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    *client = client.clone().ready().await.unwrap();
    let (answer, mut body) = client.send_request(request, false).unwrap();
    body.send_data(framed(packet), true).unwrap();
    let mut answer = soon(answer).await.unwrap().into_body();
    let mut all = Vec::new();
    while let Some(data) = soon(answer.data()).await {
        let data = data.unwrap();
        answer.flow_control().release_capacity(data.len()).unwrap();
        all.extend(data);
    }
    let trailers = soon(answer.trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0", "{trailers:?}");
    Packet::decode(&all[5..]).unwrap()
}
