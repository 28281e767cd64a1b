// A connection over a WebSocket, the one of the platform or one that is made elsewhere.

import { decodeJson, encodeJson, readJson } from '../codec/json.js'
import { decodePacket, encodePacket } from '../codec/proto.js'
import { Malformed, type Values } from '../codec/schema.js'
import { invalid } from '../errors.js'
import type { Packet } from '../gen/frames.js'
import { PACKET_ATTACHMENTS } from '../gen/limits.js'
import type { Carrier, Dial, Ends } from './carrier.js'

/** How packets are written. */
export type Protocol = 'proto' | 'json'

/** What of a WebSocket is used: that of the platform has it, and that of `ws`. */
export interface Socket {
  binaryType: string
  readonly bufferedAmount: number
  onopen: ((event: never) => void) | null
  onmessage: ((event: never) => void) | null
  onclose: ((event: never) => void) | null
  onerror: ((event: never) => void) | null
  send(data: string | Uint8Array): void
  close(): void
}

/** Makes a socket that is about to connect. */
export type MakeSocket = (url: string, protocols: string[]) => Socket

const PATH = '/v1/ws'
const FULL_BYTES = 1024 * 1024 // in the socket's own buffer: then it is waited for
const LOOK_AGAIN_MS = 5

/** Dials a WebSocket at a URL of a node: ws, wss, loom or looms. */
export function webSocketDial(url: string, protocol: Protocol, make: MakeSocket = platform): Dial {
  const target = targetOf(url)
  const dial = (ends: Ends): Carrier => open(make(target, [`loom.v1.${protocol}`]), protocol, ends)
  return Object.assign(dial, { isWhole: protocol === 'json' })
}

/** The address of the WebSocket of a node. Throws INVALID_PARAMS. */
export function targetOf(url: string): string {
  const read = typeof url === 'string' ? /^(loom|looms|ws|wss):\/\/([^/?#]*)(.*)$/.exec(url) : null
  if (read === null) {
    throw invalid('url', `'${url}' is not a URL of a node`, 'ws://host:7420 or wss://host:7420')
  }
  const [, scheme, host, path] = read as unknown as [string, string, string, string]
  if (host === '') throw invalid('url', `'${url}' names no host`, 'ws://127.0.0.1:7420')
  if (host.includes('@') || path.includes('?')) {
    throw invalid('url', 'a URL carries no credential', 'give token')
  }
  const at = /:\d+$/.test(host) ? host : `${host}:7420`
  const secure = scheme === 'wss' || scheme === 'looms' ? 'wss' : 'ws'
  return `${secure}://${at}${path === '' || path === '/' ? PATH : path}`
}

function platform(url: string, protocols: string[]): Socket {
  if (typeof WebSocket === 'undefined') {
    throw new Error("there is no WebSocket here: in Node import from '@loomos/sdk/node'")
  }
  return new WebSocket(url, protocols) as unknown as Socket
}

function open(socket: Socket, protocol: Protocol, ends: Ends): Carrier {
  let isOver = false
  let reading: { packet: Values; wanted: number; attachments: Uint8Array[] } | undefined
  let looking = false

  const over = (why: string): void => {
    if (isOver) return
    isOver = true
    ends.closed(why)
  }
  const read = (data: unknown): Packet | undefined => {
    if (typeof data !== 'string') {
      const bytes = data instanceof ArrayBuffer ? new Uint8Array(data) : (data as Uint8Array)
      if (protocol === 'proto') return decodePacket(bytes)
      if (reading === undefined) throw new Malformed('a binary message belongs to no packet')
      reading.attachments.push(bytes)
    } else {
      if (protocol === 'proto' || reading !== undefined) throw new Malformed('a text came amiss')
      const { packet, attachments } = readJson(data)
      if (attachments > PACKET_ATTACHMENTS) throw new Malformed('there are too many attachments')
      reading = { packet, wanted: attachments, attachments: [] }
    }
    if (reading.attachments.length < reading.wanted) return undefined
    const { packet, attachments } = reading
    reading = undefined
    return decodeJson(packet, attachments)
  }
  const lookAgain = (): void => {
    looking = socket.bufferedAmount >= FULL_BYTES && !isOver
    // A socket does not tell when its buffer has room again.
    if (looking) setTimeout(lookAgain, LOOK_AGAIN_MS)
    else ends.drained()
  }

  socket.binaryType = 'arraybuffer'
  socket.onopen = () => ends.opened()
  socket.onerror = (event: { message?: string }) => over(event.message || 'the connection failed')
  socket.onclose = (event: { code?: number; reason?: string }) =>
    over(`the connection was closed (${event.code ?? 0}${event.reason ? `: ${event.reason}` : ''})`)
  socket.onmessage = (event: { data: unknown }) => {
    if (isOver) return
    try {
      const packet = read(event.data)
      if (packet !== undefined) ends.received(packet)
    } catch (error) {
      if (!(error instanceof Malformed)) throw error
      over(`what came is no packet: ${error.message}`)
      socket.close()
    }
  }
  return {
    get isFull() {
      const isFull = socket.bufferedAmount >= FULL_BYTES
      if (isFull && !looking) {
        looking = true
        setTimeout(lookAgain, LOOK_AGAIN_MS)
      }
      return isFull
    },
    send(packet) {
      if (isOver) return
      if (protocol === 'proto') {
        socket.send(encodePacket(packet))
        return
      }
      const { text, attachments } = encodeJson(packet)
      socket.send(text)
      for (const bytes of attachments) socket.send(bytes)
    },
    close() {
      isOver = true
      socket.close()
    },
  }
}
