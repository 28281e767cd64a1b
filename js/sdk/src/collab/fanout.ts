// Ask many side by side, and take what is enough.

import { type Capability, isCapability } from '../capability.js'
import { payloadFor } from '../codec/payload.js'
import type { Context } from '../context.js'
import { invalid, LoomError } from '../errors.js'
import { FANOUT_TARGETS } from '../gen/limits.js'
import type { Output, Schema } from '../schema.js'
import { checkTopic } from '../topics.js'
import {
  Change,
  checkList,
  checkWhole,
  Deadline,
  type Failure,
  type Item,
  type Partial,
  Poll,
  sameValue,
} from './partial.js'

const GRACE_MS = 250 // after the deadline, in which a target may still say how it ended

/** A topic, which gets the data as a request; or a capability and its arguments. */
export type Target = string | readonly [Capability | string, Record<string, unknown>]

export interface FanoutOptions<S extends Schema | undefined> {
  /** One deadline for all. */
  timeoutMs: number
  /** What answers must be; others are failures. */
  schema?: S
}

/**
 * Requests and calls under way; each method waits for as much as it says, and sees the same answers.
 * `close` it when it is enough: what has not ended is cancelled. `await using` does.
 */
export class Fanout<T> implements AsyncDisposable {
  readonly #ctx: Context
  readonly #total: number
  readonly #deadline: Deadline
  readonly #items: Item<T>[] = []
  readonly #failures: Failure[] = []
  readonly #change = new Change()
  readonly #left = new AbortController()
  #open: number
  #timedOut = false
  #isClosed = false

  /** Made by `fanout`. */
  constructor(ctx: Context, total: number, deadline: Deadline) {
    this.#ctx = ctx
    this.#total = total
    this.#open = total
    this.#deadline = deadline
  }

  /** What the first to answer gave. Throws TIMEOUT, or UNAVAILABLE where all have failed. */
  async any(): Promise<T> {
    await this.#while(() => this.#items.length === 0)
    const [first] = this.#items
    if (first === undefined) throw this.#nothing('none', 'answered')
    return first.data
  }

  /** Returns when `k` have answered, or cannot any more, or time is up. */
  async first(k: number): Promise<Partial<Item<T>>> {
    checkWhole(k, 'k', this.#total)
    await this.#while(() => this.#items.length < k && k <= this.#items.length + this.#open)
    return this.#partial()
  }

  /** Returns when all have answered or failed, or time is up. */
  async all(): Promise<Partial<Item<T>>> {
    await this.#while(() => true)
    return this.#partial()
  }

  /** The answer on which more than half of all targets agree: those whose `key` is equal. */
  async majority(key: (data: T) => unknown = sameValue): Promise<T> {
    const poll = new Poll(this.#total)
    let voted = 0
    let spoilt = 0
    const goesOn = (): boolean => {
      for (; voted < this.#items.length; voted++)
        poll.vote(key((this.#items[voted] as Item<T>).data))
      for (; spoilt < this.#total - this.#open - voted; spoilt++) poll.spoil()
      return !poll.isOver
    }
    await this.#while(goesOn)
    goesOn()
    if (poll.winner === undefined) throw this.#nothing(`at most ${poll.most}`, 'agree')
    return (this.#items[poll.winner] as Item<T>).data
  }

  /** Cancels what has not ended. */
  async close(): Promise<void> {
    this.#isClosed = true
    this.#left.abort(new LoomError('CANCELLED', 'the fanout was left'))
    this.#change.wake()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** Asks them. Used by `fanout`. */
  begin(
    targets: readonly Target[],
    data: unknown,
    options: FanoutOptions<Schema | undefined>,
  ): void {
    const { timeoutMs, schema } = options
    const more = { timeoutMs, signal: this.#left.signal, ...(schema && { schema }) }
    for (const [index, target] of targets.entries()) {
      const name = nameOf(target)
      ask(this.#ctx, target, data, more).then(
        (answer) => this.#ended(() => this.#items.push({ index, target: name, data: answer as T })),
        (error) =>
          this.#ended(() => this.#failed({ index, target: name, error: asError(error, name) })),
      )
    }
  }

  #ended(how: () => void): void {
    if (this.#isClosed) return
    this.#open--
    how()
    this.#change.wake()
  }

  #failed(failure: Failure): void {
    const { code } = failure.error
    const isLate = this.#deadline.isOver && (code === 'TIMEOUT' || code === 'INDETERMINATE')
    this.#timedOut ||= isLate
    // One that is late is missing; one that may have done something is a failure all the same.
    if (!isLate || code === 'INDETERMINATE') this.#failures.push(failure)
  }

  async #while(goesOn: () => boolean): Promise<void> {
    while (this.#open > 0 && !this.#isClosed && goesOn()) {
      if (await this.#change.wait(this.#ctx, this.#deadline.left + GRACE_MS)) continue
      this.#timedOut = true
      await this.close()
    }
  }

  #partial(): Partial<Item<T>> {
    const items = [...this.#items]
    const failures = [...this.#failures]
    const missing = this.#total - items.length - failures.length
    return { items, failures, missing, timedOut: this.#timedOut }
  }

  #nothing(who: string, did: string): LoomError {
    const told = this.#failures.slice(0, 4).map(({ target, error }) => `${target}: ${error.code}`)
    const hint = told.length > 0 ? told.join(', ') : 'give it more time'
    return this.#timedOut
      ? new LoomError('TIMEOUT', `${who} of ${this.#total} ${did} in time`, { hint })
      : new LoomError('UNAVAILABLE', `${who} of ${this.#total} ${did}`, { hint })
  }
}

/** Asks all targets at once. Throws INVALID_PARAMS: no targets, too many, or one that is none. */
export function fanout<S extends Schema | undefined = undefined>(
  ctx: Context,
  targets: readonly Target[],
  data: unknown,
  options: FanoutOptions<S>,
): Fanout<Output<S>> {
  checkList(targets, 'targets', FANOUT_TARGETS, 'fanout_targets')
  for (const target of targets) {
    if (typeof target === 'string') checkTopic(target)
    else if (!Array.isArray(target) || target.length !== 2 || typeof target[1] !== 'object') {
      throw invalid(
        'targets',
        'that is no target',
        'give a topic, or [capability, { name: value }]',
      )
    }
  }
  payloadFor(data) // what is wrong with it is said here, once, and not by each target
  const group = new Fanout<Output<S>>(ctx, targets.length, new Deadline(ctx, options.timeoutMs))
  group.begin(targets, data, options)
  return group
}

async function ask(
  ctx: Context,
  target: Target,
  data: unknown,
  options: { timeoutMs: number; signal: AbortSignal; schema?: Schema },
): Promise<unknown> {
  if (typeof target === 'string') return (await ctx.request(target, data, options)).data
  return ctx.tool(target[0] as string, target[1], options)
}

function nameOf(target: Target): string {
  if (typeof target === 'string') return target
  return isCapability(target[0]) ? target[0].name : target[0]
}

function asError(error: unknown, name: string): LoomError {
  if (error instanceof LoomError) return error
  const kind = error instanceof Error ? error.constructor.name : typeof error
  return new LoomError('HANDLER_ERROR', `asking ${name} raised ${kind}`)
}
