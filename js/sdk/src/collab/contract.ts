// Give a task to the best bidder: the side of who wants it done.

import type { Context } from '../context.js'
import { type Code, invalid, LoomError } from '../errors.js'
import type { Event } from '../event.js'
import { CODES } from '../gen/errors.js'
import { CONTRACT_BIDS } from '../gen/limits.js'
import { type Check, checkOf, type Output, type Schema } from '../schema.js'
import { uuid } from '../uuid.js'
import { type Awarded, bidMade, type Cfp, declined, done, milliseconds, read } from './messages.js'
import { Deadline, type Failure } from './partial.js'

const LEFT = 'loom.directory.agent.left'
const CHANGED = 'loom.directory.agent.changed'

/** What one contractor bid: a score, the higher the better, and what else it offers. */
export interface Bid {
  sender: string
  score: number
  offer: unknown
}

/** A contractor that did not bid, and why. */
export interface Decline {
  sender: string
  code: string
  message: string
}

/** Messages that changed nothing, counted. */
export interface Ignored {
  late: number
  duplicate: number
  foreign: number
  malformed: number
}

/** How a contract was fulfilled. */
export interface Award<T> {
  winner: string
  result: T
  /** The best first. */
  bids: Bid[]
  declined: Decline[]
  /** The better bidders that failed or left. */
  failures: Failure[]
  reawards: number
  ignored: Ignored
}

export interface ContractOptions<S extends Schema | undefined> {
  /** Where contractors hear of it. */
  topic: string
  bidTimeoutMs: number
  timeoutMs: number
  /** For each bidder; by default an equal share of what is left. */
  workTimeoutMs?: number
  /** What a bid is worth; by default the score that it names. */
  score?: (bid: Bid) => number
  /** What the result must be. */
  schema?: S
}

/**
 * Calls for proposals on `topic`, awards `task` to the best bidder, and returns what it made. A winner
 * that fails, leaves or takes too long loses it to the next best. Throws UNAVAILABLE where nobody
 * hears it, nobody bid or all who did have failed, TIMEOUT where it was not done in time.
 */
export async function contractNet<S extends Schema | undefined = undefined>(
  ctx: Context,
  task: unknown,
  options: ContractOptions<S>,
): Promise<Award<Output<S>>> {
  const { topic, score, schema, workTimeoutMs } = options
  const deadline = new Deadline(ctx, options.timeoutMs)
  const bidding = new Deadline(ctx, options.bidTimeoutMs, 'bidTimeoutMs')
  if (options.bidTimeoutMs > options.timeoutMs) {
    throw invalid('bidTimeoutMs', 'bidding takes all the time', 'leave time for the work')
  }
  const called = (await ctx.agents({ topic })).filter((one) => one.health !== 'quarantined')
  if (called.length === 0) {
    const hint = 'start a contractor: defineContractor({ topics: [topic], … })'
    throw new LoomError('UNAVAILABLE', `no agent hears '${topic}'`, { field: 'topic', hint })
  }
  const groups = new Map(called.map((one) => [`${ctx.namespace}/${one.name}`, one.group]))
  const tender = new Tender(ctx, groups, checkOf(schema, 'output'))
  await tender.open()
  try {
    await tender.call(topic, {
      v: 1,
      task: task ?? null,
      bid_ms: milliseconds(bidding.left),
      timeout_ms: milliseconds(deadline.left),
    })
    await tender.hear(() => tender.silent === 0, bidding.at)
    const ranked = tender.rank(score)
    for (const [index, bid] of ranked.entries()) {
      if (deadline.isOver) break
      const share = workTimeoutMs ?? deadline.left / (ranked.length - index)
      const made = await tender.award(index, bid, Math.min(share, deadline.left))
      if (made !== undefined) {
        return tender.fulfilled(bid, made.result, ranked) as Award<Output<S>>
      }
    }
    throw tender.unfulfilled(topic, deadline)
  } finally {
    await tender.close()
  }
}

