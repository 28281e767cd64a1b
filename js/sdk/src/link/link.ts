// The client's way to a node: a session with promises, and the one who knows which registration
// what comes is for.

import { type End, waiting } from '../cut.js'
import { errorOf, LoomError } from '../errors.js'
import type { Receipt } from '../event.js'
import type {
  ActionCall,
  Envelope,
  Frame,
  Outcome,
  Payload,
  Probe,
  Publish,
  Target,
} from '../gen/frames.js'
import {
  type Calling,
  closed,
  type Inbox,
  type LinkChange,
  type LinkState,
  Session,
} from '../session/session.js'
import type { Dial } from './carrier.js'
import { Driver } from './driver.js'

const AGENT = 'loom-js'
const LEAVE_MS = 2000 // at most, for what is left to reach the node when a link is closed

/** What ends a wait. */
export type Ends = readonly (End | undefined)[]

export interface LinkOptions {
  dial: Dial
  name: string
  namespace: string
  token: string
}

/** One delivery: it is to be ended by `Link.ended`. */
export interface Delivery {
  event: Envelope
  target: Target
  isDurable: boolean
}

/** Whoever registered something. None of these may throw. */
export interface Owner {
  deliver?(delivery: Delivery): void
  invoke?(call: ActionCall): void
  probe?(probe: Probe): void
  /** All its leases are void. */
  forgotten?(): void
}

/** An invocation that runs. */
export interface Running {
  stop(): void
  grant(total: number): void
}

export class Link implements Inbox {
  readonly name: string
  /** Invocations that run, by their lease. */
  readonly running: Map<number, Running> = new Map()
  readonly #session: Session
  readonly #driver: Driver
  readonly #owners = new Map<number, Owner>()
  readonly #listeners = new Set<(change: LinkChange) => void>()
  #last: LinkChange = { state: 'connecting' }
  #ending: Promise<void> | undefined

