// A program for the trials of tests/faults: one session publishes what it is told to, another one
// hears it. It reads `{"n", "key", "id"}` a line, and tells what was acked, failed and heard.

import { createInterface } from 'node:readline'
import { connect, defineAgent, type Event, type LoomError, serve } from '../../src/node.js'

interface Order {
  n: number
  key: string
  id?: string
}

const tell = (line: object): void => void process.stdout.write(`${JSON.stringify(line)}\n`)
const protocol = process.argv[2] === 'json' ? 'json' : 'proto'

const ears = defineAgent({
  name: 'ears',
  topics: ['order.>'],
  concurrency: 8,
  onEvent: (_, event: Event) => tell({ heard: event.data, key: event.key }),
})
const listening = await serve({ name: 'ears', protocol, agents: [ears] })
const talking = await connect({ name: 'talker', protocol })
tell({ ready: true })

async function publish({ n, key, id }: Order): Promise<void> {
  try {
    const more = id === undefined ? {} : { id }
    const receipt = await talking.emit('order.new', n, { key, ack: 'os', ...more })
    tell({ acked: n, id: receipt.id })
  } catch (error) {
    tell({ failed: n, error: `${(error as LoomError).code}: ${(error as Error).message}` })
  }
}

for await (const line of createInterface(process.stdin)) void publish(JSON.parse(line) as Order)
await Promise.all([talking.close(), listening.close()])
