import { describe, expect, it } from 'vitest'
import * as z from 'zod'
import { connect, defineAgent, LoomError, use } from '../../src/index.js'
import {
  codeOf,
  type Deferred,
  deferred,
  elsewhere,
  running,
  take,
  thrown,
} from '../support/run.js'

describe('events', () => {
  // requirement: SENDER-STAMPED
  it('reach an agent that hears their topic, with sender and thread', async () => {
    const heard = deferred<unknown>()
    const agent = defineAgent({
      name: 'a',
      topics: ['x.*'],
      onEvent: (ctx, event) => {
        heard.resolve([event.data, event.sender, event.topic, event.threadId === ctx.threadId])
      },
    })
    await running({ name: 'shop', agents: [agent] }, async (app) => {
      const receipt = await app.emit('x.y', { n: 1 })
      expect(receipt).toMatchObject({ level: 'accepted', matched: 1 })
      expect(await heard.promise).toEqual([{ n: 1 }, `${app.namespace}/shop`, 'x.y', true])
    })
  })

  // requirement: EVENT-ONCE
  it('that match several filters of one agent are delivered to it once', async () => {
    const seen: unknown[] = []
    const agent = defineAgent({
      name: 'a',
      topics: ['x.*', 'x.y', '>'],
      onEvent: (_, event) => {
        if (event.topic.startsWith('x.')) seen.push(event.data)
        return event.topic === 'ask' ? seen : undefined
      },
    })
    await running([agent], async (app) => {
      await app.emit('x.y', 1)
      const answer = await app.request('ask')
      expect(answer.data).toEqual([1])
    })
  })

  // requirement: EVENT-ORDER
  it('of one publisher and topic come in the order they were published', async () => {
    const seen: number[] = []
    const done = deferred()
    const agent = defineAgent({
      name: 'a',
      topics: ['n'],
      schema: z.number(),
      onEvent: (_, event) => {
        seen.push(event.data)
        if (seen.length === 500) done.resolve()
      },
    })
    await running([agent], async (app) => {
      await Promise.all(Array.from({ length: 500 }, (_, i) => app.emit('n', i, { key: 'k' })))
      await done.promise
      expect(seen).toEqual(Array.from({ length: 500 }, (_, i) => i))
    })
  })

  // requirement: EVENT-IMMUTABLE
  it('are each receiver’s own: what one changes the others do not see', async () => {
    const seen: unknown[] = []
    const done = deferred()
    const agent = (name: string) =>
      defineAgent({
        name,
        topics: ['x'],
        onEvent: (_, event) => {
          const data = event.data as { list: number[] }
          seen.push([...data.list])
          data.list.push(9)
          if (seen.length === 2) done.resolve()
        },
      })
    await running([agent('a'), agent('b')], async (app) => {
      const sent = { list: [1] }
      await app.emit('x', sent)
      await done.promise
      expect(seen).toEqual([[1], [1]])
      expect(sent).toEqual({ list: [1] })
    })
  })

  it('carry bytes as bytes, headers, labels and a key', async () => {
    const heard = deferred<unknown>()
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: (_, event) => {
        heard.resolve([event.data, event.contentType, event.headers, event.labels, event.key])
      },
    })
    await running([agent], async (app) => {
      const bytes = Uint8Array.of(0, 255, 1)
      await app.emit('x', bytes, { headers: { a: 'b' }, labels: ['secret'], key: 'k' })
      const type = 'application/octet-stream'
      expect(await heard.promise).toEqual([bytes, type, { a: 'b' }, ['secret'], 'k'])
    })
  })

  // requirement: RUN-STAMPED, SENDER-STAMPED
  it('that a turn sends belong to its run, and say what caused them', async () => {
    const first = deferred<import('../../src/index.js').Event>()
    const second = deferred<import('../../src/index.js').Event>()
    const agents = [
      defineAgent({
        name: 'a',
        topics: ['x'],
        onEvent: async (ctx, event) => {
          first.resolve(event)
          await ctx.emit('y', { sender: 'default/somebody', run_id: 'another' })
        },
      }),
      defineAgent({ name: 'b', topics: ['y'], onEvent: (_, event) => second.resolve(event) }),
    ]
    await running(agents, async (app) => {
      await app.emit('x')
      const [root, next] = [await first.promise, await second.promise]
      expect([root.runId, root.causationId, root.hop]).toEqual([root.id, undefined, 0])
      expect([next.runId, next.causationId, next.hop]).toEqual([root.id, root.id, 1])
      expect(next.sender).toBe(`${app.namespace}/a`)
      expect(next.threadId).toBe(root.threadId)
    })
  })

  // requirement: EVENT-HOPS
  it('that answer each other for ever end at the hop limit', async () => {
    const ended = deferred<unknown>()
    const agent = defineAgent({
      name: 'echo',
      topics: ['x'],
      onEvent: async (ctx) => {
        try {
          await ctx.emit('x')
        } catch (error) {
          ended.resolve(error)
        }
      },
    })
    await running([agent], async (app) => {
      await app.emit('x')
      expect(await ended.promise).toMatchObject({ code: 'EXHAUSTED', field: 'hop', limit: 'hops' })
    })
  })

  // requirement: EVENT-RESERVED
  it('under loom. are published by the node only', async () => {
    await running([defineAgent({ name: 'a', onEvent: () => {} })], async (app) => {
      expect(await codeOf(app.emit('loom.x'))).toBe('DENIED')
    })
  })

  // requirement: EVENT-NAMESPACE
  it('of one namespace are never seen in another', async () => {
    const one = await connect(elsewhere())
    const two = await connect(elsewhere())
    const watch = await two.watch(['x', 'y'])
    expect((await one.emit('x')).matched).toBe(0)
    await two.emit('y')
    expect((await take(watch, 1)).map((event) => event.topic)).toEqual(['y'])
    expect(await two.agents({ name: `${one.namespace}/a` })).toEqual([])
    await Promise.all([one.close(), two.close()])
  })

  // requirement: BAD-INPUT
  it('that cannot be published are refused where they are, naming what is wrong', async () => {
    await running([defineAgent({ name: 'a', onEvent: () => {} })], async (app) => {
      const circle: { self?: unknown } = {}
      circle.self = circle
      const wrong: [string, unknown, string][] = [
        ['a b', 1, 'topic'],
        ['a.>', 1, 'topic'],
        ['x', { deep: [Number.NaN] }, 'data.deep.0'],
        ['x', circle, 'data'],
        ['x', () => 1, 'data'],
        ['x', 1n, 'data'],
      ]
      for (const [topic, data, field] of wrong) {
        await expect(app.emit(topic, data)).rejects.toMatchObject({ code: 'INVALID_PARAMS', field })
      }
      for (const [field, value] of Object.entries({ qos: 'slow', ack: 'memory', ttlMs: -1 })) {
        const options = { [field]: value } as object
        await expect(app.emit('x', 1, options)).rejects.toMatchObject({
          code: 'INVALID_PARAMS',
          field,
        })
      }
    })
  })
})