  constructor({ dial, name, namespace, token }: LinkOptions) {
    this.name = name
    const bytes = crypto.getRandomValues(new Uint8Array(16))
    this.#session = new Session(
      {
        session: Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(''),
        name,
        namespace,
        token,
        agent: AGENT,
        isWhole: dial.isWhole,
        random: Math.random,
      },
      this,
    )
    this.#driver = new Driver(this.#session, dial)
  }

  get state(): LinkState {
    return this.#last.state
  }

  /** Whether it has ended for good. */
  get isOver(): boolean {
    return this.state === 'refused' || this.state === 'closed'
  }

  /** Why the node has ended it for good. */
  get error(): LoomError | undefined {
    return this.state === 'refused' ? this.#last.error : undefined
  }

  get namespace(): string {
    return this.#session.namespace
  }

  /** Realtime events that had no room while the link was lost. */
  get dropped(): number {
    return this.#session.dropped
  }

  /**
   * Returns when the node has let us in. Throws what it refuses us with, the signal's reason, and
   * UNAVAILABLE where none answers in time.
   */
  open(where: string, timeoutMs: number, signal?: AbortSignal): Promise<void> {
    return waiting([signal], (resolve, reject) => {
      const timer = setTimeout(() => {
        leave()
        const why = this.#last.error?.message ?? 'nothing came'
        const hint = '`loom up` starts one; check url, and whom you trust'
        const message = `no node answers at ${where}: ${why}`
        reject(new LoomError('UNAVAILABLE', message, { field: 'url', limit: 'timeoutMs', hint }))
      }, timeoutMs)
      const forget = this.onChange(({ state, error }) => {
        if (state === 'up') resolve()
        else if (this.isOver) reject(error ?? closed())
        else return
        leave()
      })
      const leave = (): void => {
        clearTimeout(timer)
        forget()
      }
      this.#driver.start()
      return leave
    })
  }

  /** Tells `listener` of each change; the function returned ends that. */
  onChange(listener: (change: LinkChange) => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Lets what was sent reach the node, says that we are gone for good, and closes. */
  close(): Promise<void> {
    this.#ending ??= this.#leave()
    return this.#ending
  }

  async #leave(): Promise<void> {
    const until = performance.now() + LEAVE_MS
    this.#session.leave()
    this.#driver.wake()
    // The node closes the connection when it has read that we are gone.
    while (this.state === 'up' && !this.#session.isFlushed && performance.now() < until) {
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
    this.#session.finish()
    this.#driver.stop()
  }

  // -- registrations --------------------------------------------------------------------------------

  /** Registers what `make` makes of its handle. Throws what the node refuses it with. */
  register(make: (handle: number) => Frame, owner: Owner): Promise<number> {
    const handle = this.#session.number()
    this.#owners.set(handle, owner)
    return new Promise((resolve, reject) => {
      this.#session.register(handle, make(handle), (error) => {
        if (error === undefined) {
          resolve(handle)
          return
        }
        this.#owners.delete(handle)
        reject(error)
      })
      this.#driver.wake()
    })
  }

  /** Takes a registration back. */
  remove(handle: number): Promise<void> {
    this.#owners.delete(handle)
    return new Promise((resolve) => {
      this.#session.unregister(handle, () => resolve())
      this.#driver.wake()
    })
  }

  // -- what is sent ---------------------------------------------------------------------------------

  /** Publishes; with a realtime event nobody waits. */
  publish(publish: Publish, ends: Ends): Promise<Receipt> | Receipt {
    if (publish.qos === 'realtime') {
      this.#session.publish(publish)
      this.#driver.wake()
      return { level: 'accepted' }
    }
    return waiting(ends, (resolve, reject) => {
      const answered = ({ accepted: { ref: _, ...receipt } = {} }: Frame): void =>
        resolve({ level: 'accepted', matched: 0, ...receipt })
      const ref = this.#session.publish(publish, answered, reject)
      this.#driver.wake()
      return () => this.#session.withdraw(ref)
    })
  }

  /** Asks what is answered by one frame or several. */
  query<T>(make: (ref: number) => Frame, read: (frame: Frame) => T | undefined): Promise<T> {
    return new Promise((resolve, reject) => {
      const answer = (frame: Frame): boolean => {
        const read_ = read(frame)
        if (read_ !== undefined) resolve(read_)
        return read_ !== undefined
      }
      this.#session.query(make, answer, reject)
      this.#driver.wake()
    })
  }

  /** Makes a call or a request, and gives the payload of its outcome; `orElse` may take an error's. */
  call(
    make: (call: number) => Frame,
    ends: Ends,
    more: Pick<Calling, 'answer' | 'chunk'> & { orElse?: (payload: Payload) => boolean } = {},
    begun?: (call: number) => void,
  ): Promise<Payload> {
    return waiting(ends, (resolve, reject) => {
      const call = this.#session.number()
      const { orElse, ...heard } = more
      const end = ({ code = 0, payload = {} }: Outcome): void => {
        if (code === 0 || orElse?.(payload) === true) resolve(payload)
        else reject(errorOf(code, payload.json))
      }
      this.#session.call(call, make(call), { ...heard, end, fail: reject })
      begun?.(call)
      this.#driver.wake()
      return () => {
        this.#session.cancel(call)
        this.#driver.wake()
      }
    })
  }

  /** Lets so many chunks of a call come in all. */
  grant(call: number, total: number): void {
    this.#session.grant(call, total)
    this.#driver.wake()
  }

  /** Which life of the session a lease belongs to. */
  get life(): number {
    return this.#session.lives
  }

  /** Sends what belongs to a turn or an invocation of this life; of an older one it means nothing. */
  work(lease: number, life: number, frame: Frame): void {
    if (life !== this.#session.lives || lease === 0) return
    this.#session.work(lease, frame)
    this.#driver.wake()
  }

  /** A delivery has been dealt with: the node may send another one. */
  handled(envelope: Envelope | undefined, life: number): void {
    if (life !== this.#session.lives) return
    this.#session.handled(envelope?.payload?.size ?? 0)
    this.#driver.wake()
  }

  /** Sends what nobody waits for. */
  tell(frame: Frame): void {
    this.#session.tell(frame)
    this.#driver.wake()
  }

  // -- what comes -------------------------------------------------------------------------------------

  changed(change: LinkChange): void {
    this.#last = change
    if (this.error) this.forgotten()
    for (const listener of [...this.#listeners]) listener(change)
  }

  deliver(event: Envelope, target: Target, isDurable: boolean): void {
    const owner = this.#owners.get(target.handle ?? 0)
    if (owner?.deliver !== undefined) {
      owner.deliver({ event, target, isDurable })
      return
    }
    // Its registration was taken back meanwhile.
    this.handled(event, this.life)
  }

  invoke(call: ActionCall): void {
    const owner = this.#owners.get(call.handle ?? 0)
    if (owner?.invoke !== undefined) owner.invoke(call)
    else this.handled(call.event, this.life)
  }

  stop(lease: number): void {
    this.running.get(lease)?.stop()
  }

  granted(lease: number, total: number): void {
    this.running.get(lease)?.grant(total)
  }

  probe(probe: Probe): void {
    this.#owners.get(probe.handle ?? 0)?.probe?.(probe)
  }

  forgotten(): void {
    for (const running of this.running.values()) running.stop()
    for (const owner of this.#owners.values()) owner.forgotten?.()
  }

  refused(error: LoomError): void {
    this.changed({ ...this.#last, error })
  }
}
