//! Packets over a WebSocket: one binary message each, or one text with its attachments.

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use loom_core::Code;
use loom_core::spec::limits;
use loom_proto::v1::Packet;
use loom_proto::{Encoded, Message as _, json};
use loom_session::PACKET_BYTES;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::carrier::Broken;
use crate::idle::Idle;
use crate::socket::Boxed;

/// Which form the packets have: the subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Proto,
    Json,
}

impl Form {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Proto => "loom.v1.proto",
            Self::Json => "loom.v1.json",
        }
    }

    /// The first one of those that a client offers and that is known.
    pub(crate) fn offered(header: &str) -> Option<Self> {
        header.split(',').find_map(|name| match name.trim() {
            "loom.v1.proto" => Some(Self::Proto),
            "loom.v1.json" => Some(Self::Json),
            _ => None,
        })
    }

    /// What a packet may have. In JSON data stands inline, and is not cut into parts.
    const fn bytes(self) -> usize {
        match self {
            Self::Proto => PACKET_BYTES,
            Self::Json => limits::KEPT_PAYLOAD_BYTES + 2 * PACKET_BYTES,
        }
    }
}

/// Bytes that are read at once.
const READ: usize = PACKET_BYTES / 4;
/// A close frame holds so much of a reason.
const REASON: usize = 120;

pub(crate) fn config(form: Form) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(PACKET_BYTES)
        // Each send ends with a flush: it holds what one send brought, masked or with headers.
        .max_write_buffer_size(4 * Form::Json.bytes())
        .max_message_size(Some(form.bytes()))
        .max_frame_size(Some(form.bytes()))
}

pub(crate) type Socket = WebSocketStream<Boxed>;

/// The server's side of a connection whose upgrade was answered.
pub(crate) async fn accepted(stream: Boxed, form: Form) -> (Inlet, Outlet) {
    halves(
        WebSocketStream::from_raw_socket(stream, Role::Server, Some(config(form))).await,
        form,
    )
}

pub(crate) fn halves(socket: Socket, form: Form) -> (Inlet, Outlet) {
    let (sink, stream) = socket.split();
    let idle = Idle::default();
    (Inlet { stream, form, idle }, Outlet { sink, form })
}

pub(crate) struct Inlet {
    stream: SplitStream<Socket>,
    form: Form,
    idle: Idle,
}

impl Inlet {
    pub(crate) async fn next(&mut self) -> Option<Result<Packet, Broken>> {
        let message = match self.message().await? {
            Ok(message) => message,
            Err(broken) => return Some(Err(broken)),
        };
        Some(match (self.form, message) {
            (Form::Proto, Message::Binary(data)) => Packet::decode(data)
                .map_err(|error| Broken::wrong(format_args!("no packet: {error}"))),
            (Form::Json, Message::Text(text)) => self.json(&text).await,
            (form, _) => Err(Broken::wrong(format_args!(
                "a message that does not belong into {}",
                form.name()
            ))),
        })
    }

    async fn json(&mut self, text: &str) -> Result<Packet, Broken> {
        let count = json::attachments(text).map_err(Broken::wrong)?;
        let mut left = self.form.bytes().saturating_sub(text.len());
        let mut attachments: Vec<Bytes> = Vec::new();
        while attachments.len() < count {
            let data = match self.message().await {
                Some(Ok(Message::Binary(data))) => data,
                Some(Ok(_)) => return Err(Broken::wrong("an attachment is a binary message")),
                Some(Err(broken)) => return Err(broken),
                None => return Err(Broken::wrong("an attachment is missing")),
            };
            left = left.checked_sub(data.len()).ok_or_else(|| {
                Broken::too_large("a packet with its attachments is larger than is allowed")
            })?;
            attachments.push(data);
        }
        json::decode(text, attachments).map_err(Broken::wrong)
    }

    /// The next message that holds data.
    async fn message(&mut self) -> Option<Result<Message, Broken>> {
        loop {
            return match self.stream.next().await? {
                Ok(message @ (Message::Binary(_) | Message::Text(_))) => Some(Ok(message)),
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => None,
                // Pings are answered by the socket itself.
                Ok(_) if self.idle.may_take(1) => continue,
                Ok(_) => Some(Err(Broken::too_large("more pings than are allowed"))),
                Err(error @ Error::Capacity(_)) => Some(Err(Broken::too_large(error))),
                Err(error @ (Error::Protocol(_) | Error::Utf8(_))) => {
                    Some(Err(Broken::wrong(error)))
                }
                Err(error) => Some(Err(Broken::failed(&error))),
            };
        }
    }
}

pub(crate) struct Outlet {
    sink: SplitSink<Socket, Message>,
    form: Form,
}

impl Outlet {
    pub(crate) async fn send(&mut self, packets: Vec<Encoded>) -> Result<(), Broken> {
        for packet in packets {
            match self.form {
                Form::Proto => {
                    self.feed(Message::Binary(packet.bytes().clone())).await?;
                }
                Form::Json => {
                    let (text, attachments) = json::encode(&packet.packet());
                    self.feed(Message::Text(text.into())).await?;
                    for data in attachments {
                        self.feed(Message::Binary(data)).await?;
                    }
                }
            }
        }
        self.sink.flush().await.map_err(Broken::gone)
    }

    async fn feed(&mut self, message: Message) -> Result<(), Broken> {
        self.sink.feed(message).await.map_err(Broken::gone)
    }

    pub(crate) async fn close(mut self, why: Option<&Broken>) {
        let code = match why.map(|why| why.code) {
            None => CloseCode::Normal,
            Some(Code::InvalidParams) => CloseCode::Protocol,
            Some(Code::Exhausted) => CloseCode::Size,
            // Nobody is there.
            Some(_) => return,
        };
        let mut reason = why.map_or("", |why| &why.reason).to_owned();
        while reason.len() > REASON {
            reason.pop();
        }
        let frame = CloseFrame {
            code,
            reason: reason.into(),
        };
        // The peer may have gone before.
        let _ = self.sink.send(Message::Close(Some(frame))).await;
    }
}