describe('lanes', () => {
  // requirement: LANE-ORDER, LANE-PARALLEL, LANE-KEY
  it('run one turn at a time, and side by side with each other', async () => {
    const running_: string[] = []
    const log: string[] = []
    const gates = new Map<string, Deferred<void>>()
    const gate = (name: string) => {
      const known = gates.get(name) ?? deferred()
      gates.set(name, known)
      return known
    }
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: async (_, event) => {
        running_.push(event.data as string)
        gate(`${event.data} began`).resolve()
        await gate(`${event.data} may end`).promise
        log.push(event.data as string)
        gate(`${event.data} ended`).resolve()
      },
    })
    await running([agent], async (app) => {
      await app.emit('x', 'a1', { key: 'a' })
      await app.emit('x', 'a2', { key: 'a' })
      await app.emit('x', 'b1', { key: 'b' })
      await gate('b1 began').promise
      expect(running_).toEqual(['a1', 'b1'])
      gate('b1 may end').resolve()
      await gate('b1 ended').promise
      expect(running_).toEqual(['a1', 'b1'])
      gate('a1 may end').resolve()
      gate('a2 may end').resolve()
      await gate('a2 ended').promise
      expect(log).toEqual(['b1', 'a1', 'a2'])
    })
  })

  // requirement: LANE-PARALLEL
  it('run no more at once than the agent’s concurrency', async () => {
    let most = 0
    let now = 0
    let left = 20
    const done = deferred()
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      concurrency: 3,
      onEvent: async () => {
        now++
        most = Math.max(most, now)
        await Promise.resolve()
        await new Promise((resolve) => setImmediate(resolve))
        now--
        if (--left === 0) done.resolve()
      },
    })
    await running([agent], async (app) => {
      await Promise.all(Array.from({ length: 20 }, (_, i) => app.emit('x', i)))
      await done.promise
      expect(most).toBe(3)
    })
  })

  // requirement: LANE-GROUP
  it('go to one member of a group', async () => {
    const seen: string[] = []
    const done = deferred()
    const member = (name: string) =>
      defineAgent({
        name,
        group: 'g',
        topics: ['x'],
        onEvent: () => {
          seen.push(name)
          if (seen.length === 10) done.resolve()
        },
      })
    await running([member('a'), member('b')], async (app) => {
      for (let i = 0; i < 10; i++) await app.emit('x', i)
      await done.promise
      expect(new Set(seen)).toEqual(new Set(['a', 'b']))
    })
  })
})

