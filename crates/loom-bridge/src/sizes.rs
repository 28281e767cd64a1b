//! Limits as HTTP wants them.

use loom_core::spec::limits;
use loom_session::PACKET_BYTES;

const fn narrow(limit: usize) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "these limits are in the millions at most"
    )]
    let narrow = limit as u32;
    narrow
}

pub(crate) const CONNECTIONS: u32 = narrow(limits::WIRE_CONNECTIONS);
pub(crate) const STREAMS: u32 = narrow(limits::WIRE_STREAMS);
pub(crate) const HEADER: u32 = narrow(limits::WIRE_HEADER_BYTES);
/// Of one stream.
pub(crate) const WINDOW: u32 = narrow(limits::WIRE_WINDOW_BYTES);
/// Of all streams of a connection.
pub(crate) const WINDOWS: u32 = 2 * WINDOW;
/// A frame of HTTP/2 that comes: a whole packet with the head that gRPC gives it. Each frame is written and read by calls of
/// its own: with the 16 KiB that HTTP/2 begins with, realtime events came to 0.95 of the rate.
pub(crate) const FRAME: u32 = narrow(PACKET_BYTES + 5);
