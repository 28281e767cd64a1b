// Packets as protobuf, for the subprotocol loom.v1.proto. A walk over the table of frames: numbers
// are plain numbers (those that cross fit), ids are text, and unknown fields are passed over.

import type { Frame, Packet, Payload } from '../gen/frames.js'
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

const VARINT = 0
const FIXED64 = 1
const BYTES = 2
const FIXED32 = 5
const SHORT = 64 // characters up to which copying by hand is quicker than the encoder
const KEPT_BYTES = 128 * 1024 // what is kept to write into

const encoder = new TextEncoder()
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'))

/** A packet as it travels. */
export function encodePacket(packet: Packet): Uint8Array {
  return encoded(messageOf('Packet'), packet as Values)
}

/** One frame, to be cut into parts. */
export function encodeFrame(frame: Frame): Uint8Array {
  return writeOr(frame as Values, (values) => encoded(messageOf('Frame'), values))
}

/** The packet that came. Throws Malformed. */
export function decodePacket(bytes: Uint8Array): Packet {
  return decoded(messageOf('Packet'), bytes) as Packet
}

/** A frame that came in parts. Throws Malformed. */
export function decodeFrame(bytes: Uint8Array): Frame {
  return decoded(messageOf('Frame'), bytes) as Frame
}

// -- writing --------------------------------------------------------------------------------------

class Writer {
  bytes: Uint8Array = new Uint8Array(KEPT_BYTES)
  at = 0

  room(wanted: number): void {
    const needed = this.at + wanted
    if (needed <= this.bytes.length) return
    const grown = new Uint8Array(Math.max(needed, this.bytes.length * 2))
    grown.set(this.bytes)
    this.bytes = grown
  }

  varint(number: number): void {
    this.room(10)
    if (number < 0x80) {
      this.bytes[this.at++] = number
      return
    }
    let left = number
    while (left > 0x7f) {
      // Beyond 31 bits the operators of numbers would wrap.
      this.bytes[this.at++] = (left % 0x80) | 0x80
      left = Math.floor(left / 0x80)
    }
    this.bytes[this.at++] = left
  }

  tag(field: number, wire: number): void {
    this.varint(field * 8 + wire)
  }

  /** Leaves out what a length is thought to take; returns where that begins which it is the length of. */
  begin(width: number): number {
    this.room(width)
    this.at += width
    return this.at
  }

  /** Writes the length of what was written since `start`; returns how many bytes it takes. */
  end(start: number, width: number): number {
    const length = this.at - start
    let needed = 1
    for (let left = length; left > 0x7f; left >>>= 7) needed++
    if (needed !== width) {
      this.room(needed)
      this.bytes.copyWithin(start + needed - width, start, this.at)
    }
    this.at = start - width
    this.varint(length)
    this.at += length
    return needed
  }

  text(text: string): void {
    if (text.length <= SHORT && this.short(text)) return
    // At most three bytes for each unit of UTF-16.
    this.room(text.length * 3 + 4)
    const width = text.length > 0x7f ? 2 : 1
    const start = this.begin(width)
    this.at += encoder.encodeInto(text, this.bytes.subarray(start)).written
    this.end(start, width)
  }

  short(text: string): boolean {
    this.room(SHORT + 1)
    const { bytes } = this
    const start = this.at + 1
    for (let i = 0; i < text.length; i++) {
      const unit = text.charCodeAt(i)
      if (unit > 0x7f) return false
      bytes[start + i] = unit
    }
    bytes[this.at] = text.length
    this.at = start + text.length
    return true
  }

  raw(bytes: Uint8Array): void {
    this.varint(bytes.length)
    this.room(bytes.length)
    this.bytes.set(bytes, this.at)
    this.at += bytes.length
  }

  hex(text: string): void {
    const digits = text.length === 36 ? text.replaceAll('-', '') : text
    const length = digits.length / 2
    this.varint(length)
    this.room(length)
    for (let i = 0; i < length; i++) {
      this.bytes[this.at++] = Number.parseInt(digits.slice(i * 2, i * 2 + 2), 16)
    }
  }

  double(number: number): void {
    this.room(8)
    new DataView(this.bytes.buffer).setFloat64(this.at, number, true)
    this.at += 8
  }
}

let kept: Writer | undefined

function encoded(message: Message, values: Values): Uint8Array {
  const writer = kept ?? new Writer()
  writer.at = 0
  writeMessage(writer, message, values)
  kept = writer.bytes.length > KEPT_BYTES ? undefined : writer
  return writer.bytes.slice(0, writer.at)
}

