// An ordered stream of events: what `ctx.watch` and `ctx.joinThread` read.

import { Cut, waiting } from './cut.js'
import { type Event, eventOf } from './event.js'
import type { Qos } from './gen/frames.js'
import { QUEUE_ITEMS } from './gen/limits.js'
import type { Delivery, Ends, Link } from './link/link.js'
import { Queue } from './session/queue.js'
import { checkFilters } from './topics.js'

/**
 * Events as they come, each once. One reader; leaving its loop closes it. When the node ends the
 * session for good, as when its token is revoked, reading throws why.
 */
export class Watch implements AsyncIterableIterator<Event>, AsyncDisposable {
  /** Events that were lost here, as nobody read them in time. */
  dropped = 0
  readonly #link: Link
  readonly #isRealtime: boolean
  readonly #queue = new Queue<Delivery & { life: number }>()
  readonly #left = new Cut()
  #handle = 0
  #wake: (() => void) | undefined

  private constructor(link: Link, qos: Qos) {
    this.#link = link
    this.#isRealtime = qos === 'realtime'
  }

  /** Begins to listen; returns when the node has said so. */
  static async open(link: Link, filters: readonly string[], qos: Qos, ends: Ends): Promise<Watch> {
    checkFilters(filters, 'filters')
    for (const end of ends) end?.throwIfAborted()
    const watch = new Watch(link, qos)
    const frame = (handle: number) => ({ subscribe: { handle, filters: [...filters], qos } })
    watch.#handle = await link.register(frame, {
      deliver: (delivery) => watch.#take(delivery),
      forgotten: () => {
        watch.#queue.clear()
        watch.#wake?.() // the link may have ended
      },
    })
    // Whatever ends it first, the others forget it.
    void waiting([watch.#left, ...ends], () => () => {}).catch(() => watch.close())
    return watch
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  async next(): Promise<IteratorResult<Event>> {
    for (;;) {
      const delivery = this.#queue.shift()
      if (delivery !== undefined) {
        if (!this.#isRealtime) this.#ended(delivery)
        return { done: false, value: eventOf(delivery.event) }
      }
      if (this.#left.aborted) return { done: true, value: undefined }
      if (this.#link.error) throw this.#link.error
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  async return(): Promise<IteratorResult<Event>> {
    await this.close()
    return { done: true, value: undefined }
  }

  /** Stops listening. Who waits for an event is told that there are no more. */
  async close(): Promise<void> {
    if (this.#left.aborted) return
    this.#left.cut(undefined)
    const left = this.#queue.clear()
    if (!this.#isRealtime) for (const delivery of left) this.#ended(delivery)
    this.#wake?.()
    if (!this.#link.isOver) await this.#link.remove(this.#handle)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #take(delivery: Delivery): void {
    const taken = { ...delivery, life: this.#link.life }
    this.#queue.push(taken)
    // Of realtime the newest stay here, where the reader is: the node does not wait for him.
    if (this.#isRealtime) {
      this.#ended(taken)
      if (this.#queue.length > QUEUE_ITEMS) {
        this.dropped++
        this.#queue.shift()
      }
    }
    this.#wake?.()
  }

  #ended({ target, event, life }: Delivery & { life: number }): void {
    const { lease = 0 } = target
    this.#link.work(lease, life, { ack: { leases: [lease] } })
    this.#link.handled(event, life)
  }
}
