// The client's side of a session as a machine: no I/O, no clock, no promises. A carrier tells it
// what came and asks what to send; the user's side offers frames and is told how each of them
// ended. docs/protocol.md says what the frames mean.

import { sizeOf } from '../codec/payload.js'
import { Malformed } from '../codec/schema.js'
import { errorOf, LoomError } from '../errors.js'
import type {
  ActionCall,
  Envelope,
  Frame,
  Outcome,
  Packet,
  Payload,
  Probe,
  Publish,
  Target,
  Welcome,
  Error as WireError,
} from '../gen/frames.js'
import {
  HANDSHAKE_MS,
  HEARTBEAT_MS,
  RECONNECT_BASE_MS,
  RECONNECT_CAP_MS,
  SESSION_AHEAD,
  SESSION_BYTES,
  SESSION_FRAMES,
  SILENCE_MS,
} from '../gen/limits.js'
import { matches } from '../topics.js'
import { Channel, type Flow } from './channel.js'

const VERSION = 1
/** What the node may be ahead of us, in deliveries. */
const WINDOW_FRAMES: number = 4 * SESSION_AHEAD
/** A call whose node is out of reach ends by itself so long after its deadline. */
const OVERDUE_MS = 1000

/** How the link stands. */
export type LinkState = 'connecting' | 'up' | 'lost' | 'refused' | 'closed'

/** What has become of the link, each time that changes. */
export interface LinkChange {
  state: LinkState
  /** Up: whether the session goes on where it was. */
  resumed?: boolean
  /** Up after the node had forgotten the session: the last position of the log that came before. */
  missedFrom?: string | undefined
  /** Lost or refused: why. */
  error?: LoomError
  /** Lost: when it is tried again, in milliseconds from now. */
  retryMs?: number
  /** The node is about to stop. */
  draining?: boolean
}

export interface SessionConfig {
  /** 32 hexadecimal digits, drawn once. */
  session: string
  name: string
  namespace: string
  token: string
  agent: string
  /** The carrier takes frames whole, however large. */
  isWhole: boolean
  /** From 0 up to, without, 1. */
  random: () => number
}

/** What the session tells its user. None of these may throw. */
export interface Inbox {
  changed(change: LinkChange): void
  deliver(event: Envelope, target: Target, isDurable: boolean): void
  invoke(call: ActionCall): void
  /** Nobody waits for this invocation any more. */
  stop(lease: number): void
  /** So many chunks of this invocation may be sent in all. */
  granted(lease: number, total: number): void
  probe(probe: Probe): void
  /** The node has forgotten the session: all leases are void. */
  forgotten(): void
  /** A registration was refused when the session began anew. */
  refused(error: LoomError): void
}

/** How a frame with a number of its own ends. */
interface Asked {
  readonly frame: Frame
  readonly spends: number | undefined
  readonly lease: number
  /** Takes an answer; true: it was the last. */
  answer(frame: Frame): boolean
  fail(error: LoomError): void
}

/** Takes what went wrong with a registration, or nothing. */
type Done = (error: LoomError | undefined) => void

/** How a call or a request goes. */
export interface Calling {
  answer?(event: Envelope): void
  chunk?(payload: Payload): void
  end(outcome: Outcome): void
  fail(error: LoomError): void
}

interface Called extends Calling {
  readonly frame: Frame
  readonly spends: number
  readonly lease: number
  readonly keyed: boolean
  readonly due: number
  chunks: number
}

type Phase = 'idle' | 'dialing' | 'greeting' | 'up' | 'ended'

const FINAL: ReadonlySet<string> = new Set([
  'UNAUTHENTICATED',
  'DENIED',
  'NOT_SUPPORTED',
  'INVALID_PARAMS',
  'FENCED',
])

