// The table of frames as the codecs walk it. It is read when a codec is first used.

import { ENUMS, MESSAGES } from '../gen/frames.js'

/** What a field holds: see tools/gen_js.py. */
export type Kind = 'u' | 'b' | 's' | 'd' | 'y' | 'x' | 'i' | 'j' | 'w' | 'e' | 'm'

export interface Field {
  readonly number: number
  readonly name: string
  readonly kind: Kind
  readonly repeated: boolean
  /** Set even where it has its default. */
  readonly optional: boolean
  /** Members of the enum. */
  readonly members: readonly string[]
  /** The message in it; undefined for a Payload, which has a shape of its own. */
  readonly message: Message | undefined
  /** How many bytes the length of the last message in it took: the next one's is likely to. */
  width: number
}

export interface Message {
  readonly name: string
  readonly fields: readonly Field[]
  readonly byNumber: readonly (Field | undefined)[]
  readonly byName: ReadonlyMap<string, Field>
}

/** A message as the codecs see it. */
export type Values = Record<string, unknown>

const read = new Map<string, Message>()

/** The table of one message. */
export function messageOf(name: string): Message {
  const known = read.get(name)
  if (known !== undefined) return known
  const fields: Field[] = []
  const byNumber: (Field | undefined)[] = []
  const byName = new Map<string, Field>()
  const message = { name, fields, byNumber, byName }
  read.set(name, message)
  for (const text of (MESSAGES[name] as string).split(', ')) {
    const [number, field, type] = text.split(' ') as [string, string, string]
    const label = type[0] === '*' || type[0] === '?' ? type[0] : ''
    const kind = type.slice(label.length)
    const inner = kind.slice(1)
    const made: Field = {
      number: Number(number),
      name: field,
      kind: kind[0] as Kind,
      repeated: label === '*',
      optional: label === '?',
      members: kind[0] === 'e' ? (ENUMS[inner] as readonly string[]) : [],
      message: kind[0] === 'm' && inner !== 'Payload' ? messageOf(inner) : undefined,
      width: 1,
    }
    fields.push(made)
    byNumber[made.number] = made
    byName.set(field, made)
  }
  return message
}

/**
 * Writes a frame. One that cannot be written (a field of another type, whoever let it through) goes
 * with its numbers alone: the node refuses it by them, and the link goes on.
 */
export function writeOr<T>(frame: Values, write: (frame: Values) => T): T {
  try {
    return write(frame)
  } catch {
    const numbers: Values = {}
    for (const [kind, body] of Object.entries(frame)) {
      const fields = messageOf('Frame').byName.get(kind)?.message?.byName
      const isNumber = ([name, value]: [string, unknown]) =>
        fields?.get(name)?.kind === 'u' && isCount(value)
      numbers[kind] = Object.fromEntries(Object.entries(body as Values).filter(isNumber))
    }
    return write(numbers)
  }
}

/** Returns a number that a field may hold. */
export function countIn(value: unknown): number {
  if (isCount(value)) return value
  throw new TypeError('no whole number')
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

/** What came is no packet: the connection ends. */
export class Malformed extends Error {
  override readonly name = 'Malformed'
}
