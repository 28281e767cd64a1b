// What data must be: any Standard Schema (Zod, Valibot, ArkType), or a JSON Schema.

import { invalid, LoomError } from './errors.js'

/** A Standard Schema, version 1: https://standardschema.dev */
export interface StandardSchema<In = unknown, Out = In> {
  readonly '~standard': {
    readonly version: 1
    readonly vendor: string
    readonly validate: (value: unknown) => Outcome<Out> | Promise<Outcome<Out>>
    readonly types?: { readonly input: In; readonly output: Out } | undefined
    readonly jsonSchema?: {
      readonly input: (options: { target: 'draft-2020-12' }) => Record<string, unknown>
      readonly output: (options: { target: 'draft-2020-12' }) => Record<string, unknown>
    }
  }
}

type Outcome<Out> =
  | { readonly value: Out; readonly issues?: undefined }
  | { readonly issues: readonly Issue[] }

interface Issue {
  readonly message: string
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined
}

/** A JSON Schema of 2020-12. */
export type JsonSchema = { readonly [keyword: string]: unknown }

/** What data must be. */
export type Schema = StandardSchema | JsonSchema

/** What data is that a schema has taken. */
export type Output<S> = S extends { readonly '~standard': { readonly types?: infer T } }
  ? NonNullable<T> extends { readonly output: infer Out }
    ? Out
    : unknown
  : unknown

/** What a schema takes. */
export type Input<S> = S extends { readonly '~standard': { readonly types?: infer T } }
  ? NonNullable<T> extends { readonly input: infer In }
    ? In
    : unknown
  : unknown

/** A schema, ready for use. */
export interface Check {
  /** The schema as JSON Schema, for the directory; empty where it has none. */
  readonly json: JsonSchema
  /** Returns the value as the schema gives it. Throws INVALID_PARAMS, naming the field. */
  validate(value: unknown, field: string): unknown | Promise<unknown>
}

/** Reads a schema. Throws INVALID_PARAMS for one that cannot be checked. */
export function checkOf(schema: Schema | undefined, side: 'input' | 'output'): Check {
  if (schema === undefined) return { json: {}, validate: (value) => value }
  if (typeof schema !== 'object' && typeof schema !== 'function') {
    throw invalid('schema', `${String(schema)} is no schema`, 'give a Zod schema, or a JSON Schema')
  }
  if (isStandard(schema)) {
    const standard = schema['~standard']
    return {
      json: standard.jsonSchema?.[side]({ target: 'draft-2020-12' }) ?? {},
      validate: (value, field) => {
        const outcome = standard.validate(value)
        if (outcome instanceof Promise) return outcome.then((one) => read(one, field))
        return read(outcome, field)
      },
    }
  }
  checkKeywords(schema, '')
  return {
    json: schema,
    validate: (value, field) => {
      const wrong = misfit(schema, value, field, schema)
      if (wrong !== undefined) throw invalid(wrong.field, wrong.message)
      return value
    },
  }
}

function isStandard(schema: Schema): schema is StandardSchema {
  return '~standard' in schema
}

function read(outcome: Outcome<unknown>, field: string): unknown {
  if (outcome.issues === undefined) return outcome.value
  const [issue] = outcome.issues
  const path = (issue?.path ?? []).map((part) => String(typeof part === 'object' ? part.key : part))
  throw invalid([field, ...path].join('.'), issue?.message ?? 'it does not fit its schema')
}

// -- JSON Schema ------------------------------------------------------------------------------------
// The keywords that descriptions of tools use. One that is not known is refused where it is written:
// what looks like a check and is none would be worse.

const SAID = new Set(
  '$schema $id $defs definitions title description default examples $comment deprecated readOnly writeOnly format contentEncoding contentMediaType'.split(
    ' ',
  ),
)

type Rule = (argument: unknown, value: unknown, at: Place) => Misfit | undefined
interface Misfit {
  field: string
  message: string
}
interface Place {
  field: string
  schema: JsonSchema
  root: JsonSchema
}

