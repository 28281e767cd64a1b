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
        if !known.initialized() && batch.packets.iter().any(is_welcome) {
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

fn is_welcome(packet: &Packet) -> bool {
    let first = packet.frames.first().and_then(|frame| frame.body.as_ref());
    matches!(first, Some(Body::Welcome(_)))
}
