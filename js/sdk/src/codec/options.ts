// What may be said of an event besides its topic and data.

import type { EmitOptions, RequestOptions } from '../context.js'
import { checkMs } from '../errors.js'
import type { Options } from '../gen/frames.js'
import type { Schema } from '../schema.js'
import { checkList, checkText } from '../topics.js'

/** The options of an event as they travel. Throws INVALID_PARAMS, naming the option. */
export function wireOptions(
  options: EmitOptions & RequestOptions<Schema | undefined>,
): Options | undefined {
  const { key, thread, ttlMs, headers, labels, id } = options
  if ((key ?? thread ?? ttlMs ?? headers ?? labels ?? id) === undefined) return undefined
  const some = (text: string | undefined, field: string) => text && checkText(text, field)
  // What is undefined is not written.
  return {
    key: some(key, 'key'),
    thread: some(thread, 'thread'),
    id: some(id, 'id'),
    labels: labels && checkList(labels, 'labels').map((label) => checkText(label, 'labels')),
    ttl_ms: ttlMs === undefined ? ttlMs : checkMs(ttlMs, 'ttlMs'),
    headers:
      headers &&
      Object.entries(headers).map(([name, value]) => ({
        name,
        value: checkText(value, `headers.${name}`),
      })),
  } as Options
}
