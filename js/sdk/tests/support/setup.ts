// Before all tests: one node for those of them that run over a link.

import type { TestProject } from 'vitest/node'
import { hasNode, RealNode } from './node.js'

declare module 'vitest' {
  export interface ProvidedContext {
    /** The link that the tests of tests/links run over. */
    link: 'memory' | 'websocket' | 'unix'
    protocol: 'proto' | 'json'
    /** Where the node of these tests is, and a token that is good in all its namespaces. */
    node: { websocket: string; unix: string; token: string }
  }
}

export async function setup({ provide }: TestProject): Promise<() => Promise<void>> {
  if (!hasNode) throw new Error('the engine is not built: `make setup` builds it')
  const node = await new RealNode().start()
  provide('node', { websocket: node.url, unix: `unix://${node.socket}`, token: node.token })
  return () => node.close()
}
