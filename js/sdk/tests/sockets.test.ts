import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { capability, connect, defineAgent, type LinkChange, serve } from '../src/node.js'
import { codeOf, deferred, take } from './support/run.js'
import { SocketNode } from './support/server.js'

const echo = defineAgent({ name: 'echo', topics: ['x'], onEvent: (_, event) => event.data })
const count = capability({
  name: 'count',
  effect: 'pure',
  async *run() {
    for (let i = 0; i < 200; i++) yield i
  },
})

let folder = ''
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'loom-js-'))
})
afterEach(() => {
  rmSync(folder, { recursive: true })
  vi.unstubAllEnvs()
})

describe.each(['proto', 'json'] as const)('a WebSocket with %s', (protocol) => {
  it('carries events, requests, streams and bytes', async () => {
    const node = await new SocketNode().listen()
    const app = await serve({
      url: node.url,
      token: 't',
      protocol,
      agents: [echo],
      capabilities: [count],
    })
    expect((await app.request('x', { text: 'Zürich 🧵' })).data).toEqual({ text: 'Zürich 🧵' })
    const bytes = Uint8Array.from({ length: 5000 }, (_, i) => i)
    expect((await app.request('x', bytes)).data).toEqual(bytes)
    expect(await take(app.stream('count'), 200)).toHaveLength(200)
    expect(new Set(node.protocols)).toEqual(new Set([`loom.v1.${protocol}`]))
    // What is not JSON goes as it is: JSON has texts and, beside them, bytes.
    expect(node.counts.binary > 0 && (protocol === 'proto' || node.counts.text > 0)).toBe(true)
    await app.close()
    await node.close()
  })

  // requirement: SESSION-CUT
  it('that is cut again and again loses nothing and repeats nothing', async () => {
    const node = await new SocketNode().listen()
    const seen: number[] = []
    const done = deferred()
    const all = 300
    const sink = defineAgent({
      name: 'sink',
      topics: ['n'],
      onEvent: (_, event) => {
        seen.push(event.data as number)
        if (seen.length % 40 === 0) node.cut()
        if (seen.length === all) done.resolve()
      },
    })
    const app = await serve({ url: node.url, token: 't', protocol, agents: [sink] })
    const emits: Promise<unknown>[] = []
    for (let i = 0; i < all; i++) {
      emits.push(app.emit('n', i, { key: 'k' }))
      if (i % 10 === 0) await new Promise((resolve) => setImmediate(resolve))
    }
    await done.promise
    await Promise.all(emits)
    expect(seen).toEqual(Array.from({ length: all }, (_, i) => i))
    await app.close()
    await node.close()
  })
})

