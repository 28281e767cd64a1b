// A JSON Schema as a Standard Schema: '@loomos/sdk/json-schema'. It checks the keywords that
// descriptions of tools use. One that is not known is refused where it is written: what looks like a
// check and is none would be worse.

import { LoomError } from './errors.js'
import type { JsonSchema, StandardSchema } from './schema.js'
import { sorted } from './sorted.js'

/** A schema that checks data by a JSON Schema of 2020-12. Throws NOT_SUPPORTED for other keywords. */
export function jsonSchema<T = unknown>(schema: JsonSchema): StandardSchema<T, T> {
  checkKeywords(schema, '')
  const json = (): Record<string, unknown> => schema
  return {
    '~standard': {
      version: 1,
      vendor: 'loom',
      validate: (value) => {
        const wrong = misfit(schema, value, [], schema)
        if (wrong === undefined) return { value: value as T }
        return { issues: [{ message: wrong.message, path: wrong.path }] }
      },
      jsonSchema: { input: json, output: json },
    },
  }
}

const SAID = new Set(
  '$schema $id $defs definitions title description default examples $comment deprecated readOnly writeOnly format contentEncoding contentMediaType'.split(
    ' ',
  ),
)

type Rule = (argument: unknown, value: unknown, at: Place) => Misfit | undefined
interface Misfit {
  path: string[]
  message: string
}
interface Place {
  path: string[]
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
  return (argument, value, { path }) => {
    const measure = of(value)
    if (measure === undefined || is(measure, argument as number)) return undefined
    return { path, message: `must be ${words} ${String(argument)}` }
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
  type: (argument, value, { path }) => {
    const names = (Array.isArray(argument) ? argument : [argument]) as string[]
    if (names.some((name) => TYPES[name]?.(value) === true)) return undefined
    return { path, message: `must be ${names.join(' or ')}` }
  },
  enum: (argument, value, { path }) =>
    (argument as unknown[]).some((one) => isSame(one, value))
      ? undefined
      : { path, message: `must be one of ${JSON.stringify(argument)}` },
  const: (argument, value, { path }) =>
    isSame(argument, value) ? undefined : { path, message: `must be ${JSON.stringify(argument)}` },
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
  pattern: (argument, value, { path }) =>
    typeof value !== 'string' || new RegExp(argument as string, 'u').test(value)
      ? undefined
      : { path, message: `must match ${String(argument)}` },
  required: (argument, value, { path }) => {
    if (!isObject(value)) return undefined
    const missing = (argument as string[]).find((name) => !Object.hasOwn(value, name))
    return missing === undefined ? undefined : { path: [...path, missing], message: 'is missing' }
  },
  properties: (argument, value, { path, root }) => {
    if (!isObject(value)) return undefined
    return first(Object.entries(argument as Record<string, JsonSchema>), ([name, schema]) =>
      Object.hasOwn(value, name) ? misfit(schema, value[name], [...path, name], root) : undefined,
    )
  },
  additionalProperties: (argument, value, { path, schema, root }) => {
    if (!isObject(value)) return undefined
    const known = (schema['properties'] ?? {}) as object
    const others = Object.entries(value).filter(([name]) => !Object.hasOwn(known, name))
    return first(others, ([name, one]) =>
      misfit(argument as JsonSchema, one, [...path, name], root),
    )
  },
  items: (argument, value, { path, schema, root }) => {
    if (!Array.isArray(value)) return undefined
    const from = ((schema['prefixItems'] ?? []) as unknown[]).length
    return first([...value.entries()].slice(from), ([index, one]) =>
      misfit(argument as JsonSchema, one, [...path, String(index)], root),
    )
  },
  prefixItems: (argument, value, { path, root }) => {
    if (!Array.isArray(value)) return undefined
    return first([...(argument as JsonSchema[]).entries()], ([index, schema]) =>
      index < value.length
        ? misfit(schema, value[index], [...path, String(index)], root)
        : undefined,
    )
  },
  uniqueItems: (argument, value, { path }) =>
    argument !== true || !Array.isArray(value) || new Set(value.map(sorted)).size === value.length
      ? undefined
      : { path, message: 'holds something twice' },
  allOf: (argument, value, { path, root }) =>
    first(argument as JsonSchema[], (schema) => misfit(schema, value, path, root)),
  anyOf: (argument, value, { path, root }) => {
    const wrong = (argument as JsonSchema[]).map((schema) => misfit(schema, value, path, root))
    return wrong.includes(undefined) ? undefined : { path, message: 'fits none of what it may be' }
  },
  oneOf: (argument, value, { path, root }) => {
    const wrong = (argument as JsonSchema[]).map((schema) => misfit(schema, value, path, root))
    const fitting = wrong.filter((one) => one === undefined).length
    return fitting === 1
      ? undefined
      : { path, message: `fits ${fitting} of what it may be, not one` }
  },
  not: (argument, value, { path, root }) =>
    misfit(argument as JsonSchema, value, path, root) === undefined
      ? { path, message: 'is what it must not be' }
      : undefined,
  $ref: (argument, value, { path, root }) =>
    misfit(referred(argument as string, root), value, path, root),
}

function misfit(
  schema: JsonSchema | boolean,
  value: unknown,
  path: string[],
  root: JsonSchema,
): Misfit | undefined {
  if (schema === true) return undefined
  if (schema === false) return { path, message: 'is not known' }
  return first(Object.entries(schema), ([keyword, argument]) =>
    RULES[keyword]?.(argument, value, { path, schema, root }),
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
  if (!isObject(schema))
    throw new LoomError('INVALID_PARAMS', 'a JSON Schema is an object', { field: `schema${path}` })
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
