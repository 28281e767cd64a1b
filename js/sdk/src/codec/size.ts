// How many bytes a frame takes on the wire, without writing it.

import type { Frame, Payload } from '../gen/frames.js'
import { sizeOf } from './payload.js'

/** What a packet has, and a frame in it, that its text and data do not count. */
export const HEAD_BYTES = 256

/** About how many bytes a frame has: its data exactly, its text at most. */
export function frameBytes(frame: Frame): number {
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
