// What a process of a case says and is told, as benchmarks/part.py has it: a line of JSON each to
// standard output, a number a line from standard input, and it ends with that.

import { createInterface } from 'node:readline'

/** Tells the process that has started this one. */
export function say(told) {
  process.stdout.write(`${JSON.stringify(told)}\n`)
}

/** Publishes as many events as it is told, and says when that is done; again until the end. */
export async function publishPhases(publish) {
  say({ ready: true })
  for await (const line of createInterface({ input: process.stdin })) {
    await publish(Number(line))
    say({ sent: Number(line) })
  }
}
