// Both directions of one session: frames get numbers, stay until the other side has them, and come
// in order, each once. It knows nothing of what frames mean, and outlives its connections. The same
// machine as crates/loom-session/src/channel.rs.

import { sizeOf } from '../codec/payload.js'
import { Malformed } from '../codec/schema.js'
import type { Frame, Packet, Part, Payload } from '../gen/frames.js'
import { KEPT_PAYLOAD_BYTES } from '../gen/limits.js'
import { Queue } from './queue.js'

const PACKET_BYTES = 64 * 1024
const HEAD_BYTES = 256 // of a packet and, for each frame, what its size does not count
const PART_BYTES = 32 * 1024
const PACKET_FRAMES = 1024
const PARTIALS = 4 // frames in parts that may come at once
const CONFIRM_FRAMES = 64 // after so many the other side is told that they came
const MOST_BYTES: number = KEPT_PAYLOAD_BYTES + PACKET_BYTES

/** How frames are cut where a carrier has packets of a fixed size. */
export interface Cutter {
  encode(frame: Frame): Uint8Array
  decode(bytes: Uint8Array): Frame
}

/** A frame that waits to be sent, or to be confirmed. */
export interface Held {
  readonly frame: Frame
  /** About how many bytes it has on the wire. */
  readonly bytes: number
  /** What it spends of the credit: the bytes of its data; undefined: nothing. */
  readonly spends: number | undefined
}

/** What may be sent of the frames that spend credit; counted since the session began. */
export interface Flow {
  frames: number
  bytes: number
}

export class Channel {
  /** What the other side has granted. */
  readonly allowed: Flow = { frames: 0, bytes: 0 }
  private readonly spent: Flow = { frames: 0, bytes: 0 }
  private readonly cutter: Cutter | undefined
  private readonly loose = new Queue<Frame>()
  private readonly control = new Queue<Held>()
  private readonly data = new Queue<Held>()
  private readonly cuts: (Queue<Held> | undefined)[] = [undefined, undefined]
  private parts = 0
  private readonly unconfirmed = new Queue<Held>()
  private base = 1 // the number of the first unconfirmed one
  private sent = 0 // how many of them went over this connection
  private come = 0
  private untold = 0
  private bytes = 0
  private readonly partials = new Map<number, { bytes: number; at: number; data: Uint8Array }>()

  /** `cutter`: large frames go in parts; without one all go whole. */
  constructor(cutter: Cutter | undefined) {
    this.cutter = cutter
  }

  /** All frames up to this number have come. */
  get received(): number {
    return this.come
  }

  /** Frames that were not confirmed, sent or not. */
  get held(): number {
    return this.unconfirmed.length + this.waiting
  }

  /** Frames that wait to be sent for the first time. */
  get waiting(): number {
    const cut = this.cuts.reduce((sum, parts) => sum + (parts?.length ?? 0), 0)
    return this.control.length + this.data.length + cut
  }

  /** About how many bytes the frames have that were not confirmed. */
  get heldBytes(): number {
    return this.bytes
  }

  /** The data that waits to be sent for the first time, in order. */
  get queued(): Frame[] {
    return Array.from({ length: this.data.length }, (_, i) => (this.data.at(i) as Held).frame)
  }

  /** Puts a frame behind those that pass data. */
  pushControl(frame: Frame): void {
    this.control.push(this.hold(frame, undefined))
  }

  /** Puts a frame behind all data. */
  pushData(frame: Frame, spends?: number): void {
    this.data.push(this.hold(frame, spends))
  }

  /** Sends a frame that has no number: it goes first, and is not sent again. */
  pushLoose(frame: Frame): void {
    this.loose.push(frame)
  }

  /** Takes back a frame of data that was not sent. */
  recall(is: (frame: Frame) => boolean): boolean {
    const held = this.data.remove((one) => is(one.frame))
    this.bytes -= held?.bytes ?? 0
    return held !== undefined
  }

  /** Whether a frame of data that is meant waits to be sent. */
  hasWaiting(is: (frame: Frame) => boolean): boolean {
    for (let i = 0; i < this.data.length; i++) {
      if (is((this.data.at(i) as Held).frame)) return true
    }
    return false
  }

  /** More may be sent; a number that falls is an old one. */
  allow(credit: { frames?: number; bytes?: number }): void {
    this.allowed.frames = Math.max(this.allowed.frames, credit.frames ?? 0)
    this.allowed.bytes = Math.max(this.allowed.bytes, credit.bytes ?? 0)
  }

  /** A new connection: what the other side has not received is sent again. */
  resume(received: number): void {
    this.confirm(received)
    this.sent = 0
    this.untold = 0
  }

  /** The connection has ended: what was to be said over it, and only over it, is forgotten. */
  pause(): void {
    this.loose.clear()
    this.sent = 0
  }

  /** The other side has nothing of this session: all begins anew. */
  reset(): void {
    for (const queue of [this.loose, this.control, this.data, this.unconfirmed]) queue.clear()
    this.cuts.fill(undefined)
    this.partials.clear()
    this.allowed.frames = this.allowed.bytes = this.spent.frames = this.spent.bytes = 0
    this.base = 1
    this.sent = this.come = this.untold = this.bytes = 0
  }

  /** Takes a packet in; returns its frames in order, each once. Throws Malformed. */
  accept(packet: Packet): Frame[] {
    const { first = 0, received = 0, frames = [] } = packet
    if (received > 0) this.confirm(received)
    if (first === 0) return frames
    if (first > this.come + 1) throw new Malformed('frames are missing before these')
    const known = this.come + 1 - first
    this.untold += Math.max(1, frames.length - known)
    if (known >= frames.length) return []
    this.come = first + frames.length - 1
    const fresh: Frame[] = []
    for (const frame of known > 0 ? frames.slice(known) : frames) {
      const whole = frame.part === undefined ? frame : this.join(frame.part)
      if (whole !== undefined) fresh.push(whole)
    }
    return fresh
  }

