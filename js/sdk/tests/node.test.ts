import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { barrier, contractNet, defineContractor } from '../src/collab/index.js'
import { type Connection, capability, connect, defineAgent, LoomError, serve } from '../src/node.js'
import { hasNode, RealNode } from './support/node.js'
import { codeOf, deferred, take } from './support/run.js'

const echo = defineAgent({ name: 'echo', topics: ['x'], onEvent: (_, event) => event.data })
const add = capability({
  name: 'math.add',
  effect: 'pure',
  run: (args) => {
    const { a, b } = args as { a: number; b: number }
    return a + b
  },
})
const count = capability({
  name: 'count',
  effect: 'pure',
  async *run() {
    for (let i = 0; i < 200; i++) yield i
  },
})
const meets = (name: string) =>
  defineAgent({
    name,
    topics: ['meet'],
    onEvent: (ctx) => barrier(ctx, 'ready', 2, { timeoutMs: 10_000 }),
  })
const bids = (name: string, score: number, execute: () => unknown) =>
  defineContractor({ name, topics: ['job'], bid: () => score, execute })

const agents = [
  echo,
  meets('ada'),
  meets('bob'),
  bids('good', 1, () => 'done'),
  bids('bad', 2, () => {
    throw new LoomError('EXHAUSTED', 'no')
  }),
]

// requirement: JS-NODE
describe.skipIf(!hasNode)('on a real node', () => {
  let node: RealNode
  beforeAll(async () => {
    node = await new RealNode().start()
  }, 60_000)
  afterAll(() => node.close())

  async function running(
    protocol: 'proto' | 'json',
    work: (app: Connection) => Promise<void>,
  ): Promise<void> {
    const { url, token } = node
    const onError = () => {}
    const app = await serve({ url, token, protocol, agents, capabilities: [add, count], onError })
    try {
      await work(app)
    } finally {
      await app.close()
    }
    expect(app.link).toBe('closed')
  }

  describe.each(['proto', 'json'] as const)('over %s', (protocol) => {
    it('events, requests and calls go both ways, whatever their size', async () => {
      await running(protocol, async (app) => {
        const large = 'Zürich 🧵'.repeat(40_000)
        const bytes = Uint8Array.from({ length: 300_000 }, (_, i) => i)
        expect((await app.request('x', large)).data === large).toBe(true)
        const same = Buffer.compare((await app.request('x', bytes)).data as Uint8Array, bytes)
        expect(same).toBe(0)
        expect(await app.tool(add, { a: 1, b: 2 })).toBe(3)
        // the node was killed by then: who offered it might come back
        const unknown = protocol === 'proto' ? 'NOT_FOUND' : 'PROVIDER_UNAVAILABLE'
        expect(await codeOf(app.tool('no.such'))).toBe(unknown)
        expect(await codeOf(app.request('nobody'))).toBe('UNAVAILABLE')
        expect(await codeOf(app.emit('loom.x'))).toBe('DENIED')
        const receipt = await app.emit('nobody', 1, { ack: 'disk' })
        expect(receipt.level).toBe('disk')
        expect(receipt.position).toBeTruthy()
        const names = (await app.agents()).map((agent) => agent.name)
        expect(names).toEqual(expect.arrayContaining(agents.map((agent) => agent.name)))
      })
    }, 60_000)

    it('streams and watches go on as they are read', async () => {
      await running(protocol, async (app) => {
        expect(await take(app.stream('count'), 200)).toHaveLength(200)
        const watch = await app.watch('w.>')
        for (let i = 0; i < 5; i++) await app.emit(`w.${i}`, i)
        const seen = await take(watch, 5)
        expect(seen.map((event) => event.data)).toEqual([0, 1, 2, 3, 4])
      })
    }, 60_000)

    it('barriers and contracts end as they do in memory', async () => {
      await running(protocol, async (app) => {
        const meetings = await app.requestMany('meet')
        expect(meetings.items.map((event) => event.data)).toEqual([
          { n: 2, members: expect.any(Array), complete: true },
          { n: 2, members: expect.any(Array), complete: true },
        ])
        const terms = { topic: 'job', bidTimeoutMs: 5000, timeoutMs: 20_000 }
        const award = await contractNet(app, 'fence', terms)
        expect(award).toMatchObject({ winner: 'default/good', result: 'done', reawards: 1 })
      })
    }, 60_000)

    // requirement: BRIDGE-CREDENTIAL
    it('who listens is told that the token was revoked, and its turns end', async () => {
      const { url, token } = node
      const admin = await connect({ url, token, protocol })
      const mine = Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString('base64url')
      const made = (await admin.tool('loom.node.tokens.create', {
        name: 'short',
        sha256: createHash('sha256').update(mine).digest('hex'),
        grants: { publish: ['>'], subscribe: ['>'] },
      })) as { id: string }
      const began = deferred()
      const ended = deferred<unknown>()
      const agent = defineAgent({
        name: `held-${protocol}`,
        topics: ['held'],
        onEvent: (ctx) => {
          began.resolve()
          ctx.signal.addEventListener('abort', () => ended.resolve(ctx.signal.reason))
          return ended.promise
        },
      })
      const app = await serve({ url, token: mine, protocol, agents: [agent], onError: () => {} })
      const watch = await app.watch('order.>')
      await app.emit('held')
      await began.promise
      const told = expect(watch.next()).rejects.toMatchObject({
        code: 'UNAUTHENTICATED',
        message: expect.stringContaining('revoked'),
      })
      await admin.tool('loom.node.tokens.revoke', { id: made.id })
      await told
      expect(await ended.promise).toMatchObject({ code: 'UNAUTHENTICATED' })
      await expect(watch.next()).rejects.toMatchObject({ code: 'UNAUTHENTICATED' })
      await watch.close()
      await app.close()
      await admin.close()
    }, 20_000)

    // requirement: SESSION-AGAIN
    it('a node that is killed loses no durable event, and is found again', async () => {
      const seen: number[] = []
      const all = 60
      const done = deferred()
      const again = deferred()
      let began = 0
      const sink = defineAgent({
        name: `sink-${protocol}`,
        topics: [`kept.${protocol}`],
        onEvent: (_, event) => {
          seen.push(event.data as number)
          if (new Set(seen).size === all) done.resolve()
        },
      })
      const { url, token } = node
      const app = await serve({
        url,
        token,
        protocol,
        agents: [sink],
        onLink: ({ state, resumed }) => {
          if (state === 'up' && resumed === false && ++began === 2) again.resolve()
        },
      })
      const emits: Promise<unknown>[] = []
      for (let i = 0; i < all; i++) {
        const options = { ack: 'disk', key: 'k', id: `${protocol}-${i}` } as const
        emits.push(app.emit(`kept.${protocol}`, i, options))
        if (i === all / 2) {
          await emits[0]
          await node.stop('SIGKILL')
          await node.start()
        }
      }
      await Promise.all(emits)
      await done.promise
      await again.promise
      // At least once, and in the order of their lane where each came first.
      expect([...new Set(seen)]).toEqual(Array.from({ length: all }, (_, i) => i))
      await app.close()
    }, 60_000)

    it('a Unix socket is as good, also after the node was killed', async () => {
      const { socket, token } = node
      const again = deferred()
      let began = 0
      const app = await serve({
        url: `unix://${socket}`,
        token,
        protocol,
        agents: [echo],
        onLink: ({ state, resumed }) => {
          if (state === 'up' && resumed === false && ++began === 2) again.resolve()
        },
      })
      const large = Uint8Array.from({ length: 300_000 }, (_, i) => i)
      expect((await app.request('x', large)).data).toEqual(large)
      await node.stop('SIGKILL')
      await node.start()
      await again.promise
      expect((await app.request('x', 'again', { wait: true })).data).toBe('again')
      await app.close()
    }, 60_000)
  })
})

