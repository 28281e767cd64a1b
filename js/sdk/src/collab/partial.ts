// Partial results, and what a majority is.

import { bytesIn, payloadFor } from '../codec/payload.js'
import type { Context } from '../context.js'
import { Cut, waiting } from '../cut.js'
import { invalid, type LoomError } from '../errors.js'
import { sorted } from '../sorted.js'

/** What one target of a `fanout` gave. */
export interface Item<T> {
  /** Its place among the targets. */
  index: number
  /** Its topic, or its capability's name. */
  target: string
  data: T
}

/** One that gave an error. */
export interface Failure {
  index: number
  target: string
  error: LoomError
}

/** What there was when it was enough, or when time was up. */
export interface Partial<I> {
  /** In the order they came. */
  items: I[]
  failures: Failure[]
  /** Those that gave neither. */
  missing: number
  /** Time was up before it was enough. */
  timedOut: boolean
}

/** Counts votes of at most `of` voters until more than half of them agree. */
export class Poll {
  /** The number of the first vote of those that agree. */
  winner: number | undefined
  readonly #of: number
  readonly #votes = new Map<unknown, { first: number; count: number }>()
  #cast = 0
  #spoilt = 0

  constructor(of: number) {
    checkWhole(of, 'of')
    this.#of = of
  }

  vote(key: unknown): void {
    const vote = this.#votes.get(key) ?? { first: this.#cast, count: 0 }
    this.#votes.set(key, vote)
    this.#cast++
    vote.count++
    if (vote.count * 2 > this.#of) this.winner ??= vote.first
  }

  /** One will not vote. */
  spoil(): void {
    this.#spoilt++
  }

  /** How many agree at most. */
  get most(): number {
    return Math.max(0, ...[...this.#votes.values()].map((vote) => vote.count))
  }

  /** A majority is there, or cannot come any more. */
  get isOver(): boolean {
    const left = Math.max(0, this.#of - this.#spoilt - this.#cast)
    return this.winner !== undefined || (this.most + left) * 2 <= this.#of
  }
}

/** What is equal for values that are the same data, whatever the order of their members. */
export function sameValue(value: unknown): unknown {
  if (value instanceof Uint8Array) return `bytes ${bytesIn(payloadFor(value)).join()}`
  return sorted(value ?? null)
}

export function checkWhole(
  value: number,
  field: string,
  most: number = Number.MAX_SAFE_INTEGER,
  limit?: string,
): void {
  if (Number.isInteger(value) && value >= 1 && value <= most) return
  throw invalid(
    field,
    `${field} is ${String(value)}`,
    `give a whole number from 1 to ${most}`,
    limit,
  )
}

export function checkList(
  values: readonly unknown[],
  field: string,
  most: number,
  limit: string,
): void {
  if (!Array.isArray(values) || values.length === 0) {
    throw invalid(field, `there are no ${field}`, 'give a list of one or more')
  }
  if (values.length > most) {
    throw invalid(field, `${values.length} ${field}, ${most} are allowed`, undefined, limit)
  }
}

/** One deadline for all that a primitive waits for: so many milliseconds from now, or with its turn. */
export class Deadline {
  readonly at: number

  constructor(ctx: Context, ms: number, field = 'timeoutMs') {
    if (typeof ms !== 'number' || !(ms > 0) || !Number.isFinite(ms)) {
      throw invalid(field, `${field} is ${String(ms)}`, 'give milliseconds')
    }
    this.at = Math.min(performance.now() + ms, ctx.deadline ?? Infinity)
  }

  get left(): number {
    return Math.max(0, this.at - performance.now())
  }

  get isOver(): boolean {
    return this.left <= 2 // the node counts in milliseconds
  }
}

/** Something that several wait for. */
export class Change {
  #cut = new Cut()

  /** Wakes all who wait. */
  wake(): void {
    const cut = this.#cut
    this.#cut = new Cut()
    cut.cut(undefined)
  }

  /** Waits for the next wake, at most so long; tells whether it came. Throws what ends `ctx`. */
  async wait(ctx: Context, ms: number): Promise<boolean> {
    const cut = this.#cut
    await waiting<void>([ctx.scope.cut], (resolve) => {
      const timer = setTimeout(resolve, ms)
      const wake = (): void => {
        clearTimeout(timer)
        resolve()
      }
      cut.addEventListener('abort', wake)
      return () => {
        clearTimeout(timer)
        cut.removeEventListener('abort', wake)
      }
    })
    return cut.aborted
  }
}
