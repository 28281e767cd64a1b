// What the tests of agents share.

import { inject } from 'vitest'
import {
  type Agent,
  type Connection,
  type ConnectOptions,
  type ServeOptions,
  serve,
} from '../../src/index.js'
import type { Carrier, Dial, Ends } from '../../src/link/carrier.js'
import { MemoryNode } from '../../src/link/memory.js'
import { nodeDial } from '../../src/node.js'

export interface Deferred<T> {
  promise: Promise<T>
  resolve: (value: T) => void
  reject: (error: unknown) => void
}

export function deferred<T = void>(): Deferred<T> {
  let resolve!: (value: T) => void
  let reject!: (error: unknown) => void
  const promise = new Promise<T>((yes, no) => {
    resolve = yes
    reject = no
  })
  return { promise, resolve, reject }
}

/** What handlers threw, and where, of the last app that ran. */
export const thrown: [string, unknown][] = []

let spaces = 0
const token = 'memory'
const memory = new MemoryNode({ tokens: { [token]: '*' } })

/** How a node is reached over the link that this test runs for: in a namespace of its own. */
export function elsewhere(): ConnectOptions & { dial: Dial } {
  const link = inject('link')
  const namespace = `${link}-${process.pid}-${spaces++}`
  if (link === 'memory') return { dial: memory.dial, token, namespace }
  const node = inject('node')
  return { dial: nodeDial(node[link], inject('protocol')), token: node.token, namespace }
}

/** The same way, over connections of which `cut` loses all that is sent from then on, and then the wire. */
export function cutting(dial: Dial): { dial: Dial; cut(): Promise<void> } {
  let cut = async (): Promise<void> => {}
  const cuttable = (ends: Ends): Carrier => {
    const carrier = dial(ends)
    let isLost = false
    cut = async () => {
      isLost = true
      await new Promise((resolve) => setTimeout(resolve, 5))
      carrier.close()
      ends.closed('cut by the test')
    }
    return {
      get isFull() {
        return carrier.isFull
      },
      send: (packet) => isLost || carrier.send(packet),
      close: () => carrier.close(),
    }
  }
  return { dial: Object.assign(cuttable, { isWhole: dial.isWhole }), cut: () => cut() }
}

/** Runs an app while `work` runs; `there` is how others get to its node. */
export async function running(
  options: ServeOptions | Agent[],
  work: (app: Connection, there: ConnectOptions) => Promise<void>,
): Promise<void> {
  const there = elsewhere()
  thrown.length = 0
  const app = await serve({
    ...there,
    onError: (error, where) => void thrown.push([where, error]),
    graceMs: 200,
    ...(Array.isArray(options) ? { agents: options } : options),
  })
  try {
    await work(app, there)
  } finally {
    await app.close()
  }
}

/** The code that a promise is rejected with. */
export async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
    return 'none'
  } catch (error) {
    return (error as { code?: string }).code ?? String(error)
  }
}

/** Takes so many from an iterator. */
export async function take<T>(source: AsyncIterable<T>, count: number): Promise<T[]> {
  const taken: T[] = []
  if (count === 0) return taken
  for await (const one of source) {
    taken.push(one)
    if (taken.length === count) break
  }
  return taken
}
