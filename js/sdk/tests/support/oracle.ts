// The frames as the library of protobuf reads them, from the schema that buf built: what our own
// codec is held against.

import { execFileSync } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import {
  create,
  createFileRegistry,
  type DescField,
  type DescMessage,
  fromBinary,
  type Message,
  type Registry,
  toBinary,
} from '@bufbuild/protobuf'
import { reflect } from '@bufbuild/protobuf/reflect'
import { type FileDescriptorSet, FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt'
import type { Packet } from '../../src/gen/frames.js'

export const ROOT: string = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..', '..')

let built: Registry | undefined

/** The descriptors of `proto/`, built by buf. */
export function registry(): Registry {
  if (built === undefined) {
    const image = execFileSync(join(ROOT, 'node_modules', '.bin', 'buf'), ['build', '-o', '-'], {
      cwd: ROOT,
    })
    const set: FileDescriptorSet = fromBinary(FileDescriptorSetSchema, image)
    built = createFileRegistry(set)
  }
  return built
}

export function packetType(): DescMessage {
  return registry().getMessage('loom.v1.Packet') as DescMessage
}

/** The bytes of a packet, as the library writes them. */
export function oracleBytes(packet: Packet): Uint8Array {
  return toBinary(packetType(), built_(packetType(), packet as Values))
}

/** Bytes as the library reads and writes them: what is not known is dropped, defaults are too. */
export function oracleRead(bytes: Uint8Array): Message {
  return fromBinary(packetType(), bytes)
}

type Values = Record<string, unknown>

function built_(type: DescMessage, values: Values): Message {
  const message = create(type)
  const seen = reflect(type, message)
  for (const [name, value] of Object.entries(values)) {
    const field = type.fields.find((one) => one.name === name)
    if (field === undefined || value === undefined) continue
    if (field.fieldKind === 'list') {
      const list = seen.get(field)
      for (const one of value as unknown[]) {
        list.add(
          field.listKind === 'message'
            ? reflect(field.message, inner(field.message, one))
            : scalar(field, one),
        )
      }
    } else if (field.fieldKind === 'map') {
      const map = seen.get(field)
      for (const [key, one] of Object.entries(value as Values)) map.set(key, one)
    } else if (field.fieldKind === 'message') {
      seen.set(field, reflect(field.message, inner(field.message, value)))
    } else {
      seen.set(field, scalar(field, value))
    }
  }
  return message
}

function inner(type: DescMessage, value: unknown): Message {
  if (type.name !== 'Payload') return built_(type, value as Values)
  const { json, data, type: media } = value as { json?: unknown; data?: Uint8Array; type?: string }
  return built_(type, {
    data: data ?? new TextEncoder().encode(JSON.stringify(json)),
    content_type: media,
  })
}

const BIG = new Set([3, 4, 5, 6, 16, 18]) // the scalar types of 64 bits

function scalar(field: DescField, value: unknown): unknown {
  if ('enum' in field && field.enum !== undefined) {
    const member = field.enum.values.find(
      (one) =>
        one.name ===
        `${field.enum.sharedPrefix?.toUpperCase() ?? ''}${String(value).toUpperCase()}`,
    )
    return member?.number
  }
  const type = 'scalar' in field ? field.scalar : undefined
  if (type !== undefined && BIG.has(type)) return BigInt(value as number)
  if (type !== 12) return value
  if (value instanceof Uint8Array) return value
  if (typeof value === 'string' && /^[0-9a-f-]*$/.test(value) && !isJson(field.name)) {
    return Uint8Array.from(Buffer.from(value.replaceAll('-', ''), 'hex'))
  }
  return new TextEncoder().encode(JSON.stringify(value))
}

function isJson(name: string): boolean {
  return ['info', 'detail', 'entries', 'data'].includes(name)
}
