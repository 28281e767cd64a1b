// A named function that others may call.

import type { Context } from './context.js'
import { invalid, LoomError, oneOf } from './errors.js'
import type { EffectClass } from './gen/frames.js'
import { AGENT_CONCURRENCY } from './gen/limits.js'
import { type Check, checkOf, type Input, type Output, type Schema } from './schema.js'
import { checkCapabilityName } from './topics.js'

/** What a probe knows of a change: made (with its result), not made, or it cannot tell. */
export type Verdict = { done: unknown } | 'not-done' | 'unknown'

/** What a capability is declared with. */
export interface CapabilityOptions<I extends Schema | undefined, O extends Schema | undefined, R> {
  /** `web.search`, or `server:tool`. */
  name: string
  /** What the arguments are: Zod, another Standard Schema, or JSON Schema. */
  input?: I
  /** What the result is, or each chunk of it. */
  output?: O
  /** What a call changes outside; by default anything. */
  effect?: EffectClass
  timeoutMs?: number
  version?: string
  description?: string
  cost?: number
  tags?: readonly string[]
  /** Calls that run side by side. */
  concurrency?: number
  /** Answers in chunks: `run` is an async generator. Found out by itself where it is one. */
  streams?: boolean
  /** The result, or an async iterable of chunks. */
  run: (args: Arguments<Output<I>>, ctx: Context) => R
  /** Tells whether a change was made; for the effect class probeable. */
  probe?: (effectId: string) => Verdict | Promise<Verdict>
}

/** A capability, for `serve` to offer and `ctx.tool` to call. `run` may be called as it is. */
export interface Capability<I = unknown, O = unknown> {
  readonly kind: 'capability'
  readonly name: string
  readonly version: string
  readonly effect: EffectClass
  readonly timeoutMs: number
  readonly concurrency: number
  readonly streams: boolean
  readonly inputCheck: Check
  readonly outputCheck: Check
  readonly info: Readonly<Record<string, unknown>>
  readonly probe: ((effectId: string) => Verdict | Promise<Verdict>) | undefined
  readonly run: (args: never, ctx: Context) => unknown
  /** Only for types: what it takes and gives. */
  readonly types?: { input: I; output: O }
}

/** What a run takes: an object, also where no schema says what is in it. */
type Arguments<A> = unknown extends A ? Record<string, unknown> : A

/** What a run gives: the result, or a list of all chunks. */
type Result<R> = R extends AsyncIterable<infer C> ? C[] : Awaited<R>

const EFFECTS: readonly EffectClass[] = ['pure', 'idempotent', 'probeable', 'unsafe']

/** Declares a capability. Throws INVALID_PARAMS, naming what is wrong. */
export function capability<
  R,
  I extends Schema | undefined = undefined,
  O extends Schema | undefined = undefined,
>(
  options: CapabilityOptions<I, O, R>,
): Capability<Arguments<Input<I>>, O extends Schema ? Output<O> : Result<R>> {
  const { run, probe } = options
  const { effect = 'unsafe', timeoutMs = 30_000, version = '1', description = '' } = options
  const { cost = 0, tags = [], concurrency = AGENT_CONCURRENCY } = options
  const name = checkCapabilityName(options.name)
  if (typeof run !== 'function')
    throw invalid('run', `${name} has no run`, 'run: async (args, ctx) => …')
  oneOf(EFFECTS, effect, 'effect')
  if (!(timeoutMs > 0)) throw invalid('timeoutMs', `timeoutMs is ${timeoutMs}`, 'give milliseconds')
  if ((effect === 'probeable') !== (probe !== undefined)) {
    throw invalid('probe', 'a probe belongs to the effect class probeable, and that to a probe')
  }
  const streams = options.streams ?? run.constructor.name === 'AsyncGeneratorFunction'
  const inputCheck = checkOf(options.input, 'input')
  const outputCheck = checkOf(options.output, 'output')
  const info = {
    name,
    version,
    effect,
    timeout: timeoutMs / 1000,
    cost,
    tags: [...tags],
    description,
    input: inputCheck.json,
    output: streams ? { type: 'array', items: outputCheck.json } : outputCheck.json,
    streams,
    needs_approval: false,
  }
  return {
    kind: 'capability' as const,
    name,
    version,
    effect,
    timeoutMs,
    concurrency,
    streams,
    inputCheck,
    outputCheck,
    info,
    probe,
    run: run as (args: never, ctx: Context) => unknown,
  }
}

export function isCapability(value: unknown): value is Capability {
  return typeof value === 'object' && value !== null && (value as Capability).kind === 'capability'
}

/** Returns the capabilities, each name and version once. Throws INVALID_PARAMS. */
export function checkCapabilities(all: readonly Capability[]): readonly Capability[] {
  const seen = new Set<string>()
  for (const [index, one] of all.entries()) {
    if (!isCapability(one)) {
      throw invalid(
        `capabilities.${index}`,
        'it is no capability',
        'make it with capability({ … })',
      )
    }
    const key = `${one.name} ${one.version}`
    if (seen.has(key))
      throw new LoomError('CONFLICT', `${key} stands twice`, { field: 'capabilities' })
    seen.add(key)
  }
  return all
}