const TYPES: Record<string, (value: unknown) => boolean> = {
  null: (value) => value === null,
  boolean: (value) => typeof value === 'boolean',
  string: (value) => typeof value === 'string',
  number: (value) => typeof value === 'number',
  integer: (value) => Number.isInteger(value),
  array: (value) => Array.isArray(value),
  object: isObject,
}

function bound(
  is: (value: number, most: number) => boolean,
  words: string,
  of: (value: unknown) => number | undefined,
): Rule {
  return (argument, value, { field }) => {
    const measure = of(value)
    if (measure === undefined || is(measure, argument as number)) return undefined
    return { field, message: `must be ${words} ${String(argument)}` }
  }
}

const number = (value: unknown): number | undefined =>
  typeof value === 'number' ? value : undefined
const length = (value: unknown): number | undefined =>
  typeof value === 'string' ? [...value].length : undefined
const items = (value: unknown): number | undefined =>
  Array.isArray(value) ? value.length : undefined
const members = (value: unknown): number | undefined =>
  isObject(value) ? Object.keys(value).length : undefined
const atLeast = (value: number, least: number): boolean => value >= least
const atMost = (value: number, most: number): boolean => value <= most

const RULES: Record<string, Rule> = {
  type: (argument, value, { field }) => {
    const names = (Array.isArray(argument) ? argument : [argument]) as string[]
    if (names.some((name) => TYPES[name]?.(value) === true)) return undefined
    return { field, message: `must be ${names.join(' or ')}` }
  },
  enum: (argument, value, { field }) =>
    (argument as unknown[]).some((one) => isSame(one, value))
      ? undefined
      : { field, message: `must be one of ${JSON.stringify(argument)}` },
  const: (argument, value, { field }) =>
    isSame(argument, value) ? undefined : { field, message: `must be ${JSON.stringify(argument)}` },
  minimum: bound(atLeast, 'at least', number),
  maximum: bound(atMost, 'at most', number),
  exclusiveMinimum: bound((value, least) => value > least, 'more than', number),
  exclusiveMaximum: bound((value, most) => value < most, 'less than', number),
  multipleOf: bound((value, of) => Number.isInteger(value / of), 'a multiple of', number),
  minLength: bound(atLeast, 'of a length of at least', length),
  maxLength: bound(atMost, 'of a length of at most', length),
  minItems: bound(atLeast, 'of a length of at least', items),
  maxItems: bound(atMost, 'of a length of at most', items),
  minProperties: bound(atLeast, 'an object whose members are at least', members),
  maxProperties: bound(atMost, 'an object whose members are at most', members),
  pattern: (argument, value, { field }) =>
    typeof value !== 'string' || new RegExp(argument as string, 'u').test(value)
      ? undefined
      : { field, message: `must match ${String(argument)}` },
  required: (argument, value, { field }) => {
    if (!isObject(value)) return undefined
    const missing = (argument as string[]).find((name) => !Object.hasOwn(value, name))
    return missing === undefined
      ? undefined
      : { field: `${field}.${missing}`, message: 'is missing' }
  },
  properties: (argument, value, { field, root }) => {
    if (!isObject(value)) return undefined
    return first(Object.entries(argument as Record<string, JsonSchema>), ([name, schema]) =>
      Object.hasOwn(value, name)
        ? misfit(schema, value[name], `${field}.${name}`, root)
        : undefined,
    )
  },
  additionalProperties: (argument, value, { field, schema, root }) => {
    if (!isObject(value)) return undefined
    const known = (schema['properties'] ?? {}) as object
    const others = Object.entries(value).filter(([name]) => !Object.hasOwn(known, name))
    return first(others, ([name, one]) =>
      misfit(argument as JsonSchema, one, `${field}.${name}`, root),
    )
  },
  items: (argument, value, { field, schema, root }) => {
    if (!Array.isArray(value)) return undefined
    const from = ((schema['prefixItems'] ?? []) as unknown[]).length
    return first([...value.entries()].slice(from), ([index, one]) =>
      misfit(argument as JsonSchema, one, `${field}.${index}`, root),
    )
  },
  prefixItems: (argument, value, { field, root }) => {
    if (!Array.isArray(value)) return undefined
    return first([...(argument as JsonSchema[]).entries()], ([index, schema]) =>
      index < value.length ? misfit(schema, value[index], `${field}.${index}`, root) : undefined,
    )
  },
  uniqueItems: (argument, value, { field }) =>
    argument !== true || !Array.isArray(value) || new Set(value.map(sorted)).size === value.length
      ? undefined
      : { field, message: 'holds something twice' },
  allOf: (argument, value, { field, root }) =>
    first(argument as JsonSchema[], (schema) => misfit(schema, value, field, root)),
  anyOf: (argument, value, { field, root }) => {
    const wrong = (argument as JsonSchema[]).map((schema) => misfit(schema, value, field, root))
    return wrong.includes(undefined) ? undefined : { field, message: 'fits none of what it may be' }
  },
  oneOf: (argument, value, { field, root }) => {
    const wrong = (argument as JsonSchema[]).map((schema) => misfit(schema, value, field, root))
    const fitting = wrong.filter((one) => one === undefined).length
    return fitting === 1
      ? undefined
      : { field, message: `fits ${fitting} of what it may be, not one` }
  },
  not: (argument, value, { field, root }) =>
    misfit(argument as JsonSchema, value, field, root) === undefined
      ? { field, message: 'is what it must not be' }
      : undefined,
  $ref: (argument, value, { field, root }) =>
    misfit(referred(argument as string, root), value, field, root),
}

