import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import * as z from 'zod'
import { barrier, contractNet, defineContractor, fanin, fanout } from '../../src/collab/index.js'
import {
  type Agent,
  type Connection,
  type Context,
  capability,
  defineAgent,
  LoomError,
} from '../../src/index.js'
import { ROOT } from '../support/oracle.js'
import { codeOf, deferred, running } from '../support/run.js'

function answers(name: string, answer: unknown): Agent {
  return defineAgent({
    name,
    topics: [`weather.${name}`],
    onEvent: () => {
      if (answer instanceof Error) throw answer
      return answer
    },
  })
}

const silent = (name: string): Agent =>
  defineAgent({
    name,
    topics: [`weather.${name}`],
    onEvent: (ctx) =>
      new Promise((_, reject) =>
        ctx.signal.addEventListener('abort', () => reject(ctx.signal.reason)),
      ),
  })

const all = ['weather.a', 'weather.b', 'weather.c']

describe('fanout', () => {
  // requirement: COLLAB-FANOUT
  it('gives what there is, failures and how many are missing', async () => {
    const agents = [answers('a', 'rain'), answers('b', new Error('no')), silent('c')]
    await running(agents, async (app) => {
      await using group = fanout(app, all, { day: 1 }, { timeoutMs: 60 })
      const partial = await group.all()
      expect(partial.items).toEqual([{ index: 0, target: 'weather.a', data: 'rain' }])
      expect(partial.failures.map((one) => [one.target, one.error.code])).toEqual([
        ['weather.b', 'HANDLER_ERROR'],
      ])
      expect([partial.missing, partial.timedOut]).toEqual([1, true])
    })
  })

  // requirement: COLLAB-EARLY
  it('ends with the first, with enough, or with a majority, and cancels the rest', async () => {
    const agents = [answers('a', { r: 1, s: 2 }), answers('b', { s: 2, r: 1 }), silent('c')]
    await running(agents, async (app) => {
      await using group = fanout(app, all, null, { timeoutMs: 60_000 })
      expect(await group.majority()).toEqual({ r: 1, s: 2 })
      expect((await group.first(2)).items).toHaveLength(2)
      expect(await group.any()).toEqual({ r: 1, s: 2 })
    })
    await running(
      [answers('a', 1), answers('b', 2), answers('c', new Error('no'))],
      async (app) => {
        await using group = fanout(app, all, null, { timeoutMs: 60_000 })
        expect(await codeOf(group.majority())).toBe('UNAVAILABLE')
        expect(await codeOf(group.first(4))).toBe('INVALID_PARAMS')
      },
    )
  })

  it('calls capabilities beside topics, and takes answers that do not fit as failures', async () => {
    const add = capability({ name: 'add', run: () => 3 })
    await running({ agents: [answers('a', 'text')], capabilities: [add] }, async (app) => {
      const schema = z.number()
      await using group = fanout(app, ['weather.a', [add, {}], ['add', {}]], null, {
        timeoutMs: 5000,
        schema,
      })
      const { items, failures } = await group.all()
      expect(items.map((one) => one.data)).toEqual([3, 3])
      expect(failures.map((one) => one.error.code)).toEqual(['INVALID_PARAMS'])
      expect(() => fanout(app, [], null, { timeoutMs: 1 })).toThrow(LoomError)
      expect(() => fanout(app, [7 as never], null, { timeoutMs: 1 })).toThrow(LoomError)
    })
  })
})

