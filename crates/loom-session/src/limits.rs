//! The limits of sessions, by their names in `spec/limits.toml`.

use loom_core::spec::limits as spec;

/// What a node or a client holds to.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each is named and explained in spec/limits.toml"
)]
pub struct Limits {
    pub window_frames: u64,
    pub window_bytes: u64,
    pub ahead: usize,
    pub keep_ms: u64,
    pub reads: usize,
    pub sessions: usize,
    pub registrations: usize,
    pub handshake_ms: u64,
    pub heartbeat_ms: u64,
    pub silence_ms: u64,
    pub reconnect_base_ms: u64,
    pub reconnect_cap_ms: u64,
    pub frame_bytes: usize,
}

/// What a frame has beside its data at most: headers, labels, names.
const FRAME_HEAD_BYTES: usize = 64 << 10;

impl Default for Limits {
    fn default() -> Self {
        Self {
            window_frames: spec::SESSION_FRAMES as u64,
            window_bytes: spec::SESSION_BYTES as u64,
            ahead: spec::SESSION_AHEAD,
            keep_ms: spec::SESSION_KEEP_MS,
            reads: spec::SESSION_READS,
            sessions: spec::SESSIONS,
            registrations: spec::REGISTRATIONS,
            handshake_ms: spec::HANDSHAKE_MS,
            heartbeat_ms: spec::HEARTBEAT_MS,
            silence_ms: spec::SILENCE_MS,
            reconnect_base_ms: spec::RECONNECT_BASE_MS,
            reconnect_cap_ms: spec::RECONNECT_CAP_MS,
            frame_bytes: spec::KEPT_PAYLOAD_BYTES + FRAME_HEAD_BYTES,
        }
    }
}
