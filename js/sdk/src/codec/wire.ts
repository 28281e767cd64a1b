// Packets as the messages of a WebSocket, in either subprotocol.

import type { Packet } from '../gen/frames.js'
import { PACKET_ATTACHMENTS } from '../gen/limits.js'
import { decodeJson, encodeJson, readJson } from './json.js'
import { decodePacket, encodePacket } from './proto.js'
import { Malformed, type Values } from './schema.js'

/** How packets are written. */
export type Protocol = 'proto' | 'json'

/** One connection's messages. */
export interface Wire {
  /** The messages that a packet is sent as. */
  write(packet: Packet): (string | Uint8Array)[]
  /** The packet that a message completes, if it does. Throws Malformed. */
  read(message: string | Uint8Array | ArrayBuffer): Packet | undefined
}

export function wireOf(protocol: Protocol): Wire {
  return protocol === 'proto'
    ? { write: (packet) => [encodePacket(packet)], read: readProto }
    : json()
}

function readProto(message: string | Uint8Array | ArrayBuffer): Packet {
  if (typeof message === 'string') throw new Malformed('a text came amiss')
  return decodePacket(message instanceof ArrayBuffer ? new Uint8Array(message) : message)
}

function json(): Wire {
  let packet: Values | undefined
  let wanted = 0
  let come: Uint8Array[] = []
  return {
    write: (given) => {
      const { text, attachments } = encodeJson(given)
      return [text, ...attachments]
    },
    read: (message) => {
      if ((typeof message === 'string') !== (packet === undefined)) {
        throw new Malformed(
          packet === undefined ? 'bytes belong to no packet' : 'bytes are missing',
        )
      }
      if (typeof message === 'string') {
        const read = readJson(message)
        if (read.attachments > PACKET_ATTACHMENTS) throw new Malformed('too many attachments')
        packet = read.packet
        wanted = read.attachments
        come = []
      } else come.push(new Uint8Array(message))
      if (packet === undefined || come.length < wanted) return undefined
      const whole = packet
      packet = undefined
      return decodeJson(whole, come)
    },
  }
}
