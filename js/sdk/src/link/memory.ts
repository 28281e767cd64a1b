// A node in memory, for the tests of users: events, requests, capabilities, streams, the directory.
// It speaks the same frames as a real one. It has no log: nothing is durable, and nothing outlives it.

import { decodeJson, encodeJson, readJson } from '../codec/json.js'
import { bytesIn, sizeOf } from '../codec/payload.js'
import { invalid, LoomError, toWire } from '../errors.js'
import { CODES } from '../gen/errors.js'
import type {
  Call,
  Envelope,
  Frame,
  Hello,
  Packet,
  Payload,
  Provide,
  Publish,
  Qos,
  Register,
  Request,
} from '../gen/frames.js'
import {
  AGENT_CONCURRENCY,
  HEARTBEAT_MS,
  HOPS,
  PAYLOAD_BYTES,
  QUEUE_ITEMS,
  SESSION_BYTES,
  SESSION_FRAMES,
  SESSION_KEEP_MS,
} from '../gen/limits.js'
import { Channel } from '../session/channel.js'
import { checkFilters, checkTopic, matches } from '../topics.js'
import { uuid } from '../uuid.js'
import type { Dial, Ends } from './carrier.js'

const KEPT_KEYS = 4096 // outcomes of keyed calls, and ids of publishers, the oldest forgotten first

/** What a memory node is asked for. */
export interface MemoryNodeOptions {
  /** Credentials and the namespace of each; without any, all are let in. */
  tokens?: Record<string, string>
}

/** One subscription: an agent or a stream. */
interface Listener {
  session: NodeSession
  handle: number
  filters: readonly string[]
  group: string | undefined
  name: string
  qos: Qos
  out: number
  info: Record<string, unknown>
  lanes: Map<string, { number: number; out: number }>
}

interface Provider {
  session: NodeSession
  handle: number
  frame: Provide
  running: number
  waiting: Job[]
}

/** A delivery or an invocation that is out. */
interface Lease {
  envelope: Envelope
  listener?: Listener
  lane?: string
  pending?: Pending
  job?: Job
}

/** A request that waits. */
interface Pending {
  session: NodeSession
  call: number
  request: Request
  envelope: Envelope
  open: number
  answered: number
  failures: Record<string, unknown>[]
  matched: number
  timer: ReturnType<typeof setTimeout>
}

/** A call that waits, and those that have joined it. */
interface Job {
  envelope: Envelope
  frame: Call
  callers: { session: NodeSession; call: number }[]
  provider: Provider | undefined
  lease: number | undefined
  timer: ReturnType<typeof setTimeout>
  key: string
}

type Kept = { args: string; code: number; payload: Payload }

/** A node in memory. Give `node.dial` to `serve` and `connect` as their `dial`. */
export class MemoryNode {
  /** How clients of this node connect. */
  readonly dial: Dial
  boot: string = uuid().replaceAll('-', '')
  /** Events that found no room, and errors that nobody was told of. */
  readonly counts: { dropped: number; failed: number } = { dropped: 0, failed: 0 }
  readonly #tokens: Record<string, string> | undefined
  readonly #sessions: Map<string, NodeSession> = new Map()
  readonly #spaces: Map<string, Space> = new Map()