/** One contract, from its call to its end. */
class Tender {
  readonly #ctx: Context
  readonly #id = uuid()
  readonly #groups: ReadonlyMap<string, string>
  readonly #check: Check
  readonly #bids = new Map<string, Bid>()
  readonly #declined = new Map<string, Decline>()
  readonly #gone = new Set<string>()
  readonly #failures: Failure[] = []
  readonly #ignored: Ignored = { late: 0, duplicate: 0, foreign: 0, malformed: 0 }
  #watch: Awaited<ReturnType<Context['watch']>> | undefined
  #next: Promise<IteratorResult<Event>> | undefined
  #isBidding = true
  #isCalled = false
  #winner: Bid | undefined
  #awards = 0
  #ending: { result: unknown } | LoomError | undefined

  constructor(ctx: Context, groups: ReadonlyMap<string, string>, check: Check) {
    this.#ctx = ctx
    this.#groups = groups
    this.#check = check
  }

  async open(): Promise<void> {
    const said = ['bid', 'decline', 'done'].map((what) => this.#topic(what))
    this.#watch = await this.#ctx.watch([...said, LEFT, CHANGED], { qos: 'batched' })
  }

  /** Publishes the call on its topic, and in the thread for who watches that. */
  async call(topic: string, cfp: Cfp): Promise<void> {
    this.#isCalled = true
    await this.#ctx.emit(topic, cfp, { thread: this.#id })
    await this.#ctx.emit(this.#topic('cfp'), cfp, { thread: this.#id })
  }

  /** Lets one bidder do it; returns what it made, or undefined when it has failed. */
  async award(index: number, bid: Bid, ms: number): Promise<{ result: unknown } | undefined> {
    this.#winner = bid
    this.#ending = this.#departed(bid.sender)
    if (this.#ending === undefined) {
      this.#awards++
      await this.#say({
        v: 1,
        award: this.#awards,
        winner: bid.sender,
        timeout_ms: milliseconds(ms),
      })
      await this.hear(() => this.#ending !== undefined, performance.now() + ms)
    }
    const late = `${bid.sender} was not done in ${Math.round(ms)} ms`
    // Hearing has changed it, which the compiler does not see.
    const heard = this.#ending as { result: unknown } | LoomError | undefined
    let ending = heard ?? new LoomError('TIMEOUT', late, { who: bid.sender })
    if (!(ending instanceof LoomError)) {
      try {
        return { result: await this.#check.validate(ending.result, 'result') }
      } catch (error) {
        if (!(error instanceof LoomError)) throw error
        ending = error
      }
    }
    this.#failures.push({ index, target: bid.sender, error: ending })
    return undefined
  }

  /** Tells all who bid that it is over. */
  async close(): Promise<void> {
    await this.#watch?.close()
    if (!this.#isCalled) return
    const award = this.#awards + 1
    // Where the app is stopping, nobody is there to be told.
    await this.#say({ v: 1, award, winner: null, timeout_ms: 1 }, 'realtime').catch(() => {})
  }

  /** Takes in what is said until it is enough, or so late. */
  async hear(enough: () => boolean, until: number): Promise<void> {
    while (!enough()) {
      this.#next ??= this.#watch?.next() as Promise<IteratorResult<Event>>
      let timer: ReturnType<typeof setTimeout> | undefined
      const over = new Promise<undefined>((resolve) => {
        timer = setTimeout(() => resolve(undefined), Math.max(0, until - performance.now()))
      })
      const result = await Promise.race([this.#next, over])
      clearTimeout(timer)
      if (result === undefined) return
      this.#next = undefined
      if (result.done === true) throw new LoomError('CANCELLED', 'the contract was not fulfilled')
      this.#take(result.value)
    }
  }

  /** Groups of which nobody has answered. */
  get silent(): number {
    const there = [...this.#groups]
      .filter(([who]) => !this.#gone.has(who))
      .map(([, group]) => group)
    const answered = [...this.#bids.keys(), ...this.#declined.keys()]
    const heard = new Set(answered.map((who) => this.#groups.get(who)))
    return new Set(there.filter((group) => !heard.has(group))).size
  }

  /** The bids, the best first and of equals the one that came first. */
  rank(score: ((bid: Bid) => number) | undefined): Bid[] {
    this.#isBidding = false
    const worth = new Map<Bid, number>()
    for (const bid of this.#bids.values()) {
      const value = score === undefined ? bid.score : score(bid)
      if (!Number.isFinite(value)) throw invalid('score', `the score of ${bid.sender} is ${value}`)
      worth.set(bid, value)
    }
    return [...worth.keys()].sort((a, b) => (worth.get(b) as number) - (worth.get(a) as number))
  }

  fulfilled(bid: Bid, result: unknown, bids: Bid[]): Award<unknown> {
    return {
      winner: bid.sender,
      result,
      bids,
      declined: [...this.#declined.values()],
      failures: this.#failures,
      reawards: this.#awards - 1,
      ignored: this.#ignored,
    }
  }

  unfulfilled(topic: string, deadline: Deadline): LoomError {
    const failed = this.#failures.slice(0, 4).map(({ target, error }) => `${target}: ${error.code}`)
    if (this.#bids.size === 0) {
      const declined_ = this.#declined.size
      const message = `nobody bid on '${topic}': ${declined_} declined, ${this.silent} did not answer`
      const told = [...this.#declined.values()].slice(0, 4)
      const hint = ['start other contractors', ...told.map((no) => `${no.sender}: ${no.message}`)]
      return new LoomError('UNAVAILABLE', message, { field: 'topic', hint: hint.join('; ') })
    }
    const hint = failed.join(', ')
    if (deadline.isOver) {
      return new LoomError('TIMEOUT', `awarded ${this.#awards} times and not done in time`, {
        hint,
      })
    }
    const message = `all ${this.#bids.size} bidders on '${topic}' have failed`
    return new LoomError('UNAVAILABLE', message, { hint })
  }

  #topic(what: string): string {
    return `thread.${this.#id}.${what}`
  }

  #say(message: Awarded, qos: 'batched' | 'realtime' = 'batched'): Promise<unknown> {
    return this.#ctx.emit(this.#topic('award'), message, { thread: this.#id, qos })
  }

  #take(event: Event): void {
    if (event.topic === LEFT || event.topic === CHANGED) {
      const { name, health = 'up' } = event.data as { name?: string; health?: string }
      if (event.topic === LEFT || health !== 'up') this.#left(`${this.#ctx.namespace}/${name}`)
      return
    }
    if (!this.#groups.has(event.sender)) {
      this.#ignored.foreign++
      return
    }
    try {
      const what = event.topic.split('.').at(-1)
      if (what === 'bid') this.#onBid(event)
      else if (what === 'decline') this.#onDecline(event)
      else this.#onDone(event)
    } catch (error) {
      if (!(error instanceof LoomError)) throw error
      this.#ignored.malformed++
    }
  }

  #onBid({ sender, data }: Event): void {
    const { score, offer } = read(bidMade, data)
    if (this.#bids.has(sender) || this.#declined.has(sender)) this.#ignored.duplicate++
    else if (!this.#isBidding || this.#bids.size >= CONTRACT_BIDS) this.#ignored.late++
    else {
      this.#gone.delete(sender) // it has started again
      this.#bids.set(sender, { sender, score, offer })
    }
  }

  #onDecline({ sender, data }: Event): void {
    const { award, code, message } = read(declined, data)
    if (award !== null) {
      const known = code in CODES ? (code as Code) : 'HANDLER_ERROR'
      const error = new LoomError(known, message, { who: sender })
      if (this.#isOfWinner(sender, award)) this.#ending = error
      else this.#ignored.late++
    } else if (this.#bids.has(sender) || this.#declined.has(sender)) this.#ignored.duplicate++
    else if (this.#declined.size < CONTRACT_BIDS)
      this.#declined.set(sender, { sender, code, message })
  }

  #onDone({ sender, data }: Event): void {
    const { award, result } = read(done, data)
    if (this.#isOfWinner(sender, award)) this.#ending = { result }
    else this.#ignored.late++
  }

  /** One has left, or crashed, and so knows nothing of its bid any more. */
  #left(who: string): void {
    if (!this.#groups.has(who)) return
    this.#gone.add(who)
    if (this.#winner?.sender === who) this.#ending ??= this.#departed(who)
  }

  #departed(who: string): LoomError | undefined {
    if (!this.#gone.has(who)) return undefined
    return new LoomError('UNAVAILABLE', `${who} has left or crashed`, { who })
  }

  #isOfWinner(sender: string, award: number): boolean {
    return this.#ending === undefined && this.#winner?.sender === sender && this.#awards === award
  }
}