describe('fanin', () => {
  const votes = ['north', 'south'].map((name) =>
    defineAgent({
      name,
      topics: ['poll'],
      onEvent: async (ctx) => {
        await ctx.emit(`vote.${name}`, name === 'north' ? 'tea' : 'tea')
      },
    }),
  )

  // requirement: COLLAB-FANIN
  it('hears what is published from its beginning on, until it is enough', async () => {
    await running(votes, async (app) => {
      await using heard = await fanin(app, ['vote.north', 'vote.south', 'vote.west'], {
        timeoutMs: 100,
      })
      await app.emit('poll')
      expect(await heard.majority(2)).toBe('tea')
      expect((await heard.first(2)).items.map((event) => event.data)).toEqual(['tea', 'tea'])
      const partial = await heard.all()
      expect([partial.missing, partial.timedOut]).toEqual([1, true])
    })
  })

  it('takes data that does not fit as a failure of its sender, and says when nothing comes', async () => {
    await running(votes, async (app) => {
      await using heard = await fanin(app, ['vote.*'], { timeoutMs: 200, schema: z.number() })
      await app.emit('poll')
      const partial = await heard.until(() => false)
      expect(partial.failures.map((one) => one.target).sort()).toEqual([
        `${app.namespace}/north`,
        `${app.namespace}/south`,
      ])
      await using quiet = await fanin(app, ['nothing'], { timeoutMs: 20 })
      expect(await codeOf(quiet.any())).toBe('TIMEOUT')
    })
  })
})

describe('barrier', () => {
  const meets = (name: string, n: number, timeoutMs: number): Agent =>
    defineAgent({
      name,
      topics: ['start'],
      onEvent: async (ctx) => barrier(ctx, 'ready', n, { timeoutMs }),
    })

  // requirement: COLLAB-BARRIER
  it('lets all go on together, with one outcome', async () => {
    await running([meets('ada', 2, 5000), meets('bob', 2, 5000)], async (app) => {
      const replies = await app.requestMany('start')
      const [first, second] = replies.items.map((event) => event.data)
      expect(first).toEqual(second)
      expect(first).toMatchObject({ n: 2, complete: true })
    })
  })

  it('ends when the first who waits has waited enough; who comes later gets the same', async () => {
    await running([meets('ada', 2, 30)], async (app) => {
      const outcome = { n: 2, members: [`${app.namespace}/ada`], complete: false }
      expect((await app.request('start', null, { thread: 't' })).data).toEqual(outcome)
      expect(await barrier(app, 'ready', 2, { timeoutMs: 5000, thread: 't' })).toEqual(outcome)
      const other = barrier(app, 'ready', 3, { timeoutMs: 100, thread: 't' })
      await expect(other).rejects.toMatchObject({ code: 'CONFLICT', field: 'n' })
      expect(await codeOf(barrier(app, 'ready', 2, { timeoutMs: 100 }))).toBe('INVALID_PARAMS')
    })
  })

  it('counts members of one agent by the names they give', async () => {
    await running([meets('ada', 1, 1)], async (app) => {
      const come = (member: string) =>
        barrier(app, 'x', 2, { timeoutMs: 5000, thread: 't', member })
      const [one, two] = await Promise.all([come('a'), come('b')])
      expect(one).toEqual(two)
      expect(one?.members.sort()).toEqual([`${app.namespace}/app/a`, `${app.namespace}/app/b`])
    })
  })
})

function contractor(name: string, score: number | null, execute: () => unknown): Agent {
  return defineContractor({
    name,
    topics: ['job.paint'],
    schema: z.object({ metres: z.number() }),
    bid: () => score,
    execute,
  })
}

const CALL = { topic: 'job.paint', bidTimeoutMs: 500, timeoutMs: 5000 }