describe('handlers', () => {
  // requirement: REQUEST-REENTRANT
  it('that ask while they run get their reply', async () => {
    const asks = defineAgent({
      name: 'asks',
      topics: ['go'],
      onEvent: async (ctx, event) => (await ctx.request('double', event.data)).data,
    })
    const doubles = defineAgent({
      name: 'doubles',
      topics: ['double'],
      onEvent: (_, event) => (event.data as number) * 2,
    })
    await running([asks, doubles], async (app) => {
      expect((await app.request('go', 21)).data).toBe(42)
    })
  })

  // requirement: HANDLER-TYPES
  it('never get data that does not fit: who asked is told, and it is shown', async () => {
    let runs = 0
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      schema: z.object({ n: z.number() }),
      onEvent: () => {
        runs++
      },
    })
    await running([agent], async (app) => {
      const errors = await app.watch('loom.error.>')
      const error = await app.request('x', { n: 'two' }).catch((one) => one)
      expect(error).toMatchObject({ code: 'INVALID_PARAMS', field: 'data.n' })
      const [told] = await take(errors, 1)
      expect(told?.topic).toBe('loom.error.invalid_params')
      expect(told?.data).toMatchObject({ field: 'data.n', who: `${app.namespace}/a` })
      expect(runs).toBe(0)
    })
  })

  // requirement: ERRORS-NO-STACK
  it('that throw decline with what kind of error it was, and nothing more of it leaves', async () => {
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: () => {
        throw new TypeError('the password is hunter2')
      },
    })
    await running([agent], async (app) => {
      const error = await app.request('x').catch((one) => one)
      expect(error.code).toBe('HANDLER_ERROR')
      expect(String(error)).toContain('TypeError')
      expect(String(error)).not.toContain('hunter2')
      expect(thrown.map(([where]) => where)).toEqual(['agent a'])
    })
  })

  // requirement: BAD-HANDLER, ERRORS-PUBLISHED
  it('that throw or return what is no data fail, each is told once, and the next events come', async () => {
    const circle: { self?: unknown } = {}
    circle.self = circle
    const ends: Record<string, () => unknown> = {
      throws: () => {
        throw 'no error at all'
      },
      number: () => Number.NaN,
      circle: () => circle,
      code: () => () => 1,
      well: () => 'well',
    }
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: (_, event) => ends[event.data as string]?.(),
    })
    await running([agent], async (app) => {
      const errors = await app.watch('loom.error.>')
      const wrong = Object.keys(ends).slice(0, -1)
      for (const one of wrong) {
        expect(['HANDLER_ERROR', 'INVALID_PARAMS']).toContain(await codeOf(app.request('x', one)))
      }
      expect((await app.request('x', 'well')).data).toBe('well')
      await app.emit('x', 'well')
      const told = await take(errors, wrong.length + 1)
      expect(told.map((event) => (event.data as { who: string }).who)).toEqual(
        told.map(() => `${app.namespace}/a`),
      )
      expect(told.at(-1)?.data).toMatchObject({ field: 'return' })
    })
  })

  it('that return a value where nothing was asked fail', async () => {
    const agent = defineAgent({ name: 'a', topics: ['x'], onEvent: () => 1 })
    await running([agent], async (app) => {
      const errors = await app.watch('loom.error.>')
      await app.emit('x')
      const [told] = await take(errors, 1)
      expect(told?.data).toMatchObject({ field: 'return' })
    })
  })

  it('start before their agent hears anything, and stop when the app does', async () => {
    const log: string[] = []
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onStart: async (ctx) => {
        log.push(`start ${ctx.agent}`)
      },
      onEvent: () => {},
      onStop: () => {
        log.push('stop')
      },
    })
    await running([agent], async () => {
      log.push('runs')
    })
    expect(log).toEqual(['start a', 'runs', 'stop'])
    const failing = defineAgent({
      name: 'a',
      onStart: () => {
        throw new LoomError('CONFLICT', 'no')
      },
      onEvent: () => {},
    })
    expect(await codeOf(running([failing], async () => {}))).toBe('CONFLICT')
  })

  it('have a context that is dead when their turn has ended', async () => {
    const kept = deferred<import('../../src/index.js').Context>()
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: (ctx) => {
        kept.resolve(ctx)
      },
    })
    await running([agent], async (app) => {
      await app.emit('x')
      const ctx = await kept.promise
      await new Promise((resolve) => setImmediate(resolve))
      expect(await codeOf(ctx.emit('y'))).toBe('FENCED')
    })
  })

  // requirement: STOP-GRACEFUL
  it('may end what they have begun before a stop; what goes on is cut off', async () => {
    const began = deferred()
    const cut = deferred<unknown>()
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: async (ctx) => {
        began.resolve()
        try {
          await ctx.request('nobody', 1, { wait: true })
        } catch (error) {
          cut.resolve(error)
          throw error
        }
      },
    })
    await running({ agents: [agent], graceMs: 1 }, async (app) => {
      await app.emit('x')
      await began.promise
    })
    expect(await cut.promise).toMatchObject({ code: 'CANCELLED' })
  })
})

