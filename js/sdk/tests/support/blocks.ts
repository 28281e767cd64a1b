// The blocks of code in the SDK's documents.

import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const SDK: string = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

/** The blocks of one language in a document. */
export function blocks(document: string, language: string): string[] {
  const text = readFileSync(join(SDK, document), 'utf8')
  const all = [...text.matchAll(/^```(\w+)[^\n]*\n(.*?)^```$/gms)]
  return all.filter(([, name]) => name === language).map(([, , code = '']) => code)
}
