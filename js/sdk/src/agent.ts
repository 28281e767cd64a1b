// A named actor: what it hears, and what it does then.

import type { Context } from './context.js'
import { invalid } from './errors.js'
import type { Event } from './event.js'
import { AGENT_CONCURRENCY, AGENT_CONCURRENCY_MAX } from './gen/limits.js'
import { type Check, checkOf, type Output, type Schema } from './schema.js'
import { checkFilters, checkName } from './topics.js'

type Handler = (ctx: Context, event: Event<never>) => unknown

/** What an agent is declared with. */
export interface AgentOptions<S extends Schema | undefined> {
  name: string
  /** Filters: `*` stands for one token, `>` at the end for one or more. */
  topics?: readonly string[]
  /** What the data of its events must be; data that does not fit never reaches `onEvent`. */
  schema?: S
  /** Agents of one group share one stream of events; by default its name. */
  group?: string
  /** Lanes that run side by side. */
  concurrency?: number
  description?: string
  /** It takes every event as realtime: it never holds up a sender, and loses the oldest. */
  realtime?: boolean
  /** A newer process that offers this agent takes its place. */
  exclusive?: boolean
  onStart?: (ctx: Context) => unknown
  /** What it returns is the reply, where one was asked for. */
  onEvent: (ctx: Context, event: Event<Output<S>>) => unknown
  onStop?: (ctx: Context) => unknown
}

/** An agent, for `serve` to run. */
export interface Agent {
  readonly kind: 'agent'
  readonly name: string
  readonly filters: readonly string[]
  readonly group: string
  readonly concurrency: number
  readonly description: string
  readonly realtime: boolean
  readonly exclusive: boolean
  readonly check: Check
  readonly onStart: ((ctx: Context) => unknown) | undefined
  readonly onEvent: Handler
  readonly onStop: ((ctx: Context) => unknown) | undefined
}

/** Declares an agent. Throws INVALID_PARAMS, naming what is wrong. */
export function defineAgent<S extends Schema | undefined = undefined>(
  options: AgentOptions<S>,
): Agent {
  const {
    topics = [],
    concurrency = AGENT_CONCURRENCY,
    description = '',
    onStart,
    onStop,
  } = options
  const name = checkName(options.name)
  if (typeof options.onEvent !== 'function') {
    throw invalid('onEvent', `agent ${name} has no onEvent`, 'onEvent: async (ctx, event) => …')
  }
  if (!Number.isInteger(concurrency) || concurrency < 1 || concurrency > AGENT_CONCURRENCY_MAX) {
    const hint = `give a whole number from 1 to ${AGENT_CONCURRENCY_MAX}`
    throw invalid('concurrency', `concurrency is ${concurrency}`, hint, 'agent_concurrency')
  }
  return {
    kind: 'agent' as const,
    name,
    filters: [...checkFilters(topics, 'topics')],
    group: options.group === undefined ? name : checkName(options.group, 'group'),
    concurrency,
    description,
    realtime: options.realtime === true,
    exclusive: options.exclusive === true,
    check: checkOf(options.schema, 'input'),
    onStart,
    onEvent: options.onEvent as Handler,
    onStop,
  }
}

/** Returns the agents, each name once. Throws INVALID_PARAMS. */
export function checkAgents(all: readonly Agent[]): readonly Agent[] {
  const seen = new Set<string>()
  for (const [index, one] of all.entries()) {
    if (one?.kind !== 'agent') {
      throw invalid(`agents.${index}`, 'it is no agent', 'make it with defineAgent({ … })')
    }
    if (seen.has(one.name)) throw invalid('agents', `two agents are called ${one.name}`)
    seen.add(one.name)
  }
  return all
}
