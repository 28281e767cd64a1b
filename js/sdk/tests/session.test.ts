import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { decodePacket, encodePacket } from '../src/codec/proto.js'
import type { LoomError } from '../src/errors.js'
import type { Frame, Packet } from '../src/gen/frames.js'
import {
  HEARTBEAT_MS,
  RECONNECT_CAP_MS,
  SESSION_AHEAD,
  SESSION_BYTES,
  SILENCE_MS,
} from '../src/gen/limits.js'
import { Channel } from '../src/session/channel.js'
import { type Inbox, type LinkChange, Session } from '../src/session/session.js'

const BOOT = 'ab'.repeat(16)
const WINDOW_FRAMES = 4 * SESSION_AHEAD

/** A node that keeps what it was sent, and a wire that the test holds in its hands. */
class Wire {
  now = 0
  /** Data of the publishes that the node took in, in order. */
  readonly arrived: unknown[] = []
  /** The ids that their publisher gave them. */
  readonly ids: (string | undefined)[] = []
  /** What the client was delivered. */
  readonly delivered: unknown[] = []
  readonly changes: LinkChange[] = []
  readonly heartbeats: number[] = []
  readonly hellos: Frame['hello'][] = []
  node = new Channel(false)
  boot = BOOT
  credit = 0
  dealsAtOnce = true
  keepsLog = true
  refusal: Frame['error'] | undefined
  session: Session
  private epoch = 0
  private isUp = false
  private readonly up: Packet[] = []
  private readonly down: Packet[] = []
  private known = false

  constructor() {
    const inbox: Inbox = {
      changed: (change) => this.changes.push(change),
      deliver: (event, target) => {
        this.delivered.push(event.payload?.json)
        this.session.work(target.lease ?? 0, { ack: { leases: [target.lease ?? 0] } })
        if (this.dealsAtOnce) this.session.handled(event.payload?.size ?? 0)
      },
      invoke: () => {},
      stop: () => {},
      granted: () => {},
      probe: () => {},
      forgotten: () => {},
      refused: () => {},
    }
    this.session = new Session(
      {
        session: '01'.repeat(16),
        name: 'test',
        namespace: '',
        token: 't',
        agent: 'test',
        isWhole: false,
        random: () => 0.5,
      },
      inbox,
    )
  }

  /** Lets the client dial, if it wants to. */
  connect(): void {
    const at = this.session.dialsAt
    if (at === undefined) return
    this.now = Math.max(this.now, at)
    this.session.dialing(this.now)
    this.session.connected(this.now)
    this.isUp = true
    this.up.length = this.down.length = 0
    this.known = false
  }

  /** Both sides send what they may. */
  send(): void {
    for (;;) {
      const packet = this.isUp ? this.session.transmit(this.now) : undefined
      if (packet === undefined) break
      this.up.push(decodePacket(encodePacket(packet)))
    }
    for (;;) {
      const packet = this.isUp && this.known ? this.node.transmit() : undefined
      if (packet === undefined) break
      this.down.push(decodePacket(encodePacket(packet)))
    }
  }

  /** One packet arrives at the node. */
  arriveUp(): boolean {
    const packet = this.up.shift()
    if (packet === undefined) return false
    if (this.known) for (const frame of this.node.accept(packet)) this.take(frame)
    else this.greet(packet)
    return true
  }

  /** One packet arrives at the client. */
  arriveDown(): boolean {
    const packet = this.down.shift()
    if (packet === undefined || !this.isUp) return false
    this.session.received(packet, this.now)
    if (this.session.isOver) this.cut()
    return true
  }

  /** The connection goes, with all that is on it. */
  cut(): void {
    this.isUp = false
    this.node.pause()
    this.session.disconnected(this.now, 'cut')
  }

  settle(): void {
    for (let i = 0; i < 10_000; i++) {
      this.connect()
      this.send()
      if (!this.arriveUp() && !this.arriveDown()) return
    }
    throw new Error('it never came to rest')
  }

  /** The node sends an event. */
  deliver(data: unknown): void {
    const frame: Frame = {
      deliver: {
        event: { id: '00'.repeat(16), payload: { json: data } },
        targets: [{ handle: 1, lease: 1, lane: 1 }],
      },
    }
    this.node.pushData(frame, JSON.stringify(data).length)
  }

