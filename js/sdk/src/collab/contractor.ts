// Bid for tasks and do what is awarded: the side of who does it.

import { type Agent, defineAgent } from '../agent.js'
import type { Context } from '../context.js'
import { LoomError, toWire } from '../errors.js'
import type { Event } from '../event.js'
import { CONTRACTS_OPEN } from '../gen/limits.js'
import { checkOf, type Output, type Schema } from '../schema.js'
import { type Awarded, awarded, type Cfp, cfp, read } from './messages.js'

/** A bid that says more than its score. */
export interface Proposal {
  score: number
  offer?: unknown
}

export interface ContractorOptions<S extends Schema | undefined> {
  name: string
  /** Where it hears of tasks. */
  topics: readonly string[]
  /** What a task must be. */
  schema?: S
  description?: string
  /** Returns the score of a bid, the higher the better; null declines. */
  bid: (
    ctx: Context,
    task: Output<S>,
  ) => number | Proposal | null | Promise<number | Proposal | null>
  /** Does the task. `signal` is aborted when it is taken away again. */
  execute: (ctx: Context, task: Output<S>, signal: AbortSignal) => unknown
  /** Hears that a contract is over in which it had a bid and was never awarded. */
  lost?: (ctx: Context, task: Output<S>) => unknown
}

interface Contract<T> {
  manager: string
  task: T
  until: number
}

/** An agent that bids for tasks on its topics, and does those that it wins; alone in its group. */
export function defineContractor<S extends Schema | undefined = undefined>(
  options: ContractorOptions<S>,
): Agent {
  const { name, topics, bid, execute, lost, description = '' } = options
  const check = checkOf(options.schema, 'input')
  const contracts = new Map<string, Contract<Output<S>>>()

  const onCall = async (ctx: Context, event: Event): Promise<void> => {
    const contract = event.threadId
    await declining(ctx, contract, null, async () => {
      const call: Cfp = read(cfp, event.data)
      const now = performance.now()
      for (const [known, { until }] of contracts) if (until <= now) contracts.delete(known)
      if (contracts.size >= CONTRACTS_OPEN) {
        throw new LoomError('EXHAUSTED', `${name} has bids in ${contracts.size} contracts`, {
          limit: 'contracts_open',
        })
      }
      const task = (await check.validate(call.task, 'data.task')) as Output<S>
      const made = await bid(ctx, task)
      if (made === null) {
        await decline(ctx, contract, null, 'UNAVAILABLE', 'it does not want to')
        return
      }
      const { score, offer = null } = typeof made === 'number' ? { score: made } : made
      await ctx.emit(`thread.${contract}.bid`, { v: 1, score, offer }, { thread: contract })
      contracts.set(contract, { manager: event.sender, task, until: now + call.timeout_ms })
    })
  }

  const onAward = async (ctx: Context, event: Event): Promise<void> => {
    const contract = event.topic.split('.')[1] as string
    const said: Awarded = read(awarded, event.data)
    const isMine = said.winner === `${ctx.namespace}/${name}`
    const known = contracts.get(contract)
    if (known === undefined) {
      const message = `${name} has no bid in this contract`
      if (isMine) await decline(ctx, contract, said.award, 'CONFLICT', message)
      return
    }
    if (event.sender !== known.manager) {
      const message = `${event.sender} awards a contract of ${known.manager}`
      throw new LoomError('DENIED', message, { field: 'winner', who: event.sender })
    }
    if (said.winner === null) {
      contracts.delete(contract)
      await lost?.(ctx, known.task)
    } else if (isMine) {
      contracts.delete(contract)
      await declining(ctx, contract, said.award, () => work(ctx, contract, known, said))
    }
  }

  const work = async (
    ctx: Context,
    contract: string,
    known: Contract<Output<S>>,
    said: Awarded,
  ): Promise<void> => {
    const later = await ctx.watch(`thread.${contract}.award`, { qos: 'batched' })
    const left = new AbortController()
    const late = new LoomError('TIMEOUT', `not done in ${said.timeout_ms} ms`)
    const timer = setTimeout(() => left.abort(late), said.timeout_ms)
    const taken = (async () => {
      for await (const one of later) if (one.sender === known.manager) left.abort(null)
    })()
    const ended = new Promise<'ended'>((resolve) => {
      left.signal.addEventListener('abort', () => resolve('ended'), { once: true })
    })
    try {
      const running = (async () => ({ result: await execute(ctx, known.task, left.signal) }))()
      running.catch(() => {}) // one that was taken away may end as it likes
      const made = await Promise.race([running, ended])
      if (made !== 'ended') {
        const message = { v: 1, award: said.award, result: made.result ?? null }
        await ctx.emit(`thread.${contract}.done`, message, { thread: contract })
      } else if (left.signal.reason !== null) throw left.signal.reason
    } finally {
      clearTimeout(timer)
      await later.close()
      await taken
    }
  }

  return defineAgent({
    name,
    description,
    topics: [...topics, 'thread.*.award'],
    onEvent: (ctx, event: Event) =>
      /^thread\.[^.]+\.award$/.test(event.topic) ? onAward(ctx, event) : onCall(ctx, event),
  })
}

/** Says why, when `work` throws. What is not a LoomError stays in this process. */
async function declining(
  ctx: Context,
  contract: string,
  award: number | null,
  work: () => Promise<void>,
): Promise<void> {
  try {
    await work()
  } catch (error) {
    const kind = error instanceof Error ? error.constructor.name : typeof error
    const [code, message] =
      error instanceof LoomError
        ? [error.code, String(toWire(error).detail['message'])]
        : ['HANDLER_ERROR', `${ctx.agent} raised ${kind}`]
    await decline(ctx, contract, award, code, message)
    throw error
  }
}

async function decline(
  ctx: Context,
  contract: string,
  award: number | null,
  code: string,
  message: string,
): Promise<void> {
  const said = { v: 1, award, code, message: message.slice(0, 1024) }
  await ctx.emit(`thread.${contract}.decline`, said, { qos: 'realtime', thread: contract })
}
