// What moves packets: a WebSocket, or memory. It knows nothing of sessions.

import type { Packet } from '../gen/frames.js'

/** One connection. */
export interface Carrier {
  send(packet: Packet): void
  close(): void
  /** More would only wait here: `Ends.drained` says when it may be tried again. */
  readonly isFull: boolean
}

/** Who is told what becomes of a connection. `closed` is the last word, and comes once. */
export interface Ends {
  opened(): void
  received(packet: Packet): void
  drained(): void
  closed(why: string): void
}

/** Begins a connection. */
export interface Dial {
  (ends: Ends): Carrier
  /** Whether frames go whole, however large; else in packets of at most 64 KiB. */
  readonly isWhole: boolean
}
