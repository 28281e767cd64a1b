// What data must be: any Standard Schema (Zod, Valibot, ArkType); a JSON Schema becomes one.

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

export type Outcome<Out> =
  | { readonly value: Out; readonly issues?: undefined }
  | { readonly issues: readonly Issue[] }

interface Issue {
  readonly message: string
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined
}

/** A JSON Schema of 2020-12. */
export type JsonSchema = { readonly [keyword: string]: unknown }

/** What data must be. */
export type Schema = StandardSchema

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

/** Reads a schema. Throws INVALID_PARAMS for what is none. */
export function checkOf(schema: Schema | undefined, side: 'input' | 'output'): Check {
  if (schema === undefined) return { json: {}, validate: (value) => value }
  const standard = (schema as Partial<Schema> | null)?.['~standard']
  if (standard === undefined) {
    const hint = "give a Zod schema, or jsonSchema({ … }) of '@loomos/sdk/json-schema'"
    throw invalid('schema', 'that is no Standard Schema', hint)
  }
  return {
    json: standard.jsonSchema?.[side]({ target: 'draft-2020-12' }) ?? {},
    validate: (value, field) => {
      const outcome = standard.validate(value)
      if (outcome instanceof Promise) return outcome.then((one) => read(one, field))
      return read(outcome, field)
    },
  }
}

/** Returns the result of a capability. Throws CAPABILITY_ERROR where it is not what was declared. */
export async function checkedResult(check: Check, value: unknown, name: string): Promise<unknown> {
  try {
    return await check.validate(value, 'result')
  } catch (error) {
    if (!(error instanceof LoomError)) throw error
    const { field, message } = error
    throw new LoomError('CAPABILITY_ERROR', `the result of ${name}: ${message}`, {
      field,
      who: name,
    })
  }
}

function read(outcome: Outcome<unknown>, field: string): unknown {
  if (outcome.issues === undefined) return outcome.value
  const [issue] = outcome.issues
  const path = (issue?.path ?? []).map((part) => String(typeof part === 'object' ? part.key : part))
  throw invalid([field, ...path].join('.'), issue?.message ?? 'it does not fit its schema')
}