function writeMessage(writer: Writer, message: Message, values: Values): void {
  for (const name in values) {
    const value = values[name]
    const field = message.byName.get(name)
    if (value === undefined || value === null || field === undefined) continue
    if (!field.repeated) {
      if (field.optional || !isDefault(value)) writeField(writer, field, value)
    } else if (field.kind === 'u') {
      writer.tag(field.number, BYTES)
      const start = writer.begin(1)
      for (const one of value as unknown[]) writer.varint(countIn(one))
      writer.end(start, 1)
    } else {
      for (const one of value as unknown[]) writeField(writer, field, one)
    }
  }
}

function isDefault(value: unknown): boolean {
  return value === 0 || value === false || value === ''
}

function writeField(writer: Writer, field: Field, value: unknown): void {
  const { kind, number } = field
  if (kind === 'u' || kind === 'b' || kind === 'e') {
    writer.tag(number, VARINT)
    if (kind === 'u') writer.varint(countIn(value))
    else
      writer.varint(
        kind === 'b' ? (value ? 1 : 0) : Math.max(0, field.members.indexOf(value as string)),
      )
    return
  }
  if (kind === 'w') {
    for (const [key, weight] of Object.entries(value as Record<string, number>)) {
      writer.tag(number, BYTES)
      const start = writer.begin(1)
      writer.tag(1, BYTES)
      writer.text(key)
      writer.tag(2, FIXED64)
      writer.double(weight)
      writer.end(start, 1)
    }
    return
  }
  if (kind === 'd') {
    writer.tag(number, FIXED64)
    writer.double(value as number)
    return
  }
  writer.tag(number, BYTES)
  if (kind === 's') writer.text(value as string)
  else if (kind === 'i' || kind === 'x') writer.hex(value as string)
  else if (kind === 'j') writer.text(JSON.stringify(value))
  else if (kind === 'y') writer.raw(value as Uint8Array)
  else {
    const { message, width } = field
    const start = writer.begin(width)
    if (message === undefined) writePayload(writer, value as Payload)
    else if (message.name === 'Frame') {
      writeOr(value as Values, (frame) => {
        writer.at = start
        writeMessage(writer, message, frame)
      })
    } else writeMessage(writer, message, value as Values)
    field.width = writer.end(start, width)
  }
}

function writePayload(writer: Writer, payload: Payload): void {
  if (payload.data !== undefined) {
    if (payload.data.length > 0) {
      writer.tag(1, BYTES)
      writer.raw(payload.data)
    }
  } else if (payload.text !== undefined || payload.json !== undefined) {
    writer.tag(1, BYTES)
    writer.text(payload.text ?? JSON.stringify(payload.json))
  }
  if (payload.type !== undefined && payload.type !== '') {
    writer.tag(2, BYTES)
    writer.text(payload.type)
  }
}

// -- reading --------------------------------------------------------------------------------------

class Reader {
  at = 0
  readonly #bytes: Uint8Array
  readonly #view: DataView

  constructor(bytes: Uint8Array) {
    // A Buffer of Node would give views where this takes copies.
    this.#bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  varint(): number {
    const bytes = this.#bytes
    let number = 0
    let scale = 1
    for (let i = 0; i < 10; i++) {
      const byte = bytes[this.at++]
      if (byte === undefined) throw new Malformed('a number is cut off')
      number += (byte & 0x7f) * scale
      if (byte < 0x80) return number
      scale *= 0x80
    }
    throw new Malformed('a number has more than ten bytes')
  }

  /** Takes a length and returns where what it is the length of ends, inside `end`. */
  until(end: number): number {
    const length = this.varint()
    const to = this.at + length
    if (to > end) throw new Malformed('a field is longer than what it is in')
    return to
  }

  text(end: number): string {
    const bytes = this.#bytes
    const from = this.at
    const to = this.until(end)
    const start = this.at
    this.at = to
    if (to - start <= SHORT) {
      let text = ''
      let i = start
      for (; i < to; i++) {
        const unit = bytes[i] as number
        if (unit > 0x7f) break
        text += String.fromCharCode(unit)
      }
      if (i === to) return text
    }
    try {
      return decoder.decode(bytes.subarray(start, to))
    } catch {
      throw new Malformed(`the text at ${from} is not UTF-8`)
    }
  }