  constructor(options: MemoryNodeOptions = {}) {
    this.#tokens = options.tokens
    this.dial = Object.assign((ends: Ends) => this.#connect(ends), { isWhole: true })
  }

  /** Ends all sessions. */
  close(): void {
    for (const session of this.#sessions.values()) session.end()
    this.#sessions.clear()
  }

  /** Forgets all sessions, as a node does that is killed and started again. */
  forget(): void {
    for (const session of [...this.#sessions.values()]) {
      session.end()
      session.cut('the node was killed')
    }
    this.#sessions.clear()
    this.boot = uuid().replaceAll('-', '')
  }

  #connect(ends: Ends): ReturnType<Dial> {
    let session: NodeSession | undefined
    let isOver = false
    const line: Line = {
      send: (packet) => {
        const copied = copy(packet)
        queueMicrotask(() => isOver || ends.received(copied))
      },
      close: (why) => {
        if (isOver) return
        queueMicrotask(() => {
          if (isOver) return
          isOver = true
          ends.closed(why)
        })
      },
    }
    queueMicrotask(() => isOver || ends.opened())
    return {
      isFull: false,
      send: (packet) => {
        const copied = copy(packet)
        queueMicrotask(() => {
          if (isOver) return
          if (session === undefined) session = this.#greet(copied, line)
          else session.received(copied, line)
        })
      },
      close: () => {
        isOver = true
        session?.lost(line)
      },
    }
  }

  #greet(packet: Packet, line: Line): NodeSession | undefined {
    const hello = packet.frames?.[0]?.hello
    try {
      if (hello === undefined) throw invalid('hello', 'the first packet holds a hello')
      return this.#admit(hello, line)
    } catch (error) {
      const told = toWire(asError(error))
      line.send({ frames: [{ error: { ...told.detail, code: told.code } }] })
      line.close('refused')
      return undefined
    }
  }

  #admit(hello: Hello, line: Line): NodeSession {
    const granted = this.#tokens?.[hello.token ?? '']
    if (this.#tokens !== undefined && granted === undefined) {
      throw new LoomError('UNAUTHENTICATED', 'there is no such credential', { field: 'token' })
    }
    const namespace = hello.namespace || granted || 'default'
    if (granted !== undefined && granted !== '*' && granted !== namespace) {
      throw new LoomError('DENIED', 'this credential is for another namespace')
    }
    const id = hello.session ?? ''
    const kept = this.#sessions.get(id)
    const { epoch = 0 } = hello
    if (kept !== undefined && epoch <= kept.epoch) {
      throw new LoomError('FENCED', 'a newer connection of this session is there')
    }
    const isExpired = kept?.isExpired === true
    const resumed = kept !== undefined && !isExpired && hello.boot === this.boot
    if (kept !== undefined && !resumed) this.end(kept)
    const session = resumed ? kept : new NodeSession(this, this.#space(namespace), hello)
    this.#sessions.set(id, session)
    session.attach(line, hello, resumed)
    return session
  }

  /** Forgets one session. */
  end(session: NodeSession): void {
    session.end()
    if (this.#sessions.get(session.id) === session) this.#sessions.delete(session.id)
  }

  #space(name: string): Space {
    let space = this.#spaces.get(name)
    if (space === undefined) {
      space = new Space(name, this.counts)
      this.#spaces.set(name, space)
    }
    return space
  }
}

/** The node's end of a connection. */
interface Line {
  send(packet: Packet): void
  close(why: string): void
}

/** What goes over a wire comes as a copy: nobody can change what others have. */
function copy(packet: Packet): Packet {
  const { text, attachments } = encodeJson(packet)
  return decodeJson(
    readJson(text).packet,
    attachments.map((bytes) => bytes.slice()),
  )
}

function asError(error: unknown): LoomError {
  return error instanceof LoomError ? error : new LoomError('INTERNAL', (error as Error).message)
}

class NodeSession {
  readonly id: string
  readonly name: string
  epoch = 0
  readonly channel: Channel = new Channel(true)
  readonly listeners: Map<number, Listener> = new Map()
  readonly providers: Map<number, Provider> = new Map()
  readonly leases: Map<number, Lease> = new Map()
  readonly requests: Map<number, Pending> = new Map()
  readonly jobs: Map<number, Job> = new Map()
  readonly space: Space
  readonly #node: MemoryNode
  #line: Line | undefined
  #lostAt = 0
  #leaseNumbers = 0
  #taken = { frames: 0, bytes: 0 }
  #isFlushing = false

  constructor(node: MemoryNode, space: Space, hello: Hello) {
    this.#node = node
    this.space = space
    this.id = hello.session ?? ''
    this.name = hello.name ?? ''
    this.channel.allow(hello.credit ?? {})
  }

  get isExpired(): boolean {
    return this.#line === undefined && performance.now() - this.#lostAt > SESSION_KEEP_MS
  }

  attach(line: Line, hello: Hello, resumed: boolean): void {
    this.cut('a newer connection of this session is there')
    this.#line = line
    this.epoch = hello.epoch ?? 0
    this.channel.pause()
    if (resumed) this.channel.resume(hello.received ?? 0)
    const { received } = this.channel
    line.send({
      received,
      frames: [
        {
          welcome: {
            version: 1,
            boot: this.#node.boot,
            resumed,
            received,
            namespace: this.space.name,
            agent: 'loom-memory',
            credit: this.#credit(),
            heartbeat_ms: HEARTBEAT_MS,
            keep_ms: SESSION_KEEP_MS,
            time_ms: Date.now(),
            payload_bytes: PAYLOAD_BYTES,
          },
        },
      ],
    })
    this.flush()
  }

