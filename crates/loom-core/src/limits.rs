//! The limits one engine runs with: those of `spec/limits.toml` unless a test or a configuration lowers them.

use crate::spec::limits as spec;

/// Every limit that the core enforces.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each is named and explained in spec/limits.toml"
)]
pub struct Limits {
    pub payload_bytes: usize,
    pub topic_tokens: usize,
    pub topic_bytes: usize,
    pub agent_filters: usize,
    pub hops: usize,
    pub queue_items: usize,
    pub queue_bytes: usize,
    pub batched_wait_ms: u64,
    pub name_bytes: usize,
    pub key_bytes: usize,
    pub thread_bytes: usize,
    pub headers: usize,
    pub header_bytes: usize,
    pub labels: usize,
    pub causes: usize,
    pub ttl_ms_max: u64,
    pub timeout_ms_max: u64,
    pub agent_concurrency_max: usize,
    pub pending_calls: usize,
    pub parked_offers: usize,
    pub provider_queue: usize,
    pub stream_chunks_max: usize,
    pub topic_cache: usize,
    pub registrations: usize,
    pub error_detail_bytes: usize,
    pub info_bytes: usize,
    pub replies: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes: spec::PAYLOAD_BYTES,
            topic_tokens: spec::TOPIC_TOKENS,
            topic_bytes: spec::TOPIC_BYTES,
            agent_filters: spec::AGENT_FILTERS,
            hops: spec::HOPS,
            queue_items: spec::QUEUE_ITEMS,
            queue_bytes: spec::QUEUE_BYTES,
            batched_wait_ms: spec::BATCHED_WAIT_MS,
            name_bytes: spec::NAME_BYTES,
            key_bytes: spec::KEY_BYTES,
            thread_bytes: spec::THREAD_BYTES,
            headers: spec::HEADERS,
            header_bytes: spec::HEADER_BYTES,
            labels: spec::LABELS,
            causes: spec::CAUSES,
            ttl_ms_max: spec::TTL_MS_MAX,
            timeout_ms_max: spec::TIMEOUT_MS_MAX,
            agent_concurrency_max: spec::AGENT_CONCURRENCY_MAX,
            pending_calls: spec::PENDING_CALLS,
            parked_offers: spec::PARKED_OFFERS,
            provider_queue: spec::PROVIDER_QUEUE,
            stream_chunks_max: spec::STREAM_CHUNKS_MAX,
            topic_cache: spec::TOPIC_CACHE,
            registrations: spec::REGISTRATIONS,
            error_detail_bytes: spec::ERROR_DETAIL_BYTES,
            info_bytes: spec::INFO_BYTES,
            replies: spec::REPLIES,
        }
    }
}
