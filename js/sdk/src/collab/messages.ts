// What members say to each other: closed and versioned shapes, the same in every language.

import { invalid } from '../errors.js'
import * as shapes from '../gen/collab.js'
import { TIMEOUT_MS_MAX } from '../gen/limits.js'
import { jsonSchema } from '../json-schema.js'
import { checkOf, type StandardSchema } from '../schema.js'

export interface Cfp {
  v: 1
  task: unknown
  bid_ms: number
  timeout_ms: number
}
export interface BidMade {
  v: 1
  score: number
  offer: unknown
}
export interface Awarded {
  v: 1
  award: number
  winner: string | null
  timeout_ms: number
}
export interface Declined {
  v: 1
  award: number | null
  code: string
  message: string
}
export interface Done {
  v: 1
  award: number
  result: unknown
}
export interface Arrival {
  v: 1
  n: number
  member: string | null
  timeout_ms: number
}
export interface Outcome {
  v: 1
  n: number
  members: string[]
  complete: boolean
}

export const cfp: StandardSchema<Cfp, Cfp> = jsonSchema(shapes.CFP)
export const awarded: StandardSchema<Awarded, Awarded> = jsonSchema(shapes.AWARD)
export const arrival: StandardSchema<Arrival, Arrival> = jsonSchema(shapes.BARRIER_ARRIVAL)
export const outcome: StandardSchema<Outcome, Outcome> = jsonSchema(shapes.BARRIER_OUTCOME)
export const bidMade: StandardSchema<BidMade, BidMade> = jsonSchema(shapes.BID)
export const declined: StandardSchema<Declined, Declined> = jsonSchema(shapes.DECLINE)
export const done: StandardSchema<Done, Done> = jsonSchema(shapes.DONE)

/** A time as it travels: at least 1, at most what any wait may take. */
export function milliseconds(ms: number): number {
  return Math.max(1, Math.min(Math.round(ms), TIMEOUT_MS_MAX))
}

/** Reads a message. Throws INVALID_PARAMS. */
export function read<T>(schema: StandardSchema<T, T>, data: unknown): T {
  const value: unknown = checkOf(schema, 'input').validate(data, 'data')
  if (value instanceof Promise) throw invalid('data', 'it cannot be read at once')
  return value as T
}