  /** Ends the connection that carries it. */
  cut(why: string): void {
    this.#line?.close(why)
    this.#line = undefined
  }

  lost(line: Line): void {
    if (this.#line !== line) return
    this.#line = undefined
    this.#lostAt = performance.now()
  }

  received(packet: Packet, line: Line): void {
    if (this.#line !== line) return
    for (const frame of this.channel.accept(packet)) this.#take(frame)
    this.flush()
  }

  control(frame: Frame): void {
    this.channel.pushControl(frame)
    this.flush()
  }

  /** Sends what waits, once what is going on has been done. */
  flush(): void {
    if (this.#isFlushing) return
    this.#isFlushing = true
    queueMicrotask(() => {
      this.#isFlushing = false
      while (this.#line !== undefined) {
        const packet = this.channel.transmit()
        if (packet === undefined) return
        this.#line.send(packet)
      }
    })
  }

  refuse(ref: number, error: unknown): void {
    const { code, detail } = toWire(asError(error))
    if (ref === 0) this.#node.counts.failed++
    else this.control({ error: { ...detail, ref, code } })
  }

  outcome(call: number, code: number, payload: Payload): void {
    this.control({ outcome: { call, code, payload } })
  }

  fail(call: number, error: unknown): void {
    const { code, detail } = toWire(asError(error))
    this.outcome(call, code, { json: detail })
  }

  /** Sends a delivery or an invocation as soon as the client has granted it. */
  send(frame: (lease: number) => Frame, lease: Lease): void {
    const number = ++this.#leaseNumbers
    this.leases.set(number, lease)
    if (lease.job !== undefined) lease.job.lease = number
    this.channel.pushData(frame(number), sizeOf(lease.envelope.payload))
    this.flush()
  }

  end(): void {
    for (const handle of [...this.listeners.keys(), ...this.providers.keys()]) this.#remove(handle)
    for (const request of this.requests.values()) clearTimeout(request.timer)
    for (const job of this.jobs.values()) this.space.leave(job, this)
    for (const [number, lease] of [...this.leases]) this.#over(number, lease, gone())
    this.requests.clear()
    this.jobs.clear()
  }

  // -- frames -------------------------------------------------------------------------------------

  #take(frame: Frame): void {
    const { publish, request, call, register, provide, subscribe, ack, credit, fail } = frame
    if (credit !== undefined) this.channel.allow(credit)
    else if (publish !== undefined) this.#publish(publish)
    else if (request !== undefined) this.#request(request)
    else if (call !== undefined) this.#call(call)
    else if (ack !== undefined) {
      if (ack.goes_on !== true) for (const lease of ack.leases ?? []) this.#over(lease)
    } else if (fail !== undefined) {
      const detail = (fail.detail ?? {}) as { message?: string }
      this.#over(fail.lease ?? 0, undefined, { ...detail, code: fail.code ?? CODES.INTERNAL })
    } else if (register !== undefined)
      this.#enrol(register.handle ?? 0, () => this.#register(register))
    else if (provide !== undefined) this.#enrol(provide.handle ?? 0, () => this.#provide(provide))
    else if (subscribe !== undefined) {
      const { handle = 0, filters = [], qos = 'batched' } = subscribe
      this.#enrol(handle, () =>
        this.#listen({ handle, filters, qos, group: undefined, name: '', info: {} }),
      )
    } else this.#takeMore(frame)
  }

  #takeMore(frame: Frame): void {
    const { unsubscribe, reply, result, chunk, cancel, grant, directory, drain, report } = frame
    if (unsubscribe !== undefined) {
      this.#remove(unsubscribe.handle ?? 0)
      this.control({ done: { ref: unsubscribe.handle ?? 0 } })
    } else if (reply !== undefined) this.space.reply(this, reply.lease ?? 0, reply.payload ?? {})
    else if (result !== undefined) {
      const lease = this.leases.get(result.lease ?? 0)
      if (lease?.job !== undefined) this.space.done(lease.job, 0, result.payload ?? {})
      this.#over(result.lease ?? 0)
    } else if (chunk !== undefined) {
      const job = this.leases.get(chunk.lease ?? 0)?.job
      for (const { session, call } of job?.callers ?? []) {
        session.control({ chunk: { call, payload: chunk.payload ?? {} } })
      }
    } else if (cancel !== undefined) {
      const job = this.jobs.get(cancel.call ?? 0)
      if (job !== undefined) this.space.leave(job, this)
      this.space.forget(this, cancel.call ?? 0)
    } else if (grant !== undefined) {
      const job = this.jobs.get(grant.call ?? 0)
      if (job?.lease !== undefined) {
        job.provider?.session.control({ grant: { lease: job.lease, total: grant.total ?? 0 } })
      }
    } else if (directory !== undefined) {
      const entries = this.space.directory(directory.kind ?? '')
      this.control({ entries: { ref: directory.ref ?? 0, entries, last: true } })
    } else if (drain !== undefined) {
      this.#node.end(this)
      this.cut('the client has left')
    } else if (report !== undefined) {
      const topic = `loom.log.${report.level ?? 'info'}`
      this.space.say(topic, report.data)
    } else if (frame.withdraw === undefined && frame.extend === undefined) {
      const [kind, body] = Object.entries(frame)[0] ?? []
      const { ref = 0 } = (body ?? {}) as { ref?: number }
      if (ref > 0) this.refuse(ref, notInMemory(kind ?? 'this'))
    }
  }

