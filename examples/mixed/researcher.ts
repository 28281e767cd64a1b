// The Researcher of the trio in TypeScript: it hears the topics that the one in Python hears, calls
// the same capabilities, which are in Python, and answers with the same Notes.
//
//     node build/mixed/researcher.js
//
// finds the node of this user, or the one of LOOM_URL and LOOM_TOKEN. It ends with Ctrl-C.

import { type Context, defineAgent, LoomError, serve } from '@loomos/sdk/node'
import * as z from 'zod'

const Search = z.object({ query: z.string() })
const Asked = z.object({ place: z.string(), date: z.nullish(z.string()) })

interface Note {
  title: string
  text: string
  ref: string
}

interface Notes {
  found: Note[]
  missing: string[]
}

const SearchResults = z.object({
  results: z.array(
    z.object({ title: z.string(), text: z.string(), source: z.string(), ref: z.string() }),
  ),
})

const figure = z.nullish(z.number())
const Weather = z.object({
  place: z.string(),
  date: z.string(),
  kind: z.string(),
  source: z.string(),
  ref: z.string(),
  precipitation_mm: figure,
  temperature_max_c: figure,
  temperature_min_c: figure,
  wind_mean_m_s: figure,
  wind_max_m_s: figure,
  note: z.nullish(z.string()),
})

/** What a question may fail with, and a note then says: any other error is one of ours. */
const UNKNOWN = ['INVALID_PARAMS', 'NOT_FOUND', 'PROVIDER_UNAVAILABLE']

const researcher = defineAgent({
  name: 'researcher',
  topics: ['research.search', 'research.weather'],
  schema: z.union([Search, Asked]),
  exclusive: true, // one that is started again takes up at once what an older one has left
  onEvent: async (ctx, { data }): Promise<Notes> =>
    'query' in data ? await search(ctx, data.query) : await lookOutside(ctx, data),
})

async function search(ctx: Context, query: string): Promise<Notes> {
  const { results } = await ctx.tool('web.search', { query, limit: 5 }, { schema: SearchResults })
  const found = results.map(({ title, text, source, ref }) => ({
    title,
    text,
    ref: `${source}, ${ref}`,
  }))
  return { found, missing: [] }
}

async function lookOutside(ctx: Context, asked: z.infer<typeof Asked>): Promise<Notes> {
  try {
    const seen = await ctx.tool('weather.get', asked, { schema: Weather })
    const title = `The weather in ${asked.place}`
    return {
      found: [{ title, text: describe(seen), ref: `${seen.source}, ${seen.ref}` }],
      missing: [],
    }
  } catch (error) {
    if (!(error instanceof LoomError && UNKNOWN.includes(error.code))) throw error
    return { found: [], missing: [`No weather: ${error.message} (${error.hint}).`] }
  }
}

function describe(seen: z.infer<typeof Weather>): string {
  const { temperature_min_c: min, temperature_max_c: max, precipitation_mm: rain } = seen
  const figures: string[] = []
  if (min != null && max != null) figures.push(`temperatures between ${min} and ${max} °C`)
  if (rain != null) figures.push(`${rain ? `${rain} mm of` : 'no'} precipitation (rain or snow)`)
  if (seen.wind_mean_m_s != null) figures.push(`an average wind of ${seen.wind_mean_m_s} m/s`)
  if (seen.wind_max_m_s != null) figures.push(`wind of up to ${seen.wind_max_m_s} m/s`)
  const kind = seen.note == null ? seen.kind : `${seen.kind}; ${seen.note}`
  const told = figures.join(', ') || 'no figures'
  return `The weather in ${seen.place} on ${seen.date}: ${told} (${kind}).`
}

const stop = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort())
await serve({ name: 'lab', agents: [researcher], signal: stop.signal })
