// How many bytes a frame takes on the wire, without writing it.

import type { Frame, Payload } from '../gen/frames.js'
import { sizeOf } from './payload.js'

/** What a packet has, and a frame in it, that its fields do not count. */
export const HEAD_BYTES = 64
const FIELD_BYTES = 12 // a number, or the length of what comes, and which field it is

/** About how many bytes a frame has: its data exactly, all else at most. */
export function frameBytes(frame: Frame): number {
  let bytes = HEAD_BYTES
  for (const kind in frame) {
    const body = frame[kind as keyof Frame] as Record<string, unknown> | undefined
    for (const name in body) {
      const value = body[name]
      bytes += FIELD_BYTES
      if (typeof value === 'string') bytes += value.length * 3
      else if (Array.isArray(value)) bytes += 32 * value.length + roughly(value)
      else if (typeof value === 'object' && value !== null) {
        bytes += isPayload(name) ? payloadBytes(value) : roughly(value)
      }
    }
  }
  return bytes
}

function payloadBytes(payload: Payload): number {
  return sizeOf(payload) + 2 * FIELD_BYTES + 3 * (payload.type?.length ?? 0)
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
