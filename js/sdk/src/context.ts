// The Context: what a handler may do. One is made per turn, and it is dead when its turn has ended.

import { type Capability, isCapability } from './capability.js'
import { wireOptions } from './codec/options.js'
import { payloadFor, valueIn } from './codec/payload.js'
import { Cut } from './cut.js'
import { checkMs, errorOf, invalid, LoomError, oneOf } from './errors.js'
import { type AckLevel, Event, eventOf, type Qos, type Receipt } from './event.js'
import { CODES } from './gen/errors.js'
import type { Envelope, Payload, Publish } from './gen/frames.js'
import { STREAM_CHUNKS } from './gen/limits.js'
import type { Ends } from './link/link.js'
import { around, type ToolCall } from './middleware.js'
import type { Host } from './runtime/host.js'
import { type Check, checkedResult, checkOf, type Output, type Schema } from './schema.js'
import { checkCapabilityName, checkText, checkTopic, matches } from './topics.js'
import { Watch } from './watch.js'

const TIMEOUT_MS = 30_000

/** What an emit may ask for besides topic and data. */
export interface EmitOptions {
  qos?: Qos
  /** Orders events, and picks their lane. */
  key?: string
  /** Makes the event durable: what it must have reached before `emit` returns. */
  ack?: AckLevel
  /** A part of a millisecond is rounded, as in all times that options name. */
  ttlMs?: number
  headers?: Record<string, string>
  /** The conversation it belongs to; by default that of the turn. */
  thread?: string
  /** The publisher's own: a second event with it is the same one. */
  id?: string
  labels?: string[]
  signal?: AbortSignal
}

export interface RequestOptions<S extends Schema | undefined = undefined> {
  timeoutMs?: number
  /** Waits until somebody hears it. */
  wait?: boolean
  key?: string
  thread?: string
  /** What the answer must be. */
  schema?: S
  signal?: AbortSignal
}

export interface ManyOptions {
  /** Ends with so many answers; by default with all. */
  firstK?: number
  timeoutMs?: number
  signal?: AbortSignal
}

/** What came back to a request to many, in the order it came. */
export interface Replies {
  items: Event[]
  failures: LoomError[]
  /** How many who heard it have not answered. */
  missing: number
}

export interface ToolOptions<S extends Schema | undefined = undefined> {
  /** By default what the capability declares, or 30 s for a name. */
  timeoutMs?: number
  /** Calls with one key have one effect and one result. */
  key?: string
  version?: string
  /** What the result must be. */
  schema?: S
  signal?: AbortSignal
}

/** One agent, as it registered itself, and how it fares now. */
export interface AgentInfo {
  name: string
  filters: string[]
  group: string
  concurrency: number
  description?: string
  capabilities?: string[]
  health: string
  queued: number
  leased: number
}

/** One capability of one provider, as it registered itself, and how that fares now. */
export interface CapabilityInfo {
  name: string
  version: string
  effect: 'pure' | 'idempotent' | 'probeable' | 'unsafe'
  /** In seconds. */
  timeout: number
  cost: number
  tags: string[]
  description: string
  input: Record<string, unknown>
  output: Record<string, unknown>
  streams: boolean
  provider: string
  health: string
}

/** A conversation that one has joined. `close` it when done; `await using` does. */
export interface Thread extends AsyncDisposable {
  readonly id: string
  readonly events: Watch
  broadcast(data: unknown): Promise<Receipt>
  close(): Promise<void>
}

/** How a request to many went. */
interface Summary {
  matched?: number
  failures?: Record<string, unknown>[]
}

/** The turn or invocation that a context belongs to; without one it is that of an app or an agent. */
export interface Scope {
  readonly host: Host
  readonly name: string
  /** The registration that it sends for; 0: the app itself. */
  readonly sender: number
  readonly lease: number
  readonly life: number
  readonly envelope: Envelope | undefined
  readonly wantsReply: boolean
  /** When the one who asked waits no more, on the clock of `performance.now()`. */
  readonly deadline: number | undefined
  readonly cut: Cut
  readonly effectId: string | undefined
  isOver: boolean
}

/** What a handler may do: publish, ask, call, listen. */
export class Context {
  /** For functions over contexts: not for handlers. */
  readonly scope: Scope

  constructor(scope: Scope) {
    this.scope = scope
  }

  /** Name of the agent, or of the app outside a handler. */
  get agent(): string {
    return this.scope.name
  }

  get namespace(): string {
    return this.scope.host.link.namespace
  }

