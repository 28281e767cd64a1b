import { describe, expect, it } from 'vitest'
import * as z from 'zod'
import { capability, connect, defineAgent, type LoomError, serve } from '../../src/index.js'
import { jsonSchema } from '../../src/json-schema.js'
import { codeOf, deferred, elsewhere, running, take } from '../support/run.js'

const deaf = defineAgent({ name: 'deaf', onEvent: () => {} })

describe('requests', () => {
  // requirement: REQUEST-UNHEARD
  it('that nobody hears end at once, unless they wait for somebody', async () => {
    await running([deaf], async (app, there) => {
      expect(await codeOf(app.request('x', 1, { timeoutMs: 60_000 }))).toBe('UNAVAILABLE')
      const waiting = app.request('x', 1, { wait: true })
      const late = await serve({
        ...there,
        agents: [defineAgent({ name: 'late', topics: ['x'], onEvent: () => 'here' })],
      })
      expect((await waiting).data).toBe('here')
      await late.close()
    })
  })

  // requirement: REQUEST-DECLINED
  it('that all decline end at once', async () => {
    const silent = defineAgent({ name: 'a', topics: ['x'], onEvent: () => {} })
    await running([silent], async (app) => {
      expect(await codeOf(app.request('x', 1, { timeoutMs: 60_000 }))).toBe('UNAVAILABLE')
    })
  })

  // requirement: REQUEST-MANY
  it('to many give answers, failures and how many are missing', async () => {
    const held = deferred()
    const agents = [
      defineAgent({ name: 'a', topics: ['x'], onEvent: () => 1 }),
      defineAgent({ name: 'b', topics: ['x'], onEvent: (ctx) => ctx.reply(2) }),
      defineAgent({
        name: 'c',
        topics: ['x', 'only.c'],
        onEvent: () => {
          throw new Error('no')
        },
      }),
      defineAgent({
        name: 'd',
        topics: ['x'],
        onEvent: async () => {
          await held.promise
        },
      }),
    ]
    await running(agents, async (app) => {
      const replies = await app.requestMany('x', null, { timeoutMs: 50 })
      expect(replies.items.map((event) => event.data).sort()).toEqual([1, 2])
      expect(replies.items.map((event) => event.sender).sort()).toEqual([
        `${app.namespace}/a`,
        `${app.namespace}/b`,
      ])
      expect(replies.failures.map((error) => [error.code, error.who])).toEqual([
        ['HANDLER_ERROR', `${app.namespace}/c`],
      ])
      expect(replies.missing).toBe(1)
      expect((await app.requestMany('x', null, { firstK: 1 })).items).toHaveLength(1)
      expect(await app.requestMany('nobody')).toEqual({ items: [], failures: [], missing: 0 })
      const failed = await app.requestMany('only.c')
      expect([failed.items, failed.failures.map((error) => error.who), failed.missing]).toEqual([
        [],
        [`${app.namespace}/c`],
        0,
      ])
      held.resolve()
    })
  })

  // requirement: CALL-ONE-OUTCOME
  it('end by their deadline, and by their signal', async () => {
    const held = deferred()
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: async () => {
        await held.promise
      },
    })
    await running([agent], async (app) => {
      expect(await codeOf(app.request('x', 1, { timeoutMs: 20 }))).toBe('TIMEOUT')
      const controller = new AbortController()
      const asked = app.request('x', 1, { signal: controller.signal })
      controller.abort(new Error('enough'))
      await expect(asked).rejects.toThrow('enough')
      held.resolve()
    })
  })

  it('give an answer that fits what was asked for, or say where it does not', async () => {
    const agent = defineAgent({ name: 'a', topics: ['x'], onEvent: () => ({ n: 'two' }) })
    await running([agent], async (app) => {
      const schema = z.object({ n: z.number() })
      await expect(app.request('x', 1, { schema })).rejects.toMatchObject({ field: 'data.n' })
    })
  })

  it('are refused a reply where nothing was asked', async () => {
    const told = deferred<string>()
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: (ctx) => {
        try {
          ctx.reply(1)
        } catch (error) {
          told.resolve((error as { code: string }).code)
        }
      },
    })
    await running([agent], async (app) => {
      await app.emit('x')
      expect(await told.promise).toBe('INVALID_PARAMS')
    })
  })
})