  #credit(): { frames: number; bytes: number } {
    return {
      frames: this.#taken.frames + SESSION_FRAMES,
      bytes: this.#taken.bytes + SESSION_BYTES,
    }
  }

  #spend(payload: Payload | undefined): void {
    this.#taken.frames++
    this.#taken.bytes += sizeOf(payload)
    if (this.#taken.frames % (SESSION_FRAMES / 8) === 0 || sizeOf(payload) > SESSION_BYTES / 16) {
      this.control({ credit: this.#credit() })
    }
  }

  /** `namespace/name` of a sender; 0 is the app itself. */
  senderOf(handle: number): string {
    const name =
      this.listeners.get(handle)?.name ?? this.providers.get(handle)?.frame.provider ?? this.name
    return `${this.space.name}/${name}`
  }

  #publish(publish: Publish): void {
    this.#spend(publish.payload)
    const { ref = 0, ack } = publish
    try {
      if (ack === 'os' || ack === 'disk') throw notInMemory(`ack '${ack}'`)
      const envelope = this.#envelope(publish)
      const id = publish.options?.id ?? ''
      const first = id === '' ? undefined : this.space.ids.get(id)
      const receipt = first ?? { id: envelope.id as string, matched: this.space.route(envelope) }
      if (id !== '') remember(this.space.ids, id, receipt)
      if (ref > 0) this.control({ accepted: { ref, level: 'accepted', ...receipt } })
    } catch (error) {
      this.refuse(ref, error)
    }
  }

