import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { decodeJson, encodeJson, readJson } from '../src/codec/json.js'
import { utf8Length } from '../src/codec/payload.js'
import { decodeFrame, decodePacket, encodeFrame, encodePacket } from '../src/codec/proto.js'
import { Malformed, messageOf } from '../src/codec/schema.js'
import { frameBytes } from '../src/codec/size.js'
import type { Frame, Packet } from '../src/gen/frames.js'
import { oracleBytes, oracleRead, packetType, ROOT } from './support/oracle.js'
import { PROTO_ONLY, VECTORS } from './support/vectors.js'

const FOLDER = join(ROOT, 'spec', 'vectors', 'frames')

/** The files of one vector: the text, its attachments, and the bytes. */
function files(name: string): { json: string; attachments: Uint8Array[]; bin: Uint8Array } {
  const bytes = (file: string) => new Uint8Array(readFileSync(join(FOLDER, file)))
  const attachments: Uint8Array[] = []
  for (let i = 0; existsSync(join(FOLDER, `${name}.${i}.bin`)); i++) {
    attachments.push(bytes(`${name}.${i}.bin`))
  }
  const json = PROTO_ONLY.has(name) ? '' : readFileSync(join(FOLDER, `${name}.json`), 'utf8')
  return { json: json.trimEnd(), attachments, bin: bytes(`${name}.bin`) }
}

/** A packet with bytes as plain ones, and without what only one carrier tells. */
function plain(packet: Packet): unknown {
  return JSON.parse(
    JSON.stringify({ frames: [], ...packet }, (key, value) => {
      if (value instanceof Uint8Array) return { bytes: Array.from(value) }
      return key === 'size' ? undefined : value
    }),
  )
}

function fromJson(text: string, attachments: Uint8Array[]): Packet {
  const read = readJson(text)
  expect(read.attachments).toBe(attachments.length)
  return decodeJson(read.packet, attachments)
}

if (process.env['LOOM_WRITE_VECTORS'] !== undefined) {
  mkdirSync(FOLDER, { recursive: true })
  for (const [name, packet] of Object.entries(VECTORS)) {
    writeFileSync(join(FOLDER, `${name}.bin`), oracleBytes(packet))
    if (PROTO_ONLY.has(name)) continue
    const { text, attachments } = encodeJson(packet)
    writeFileSync(join(FOLDER, `${name}.json`), `${text}\n`)
    attachments.forEach((bytes, i) => {
      writeFileSync(join(FOLDER, `${name}.${i}.bin`), bytes)
    })
  }
}

describe('golden frames', () => {
  // requirement: WIRE-GOLDEN
  it.each(Object.keys(VECTORS))('%s reads the same from both forms', (name) => {
    const { json, attachments, bin } = files(name)
    const expected = plain(VECTORS[name] as Packet)
    expect(plain(decodePacket(bin))).toEqual(expected)
    if (!PROTO_ONLY.has(name)) expect(plain(fromJson(json, attachments))).toEqual(expected)
  })

  // requirement: WIRE-GOLDEN
  it.each(Object.keys(VECTORS))('%s is written as another reader of protobuf takes it', (name) => {
    const packet = VECTORS[name] as Packet
    expect(oracleRead(encodePacket(packet))).toEqual(oracleRead(files(name).bin))
  })

  // requirement: WIRE-GOLDEN
  it('has a vector for every kind of frame, and a file for nothing else', () => {
    const kinds = Object.values(VECTORS).flatMap((p) => (p.frames ?? []).flatMap(Object.keys))
    const known = messageOf('Frame').fields.map((field) => field.name)
    expect([...new Set(kinds)].sort()).toEqual([...known].sort())
    const named = readdirSync(FOLDER).map((file) => file.replace(/(\.\d+)?\.(json|bin)$/, ''))
    expect([...new Set(named)].sort()).toEqual(Object.keys(VECTORS).sort())
  })
})

