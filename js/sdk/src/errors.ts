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
  readonly field: string | undefined
  /** The name of the limit that was reached. */
  readonly limit: string | undefined
  /** What to do about it. */
  readonly hint: string | undefined
  /** The agent, capability or session at which it happened. */
  readonly who: string | undefined
  /** Whether trying the same again may help. */
  readonly retry: boolean
  /** When it may, in milliseconds from now, where that is known. */
  readonly retryAfterMs: number | undefined

  constructor(code: Code, message: string, detail: Detail = {}) {
    super(message, 'cause' in detail ? { cause: detail.cause } : undefined)
    this.code = code
    this.field = detail.field
    this.limit = detail.limit
    this.hint = detail.hint
    this.who = detail.who
    this.retry = detail.retry ?? RETRIED.includes(code)
    this.retryAfterMs = detail.retryAfterMs
  }

  override toString(): string {
    const places = (['field', 'limit', 'who'] as const)
      .filter((name) => this[name] !== undefined)
      .map((name) => `${name} ${this[name]}`)
    const text = `${this.code}: ${this.message}${places.length > 0 ? ` (${places.join(', ')})` : ''}`
    return this.hint === undefined ? text : `${text}; ${this.hint}`
  }
}

const NAMES = new Map<number, Code>(
  Object.entries(CODES).map(([name, number]) => [number, name as Code]),
)

/** The error that a number and a detail from the wire stand for; an unknown one is INTERNAL. */
export function errorOf(number: number, detail: unknown): LoomError {
  const said = (typeof detail === 'object' && detail !== null ? detail : {}) as WireError
  const code = NAMES.get(number)
  const message = said.message || code || 'no word of why'
  const more: Detail = {
    field: said.field || undefined,
    limit: said.limit || undefined,
    hint: said.hint || undefined,
    who: said.who || undefined,
    retry: said.retry,
    retryAfterMs: said.retry_after_ms,
  }
  return code === undefined
    ? new LoomError('INTERNAL', `unknown error number ${number}: ${message}`, more)
    : new LoomError(code, message, more)
}

/** Number and detail of an error, as they travel. */
export function toWire(error: LoomError): { code: number; detail: Record<string, unknown> } {
  const detail: Record<string, unknown> = { message: error.message }
  for (const name of ['field', 'limit', 'hint', 'who'] as const) {
    if (error[name] !== undefined) detail[name] = error[name]
  }
  if (error.retry !== RETRIED.includes(error.code)) detail['retry'] = error.retry
  if (error.retryAfterMs !== undefined) detail['retry_after_ms'] = error.retryAfterMs
  return { code: CODES[error.code], detail }
}

/** A wrong argument: names the field and the way out. */
export function invalid(field: string, message: string, hint?: string, limit?: string): LoomError {
  return new LoomError('INVALID_PARAMS', message, { field, hint, limit })
}