describe('contract-net', () => {
  // requirement: COLLAB-CONTRACT, COLLAB-REAWARD
  it('gives the task to the best bidder, and to the next when that fails', async () => {
    const agents = [
      contractor('careful', 2, () => '7 m painted'),
      contractor('boastful', 9, () => {
        throw new LoomError('EXHAUSTED', 'out of paint')
      }),
      contractor('lazy', null, () => 'never'),
    ]
    await running(agents, async (app) => {
      const award = await contractNet(app, { metres: 7 }, { ...CALL, schema: z.string() })
      expect(award).toMatchObject({
        winner: `${app.namespace}/careful`,
        result: '7 m painted',
        reawards: 1,
      })
      expect(award.bids.map((bid) => bid.sender)).toEqual([
        `${app.namespace}/boastful`,
        `${app.namespace}/careful`,
      ])
      expect(award.declined.map((one) => one.sender)).toEqual([`${app.namespace}/lazy`])
      expect(award.failures.map((one) => [one.target, one.error.code])).toEqual([
        [`${app.namespace}/boastful`, 'EXHAUSTED'],
      ])
      expect(award.ignored).toEqual({ late: 0, duplicate: 0, foreign: 0, malformed: 0 })
    })
  })

  // requirement: COLLAB-REAWARD
  it('tells those who bid and were not awarded that it is over, and takes away what is too late', async () => {
    const lost = deferred<unknown>()
    const taken = deferred<unknown>()
    const slow = defineContractor({
      name: 'slow',
      topics: ['job.paint'],
      bid: () => ({ score: 1, offer: { price: 1 } }),
      execute: (_ctx, _task, signal) =>
        new Promise((resolve) => {
          signal.addEventListener('abort', () => {
            taken.resolve(signal.reason)
            resolve('too late')
          })
        }),
    })
    const dear = defineContractor({
      name: 'dear',
      topics: ['job.paint'],
      bid: () => ({ score: 9, offer: { price: 9 } }),
      execute: () => 'done',
    })
    const spare = defineContractor({
      name: 'spare',
      topics: ['job.paint'],
      bid: () => ({ score: 0, offer: { price: 99 } }),
      execute: () => 'done',
      lost: (_, task) => lost.resolve(task),
    })
    await running([slow, dear, spare], async (app) => {
      const score = (bid: { offer: unknown }) => -(bid.offer as { price: number }).price
      const award = await contractNet(app, 'fence', { ...CALL, workTimeoutMs: 50, score })
      expect(award).toMatchObject({ winner: `${app.namespace}/dear`, reawards: 1 })
      expect(award.failures[0]?.target).toBe(`${app.namespace}/slow`)
      expect(await lost.promise).toBe('fence')
      await taken.promise
    })
  })

  // requirement: COLLAB-CONTRACT
  it('ends as UNAVAILABLE where nobody hears, bids or can do it', async () => {
    const agents = [contractor('lazy', null, () => 1)]
    await running(agents, async (app) => {
      expect(await codeOf(contractNet(app, { metres: 1 }, CALL))).toBe('UNAVAILABLE')
      const deaf = contractNet(app, 1, { ...CALL, topic: 'nobody' })
      expect(await codeOf(deaf)).toBe('UNAVAILABLE')
      const wrong = contractNet(app, 1, { ...CALL, bidTimeoutMs: 9000 })
      expect(await codeOf(wrong)).toBe('INVALID_PARAMS')
    })
    await running([contractor('a', 1, () => 7)], async (app) => {
      const told = await contractNet(app, { metres: 1 }, { ...CALL, schema: z.string() }).catch(
        (e) => e,
      )
      expect([told.code, told.hint]).toEqual(['UNAVAILABLE', `${app.namespace}/a: INVALID_PARAMS`])
    })
  })
})

interface Said {
  topic: string
  sender: string
  data: unknown
}

/** What stands in the files that every language is held against. */
function golden(name: string): Said[] {
  const path = join(ROOT, 'spec', 'collab', 'golden', `${name}.json`)
  const { exchange } = JSON.parse(readFileSync(path, 'utf8')) as { exchange: Said[] }
  return exchange.map(({ topic, sender, data }) => ({ topic, sender, data }))
}

/** What an exchange says, with the thread, the namespace and times left out that differ each time. */
async function recorded(
  agents: Agent[],
  name: string,
  count: number,
  work: (app: Connection) => Promise<unknown>,
): Promise<Said[]> {
  const heard: Said[] = []
  await running({ name, agents }, async (app) => {
    const watch = await app.watch('>', { qos: 'batched' })
    await work(app)
    const plain = (data: unknown): unknown =>
      JSON.parse(JSON.stringify(data).replaceAll(`${app.namespace}/`, 'default/'))
    for await (const { topic, sender, data } of watch) {
      if (/^(loom|start)\b/.test(topic)) continue
      const said = { topic: topic.replace(/^thread\.[^.]+\./, 'thread.{thread}.'), sender, data }
      heard.push(plain(said) as Said)
      if (heard.length === count) break
    }
  })
  return heard
}