  raw(end: number): Uint8Array {
    const to = this.until(end)
    const taken = this.#bytes.slice(this.at, to)
    this.at = to
    return taken
  }

  hex(end: number, dashed: boolean): string {
    const to = this.until(end)
    const dashes = dashed && to - this.at === 16
    let text = ''
    for (let i = 0; this.at < to; i++) {
      if (dashes && (i === 4 || i === 6 || i === 8 || i === 10)) text += '-'
      text += HEX[this.#bytes[this.at++] as number]
    }
    return text
  }

  double(end: number): number {
    if (this.at + 8 > end) throw new Malformed('a number is cut off')
    const number = this.#view.getFloat64(this.at, true)
    this.at += 8
    return number
  }

  skip(wire: number, end: number): void {
    if (wire === VARINT) this.varint()
    else if (wire === BYTES) this.at = this.until(end)
    else if (wire === FIXED64) this.at += 8
    else if (wire === FIXED32) this.at += 4
    else throw new Malformed(`wire type ${wire} is not known`)
    if (this.at > end) throw new Malformed('a field is longer than what it is in')
  }
}

function decoded(message: Message, bytes: Uint8Array): Values {
  return readMessage(new Reader(bytes), message, bytes.length)
}

const WIRES: Record<string, number> = { u: VARINT, b: VARINT, e: VARINT, d: FIXED64 }

function readMessage(reader: Reader, message: Message, end: number): Values {
  const values: Values = {}
  while (reader.at < end) {
    const tag = reader.varint()
    const field = message.byNumber[tag >>> 3]
    const wire = tag & 7
    if (field === undefined) {
      reader.skip(wire, end)
    } else if (field.repeated && field.kind === 'u' && wire === BYTES) {
      const numbers = list(values, field.name) as number[]
      const to = reader.until(end)
      while (reader.at < to) numbers.push(reader.varint())
    } else if (wire !== (WIRES[field.kind] ?? BYTES)) {
      reader.skip(wire, end)
    } else if (field.kind === 'w') {
      readWeight(reader, values, field.name, end)
    } else {
      const value = readField(reader, field, end)
      if (field.repeated) list(values, field.name).push(value)
      else if (value !== undefined && (field.optional || !isDefault(value))) {
        values[field.name] = value
      }
    }
  }
  if (reader.at !== end) throw new Malformed('a field is longer than what it is in')
  return values
}

function list(values: Values, name: string): unknown[] {
  const there = values[name] as unknown[] | undefined
  if (there !== undefined) return there
  const made: unknown[] = []
  values[name] = made
  return made
}

function readField(reader: Reader, field: Field, end: number): unknown {
  switch (field.kind) {
    case 'u':
      return reader.varint()
    case 'b':
      return reader.varint() !== 0
    case 'e':
      return field.members[reader.varint()]
    case 's':
      return reader.text(end)
    case 'd':
      return reader.double(end)
    case 'i':
      return reader.hex(end, true)
    case 'x':
      return reader.hex(end, false)
    case 'y':
      return reader.raw(end)
    case 'j':
      return jsonOf(reader.raw(end))
    default: {
      const to = reader.until(end)
      return field.message === undefined
        ? readPayload(reader, to)
        : readMessage(reader, field.message, to)
    }
  }
}

function readWeight(reader: Reader, values: Values, name: string, end: number): void {
  const weights = (values[name] ?? {}) as Record<string, number>
  values[name] = weights
  const to = reader.until(end)
  let key = ''
  let weight = 0
  while (reader.at < to) {
    const tag = reader.varint()
    if (tag === 8 + BYTES) key = reader.text(to)
    else if (tag === 16 + FIXED64) weight = reader.double(to)
    else reader.skip(tag & 7, to)
  }
  weights[key] = weight
}

function readPayload(reader: Reader, end: number): Payload {
  let data: Uint8Array | undefined
  let type = ''
  while (reader.at < end) {
    const tag = reader.varint()
    if (tag === 8 + BYTES) data = reader.raw(end)
    else if (tag === 16 + BYTES) type = reader.text(end)
    else reader.skip(tag & 7, end)
  }
  return { ...payloadOf(data ?? new Uint8Array(), type), size: data?.length ?? 0 }
}

function jsonOf(data: Uint8Array): unknown {
  try {
    return JSON.parse(decoder.decode(data))
  } catch {
    throw new Malformed('a field that is JSON cannot be read as such')
  }
}
