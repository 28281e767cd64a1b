import { describe, expect, it } from 'vitest'
import { connect, defineAgent, type EmitOptions, serve } from '../../src/index.js'
import { codeOf, cutting, deferred, elsewhere, running } from '../support/run.js'

const deaf = defineAgent({ name: 'deaf', onEvent: () => {} })

describe('durable events', () => {
  // requirement: SDKLOG-ACK
  it('are acknowledged at the level that was asked for, with their place', async () => {
    await running([deaf], async (app) => {
      const receipts = []
      for (const ack of ['os', 'disk'] as const) {
        receipts.push(await app.emit('x', 1, { ack }))
      }
      expect(receipts.map((one) => one.level)).toEqual(['os', 'disk'])
      const places = receipts.map((one) => one.position as string)
      expect([...new Set(places)].sort()).toEqual(places)
    })
  })

  // requirement: SDKLOG-DEDUP
  it('with one id are one event, and with other content a conflict', async () => {
    const seen: unknown[] = []
    const last = deferred()
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: (_, event) => {
        seen.push(event.data)
        if (event.data === 'last') last.resolve()
      },
    })
    await running([agent], async (app) => {
      const publish = (data: unknown, id: string) =>
        app.emit('x', data, { ack: 'os', key: 'k', id })
      const first = await publish('once', 'order-1')
      expect((await publish('once', 'order-1')).id).toBe(first.id)
      expect(await codeOf(publish('other', 'order-1'))).toBe('CONFLICT')
      await publish('last', 'order-2')
      await last.promise
      expect(seen).toEqual(['once', 'last'])
    })
  })

  // requirement: SDKLOG-REDELIVER
  it('whose handler failed come again, and say how often they came', async () => {
    const attempts: number[] = []
    const done = deferred()
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: (_, event) => {
        attempts.push(event.attempt)
        if (event.attempt === 1) throw new Error('not yet')
        done.resolve()
      },
    })
    await running([agent], async (app) => {
      await app.emit('x', 1, { ack: 'os' })
      await done.promise
      expect(attempts).toEqual([1, 2])
    })
  })

  // requirement: SDKLOG-SETTLE
  it('may be acknowledged, given back and given up by their handler', async () => {
    const seen: unknown[] = []
    const done = deferred()
    const agent = defineAgent({
      name: 'a',
      topics: ['x'],
      onEvent: (_, event) => {
        seen.push([event.data, event.attempt, event.isDurable])
        if (event.data === 'done') {
          event.ack()
          throw new Error('after its ack this changes nothing')
        }
        if (event.data === 'later' && event.attempt < 3) {
          for (const wrong of [Number.NaN, -1, '1' as unknown as number]) {
            expect(() => event.nak(wrong)).toThrow('delayMs')
          }
          event.nak(1)
        }
        if (event.data === 'never') event.term('it is not ours')
        if (event.data === 'last') done.resolve()
      },
    })
    await running([agent], async (app) => {
      for (const data of ['done', 'later', 'never', 'last']) {
        await app.emit('x', data, { ack: 'os', key: 'k' })
      }
      await done.promise
      expect(seen).toEqual([
        ['done', 1, true],
        ['later', 1, true],
        ['later', 2, true],
        ['later', 3, true],
        ['never', 1, true],
        ['last', 1, true],
      ])
      await expect(app.emit('x', 1)).resolves.toMatchObject({ matched: 1 })
    })
  })

  // requirements: SESSION-PUBLISH-ONCE, SESSION-ENDS-ONCE
  it('are in the log once, and answered once, however often the link was cut', async () => {
    const all = 200
    const seen: number[] = []
    const done = deferred()
    const agent = defineAgent({
      name: 'a',
      topics: ['n'],
      onEvent: (_, event) => {
        seen.push(event.data as number)
        if (event.data === all - 1) done.resolve()
      },
    })
    const { dial, ...there } = elsewhere()
    const listening = await serve({ ...there, dial, agents: [agent] })
    const link = cutting(dial)
    const talking = await connect({ ...there, dial: link.dial })
    const emits: ReturnType<typeof talking.emit>[] = []
    const cuts: Promise<void>[] = []
    for (let n = 0; n < all; n++) {
      emits.push(talking.emit('n', n, { ack: n % 2 ? 'os' : 'disk', key: 'k' }))
      // Of those before it some have come, and are not answered; those behind it come nowhere.
      if (n % 20 === 5) await new Promise((resolve) => setImmediate(resolve))
      if (n % 20 === 10) cuts.push(link.cut())
      if (n % 20 === 19) await Promise.all([...cuts, ...emits])
    }
    const receipts = await Promise.all(emits)
    await done.promise
    expect(seen).toEqual(Array.from({ length: all }, (_, n) => n))
    const places = receipts.map((one) => one.position as string)
    expect([...new Set(places)].sort()).toEqual(places)
    expect(new Set(receipts.map((one) => one.id)).size).toBe(all)
    await talking.close()
    await listening.close()
  })

  // requirement: SDKLOG-DEDUP
  it('with one id are one event on either side of a cut, and for another client', async () => {
    const { dial, ...there } = elsewhere()
    const link = cutting(dial)
    const app = await connect({ ...there, dial: link.dial })
    const other = await connect({ ...there, dial })
    const options: EmitOptions = { ack: 'disk', id: 'order-1' }
    const first = app.emit('x', 1, options)
    await link.cut()
    const second = app.emit('x', 1, options)
    const ids = await Promise.all([first, second, other.emit('x', 1, options)])
    expect(new Set(ids.map((one) => `${one.id} ${one.position}`)).size).toBe(1)
    expect(await codeOf(other.emit('x', 2, options))).toBe('CONFLICT')
    await app.close()
    await other.close()
  })

  // requirement: SDKLOG-REDELIVER
  it('go to another member of the group when theirs leaves before it has ended', async () => {
    const begun = deferred()
    const taken = deferred<[unknown, number]>()
    const agent = (work: (data: unknown, attempt: number) => unknown) =>
      defineAgent({
        name: 'a',
        topics: ['x'],
        group: 'g',
        onEvent: async (_, event) => void (await work(event.data, event.attempt)),
      })
    const { dial, ...there } = elsewhere()
    const options = { ...there, dial, graceMs: 0, onError: () => {} }
    const stuck = agent((data) => {
      begun.resolve()
      return new Promise(() => data)
    })
    const one = await serve({ ...options, agents: [stuck] })
    await one.emit('x', 'work', { ack: 'os' })
    await begun.promise
    const heir = agent((data, attempt) => taken.resolve([data, attempt]))
    const other = await serve({ ...options, agents: [heir] })
    await one.close()
    expect(await taken.promise).toEqual(['work', 2])
    await other.close()
  })

  // requirement: SDKLOG-BAD-INPUT
  it('that cannot be are refused by the name of what is wrong', async () => {
    await running([deaf], async (app) => {
      const refused = (options: object) =>
        app.emit('x', 1, options as EmitOptions).then(
          () => 'nothing',
          ({ code, field }) => `${code} ${field}`,
        )
      expect(await refused({ ack: 'tape' })).toBe('INVALID_PARAMS ack')
      expect(await refused({ qos: 'realtime', ack: 'os' })).toBe('INVALID_PARAMS qos')
      expect(await refused({ ack: 'os', id: 'i'.repeat(1000) })).toBe('INVALID_PARAMS id')
    })
  })
})