  #envelope(body: Publish | Request): Envelope {
    const topic = checkTopic(body.topic)
    if (topic.startsWith('loom.')) {
      throw new LoomError('DENIED', 'only the engine publishes under loom.', { field: 'topic' })
    }
    const { sender = 0, lease = 0, payload = {}, options = {} } = body
    const envelope = this.#stamped(lease, { topic, payload, sender: this.senderOf(sender) })
    const { key, thread, id: _, ...rest } = options
    Object.assign(envelope, rest)
    if (key) envelope.key = key
    if (thread) {
      delete envelope.thread_id
      delete envelope.thread_name
      if (isUuid(thread)) envelope.thread_id = thread
      else envelope.thread_name = thread
    }
    if ('qos' in body && body.qos !== undefined) envelope.qos = body.qos
    return envelope
  }

  /** What every event has, and what follows from the turn that sends it. */
  #stamped(number: number, given: Envelope): Envelope {
    const id = uuid()
    const envelope: Envelope = { id, run_id: id, time_ms: Date.now(), ...given }
    if (number === 0) return envelope
    const cause = this.leases.get(number)?.envelope
    if (cause === undefined) {
      throw new LoomError('FENCED', 'this turn is over', { field: 'lease' })
    }
    envelope.hop = (cause.hop ?? 0) + 1
    if (envelope.hop > HOPS) {
      throw new LoomError('EXHAUSTED', `a chain of ${HOPS} events`, { field: 'hop', limit: 'hops' })
    }
    envelope.run_id = cause.run_id ?? id
    if (cause.id !== undefined) envelope.causation_id = cause.id
    if (cause.thread_name !== undefined) envelope.thread_name = cause.thread_name
    else envelope.thread_id = cause.thread_id ?? (cause.id as string)
    return envelope
  }

  #request(request: Request): void {
    this.#spend(request.payload)
    const { call = 0, timeout_ms = 0 } = request
    try {
      const envelope = this.#envelope(request)
      envelope.correlation_id = envelope.id as string
      envelope.remaining_ms = timeout_ms
      const timer = setTimeout(() => this.space.expire(this, call), timeout_ms)
      const pending: Pending = {
        session: this,
        call,
        request,
        envelope,
        open: 0,
        answered: 0,
        failures: [],
        matched: 0,
        timer,
      }
      this.requests.set(call, pending)
      this.space.ask(pending)
    } catch (error) {
      this.fail(call, error)
    }
  }

  #call(frame: Call): void {
    this.#spend(frame.payload)
    const { call = 0, lease = 0, sender = 0, capability = '', payload = {}, timeout_ms = 0 } = frame
    try {
      const given = { topic: capability, payload, sender: this.senderOf(sender) }
      const envelope = this.#stamped(lease, given)
      envelope.remaining_ms = timeout_ms
      this.space.begin(this, call, frame, envelope)
    } catch (error) {
      this.fail(call, error)
    }
  }

  #enrol(handle: number, add: () => void): void {
    try {
      add()
      this.control({ done: { ref: handle } })
    } catch (error) {
      this.refuse(handle, error)
    }
  }

  #register(frame: Register): void {
    const { handle = 0, name = '', filters = [], group, concurrency, realtime, info } = frame
    checkFilters(filters, 'filters')
    this.#listen({
      handle,
      name,
      group: group || name,
      filters: [...filters, `spawn.${name}`],
      qos: realtime === true ? 'realtime' : 'batched',
      info: {
        concurrency: concurrency || AGENT_CONCURRENCY,
        ...(info as object),
        name,
        filters,
        group: group || name,
      },
    })
    this.space.say('loom.directory.agent.joined', this.listeners.get(handle)?.info)
  }

  #listen(given: Omit<Listener, 'session' | 'out' | 'lanes'>): void {
    const listener: Listener = { ...given, session: this, out: 0, lanes: new Map() }
    this.listeners.set(given.handle, listener)
    this.space.listeners.add(listener)
    for (const pending of [...this.space.unheard]) this.space.ask(pending)
  }

  #provide(frame: Provide): void {
    const { handle = 0, name = '' } = frame
    const made: Provider = { session: this, handle, frame, running: 0, waiting: [] }
    this.providers.set(handle, made)
    this.space.providers.add(made)
    this.space.known.add(name)
    this.space.say('loom.directory.capability.joined', frame.info)
  }

  #remove(handle: number): void {
    const listener = this.listeners.get(handle)
    if (listener !== undefined) {
      this.space.listeners.delete(listener)
      this.listeners.delete(handle)
      if (listener.name !== '') this.space.say('loom.directory.agent.left', listener.info)
    }
    const provider = this.providers.get(handle)
    if (provider !== undefined) {
      this.space.providers.delete(provider)
      this.providers.delete(handle)
      for (const job of provider.waiting.splice(0)) this.space.place(job)
    }
  }

  /** A turn or an invocation has ended. */
  #over(number: number, known?: Lease, failure?: Record<string, unknown>): void {
    const lease = known ?? this.leases.get(number)
    if (lease === undefined || !this.leases.delete(number)) return
    const { listener, lane, pending, job } = lease
    if (listener !== undefined) {
      listener.out--
      const kept = listener.lanes.get(lane as string)
      if (kept !== undefined && --kept.out === 0) listener.lanes.delete(lane as string)
    }
    if (pending !== undefined) this.space.declined(pending, failure)
    if (job !== undefined && failure !== undefined) {
      this.space.done(job, Number(failure['code'] ?? CODES.INTERNAL), { json: failure })
    }
    if (job?.provider !== undefined) this.space.freed(job.provider)
    if (failure !== undefined && failure['code'] !== CODES.CANCELLED) {
      const name = Object.entries(CODES).find(([, code]) => code === failure['code'])?.[0]
      this.space.say(`loom.error.${(name ?? 'INTERNAL').toLowerCase()}`, failure)
    }
  }
}

