// One capability at work: arguments checked, the function run, its result or its chunks given back.

import type { Capability, Verdict } from '../capability.js'
import { payloadFor, valueIn } from '../codec/payload.js'
import { Context, type Scope } from '../context.js'
import { Cut } from '../cut.js'
import { failure, LoomError, told } from '../errors.js'
import type { ActionCall, Payload, Probe } from '../gen/frames.js'
import { KEPT_PAYLOAD_BYTES } from '../gen/limits.js'
import { checkedResult } from '../schema.js'
import type { Host } from './host.js'

interface Work {
  call: ActionCall
  lease: number
  life: number
  cut: Cut
  /** Chunks that may be sent in all, and how many were. */
  granted: number
  sent: number
  wake: (() => void) | undefined
}

export class Serving {
  readonly #host: Host
  readonly #capability: Capability
  readonly #works = new Set<Work>()
  readonly #under = new Set<Promise<void>>()
  #handle = 0

  constructor(host: Host, capability: Capability) {
    this.#host = host
    this.#capability = capability
  }

  async start(): Promise<void> {
    const host = this.#host
    const capability = this.#capability
    const { name, version, effect, concurrency, info, probe } = capability
    const provider = host.link.name
    this.#handle = await host.link.register(
      (handle) => ({
        provide: {
          handle,
          name,
          version,
          effect,
          concurrency,
          info: { ...info, provider },
          provider,
          probes: probe !== undefined,
        },
      }),
      {
        invoke: (call) => this.#invoke(call),
        probe: (asked) => void this.#probe(asked),
      },
    )
  }

  /** Takes nothing new; returns when what was taken has ended. */
  async stop(): Promise<void> {
    await this.idle()
    await this.#host.link.remove(this.#handle)
    await this.idle()
  }

  async idle(): Promise<void> {
    while (this.#under.size > 0) await Promise.all(this.#under)
  }

  /** Ends what runs. */
  cutOff(error: LoomError): void {
    for (const work of this.#works) {
      work.cut.cut(error)
      work.wake?.()
    }
  }

  #invoke(call: ActionCall): void {
    const { link } = this.#host
    const { lease = 0, credit = 0 } = call
    const work: Work = {
      call,
      lease,
      life: link.life,
      cut: new Cut(),
      granted: credit,
      sent: 0,
      wake: undefined,
    }
    link.running.set(lease, {
      stop: () => {
        work.cut.cut(new LoomError('CANCELLED', 'nobody waits for this call any more'))
        work.wake?.()
      },
      grant: (total) => {
        work.granted = Math.max(work.granted, total)
        work.wake?.()
      },
    })
    this.#works.add(work)
    const run = this.#run(work).finally(() => {
      link.running.delete(lease)
      this.#works.delete(work)
      link.handled(call.event, work.life)
      this.#under.delete(run)
    })
    this.#under.add(run)
  }

  async #run(work: Work): Promise<void> {
    const { link } = this.#host
    const { lease, life } = work
    const scope = this.#scope(work)
    try {
      const payload = await this.#made(work, scope)
      link.work(lease, life, { result: { lease, ...(payload && { payload }) } })
    } catch (error) {
      this.#fail(work, error)
    } finally {
      scope.isOver = true
    }
  }

  async #made(work: Work, scope: Scope): Promise<Payload | undefined> {
    const capability = this.#capability
    const { event, streamed = false } = work.call
    const args = await capability.inputCheck.validate(valueIn(event?.payload), 'args')
    const result = await capability.run(args as never, new Context(scope))
    if (isChunks(result)) return this.#chunks(work, result, streamed)
    const payload = payloadFor(await this.#checked(result), 'result')
    if (!streamed) return payload
    await this.#chunk(work, payload)
    return undefined
  }

  #checked(result: unknown): Promise<unknown> {
    const { outputCheck, name } = this.#capability
    return checkedResult(outputCheck, result, name)
  }

  /** Sends chunks as they come; for a caller that wants one result, collects them into a list. */
  async #chunks(
    work: Work,
    source: AsyncIterable<unknown>,
    live: boolean,
  ): Promise<Payload | undefined> {
    const collected: string[] = []
    let size = 0
    for await (const one of source) {
      work.cut.throwIfAborted()
      const payload = payloadFor(await this.#checked(one), 'chunk')
      if (live) {
        await this.#chunk(work, payload)
        continue
      }
      if (payload.text === undefined) {
        throw new LoomError('CAPABILITY_ERROR', 'chunks of bytes are read with ctx.stream')
      }
      size += payload.text.length + 1
      if (size > KEPT_PAYLOAD_BYTES) {
        throw new LoomError('EXHAUSTED', 'the chunks do not fit into one result', {
          limit: 'kept_payload_bytes',
          hint: 'read them with ctx.stream',
        })
      }
      collected.push(payload.text)
    }
    return live ? undefined : { text: `[${collected.join(',')}]` }
  }

  async #chunk(work: Work, payload: Payload): Promise<void> {
    while (work.sent >= work.granted) {
      await new Promise<void>((resolve) => {
        work.wake = resolve
      })
      work.cut.throwIfAborted()
    }
    work.sent++
    const { lease, life } = work
    this.#host.link.work(lease, life, { chunk: { lease, payload } })
  }

  #scope({ call, lease, life, cut }: Work): Scope {
    const left = call.event?.remaining_ms
    return {
      ...this.#host.scopeOf(this.#capability.name, this.#handle),
      lease,
      life,
      envelope: call.event,
      deadline: left === undefined ? undefined : performance.now() + left,
      cut,
      effectId: call.effect_id,
    }
  }

  #fail({ lease, life, cut }: Work, error: unknown): void {
    const { link } = this.#host
    const { name } = this.#capability
    const shown = cut.aborted
      ? new LoomError('CANCELLED', `${name} was cancelled`, { who: name })
      : told(error, 'CAPABILITY_ERROR', name, name)
    if (!cut.aborted && shown !== error) this.#host.onError(error, `capability ${name}`)
    link.work(lease, life, failure(lease, shown, name))
  }

  async #probe({ handle = 0, effect_id = '' }: Probe): Promise<void> {
    let verdict: Verdict | 'failed'
    try {
      verdict = (await this.#capability.probe?.(effect_id)) ?? 'unknown'
    } catch (error) {
      this.#host.onError(error, `the probe of ${this.#capability.name}`)
      verdict = 'failed'
    }
    const numbers = { 'not-done': 1, unknown: 2, failed: 3 }
    const said =
      typeof verdict === 'string'
        ? { verdict: numbers[verdict] }
        : { verdict: 0, result: payloadFor(verdict.done, 'done') }
    this.#host.link.tell({ probed: { handle, effect_id, ...said } })
  }
}

function isChunks(value: unknown): value is AsyncIterable<unknown> {
  return typeof value === 'object' && value !== null && Symbol.asyncIterator in value
}
