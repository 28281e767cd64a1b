import { execFile } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { gzipSync } from 'node:zlib'
import { rolldown } from 'rolldown'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { blocks, SDK } from './support/blocks.js'
import { ROOT } from './support/oracle.js'

const run = promisify(execFile)
const NPM = ['--offline', '--no-audit', '--no-fund', '--ignore-scripts', '--silent']
// Kilobytes of 1,000 bytes.
const CORE_BYTES = 15_000
const ALL_BYTES = 35_000

let folder = ''
let tarball = ''

/** Runs a command where the packed SDK is installed. */
async function there(command: string, ...more: string[]): Promise<string> {
  const { stdout, stderr } = await run(command, more, { cwd: folder })
  return stdout + stderr
}

/** Checks the types of a file there, strictly. */
async function fits(file: string): Promise<void> {
  const options = ['--module', 'nodenext', '--strict', '--noEmit', '--target', 'es2022']
  mkdirSync(join(folder, 'node_modules/@types'), { recursive: true })
  const types = ['--lib', 'es2023,dom,dom.iterable,esnext.disposable', '--skipLibCheck']
  await there(join(ROOT, 'node_modules/.bin/tsc'), ...options, ...types, file)
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'loom-pack-'))
  await run(join(ROOT, 'node_modules/.bin/tsdown'), [], { cwd: SDK })
  const pack = (path: string) =>
    run('npm', ['pack', path, '--pack-destination', folder, ...NPM], { cwd: folder })
  await pack(SDK)
  await pack(join(ROOT, 'node_modules/ws')) // so that nothing has to be fetched
  const packed = readdirSync(folder).filter((file) => file.endsWith('.tgz'))
  tarball = join(folder, packed.find((file) => file.startsWith('loomos')) as string)
  writeFileSync(join(folder, 'package.json'), '{"type":"module","private":true}')
  await there('npm', 'install', ...packed.map((file) => `./${file}`), ...NPM)
}, 120_000)

afterAll(() => rmSync(folder, { recursive: true }))

/** What a browser loads of a module, minified and zipped, in bytes; `without` is left out. */
async function bytes(input: string, without: RegExp[]): Promise<number> {
  const build = await rolldown({ input, external: without, platform: 'browser' })
  const { output } = await build.generate({ format: 'esm', minify: true })
  return gzipSync(output[0].code, { level: 9 }).length
}

// requirement: JS-PACKAGE
describe('the package', () => {
  it('is what publint and attw want', async () => {
    const bin = (name: string) => join(ROOT, 'node_modules/.bin', name)
    const lint = await there(bin('publint'), tarball, '--strict')
    expect(lint).toContain('All good!')
    await there(bin('attw'), tarball, '--profile', 'esm-only')
  }, 60_000)

  it('holds code, types and source maps, and nothing else', async () => {
    const { stdout } = await run('tar', ['-tzf', tarball])
    const odd = stdout
      .split('\n')
      .filter(
        (name) =>
          !/^(package\/(dist\/(collab\/)?[\w-]+(\.d\.ts|\.js|\.js\.map)|package\.json|README\.md))?$/.test(
            name,
          ),
      )
    expect(odd).toEqual([])
  })

  it('runs from its tarball, and its types fit', async () => {
    const source = `
      import { capability, defineAgent, serve } from '@loomos/sdk'
      import { serve as serveNode } from '@loomos/sdk/node'
      import { MemoryNode } from '@loomos/sdk/memory'
      const add = capability({ name: 'add', run: (args) => 1 })
      const agent = defineAgent({ name: 'a', topics: ['x'], onEvent: (ctx) => ctx.tool(add, {}) })
      const app = await serve({ dial: new MemoryNode().dial, agents: [agent], capabilities: [add] })
      const answer: unknown = (await app.request('x')).data
      if (answer !== 1 || typeof serveNode !== 'function') throw new Error('it does not work')
      await app.close()
    `
    writeFileSync(join(folder, 'try.mts'), source)
    writeFileSync(join(folder, 'try.mjs'), source.replace(': unknown', ''))
    await there('node', 'try.mjs')
    await fits('try.mts')
  }, 60_000)

  it('loads nothing of Node into a browser', () => {
    const dist = join(folder, 'node_modules/@loomos/sdk/dist')
    const reachable = new Set<string>()
    const visit = (file: string): void => {
      if (reachable.has(file)) return
      reachable.add(file)
      const code = readFileSync(join(dist, file), 'utf8')
      for (const [, from = ''] of code.matchAll(/(?:from|import)\s*["']([^"']+)["']/g)) {
        expect(from, file).toMatch(/^\.\//)
        visit(from.slice(2))
      }
      expect(code, file).not.toMatch(/\bprocess\.|\brequire\(|\bBuffer\./)
    }
    visit('index.js')
    visit('memory.js')
    expect(reachable.size).toBeGreaterThan(2)
  })
})

// requirement: JS-SIZE
describe('the size, minified and zipped', () => {
  it('is at most 15 kB without the codecs and 35 kB with all', async () => {
    const core = await bytes(join(SDK, 'src/index.ts'), [/\/codec\//, /gen\/frames/])
    const whole = await bytes(join(folder, 'node_modules/@loomos/sdk/dist/index.js'), [])
    expect(core).toBeGreaterThan(5_000)
    expect(core).toBeLessThan(CORE_BYTES)
    expect(whole).toBeGreaterThan(core)
    expect(whole).toBeLessThan(ALL_BYTES)
    if (process.env['LOOM_SHOW_SIZES'] !== undefined) process.stderr.write(`${core} ${whole}\n`)
  })
})

// requirement: JS-README
describe('the quick start of the README', () => {
  const [code = ''] = blocks('README.md', 'js')

  it('runs as it stands', async () => {
    writeFileSync(join(folder, 'quick.mjs'), code)
    expect(await there('node', 'quick.mjs')).toBe('hello ada\n')
  })

  it('is TypeScript, too', async () => {
    writeFileSync(join(folder, 'quick.mts'), code)
    await fits('quick.mts')
  }, 60_000)
})