export class Session {
  /** Realtime events that had no room while the link was lost. */
  dropped = 0
  namespace: string
  readonly #config: SessionConfig
  readonly #inbox: Inbox
  readonly #channel: Channel
  readonly #registered = new Map<number, Frame>()
  readonly #asked = new Map<number, Asked>()
  readonly #calls = new Map<number, Called>()
  #phase: Phase = 'idle'
  #state: LinkState = 'connecting'
  #now = 0
  #numbers = 0
  #epoch = 0
  #boot = ''
  #keepsLog = false
  #life = 0 // rises when the node has forgotten the session
  #tries = 0
  #dialAt = 0
  #heardAt = 0
  #sentAt = 0
  #heartbeatMs: number = HEARTBEAT_MS
  #hello: Packet | undefined
  #durable: readonly string[] = []
  #lastPosition: string | undefined
  #nextDue = Infinity
  #dealt: Flow = { frames: 0, bytes: 0 }
  #granted: Flow = { frames: 0, bytes: 0 } // what was dealt with when credit was told last
  #isLeaving = false

  constructor(config: SessionConfig, inbox: Inbox) {
    this.#config = config
    this.#inbox = inbox
    this.namespace = config.namespace
    this.#channel = new Channel(config.isWhole)
  }

  // -- the carrier's side ---------------------------------------------------------------------------

  /** When the next connection is to be dialled; undefined: there is one, or none is wanted. */
  get dialsAt(): number | undefined {
    return this.#phase === 'idle' ? this.#dialAt : undefined
  }

