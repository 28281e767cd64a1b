// One agent's turns: one at a time in a lane, lanes side by side up to a limit, each in its turn.

import { Queue } from '../session/queue.js'

export class Lanes<T> {
  /** Turns that run. */
  running = 0
  readonly #limit: number
  readonly #run: (item: T) => Promise<void>
  readonly #lanes = new Map<number, Queue<T>>()
  readonly #ready = new Queue<number>()
  #waiting: (() => void)[] = []

  /** `run` must not throw. */
  constructor(limit: number, run: (item: T) => Promise<void>) {
    this.#limit = limit
    this.#run = run
  }

  offer(lane: number, item: T): void {
    const busy = this.#lanes.get(lane)
    if (busy !== undefined) {
      busy.push(item)
      return
    }
    const queue = new Queue<T>()
    queue.push(item)
    this.#lanes.set(lane, queue)
    this.#ready.push(lane)
    this.#next()
  }

  /** Forgets what was not begun. */
  clear(): void {
    for (const queue of this.#lanes.values()) queue.clear()
    for (const lane of this.#ready.clear()) this.#lanes.delete(lane)
  }

  /** Returns when no turn runs any more. */
  idle(): Promise<void> {
    if (this.running === 0 && this.#ready.length === 0) return Promise.resolve()
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  #next(): void {
    while (this.running < this.#limit) {
      const lane = this.#ready.shift()
      if (lane === undefined) return
      const item = this.#lanes.get(lane)?.shift()
      if (item === undefined) {
        this.#lanes.delete(lane)
        continue
      }
      this.running++
      void this.#run(item).then(() => this.#ended(lane))
    }
  }

  #ended(lane: number): void {
    this.running--
    // Behind the lanes that wait: none is served twice while another one is ready.
    if ((this.#lanes.get(lane)?.length ?? 0) > 0) this.#ready.push(lane)
    else this.#lanes.delete(lane)
    this.#next()
    if (this.running > 0 || this.#ready.length > 0) return
    for (const resolve of this.#waiting.splice(0)) resolve()
  }
}
