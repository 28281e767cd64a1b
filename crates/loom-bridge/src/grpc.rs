//! The gRPC services: `loom.v1.Bridge`, and `grpc.health.v1.Health` for those who watch over nodes.

use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use futures_util::stream::{self, BoxStream, StreamExt};
use hyper::body::Incoming;
use hyper::{Request, Response};
use loom_core::spec::limits;
use loom_core::{Core, Moment};
use loom_proto::Encoded;
use loom_proto::v1::frame::Body as Frame;
use loom_proto::v1::{self, Packet};
use loom_session::{Hub, PACKET_BYTES};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Status, Streaming};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::admission::{HANDSHAKE, Stay};
use crate::attend::{attend, is_welcome};
use crate::carrier::{Inlet, Outlet};
use crate::node::{End, Node};

/// Packets between a session and its carrier.
const WAITING: usize = 4;
/// So long an exchange waits for its answers.
const EXCHANGE: Duration = Duration::from_millis(limits::EXCHANGE_MS);

/// Where requests go.
pub(crate) const ATTACH: &str = "/loom.v1.Bridge/Attach";
pub(crate) const EXCHANGED: &str = "/loom.v1.Bridge/Exchange";
pub(crate) const HEALTH: &str = "/grpc.health.v1.Health/Check";

type Answer<T> = Result<tonic::Response<T>, Status>;
type Coming<T> = std::pin::Pin<Box<dyn Future<Output = Answer<T>> + Send>>;

/// Packets as they come, and as they go: those are encoded already.
#[derive(Default)]
pub(crate) struct Packets;

impl Codec for Packets {
    type Encode = Encoded;
    type Decode = Packet;
    type Encoder = Writes;
    type Decoder = ProstDecoder<Packet>;

    fn encoder(&mut self) -> Writes {
        Writes
    }

    fn decoder(&mut self) -> ProstDecoder<Packet> {
        ProstCodec::<Packet, Packet>::raw_decoder(BufferSettings::default())
    }
}

pub(crate) struct Writes;

impl Encoder for Writes {
    type Item = Encoded;
    type Error = Status;

    fn encode(&mut self, packet: Encoded, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let bytes = packet.bytes();
        to.reserve(bytes.len());
        to.put_slice(bytes);
        Ok(())
    }
}

fn codec() -> Grpc<Packets> {
    Grpc::new(Packets).max_decoding_message_size(PACKET_BYTES)
}

/// Answers `Attach`.
pub(crate) async fn attached(
    node: Arc<Node>,
    stay: Arc<Stay>,
    request: Request<Incoming>,
) -> Response<Body> {
    codec().streaming(Attach { node, stay }, request).await
}

/// Answers `Exchange`.
pub(crate) async fn exchanged(
    node: Arc<Node>,
    stay: Arc<Stay>,
    request: Request<Incoming>,
) -> Response<Body> {
    codec().unary(Exchange { node, stay }, request).await
}

/// Answers `Check`.
pub(crate) async fn checked(serving: bool, request: Request<Incoming>) -> Response<Body> {
    let codec: ProstCodec<Health, Asked> = ProstCodec::default();
    Grpc::new(codec)
        .max_decoding_message_size(PACKET_BYTES)
        .unary(Check { serving }, request)
        .await
}

/// Says that there is no such method.
pub(crate) fn unknown() -> Response<Body> {
    Status::unimplemented("there is no such method").into_http()
}

struct Attach {
    node: Arc<Node>,
    stay: Arc<Stay>,
}

impl StreamingService<Packet> for Attach {
    type Response = Encoded;
    type ResponseStream = BoxStream<'static, Result<Encoded, Status>>;
    type Future = Coming<Self::ResponseStream>;

    fn call(&mut self, request: tonic::Request<Streaming<Packet>>) -> Self::Future {
        let (sender, receiver) = mpsc::channel(WAITING);
        let carrier = (
            Inlet::Grpc(Box::new(request.into_inner())),
            Outlet::Answer(sender),
        );
        let (node, stay) = (Arc::clone(&self.node), Arc::clone(&self.stay));
        drop(tokio::spawn(attend(node, stay, carrier, false)));
        Box::pin(std::future::ready(Ok(tonic::Response::new(
            receiving(receiver).boxed(),
        ))))
    }
}

/// What a channel receives, as a stream.
pub(crate) fn receiving<T: Send>(
    receiver: mpsc::Receiver<T>,
) -> impl stream::Stream<Item = T> + Send {
    stream::unfold(receiver, |mut receiver| async {
        let item = receiver.recv().await?;
        Some((item, receiver))
    })
}

struct Exchange {
    node: Arc<Node>,
    stay: Arc<Stay>,
}

impl UnaryService<Packet> for Exchange {
    type Response = Encoded;
    type Future = Coming<Encoded>;