describe('capabilities', () => {
  const add = capability({
    name: 'math.add',
    description: 'Adds.',
    input: z.object({ a: z.number(), b: z.number() }),
    output: z.number(),
    effect: 'pure',
    run: ({ a, b }) => a + b,
  })

  it('are called by name or by what was declared, with typed results', async () => {
    await running({ capabilities: [add] }, async (app) => {
      const sum: number = await app.tool(add, { a: 1, b: 2 })
      expect(sum).toBe(3)
      expect(await app.tool('math.add', { a: 2, b: 2 })).toBe(4)
    })
  })

  // requirement: CALL-SCHEMA
  it('never run with arguments that do not fit', async () => {
    await running({ capabilities: [add] }, async (app) => {
      await expect(app.tool('math.add', { a: 1, b: 'two' })).rejects.toMatchObject({
        code: 'INVALID_PARAMS',
        field: 'args.b',
        who: 'math.add',
      })
    })
  })

  it('take a JSON Schema, and refuse one with words that are not checked', async () => {
    const greet = capability({
      name: 'greet',
      input: jsonSchema({
        type: 'object',
        properties: { name: { $ref: '#/$defs/name' }, times: { type: 'integer', minimum: 1 } },
        required: ['name'],
        additionalProperties: false,
        $defs: { name: { type: 'string', minLength: 1 } },
      }),
      run: (args) => `hello ${(args as { name: string }).name}`,
    })
    await running({ capabilities: [greet] }, async (app) => {
      expect(await app.tool('greet', { name: 'ada' })).toBe('hello ada')
      const wrong: [Record<string, unknown>, string][] = [
        [{}, 'args.name'],
        [{ name: '' }, 'args.name'],
        [{ name: 'x', times: 0.5 }, 'args.times'],
        [{ name: 'x', times: 0 }, 'args.times'],
        [{ name: 'x', other: 1 }, 'args.other'],
      ]
      for (const [args, field] of wrong) {
        await expect(app.tool('greet', args)).rejects.toMatchObject({ field })
      }
    })
    expect(() => jsonSchema({ dependentRequired: {} })).toThrow(
      expect.objectContaining({ code: 'NOT_SUPPORTED' }),
    )
  })

  it('that give what they do not declare, or throw, end with CAPABILITY_ERROR', async () => {
    const wrong = capability({ name: 'a', output: z.string(), run: () => 1 as never })
    const throws = capability({
      name: 'b',
      run: () => {
        throw new RangeError('secret')
      },
    })
    await running({ capabilities: [wrong, throws] }, async (app) => {
      expect(await codeOf(app.tool('a'))).toBe('CAPABILITY_ERROR')
      const error = (await app.tool('b').catch((one) => one)) as LoomError
      expect(error.code).toBe('CAPABILITY_ERROR')
      expect(String(error)).not.toContain('secret')
    })
  })

  // requirement: CALL-UNKNOWN
  it('that nobody offers are NOT_FOUND, those whose provider has left PROVIDER_UNAVAILABLE', async () => {
    await running({ capabilities: [add] }, async (app, there) => {
      expect(await codeOf(app.tool('no.such'))).toBe('NOT_FOUND')
      expect(await codeOf(app.tool('math.add', {}, { version: '9' }))).toBe('NOT_FOUND')
      const other = await connect(there)
      await app.close()
      expect(await codeOf(other.tool('math.add'))).toBe('PROVIDER_UNAVAILABLE')
      await other.close()
    })
  })

  // requirement: CALL-CANCEL
  it('are told when nobody waits any more', async () => {
    const began = deferred()
    const stopped = deferred<unknown>()
    const slow = capability({
      name: 'slow',
      run: async (_, ctx) => {
        began.resolve()
        await new Promise((_resolve, reject) => {
          ctx.signal.addEventListener('abort', () => reject(ctx.signal.reason))
        }).catch((error) => {
          stopped.resolve(error)
          throw error
        })
      },
    })
    await running({ capabilities: [slow] }, async (app) => {
      const controller = new AbortController()
      const call = app.tool('slow', {}, { signal: controller.signal })
      await began.promise
      controller.abort(new Error('enough'))
      await expect(call).rejects.toThrow('enough')
      expect(await stopped.promise).toMatchObject({ code: 'CANCELLED' })
    })
  })

  // requirement: CALL-INDETERMINATE
  it('that may have changed something and gave no result in time are INDETERMINATE', async () => {
    const held = deferred()
    const slow = (name: string, effect: 'pure' | 'unsafe') =>
      capability({ name, effect, run: () => held.promise })
    await running({ capabilities: [slow('a', 'pure'), slow('b', 'unsafe')] }, async (app) => {
      expect(await codeOf(app.tool('a', {}, { timeoutMs: 20 }))).toBe('TIMEOUT')
      expect(await codeOf(app.tool('b', {}, { timeoutMs: 20 }))).toBe('INDETERMINATE')
      held.resolve()
    })
  })

  // requirement: CALL-JOIN
  it('with one key run once, and give one result', async () => {
    let runs = 0
    const held = deferred()
    const pay = capability({
      name: 'pay',
      run: async (_, ctx) => {
        runs++
        await held.promise
        return ctx.effectId
      },
    })
    await running({ capabilities: [pay] }, async (app) => {
      const calls = [1, 2].map(() => app.tool('pay', { n: 1 }, { key: 'order-1' }))
      held.resolve()
      const [first, second] = await Promise.all(calls)
      expect(first).toBe(second)
      expect(await app.tool('pay', { n: 1 }, { key: 'order-1' })).toBe(first)
      expect(runs).toBe(1)
      expect(await codeOf(app.tool('pay', { n: 2 }, { key: 'order-1' }))).toBe('CONFLICT')
    })
  })

  it('are plain functions for who has them', async () => {
    expect(await add.run({ a: 1, b: 2 } as never, undefined as never)).toBe(3)
  })

  // requirement: BAD-INPUT
  it('that are declared wrongly are refused where they stand', () => {
    const run = () => 1
    const wrong: [object, string][] = [
      [{ name: 'A b', run }, 'name'],
      [{ name: 'a' }, 'run'],
      [{ name: 'a', run, effect: 'none' }, 'effect'],
      [{ name: 'a', run, timeoutMs: 0 }, 'timeoutMs'],
      [{ name: 'a', run, effect: 'probeable' }, 'probe'],
      [{ name: 'a', run, input: 7 }, 'schema'],
      [{ name: 'a', run, input: { type: 'string' } }, 'schema'],
    ]
    for (const [options, field] of wrong) {
      expect(() => capability(options as never)).toThrow(expect.objectContaining({ field }))
    }
  })
})