/** One namespace. */
class Space {
  readonly name: string
  readonly listeners: Set<Listener> = new Set()
  readonly providers: Set<Provider> = new Set()
  readonly known: Set<string> = new Set()
  readonly unheard: Set<Pending> = new Set()
  readonly ids: Map<string, { id: string; matched: number }> = new Map()
  readonly #kept: Map<string, Kept> = new Map()
  readonly #joined: Map<string, Job> = new Map()
  readonly #counts: { dropped: number; failed: number }
  #lanes = 0
  #rounds = 0

  constructor(name: string, counts: { dropped: number; failed: number }) {
    this.name = name
    this.#counts = counts
  }

  /** Gives an event to all who hear it; returns how many these are. */
  route(envelope: Envelope, pending?: Pending): number {
    const heard = this.#heard(envelope, pending !== undefined)
    if (envelope.qos === 'background' && heard.some((one) => one.out >= QUEUE_ITEMS)) throw full()
    for (const listener of heard) this.#deliver(listener, envelope, pending)
    return heard.length
  }

  #heard(envelope: Envelope, isAsked: boolean): Listener[] {
    const topic = envelope.topic as string
    const groups = new Map<string, Listener[]>()
    const streams: Listener[] = []
    for (const listener of this.listeners) {
      if (!listener.filters.some((filter) => matches(filter, topic))) continue
      if (listener.group === undefined) {
        streams.push(listener)
        continue
      }
      const members = groups.get(listener.group)
      if (members === undefined) groups.set(listener.group, [listener])
      else members.push(listener)
    }
    const lane = laneOf(envelope)
    const chosen = [...groups.values()].map((members) => {
      const holder = members.find((one) => one.lanes.has(lane))
      return holder ?? (members[this.#rounds++ % members.length] as Listener)
    })
    // A stream hears a request as an event: nobody waits for what it says.
    if (isAsked) for (const stream of streams) this.#deliver(stream, envelope, undefined)
    return isAsked ? chosen : [...chosen, ...streams]
  }

  #deliver(listener: Listener, envelope: Envelope, pending: Pending | undefined): void {
    const { session, handle } = listener
    if (listener.out >= QUEUE_ITEMS) {
      this.#counts.dropped++
      if (pending !== undefined) this.declined(pending, { code: CODES.EXHAUSTED, message: 'full' })
      return
    }
    const key = laneOf(envelope)
    const lane = listener.lanes.get(key) ?? { number: ++this.#lanes, out: 0 }
    lane.out++
    listener.lanes.set(key, lane)
    listener.out++
    const asked = pending !== undefined
    const held: Lease = { envelope, listener, lane: key }
    if (pending !== undefined) held.pending = pending
    session.send(
      (lease) => ({
        deliver: { event: envelope, targets: [{ handle, lease, lane: lane.number, asked }] },
      }),
      held,
    )
  }

  /** Publishes what only a node may say. */
  say(topic: string, data: unknown): void {
    const id = uuid()
    const sender = `${this.name}/loom`
    this.route({ id, run_id: id, topic, sender, time_ms: Date.now(), payload: { json: data } })
  }

  directory(kind: string): Record<string, unknown>[] {
    if (kind === 'agent') {
      const agents = [...this.listeners].filter((one) => one.name !== '')
      return agents.map((one) => ({ ...one.info, health: 'up', queued: 0, leased: one.out }))
    }
    return [...this.providers].map((one) => ({
      ...(one.frame.info as object),
      health: 'up',
      queued: one.waiting.length,
      leased: one.running,
    }))
  }

  // -- requests -----------------------------------------------------------------------------------

  ask(pending: Pending): void {
    this.unheard.delete(pending)
    pending.open = 1 // until all have been asked
    pending.matched = this.route(pending.envelope, pending)
    pending.open += pending.matched
    if (pending.matched === 0 && pending.request.wait === true) {
      this.unheard.add(pending)
      return
    }
    this.declined(pending, undefined)
  }

  reply(session: NodeSession, number: number, payload: Payload): void {
    const lease = session.leases.get(number)
    const pending = lease?.pending
    if (lease === undefined || pending === undefined) return
    delete lease.pending // each responder answers once
    const id = uuid()
    const { envelope, request } = pending
    const event: Envelope = {
      id,
      topic: envelope.topic as string,
      payload,
      sender: session.senderOf(lease.listener?.handle ?? 0),
      time_ms: Date.now(),
      thread_id: envelope.thread_id ?? (envelope.id as string),
      run_id: envelope.run_id as string,
      causation_id: envelope.id as string,
      correlation_id: envelope.id as string,
      hop: (envelope.hop ?? 0) + 1,
    }
    if (envelope.thread_name !== undefined) {
      delete event.thread_id
      event.thread_name = envelope.thread_name
    }
    const thread = envelope.thread_name ?? event.thread_id
    if (/^[\w-]+$/.test(thread ?? '')) this.route({ ...event, topic: `thread.${thread}.reply` })
    if (!pending.session.requests.has(pending.call)) return
    pending.session.control({ answer: { call: pending.call, event } })
    pending.answered++
    pending.open--
    if (pending.open === 0 || pending.answered === request.first_k) this.#answered(pending)
  }

  /** One who was asked has ended without an answer, or with an error. */
  declined(pending: Pending, failure: Record<string, unknown> | undefined): void {
    if (failure !== undefined) pending.failures.push(failure)
    pending.open--
    if (pending.open === 0 && pending.session.requests.has(pending.call)) this.#answered(pending)
  }

  /** The one end of a request: all have answered or declined, or time is up. */
  #answered(pending: Pending, isDue = false): void {
    const { answered, failures, matched, call, session, request } = pending
    this.forget(session, call)
    const [first] = failures
    let error: Record<string, unknown> = { code: 0 }
    if (isDue) error = { code: CODES.TIMEOUT, message: 'no answer came in time' }
    else if (answered === 0) {
      const message = matched === 0 ? 'nobody hears it' : 'all have declined'
      error = first ?? { code: CODES.UNAVAILABLE, message }
    }
    const { code, ...detail } = error
    const shown = failures.map((one) => ({ ...one, code: codeName(one['code']) }))
    const many = request.first_k !== 1 && matched > 0
    const json = { ...detail, ...(many && { matched, failures: shown }) }
    session.outcome(call, Number(code), code === 0 && !many ? {} : { json })
  }

