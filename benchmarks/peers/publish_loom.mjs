// Publishes in Node.js by way of a node: node publish_loom.mjs EVENT realtime|batched
//
// Of realtime events nobody says that they were taken: the receiver tells now and then how many it
// has, and no more than a window of them is under way. Batched ones are awaited, many at a time.

import { setImmediate } from 'node:timers/promises'
import { defineAgent, serve } from '@loomos/sdk/node'
import { publishPhases } from '../part.mjs'

const IN_FLIGHT = 256 // emits that wait for the node at a time
const WINDOW = 768 // realtime events that have not been seen; fewer than a queue holds
const TOLD = 128 // events between two words of the receiver

const [, , text, qos] = process.argv
const event = JSON.parse(text)
let expected = 0
let seen = 0
let more = () => {}

const counts = defineAgent({
  name: 'counts',
  topics: ['seen'],
  onEvent: (_, { data: [phase, soFar] }) => {
    if (phase !== expected) return
    seen = soFar
    more()
  },
})
const app = await serve({ name: 'publishes', agents: [counts] })

async function stream(count) {
  expected = count
  seen = 0
  for (let sent = 0; sent < count; sent += TOLD) {
    while (sent - seen > WINDOW - TOLD) {
      await new Promise((resolve) => {
        more = resolve
      })
    }
    for (let left = Math.min(TOLD, count - sent); left > 0; left--) {
      await app.emit('readings.hall', event, { qos: 'realtime' })
    }
    await setImmediate()
  }
}

async function publish(count) {
  let left = count
  const some = async () => {
    while (left-- > 0) await app.emit('readings.hall', event)
  }
  await Promise.all(Array.from({ length: Math.min(IN_FLIGHT, count) }, some))
}

await publishPhases(qos === 'realtime' ? stream : publish)
await app.close()
