// Publishes in Node.js by way of a NATS server: node publish_nats.mjs EVENT

import { connect } from '@nats-io/transport-node'
import { publishPhases } from '../part.mjs'

const event = JSON.parse(process.argv[2])
const connection = await connect({ servers: process.env.BENCH_NATS, maxReconnectAttempts: 1 })

await publishPhases(async (count) => {
  for (let left = count; left > 0; left--)
    connection.publish('readings.hall', JSON.stringify(event))
  await connection.flush()
})
await connection.close()
