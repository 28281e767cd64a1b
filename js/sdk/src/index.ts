// Agents and capabilities in JavaScript, on a node of Loom. Only what the web platform has is used
// here; '@loomos/sdk/node' adds what Node has besides.

// -- for users ------------------------------------------------------------------------------------
export { type Agent, type AgentOptions, defineAgent } from './agent.js'
export { type Capability, type CapabilityOptions, capability, type Verdict } from './capability.js'
export type { Protocol } from './codec/wire.js'
export type {
  AgentInfo,
  CapabilityInfo,
  Context,
  EmitOptions,
  ManyOptions,
  Replies,
  RequestOptions,
  Thread,
  ToolOptions,
} from './context.js'
export { type Code, LoomError } from './errors.js'
export type { AckLevel, Event, Qos, Receipt } from './event.js'
// -- for adapters: other ways to reach a node -------------------------------------------------------
export type { Carrier, Dial, Ends } from './link/carrier.js'
export { type MakeSocket, type Socket, webSocketDial } from './link/websocket.js'
export type { Middleware, Next, ToolCall } from './middleware.js'
export type { Schema, StandardSchema } from './schema.js'
export {
  type Connection,
  type ConnectOptions,
  connect,
  type ServeOptions,
  serve,
  type Used,
  use,
} from './serve.js'
export type { LinkChange, LinkState } from './session/session.js'
export { matches } from './topics.js'
export type { Watch } from './watch.js'
