// One agent at work: its turns, what their outcome means, and what the node is told.

import type { Agent } from '../agent.js'
import { payloadFor, valueIn } from '../codec/payload.js'
import { Context, type Scope } from '../context.js'
import { Cut } from '../cut.js'
import { failure, LoomError, told } from '../errors.js'
import { Event, type Settle } from '../event.js'
import type { Delivery } from '../link/link.js'
import { around } from '../middleware.js'
import { forgottenError } from '../session/session.js'
import type { Host } from './host.js'
import { Lanes } from './lanes.js'

interface Turn extends Delivery {
  life: number
  /** When it is not to be started any more, on the clock of `performance.now()`. */
  until: number
  deadline: number | undefined
}

export class Turns {
  readonly #host: Host
  readonly #agent: Agent
  readonly #lanes: Lanes<Turn>
  readonly #cuts = new Map<number, Cut>()
  readonly #handle_: (ctx: Context, event: Event) => Promise<unknown>
  #handle = 0

  constructor(host: Host, agent: Agent) {
    this.#host = host
    this.#agent = agent
    this.#lanes = new Lanes(agent.concurrency, (turn) => this.#run(turn))
    this.#handle_ = around(host.middleware, async (ctx, event: Event) =>
      agent.onEvent(ctx, event as Event<never>),
    )
  }

  async start(): Promise<void> {
    const host = this.#host
    const agent = this.#agent
    const { name, filters, group, concurrency, description } = agent
    await agent.onStart?.(new Context(host.scopeOf(name, 0)))
    const info = { name, filters, group, concurrency, description, capabilities: [] }
    this.#handle = await host.link.register(
      (handle) => ({
        register: {
          handle,
          name,
          filters: [...filters],
          group,
          concurrency,
          info,
          realtime: agent.realtime,
          exclusive: agent.exclusive,
        },
      }),
      {
        deliver: (delivery) => this.#take(delivery),
        forgotten: () => this.#forgotten(),
      },
    )
  }

  /** Takes nothing new; returns when what was taken has ended. */
  async stop(): Promise<void> {
    await this.idle()
    await this.#host.link.remove(this.#handle)
    await this.idle()
  }

  idle(): Promise<void> {
    return this.#lanes.idle()
  }

  async stopped(): Promise<void> {
    try {
      await this.#agent.onStop?.(new Context(this.#host.scopeOf(this.#agent.name, 0)))
    } catch (error) {
      this.#host.onError(error, `agent ${this.#agent.name} in onStop`)
    }
  }

  #take(delivery: Delivery): void {
    const { remaining_ms, ttl_ms } = delivery.event
    const now = performance.now()
    const deadline = remaining_ms === undefined ? undefined : now + remaining_ms
    const until = Math.min(deadline ?? Infinity, ttl_ms === undefined ? Infinity : now + ttl_ms)
    const turn = { ...delivery, life: this.#host.link.life, until, deadline }
    this.#lanes.offer(delivery.target.lane ?? 0, turn)
  }

  /** The node has forgotten us, or ended us: what was not begun is given to somebody, what runs has no lease. */
  #forgotten(): void {
    this.#lanes.clear()
    this.cutOff(this.#host.link.error ?? forgottenError(1))
  }

  /** Ends what the turns that run wait for. */
  cutOff(error: LoomError): void {
    for (const cut of this.#cuts.values()) cut.cut(error)
  }

  async #run(turn: Turn): Promise<void> {
    const { link } = this.#host
    const { event, target, life } = turn
    const { lease = 0 } = target
    if (performance.now() >= turn.until) {
      const error = new LoomError('TIMEOUT', 'its time was up before it could be started')
      this.#fail(turn, error)
      return link.handled(event, life)
    }
    const cut = new Cut()
    this.#cuts.set(lease, cut)
    const scope = this.#scope(turn, cut)
    try {
      const data = await this.#agent.check.validate(valueIn(event.payload), 'data')
      const { asked = false, attempt = 1 } = target
      const seen = new Event(event, data, asked, Math.max(1, attempt), this.#settle(turn))
      const result = await this.#handle_(new Context(scope), seen)
      if (result !== undefined) this.#answer(scope, result)
      link.work(lease, life, { ack: { leases: [lease] } })
    } catch (error) {
      this.#fail(turn, error)
    } finally {
      scope.isOver = true
      this.#cuts.delete(lease)
      link.handled(event, life)
    }
  }

  #scope({ event, target, life, deadline }: Turn, cut: Cut): Scope {
    return {
      ...this.#host.scopeOf(this.#agent.name, this.#handle),
      lease: target.lease ?? 0,
      life,
      envelope: event,
      wantsReply: target.asked === true,
      deadline,
      cut,
    }
  }

  #settle({ isDurable, target, life }: Turn): Settle | undefined {
    if (!isDurable) return undefined
    const { link } = this.#host
    const { lease = 0 } = target
    return {
      ack: () => link.work(lease, life, { ack: { leases: [lease], goes_on: true } }),
      nak: (delayMs) =>
        link.work(lease, life, {
          nak: delayMs === undefined ? { lease } : { lease, after_ms: delayMs },
        }),
      extend: () => link.work(lease, life, { extend: { lease } }),
      term: (reason) => link.work(lease, life, { term: { lease, reason } }),
    }
  }

  #answer({ lease, life, wantsReply }: Scope, result: unknown): void {
    if (!wantsReply) {
      throw new LoomError('HANDLER_ERROR', `agent '${this.#agent.name}' returned a value`, {
        field: 'return',
        hint: 'nothing was asked: return a value where event.wantsReply, else nothing',
      })
    }
    this.#host.link.work(lease, life, { reply: { lease, payload: payloadFor(result, 'return') } })
  }

  #fail({ target, life }: Turn, error: unknown): void {
    const { link, cut } = this.#host
    const { lease = 0 } = target
    const { name } = this.#agent
    const who = `${link.namespace}/${name}`
    const isCut = cut.aborted && error === cut.reason
    const shown = isCut
      ? new LoomError('CANCELLED', `agent '${name}' was cut off`, { who })
      : told(error, 'HANDLER_ERROR', `agent '${name}'`, who)
    link.work(lease, life, failure(lease, shown, who))
    // Who asked is told of what was meant for them; the rest is shown here.
    if (target.asked !== true || shown !== error) this.#host.onError(error, `agent ${name}`)
  }
}
