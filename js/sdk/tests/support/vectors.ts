// What the golden frames of spec/vectors/frames are: one packet for each kind of frame, with values
// at the edges. The files are what counts; every language reads them.

import type { Envelope, Frame, Packet } from '../../src/gen/frames.js'

const ID = '0190a6b4-7c00-7def-8123-456789abcdef'
const ZERO = '00000000-0000-0000-0000-000000000000'
const FULL = 'ffffffff-ffff-ffff-ffff-ffffffffffff'
const SESSION = '00112233445566778899aabbccddeeff'
const HASH = 'ab'.repeat(32)
const MOST = Number.MAX_SAFE_INTEGER
const BYTES = Uint8Array.from({ length: 256 }, (_, i) => i)
const TEXT = 'Zürich – 東京 – 🧵 "quoted" \\ \u0001\u2028'

const EVENT: Envelope = {
  id: ID,
  topic: 'question.asked',
  payload: { json: { 'a b': [1, -2, 0.5, null, true], text: TEXT } },
  sender: 'default/asks',
  time_ms: 1_790_000_000_123,
  thread_id: ID,
  run_id: FULL,
  causation_id: ZERO,
  correlation_id: ID,
  causes: [ID, FULL],
  remaining_ms: 0,
  ttl_ms: 86_400_000,
  hop: 16,
  qos: 'realtime',
  key: 'a/ü',
  headers: [{ name: 'x' }, { name: 'y', value: TEXT }],
  labels: ['untrusted'],
  traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
  position: '01-000000000001-0000000000000042',
}
const PLAIN: Envelope = { id: ID, topic: 'a', payload: { json: null }, sender: 'n/a', run_id: ID }
const RAW: Envelope = {
  ...PLAIN,
  payload: { data: BYTES, type: 'image/png' },
  thread_name: 'our-thread',
}

function one(...frames: Frame[]): Packet {
  return { first: 1, received: 7, frames }
}