describe('middleware', () => {
  // requirement: MIDDLEWARE
  it('stands around handlers and calls, the first one outermost', async () => {
    const log: string[] = []
    const named =
      (name: string) =>
      async (
        _: unknown,
        item: { topic?: string; name?: string },
        next: (item: never) => Promise<unknown>,
      ) => {
        log.push(`${name} ${item.topic ?? item.name}`)
        return next(item as never)
      }
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: (ctx) => ctx.tool('c').catch(() => 'refused'),
    })
    const app = await use(named('outer') as never, named('inner') as never).serve({
      ...elsewhere(),
      agents: [agent],
    })
    expect((await app.request('x')).data).toBe('refused')
    expect(log).toEqual(['outer x', 'inner x', 'outer c', 'inner c'])
    await app.close()
    expect(() => use(7 as never)).toThrow(expect.objectContaining({ field: 'middleware.0' }))
  })
})

describe('an option of a wrong type', () => {
  // requirement: JS-OPTIONS
  it('is refused where it is, and the link goes on', async () => {
    const agent = defineAgent({ name: 'a', topics: ['x'], onEvent: (_, event) => event.data })
    await running([agent], async (app) => {
      const wrong: [string, object][] = [
        ['key', { key: 5 }],
        ['key', { key: {} }],
        ['key', { key: ['a'] }],
        ['key', { key: 'a\ud800' }],
        ['thread', { thread: 5 }],
        ['id', { id: 5, ack: 'accepted' }],
        ['labels', { labels: 'one' }],
        ['labels', { labels: [5] }],
        ['headers.a', { headers: { a: 1 } }],
        ['ttlMs', { ttlMs: '5' }],
        ['ttlMs', { ttlMs: Number.NaN }],
        ['ttlMs', { ttlMs: -1 }],
      ]
      for (const [field, options] of wrong) {
        const refused = { code: 'INVALID_PARAMS', field, hint: expect.stringMatching(/^give /) }
        await expect(app.emit('x', 1, options), field).rejects.toMatchObject(refused)
        await expect(app.request('x', 1, options), field).rejects.toMatchObject(refused)
      }
      for (const field of ['key', 'version']) {
        const refused = { code: 'INVALID_PARAMS', field, hint: 'give a string' }
        await expect(app.tool('t', {}, { [field]: 5 })).rejects.toMatchObject(refused)
      }
      expect((await app.request('x', 2)).data).toBe(2)
    })
  })

  // requirement: JS-OPTIONS
  it('is rounded to whole milliseconds where it is a time', async () => {
    const lasts = deferred<number | undefined>()
    const agents = [
      defineAgent({ name: 'a', topics: ['x'], onEvent: (_, event) => lasts.resolve(event.ttlMs) }),
      defineAgent({ name: 'b', topics: ['y'], onEvent: () => 'in time' }),
    ]
    await running(agents, async (app) => {
      await app.emit('x', 1, { ttlMs: 60_000.4 })
      expect(await lasts.promise).toBe(60_000)
      expect((await app.request('y', 1, { timeoutMs: 5_000.5 })).data).toBe('in time')
    })
  })
})
