// Wait until all have come.

import { type Agent, defineAgent } from '../agent.js'
import type { Context } from '../context.js'
import { invalid, LoomError } from '../errors.js'
import type { Event } from '../event.js'
import {
  AGENT_CONCURRENCY_MAX,
  BARRIER_KEPT_SECONDS,
  BARRIER_MEMBERS,
  BARRIER_WAITING,
  BARRIERS,
} from '../gen/limits.js'
import { checkName } from '../topics.js'
import { uuid } from '../uuid.js'
import { type Arrival, arrival, milliseconds, type Outcome, outcome } from './messages.js'
import { Change, checkWhole, Deadline } from './partial.js'

const COORDINATOR = 'loom.barrier'
const GRACE_MS = 1000 // that a member waits longer than its barrier, for word of how it ended

/** How a barrier ended, the same for all members. */
export interface Meeting {
  n: number
  /** Those who came in time, in the order they came. */
  members: string[]
  /** Whether these are all. */
  complete: boolean
}

export interface BarrierOptions {
  timeoutMs: number
  /** Tells members of one agent apart. */
  member?: string
  /** By default that of the turn. */
  thread?: string
}

/**
 * Comes to the barrier `name` of a thread; returns when `n` have come, or when the first who waits
 * has waited its `timeoutMs`. Who comes later gets the same outcome. Throws CONFLICT where others wait
 * for another `n`, EXHAUSTED, INVALID_PARAMS.
 */
export async function barrier(
  ctx: Context,
  name: string,
  n: number,
  options: BarrierOptions,
): Promise<Meeting> {
  checkName(name)
  checkWhole(n, 'n', BARRIER_MEMBERS, 'barrier_members')
  const member = options.member === undefined ? null : checkName(options.member, 'member')
  const thread = options.thread ?? ctx.threadId
  if (thread === undefined) {
    const hint = 'give thread, the same for all who meet'
    throw invalid('thread', 'outside a handler a barrier belongs to no thread', hint)
  }
  const deadline = new Deadline(ctx, options.timeoutMs)
  const [there] = await ctx.agents({ name: COORDINATOR })
  if (there === undefined) await ctx.scope.host.start(coordinator())
  const said: Arrival = { v: 1, n, member, timeout_ms: milliseconds(deadline.left) }
  const answer = await ctx.request(`thread.${thread}.barrier.${name}`, said, {
    schema: outcome,
    timeoutMs: deadline.left + GRACE_MS,
    key: uuid(), // members wait side by side, each in a lane of its own
    thread,
  })
  const { members, complete } = answer.data
  return { n: answer.data.n, members, complete }
}

interface Barrier {
  n: number
  members: Set<string>
  change: Change
  outcome: Outcome | undefined
  endedAt: number
}

/** Keeps the barriers: an ordinary agent, started where the first member comes and there is none. */
function coordinator(): Agent {
  const barriers = new Map<string, Barrier>() // the oldest first
  let waits = 0

  const end = (one: Barrier): Outcome => {
    if (one.outcome === undefined) {
      const members = [...one.members]
      one.outcome = { v: 1, n: one.n, members, complete: members.length === one.n }
      one.endedAt = performance.now()
      one.change.wake()
    }
    return one.outcome
  }

  const find = (topic: string, n: number): Barrier => {
    const now = performance.now()
    for (const [known, one] of barriers) {
      const isOld = one.outcome !== undefined && now - one.endedAt >= BARRIER_KEPT_SECONDS * 1000
      if (isOld || barriers.size > BARRIERS) {
        end(one)
        barriers.delete(known)
      }
    }
    const one = barriers.get(topic) ?? {
      n,
      members: new Set<string>(),
      change: new Change(),
      outcome: undefined,
      endedAt: 0,
    }
    if (one.n !== n) {
      throw new LoomError('CONFLICT', `this barrier is one of ${one.n}, not of ${n}`, {
        field: 'n',
        hint: 'all members give the same n; another round needs another name',
      })
    }
    barriers.set(topic, one)
    return one
  }

  return defineAgent({
    name: COORDINATOR,
    topics: ['thread.*.barrier.>'],
    concurrency: AGENT_CONCURRENCY_MAX,
    schema: arrival,
    onEvent: async (ctx: Context, event: Event<Arrival>) => {
      if (!event.wantsReply) throw invalid('topic', 'an arrival is a request', 'use barrier')
      const one = find(event.topic, event.data.n)
      if (one.outcome !== undefined) return one.outcome
      const { member, timeout_ms } = event.data
      if (one.members.size + 1 < one.n && waits >= BARRIER_WAITING) {
        throw new LoomError('EXHAUSTED', `${waits} members wait at barriers`, {
          limit: 'barrier_waiting',
        })
      }
      one.members.add(member === null ? event.sender : `${event.sender}/${member}`)
      if (one.members.size < one.n) {
        waits++
        const deadline = new Deadline(ctx, timeout_ms)
        try {
          while (one.outcome === undefined && (await one.change.wait(ctx, deadline.left)));
        } finally {
          waits--
        }
      }
      return end(one)
    },
  })
}
