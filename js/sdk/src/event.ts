// What travels, as a handler sees it.

import { bytesIn, valueIn } from './codec/payload.js'
import { checkMs, invalid } from './errors.js'
import type { AckLevel, Envelope, Qos } from './gen/frames.js'

export type { AckLevel, Qos } from './gen/frames.js'

/** What a publish was promised. */
export interface Receipt {
  /** The event's id; none of a realtime event, for which nobody waits. */
  id?: string
  level: AckLevel
  /** Subscriptions and groups that got it, where the node tells. */
  matched?: number
  /** Its place in the log, where there is one. */
  position?: string
}

/** How the turn of a durable event ends; undefined for other events. */
export interface Settle {
  ack(): void
  nak(delayMs: number | undefined): void
  extend(): void
  term(reason: string): void
}

/** One event with its data decoded. */
export class Event<T = unknown> {
  /** What was sent: a JSON value, or bytes. */
  readonly data: T
  /** Which delivery of it this is: 1 the first. */
  readonly attempt: number
  /** Whether somebody waits for a reply. */
  readonly wantsReply: boolean
  readonly #envelope: Envelope
  readonly #settle: Settle | undefined

  constructor(envelope: Envelope, data: T, wantsReply = false, attempt = 1, settle?: Settle) {
    this.#envelope = envelope
    this.data = data
    this.wantsReply = wantsReply
    this.attempt = attempt
    this.#settle = settle
  }

  get id(): string {
    return this.#envelope.id ?? ''
  }
  get topic(): string {
    return this.#envelope.topic ?? ''
  }
  /** `namespace/name` of the publisher, stamped by the node. */
  get sender(): string {
    return this.#envelope.sender ?? ''
  }
  /** The conversation it belongs to. */
  get threadId(): string {
    return this.#envelope.thread_name || this.#envelope.thread_id || this.id
  }
  /** The id of the root event that all this follows from. */
  get runId(): string {
    return this.#envelope.run_id || this.id
  }
  get correlationId(): string | undefined {
    return this.#envelope.correlation_id
  }
  get causationId(): string | undefined {
    return this.#envelope.causation_id
  }
  get causes(): readonly string[] {
    return this.#envelope.causes ?? []
  }
  get key(): string | undefined {
    return this.#envelope.key
  }
  get qos(): Qos {
    return this.#envelope.qos ?? 'batched'
  }
  get hop(): number {
    return this.#envelope.hop ?? 0
  }
  /** Milliseconds since 1970, on the node's clock. */
  get timeMs(): number {
    return this.#envelope.time_ms ?? 0
  }
  get ttlMs(): number | undefined {
    return this.#envelope.ttl_ms
  }
  get headers(): Readonly<Record<string, string>> {
    return Object.fromEntries(
      (this.#envelope.headers ?? []).map(({ name = '', value = '' }) => [name, value]),
    )
  }
  get labels(): readonly string[] {
    return this.#envelope.labels ?? []
  }
  get traceparent(): string | undefined {
    return this.#envelope.traceparent
  }
  get contentType(): string {
    return this.#envelope.payload?.type || 'application/json'
  }
  /** The data as bytes. */
  get payload(): Uint8Array {
    return bytesIn(this.#envelope.payload)
  }
  /** Its place in the log, opaque and ordered. */
  get position(): string | undefined {
    return this.#envelope.position
  }
  /** Whether it is given again until it is acknowledged. */
  get isDurable(): boolean {
    return this.#settle !== undefined
  }

  /** The same event with its data as something else. */
  with<D>(data: D): Event<D> {
    return new Event(this.#envelope, data, this.wantsReply, this.attempt, this.#settle)
  }

  /** Says that this durable event is done, whatever comes after. */
  ack(): void {
    this.#settling().ack()
  }

  /** Says that this durable event is to be given again, after a pause. Throws INVALID_PARAMS. */
  nak(delayMs?: number): void {
    this.#settling().nak(delayMs === undefined ? delayMs : checkMs(delayMs, 'delayMs'))
  }

  /** Says that this durable event is being worked on. */
  extend(): void {
    this.#settling().extend()
  }

  /** Gives this durable event up: it becomes a dead letter. */
  term(reason = ''): void {
    this.#settling().term(reason)
  }

  #settling(): Settle {
    if (this.#settle !== undefined) return this.#settle
    throw invalid('event', 'this event is not durable')
  }
}

/** An event whose data is what the payload holds. */
export function eventOf(envelope: Envelope): Event {
  return new Event(envelope, valueIn(envelope.payload))
}