describe('streams', () => {
  const count = capability({
    name: 'count',
    effect: 'pure',
    input: z.object({ to: z.number() }),
    output: z.number(),
    async *run({ to }) {
      for (let i = 0; i < to; i++) yield i
    },
  })

  it('come chunk by chunk, and as one list for who wants one result', async () => {
    await running({ capabilities: [count] }, async (app) => {
      const chunks = await take(app.stream('count', { to: 300 }), 300)
      expect(chunks).toEqual(Array.from({ length: 300 }, (_, i) => i))
      expect(await app.tool(count, { to: 3 })).toEqual([0, 1, 2])
    })
  })

  // requirement: STREAM-CREDIT
  it('are never further ahead of their reader than was granted, and end when he leaves', async () => {
    let made = 0
    const ended = deferred()
    const endless = capability({
      name: 'endless',
      async *run() {
        try {
          for (;;) yield made++
        } finally {
          ended.resolve()
        }
      },
    })
    await running({ capabilities: [endless] }, async (app) => {
      for await (const chunk of app.stream('endless')) {
        if (chunk === 100) break
      }
      await ended.promise
      expect(made).toBeLessThan(100 + 2 * 64 + 2)
    })
  })

  // requirement: STREAM-END
  it('give the error behind their chunks', async () => {
    const breaks = capability({
      name: 'breaks',
      async *run() {
        yield 1
        throw new Error('no')
      },
    })
    await running({ capabilities: [breaks] }, async (app) => {
      const seen: unknown[] = []
      const read = async () => {
        for await (const chunk of app.stream('breaks')) seen.push(chunk)
      }
      expect(await codeOf(read())).toBe('CAPABILITY_ERROR')
      expect(seen).toEqual([1])
    })
  })
})

