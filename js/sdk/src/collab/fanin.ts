// Listen to many, and take what is enough.

import type { Context } from '../context.js'
import { LoomError } from '../errors.js'
import type { Event } from '../event.js'
import { AGENT_FILTERS, FANIN_EVENTS } from '../gen/limits.js'
import { type Check, checkOf, type Output, type Schema } from '../schema.js'
import { checkFilters, matches } from '../topics.js'
import type { Watch } from '../watch.js'
import {
  checkList,
  checkWhole,
  Deadline,
  type Failure,
  type Partial,
  Poll,
  sameValue,
} from './partial.js'

const ALL_THREADS = '*'

export interface FaninOptions<S extends Schema | undefined> {
  /** From the beginning on. */
  timeoutMs: number
  /** What data must be; other data is a failure of its sender. */
  schema?: S
  /** By default that of the turn, and outside a handler all: `*`. */
  thread?: string
}

/**
 * Events that come in; each method waits for as much as it says, and sees the same events. `close`
 * it when it is enough; `await using` does.
 */
export class Fanin<T> implements AsyncDisposable {
  readonly #source: Watch
  readonly #topics: readonly string[]
  readonly #deadline: Deadline
  readonly #thread: string | undefined
  readonly #check: Check
  readonly #events: Event<T>[] = []
  readonly #failures: Failure[] = []
  #next: Promise<IteratorResult<Event>> | undefined

  /** Made by `fanin`. */
  constructor(
    source: Watch,
    topics: readonly string[],
    deadline: Deadline,
    thread: string | undefined,
    check: Check,
  ) {
    this.#source = source
    this.#topics = topics
    this.#deadline = deadline
    this.#thread = thread
    this.#check = check
  }

  /** The data of the first event. Throws TIMEOUT. */
  async any(): Promise<T> {
    await this.#until(() => this.#events.length > 0)
    const [first] = this.#events
    if (first === undefined) {
      throw new LoomError('TIMEOUT', `nothing came on ${this.#topics.join(', ')} in time`)
    }
    return first.data
  }

  /** Returns when `k` events have come, or time is up. */
  async first(k: number): Promise<Partial<Event<T>>> {
    checkWhole(k, 'k', FANIN_EVENTS, 'fanin_events')
    const inTime = await this.#until(() => this.#events.length >= k)
    return this.#partial(k - this.#events.length, inTime)
  }

  /** Returns when an event of each filter has come, or time is up. */
  async all(): Promise<Partial<Event<T>>> {
    const inTime = await this.#until(() => this.#silent() === 0)
    return this.#partial(this.#silent(), inTime)
  }

  /** The data on which more than half of `of` senders agree; each has one vote, its first. */
  async majority(of: number, key: (data: T) => unknown = sameValue): Promise<T> {
    const poll = new Poll(of)
    const voted = new Set<string>()
    const ballots: Event<T>[] = []
    let counted = 0
    let failed = 0
    const isOver = (): boolean => {
      for (const event of this.#events.slice(counted)) {
        counted++
        if (voted.has(event.sender)) continue
        voted.add(event.sender)
        ballots.push(event)
        poll.vote(key(event.data))
      }
      for (const { target } of this.#failures.slice(failed)) {
        failed++
        if (!voted.has(target)) poll.spoil()
        voted.add(target)
      }
      return poll.isOver
    }
    const agree = `at most ${poll.most} of ${of} agree`
    if (!(await this.#until(isOver))) throw new LoomError('TIMEOUT', `${agree} in time`)
    if (poll.winner === undefined) throw new LoomError('UNAVAILABLE', `${agree}, and no more can`)
    return (ballots[poll.winner] as Event<T>).data
  }

  /** Returns when `enough` says so of the events that have come, or time is up. */
  async until(enough: (events: readonly Event<T>[]) => boolean): Promise<Partial<Event<T>>> {
    return this.#partial(0, await this.#until(() => enough(this.#events)))
  }

  close(): Promise<void> {
    return this.#source.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** Takes events until it is enough; tells whether it was in time. */
  async #until(enough: () => boolean): Promise<boolean> {
    while (!enough()) {
      this.#next ??= this.#source.next()
      let timer: ReturnType<typeof setTimeout> | undefined
      const over = new Promise<undefined>((resolve) => {
        timer = setTimeout(() => resolve(undefined), this.#deadline.left)
      })
      const result = await Promise.race([this.#next, over])
      clearTimeout(timer)
      if (result === undefined) return enough()
      this.#next = undefined
      if (result.done === true) throw new LoomError('CANCELLED', 'nothing is heard any more')
      await this.#keep(result.value)
    }
    return true
  }

  async #keep(event: Event): Promise<void> {
    if (this.#thread !== undefined && event.threadId !== this.#thread) return
    if (this.#events.length + this.#failures.length >= FANIN_EVENTS) {
      throw new LoomError('EXHAUSTED', `${FANIN_EVENTS} events have come and it is not enough`, {
        limit: 'fanin_events',
        hint: 'listen to fewer topics, or ask for less',
      })
    }
    try {
      const data = (await this.#check.validate(event.data, 'data')) as T
      this.#events.push(data === event.data ? (event as Event<T>) : event.with(data))
    } catch (error) {
      if (!(error instanceof LoomError)) throw error
      const index = this.#topics.findIndex((topic) => matches(topic, event.topic))
      this.#failures.push({ index, target: event.sender, error })
    }
  }

  #silent(): number {
    const heard = new Set(this.#events.map((event) => event.topic))
    return this.#topics.filter((one) => ![...heard].some((topic) => matches(one, topic))).length
  }

  #partial(missing: number, inTime: boolean): Partial<Event<T>> {
    return {
      items: [...this.#events],
      failures: [...this.#failures],
      missing: Math.max(0, missing),
      timedOut: !inTime,
    }
  }
}

/** Listens to events of some filters from now on. Throws INVALID_PARAMS. */
export async function fanin<S extends Schema | undefined = undefined>(
  ctx: Context,
  topics: readonly string[],
  options: FaninOptions<S>,
): Promise<Fanin<Output<S>>> {
  checkList(topics, 'topics', AGENT_FILTERS, 'agent_filters')
  checkFilters(topics, 'topics')
  const deadline = new Deadline(ctx, options.timeoutMs)
  const wanted = options.thread ?? ctx.threadId
  const thread = wanted === ALL_THREADS ? undefined : wanted
  const check = checkOf(options.schema, 'input')
  const source = await ctx.watch(topics, { qos: 'batched' })
  return new Fanin<Output<S>>(source, topics, deadline, thread, check)
}