  private greet(packet: Packet): void {
    const hello = packet.frames?.[0]?.hello
    this.hellos.push(hello)
    expect(hello?.epoch).toBeGreaterThan(this.epoch)
    this.epoch = hello?.epoch ?? 0
    if (this.refusal !== undefined) {
      this.down.push({ frames: [{ error: this.refusal }] })
      return
    }
    const resumed = hello?.boot === this.boot
    if (!resumed) {
      this.node = new Channel(false)
      this.node.allow(hello?.credit ?? {})
      this.credit = 4
    } else this.node.resume(hello?.received ?? 0)
    this.known = true
    this.down.push({
      frames: [
        {
          welcome: {
            version: 1,
            boot: this.boot,
            resumed,
            received: this.node.received,
            credit: { frames: this.credit, bytes: SESSION_BYTES },
            durable: ['kept.>'],
            keeps_log: this.keepsLog,
          } as Frame['welcome'] & object,
        },
      ],
    })
  }

  private take(frame: Frame): void {
    if (frame.heartbeat !== undefined) this.heartbeats.push(this.now)
    if (frame.credit !== undefined) this.node.allow(frame.credit)
    const { publish, register, unsubscribe } = frame
    const handle = register?.handle ?? unsubscribe?.handle
    if (handle !== undefined) this.node.pushControl({ done: { ref: handle } })
    if (publish === undefined) return
    this.arrived.push(publish.payload?.json)
    this.ids.push(publish.options?.id)
    this.credit++
    this.node.pushControl({ credit: { frames: this.credit, bytes: SESSION_BYTES } })
    if (publish.ref) this.node.pushControl({ accepted: { ref: publish.ref } })
  }
}

type Ends = { accepted: unknown[]; failed: LoomError[] }

function publish(wire: Wire, data: unknown, topic = 'a', more: object = {}): Ends {
  const ends: Ends = { accepted: [], failed: [] }
  wire.session.publish(
    { topic, payload: { text: JSON.stringify(data) }, ...more },
    () => ends.accepted.push(data),
    (error) => ends.failed.push(error),
  )
  return ends
}

describe('a session over a wire that is cut anywhere', () => {
  // requirement: SESSION-CUT
  it('loses nothing, repeats nothing, and keeps the order, both ways', () => {
    const step = fc.oneof(
      { weight: 4, arbitrary: fc.constant('publish' as const) },
      { weight: 1, arbitrary: fc.constant('large' as const) },
      { weight: 4, arbitrary: fc.constant('deliver' as const) },
      { weight: 6, arbitrary: fc.constant('send' as const) },
      { weight: 6, arbitrary: fc.constant('up' as const) },
      { weight: 6, arbitrary: fc.constant('down' as const) },
      { weight: 2, arbitrary: fc.constant('cut' as const) },
      { weight: 3, arbitrary: fc.constant('connect' as const) },
    )
    fc.assert(
      fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
        const wire = new Wire()
        wire.settle() // the session is known: from here on nothing may be lost
        const published: unknown[] = []
        const delivered: unknown[] = []
        const ends: Ends[] = []
        for (const [index, what] of steps.entries()) {
          if (what === 'publish' || what === 'large') {
            const data = what === 'large' ? `${index} ${'x'.repeat(150_000)}` : index
            published.push(data)
            ends.push(publish(wire, data))
          } else if (what === 'deliver') {
            delivered.push(index)
            wire.deliver(index)
          } else if (what === 'send') wire.send()
          else if (what === 'up') wire.arriveUp()
          else if (what === 'down') wire.arriveDown()
          else if (what === 'cut') wire.cut()
          else wire.connect()
        }
        wire.settle()
        expect(wire.arrived).toEqual(published)
        expect(wire.delivered).toEqual(delivered)
        expect(ends.flatMap((one) => one.accepted)).toEqual(published)
        expect(ends.flatMap((one) => one.failed)).toEqual([])
      }),
      { numRuns: 300 },
    )
  })

  // requirement: SESSION-LARGE
  it('lets small control frames pass between the parts of a large one', () => {
    const channel = new Channel(false)
    channel.allow({ frames: 1, bytes: 1 })
    channel.pushData(
      { publish: { ref: 1, payload: { text: `"${'x'.repeat(200_000)}"` } } },
      200_002,
    )
    expect(channel.transmit()?.frames?.[0]?.part?.bytes).toBeGreaterThan(200_000)
    channel.pushControl({ ack: { leases: [1] } })
    const rest: string[] = []
    for (let packet = channel.transmit(); packet !== undefined; packet = channel.transmit()) {
      rest.push(...(packet.frames ?? []).map((frame) => Object.keys(frame)[0] as string))
    }
    expect(rest.indexOf('ack')).toBeLessThan(3)
    expect(rest.lastIndexOf('part')).toBe(rest.length - 1)
  })
})