// requirements: JS-NODE, JS-CONNECT
describe.skipIf(!hasNode)('on a node with TLS', () => {
  it('whom it was told to trust is trusted, and nobody else', async () => {
    const node = new RealNode()
    const openssl = (...words: string[]) =>
      execFileSync('openssl', words, { cwd: node.folder, stdio: 'ignore' })
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
    const leaf = ['-addext', 'basicConstraints=critical,CA:FALSE', '-addext']
    openssl(
      'req',
      '-x509',
      ...key,
      '-keyout',
      'k.pem',
      '-out',
      'c.pem',
      '-subj',
      '/CN=node',
      ...leaf,
      'subjectAltName=DNS:localhost',
    )
    const ca = readFileSync(join(node.folder, 'c.pem'))
    try {
      const { token, url } = await node.start('--tls-cert', 'c.pem', '--tls-key', 'k.pem')
      const port = url.split(':').at(-1)
      for (const at of [`wss://localhost:${port}`, `looms://localhost:${port}`]) {
        const app = await serve({ url: at, token, ca, agents: [echo] })
        expect((await app.request('x', 'hello')).data).toBe('hello')
        await app.close()
      }
      const stranger = { url: `wss://localhost:${port}`, token, timeoutMs: 1500 }
      await expect(connect(stranger)).rejects.toMatchObject({
        code: 'UNAVAILABLE',
        message: expect.stringMatching(`at wss://localhost:${port}: .*self-signed certificate`),
        hint: expect.stringContaining('whom you trust'),
      })
    } finally {
      await node.close()
    }
  }, 60_000)
})
