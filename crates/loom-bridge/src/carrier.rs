//! Packets in and out of one connection, whatever carries them.

use std::fmt;

use loom_core::Code;
use loom_proto::Encoded;
use loom_proto::v1::Packet;
use tokio::sync::mpsc;
use tonic::Status;

use crate::trust::untrusted;
use crate::websocket;

/// Why a carrier can go on no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    /// What the peer did wrong; `UNAVAILABLE`: the connection is gone.
    pub(crate) code: Code,
    pub(crate) reason: String,
    /// One of the two does not trust the other, or does not answer to that name: what is to be changed.
    pub(crate) untrusted: Option<Box<loom_core::Error>>,
}

impl Broken {
    pub(crate) fn gone(reason: impl fmt::Display) -> Self {
        Self {
            code: Code::Unavailable,
            reason: reason.to_string(),
            untrusted: None,
        }
    }

    /// The connection failed; what TLS says of it stands for what those above it say.
    pub(crate) fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        let broken = Self::gone(cause(error));
        match untrusted(error) {
            None => broken,
            Some(found) => Self {
                reason: found.message.clone(),
                untrusted: Some(Box::new(found)),
                ..broken
            },
        }
    }

    pub(crate) fn wrong(reason: impl fmt::Display) -> Self {
        Self {
            code: Code::InvalidParams,
            reason: reason.to_string(),
            untrusted: None,
        }
    }

    pub(crate) fn too_large(reason: impl fmt::Display) -> Self {
        Self {
            code: Code::Exhausted,
            reason: reason.to_string(),
            untrusted: None,
        }
    }
}

/// The innermost error: those around it say less.
pub(crate) fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(inner) = last.source() {
        last = inner;
    }
    last.to_string()
}

/// What comes in.
pub(crate) enum Inlet {
    Grpc(Box<tonic::Streaming<Packet>>),
    WebSocket(websocket::Inlet),
}

impl Inlet {
    /// The next packet; `None`: the peer has ended the connection as it should.
    pub(crate) async fn next(&mut self) -> Option<Result<Packet, Broken>> {
        match self {
            Self::Grpc(stream) => match stream.message().await {
                Ok(None) => None,
                Ok(Some(packet)) => Some(Ok(packet)),
                Err(status) => Some(Err(match untrusted(&status) {
                    None => of_status(&status),
                    Some(_) => Broken::failed(&status),
                })),
            },
            Self::WebSocket(inlet) => inlet.next().await,
        }
    }
}

fn of_status(status: &Status) -> Broken {
    let reason = status.message();
    match status.code() {
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => Broken::too_large(reason),
        tonic::Code::Internal | tonic::Code::InvalidArgument => Broken::wrong(reason),
        code => Broken::gone(format_args!("{code:?}: {reason}")),
    }
}

/// What goes out.
pub(crate) enum Outlet {
    /// A server's answer, which may end with a status.
    Answer(mpsc::Sender<Result<Encoded, Status>>),
    /// A client's question.
    Question(mpsc::Sender<Encoded>),
    WebSocket(websocket::Outlet),
}

impl Outlet {
    /// Sends packets, and returns when the carrier has taken them.
    pub(crate) async fn send(&mut self, packets: Vec<Encoded>) -> Result<(), Broken> {
        let gone = || Broken::gone("the other side has ended the connection");
        match self {
            Self::Answer(sender) => {
                for packet in packets {
                    sender.send(Ok(packet)).await.map_err(|_| gone())?;
                }
                Ok(())
            }
            Self::Question(sender) => {
                for packet in packets {
                    sender.send(packet).await.map_err(|_| gone())?;
                }
                Ok(())
            }
            Self::WebSocket(outlet) => outlet.send(packets).await,
        }
    }

    /// Ends the connection, and says why if it is the peer's fault.
    pub(crate) async fn close(self, why: Option<&Broken>) {
        match self {
            Self::Answer(sender) => {
                if let Some(status) = why.and_then(status) {
                    // Nobody may be there to hear it.
                    let _ = sender.send(Err(status)).await;
                }
            }
            Self::Question(_) => {}
            Self::WebSocket(outlet) => outlet.close(why).await,
        }
    }
}

fn status(why: &Broken) -> Option<Status> {
    let code = match why.code {
        Code::InvalidParams => tonic::Code::InvalidArgument,
        Code::Exhausted => tonic::Code::ResourceExhausted,
        _ => return None,
    };
    Some(Status::new(code, why.reason.clone()))
}