describe('a session whose node has forgotten it', () => {
  function lostWith(wire: Wire): void {
    wire.cut()
    wire.boot = 'cd'.repeat(16)
    wire.settle()
  }

  // requirement: SESSION-AGAIN
  it('registers again by itself, and says from where on something may be missing', () => {
    const wire = new Wire()
    wire.session.register(1, { register: { handle: 1, name: 'a' } }, () => {})
    wire.settle()
    lostWith(wire)
    expect(wire.changes.at(-1)).toMatchObject({ state: 'up', resumed: false })
    expect('missedFrom' in (wire.changes.at(-1) as object)).toBe(true)
    expect(wire.hellos.at(-1)?.boot).toBe(BOOT)
    expect(wire.node.received).toBeGreaterThan(0)
  })

  // requirement: SESSION-AGAIN
  it('sends durable publishes again with their ids, and says of others that it does not know', () => {
    const wire = new Wire()
    wire.settle()
    const durable = publish(wire, 'kept', 'a', { ack: 'disk' })
    const byTopic = publish(wire, 'kept by its topic', 'kept.a')
    const other = publish(wire, 'other')
    wire.send() // on the wire, and lost there
    const unsent = publish(wire, 'unsent')
    lostWith(wire)
    expect(wire.arrived).toEqual(['kept', 'kept by its topic', 'unsent'])
    expect([durable.accepted, byTopic.accepted, unsent.accepted].flat()).toHaveLength(3)
    expect(other.failed.map((error) => error.code)).toEqual(['INDETERMINATE'])
  })

  // requirement: SESSION-AGAIN
  it('knows an event by its id also where it was said before it was known to be durable', () => {
    const wire = new Wire()
    const early = publish(wire, 'early', 'kept.a')
    const own = publish(wire, 'own', 'a', { options: { id: 'order-1' } })
    const other = publish(wire, 'other')
    wire.connect()
    wire.send()
    wire.arriveUp() // the hello
    wire.send()
    wire.arriveDown() // the welcome, which says what is durable
    wire.send()
    wire.arriveUp() // the events; their answers are lost
    expect(wire.arrived).toEqual(['early', 'own', 'other'])
    const [id] = wire.ids
    expect(wire.ids).toEqual([expect.any(String), 'order-1', undefined])
    lostWith(wire)
    expect(wire.arrived.slice(3)).toEqual(['early', 'own'])
    expect(wire.ids.slice(3)).toEqual([id, 'order-1'])
    expect([early.accepted, own.accepted]).toEqual([['early'], ['own']])
    expect(other.failed.map((error) => error.code)).toEqual(['INDETERMINATE'])
  })

  it.each([true, false])('calls again what has a key, where the node has a log: %s', (keepsLog) => {
    const wire = new Wire()
    wire.keepsLog = keepsLog
    wire.settle()
    const ended: Record<string, string> = {}
    for (const key of ['', 'k']) {
      const call = wire.session.number()
      wire.session.call(
        call,
        { call: { call, capability: 'c', key, payload: { text: '{}' }, timeout_ms: 1000 } },
        { end: () => {}, fail: (error) => (ended[key] = error.code) },
      )
    }
    wire.send()
    lostWith(wire)
    const lost = { '': 'INDETERMINATE' }
    expect(ended).toEqual(keepsLog ? lost : { ...lost, k: 'INDETERMINATE' })
  })

  it('ends what a turn has sent, whose lease means nothing any more', () => {
    const wire = new Wire()
    wire.settle()
    const ends = publish(wire, 'x', 'a', { lease: 7, ack: 'disk' })
    lostWith(wire)
    expect(ends.failed.map((error) => error.code)).toEqual(['FENCED'])
    expect(wire.arrived).toEqual([])
  })
})

