// A node in memory behind real sockets, for tests of the link over them.

import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type WebSocket, WebSocketServer } from 'ws'
import { wireOf } from '../../src/codec/wire.js'
import { MemoryNode, type MemoryNodeOptions } from '../../src/link/memory.js'

export class SocketNode {
  readonly node: MemoryNode
  /** Subprotocols of the connections that came. */
  readonly protocols: string[] = []
  /** Binary messages and texts that came. */
  readonly counts = { binary: 0, text: 0 }
  /** Is told all bytes that come, as they come. */
  onBytes: (bytes: Buffer) => void = () => {}
  url = ''
  private readonly http: Server = createServer()
  private readonly sockets = new Set<WebSocket>()
  private readonly server: WebSocketServer = new WebSocketServer({
    server: this.http,
    path: '/v1/ws',
  })

  constructor(options: MemoryNodeOptions = {}) {
    this.node = new MemoryNode(options)
    this.server.on('connection', (socket) => this.serve(socket))
    this.http.on('connection', (wire) => wire.on('data', (bytes: Buffer) => this.onBytes(bytes)))
  }

  async listen(path?: string): Promise<this> {
    await new Promise<void>((resolve) => {
      if (path === undefined) this.http.listen(0, '127.0.0.1', resolve)
      else this.http.listen(path, resolve)
    })
    const address = this.http.address() as AddressInfo
    this.url = path === undefined ? `ws://127.0.0.1:${address.port}` : `unix://${path}`
    return this
  }

  /** Cuts all connections. */
  cut(): void {
    for (const socket of this.sockets) socket.terminate()
  }

  async close(): Promise<void> {
    this.cut()
    this.node.close()
    this.server.close()
    await new Promise((resolve) => this.http.close(resolve))
  }

  private serve(socket: WebSocket): void {
    const { protocol } = socket
    this.protocols.push(protocol)
    this.sockets.add(socket)
    const wire = wireOf(protocol === 'loom.v1.proto' ? 'proto' : 'json')
    const carrier = this.node.dial({
      opened: () => {},
      drained: () => {},
      closed: () => socket.close(),
      received: (packet) => {
        for (const message of wire.write(packet)) socket.send(message)
      },
    })
    socket.on('message', (data: Buffer, isBinary: boolean) => {
      this.counts[isBinary ? 'binary' : 'text']++
      const packet = wire.read(isBinary ? data : data.toString('utf8'))
      if (packet !== undefined) carrier.send(packet)
    })
    socket.on('close', () => {
      this.sockets.delete(socket)
      carrier.close()
    })
  }
}
