// What runs in the browser: an app on the built SDK, and what the test asks of it.

import {
  type Connection,
  capability,
  connect,
  defineAgent,
  type LinkChange,
  LoomError,
  type Protocol,
  serve,
} from '@loomos/sdk'

export interface Place {
  url: string
  token: string
  protocol: Protocol
}

let running: Connection | undefined
const links: LinkChange[] = []
const numbers: number[] = []
let heardOne = (): unknown => undefined

/** The app, which `attach` has started. */
function app(): Connection {
  if (running === undefined) throw new Error('nothing is attached')
  return running
}

const where = capability({ name: 'page.where', effect: 'pure', run: () => location.origin })

const greeter = defineAgent({
  name: 'greeter',
  topics: ['page.greet'],
  onEvent: async (ctx, { data }) =>
    `hello ${data}, twice 4 is ${await ctx.tool('py.twice', { n: 4 })}`,
})

const sink = defineAgent({
  name: 'sink',
  topics: ['page.number'],
  onEvent: (_, { data }) => {
    numbers.push(data as number)
    heardOne()
  },
})

const trial = {
  /** Offers agents and a capability at a node. */
  async attach(place: Place): Promise<string> {
    links.length = numbers.length = 0
    const onLink = (change: LinkChange): void => void links.push(change)
    running = await serve({
      ...place,
      name: 'page',
      agents: [greeter, sink],
      capabilities: [where],
      onLink,
    })
    return running.link
  },

  /** Asks the agent in Python, which asks the agent here. */
  async ask(name: string): Promise<unknown> {
    return (await app().request('py.meet', name)).data
  },

  /** Publishes and hears it. */
  async hear(): Promise<unknown> {
    const watch = await app().watch('page.heard.*')
    await app().emit('page.heard.once', { bytes: 'Zürich 🧵' })
    for await (const event of watch) return [event.topic, event.data, event.sender]
    return undefined
  },

  /** What comes back as the bytes that went. */
  async bytes(): Promise<boolean> {
    const sent = Uint8Array.from({ length: 300_000 }, (_, i) => i)
    const { data } = await app().request('py.same', sent)
    return data instanceof Uint8Array && data.every((byte, i) => byte === i % 256)
  },

  call: (name: string, args: Record<string, unknown>): Promise<unknown> => app().tool(name, args),

  /** All chunks of a capability in Python. */
  async stream(to: number): Promise<unknown[]> {
    const chunks: unknown[] = []
    for await (const chunk of app().stream('py.count', { to })) chunks.push(chunk)
    return chunks
  },

  /** Publishes `count` numbers in one lane, and returns what the agent here has heard of them. */
  async publish(count: number): Promise<number[]> {
    const all = new Promise<void>((resolve) => {
      heardOne = () => numbers.length >= count && resolve()
    })
    for (let n = 0; n < count; n++) await app().emit('page.number', n, { key: 'k' })
    await all
    return numbers
  },

  heard: (): number => numbers.length,

  links: (): LinkChange[] => links,

  async close(): Promise<string> {
    await running?.close()
    return running?.link ?? 'none'
  },

  /** The code that `work` fails with. */
  async code(work: 'call' | 'connect', ...args: unknown[]): Promise<string> {
    try {
      if (work === 'call') await trial.call(...(args as [string, Record<string, unknown>]))
      else await (await connect(args[0] as Place)).close()
      return 'none'
    } catch (error) {
      return error instanceof LoomError
        ? `${error.code} ${error.field ?? ''}`.trim()
        : String(error)
    }
  },

  /** How the first try to connect ends. */
  async refused(place: Place): Promise<string> {
    const stop = new AbortController()
    const onLink = ({ state }: LinkChange): void => {
      if (state !== 'connecting') stop.abort(new Error(state))
    }
    try {
      await (await connect({ ...place, onLink, signal: stop.signal })).close()
      return 'let in'
    } catch (error) {
      return (error as Error).message
    }
  },
}

export type Trial = typeof trial
Object.assign(globalThis, { trial })