  /** Whether `transmit` has something. */
  get hasOutput(): boolean {
    return (
      this.loose.length > 0 ||
      this.sent < this.unconfirmed.length ||
      this.control.length > 0 ||
      this.cuts.some((parts) => parts !== undefined) ||
      (this.data.length > 0 && this.maySpend(this.data.peek() as Held)) ||
      this.untold >= CONFIRM_FRAMES
    )
  }

  /** The next packet, or undefined: then everything that may go is on its way. */
  transmit(): Packet | undefined {
    if (this.loose.length > 0) return this.packet(0, this.loose.clear())
    if (!this.hasOutput) return undefined
    const first = this.base + this.sent
    const frames: Frame[] = []
    let room = PACKET_BYTES - HEAD_BYTES
    while (frames.length < PACKET_FRAMES) {
      const held = this.next()
      if (held === undefined) break
      if (held.bytes > room && frames.length > 0) break
      room -= held.bytes
      frames.push(held.frame)
      this.sent++
    }
    return this.packet(frames.length > 0 ? first : 0, frames)
  }

  // -- inside -------------------------------------------------------------------------------------

  private hold(frame: Frame, spends: number | undefined): Held {
    const bytes = frameBytes(frame)
    this.bytes += bytes
    return { frame, bytes, spends }
  }

  private confirm(received: number): void {
    if (received >= this.base + this.unconfirmed.length) {
      throw new Malformed('frames are confirmed that were never sent')
    }
    while (this.base <= received) {
      this.bytes -= this.unconfirmed.shift()?.bytes ?? 0
      this.base++
      this.sent = Math.max(0, this.sent - 1)
    }
  }

  private packet(first: number, frames: Frame[]): Packet {
    this.untold = 0
    return { first, received: this.come, frames }
  }

  /** The next frame to send; it has its number then. */
  private next(): Held | undefined {
    const again = this.unconfirmed.at(this.sent)
    if (again !== undefined) return again
    const held = this.fresh(0, this.control) ?? this.fresh(1, this.data)
    if (held !== undefined) this.unconfirmed.push(held)
    return held
  }

  private fresh(place: number, queue: Queue<Held>): Held | undefined {
    const cut = this.cuts[place]
    if (cut !== undefined) {
      const part = cut.shift()
      if (cut.length === 0) this.cuts[place] = undefined
      return part
    }
    const held = queue.peek()
    if (held === undefined || !this.maySpend(held)) return undefined
    queue.shift()
    const isCut = this.cutter !== undefined && held.bytes > PACKET_BYTES - 2 * HEAD_BYTES
    if (held.spends !== undefined) {
      this.spent.frames++
      this.spent.bytes += held.spends
    }
    if (!isCut) return held
    this.bytes -= held.bytes
    this.cuts[place] = this.cut((this.cutter as Cutter).encode(held.frame))
    return this.fresh(place, queue)
  }

  private maySpend(held: Held): boolean {
    if (held.spends === undefined) return true
    return this.spent.frames < this.allowed.frames && this.spent.bytes < this.allowed.bytes
  }

  private cut(whole: Uint8Array): Queue<Held> {
    const id = ++this.parts
    const parts = new Queue<Held>()
    for (let at = 0; at < whole.length; at += PART_BYTES) {
      const part: Part = { id, data: whole.subarray(at, at + PART_BYTES) }
      if (at === 0) part.bytes = whole.length
      if (at + PART_BYTES >= whole.length) part.last = true
      parts.push({ frame: { part }, bytes: PART_BYTES + HEAD_BYTES, spends: undefined })
      this.bytes += PART_BYTES + HEAD_BYTES
    }
    return parts
  }

  private join(part: Part): Frame | undefined {
    const { id = 0, bytes = 0, data = new Uint8Array(), last = false } = part
    let partial = this.partials.get(id)
    if (partial === undefined) {
      if (bytes === 0 || bytes > MOST_BYTES || this.partials.size >= PARTIALS) {
        throw new Malformed('a frame in parts is too large, or one of too many')
      }
      partial = { bytes, at: 0, data: new Uint8Array(bytes) }
      this.partials.set(id, partial)
    }
    if (partial.at + data.length > partial.bytes) throw new Malformed('parts are too large')
    partial.data.set(data, partial.at)
    partial.at += data.length
    if (!last) return undefined
    this.partials.delete(id)
    if (partial.at !== partial.bytes) throw new Malformed('parts are missing')
    if (this.cutter === undefined) throw new Malformed('parts have no place on this carrier')
    return this.cutter.decode(partial.data)
  }
}

/** About how many bytes a frame has: its data exactly, its text at most. */
function frameBytes(frame: Frame): number {
  let bytes = HEAD_BYTES
  for (const body of Object.values(frame as Record<string, Record<string, unknown>>)) {
    for (const name in body) {
      const value = body[name]
      if (typeof value === 'string') bytes += value.length * 3
      else if (Array.isArray(value)) bytes += 32 * value.length + roughly(value)
      else if (typeof value === 'object' && value !== null) {
        bytes += isPayload(name) ? sizeOf(value as Payload) : roughly(value)
      }
    }
  }
  return bytes
}

const PAYLOADS = new Set(['payload', 'state', 'result', 'value'])

function isPayload(name: string): boolean {
  return PAYLOADS.has(name)
}

/** Of what is small and rare: options, descriptions, details. */
function roughly(value: object): number {
  if (value instanceof Uint8Array) return value.length
  return 3 * JSON.stringify(value, (_, inner) => (inner instanceof Uint8Array ? '' : inner)).length
}