describe('in Node', () => {
  it('a node is reached over a Unix socket', async () => {
    const node = await new SocketNode().listen(join(folder, 'loom.sock'))
    const app = await serve({ url: node.url, token: 't', agents: [echo] })
    expect((await app.request('x', 1)).data).toBe(1)
    await app.close()
    await node.close()
  })

  it('a node is found by LOOM_URL and LOOM_TOKEN', async () => {
    const node = await new SocketNode({ tokens: { good: 'default' } }).listen()
    vi.stubEnv('LOOM_URL', node.url)
    vi.stubEnv('LOOM_TOKEN', 'bad')
    expect(await codeOf(connect())).toBe('UNAUTHENTICATED')
    vi.stubEnv('LOOM_TOKEN', 'good')
    const app = await connect()
    expect(app.link).toBe('up')
    await app.close()
    await node.close()
  })

  it('the node of this user is found by its file, which nobody else may read', async () => {
    vi.stubEnv('LOOM_HOME', folder)
    vi.stubEnv('LOOM_URL', '')
    expect(await codeOf(connect())).toBe('NOT_FOUND')
    const node = await new SocketNode({ tokens: { good: 'default' } }).listen()
    const token_file = join(folder, 'token')
    writeFileSync(token_file, 'good\n', { mode: 0o600 })
    const file = { urls: [node.url], token_file, pid: process.pid, boot: '', data: null }
    mkdirSync(join(folder, 'run'))
    writeFileSync(join(folder, 'run', 'node.json'), JSON.stringify(file), { mode: 0o600 })
    const app = await connect()
    expect(app.namespace).toBe('default')
    const elsewhere = node.url.replace('127.0.0.1', 'localhost')
    await (await connect({ url: elsewhere })).close()
    expect(await codeOf(connect({ url: 'ws://example.org' }))).toBe('UNAUTHENTICATED')
    chmodSync(token_file, 0o644)
    expect(await codeOf(connect())).toBe('DENIED')
    await app.close()
    await node.close()
  })

  it('a node that is not there is tried again, until the signal ends it', async () => {
    const gone = await new SocketNode().listen()
    await gone.close()
    const controller = new AbortController()
    const tried: (number | undefined)[] = []
    const onLink = ({ state, retryMs }: LinkChange): void => {
      if (state === 'lost') tried.push(retryMs)
      if (tried.length === 3) controller.abort(new Error('enough'))
    }
    const { signal } = controller
    await expect(connect({ url: gone.url, token: 't', signal, onLink })).rejects.toThrow('enough')
    expect(tried).toHaveLength(3)
  })

  // requirement: JS-CONNECT
  it('a node that does not answer in time is named, with what went wrong last', async () => {
    const gone = await new SocketNode().listen()
    await gone.close()
    const states: string[] = []
    const onLink = ({ state }: LinkChange): void => void states.push(state)
    const unheard = { url: gone.url, token: 't', timeoutMs: 400, onLink }
    await expect(connect(unheard)).rejects.toMatchObject({
      code: 'UNAVAILABLE',
      message: expect.stringMatching(/no node answers at ws:\/\/127.0.0.1:\d+: .*ECONNREFUSED/),
      field: 'url',
      limit: 'timeoutMs',
      hint: expect.stringContaining('loom up'),
    })
    expect(states.filter((state) => state === 'lost').length).toBeGreaterThan(1)
    expect(states.at(-1)).toBe('closed')
    expect(await codeOf(serve({ ...unheard, timeoutMs: 1, agents: [echo] }))).toBe('UNAVAILABLE')
    expect(await codeOf(connect({ ...unheard, timeoutMs: -1 }))).toBe('INVALID_PARAMS')
  })

  it('what goes to another machine in the clear is masked, and nothing else', async () => {
    const masks: number[] = []
    const node = new SocketNode()
    node.onBytes = (bytes) => {
      // Behind the request of HTTP each message begins with two bytes, its length if it has more
      // than 125, and the mask.
      if ((bytes[0] as number) === 0x82) {
        masks.push(bytes.readUInt32BE(((bytes[1] as number) & 0x7f) < 126 ? 2 : 4))
      }
    }
    await node.listen()
    const masked = async (url: string): Promise<boolean> => {
      masks.length = 0
      await (await connect({ url, token: 't' })).close()
      expect(masks.length).toBeGreaterThan(0)
      return masks.some((mask) => mask !== 0)
    }
    expect(await masked(node.url)).toBe(false)
    expect(await masked(node.url.replace('127.0.0.1', 'localhost'))).toBe(false)
    expect(await masked(node.url.replace('127.0.0.1', '0.0.0.0'))).toBe(true) // any name but those
    await node.close()
  })

  // requirement: JS-CONNECT
  it('a node that says nothing is not waited for longer', async () => {
    const mute = createServer((socket) => void socket.resume())
    await new Promise<void>((resolve) => void mute.listen(0, '127.0.0.1', resolve))
    const { port } = mute.address() as AddressInfo
    const url = `ws://127.0.0.1:${port}`
    await expect(connect({ url, token: 't', timeoutMs: 100 })).rejects.toMatchObject({
      code: 'UNAVAILABLE',
      message: `no node answers at ${url}: nothing came`,
    })
    await new Promise((resolve) => mute.close(resolve))
  })

  // requirement: JS-CONNECT
  it('a node that comes up in time is connected to', async () => {
    const path = join(folder, 'late.sock')
    const node = new SocketNode()
    let listening: Promise<unknown> | undefined
    const onLink = ({ state }: LinkChange): void => {
      if (state === 'lost') listening ??= node.listen(path)
    }
    const app = await connect({ url: `unix://${path}`, token: 't', onLink })
    await listening
    expect(app.link).toBe('up')
    await app.close()
    await node.close()
  })
})