/** What each says, in its order: who of several speaks first is chance. */
function bySender(said: Said[]): Map<string, unknown[]> {
  const found = new Map<string, unknown[]>()
  for (const { topic, sender, data } of said) {
    const timeless = JSON.parse(JSON.stringify(data), (key, value) =>
      ['timeout_ms', 'bid_ms'].includes(key) ? 0 : value,
    )
    found.set(sender, [...(found.get(sender) ?? []), { topic, data: timeless }])
  }
  return found
}

describe('what is said', () => {
  // requirement: COLLAB-EXCHANGE
  it('in a fanout is the golden exchange', async () => {
    const station = (name: string, answer: string) =>
      defineAgent({ name, topics: [`weather.${name}`], onEvent: () => answer })
    const agents = [station('north', 'rain'), station('south', 'sun')]
    const wanted = golden('fanout')
    const said = await recorded(agents, 'asks', wanted.length, async (app) => {
      await using group = fanout(
        app,
        ['weather.north', 'weather.south'],
        { day: 1 },
        { timeoutMs: 5000 },
      )
      await group.all()
    })
    expect(bySender(said)).toEqual(bySender(wanted))
  })

  // requirement: COLLAB-EXCHANGE
  it('in a fanin is the golden exchange', async () => {
    const votes = (name: string) =>
      defineAgent({
        name,
        topics: ['poll'],
        onEvent: async (ctx) => void (await ctx.emit(`vote.${name}`, 'tea')),
      })
    const wanted = golden('fanin')
    const said = await recorded(
      [votes('north'), votes('south')],
      'asks',
      wanted.length,
      async (app) => {
        await using heard = await fanin(app, ['vote.*'], { timeoutMs: 5000 })
        await app.emit('poll')
        expect(await heard.majority(2)).toBe('tea')
      },
    )
    expect(bySender(said)).toEqual(bySender(wanted))
  })

  // requirement: COLLAB-EXCHANGE
  it('at barriers is the golden exchange', async () => {
    const missed = deferred()
    const meets = (name: string, before: Promise<unknown>, own?: string) =>
      defineAgent({
        name,
        topics: ['start'],
        onEvent: async (ctx) => {
          const member = own === undefined ? {} : { member: own }
          await barrier(ctx, 'ready', 2, { timeoutMs: 10_000, ...member })
          await before
          const { complete } = await barrier(ctx, 'done', 2, { timeoutMs: 100 })
          expect(complete).toBe(false)
          missed.resolve()
        },
      })
    const agents = [meets('ada', Promise.resolve()), meets('bob', missed.promise, 'left-hand')]
    const wanted = golden('barrier')
    const said = await recorded(agents, 'crew', wanted.length, (app) => app.emit('start'))
    const members = (all_: Said[]) =>
      all_.map(({ data, ...one }) => {
        const { members: met } = data as { members?: string[] }
        return { ...one, data: met ? { ...(data as object), members: [...met].sort() } : data }
      })
    expect(bySender(members(said))).toEqual(bySender(members(wanted)))
  })

  // requirement: COLLAB-EXCHANGE
  it('in a contract is the golden exchange', async () => {
    const member = (
      name: string,
      score: number | null,
      execute: (ctx: Context, task: unknown) => unknown,
    ) => defineContractor({ name, topics: ['job'], bid: () => score, execute })
    const agents = [
      member('ada', 1.5, (_, task) => `${task}: done`),
      member('bob', 2, () => {
        throw new LoomError('EXHAUSTED', 'out of paint')
      }),
      member('eve', null, () => {}),
    ]
    const wanted = golden('contract_net')
    const said = await recorded(agents, 'boss', wanted.length, (app) =>
      contractNet(app, 'paint the fence', { topic: 'job', bidTimeoutMs: 2000, timeoutMs: 30_000 }),
    )
    expect(bySender(said)).toEqual(bySender(wanted))
  })
})