  /** The conversation of this turn; undefined outside a handler. */
  get threadId(): string | undefined {
    const { envelope } = this.scope
    return envelope && (envelope.thread_name || envelope.thread_id || envelope.id)
  }

  get runId(): string | undefined {
    const { envelope } = this.scope
    return envelope && (envelope.run_id || envelope.id)
  }

  /** When the one who asked waits no more, on the clock of `performance.now()`. */
  get deadline(): number | undefined {
    return this.scope.deadline
  }

  /** Names the change outside that this invocation is to make, the same over attempts. */
  get effectId(): string | undefined {
    return this.scope.effectId
  }

  /** Aborted when nobody wants this turn any more, or the app stops. */
  get signal(): AbortSignal {
    return this.scope.cut.signal
  }

  /** Lines that are also events on `loom.log.{level}`, in this turn's run. */
  get log(): { info(text: string): void; warning(text: string): void; error(text: string): void } {
    const say = (level: string) => (text: string) => {
      const { host, sender, lease, name } = this.#live()
      const data = { message: String(text), logger: `loom.agent.${name}` }
      host.link.tell({ report: { sender, lease, level, data } })
    }
    return { info: say('info'), warning: say('warning'), error: say('error') }
  }

  // -- publishing -----------------------------------------------------------------------------------

