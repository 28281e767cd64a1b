// A node in memory, for tests: '@loomos/sdk/memory'.

export { MemoryNode, type MemoryNodeOptions } from './link/memory.js'
