// Several agents, one result: '@loomos/sdk/collab'. Functions over the Context and nothing else; what
// they send stands in spec/collab, so that members in other languages take part.

export { type BarrierOptions, barrier, type Meeting } from './barrier.js'
export {
  type Award,
  type Bid,
  type ContractOptions,
  contractNet,
  type Decline,
  type Ignored,
} from './contract.js'
export { type ContractorOptions, defineContractor, type Proposal } from './contractor.js'
export { Fanin, type FaninOptions, fanin } from './fanin.js'
export { Fanout, type FanoutOptions, fanout, type Target } from './fanout.js'
export type { Failure, Item, Partial } from './partial.js'