  /** When `tick` has something to do; undefined: never. */
  get deadline(): number | undefined {
    let at = this.#nextDue
    if (this.#phase === 'greeting') at = Math.min(at, this.#heardAt + HANDSHAKE_MS)
    if (this.#phase === 'up') {
      at = Math.min(at, this.#sentAt + this.#heartbeatMs, this.#heardAt + SILENCE_MS)
    }
    return at === Infinity ? undefined : at
  }

  /** Whether the carrier should close its connection. */
  get isOver(): boolean {
    return this.#phase === 'ended' || this.#phase === 'idle'
  }

  /** Whether all that was offered has reached the node. */
  get isFlushed(): boolean {
    return this.#channel.held === 0
  }

  /** A connection is being made. */
  dialing(now: number): void {
    this.#now = now
    this.#phase = 'dialing'
  }

  /** A connection is there. */
  connected(now: number): void {
    this.#now = now
    this.#phase = 'greeting'
    this.#heardAt = now
    this.#channel.pause()
    const { session, token, name, namespace, agent } = this.#config
    this.#epoch++
    this.#hello = {
      frames: [
        {
          hello: {
            versions: [VERSION],
            token,
            session,
            epoch: this.#epoch,
            name,
            namespace,
            boot: this.#boot,
            received: this.#channel.received,
            agent,
            credit: this.#creditAt(0, 0), // for a session that begins; one that goes on has its own
          },
        },
      ],
    }
  }

  /** A packet came. Throws Malformed, and then the connection is to be closed. */
  received(packet: Packet, now: number): void {
    this.#now = now
    this.#heardAt = now
    if (this.#phase === 'greeting') this.#greeted(packet)
    else if (this.#phase === 'up') {
      for (const frame of this.#channel.accept(packet)) this.#take(frame)
      this.#regrant()
    }
  }

  /** The connection has gone, whoever ended it. */
  disconnected(now: number, why: string): void {
    this.#now = now
    if (this.#phase === 'ended' || this.#phase === 'idle') return
    if (this.#isLeaving && this.#channel.waiting === 0) this.finish()
    else this.#lose(new LoomError('UNAVAILABLE', why))
  }

  /** The next packet, or undefined: then everything that may go is on its way. */
  transmit(now: number): Packet | undefined {
    this.#now = now
    if (this.#phase === 'greeting') {
      const hello = this.#hello
      this.#hello = undefined
      return hello
    }
    if (this.#phase !== 'up') return undefined
    const packet = this.#channel.transmit()
    if (packet !== undefined) this.#sentAt = now
    return packet
  }

  /** Time has passed: heartbeats, a peer that is silent, calls that are overdue. */
  tick(now: number): void {
    this.#now = now
    if (now >= this.#nextDue) this.#endOverdue()
    if (this.#phase === 'greeting' && now >= this.#heardAt + HANDSHAKE_MS) {
      this.#lose(new LoomError('TIMEOUT', 'no welcome came', { limit: 'handshake_ms' }))
    }
    if (this.#phase !== 'up') return
    if (now >= this.#heardAt + SILENCE_MS) {
      this.#lose(new LoomError('TIMEOUT', 'nothing came for too long', { limit: 'silence_ms' }))
    } else if (now >= this.#sentAt + this.#heartbeatMs && !this.#channel.hasOutput) {
      this.#channel.pushLoose({ heartbeat: { alive: true } })
    }
  }

  // -- the user's side ------------------------------------------------------------------------------

  /** The lease of a turn counts as long as this number stays. */
  get lives(): number {
    return this.#life
  }

  /** A number for a registration, a question or a call. */
  number(): number {
    return ++this.#numbers
  }

  /** Registers, provides or subscribes under `handle`; kept, so that it can be done again. */
  register(handle: number, frame: Frame, done: Done): void {
    this.#registered.set(handle, frame)
    this.#enrol(handle, frame, done)
  }

  /** Takes a registration back; what was published before goes first. */
  unregister(handle: number, done: Done): void {
    if (!this.#registered.delete(handle)) {
      done(undefined)
      return
    }
    const frame: Frame = { unsubscribe: { handle } }
    this.#expect(handle, frame, ended(done), done)
    this.#channel.pushData(frame)
  }

  /**
   * Publishes. Without `done` nobody waits: it takes the place of older ones where there is no
   * room. Throws EXHAUSTED where the node has not taken what was sent before.
   */
  publish(
    publish: Publish,
    done?: (answer: Frame) => void,
    fail?: (error: LoomError) => void,
  ): number {
    const spends = sizeOf(publish.payload)
    const lease = publish.lease ?? 0
    if (done === undefined || fail === undefined) {
      while (!this.#hasRoom(spends) && this.#channel.recall((frame) => frame.publish?.ref === 0)) {
        this.dropped++
      }
      publish.ref = 0
      if (this.#hasRoom(spends)) this.#channel.pushData({ publish }, spends)
      else this.dropped++
      return 0
    }
    this.#needRoom(spends)
    const ref = this.number()
    const frame = { publish: { ...publish, ref } }
    this.#identify(frame.publish)
    const answered = (answer: Frame): true => {
      done(answer)
      return true
    }
    this.#expect(ref, frame, answered, fail, lease, spends)
    this.#channel.pushData(frame, spends)
    return ref
  }

  /** Gives up waiting for a publish; one that was not sent is not sent. */
  withdraw(ref: number): void {
    if (!this.#asked.delete(ref)) return
    if (!this.#channel.recall((frame) => frame.publish?.ref === ref)) {
      this.#channel.pushControl({ withdraw: { ref } })
    }
  }

  /** Asks what is answered by one frame or several: directory, read. */
  query(
    make: (ref: number) => Frame,
    answer: (frame: Frame) => boolean,
    fail: (error: LoomError) => void,
  ): void {
    const ref = this.number()
    const frame = make(ref)
    this.#expect(ref, frame, answer, fail)
    this.#channel.pushControl(frame)
  }

  /** Begins a call or a request, whose number is `call`. Throws EXHAUSTED. */
  call(call: number, frame: Frame, calling: Calling): void {
    const body = frame.call ?? frame.request
    const spends = sizeOf(body?.payload)
    this.#needRoom(spends)
    const due = this.#now + (body?.timeout_ms ?? 0) + OVERDUE_MS
    this.#nextDue = Math.min(this.#nextDue, due)
    const keyed = (frame.call?.key ?? '') !== ''
    this.#calls.set(call, {
      ...calling,
      frame,
      spends,
      lease: body?.lease ?? 0,
      keyed,
      due,
      chunks: 0,
    })
    this.#channel.pushData(frame, spends)
  }

  /** Nobody waits for a call any more. */
  cancel(call: number): void {
    if (!this.#calls.delete(call)) return
    if (!this.#channel.recall((frame) => (frame.call ?? frame.request)?.call === call)) {
      this.#channel.pushControl({ cancel: { call } })
    }
  }

  /** Lets so many chunks of a call come in all. */
  grant(call: number, total: number): void {
    if (this.#calls.has(call)) this.#channel.pushControl({ grant: { call, total } })
  }

  /** Sends what belongs to a turn or an invocation, behind what that has published. */
  work(lease: number, frame: Frame): void {
    const hasMore = this.#channel.hasWaiting(
      ({ publish, request, call }) => (publish ?? request ?? call)?.lease === lease,
    )
    if (hasMore) this.#channel.pushData(frame)
    else this.#channel.pushControl(frame)
  }

  /** Sends what nobody waits for: a log line, an answer to a probe. */
  tell(frame: Frame): void {
    this.#channel.pushControl(frame)
  }

  /** A delivery has been dealt with: the node may send more. */
  handled(bytes: number): void {
    this.#dealt.frames++
    this.#dealt.bytes += bytes
    this.#regrant()
  }

  /** Tells the node that this session does not come back; `finish` ends it. */
  leave(): void {
    if (this.#isLeaving) return
    this.#isLeaving = true
    this.#channel.pushData({ drain: {} })
  }

  /** Ends: whoever still waits is told. */
  finish(): void {
    if (this.#phase === 'ended') return
    this.#phase = 'ended'
    this.#failAll(closed())
    this.#set({ state: 'closed' })
  }

  // -- inside ---------------------------------------------------------------------------------------

  /** Gives a durable event an id: sent to another life of the node, too, it stays one event. */
  #identify(publish: Publish): void {
    const { ack, topic = '', options, ref } = publish
    if (ack === 'accepted') return
    if (ack === undefined && !this.#durable.some((one) => matches(one, topic))) return
    publish.options = { ...options, id: options?.id || `${this.#config.session}-${ref}` }
  }

  /** What is answered under a number. */
  #expect(
    ref: number,
    frame: Frame,
    answer: Asked['answer'],
    fail: Asked['fail'],
    lease = 0,
    spends?: number,
  ): void {
    this.#asked.set(ref, { frame, spends, lease, answer, fail })
  }

  #hasRoom(bytes: number): boolean {
    return this.#channel.heldBytes + bytes <= SESSION_BYTES && this.#channel.held < SESSION_FRAMES
  }

  #needRoom(bytes: number): void {
    if (this.#phase === 'ended') throw closed()
    if (this.#hasRoom(bytes)) return
    const { held, heldBytes } = this.#channel
    throw new LoomError('EXHAUSTED', `${held} frames (${heldBytes} bytes) wait for the node`, {
      limit: held >= SESSION_FRAMES ? 'session_frames' : 'session_bytes',
      hint: 'await what was emitted before, or wait until the link is up',
    })
  }

  /** What the node may send in all, where so much has been dealt with. */
  #creditAt(frames: number, bytes: number): { frames: number; bytes: number } {
    // Where frames go whole (JSON), nobody here knows how many bytes the data had at the node.
    const most = this.#config.isWhole ? Number.MAX_SAFE_INTEGER : bytes + SESSION_BYTES
    return { frames: frames + WINDOW_FRAMES, bytes: most }
  }

  /** Lets the node send more, whenever a quarter of the window is used up. */
  #regrant(): void {
    const { frames, bytes } = this.#dealt
    const used = frames - this.#granted.frames
    if (used < WINDOW_FRAMES / 4 && bytes - this.#granted.bytes < SESSION_BYTES / 4) return
    this.#granted = { frames, bytes }
    this.#channel.pushControl({ credit: this.#creditAt(frames, bytes) })
  }

  #set(change: LinkChange): void {
    this.#state = change.state
    this.#inbox.changed(change)
  }

  #greeted(packet: Packet): void {
    const [frame] = packet.frames ?? []
    if (frame?.error !== undefined) {
      this.#ended(frame.error)
      return
    }
    const { welcome } = frame ?? {}
    if (welcome === undefined) throw new Malformed('the first frame is neither welcome nor error')
    if (welcome.version !== VERSION) throw new Malformed('the version was not offered')
    this.#begin(welcome)
    for (const more of (packet.frames ?? []).slice(1)) this.#take(more)
  }

  #begin(welcome: Welcome): void {
    const { resumed = false, received = 0, boot = '' } = welcome
    const isKnown = this.#boot !== ''
    // Only a node that remembers what it has begun begins it once for its key.
    const keepsLog = welcome.keeps_log ?? false
    const isRemembered = this.#boot === boot || (this.#keepsLog && keepsLog)
    this.#keepsLog = keepsLog
    this.#phase = 'up'
    this.#sentAt = this.#now
    this.#tries = 0
    this.#boot = boot
    this.namespace = welcome.namespace || this.namespace
    this.#heartbeatMs = welcome.heartbeat_ms || HEARTBEAT_MS
    this.#durable = welcome.durable ?? []
    if (resumed) {
      this.#channel.resume(received)
      this.#set({ state: 'up', resumed: true })
      return
    }
    // Only now it is known which of the events are durable that have waited for a node.
    for (const { publish } of this.#channel.queued) if (publish?.ref) this.#identify(publish)
    if (isKnown) this.#beginAnew(isRemembered)
    this.#channel.allow(welcome.credit ?? {})
    const change: LinkChange = { state: 'up', resumed: false }
    if (isKnown) change.missedFrom = this.#lastPosition
    this.#set(change)
  }

  /** The node has forgotten this session, or is another one. */
  #beginAnew(isRemembered: boolean): void {
    const { queued } = this.#channel
    const unsent = new Set(queued)
    this.#channel.reset()
    this.#dealt = { frames: 0, bytes: 0 }
    this.#granted = { frames: 0, bytes: 0 }
    this.#life++
    this.#inbox.forgotten()
    for (const [handle, frame] of this.#registered) {
      if (this.#asked.has(handle)) this.#channel.pushControl(frame)
      else this.#enrol(handle, frame, (error) => error && this.#inbox.refused(error))
    }
    const again: [Frame, number | undefined][] = []
    for (const [ref, asked] of [...this.#asked]) {
      if (this.#registered.has(ref)) continue
      const { publish } = asked.frame
      if (asked.frame.unsubscribe !== undefined) {
        // There is nothing left to be taken back.
        this.#asked.delete(ref)
        asked.answer({})
      } else if (asked.lease === 0 && unsent.has(asked.frame)) {
        // It is queued again below.
      } else if (asked.lease === 0 && (publish === undefined || publish.options?.id)) {
        again.push([asked.frame, asked.spends])
      } else {
        this.#asked.delete(ref)
        asked.fail(forgottenError(asked.lease))
      }
    }
    for (const [number, call] of [...this.#calls]) {
      const isKept = isRemembered && call.keyed && call.chunks === 0
      if (call.lease === 0 && (unsent.has(call.frame) || isKept)) {
        if (!unsent.has(call.frame)) again.push([call.frame, call.spends])
      } else {
        this.#calls.delete(number)
        call.fail(forgottenError(call.lease))
      }
    }
    for (const [frame, spends] of again) this.#channel.pushData(frame, spends)
    for (const frame of queued) {
      const { publish, request, call } = frame
      const body = publish ?? request ?? call
      if (body === undefined) continue // the end of a turn that nobody knows any more
      if ((body.lease ?? 0) === 0) this.#channel.pushData(frame, sizeOf(body.payload))
      else if (publish?.ref === 0) this.dropped++
    }
    if (this.#isLeaving) this.#channel.pushData({ drain: {} })
  }

  #enrol(handle: number, frame: Frame, done: Done): void {
    this.#expect(handle, frame, ended(done), done)
    this.#channel.pushControl(frame)
  }

  #ended(error: WireError): void {
    const told = errorOf(error.code ?? 0, error)
    if (FINAL.has(told.code)) {
      this.#phase = 'ended'
      this.#failAll(told)
      this.#set({ state: 'refused', error: told })
    } else {
      this.#lose(told)
    }
  }

  /** The connection is of no more use; another one is tried after a while. */
  #lose(error: LoomError): void {
    this.#phase = 'idle'
    this.#channel.pause()
    const most = Math.min(RECONNECT_CAP_MS, RECONNECT_BASE_MS * 2 ** Math.min(this.#tries, 16))
    this.#tries++
    const pause = Math.max(this.#config.random() * most, error.retryAfterMs ?? 0)
    this.#dialAt = this.#now + pause
    this.#set({ state: 'lost', error, retryMs: pause })
  }

  #failAll(error: LoomError): void {
    const waiting = [...this.#asked.values(), ...this.#calls.values()]
    this.#asked.clear()
    this.#calls.clear()
    this.#registered.clear()
    this.#nextDue = Infinity
    for (const one of waiting) one.fail(error)
  }

  #endOverdue(): void {
    this.#nextDue = Infinity
    for (const [number, call] of [...this.#calls]) {
      if (call.due > this.#now) {
        this.#nextDue = Math.min(this.#nextDue, call.due)
        continue
      }
      const wasSent = !this.#channel.hasWaiting((frame) => frame === call.frame)
      this.cancel(number)
      const isUnknown = wasSent && call.frame.call !== undefined
      call.fail(
        new LoomError(
          isUnknown ? 'INDETERMINATE' : 'TIMEOUT',
          `no answer came in time, and the link is ${this.#state}`,
        ),
      )
    }
  }

  #take(frame: Frame): void {
    const { deliver, turn, action_call, answer, chunk, outcome, cancel, grant, probe } = frame
    const inbox = this.#inbox
    const call = this.#calls.get((answer ?? chunk ?? outcome)?.call ?? 0)
    if (deliver) {
      const { event = {}, targets = [] } = deliver
      for (const [index, target] of targets.entries()) {
        // Each has its own: none can change what another one sees.
        inbox.deliver(index === 0 ? event : structuredClone(event), target, false)
      }
    } else if (turn) {
      const { event = {}, target = {} } = turn
      this.#lastPosition = event.position ?? this.#lastPosition
      inbox.deliver(event, target, true)
    } else if (action_call) inbox.invoke(action_call)
    else if (answer) call?.answer?.(answer.event ?? {})
    else if (chunk) {
      if (call === undefined) return
      call.chunks++
      call.chunk?.(chunk.payload ?? {})
    } else if (outcome) {
      this.#calls.delete(outcome.call ?? 0)
      call?.end(outcome)
    } else if (cancel) inbox.stop(cancel.lease ?? 0)
    else if (grant) inbox.granted(grant.lease ?? 0, grant.total ?? 0)
    else if (probe) inbox.probe(probe)
    else this.#takeControl(frame)
  }

  #takeControl(frame: Frame): void {
    const { credit, error, drain, accepted, done, entries, page, kept } = frame
    if (credit !== undefined) {
      this.#channel.allow(credit)
    } else if (error !== undefined) {
      const ref = error.ref ?? 0
      const asked = this.#asked.get(ref)
      if (asked !== undefined) {
        this.#asked.delete(ref)
        asked.fail(errorOf(error.code ?? 0, error))
      } else if (ref === 0) this.#ended(error)
    } else if (drain !== undefined) {
      this.#set({ state: 'up', draining: true })
    } else {
      const ref = (accepted ?? done ?? entries ?? page ?? kept)?.ref ?? 0
      if (this.#asked.get(ref)?.answer(frame) === true) this.#asked.delete(ref)
    }
  }
}

/** The end of what waits at a link that is closed. */
export function closed(): LoomError {
  return new LoomError('CANCELLED', 'the link was closed')
}

/** The end of what a session that the node has forgotten had sent, within a turn or not. */
export function forgottenError(lease: number): LoomError {
  return lease === 0
    ? new LoomError('INDETERMINATE', 'the node was started again: what became of this is not known')
    : new LoomError('FENCED', 'the node was started again: this turn is over')
}

/** The answer to a registration has nothing in it. */
function ended(done: Done): () => true {
  return () => {
    done(undefined)
    return true
  }
}
