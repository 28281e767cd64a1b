// Packets as JSON, for the subprotocol loom.v1.json: one text, followed by one binary message for
// each piece of data that is not JSON. Nothing is ever base64.

import type { Packet, Payload } from '../gen/frames.js'
import { PACKET_DEPTH } from '../gen/limits.js'
import { payloadOf } from './payload.js'
import {
  countIn,
  type Field,
  Malformed,
  type Message,
  messageOf,
  type Values,
  writeOr,
} from './schema.js'

const encoder = new TextEncoder()

/** A packet as it travels: the text, and the binary messages behind it. */
export interface JsonPacket {
  text: string
  attachments: Uint8Array[]
}

/** A packet as it travels. */
export function encodeJson(packet: Packet): JsonPacket {
  const attachments: Uint8Array[] = []
  const frames = (packet.frames ?? []).map((frame) => {
    const before = attachments.length
    return writeOr(frame as Values, (values) => {
      attachments.length = before
      return writeMessage(messageOf('Frame'), values, attachments)
    })
  })
  const parts: string[] = []
  if (packet.first) parts.push(`"first":${packet.first}`)
  if (packet.received) parts.push(`"received":${packet.received}`)
  if (attachments.length > 0) parts.push(`"attachments":${attachments.length}`)
  parts.push(`"frames":[${frames.join(',')}]`)
  return { text: `{${parts.join(',')}}`, attachments }
}

/** A text that came, and how many binary messages belong to it. Throws Malformed. */
export function readJson(text: string): { packet: Values; attachments: number } {
  let packet: unknown
  try {
    packet = JSON.parse(text)
  } catch {
    throw new Malformed('the text is not JSON')
  }
  if (!isObject(packet)) throw new Malformed('a packet is an object')
  const { attachments = 0 } = packet
  if (!isCount(attachments)) throw new Malformed('attachments is a number of binary messages')
  return { packet, attachments }
}

/** The packet that came, with all that belongs to it. Throws Malformed. */
export function decodeJson(packet: Values, attachments: readonly Uint8Array[]): Packet {
  const { attachments: _, ...rest } = packet
  checkMessage(messageOf('Packet'), rest, attachments)
  return rest as Packet
}

// -- writing --------------------------------------------------------------------------------------

function writeMessage(message: Message, values: Values, attachments: Uint8Array[]): string {
  let out = ''
  for (const name in values) {
    const value = values[name]
    const field = message.byName.get(name)
    if (value === undefined || value === null || field === undefined) continue
    if (!field.repeated && !field.optional && (value === 0 || value === false || value === ''))
      continue
    const text = field.repeated
      ? `[${(value as unknown[]).map((one) => writeValue(field, one, attachments)).join(',')}]`
      : writeValue(field, value, attachments)
    out += out === '' ? `"${name}":${text}` : `,"${name}":${text}`
  }
  return `{${out}}`
}

function writeValue(field: Field, value: unknown, attachments: Uint8Array[]): string {
  switch (field.kind) {
    case 'u':
      return String(countIn(value))
    case 'b':
      return String(Boolean(value))
    case 's':
      if (typeof value !== 'string' || /\p{Cs}/u.test(value)) throw new TypeError('no text')
      return JSON.stringify(value)
    case 'm':
      return field.message === undefined
        ? writePayload(value as Payload, attachments)
        : writeMessage(field.message, value as Values, attachments)
    case 'y':
      attachments.push(value as Uint8Array)
      return `{"attachment":${attachments.length - 1}}`
    default:
      return JSON.stringify(value)
  }
}

function writePayload(payload: Payload, attachments: Uint8Array[]): string {
  const { data, text, type } = payload
  if (data === undefined) {
    if (text === undefined && payload.json === undefined) return '{}'
    const inline = text ?? JSON.stringify(payload.json)
    if (!isDeep(inline)) return `{"json":${inline}}`
  }
  attachments.push(data ?? encoder.encode(text ?? JSON.stringify(payload.json)))
  const named = type === undefined || type === '' ? '' : `,"type":${JSON.stringify(type)}`
  return `{"attachment":${attachments.length - 1}${named}}`
}

/** Whether JSON is nested so deeply that it may not stand inline. */
function isDeep(text: string): boolean {
  if (text.length <= 2 * PACKET_DEPTH) return false
  let depth = 0
  let quoted = false
  for (let i = 0; i < text.length; i++) {
    const char = text[i]
    if (char === '"') quoted = !quoted
    else if (char === '\\') i++
    else if (quoted) continue
    else if (char === '{' || char === '[') depth++
    else if (char === '}' || char === ']') depth--
    if (depth > PACKET_DEPTH) return true
  }
  return false
}

// -- reading --------------------------------------------------------------------------------------

/** Checks that each known field is what the table says, and puts attachments where they belong. */
function checkMessage(message: Message, values: Values, attachments: readonly Uint8Array[]): void {
  for (const name in values) {
    const field = message.byName.get(name)
    if (field === undefined) continue
    const value = values[name]
    if (!field.repeated) {
      values[name] = checked(field, value, attachments)
      continue
    }
    if (!Array.isArray(value)) throw new Malformed(`${message.name}.${name} is a list`)
    for (let i = 0; i < value.length; i++) value[i] = checked(field, value[i], attachments)
  }
}

function checked(field: Field, value: unknown, attachments: readonly Uint8Array[]): unknown {
  switch (field.kind) {
    case 'u':
      if (typeof value === 'number' && value >= 0) return value
      break
    case 'b':
      if (typeof value === 'boolean') return value
      break
    case 's':
    case 'i':
    case 'x':
      if (typeof value === 'string') return value
      break
    case 'e':
      // One that this version does not know, by name or number, stands for the default.
      if (typeof value === 'string') return field.members.includes(value) ? value : undefined
      if (typeof value === 'number') return undefined
      break
    case 'j':
      return value
    case 'y':
      return attached(value, attachments)
    case 'w':
      if (isObject(value)) return value
      break
    default:
      if (!isObject(value)) break
      if (field.message === undefined) return readPayload(value, attachments)
      checkMessage(field.message, value, attachments)
      return value
  }
  throw new Malformed(`the field ${field.name} is something else`)
}

function readPayload(value: Values, attachments: readonly Uint8Array[]): Payload {
  if ('json' in value) return value
  const { type } = value
  const data = 'attachment' in value ? attached(value, attachments) : new Uint8Array()
  return payloadOf(data, typeof type === 'string' ? type : '')
}

function attached(value: unknown, attachments: readonly Uint8Array[]): Uint8Array {
  const data = isObject(value) ? attachments[value['attachment'] as number] : undefined
  if (data === undefined) throw new Malformed('an attachment is missing')
  return data
}

function isObject(value: unknown): value is Values {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0
}