  /**
   * Publishes `data` under `topic`. Batched (the default) waits for room, realtime replaces what is
   * oldest, background is refused. Throws INVALID_PARAMS, EXHAUSTED, DENIED, NOT_SUPPORTED, CONFLICT.
   */
  async emit(topic: string, data?: unknown, options: EmitOptions = {}): Promise<Receipt> {
    const { host, sender, lease } = this.#live()
    const publish: Publish = { sender, lease, topic: checkTopic(topic), payload: payloadFor(data) }
    if (options.qos !== undefined) publish.qos = oneOf(QOS, options.qos, 'qos')
    if (options.ack !== undefined) publish.ack = oneOf(ACK_LEVELS, options.ack, 'ack')
    if (options.qos === 'realtime' && (options.ack ?? 'accepted') !== 'accepted') {
      throw invalid('qos', 'a realtime event cannot be durable', 'use batched')
    }
    const more = wireOptions(options)
    if (more !== undefined) publish.options = more
    return host.link.publish(publish, this.#until(options.signal))
  }

  /** Answers the event of this turn. Throws INVALID_PARAMS where nothing was asked. */
  reply(data?: unknown): void {
    const { host, lease, life, wantsReply } = this.#live()
    if (!wantsReply) {
      throw invalid('reply', 'nothing was asked: this event wants no reply', 'see event.wantsReply')
    }
    host.link.work(lease, life, { reply: { lease, payload: payloadFor(data) } })
  }

  // -- asking ---------------------------------------------------------------------------------------

  /**
   * Publishes and waits for the first reply. Throws UNAVAILABLE where nobody listens or all decline,
   * HANDLER_ERROR, TIMEOUT, DEADLOCK.
   */
  async request<S extends Schema | undefined = undefined>(
    topic: string,
    data?: unknown,
    options: RequestOptions<S> = {},
  ): Promise<Event<Output<S>>> {
    const answers: Envelope[] = []
    await this.#ask(topic, data, options, 1, answers)
    const [envelope] = answers
    if (envelope === undefined) throw new LoomError('UNAVAILABLE', 'all have declined')
    const check = checkOf(options.schema, 'output')
    const value = await check.validate(valueIn(envelope.payload), 'data')
    return new Event(envelope, value as Output<S>)
  }

  /** Publishes and collects replies. What fails or is missing is part of the result. */
  async requestMany(topic: string, data?: unknown, options: ManyOptions = {}): Promise<Replies> {
    const { firstK, ...rest } = options
    if (firstK !== undefined && (!Number.isInteger(firstK) || firstK < 1)) {
      throw invalid('firstK', `firstK is ${firstK}`, 'give a whole number from 1 on')
    }
    const answers: Envelope[] = []
    let summary: Summary
    try {
      summary = ((await this.#ask(topic, data, rest, firstK ?? 0, answers)) ?? {}) as Summary
    } catch (error) {
      if (error instanceof LoomError && error.code === 'UNAVAILABLE') {
        return { items: [], failures: [], missing: 0 }
      }
      throw error
    }
    const failures = (summary.failures ?? []).map((one) =>
      errorOf(CODES[one['code'] as keyof typeof CODES] ?? 0, one),
    )
    const matched = summary.matched ?? answers.length
    const missing = Math.max(0, matched - answers.length - failures.length)
    return { items: answers.map(eventOf), failures, missing }
  }

  async #ask(
    topic: string,
    data: unknown,
    options: RequestOptions<Schema | undefined>,
    firstK: number,
    answers: Envelope[],
  ): Promise<unknown> {
    const { host, sender, lease } = this.#live()
    const request = {
      sender,
      lease,
      topic: checkTopic(topic),
      payload: payloadFor(data),
      timeout_ms: checkMs(options.timeoutMs ?? TIMEOUT_MS),
      first_k: firstK,
      wait: options.wait === true,
    }
    const more = wireOptions(options)
    const outcome = await host.link.call(
      (call) => ({ request: { call, ...request, ...(more && { options: more }) } }),
      this.#until(options.signal),
      {
        answer: (event) => void answers.push(event),
        // To many: who heard it, and how that went, whether or not there was an answer in time.
        orElse: ({ json }) => firstK !== 1 && (json as Summary | undefined)?.matched !== undefined,
      },
    )
    return outcome.json
  }

  // -- calling --------------------------------------------------------------------------------------

  /**
   * Calls a capability and waits for its result. Throws NOT_FOUND, PROVIDER_UNAVAILABLE,
   * INVALID_PARAMS, TIMEOUT, INDETERMINATE (it was started, may have changed something outside, and
   * gave no result), CAPABILITY_ERROR.
   */
  async tool<I, O>(
    capability: Capability<I, O>,
    args: I,
    options?: ToolOptions<Schema | undefined>,
  ): Promise<O>
  async tool<S extends Schema | undefined = undefined>(
    name: string,
    args?: Record<string, unknown>,
    options?: ToolOptions<S>,
  ): Promise<Output<S>>
  async tool(
    capability: Capability | string,
    args: unknown = {},
    options: ToolOptions<Schema | undefined> = {},
  ): Promise<unknown> {
    const [call, check] = this.#callOf(capability, args, options, false)
    return around(this.scope.host.middleware, async (_, item: ToolCall) => {
      const payload = await this.#make(item, 0, this.#until(options.signal))
      return checkedResult(check, valueIn(payload), item.name)
    })(this, call)
  }

  /** Calls a capability that answers in chunks; leaving the loop cancels what still runs. */
  async *stream(
    capability: Capability | string,
    args: unknown = {},
    options: ToolOptions<undefined> = {},
  ): AsyncGenerator<unknown, void, undefined> {
    const [call] = this.#callOf(capability, args, options, true)
    const made = around(this.scope.host.middleware, async (_, item: ToolCall) =>
      this.#chunks(item, options.signal),
    )
    yield* (await made(this, call)) as AsyncIterable<unknown>
  }

  async *#chunks(
    item: ToolCall,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<unknown, void, undefined> {
    const { link } = this.scope.host
    const left = new Cut()
    const come: unknown[] = []
    let wake = (): void => {}
    let number = 0
    let isOver = false
    const outcome = this.#make(item, STREAM_CHUNKS, [left, ...this.#until(signal)], {
      chunk: (payload) => {
        come.push(valueIn(payload))
        wake()
      },
      begun: (call) => {
        number = call
      },
    }).finally(() => {
      isOver = true
      wake()
    })
    outcome.catch(() => {}) // thrown below, where it is waited for
    try {
      for (let taken = 1; ; taken++) {
        while (come.length === 0 && !isOver) {
          await new Promise<void>((resolve) => {
            wake = resolve
          })
        }
        if (come.length === 0) break
        yield come.shift()
        if (taken % (STREAM_CHUNKS / 4) === 0) link.grant(number, taken + STREAM_CHUNKS)
      }
      await outcome
    } finally {
      left.cut(new LoomError('CANCELLED', 'the stream was left'))
    }
  }

