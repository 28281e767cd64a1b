// Both directions of one session: frames get numbers, stay until the other side has them, and come
// in order, each once. It knows nothing of what frames mean, and outlives its connections. The same
// machine as crates/loom-session/src/channel.rs.

import { PART_BYTES, Parts } from '../codec/parts.js'
import { Malformed } from '../codec/schema.js'
import { frameBytes, HEAD_BYTES } from '../codec/size.js'
import type { Frame, Packet, Part } from '../gen/frames.js'
import { Queue } from './queue.js'

const PACKET_BYTES = 64 * 1024
const PACKET_FRAMES = 1024
const CONFIRM_FRAMES = 64 // after so many the other side is told that they came

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
  readonly #spent: Flow = { frames: 0, bytes: 0 }
  readonly #parts: Parts | undefined
  readonly #loose = new Queue<Frame>()
  readonly #control = new Queue<Held>()
  readonly #data = new Queue<Held>()
  readonly #cuts: (Queue<Held> | undefined)[] = [undefined, undefined]
  readonly #unconfirmed = new Queue<Held>()
  #base = 1 // the number of the first unconfirmed one
  #sent = 0 // how many of them went over this connection
  #come = 0
  #untold = 0
  #bytes = 0

  /** `isWhole`: frames go whole, however large; else large ones go in parts. */
  constructor(isWhole: boolean) {
    this.#parts = isWhole ? undefined : new Parts()
  }

  /** All frames up to this number have come. */
  get received(): number {
    return this.#come
  }

  /** Frames that were not confirmed, sent or not. */
  get held(): number {
    return this.#unconfirmed.length + this.waiting
  }

  /** Frames that wait to be sent for the first time. */
  get waiting(): number {
    const [control, data] = this.#cuts
    return this.#control.length + this.#data.length + (control?.length ?? 0) + (data?.length ?? 0)
  }

  /** About how many bytes the frames have that were not confirmed. */
  get heldBytes(): number {
    return this.#bytes
  }

  /** The data that waits to be sent for the first time, in order. */
  get queued(): Frame[] {
    return Array.from({ length: this.#data.length }, (_, i) => (this.#data.at(i) as Held).frame)
  }

  /** Puts a frame behind those that pass data. */
  pushControl(frame: Frame): void {
    this.#control.push(this.#hold(frame, undefined))
  }

  /** Puts a frame behind all data. */
  pushData(frame: Frame, spends?: number): void {
    this.#data.push(this.#hold(frame, spends))
  }

  /** Sends a frame that has no number: it goes first, and is not sent again. */
  pushLoose(frame: Frame): void {
    this.#loose.push(frame)
  }

  /** Takes back a frame of data that was not sent. */
  recall(is: (frame: Frame) => boolean): boolean {
    const held = this.#data.remove((one) => is(one.frame))
    this.#bytes -= held?.bytes ?? 0
    return held !== undefined
  }

  /** Whether a frame of data that is meant waits to be sent. */
  hasWaiting(is: (frame: Frame) => boolean): boolean {
    for (let i = 0; i < this.#data.length; i++) {
      if (is((this.#data.at(i) as Held).frame)) return true
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
    this.#confirm(received)
    this.#sent = 0
    this.#untold = 0
  }

  /** The connection has ended: what was to be said over it, and only over it, is forgotten. */
  pause(): void {
    this.#loose.clear()
    this.#sent = 0
  }

  /** The other side has nothing of this session: all begins anew. */
  reset(): void {
    for (const queue of [this.#loose, this.#control, this.#data, this.#unconfirmed]) queue.clear()
    this.#cuts.fill(undefined)
    this.#parts?.clear()
    this.allowed.frames = this.allowed.bytes = this.#spent.frames = this.#spent.bytes = 0
    this.#base = 1
    this.#sent = this.#come = this.#untold = this.#bytes = 0
  }

  /** Takes a packet in; returns its frames in order, each once. Throws Malformed. */
  accept(packet: Packet): Frame[] {
    const { first = 0, received = 0, frames = [] } = packet
    if (received > 0) this.#confirm(received)
    if (first === 0) return frames
    if (first > this.#come + 1) throw new Malformed('frames are missing before these')
    const known = this.#come + 1 - first
    this.#untold += Math.max(1, frames.length - known)
    if (known >= frames.length) return []
    this.#come = first + frames.length - 1
    const fresh: Frame[] = []
    for (const frame of known > 0 ? frames.slice(known) : frames) {
      const whole = frame.part === undefined ? frame : this.#join(frame.part)
      if (whole !== undefined) fresh.push(whole)
    }
    return fresh
  }

  /** Whether `transmit` has something. */
  get hasOutput(): boolean {
    return (
      this.#loose.length > 0 ||
      this.#sent < this.#unconfirmed.length ||
      this.#control.length > 0 ||
      this.#cuts.some(Boolean) ||
      (this.#data.length > 0 && this.#maySpend(this.#data.peek() as Held)) ||
      this.#untold >= CONFIRM_FRAMES
    )
  }

  /** The next packet, or undefined: then everything that may go is on its way. */
  transmit(): Packet | undefined {
    if (this.#loose.length > 0) return this.#packet(0, this.#loose.clear())
    if (!this.hasOutput) return undefined
    const first = this.#base + this.#sent
    const frames: Frame[] = []
    let room = PACKET_BYTES - HEAD_BYTES
    while (frames.length < PACKET_FRAMES) {
      const held = this.#next()
      if (held === undefined) break
      if (held.bytes > room && frames.length > 0) break
      room -= held.bytes
      frames.push(held.frame)
      this.#sent++
    }
    return this.#packet(frames.length > 0 ? first : 0, frames)
  }

  // -- inside -------------------------------------------------------------------------------------

  #hold(frame: Frame, spends: number | undefined): Held {
    const bytes = frameBytes(frame)
    this.#bytes += bytes
    return { frame, bytes, spends }
  }

  #confirm(received: number): void {
    if (received >= this.#base + this.#unconfirmed.length) {
      throw new Malformed('frames are confirmed that were never sent')
    }
    while (this.#base <= received) {
      this.#bytes -= this.#unconfirmed.shift()?.bytes ?? 0
      this.#base++
      this.#sent = Math.max(0, this.#sent - 1)
    }
  }

  #packet(first: number, frames: Frame[]): Packet {
    this.#untold = 0
    return { first, received: this.#come, frames }
  }

  /** The next frame to send; it has its number then. */
  #next(): Held | undefined {
    const again = this.#unconfirmed.at(this.#sent)
    if (again !== undefined) return again
    const held = this.#fresh(0, this.#control) ?? this.#fresh(1, this.#data)
    if (held !== undefined) this.#unconfirmed.push(held)
    return held
  }

  #fresh(place: number, queue: Queue<Held>): Held | undefined {
    const cut = this.#cuts[place]
    if (cut !== undefined) {
      const part = cut.shift()
      if (cut.length === 0) this.#cuts[place] = undefined
      return part
    }
    const held = queue.peek()
    if (held === undefined || !this.#maySpend(held)) return undefined
    queue.shift()
    const isCut = this.#parts !== undefined && held.bytes > PACKET_BYTES - 2 * HEAD_BYTES
    if (held.spends !== undefined) {
      this.#spent.frames++
      this.#spent.bytes += held.spends
    }
    if (!isCut) return held
    this.#bytes -= held.bytes
    this.#cuts[place] = this.#cut(held.frame, this.#parts as Parts)
    return this.#fresh(place, queue)
  }

  #maySpend(held: Held): boolean {
    if (held.spends === undefined) return true
    return this.#spent.frames < this.allowed.frames && this.#spent.bytes < this.allowed.bytes
  }

  #cut(frame: Frame, parts: Parts): Queue<Held> {
    const cut = new Queue<Held>()
    for (const part of parts.cut(frame)) {
      cut.push({ frame: { part }, bytes: PART_BYTES + HEAD_BYTES, spends: undefined })
      this.#bytes += PART_BYTES + HEAD_BYTES
    }
    return cut
  }

  #join(part: Part): Frame | undefined {
    if (this.#parts === undefined) throw new Malformed('parts have no place on this carrier')
    return this.#parts.join(part)
  }
}
