// Data: a JSON value as text, or bytes of some type.

import { LoomError } from '../errors.js'
import type { Payload } from '../gen/frames.js'

/** The type of bytes of which nothing is said. */
export const BYTES_TYPE = 'application/octet-stream'
const JSON_TYPE = 'application/json'

const decoder = new TextDecoder('utf-8', { fatal: true })
const encoder = new TextEncoder()
const measured = new Uint8Array(4096) // what is written here is only counted

/** Data that came as bytes of this type; what says JSON and is not stays bytes. */
export function payloadOf(data: Uint8Array, type: string): Payload {
  if (type !== '' && type !== JSON_TYPE) return { data, type }
  if (data.length === 0) return { data }
  try {
    return { json: JSON.parse(decoder.decode(data)) }
  } catch {
    return { data }
  }
}

/** The value in a payload: what JSON says, or bytes. */
export function valueIn(payload: Payload | undefined): unknown {
  if (payload === undefined) return null
  return payload.data ?? payload.json
}

/** The bytes of a payload. */
export function bytesIn(payload: Payload | undefined): Uint8Array {
  return payload?.data ?? encoder.encode(JSON.stringify(payload?.json ?? null))
}

/**
 * The payload of a value: bytes as they are, all else as JSON.
 *
 * Throws INVALID_PARAMS for what JSON cannot carry: NaN, cycles, functions.
 */
export function payloadFor(value: unknown, field = 'data'): Payload {
  if (value instanceof Uint8Array) return { data: value, type: BYTES_TYPE }
  if (value === undefined || value === null) return { text: 'null' }
  let text: string | undefined
  try {
    text = JSON.stringify(value)
  } catch (error) {
    throw refused(field, (error as Error).message.split('\n', 1)[0] as string)
  }
  if (text === undefined) throw refused(field, `a ${typeof value} has no JSON form`)
  // JSON writes NaN and infinity as null: only then is the value looked through.
  if (text.includes('null')) checkFinite(value, field)
  return { text, size: utf8Length(text) }
}

function refused(field: string, why: string): LoomError {
  return new LoomError('INVALID_PARAMS', `${field} cannot be written as JSON: ${why}`, {
    field,
    hint: 'send plain objects, arrays, strings, finite numbers, or a Uint8Array',
  })
}

function checkFinite(value: unknown, path: string): void {
  if (typeof value === 'number' && !Number.isFinite(value)) {
    throw new LoomError(
      'INVALID_PARAMS',
      `${path} is not a finite number, which JSON cannot carry`,
      {
        field: path,
        hint: 'send null or leave the field out',
      },
    )
  }
  if (typeof value !== 'object' || value === null || value instanceof Uint8Array) return
  if ('toJSON' in value) return
  for (const [name, inner] of Object.entries(value)) checkFinite(inner, `${path}.${name}`)
}

/** How many bytes the data of a payload has. */
export function sizeOf(payload: Payload | undefined): number {
  if (payload === undefined) return 0
  if (payload.size !== undefined) return payload.size
  if (payload.data !== undefined) return payload.data.length
  return utf8Length(payload.text ?? JSON.stringify(payload.json) ?? '')
}

/** How many bytes a text has in UTF-8. */
export function utf8Length(text: string): number {
  let { read, written } = encoder.encodeInto(text, measured)
  while (read < text.length) {
    const next = encoder.encodeInto(text.slice(read), measured)
    read += next.read
    written += next.written
  }
  return written
}
