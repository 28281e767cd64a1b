// A connection over a WebSocket, the one of the platform or one that is made elsewhere.

import { Malformed } from '../codec/schema.js'
import { type Protocol, wireOf } from '../codec/wire.js'
import { invalid } from '../errors.js'
import type { Carrier, Dial, Ends } from './carrier.js'

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
  const read = /^(?:loom|ws)(s?):\/\/([\w.-]+|\[[\da-f:.]+\])(:\d+)?(\/|\/v1\/ws)?$/i.exec(url)
  if (read === null) {
    // It is not shown: there may be a credential in it, where none belongs.
    throw invalid(
      'url',
      'that is no URL of a node',
      "'wss://host:7420'; a credential goes into token",
    )
  }
  const [, secure, host, port = ':7420'] = read
  return `ws${secure && 's'}://${host}${port}/v1/ws`
}

function platform(url: string, protocols: string[]): Socket {
  if (typeof WebSocket === 'undefined') {
    throw new Error("there is no WebSocket: in Node, '@loomos/sdk/node' has one")
  }
  return new WebSocket(url, protocols) as unknown as Socket
}

function open(socket: Socket, protocol: Protocol, ends: Ends): Carrier {
  const wire = wireOf(protocol)
  let isOver = false
  let looking = false

  const over = (why: string): void => {
    if (isOver) return
    isOver = true
    ends.closed(why)
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
  socket.onmessage = (event: { data: string | ArrayBuffer }) => {
    if (isOver) return
    try {
      const packet = wire.read(event.data)
      if (packet !== undefined) ends.received(packet)
    } catch (error) {
      if (!(error instanceof Malformed)) throw error
      over(`what came is no packet: ${error.message}`)
      socket.close()
    }
  }
  return {
    get isFull() {
      if (!looking && socket.bufferedAmount >= FULL_BYTES) lookAgain()
      return looking
    },
    send(packet) {
      if (isOver) return
      for (const message of wire.write(packet)) socket.send(message)
    },
    close() {
      isOver = true
      socket.close()
    },
  }
}
