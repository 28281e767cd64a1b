// What the tests of agents share.

import { type Agent, type Connection, type ServeOptions, serve } from '../../src/index.js'
import { MemoryNode } from '../../src/link/memory.js'

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

/** Runs an app on a node in memory while `work` runs. */
export async function running(
  options: ServeOptions | Agent[],
  work: (app: Connection, node: MemoryNode) => Promise<void>,
): Promise<void> {
  const node = new MemoryNode()
  thrown.length = 0
  const app = await serve({
    dial: node.dial,
    onError: (error, where) => void thrown.push([where, error]),
    graceMs: 200,
    ...(Array.isArray(options) ? { agents: options } : options),
  })
  try {
    await work(app, node)
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
