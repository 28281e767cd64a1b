// Frames that are larger than a packet, in pieces.

import type { Frame, Part } from '../gen/frames.js'
import { KEPT_PAYLOAD_BYTES } from '../gen/limits.js'
import { decodeFrame, encodeFrame } from './proto.js'
import { Malformed } from './schema.js'

/** What one part carries: control frames pass between two of them. */
export const PART_BYTES: number = 32 * 1024
const MOST_BYTES = KEPT_PAYLOAD_BYTES + 64 * 1024
const PARTIALS = 4 // frames that may come in parts at once

/** Cuts what goes out, and puts together what comes. */
export class Parts {
  #ids = 0
  readonly #partials = new Map<number, { at: number; data: Uint8Array }>()

  /** The parts of a frame. */
  cut(frame: Frame): Part[] {
    const whole = encodeFrame(frame)
    const id = ++this.#ids
    const parts: Part[] = []
    for (let at = 0; at < whole.length; at += PART_BYTES) {
      parts.push({ id, data: whole.subarray(at, at + PART_BYTES) })
    }
    Object.assign(parts[0] as Part, { bytes: whole.length })
    Object.assign(parts.at(-1) as Part, { last: true })
    return parts
  }

  /** Takes a part; returns the frame that it completes. Throws Malformed. */
  join({ id = 0, bytes = 0, data = new Uint8Array(), last = false }: Part): Frame | undefined {
    let partial = this.#partials.get(id)
    if (partial === undefined) {
      if (bytes === 0 || bytes > MOST_BYTES || this.#partials.size >= PARTIALS) {
        throw new Malformed('a frame in parts is too large, or one of too many')
      }
      partial = { at: 0, data: new Uint8Array(bytes) }
      this.#partials.set(id, partial)
    }
    if (partial.at + data.length > partial.data.length) throw new Malformed('parts are too large')
    partial.data.set(data, partial.at)
    partial.at += data.length
    if (!last) return undefined
    this.#partials.delete(id)
    if (partial.at !== partial.data.length) throw new Malformed('parts are missing')
    return decodeFrame(partial.data)
  }

  /** Forgets what has come. */
  clear(): void {
    this.#partials.clear()
  }
}