  expire(session: NodeSession, call: number): void {
    const pending = session.requests.get(call)
    if (pending !== undefined) this.#answered(pending, true)
  }

  forget(session: NodeSession, call: number): void {
    const pending = session.requests.get(call)
    if (pending === undefined) return
    clearTimeout(pending.timer)
    session.requests.delete(call)
    this.unheard.delete(pending)
  }

  // -- calls --------------------------------------------------------------------------------------

  begin(session: NodeSession, call: number, frame: Call, envelope: Envelope): void {
    const { capability = '', key = '', timeout_ms = 0, payload } = frame
    const args = new TextDecoder().decode(bytesIn(payload))
    const name = key === '' ? '' : `${capability}\0${key}`
    const kept = this.#kept.get(name)
    const under = this.#joined.get(name)
    const before = kept?.args ?? (under && new TextDecoder().decode(bytesIn(under.frame.payload)))
    if (before !== undefined && before !== args) {
      throw new LoomError('CONFLICT', 'a call with this key had other arguments', { field: 'key' })
    }
    if (kept !== undefined) {
      session.outcome(call, kept.code, kept.payload)
      return
    }
    if (under !== undefined) {
      under.callers.push({ session, call })
      session.jobs.set(call, under)
      return
    }
    const job: Job = {
      envelope,
      frame,
      callers: [{ session, call }],
      provider: undefined,
      lease: undefined,
      key: name,
      timer: setTimeout(() => this.#overdue(job), timeout_ms),
    }
    session.jobs.set(call, job)
    if (name !== '') this.#joined.set(name, job)
    this.place(job)
  }

  /** Gives a call to the provider with the least to do. */
  place(job: Job): void {
    const { capability = '', version = '' } = job.frame
    const able = [...this.providers].filter(
      (one) => one.frame.name === capability && (version === '' || one.frame.version === version),
    )
    const [provider] = able.sort(
      (a, b) => a.running + a.waiting.length - (b.running + b.waiting.length),
    )
    if (provider === undefined) {
      const isKnown = this.known.has(capability) && version === ''
      const code = isKnown ? 'PROVIDER_UNAVAILABLE' : 'NOT_FOUND'
      const { detail, code: number } = toWire(
        new LoomError(code, `nobody offers ${capability}${version && ` in version ${version}`}`),
      )
      this.done(job, number, { json: detail })
      return
    }
    job.provider = provider
    if (provider.waiting.length >= QUEUE_ITEMS) {
      const { code, detail } = toWire(full())
      this.done(job, code, { json: detail })
    } else {
      provider.waiting.push(job)
      this.#next(provider)
    }
  }

  freed(provider: Provider): void {
    provider.running--
    this.#next(provider)
  }

  #next(provider: Provider): void {
    const most = provider.frame.concurrency || AGENT_CONCURRENCY
    while (provider.running < most) {
      const job = provider.waiting.shift()
      if (job === undefined) return
      if (job.callers.length === 0) continue
      provider.running++
      const isPure = provider.frame.effect === 'pure'
      const { credit = 0 } = job.frame
      provider.session.send(
        (lease) => ({
          action_call: {
            handle: provider.handle,
            lease,
            event: job.envelope,
            streamed: credit > 0,
            credit,
            attempt: 1,
            ...(isPure ? {} : { effect_id: job.envelope.id as string }),
          },
        }),
        { envelope: job.envelope, job },
      )
    }
  }