describe('a session', () => {
  // requirement: SESSION-CREDIT
  it('never sends more than was granted, and goes on when there is more', () => {
    const wire = new Wire()
    wire.settle()
    wire.credit = 4
    for (let i = 0; i < 10; i++) publish(wire, i)
    wire.send()
    expect(wire.session.isFlushed).toBe(false)
    while (wire.arriveUp());
    expect(wire.arrived).toEqual([0, 1, 2, 3])
    wire.settle()
    expect(wire.arrived).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
  })

  // requirement: SESSION-CREDIT, SESSION-CUT
  it('grants more as it deals with what comes, also where it is cut again and again', () => {
    const wire = new Wire()
    wire.settle()
    for (let i = 0; i < 3 * WINDOW_FRAMES; i++) {
      wire.deliver(i)
      if (i % 100 === 0) wire.settle()
      if (i % 100 === 50) wire.cut()
    }
    wire.settle()
    expect(wire.delivered).toHaveLength(3 * WINDOW_FRAMES)
  })

  // requirement: SESSION-CREDIT
  it('grants again what it has dealt with while the link was lost', () => {
    const wire = new Wire()
    wire.dealsAtOnce = false
    wire.settle()
    for (let i = 0; i < WINDOW_FRAMES + 1; i++) wire.deliver(i)
    wire.settle()
    expect(wire.delivered).toHaveLength(WINDOW_FRAMES)
    wire.cut()
    for (let i = 0; i < WINDOW_FRAMES; i++) wire.session.handled(1)
    wire.settle()
    expect(wire.delivered).toHaveLength(WINDOW_FRAMES + 1)
  })

  // requirement: SESSION-FULL
  it('keeps a bounded amount while the link is lost: realtime loses its oldest, others are refused', () => {
    const wire = new Wire()
    const text = JSON.stringify('x'.repeat(1_000_000))
    for (let i = 0; i < 20; i++) wire.session.publish({ topic: 'a', payload: { text } })
    expect(wire.session.dropped).toBeGreaterThan(10)
    const before = wire.session.dropped
    expect(() => {
      for (let i = 0; i < 20; i++) publish(wire, 'x'.repeat(1_000_000))
    }).toThrow(expect.objectContaining({ code: 'EXHAUSTED', limit: 'session_bytes' }))
    expect(wire.session.dropped).toBe(before)
  })

  // requirement: SESSION-SILENT
  it('sends a heartbeat where it sent nothing else, and takes a silent node for dead', () => {
    const wire = new Wire()
    wire.settle()
    expect(wire.session.deadline).toBe(wire.now + HEARTBEAT_MS)
    wire.now += HEARTBEAT_MS
    wire.session.tick(wire.now)
    wire.send()
    wire.arriveUp()
    expect(wire.heartbeats).toEqual([wire.now])
    wire.now += SILENCE_MS - HEARTBEAT_MS
    wire.session.tick(wire.now)
    expect(wire.changes.at(-1)).toMatchObject({ state: 'lost', error: { code: 'TIMEOUT' } })
    expect(wire.session.isOver).toBe(true)
  })

  // requirement: SESSION-JITTER
  it('tries again after pauses that double up to a limit, drawn by chance', () => {
    const wire = new Wire()
    const pauses: number[] = []
    for (let i = 0; i < 12; i++) {
      wire.connect()
      wire.cut()
      pauses.push(wire.changes.at(-1)?.retryMs as number)
    }
    expect(pauses.slice(0, 3)).toEqual([50, 100, 200])
    expect(Math.max(...pauses)).toBe(RECONNECT_CAP_MS / 2)
  })

  // requirement: SESSION-FENCED
  it('ends when a newer one with its id is there, and does not come back', () => {
    const wire = new Wire()
    wire.settle()
    const waiting = publish(wire, 'x')
    wire.session.received({ frames: [{ error: { code: 15, message: 'newer', keeps: true } }] }, 0)
    expect(wire.changes.at(-1)).toMatchObject({ state: 'refused', error: { code: 'FENCED' } })
    expect(waiting.failed.map((error) => error.code)).toEqual(['FENCED'])
    expect(wire.session.dialsAt).toBeUndefined()
  })

  it('ends when its credential is refused, and comes back when the node only stops', () => {
    const refused = new Wire()
    refused.refusal = { code: 11, message: 'no such credential' }
    refused.settle()
    expect(refused.changes.at(-1)).toMatchObject({
      state: 'refused',
      error: { code: 'UNAUTHENTICATED' },
    })
    const stopping = new Wire()
    stopping.refusal = { code: 22, message: 'about to stop', retry_after_ms: 700 }
    stopping.connect()
    stopping.send()
    stopping.arriveUp()
    stopping.arriveDown()
    expect(stopping.changes.at(-1)).toMatchObject({ state: 'lost', retryMs: 700 })
  })

  it('sends the end of a turn behind what the turn has published', () => {
    const wire = new Wire()
    wire.settle()
    wire.credit = 0
    publish(wire, 1, 'a', { lease: 3 })
    wire.session.work(3, { ack: { leases: [3] } })
    wire.session.work(4, { ack: { leases: [4] } })
    const frames = wire.session.transmit(0)?.frames?.map((frame) => Object.keys(frame)[0])
    expect(frames).toEqual(['ack', 'publish', 'ack'])
  })

  it('ends a call by itself when no node is there a second after its deadline', () => {
    const wire = new Wire()
    let code = ''
    const call = wire.session.number()
    wire.session.call(
      call,
      { request: { call, topic: 'a', timeout_ms: 500 } },
      { end: () => {}, fail: (error) => (code = error.code) },
    )
    expect(wire.session.deadline).toBe(1500)
    wire.session.tick(1500)
    expect(code).toBe('TIMEOUT')
    wire.settle()
    expect(wire.session.isFlushed).toBe(true)
  })
})
