//! One attachment at the node: packets in, packets out, and when it is given up.

use std::sync::Arc;
use std::time::Duration;

use loom_core::spec::limits;
use loom_proto::v1::Packet;
use loom_proto::v1::frame::Body;
use loom_session::ConnId;

use crate::admission::{Known, Stay};
use crate::carrier::{Broken, Inlet, Outlet};
use crate::node::{End, Node};

/// A connection over which nothing can be written for so long is dead.
pub(crate) const STALL: Duration = Duration::from_millis(limits::SILENCE_MS);
/// Packets that are taken in before others have their turn.
const TURN: usize = 32;

/// Attends to one attachment until it ends.
pub(crate) async fn attend(
    node: Arc<Node>,
    stay: Arc<Stay>,
    (mut inlet, mut outlet): (Inlet, Outlet),
    whole: bool,
) {
    // An engine that is closed has no sessions.
    let Ok((conn, end)) = node.connect(whole) else {
        return;
    };
    let known = tokio::sync::OnceCell::new();
    let visit = stay.visit().clone();
    let ended = tokio::select! {
        biased;
        ended = take_in(&node, conn, &mut inlet) => ended,
        ended = send_out(&node, (conn, &end), &mut outlet, (&stay, &known)) => ended,
        () = visit.overdue() => Err(Broken::gone("no hello came in time")),
    };
    node.disconnect(conn);
    if !known.initialized() {
        visit.has_failed();
    }
    let closing = outlet.close(ended.as_ref().err());
    // One that cannot be told any more is cut.
    let _ = tokio::time::timeout(Duration::from_millis(limits::HEARTBEAT_MS), closing).await;
}

async fn take_in(node: &Arc<Node>, conn: ConnId, inlet: &mut Inlet) -> Result<(), Broken> {
    loop {
        for _ in 0..TURN {
            let Some(packet) = inlet.next().await else {
                return Ok(());
            };
            let packet = packet?;
            node.step(|hub, core, at| hub.received(conn, packet, core, at))
                .map_err(|error| Broken::gone(error.message))?;
        }
        tokio::task::yield_now().await;
    }
}

async fn send_out(
    node: &Arc<Node>,
    (conn, end): (ConnId, &End),
    outlet: &mut Outlet,
    (stay, known): (&Arc<Stay>, &tokio::sync::OnceCell<Known>),
) -> Result<(), Broken> {
    loop {
        let batch = node
            .batch(conn, end)
            .map_err(|error| Broken::gone(error.message))?;
        if !known.initialized() && batch.packets.iter().any(|it| is_welcome(&it.packet())) {
            // It is set once, here.
            let _ = known.set(stay.known());
        }
        if !batch.packets.is_empty() {
            let Ok(sent) = tokio::time::timeout(STALL, outlet.send(batch.packets)).await else {
                stay.has_stalled();
                return Err(Broken::gone("nothing could be written for too long"));
            };
            sent?;
        }
        if batch.closes {
            return Ok(());
        }
        if !batch.more {
            end.told.notified().await;
        }
    }
}

/// Whether the node greets with it who has said hello.
pub(crate) fn is_welcome(packet: &Packet) -> bool {
    let first = packet.frames.first().and_then(|frame| frame.body.as_ref());
    matches!(first, Some(Body::Welcome(_)))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::SinkExt;
    use loom_core::{Core, Grants, Moment, Nanos, Result, SessionId};
    use loom_proto::Message as _;
    use loom_session::{Authority, Credential, Hub, HubConfig, Limits, Looked, ReadErrand};
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;
    use crate::admission::Admission;
    use crate::door::Door;
    use crate::websocket::{self, Form};

    struct Engine(Mutex<Core>, tokio::time::Instant);

    impl Door for Engine {
        fn with(&self, step: &mut dyn FnMut(&mut Core, Moment)) -> Result<()> {
            let now = self.1.elapsed();
            let at = Moment {
                now: Nanos(u64::try_from(now.as_nanos()).unwrap()),
                wall_ms: u64::try_from(now.as_millis()).unwrap(),
            };
            step(&mut self.0.lock().unwrap(), at);
            Ok(())
        }
        fn watch(&self, _: Arc<dyn Fn(SessionId) + Send + Sync>) {}
        fn open(&self, _: &str) -> Result<()> {
            Ok(())
        }
        fn read(&self, _: &ReadErrand) -> Result<Looked> {
            Err(loom_core::Error::fenced("there is no log"))
        }
    }

    fn node() -> Arc<Node> {
        let core = Core::new(loom_core::Limits::default(), 1);
        let config = HubConfig {
            boot: [1; 16],
            limits: Limits::default(),
            agent: String::new(),
            durable: Vec::new(),
            keeps_log: false,
        };
        let node = Node::new(
            Arc::new(Engine(Mutex::new(core), tokio::time::Instant::now())),
            Hub::new(config),
        );
        let credential = Credential {
            id: "one".to_owned(),
            hash: <sha2::Sha256 as sha2::Digest>::digest(b"token").into(),
            namespace: "*".to_owned(),
            grants: Arc::new(Grants::all()),
            expires_ms: None,
        };
        let authority = Authority::new(vec![credential]);
        node.step(|hub, core, at| hub.set_authority(authority, core, at))
            .unwrap();
        node
    }

    // requirement: BRIDGE-STALL
    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_ended_after_fifteen_seconds() {
        let node = node();
        let admission = Arc::<Admission>::default();
        let stay = admission.enter().unwrap();
        // So little fits between the two that the welcome does not.
        let (near, far) = tokio::io::duplex(16);
        let (inlet, outlet) = websocket::accepted(Box::new(near), Form::Proto).await;
        let carrier = (Inlet::WebSocket(inlet), Outlet::WebSocket(outlet));
        let begun = tokio::time::Instant::now();
        let attending = tokio::spawn(attend(Arc::clone(&node), stay, carrier, false));
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let hello = loom_proto::v1::Hello {
            versions: vec![1],
            token: "token".to_owned(),
            session: vec![1; 16].into(),
            epoch: 1,
            name: "deaf".to_owned(),
            ..Default::default()
        };
        let frame = loom_proto::v1::Frame {
            body: Some(Body::Hello(hello)),
        };
        let packet = loom_proto::v1::Packet {
            frames: vec![frame],
            ..Default::default()
        };
        client
            .send(Message::Binary(packet.encode_to_vec().into()))
            .await
            .unwrap();
        attending.await.unwrap();
        let took = begun.elapsed();
        assert!(took >= STALL && took < STALL + STALL / 2, "{took:?}");
        let (connections, _, counts) = admission.counts();
        assert_eq!((connections, counts.stalled), (0, 1));
        assert_eq!(node.look(Hub::sessions).len(), 1, "its session is kept");
    }
}
