// What Node adds: WebSockets of the package `ws`, Unix sockets, and how programs of one user find
// their node: LOOM_URL, LOOM_TOKEN, and the file that a running node writes.

import { readFileSync, statSync } from 'node:fs'
import { homedir, userInfo } from 'node:os'
import { join } from 'node:path'
import { WebSocket } from 'ws'
import type { Protocol } from './codec/wire.js'
import { invalid, LoomError } from './errors.js'
import type { Dial } from './link/carrier.js'
import { type Socket, targetOf, webSocketDial } from './link/websocket.js'
import type { Middleware } from './middleware.js'
import {
  type Connection,
  type ConnectOptions as CoreConnectOptions,
  type ServeOptions as CoreServeOptions,
  type Used,
  use as useCore,
} from './serve.js'

export * from './index.js'

/** What a connection in Node may have besides. */
export interface NodeOptions {
  /** For `wss`: the certificate that vouches for the node, in PEM. */
  ca?: string | Uint8Array
  /** For a node that asks who connects: certificate and key, in PEM. */
  cert?: string | Uint8Array
  key?: string | Uint8Array
}

export type ConnectOptions = CoreConnectOptions & NodeOptions
export type ServeOptions = CoreServeOptions & NodeOptions

/** As `serve`, and where no `url` is given LOOM_URL, else the node of this user. */
export function serve(options: ServeOptions): Promise<Connection> {
  return use().serve(options)
}

/** As `connect`, and where no `url` is given LOOM_URL, else the node of this user. */
export function connect(options: ConnectOptions = {}): Promise<Connection> {
  return use().connect(options)
}

/** As `use` of the core, with the `serve` and `connect` of Node. */
export function use(...middleware: readonly Middleware[]): Used {
  const core = useCore(...middleware)
  return {
    serve: async (options) => core.serve(settled(options)),
    connect: async (options) => core.connect(settled(options)),
  }
}

/** Dials a WebSocket from Node; `unix:///path` is one over a Unix socket. */
export function nodeDial(url: string, protocol: Protocol, options: NodeOptions = {}): Dial {
  const { ca, cert, key } = options
  const tls = { ...(ca && { ca }), ...(cert && { cert }), ...(key && { key }) } as object
  const path = /^unix:\/\/(\/.+)$/.exec(url)?.[1]
  if (url.startsWith('unix:') && path === undefined) {
    throw invalid('url', `'${url}' names no path`, 'unix:///run/user/1000/loom.sock')
  }
  // ws takes path and address in one URL, with a colon between.
  const target = path === undefined ? targetOf(url) : `ws+unix://${path}:/v1/ws`
  // A mask keeps what is sent from looking like HTTP to a proxy on the way: here none can look.
  const isDirect = /^(ws\+unix:|wss:|ws:\/\/(localhost|127\.[\d.]+|\[::1\])[:/])/.test(target)
  const make = (_: string, protocols: string[]): Socket =>
    new WebSocket(target, protocols, {
      perMessageDeflate: false,
      ...(isDirect && { generateMask: (mask: Buffer) => void mask.fill(0) }),
      ...tls,
    }) as unknown as Socket
  return webSocketDial(path === undefined ? url : 'ws://localhost', protocol, make)
}

// -- finding the node -----------------------------------------------------------------------------

interface NodeFile {
  urls: string[]
  token_file: string
  pid: number
}

const LOCAL = ['local', 'loom://local']

function settled<O extends ConnectOptions>(options: O): O {
  if (options.dial !== undefined) return options
  const { env } = process
  const node = findNode()
  let url = options.url ?? (env['LOOM_URL'] || 'local')
  if (LOCAL.includes(url)) {
    if (node?.urls[0] === undefined) {
      throw new LoomError('NOT_FOUND', 'no node runs for this user', {
        field: 'url',
        hint: '`loom up` starts one; give url for one elsewhere',
      })
    }
    url = node.urls[0]
  }
  const token = options.token ?? (env['LOOM_TOKEN'] || tokenOf(node, url))
  const { protocol = 'proto' } = options
  return { ...options, url, token, protocol, dial: nodeDial(url, protocol, options) }
}

/** What the node says that runs for this user. */
function findNode(): NodeFile | undefined {
  const { LOOM_HOME, XDG_RUNTIME_DIR } = process.env
  let folder = join(homedir(), '.local', 'state', 'loom', 'run')
  if (XDG_RUNTIME_DIR) folder = join(XDG_RUNTIME_DIR, 'loom')
  if (LOOM_HOME) folder = join(LOOM_HOME, 'run')
  try {
    const node = JSON.parse(readPrivate(join(folder, 'node.json'))) as NodeFile
    process.kill(node.pid, 0) // one that was killed leaves its file behind
    return node
  } catch (error) {
    if (error instanceof LoomError && error.code === 'DENIED') throw error
    return undefined
  }
}

function tokenOf(node: NodeFile | undefined, url: string): string {
  if (node?.urls.some((known) => isSame(known, url))) return readPrivate(node.token_file).trim()
  throw new LoomError('UNAUTHENTICATED', `there is no token for ${url}`, {
    field: 'token',
    hint: 'give token, or LOOM_TOKEN; `loom token create` makes one at the node',
  })
}

/** Whether both lead to the same listener, by whichever carrier. */
function isSame(one: string, other: string): boolean {
  const place = (url: string): string => {
    if (url.startsWith('unix:')) return url
    const { port, hostname } = new URL(targetOf(url).replace(/^ws/, 'http'))
    const isHere = hostname === 'localhost' || hostname === '[::1]' || hostname.startsWith('127.')
    return `${isHere ? 'localhost' : hostname}:${port}`
  }
  return place(one) === place(other)
}

/** What a file holds that only its owner may read. */
function readPrivate(path: string): string {
  const { mode, uid } = statSync(path)
  if ((mode & 0o077) !== 0 || uid !== userInfo().uid) {
    throw new LoomError(
      'DENIED',
      `${path} is not private: its mode is ${(mode & 0o777).toString(8)}`,
      {
        field: 'file',
        hint: `it may have been read: make a new one, or chmod 600 ${path}`,
      },
    )
  }
  return readFileSync(path, 'utf8')
}
