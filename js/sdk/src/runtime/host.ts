// One app that runs: its link, its middleware, and the agents and capabilities that are at work.

import type { Agent } from '../agent.js'
import type { Capability } from '../capability.js'
import type { Scope } from '../context.js'
import { Cut } from '../cut.js'
import { LoomError } from '../errors.js'
import type { Link } from '../link/link.js'
import type { Middleware } from '../middleware.js'
import { Serving } from './serving.js'
import { Turns } from './turns.js'

/** Where an error of a handler came up: `agent planner`, `capability web.search`. */
export type OnError = (error: unknown, where: string) => void

export class Host {
  readonly link: Link
  readonly middleware: readonly Middleware[]
  readonly onError: OnError
  /** What the context of the app itself belongs to. */
  readonly scope: Scope
  /** What outlives turns ends with it. */
  readonly cut: Cut = new Cut()
  readonly #turns = new Map<string, Turns>()
  readonly #starting = new Map<string, Promise<void>>()
  readonly #servings: Serving[] = []
  #ending: Promise<void> | undefined

  constructor(link: Link, middleware: readonly Middleware[], onError: OnError | undefined) {
    this.link = link
    this.middleware = middleware
    this.onError = onError ?? shown
    this.scope = this.scopeOf(link.name, 0)
  }

  /** What a context outside any turn belongs to. */
  scopeOf(name: string, sender: number): Scope {
    return {
      host: this,
      name,
      sender,
      lease: 0,
      life: 0,
      envelope: undefined,
      wantsReply: false,
      deadline: undefined,
      cut: this.cut,
      effectId: undefined,
      isOver: false,
    }
  }

  /** Starts an agent, unless one of its name runs here. */
  async start(agent: Agent): Promise<void> {
    const under = this.#starting.get(agent.name)
    if (under !== undefined) return under
    const turns = new Turns(this, agent)
    const started = turns.start().then(
      () => void this.#turns.set(agent.name, turns),
      (error) => {
        this.#starting.delete(agent.name)
        throw error
      },
    )
    this.#starting.set(agent.name, started)
    return started
  }

  /** Offers a capability. */
  async offer(capability: Capability): Promise<void> {
    const serving = new Serving(this, capability)
    await serving.start()
    this.#servings.push(serving)
  }

  /** Takes nothing new, lets what runs end within `graceMs`, cuts off the rest, and closes. */
  stop(graceMs: number): Promise<void> {
    this.#ending ??= this.#end(graceMs)
    return this.#ending
  }

  async #end(graceMs: number): Promise<void> {
    const working = [...this.#turns.values(), ...this.#servings]
    if (!this.link.isOver) {
      await within(Promise.all(working.map((one) => one.stop())), graceMs)
    }
    for (const turns of this.#turns.values()) await turns.stopped()
    const error = new LoomError('CANCELLED', 'the app has stopped')
    this.cut.cut(error)
    for (const one of working) one.cutOff(error)
    await within(Promise.all(working.map((one) => one.idle())), this.link.isOver ? 0 : 1000)
    await this.link.close()
  }
}

async function within(work: Promise<unknown>, ms: number): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const over = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms)
  })
  await Promise.race([work, over])
  clearTimeout(timer)
}

function shown(error: unknown, where: string): void {
  // biome-ignore lint/suspicious/noConsole: an error that nobody asked to be told of must not vanish
  console.error(`loom: ${where} failed:`, error)
}
