// What an app puts around its handlers and around the calls that it makes: one shape for both.

import type { Context } from './context.js'
import { invalid } from './errors.js'
import type { Event } from './event.js'

/** A call of a capability before it is made. */
export interface ToolCall {
  readonly kind: 'call'
  readonly name: string
  readonly args: Readonly<Record<string, unknown>>
  readonly timeoutMs: number
  readonly version: string | undefined
  readonly key: string | undefined
  /** The result is an async iterable of chunks, and `next` returns before the first. */
  readonly streamed: boolean
}

/** Goes on with the item, or another one of its kind. */
export type Next = (item: Event | ToolCall) => Promise<unknown>

/** Gets the Event that a handler is about to get, or the call that a context is about to make. */
export type Middleware = (ctx: Context, item: Event | ToolCall, next: Next) => Promise<unknown>

/** Returns `last` with the middleware around it, the first one outermost. */
export function around<I extends Event | ToolCall>(
  middleware: readonly Middleware[],
  last: (ctx: Context, item: I) => Promise<unknown>,
): (ctx: Context, item: I) => Promise<unknown> {
  return middleware.reduceRight<(ctx: Context, item: I) => Promise<unknown>>(
    (inner, outer) => (ctx, item) => outer(ctx, item, (next) => inner(ctx, next as I)),
    last,
  )
}

/** Returns the middleware if it is some. Throws INVALID_PARAMS. */
export function checkMiddleware(middleware: readonly Middleware[]): readonly Middleware[] {
  for (const [index, one] of middleware.entries()) {
    if (typeof one === 'function') continue
    throw invalid(
      `middleware.${index}`,
      'it is no function',
      'async (ctx, item, next) => next(item)',
    )
  }
  return middleware
}