    fn call(&mut self, request: tonic::Request<Packet>) -> Self::Future {
        let (node, stay) = (Arc::clone(&self.node), Arc::clone(&self.stay));
        Box::pin(async move {
            exchange(&node, &stay, request.into_inner())
                .await
                .map(tonic::Response::new)
        })
    }
}

/// A session that lives as long as one call.
async fn exchange(node: &Arc<Node>, stay: &Arc<Stay>, packet: Packet) -> Result<Encoded, Status> {
    let closed = |error: loom_core::Error| Status::unavailable(error.message);
    let mut frames = packet.frames.into_iter();
    let hello = frames.next();
    let asked: Vec<v1::Frame> = frames.collect();
    let mut open = asked.iter().filter(|frame| is_answered(frame)).count();
    let last = asked.len() as u64;
    // Its answers are not cut into parts: one message holds them all.
    let (conn, end) = node.connect(true).map_err(closed)?;
    let gone = Gone(Arc::clone(node), conn);
    let take = |packet: Packet| {
        node.step(|hub: &mut Hub, core: &mut Core, at: Moment| hub.received(conn, packet, core, at))
    };
    let packet = |first, frames| Packet {
        first,
        received: 0,
        frames,
    };
    take(packet(0, hello.into_iter().collect())).map_err(closed)?;
    let mut answer = tokio::time::timeout(HANDSHAKE, gather(node, &gone, &end, &mut 1))
        .await
        .map_err(|_| Status::deadline_exceeded("the hello was not answered in time"))??;
    if !is_welcome(&answer) {
        return Ok(Encoded::from(&answer));
    }
    let _known = stay.known();
    take(packet(1, asked)).map_err(closed)?;
    let answered = gather(node, &gone, &end, &mut open);
    let answered = tokio::time::timeout(EXCHANGE, answered)
        .await
        .map_err(|_| Status::deadline_exceeded("not all was answered in time"))??;
    answer.frames.extend(answered.frames);
    let over = v1::Frame {
        body: Some(Frame::Drain(v1::Drain { within_ms: 0 })),
    };
    // Its session is not kept.
    take(packet(last + 1, vec![over])).map_err(closed)?;
    Ok(Encoded::from(&answer))
}

/// Ends the connection of an exchange, also of one that nobody waits for any more.
struct Gone(Arc<Node>, loom_session::ConnId);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.disconnect(self.1);
    }
}

/// Packets of the node until so many answers have come, or it closes the connection.
async fn gather(
    node: &Arc<Node>,
    gone: &Gone,
    end: &End,
    open: &mut usize,
) -> Result<Packet, Status> {
    let mut all = Packet::default();
    while *open > 0 {
        let batch = node
            .batch(gone.1, end)
            .map_err(|error| Status::unavailable(error.message))?;
        for packet in batch.packets {
            let packet = packet.packet();
            let ends = packet.frames.iter().filter(|frame| ends(frame)).count();
            *open = open.saturating_sub(ends);
            all.received = all.received.max(packet.received);
            all.frames.extend(packet.frames);
        }
        if batch.closes {
            break;
        }
        if !batch.more && *open > 0 {
            end.told.notified().await;
        }
    }
    Ok(all)
}

/// Whether exactly one frame ends what this one asks.
fn is_answered(frame: &v1::Frame) -> bool {
    match &frame.body {
        Some(Frame::Publish(publish)) => publish.r#ref != 0,
        Some(Frame::Keep(keep)) => keep.r#ref != 0,
        Some(
            Frame::Request(_)
            | Frame::Call(_)
            | Frame::Directory(_)
            | Frame::Read(_)
            | Frame::Route(_)
            | Frame::Resolve(_)
            | Frame::Redrive(_),
        ) => true,
        _ => false,
    }
}

fn ends(frame: &v1::Frame) -> bool {
    match &frame.body {
        Some(Frame::Entries(entries)) => entries.last,
        Some(Frame::Kept(kept)) => kept.last,
        Some(Frame::Page(page)) => !page.next.is_empty(),
        Some(
            Frame::Welcome(_)
            | Frame::Accepted(_)
            | Frame::Done(_)
            | Frame::Error(_)
            | Frame::Outcome(_),
        ) => true,
        _ => false,
    }
}

// -- health ----------------------------------------------------------------------------------------

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Asked {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Health {
    #[prost(int32, tag = "1")]
    pub(crate) status: i32,
}

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

struct Check {
    serving: bool,
}

impl UnaryService<Asked> for Check {
    type Response = Health;
    type Future = Coming<Health>;

    fn call(&mut self, request: tonic::Request<Asked>) -> Self::Future {
        let status = if self.serving { SERVING } else { NOT_SERVING };
        let answer = match request.into_inner().service.as_str() {
            "" | "loom.v1.Bridge" => Ok(tonic::Response::new(Health { status })),
            _ => Err(Status::not_found("there is no such service")),
        };
        Box::pin(std::future::ready(answer))
    }
}