describe('the codecs', () => {
  it('know the same fields, numbers and names as the schema that buf builds', () => {
    const seen = new Set<string>()
    const check = (type: ReturnType<typeof packetType>): void => {
      if (seen.has(type.name)) return
      seen.add(type.name)
      expect(messageOf(type.name).fields.map((f) => [f.number, f.name, f.repeated])).toEqual(
        type.fields.map((f) => [f.number, f.name, f.fieldKind === 'list']),
      )
      for (const field of type.fields) if (field.message !== undefined) check(field.message)
    }
    check(packetType())
    expect(seen.size).toBeGreaterThan(40)
  })

  it('give back what they were given, whatever the text, the number and the bytes', () => {
    const payload = fc.oneof(
      fc.record({ json: fc.jsonValue() }),
      fc.record({
        data: fc.uint8Array({ maxLength: 300 }),
        type: fc.constantFrom('image/png', 'x/y'),
      }),
    )
    const packet = fc.record({
      first: fc.maxSafeNat().filter((n) => n > 0),
      frames: fc.array(
        fc.record({
          publish: fc.record({
            ref: fc.maxSafeNat().filter((n) => n > 0),
            topic: fc.string({ unit: 'binary', minLength: 1, maxLength: 200 }),
            payload,
          }),
        }),
        { maxLength: 5 },
      ),
    })
    fc.assert(
      fc.property(packet, (made) => {
        const bytes = encodePacket(made)
        expect(oracleRead(bytes)).toEqual(oracleRead(oracleBytes(made)))
        const expected = plain(made)
        expect(plain(decodePacket(bytes))).toEqual(expected)
        const { text, attachments } = encodeJson(made)
        expect(plain(fromJson(text, attachments))).toEqual(expected)
      }),
      { numRuns: 200 },
    )
  })

  it('keep a mark of byte order at the beginning of a text', () => {
    const frames = [{ publish: { topic: '\uFEFFa' } }]
    expect(decodePacket(encodePacket({ frames })).frames).toEqual(frames)
  })

  it('never take more room than a frame is thought to need', () => {
    for (const packet of Object.values(VECTORS)) {
      for (const frame of packet.frames ?? []) {
        expect(encodePacket({ frames: [frame] }).length).toBeLessThanOrEqual(frameBytes(frame))
      }
    }
  })

  it('count the bytes of any text, however long', () => {
    const text = fc.oneof(
      fc.string({ unit: 'binary', maxLength: 50 }),
      fc.string({ unit: 'grapheme', minLength: 4000, maxLength: 9000, size: 'max' }),
      fc.constantFrom('\ud800', 'a\udc00', '\ud83d'.repeat(3000), `${'x'.repeat(4095)}😀é`),
    )
    const encoder = new TextEncoder()
    fc.assert(fc.property(text, (made) => utf8Length(made) === encoder.encode(made).length))
  })

  // requirement: WIRE-FORWARD
  it('pass over fields and frames that they do not know', () => {
    const known = encodePacket({ first: 3, frames: [{ done: { ref: 1 } }] })
    const unknown = [...known, 0xa0, 0x06, 0x07, 0xaa, 0x06, 0x02, 1, 2, 0xad, 0x06, 1, 2, 3, 4]
    expect(plain(decodePacket(Uint8Array.from(unknown)))).toEqual({
      first: 3,
      frames: [{ done: { ref: 1 } }],
    })
    const text = '{"first":3,"later":{"a":1},"frames":[{"done":{"ref":1,"why":"x"}},{"newer":{}}]}'
    expect(fromJson(text, []).frames?.[0]?.done?.ref).toBe(1)
    const enums = '{"frames":[{"publish":{"topic":"a","qos":"express"}}]}'
    expect(fromJson(enums, []).frames?.[0]?.publish?.qos).toBeUndefined()
  })

  it('refuse what is no packet, wherever it is cut or changed', () => {
    const bytes = files('deliver').bin
    for (let length = 1; length < bytes.length; length++) {
      let cut: unknown
      try {
        decodePacket(bytes.subarray(0, length))
      } catch (error) {
        cut = error
      }
      if (cut !== undefined) expect(cut).toBeInstanceOf(Malformed)
    }
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), (noise) => {
        try {
          decodePacket(noise)
        } catch (error) {
          expect(error).toBeInstanceOf(Malformed)
        }
      }),
    )
    for (const text of ['', '[]', 'null', '{"attachments":-1}', '{"attachments":"2"}']) {
      expect(() => readJson(text)).toThrow(Malformed)
    }
    for (const text of [
      '{"frames":[{"publish":{"topic":7}}]}',
      '{"frames":[{"ack":{"leases":3}}]}',
      '{"frames":[{"publish":{"payload":{"attachment":0}}}]}',
      '{"first":"one"}',
    ]) {
      expect(() => decodeJson(readJson(text).packet, [])).toThrow(Malformed)
    }
  })
})

describe('a frame that cannot be written', () => {
  // requirement: JS-OPTIONS
  it.each([
    { topic: 5 },
    { options: { key: {} } },
    { options: { headers: [{ name: 'a', value: 1 }] } },
    { sender: 1.5, payload: { data: new Uint8Array(3) } },
    { lease: Number.POSITIVE_INFINITY },
  ])('goes with its numbers alone, and those beside it go whole: %j', (wrong) => {
    const good = { publish: { ref: 8, topic: 'x', payload: { data: new Uint8Array([255]) } } }
    const bad = { publish: { topic: 'x', ...wrong, ref: 7 } }
    const packet = { first: 1, frames: [good, bad, good] } as unknown as Packet
    const expected = plain({ first: 1, frames: [good, { publish: { ref: 7 } }, good] })
    expect(plain(decodePacket(encodePacket(packet)))).toEqual(expected)
    const { text, attachments } = encodeJson(packet)
    expect(plain(fromJson(text, attachments))).toEqual(expected)
    const one = bad as unknown as Packet['frames'] extends (infer F)[] | undefined ? F : never
    expect(plain({ frames: [decodeFrame(encodeFrame(one))] })).toEqual({
      frames: [{ publish: { ref: 7 } }],
    })
  })
})

describe('a frame that cannot be written', () => {
  // requirement: JS-OPTIONS
  it.each([
    { topic: 5 },
    { options: { key: {} } },
    { options: { headers: [{ name: 'a', value: 1 }] } },
    { sender: 1.5, payload: { data: new Uint8Array(3) } },
    { lease: Number.POSITIVE_INFINITY },
  ])('goes with its numbers alone, and those beside it go whole: %j', (wrong) => {
    const good = { publish: { ref: 8, topic: 'x', payload: { data: new Uint8Array([255]) } } }
    const bad = { publish: { topic: 'x', ...wrong, ref: 7 } }
    const packet = { first: 1, frames: [good, bad, good] } as unknown as Packet
    const expected = plain({ first: 1, frames: [good, { publish: { ref: 7 } }, good] })
    expect(plain(decodePacket(encodePacket(packet)))).toEqual(expected)
    const { text, attachments } = encodeJson(packet)
    expect(plain(fromJson(text, attachments))).toEqual(expected)
    const one = decodeFrame(encodeFrame(bad as unknown as Frame))
    expect(plain({ frames: [one] })).toEqual(plain({ frames: [{ publish: { ref: 7 } }] }))
  })
})