/** Each vector by the name of its files. */
export const VECTORS: Record<string, Packet> = {
  empty: { received: MOST },
  hello: {
    frames: [
      {
        hello: {
          versions: [1, 2, 300],
          token: `loom_${'A'.repeat(43)}`,
          session: SESSION,
          epoch: 3,
          name: 'shop',
          namespace: 'default',
          boot: SESSION,
          received: 9,
          agent: 'loom-js/0.1.0',
          credit: { frames: 1024, bytes: 8_388_608 },
          keep_ms: 60_000,
        },
      },
    ],
  },
  'hello-first': { frames: [{ hello: { versions: [1], session: SESSION, epoch: 1, name: 'a' } }] },
  welcome: {
    received: 4,
    frames: [
      {
        welcome: {
          version: 1,
          boot: SESSION,
          resumed: true,
          received: 4,
          namespace: 'default',
          agent: 'loomd/0.1.0',
          credit: { frames: MOST, bytes: MOST },
          heartbeat_ms: 5000,
          keep_ms: 60_000,
          time_ms: 1_790_000_000_123,
          payload_bytes: 1_048_576,
        },
      },
    ],
  },
  heartbeat: { received: 2, frames: [{ heartbeat: { alive: true, stack: 'line 1\nline 2' } }] },
  'heartbeat-empty': { frames: [{ heartbeat: {} }] },
  error: {
    frames: [
      {
        error: {
          code: 15,
          message: 'a newer connection of this session is there',
          keeps: true,
        },
      },
    ],
  },
  'error-of-a-frame': one({
    error: {
      ref: 12,
      code: 12,
      message: TEXT,
      field: 'topic',
      limit: 'queue_items',
      hint: 'later',
      who: 'default/slow',
      retry_after_ms: 0,
      retry: false,
    },
  }),
  drain: { frames: [{ drain: { within_ms: 10_000 } }] },
  part: one(
    { part: { id: 1, bytes: 300, data: BYTES } },
    { part: { id: 1, data: BYTES.subarray(0, 44), last: true } },
  ),
  credit: one({ credit: { frames: 2048, bytes: 16_777_216 } }),
  register: one({
    register: {
      handle: 1,
      name: 'planner',
      filters: ['question.>', 'spawn.*'],
      group: 'planners',
      concurrency: 64,
      info: { capabilities: [], description: TEXT, name: 'planner' },
      realtime: true,
      start: 'beginning',
      max_deliver: 20,
      exclusive: true,
    },
  }),
  provide: one({
    provide: {
      handle: 2,
      name: 'web.search',
      version: '1',
      effect: 'pure',
      concurrency: 8,
      info: { input: { properties: { q: { type: 'string' } }, type: 'object' } },
      provider: 'planner',
      probes: true,
    },
  }),
  subscribe: one({ subscribe: { handle: 3, filters: ['>'], qos: 'background' } }),
  unsubscribe: one({ unsubscribe: { handle: 3 } }),
  status: one({ status: { handle: 1, status: 2 } }),
  done: one({ done: { ref: 1 } }),
  publish: one({
    publish: {
      ref: 5,
      sender: 1,
      lease: MOST,
      topic: 'order.paid',
      payload: { json: { amount: 12.5, items: [] } },
      qos: 'batched',
      ack: 'disk',
      options: {
        key: 'k',
        thread: ID,
        ttl_ms: 0,
        headers: [{ name: 'h', value: 'v' }],
        labels: ['secret'],
        traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
        causes: [ID],
        id: 'order-17',
      },
    },
  }),
  'publish-bytes': one({
    publish: { topic: 'image', payload: { data: BYTES, type: 'application/octet-stream' } },
  }),
  'publish-several': {
    first: 9,
    frames: [
      { publish: { ref: 1, topic: 'a', payload: { json: 'first' } } },
      { publish: { ref: 2, topic: 'b', payload: { data: new Uint8Array(), type: 'text/plain' } } },
      { publish: { ref: 3, topic: 'c', payload: { data: BYTES, type: 'image/png' } } },
      { publish: { ref: 4, topic: 'd', payload: { json: [] } } },
    ],
  },
  accepted: one({
    accepted: { ref: 5, id: ID, level: 'os', matched: 3, position: EVENT.position as string },
  }),
  withdraw: one({ withdraw: { ref: 5 } }),
  deliver: one({
    deliver: {
      event: EVENT,
      targets: [
        { handle: 1, lease: 1, lane: 1, asked: true, attempt: 1, recorded: 7 },
        { handle: 2, lease: MOST },
      ],
    },
  }),
  'deliver-bytes': one({ deliver: { event: RAW, targets: [{ handle: 1, lease: 2, lane: 9 }] } }),
  turn: one({
    turn: {
      event: EVENT,
      target: { handle: 1, lease: 4, lane: 2, attempt: 3 },
      state: { json: { seen: 1 } },
      journal: [{ kind: 'call', name: 'web.search', args_hash: HASH, code: 5, micros: 1500 }],
    },
  }),
  ack: one({ ack: { leases: [1, 127, 128, 16_384, MOST] } }),
  nak: one({ nak: { lease: 4, after_ms: 0 } }),
  'nak-by-attempts': one({ nak: { lease: 4 } }),
  extend: one({ extend: { lease: 4 } }),
  term: one({ term: { lease: 4, reason: 'cannot be read' } }),
  fail: one({
    fail: {
      lease: 4,
      code: 7,
      detail: { message: TEXT, retry: true, retry_after_ms: 50, who: 'default/planner' },
    },
  }),
  request: one({
    request: {
      call: 8,
      sender: 1,
      lease: 4,
      topic: 'draft.write',
      payload: { json: 'text' },
      timeout_ms: 30_000,
      first_k: 1,
      wait: true,
      options: { key: 'k' },
    },
  }),
  reply: one({ reply: { lease: 4, payload: { json: false } } }),
  answer: one({ answer: { call: 8, event: PLAIN } }),
  call: one({
    call: {
      call: 9,
      sender: 1,
      lease: 4,
      capability: 'server:tool',
      version: '2',
      payload: { json: { q: 'x' } },
      timeout_ms: 5000,
      key: 'order-17',
      credit: 64,
    },
  }),
  'action-call': one({
    action_call: {
      handle: 2,
      lease: 6,
      event: { ...PLAIN, topic: 'web.search', payload: { json: {} } },
      streamed: true,
      credit: 64,
      effect_id: ID,
      attempt: 2,
      recorded: 1,
    },
  }),
  chunk: one(
    { chunk: { lease: 6, payload: { json: 1 } } },
    { chunk: { call: 9, payload: { data: BYTES, type: 'audio/wav' } } },
  ),
  grant: one({ grant: { call: 9, total: 128 } }, { grant: { lease: 6, total: 128 } }),
  result: one({ result: { lease: 6, payload: { json: [{ title: TEXT }] } } }),
  'result-of-a-stream': one({ result: { lease: 6 } }),
  outcome: one({ outcome: { call: 9, payload: { json: 42 } } }),
  'outcome-of-an-error': one({
    outcome: { call: 9, code: 18, payload: { json: { message: 'no word of it' } } },
  }),
  cancel: one({ cancel: { call: 9 } }, { cancel: { lease: 6, code: 13 } }),
  probe: one({ probe: { handle: 2, effect_id: ID } }),
  probed: one({ probed: { handle: 2, effect_id: ID, verdict: 2, result: { json: {} } } }),
  step: one({
    step: {
      lease: 4,
      kind: 'sleep',
      name: 'wait',
      args_hash: HASH,
      micros: MOST,
      facts: '{"seconds":1}',
      result: { json: null },
    },
  }),
  commit: one({
    commit: {
      sender: 1,
      lease: 4,
      lane: 'k',
      schema_hash: HASH,
      state: { json: { count: 3 } },
      failed: true,
    },
  }),
  read: one({ read: { ref: 10, filters: ['order.*'], start: '@1790000000000' } }),
  page: one({ page: { ref: 10, events: [PLAIN, RAW], next: 'x', at_end: true } }),
  blob: one({ blob: { ref: 11, hash: HASH } }),
  directory: one({ directory: { ref: 12, kind: 'agent' } }),
  entries: one({
    entries: { ref: 12, entries: [{ name: 'planner' }, { name: 'ü', queued: 0 }], last: true },
  }),
  report: one({
    report: { sender: 1, lease: 4, level: 'info', data: { message: TEXT } },
  }),
  keep: one({ keep: { sender: 1, key: 'k', value: { json: 1 }, until_ms: 1_790_000_000_123 } }),
  'keep-gone': one({ keep: { key: 'k', gone: true } }),
  kept: one({
    kept: {
      ref: 13,
      values: [
        { key: 'k', value: { json: { a: 1 } }, until_ms: 1 },
        { key: 'l', value: { data: BYTES } },
      ],
      last: true,
    },
  }),
  route: one({ route: { ref: 14, capability: 'web.search', weights: { a: 0.25, b: 1 } } }),
  resolve: one({
    resolve: { ref: 15, effect_id: ID, result: { json: 'done' }, note: 'seen at the bank' },
  }),
  redrive: one({ redrive: { ref: 16, consumer: 2, n: 17, payload: { json: 'again' } } }),
  describe: one({ describe: { handle: 1, version: '2026-11', source_hash: HASH } }),
}

/** Those that only protobuf has: a packet of JSON is one piece. */
export const PROTO_ONLY: ReadonlySet<string> = new Set(['part'])
