// The one error of Loom. Its codes are those of every other language.

import { CODES, RETRIED } from './gen/errors.js'
import type { Error as WireError } from './gen/frames.js'

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

/** A wrong argument: names the field and the way out. */
export function invalid(field: string, message: string, hint?: string, limit?: string): LoomError {
  return new LoomError('INVALID_PARAMS', message, { field, hint, limit })
}