  #callOf(
    capability: Capability | string,
    args: unknown,
    options: ToolOptions<Schema | undefined>,
    streamed: boolean,
  ): [ToolCall, Check] {
    this.#live()
    const declared = isCapability(capability) ? capability : undefined
    const name = checkCapabilityName(declared?.name ?? capability, 'capability')
    if (typeof args !== 'object' || args === null || Array.isArray(args)) {
      throw invalid('args', 'arguments are an object', 'give { name: value }')
    }
    const call: ToolCall = {
      kind: 'call',
      name,
      args: args as Record<string, unknown>,
      timeoutMs: checkMs(options.timeoutMs ?? declared?.timeoutMs ?? TIMEOUT_MS),
      version: options.version ?? declared?.version,
      key: options.key,
      streamed,
    }
    if (options.schema !== undefined) return [call, checkOf(options.schema, 'output')]
    const check = declared?.outputCheck ?? checkOf(undefined, 'output')
    return [call, declared?.streams === true ? eachOf(check) : check]
  }

  #make(
    item: ToolCall,
    credit: number,
    ends: Ends,
    more: {
      chunk?: (payload: Payload) => void
      begun?: (call: number) => void
    } = {},
  ): Promise<Payload> {
    const { host, sender, lease } = this.#live()
    const body = {
      sender,
      lease,
      capability: item.name,
      version: checkText(item.version ?? '', 'version'),
      payload: payloadFor(item.args, 'args'),
      timeout_ms: checkMs(item.timeoutMs),
      key: checkText(item.key ?? '', 'key'),
      credit,
    }
    const { chunk, begun } = more
    const make = (call: number) => ({ call: { call, ...body } })
    return host.link.call(make, ends, chunk === undefined ? {} : { chunk }, begun)
  }

  // -- listening ------------------------------------------------------------------------------------

  /**
   * Listens to events that match any of the filters, from now on: `for await (const event of await
   * ctx.watch('a.>'))`. By default the newest stay: one that is slow loses the oldest, counted in
   * `dropped`; with `qos: 'batched'` those who publish wait for it.
   */
  async watch(
    filters: string | readonly string[],
    options: { qos?: Qos; signal?: AbortSignal } = {},
  ): Promise<Watch> {
    const { host } = this.#live()
    const wanted = typeof filters === 'string' ? [filters] : filters
    const qos = oneOf(QOS, options.qos ?? 'realtime', 'qos')
    return Watch.open(host.link, wanted, qos, this.#until(options.signal))
  }

  /** Joins a conversation: hears what is said in it, and speaks in it. */
  async joinThread(id: string, options: { signal?: AbortSignal } = {}): Promise<Thread> {
    const events = await this.watch(`thread.${id}.>`, { qos: 'batched', ...options })
    const close = () => events.close()
    return {
      id,
      events,
      broadcast: (data) => this.emit(`thread.${id}.broadcast`, data, { thread: id }),
      close,
      [Symbol.asyncDispose]: close,
    }
  }

  // -- the directory --------------------------------------------------------------------------------

  /** The agents that are there now, of those asked for. */
  async agents(
    wanted: { name?: string; topic?: string; capability?: string } = {},
  ): Promise<AgentInfo[]> {
    const { name, topic, capability } = wanted
    const all = await this.#directory<AgentInfo>('agent')
    return all.filter(
      (one) =>
        (name === undefined || name === one.name || name === `${this.namespace}/${one.name}`) &&
        (topic === undefined || one.filters.some((filter) => matches(filter, topic))) &&
        (capability === undefined || one.capabilities?.includes(capability) === true),
    )
  }

  /** The capabilities that are there now, of those whose name matches a filter. */
  async capabilities(pattern = '>'): Promise<CapabilityInfo[]> {
    const all = await this.#directory<CapabilityInfo>('capability')
    return all.filter((one) => matches(pattern, one.name))
  }

  #directory<T>(kind: 'agent' | 'capability'): Promise<T[]> {
    const found: T[] = []
    return this.#live().host.link.query(
      (ref) => ({ directory: { ref, kind } }),
      ({ entries }) => {
        found.push(...((entries?.entries ?? []) as T[]))
        return entries?.last === true ? found : undefined
      },
    )
  }

  // -- inside ---------------------------------------------------------------------------------------

  /** Ends with `signal`, and with the turn. */
  #until(signal: AbortSignal | undefined): Ends {
    return [signal, this.scope.cut]
  }

  #live(): Scope {
    const { scope } = this
    if (scope.isOver) {
      throw new LoomError('FENCED', 'this turn is over', {
        field: 'ctx',
        hint: 'use a context only while its handler runs',
      })
    }
    scope.cut.throwIfAborted()
    return scope
  }
}

/** What checks a list of chunks, where `check` is that of one. */
function eachOf(check: Check): Check {
  const validate = (value: unknown, field: string): Promise<unknown[]> =>
    Promise.all((value as unknown[]).map((one, index) => check.validate(one, `${field}.${index}`)))
  return { json: check.json, validate }
}

const QOS: readonly Qos[] = ['realtime', 'batched', 'background']
const ACK_LEVELS: readonly AckLevel[] = ['accepted', 'os', 'disk']
