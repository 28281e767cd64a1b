// How an app gets to a node: `serve` with agents and capabilities, `connect` without.

import { type Agent, checkAgents } from './agent.js'
import { type Capability, checkCapabilities } from './capability.js'
import type { Protocol } from './codec/wire.js'
import { Context } from './context.js'
import { checkMs, invalid } from './errors.js'
import { CONNECT_SECONDS } from './gen/limits.js'
import type { Dial } from './link/carrier.js'
import { Link } from './link/link.js'
import { webSocketDial } from './link/websocket.js'
import { checkMiddleware, type Middleware } from './middleware.js'
import { Host, type OnError } from './runtime/host.js'
import type { LinkChange, LinkState } from './session/session.js'
import { checkName } from './topics.js'

const GRACE_MS = 10_000

/** How a node is reached. */
export interface ConnectOptions {
  /** `ws://host:7420`, `wss://…`, `loom://…`, `looms://…`. */
  url?: string
  /** The credential; it goes in the first frame, never in a URL. */
  token?: string
  /** The name of the app: what it publishes outside its agents is sent by `namespace/name`. */
  name?: string
  /** By default the one of the credential. */
  namespace?: string
  /** How packets are written. */
  protocol?: Protocol
  /** Makes connections instead of `url`: `new MemoryNode().dial` in tests. */
  dial?: Dial
  /** How long the node is waited for; by default 5 s. */
  timeoutMs?: number
  /** Ends all of it. */
  signal?: AbortSignal
  /** Is told of each change of the link. */
  onLink?: (change: LinkChange) => void
  /** Is told what handlers throw; by default it is written to the console. */
  onError?: OnError
}

export interface ServeOptions extends ConnectOptions {
  agents?: readonly Agent[]
  capabilities?: readonly Capability[]
  /** How long what runs may go on when it is stopped. */
  graceMs?: number
}

/** The context of an app, and the link that it goes over. `close` it when done; `await using` does. */
export class Connection extends Context implements AsyncDisposable {
  readonly #graceMs: number

  constructor(host: Host, graceMs: number) {
    super(host.scope)
    this.#graceMs = graceMs
  }

  get link(): LinkState {
    return this.scope.host.link.state
  }

  /** Realtime events that had no room while the link was lost. */
  get dropped(): number {
    return this.scope.host.link.dropped
  }

  /** Lets what runs end, sends what is left, and leaves the node. */
  close(): Promise<void> {
    return this.scope.host.stop(this.#graceMs)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/** `serve` and `connect` with middleware around their handlers and calls, the first one outermost. */
export interface Used {
  serve(options: ServeOptions): Promise<Connection>
  connect(options: ConnectOptions): Promise<Connection>
}

/**
 * Runs agents and offers capabilities on a node; returns when all of them are registered there.
 * Throws what the node refuses them with, and UNAVAILABLE where none answers.
 */
export function serve(options: ServeOptions): Promise<Connection> {
  return use().serve(options)
}

/**
 * Connects to a node; returns when it has let us in. Throws what it refuses us with, and UNAVAILABLE
 * where none answers.
 */
export function connect(options: ConnectOptions): Promise<Connection> {
  return use().connect(options)
}

/** Puts middleware around handlers and calls: `await use(timing).serve({ … })`. */
export function use(...middleware: readonly Middleware[]): Used {
  checkMiddleware(middleware)
  return {
    connect: (options) => open(options, middleware, 'client'),
    serve: async (options) => {
      const agents = checkAgents(options.agents ?? [])
      const capabilities = checkCapabilities(options.capabilities ?? [])
      if (agents.length + capabilities.length === 0) {
        throw invalid('agents', 'there is nothing to serve')
      }
      const connection = await open(options, middleware, 'app')
      const { host } = connection.scope
      try {
        await Promise.all(capabilities.map((one) => host.offer(one)))
        await Promise.all(agents.map((one) => host.start(one)))
      } catch (error) {
        await host.stop(0)
        throw error
      }
      return connection
    },
  }
}

async function open(
  options: ServeOptions,
  middleware: readonly Middleware[],
  named: string,
): Promise<Connection> {
  const { url, token = '', namespace = '', protocol = 'proto', signal, onLink, onError } = options
  const graceMs = checkMs(options.graceMs ?? GRACE_MS, 'graceMs')
  const timeoutMs = checkMs(options.timeoutMs ?? CONNECT_SECONDS * 1000)
  const dial = options.dial ?? webSocketDial(url ?? '', protocol)
  if (namespace !== '') checkName(namespace, 'namespace')
  const link = new Link({ dial, name: checkName(options.name ?? named), namespace, token })
  if (onLink !== undefined) link.onChange(onLink)
  const host = new Host(link, middleware, onError)
  try {
    await link.open(url ?? 'its address', timeoutMs, signal)
  } catch (error) {
    await link.close()
    throw error
  }
  signal?.addEventListener('abort', () => void host.stop(graceMs), { once: true })
  return new Connection(host, graceMs)
}
