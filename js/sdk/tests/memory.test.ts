// What only a node in memory can be told, or has.

import { describe, expect, it } from 'vitest'
import { connect, defineAgent, serve } from '../src/index.js'
import { MemoryNode } from '../src/memory.js'
import { codeOf, deferred } from './support/run.js'

describe('a node in memory', () => {
  // requirement: SESSION-AGAIN
  it('that a killed node has forgotten registers again, and goes on', async () => {
    const node = new MemoryNode()
    const states: string[] = []
    const back = deferred()
    const app = await serve({
      dial: node.dial,
      agents: [defineAgent({ name: 'a', topics: ['x'], onEvent: () => 'still here' })],
      onLink: ({ state, resumed }) => {
        states.push(state)
        if (state === 'up' && states.includes('lost') && resumed === false) back.resolve()
      },
    })
    node.forget()
    await back.promise
    expect((await app.request('x', 1, { wait: true })).data).toBe('still here')
    expect(states).toEqual(['up', 'lost', 'up'])
    await app.close()
    expect(app.link).toBe('closed')
    expect(await codeOf(app.emit('x'))).toBe('CANCELLED')
  })

  // requirement: EVENT-NAMESPACE
  it('lets those in whose credential it knows, each into its namespace', async () => {
    const node = new MemoryNode({ tokens: { t1: 'one', t2: '*' } })
    const app = await connect({ dial: node.dial, token: 't1' })
    expect(app.namespace).toBe('one')
    expect(await codeOf(connect({ dial: node.dial, token: 'no' }))).toBe('UNAUTHENTICATED')
    const foreign = { dial: node.dial, token: 't1', namespace: 'two' }
    expect(await codeOf(connect(foreign))).toBe('DENIED')
    await (await connect({ ...foreign, token: 't2' })).close()
    await app.close()
  })

  it('has no log: it refuses to promise more than that it has taken an event', async () => {
    const app = await connect({ dial: new MemoryNode().dial })
    expect(await codeOf(app.emit('x', 1, { ack: 'disk' }))).toBe('NOT_SUPPORTED')
    await app.close()
  })
})
