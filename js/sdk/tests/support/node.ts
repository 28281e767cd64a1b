// A node of its own for a test: `loom up` in a folder that goes when it ends.

import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ROOT } from './oracle.js'

export const PYTHON: string = join(ROOT, '.venv', 'bin', 'python')

/** Whether the engine was built here, as `make setup` does. */
export const hasNode: boolean =
  existsSync(PYTHON) && existsSync(join(ROOT, 'python/loom/_engine.abi3.so'))

export class RealNode {
  url = ''
  token = ''
  readonly folder: string = mkdtempSync(join(tmpdir(), 'loom-node-'))
  readonly socket: string = join(this.folder, 'node.sock')
  #process: ChildProcess | undefined
  #said = ''
  readonly #variables: Record<string, string>

  /** With `variables` in its environment. */
  constructor(variables: Record<string, string> = {}) {
    this.#variables = variables
  }

  /** Starts it, on the port that it had before. */
  async start(...more: string[]): Promise<this> {
    const port = this.url === '' ? '0' : (this.url.split(':').at(-1) as string)
    const data = join(this.folder, 'data')
    const options = ['-m', 'loom', 'up', '--bind', `127.0.0.1:${port}`, '--data', data, ...more]
    const child = spawn(PYTHON, options, {
      cwd: this.folder,
      env: {
        ...process.env,
        PYTHONPATH: join(ROOT, 'python'),
        PYTHONUNBUFFERED: '1',
        LOOM_HOME: this.folder,
        LOOM_BRIDGE__UNIX: this.socket,
        ...this.#variables,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    this.#process = child
    this.#said = ''
    await new Promise<void>((resolve, reject) => {
      const look = (chunk: Buffer): void => {
        this.#said += chunk.toString()
        const found = /listening on\s+(looms?:\/\/\S+)\n[\s\S]*token in\s+(\S+)\n/.exec(this.#said)
        if (found === null) return
        this.url = found[1] as string
        this.token = readFileSync(found[2] as string, 'utf8').trim()
        resolve()
      }
      child.stdout?.on('data', look)
      child.stderr?.on('data', look)
      child.once('exit', () => reject(new Error(`the node ended: ${this.#said}`)))
    })
    return this
  }

  /** Ends it, as a power cut does or in order. */
  async stop(signal: 'SIGKILL' | 'SIGTERM' = 'SIGKILL'): Promise<void> {
    const child = this.#process
    this.#process = undefined
    if (child === undefined || child.exitCode !== null) return
    const ended = new Promise((resolve) => child.once('exit', resolve))
    child.kill(signal)
    await ended
  }

  async close(): Promise<void> {
    await this.stop()
    rmSync(this.folder, { recursive: true })
  }
}
