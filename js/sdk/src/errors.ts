// The one error of Loom. Its codes are those of every other language.

import { CODES, RETRIED } from './gen/errors.js'
import type { Frame, Error as WireError } from './gen/frames.js'

/** What kind of error it is: what a program decides by. */
export type Code = keyof typeof CODES

/** What an error may say besides its code and message. */
export interface Detail {
  field?: string | undefined
  limit?: string | undefined
  hint?: string | undefined
  who?: string | undefined
  retry?: boolean | undefined
  retryAfterMs?: number | undefined
  cause?: unknown
}

/** What went wrong, which part of the input it was, and the way out. */
export class LoomError extends Error {
  override readonly name = 'LoomError'
  /** One of `CODES`. */
  readonly code: Code
  /** The argument, option or header that is wrong. */
  declare readonly field: string | undefined
  /** The name of the limit that was reached. */
  declare readonly limit: string | undefined
  /** What to do about it. */
  declare readonly hint: string | undefined
  /** The agent, capability or session at which it happened. */
  declare readonly who: string | undefined
  /** Whether trying the same again may help. */
  readonly retry: boolean
  /** When it may, in milliseconds from now, where that is known. */
  readonly retryAfterMs: number | undefined

  constructor(code: Code, message: string, detail: Detail = {}) {
    super(message, 'cause' in detail ? { cause: detail.cause } : undefined)
    this.code = code
    const { field, limit, hint, who } = detail
    Object.assign(this, { field, limit, hint, who })
    this.retry = detail.retry ?? RETRIED.includes(code)
    this.retryAfterMs = detail.retryAfterMs
  }
}

/** The error that a number and a detail from the wire stand for; an unknown one is INTERNAL. */
export function errorOf(number: number, detail: unknown): LoomError {
  const said: WireError = typeof detail === 'object' && detail !== null ? detail : {}
  const code = (Object.keys(CODES) as Code[]).find((name) => CODES[name] === number)
  const { message = '', field, limit, hint, who, retry, retry_after_ms: retryAfterMs } = said
  const more = { field, limit, hint, who, retry, retryAfterMs }
  return code === undefined
    ? new LoomError('INTERNAL', `unknown error number ${number}: ${message}`, more)
    : new LoomError(code, message || code, more)
}

/** Number and detail of an error, as they travel; what is undefined stays here. */
export function toWire(error: LoomError): { code: number; detail: Record<string, unknown> } {
  const { code, message, field, limit, hint, who, retry, retryAfterMs } = error
  const detail = { message, field, limit, hint, who, retry, retry_after_ms: retryAfterMs }
  return { code: CODES[code], detail }
}

/** What a function threw, as others are told: of what is no LoomError, text and stack stay here. */
export function told(error: unknown, code: Code, what: string, who: string): LoomError {
  if (error instanceof LoomError) return error
  const kind = error instanceof Error ? error.constructor.name : typeof error
  return new LoomError(code, `${what} raised ${kind}`, { who })
}

/** How a turn or an invocation of `who` ends with an error. */
export function failure(lease: number, error: LoomError, who: string): Frame {
  const { code, detail } = toWire(error)
  return { fail: { lease, code, detail: { ...detail, who: detail['who'] ?? who } } }
}

/** A wrong argument: names the field and the way out. */
export function invalid(field: string, message: string, hint?: string, limit?: string): LoomError {
  return new LoomError('INVALID_PARAMS', message, { field, hint, limit })
}

/** Returns what is one of `known`. Throws INVALID_PARAMS. */
export function oneOf<T>(known: readonly T[], given: T, field: string): T {
  if (known.includes(given)) return given
  throw invalid(field, `${field} is ${String(given)}`, `give one of ${known.join(', ')}`)
}

/** Returns whole milliseconds, at most 24 days. Throws INVALID_PARAMS. */
export function checkMs(value: number, field = 'timeoutMs'): number {
  if (typeof value !== 'number' || !Number.isFinite(value) || value < 0) {
    throw invalid(field, `${field} is ${String(value)}`, 'give milliseconds')
  }
  return Math.min(Math.round(value), 2 ** 31 - 1) // timers know no more
}