  /** The one end of a call. */
  done(job: Job, code: number, payload: Payload): void {
    clearTimeout(job.timer)
    if (this.#joined.get(job.key) === job) this.#joined.delete(job.key)
    if (job.key !== '' && job.callers.length > 0 && job.provider?.frame.effect !== 'pure') {
      const mayPass: number[] = [CODES.TIMEOUT, CODES.UNAVAILABLE, CODES.PROVIDER_UNAVAILABLE]
      if (!mayPass.includes(code) && job.frame.credit === undefined) {
        const args = new TextDecoder().decode(bytesIn(job.frame.payload))
        remember(this.#kept, job.key, { args, code, payload })
      }
    }
    for (const { session, call } of job.callers.splice(0)) {
      session.jobs.delete(call)
      session.outcome(call, code, payload)
    }
  }

  #overdue(job: Job): void {
    this.#stop(job, CODES.TIMEOUT)
    const isUnknown = job.lease !== undefined && job.provider?.frame.effect !== 'pure'
    const error = new LoomError(isUnknown ? 'INDETERMINATE' : 'TIMEOUT', 'no result came in time')
    const { code, detail } = toWire(error)
    this.done(job, code, { json: detail })
  }

  /** One caller waits no more; when nobody does, the provider is told. */
  leave(job: Job, session: NodeSession): void {
    for (const one of job.callers.filter((caller) => caller.session === session)) {
      session.jobs.delete(one.call)
    }
    job.callers = job.callers.filter((caller) => caller.session !== session)
    if (job.callers.length === 0) {
      this.#stop(job, CODES.CANCELLED)
      this.done(job, CODES.CANCELLED, {})
    }
  }

  #stop(job: Job, code: number): void {
    if (job.lease === undefined || job.provider === undefined) return
    job.provider.session.channel.pushData({ cancel: { lease: job.lease, code } })
    job.provider.session.flush()
  }
}

function laneOf(envelope: Envelope): string {
  return envelope.key || envelope.thread_name || envelope.thread_id || (envelope.id as string)
}

function codeName(number: unknown): string {
  return Object.entries(CODES).find(([, code]) => code === number)?.[0] ?? 'INTERNAL'
}

function isUuid(text: string): boolean {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text)
}

function notInMemory(what: string): LoomError {
  return new LoomError('NOT_SUPPORTED', `a node in memory does not have ${what}`, {
    hint: 'run a node: loom up --data DIR',
  })
}

function full(): LoomError {
  return new LoomError('EXHAUSTED', 'a queue is full', { limit: 'queue_items' })
}

function gone(): Record<string, unknown> {
  return { code: CODES.INDETERMINATE, message: 'its session is gone' }
}

function remember<T>(kept: Map<string, T>, key: string, value: T): void {
  kept.set(key, value)
  for (const oldest of kept.keys()) {
    if (kept.size <= KEPT_KEYS) return
    kept.delete(oldest)
  }
}
