// A web site of its own for a test: it serves a page and the built SDK, and hands WebSockets on to a
// node, as a web server before one does.

import { readFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server } from 'node:http'
import { type AddressInfo, connect, type Socket } from 'node:net'
import { join } from 'node:path'

const PAGE = `<!doctype html><title>loom</title><link rel="icon" href="data:,">
<script type="importmap">{"imports": {"@loomos/sdk": "/sdk/index.js"}}</script>
<script type="module" src="/page.js"></script>`

export class Site {
  origin = ''
  /** Where WebSockets go: host:port. */
  node = ''
  /** What was asked for. */
  readonly asked: string[] = []
  readonly #server: Server
  readonly #sockets = new Set<Socket>()

  /** Serves what is in `folder`, and the page. */
  constructor(folder: string) {
    this.#server = createServer(({ url = '/' }, response) => {
      this.asked.push(url)
      if (url === '/') {
        response.setHeader('content-type', 'text/html').end(PAGE)
      } else if (/^\/(sdk\/)?[\w-]+\.js$/.test(url)) {
        response.setHeader('content-type', 'text/javascript').end(readFileSync(join(folder, url)))
      } else {
        response.writeHead(404).end()
      }
    })
    this.#server.on('upgrade', (request, socket: Socket, head) => this.#pass(request, socket, head))
  }

  async listen(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve))
    this.origin = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
    return this
  }

  /** Cuts all WebSockets, and says how many there were. */
  cut(): number {
    const count = this.#sockets.size
    for (const socket of this.#sockets) socket.destroy()
    return count
  }

  async close(): Promise<void> {
    this.cut()
    this.#server.closeAllConnections()
    await new Promise((resolve) => this.#server.close(resolve))
  }

  /** Hands a WebSocket on as it came, with its Host and its Origin. */
  #pass(request: IncomingMessage, socket: Socket, head: Buffer): void {
    const [host, port] = this.node.split(':')
    const there = connect(Number(port), host)
    const lines = [`${request.method} ${request.url} HTTP/1.1`]
    for (let i = 0; i < request.rawHeaders.length; i += 2) {
      lines.push(`${request.rawHeaders[i]}: ${request.rawHeaders[i + 1]}`)
    }
    there.write(`${lines.join('\r\n')}\r\n\r\n`)
    there.write(head)
    there.pipe(socket).pipe(there)
    this.#sockets.add(socket)
    const over = (): void => {
      this.#sockets.delete(socket)
      socket.destroy()
      there.destroy()
    }
    for (const end of [socket, there]) end.on('close', over).on('error', over)
  }
}