function misfit(
  schema: JsonSchema | boolean,
  value: unknown,
  field: string,
  root: JsonSchema,
): Misfit | undefined {
  if (schema === true) return undefined
  if (schema === false) return { field, message: 'is not known' }
  return first(Object.entries(schema), ([keyword, argument]) =>
    RULES[keyword]?.(argument, value, { field, schema, root }),
  )
}

function first<T>(all: readonly T[], look: (one: T) => Misfit | undefined): Misfit | undefined {
  for (const one of all) {
    const wrong = look(one)
    if (wrong !== undefined) return wrong
  }
  return undefined
}

function referred(ref: string, root: JsonSchema): JsonSchema {
  let found: unknown = root
  for (const part of ref.replace(/^#\/?/, '').split('/').filter(Boolean)) {
    found = (found as Record<string, unknown> | undefined)?.[part]
  }
  if (!ref.startsWith('#') || !isObject(found)) {
    throw new LoomError('INVALID_PARAMS', `${ref} leads nowhere in this schema`, {
      field: 'schema',
    })
  }
  return found
}

const INNER: Record<string, 'one' | 'list' | 'named'> = {
  ...{ items: 'one', not: 'one', additionalProperties: 'one' },
  ...{ allOf: 'list', anyOf: 'list', oneOf: 'list', prefixItems: 'list' },
  ...{ properties: 'named', $defs: 'named', definitions: 'named' },
}

function checkKeywords(schema: unknown, path: string): void {
  if (typeof schema === 'boolean') return
  if (!isObject(schema)) throw invalid(`schema${path}`, 'a JSON Schema is an object')
  for (const [keyword, argument] of Object.entries(schema)) {
    if (!SAID.has(keyword) && RULES[keyword] === undefined) {
      throw new LoomError('NOT_SUPPORTED', `the keyword ${keyword} is not checked here`, {
        field: `schema${path}.${keyword}`,
        hint: 'leave it out, or give a Zod schema (or another Standard Schema)',
      })
    }
    const inner = INNER[keyword]
    const all =
      inner === undefined ? [] : inner === 'one' ? [argument] : Object.values(argument as object)
    for (const one of all) checkKeywords(one, `${path}.${keyword}`)
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return (
    typeof value === 'object' &&
    value !== null &&
    !Array.isArray(value) &&
    !(value instanceof Uint8Array)
  )
}

function isSame(one: unknown, other: unknown): boolean {
  return sorted(one) === sorted(other)
}

/** A value as text that is equal for equal data, whatever the order of members. */
export function sorted(value: unknown): string {
  return JSON.stringify(value, (_, inner) =>
    isObject(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  )
}
