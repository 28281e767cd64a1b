// Topics, filters and names. The node has the last word; this is the same grammar, so that a wrong
// filter fails where it is written.

import { invalid, type LoomError } from './errors.js'
import { AGENT_FILTERS, NAME_BYTES, TOPIC_BYTES, TOPIC_TOKENS } from './gen/limits.js'

const TOKEN = /^[A-Za-z0-9_-]+$/
const NAME = /^[a-z0-9_-]+(\.[a-z0-9_-]+)*$/
const QUALIFIED = /^[a-z0-9_-]+(\.[a-z0-9_-]+)*(:[A-Za-z0-9_.-]+)?$/

// Whoever publishes much does so to one topic: what was checked last is not looked through again.
let lastTopic: string | undefined

/** Whether a filter takes a topic. Both must be valid. */
export function matches(filter: string, topic: string): boolean {
  const wanted = filter.split('.')
  const tokens = topic.split('.')
  for (const [index, want] of wanted.entries()) {
    if (want === '>') return tokens.length > index
    if (index >= tokens.length || (want !== '*' && want !== tokens[index])) return false
  }
  return wanted.length === tokens.length
}

/** Returns the filters if they are some. Throws INVALID_PARAMS, naming the token or the limit. */
export function checkFilters(filters: readonly string[], field: string): readonly string[] {
  if (checkList(filters, field).length > AGENT_FILTERS) {
    const message = `${filters.length} filters, ${AGENT_FILTERS} are allowed`
    throw invalid(field, message, 'use wildcards, or several agents', 'agent_filters')
  }
  for (const filter of filters) checkFilter(filter, field)
  return filters
}

function checkFilter(given: unknown, field: string): void {
  const filter = checkText(given, field)
  const tokens = filter.split('.')
  if (filter.length > TOPIC_BYTES) throw tooLong(field, TOPIC_BYTES, 'topic_bytes')
  if (tokens.length > TOPIC_TOKENS) {
    const message = `the filter has ${tokens.length} tokens, ${TOPIC_TOKENS} are allowed`
    throw invalid(field, message, undefined, 'topic_tokens')
  }
  for (const [index, token] of tokens.entries()) {
    const isWild = token === '*' || (token === '>' && index === tokens.length - 1)
    if (isWild || TOKEN.test(token)) continue
    throw invalid(
      field,
      `'${filter}' is not a filter: token '${token}' is wrong`,
      "letters, digits, '_' and '-' between dots; '*' is one token, '>' at the end the rest",
    )
  }
}

/** Returns a topic that can be published to. Throws INVALID_PARAMS. */
export function checkTopic(topic: unknown): string {
  if (lastTopic !== undefined && topic === lastTopic) return lastTopic
  checkFilter(topic, 'topic')
  const text = topic as string
  if (/[*>]/.test(text)) {
    throw invalid('topic', `'${text}' is a filter, not a topic`, 'publish to one topic')
  }
  lastTopic = text
  return text
}

/** Returns a name of an agent, an app or a namespace. Throws INVALID_PARAMS. */
export function checkName(name: unknown, field = 'name'): string {
  return check(
    name,
    NAME,
    field,
    "lower-case letters, digits, '_' and '-', in parts joined by dots",
  )
}

/** Returns a name of a capability: a name, or `server:tool`. Throws INVALID_PARAMS. */
export function checkCapabilityName(name: unknown, field = 'name'): string {
  return check(name, QUALIFIED, field, "a name such as 'web.search', or 'server:tool'")
}

/** Returns a list. Throws INVALID_PARAMS. */
export function checkList<T>(list: readonly T[], field: string): readonly T[] {
  if (Array.isArray(list)) return list
  throw invalid(field, `${field} is no list`, 'give a list')
}

/** Returns a text that can travel. Throws INVALID_PARAMS. */
export function checkText(text: unknown, field: string): string {
  // Half a character has no form in UTF-8.
  if (typeof text === 'string' && !/\p{Cs}/u.test(text)) return text
  throw invalid(field, `${field} is no text`, 'give a string')
}

function check(given: unknown, shape: RegExp, field: string, hint: string): string {
  const name = checkText(given, field)
  if (name.length > NAME_BYTES) throw tooLong(field, NAME_BYTES, 'name_bytes')
  if (!shape.test(name)) throw invalid(field, `'${name}' is not a name`, `use ${hint}`)
  return name
}

function tooLong(field: string, most: number, limit: string): LoomError {
  return invalid(field, `it is longer than ${most} bytes`, undefined, limit)
}
