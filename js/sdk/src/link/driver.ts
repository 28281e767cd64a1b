// Drives a session with real time over connections: dials, sends what there is, keeps the timer.

import type { Session } from '../session/session.js'
import type { Carrier, Dial, Ends } from './carrier.js'

type Timer = ReturnType<typeof setTimeout>

/** Runs `task` after what is already going on here, so that what several handlers send goes at once. */
const soon: (task: () => void) => void = (() => {
  const { setImmediate } = globalThis as { setImmediate?: (task: () => void) => void }
  if (setImmediate !== undefined) return (task: () => void) => void setImmediate(task)
  const channel = new MessageChannel()
  const tasks: (() => void)[] = []
  channel.port1.onmessage = () => tasks.shift()?.()
  return (task) => {
    tasks.push(task)
    channel.port2.postMessage(0)
  }
})()

export class Driver {
  readonly #session: Session
  readonly #dial: Dial
  #carrier: Carrier | undefined
  #timer: Timer | undefined
  #isPumping = false
  #isStopped = false

  constructor(session: Session, dial: Dial) {
    this.#session = session
    this.#dial = dial
  }

  start(): void {
    this.#turn()
  }

  /** Something was offered to the session: it is sent with all else that is offered meanwhile. */
  wake(): void {
    if (this.#isPumping || this.#isStopped) return
    this.#isPumping = true
    soon(() => {
      this.#isPumping = false
      this.#turn()
    })
  }

  /** Sends what is left, and closes the connection. */
  stop(): void {
    this.#turn()
    this.#isStopped = true
    clearTimeout(this.#timer)
    this.#drop()
  }

  // -- inside -------------------------------------------------------------------------------------

  #turn(): void {
    if (this.#isStopped) return
    const session = this.#session
    session.tick(now())
    if (this.#carrier !== undefined && session.isOver) this.#drop()
    const dialsAt = session.dialsAt
    if (this.#carrier === undefined && dialsAt !== undefined && now() >= dialsAt) this.#connect()
    this.#send()
    clearTimeout(this.#timer)
    const next = Math.min(session.dialsAt ?? Infinity, session.deadline ?? Infinity)
    if (next < Infinity) {
      this.#timer = setTimeout(() => this.#turn(), Math.max(0, Math.ceil(next - now())))
    }
  }

  #send(): void {
    while (this.#carrier !== undefined && !this.#carrier.isFull) {
      const packet = this.#session.transmit(now())
      if (packet === undefined) return
      this.#carrier.send(packet)
    }
  }

  #connect(): void {
    const session = this.#session
    session.dialing(now())
    let isOpen = true
    let carrier: Carrier | undefined
    // What an old connection still says is nobody's any more.
    const isMine = () => isOpen && !this.#isStopped && this.#carrier === carrier
    const ends: Ends = {
      opened: () => {
        if (!isMine()) return
        session.connected(now())
        this.#turn()
      },
      received: (packet) => {
        if (!isMine()) return
        try {
          session.received(packet, now())
        } catch (error) {
          this.#drop()
          session.disconnected(now(), (error as Error).message)
        }
        this.wake()
      },
      drained: () => this.wake(),
      closed: (why) => {
        if (!isMine()) return
        isOpen = false
        this.#carrier = undefined
        session.disconnected(now(), why)
        this.#turn()
      },
    }
    try {
      carrier = this.#dial(ends)
      this.#carrier = carrier
    } catch (error) {
      session.disconnected(now(), (error as Error).message)
    }
  }

  #drop(): void {
    const carrier = this.#carrier
    this.#carrier = undefined
    carrier?.close()
  }
}

function now(): number {
  return performance.now()
}