describe('the directory', () => {
  // requirement: DIRECTORY-LIST
  it('lists agents and capabilities, and says who joins and leaves', async () => {
    const agent = defineAgent({
      name: 'a',
      topics: ['x.>'],
      description: 'hears x',
      onEvent: () => {},
    })
    const tool = capability({
      name: 'web.search',
      input: z.object({ q: z.string() }),
      run: () => 1,
    })
    await running({ agents: [agent], capabilities: [tool] }, async (app, there) => {
      expect(await app.agents({ topic: 'x.y' })).toMatchObject([
        { name: 'a', description: 'hears x' },
      ])
      expect(await app.agents({ topic: 'y' })).toEqual([])
      expect(await app.agents({ name: `${app.namespace}/a` })).toHaveLength(1)
      const [info] = await app.capabilities('web.*')
      expect(info).toMatchObject({
        name: 'web.search',
        effect: 'unsafe',
        timeout: 30,
        provider: 'app',
      })
      expect(info?.input).toMatchObject({ properties: { q: { type: 'string' } } })
      const told = await app.watch('loom.directory.agent.*', { qos: 'batched' })
      const other = await serve({
        ...there,
        name: 'other',
        agents: [defineAgent({ name: 'b', onEvent: () => {} })],
      })
      await other.close()
      const heard = await take(told, 2)
      expect(heard.map((event) => [event.topic, event.data])).toMatchObject([
        ['loom.directory.agent.joined', { name: 'b' }],
        ['loom.directory.agent.left', { name: 'b' }],
      ])
      expect(heard[0]?.sender).toBe(`${app.namespace}/loom`)
      expect(await app.agents({ name: `${app.namespace}/b` })).toEqual([])
    })
  })
})

describe('watching', () => {
  it('hears what is published from then on, and stops with its loop', async () => {
    await running([deaf], async (app) => {
      const watch = await app.watch(['a.*', 'b'])
      await app.emit('a.x', 1)
      await app.emit('c', 2)
      await app.emit('b', 3)
      expect((await take(watch, 2)).map((event) => event.data)).toEqual([1, 3])
      expect((await app.emit('b', 4)).matched).toBe(0)
      expect((await watch.next()).done).toBe(true)
    })
  })

  it('keeps the newest where it is slow, and counts what it lost', async () => {
    await running([deaf], async (app) => {
      const watch = await app.watch('x')
      for (let i = 0; i < 1_100; i += 100) {
        await Promise.all(Array.from({ length: 100 }, (_, j) => app.emit('x', i + j)))
      }
      const first = await watch.next()
      expect(watch.dropped).toBeGreaterThanOrEqual(76)
      expect(first.value?.data).toBe(watch.dropped)
      await watch.close()
    })
  })

  it('ends by a signal', async () => {
    await running([deaf], async (app) => {
      const controller = new AbortController()
      const watch = await app.watch('x', { signal: controller.signal })
      const next = watch.next()
      controller.abort()
      expect((await next).done).toBe(true)
      await expect(app.watch('x', { signal: controller.signal })).rejects.toThrow(/abort/i)
    })
  })

  it('joins a thread: hears what is said in it, and speaks in it', async () => {
    await running([deaf], async (app) => {
      const thread = await app.joinThread('t-1')
      await thread.broadcast('hello')
      await app.emit('thread.t-2.broadcast', 'elsewhere')
      await app.emit('thread.t-1.note', 'world')
      const heard = await take(thread.events, 2)
      expect(heard.map((event) => [event.topic, event.data])).toEqual([
        ['thread.t-1.broadcast', 'hello'],
        ['thread.t-1.note', 'world'],
      ])
      expect(heard[0]?.threadId).toBe('t-1')
    })
  })
})

describe('a link', () => {
  it('ends all that waits when it is closed, and when its signal is aborted', async () => {
    const controller = new AbortController()
    const app = await connect({ ...elsewhere(), signal: controller.signal })
    const asked = app.request('x', 1, { wait: true })
    const watch = await app.watch('y')
    const next = watch.next()
    controller.abort()
    expect(await codeOf(asked)).toBe('CANCELLED')
    expect((await next).done).toBe(true)
    await app.close()
  })

  it('that is told wrongly where to go says so', async () => {
    expect(await codeOf(connect({}))).toBe('INVALID_PARAMS')
    for (const url of ['http://x', 'ws://', 'ws://token@host', 'ws://host?token=x']) {
      expect(await codeOf(connect({ url }))).toBe('INVALID_PARAMS')
    }
  })
})
