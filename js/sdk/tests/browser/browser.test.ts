import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { type Browser, chromium, type Page } from 'playwright-core'
import { rolldown } from 'rolldown'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { SDK } from '../support/blocks.js'
import { hasNode, PYTHON, RealNode } from '../support/node.js'
import { ROOT } from '../support/oracle.js'
import type { Trial } from './page.js'
import { Site } from './site.js'

const APP = `
import loom

app = loom.App("desk")


@app.capability("py.twice", effect="pure")
async def twice(n: int) -> int:
    return 2 * n


@app.capability("py.count", effect="pure")
async def count(to: int):
    for n in range(to):
        yield n


@app.agent("clerk", topics=["py.meet"])
async def clerk(ctx: loom.Context, event: loom.Event[str]) -> list:
    greeting = await ctx.request("page.greet", event.data)
    return [greeting.data, await ctx.tool("page.where", args={})]


@app.agent("mirror", topics=["py.same"])
async def mirror(ctx: loom.Context, event: loom.Event) -> bytes:
    return event.data
`

/** Where Chromium is; '' where it is not installed. */
function findChromium(): string {
  for (const name of ['chromium', 'chromium-browser', 'google-chrome']) {
    try {
      return execFileSync('which', [name], { encoding: 'utf8', stdio: 'pipe' }).trim()
    } catch {}
  }
  return ''
}

const browserPath = findChromium()

// requirement: JS-BROWSER
describe.skipIf(!hasNode || browserPath === '')('in Chromium (make test-deps installs it)', () => {
  let folder = ''
  let mine: Site
  let foreign: Site
  let node: RealNode
  let desk: ChildProcess
  let browser: Browser
  let page: Page
  const complaints: string[] = []

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'loom-page-'))
    const bin = join(ROOT, 'node_modules/.bin/tsdown')
    await promisify(execFile)(bin, ['--out-dir', join(folder, 'sdk'), '--no-dts'], { cwd: SDK })
    const input = join(SDK, 'tests/browser/page.ts')
    const build = await rolldown({ input, external: ['@loomos/sdk'], platform: 'browser' })
    await build.write({ file: join(folder, 'page.js') })
    mine = await new Site(folder).listen()
    foreign = await new Site(folder).listen()
    node = await new RealNode({ LOOM_BRIDGE__ORIGINS: mine.origin }).start()
    mine.node = foreign.node = node.url.replace('loom://', '')
    desk = await python(APP)
    browser = await chromium.launch({ executablePath: browserPath, chromiumSandbox: false })
  }, 90_000)

  afterAll(async () => {
    await browser?.close()
    desk?.kill('SIGKILL')
    await Promise.all([mine, foreign].map((site) => site?.close()))
    await node?.close()
    rmSync(folder, { recursive: true })
  })

  afterEach(async () => {
    await on('close') // else the node would keep the session, and what its agents are sent
    await page.context().close()
  })

  /** Runs an app in Python at the node; returns when it is there. */
  async function python(code: string): Promise<ChildProcess> {
    writeFileSync(join(folder, 'app.py'), code)
    const { url: LOOM_URL, token: LOOM_TOKEN } = node
    const child = spawn(PYTHON, ['-m', 'loom', 'run', 'app.py'], {
      cwd: folder,
      env: { ...process.env, PYTHONPATH: join(ROOT, 'python'), LOOM_URL, LOOM_TOKEN },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let said = ''
    await new Promise<void>((resolve, reject) => {
      child.stderr.on('data', (chunk: Buffer) => {
        said += chunk
        if (said.includes('desk runs:')) resolve()
      })
      child.once('exit', () => reject(new Error(`the app ended: ${said}`)))
    })
    return child
  }

  /** Opens the page of a site. */
  async function open(site: Site): Promise<void> {
    const context = await browser.newContext()
    page = await context.newPage()
    complaints.length = 0
    page.on('pageerror', (error) => complaints.push(error.message))
    page.on('console', (message) => complaints.push(message.text()))
    await page.goto(site.origin)
    await page.waitForFunction('globalThis.trial !== undefined')
  }

  /** Has the page do something, and returns what that returns. */
  function on<Name extends keyof Trial>(
    name: Name,
    ...args: Parameters<Trial[Name]>
  ): Promise<Awaited<ReturnType<Trial[Name]>>> {
    return page.evaluate(`trial.${name}(...${JSON.stringify(args)})`)
  }

  const behind = (site: Site): string => site.origin.replace('http', 'ws')
  const direct = (): string => node.url.replace('loom', 'ws')

  it('the page has loaded the SDK and nothing of Node', async () => {
    mine.asked.length = 0
    await open(mine)
    expect(mine.asked.filter((path) => path.startsWith('/sdk/')).length).toBeGreaterThan(0)
    expect(mine.asked.filter((path) => !/^\/(page\.js|sdk\/[\w-]+\.js)?$/.test(path))).toEqual([])
    expect(complaints).toEqual([])
  }, 30_000)

  describe.each(['proto', 'json'] as const)('over %s', (protocol) => {
    it('an app serves, asks, hears, calls Python and is called', async () => {
      await open(mine)
      expect(await on('attach', { url: direct(), token: node.token, protocol })).toBe('up')
      expect(await on('ask', 'ada')).toEqual(['hello ada, twice 4 is 8', mine.origin])
      const heard = ['page.heard.once', { bytes: 'Zürich 🧵' }, 'default/page']
      expect(await on('hear')).toEqual(heard)
      expect(await on('call', 'py.twice', { n: 21 })).toBe(42)
      expect(await on('code', 'call', 'py.twice', { n: 'x' })).toBe('INVALID_PARAMS args.n')
      expect(await on('code', 'call', 'no.such', {})).toBe('NOT_FOUND capability')
      expect(await on('stream', 300)).toEqual(Array.from({ length: 300 }, (_, n) => n))
      expect(await on('bytes')).toBe(true)
      expect(await on('close')).toBe('closed')
      expect(complaints).toEqual([])
    }, 30_000)

    // requirement: SESSION-CUT
    it('one whose connection is cut goes on where it was', async () => {
      await open(mine)
      await on('attach', { url: behind(mine), token: node.token, protocol })
      const published = on('publish', 400)
      const streamed = on('stream', 400)
      let cuts = 0
      while (cuts < 4) {
        await page.waitForFunction(`trial.heard() > ${50 + cuts * 80}`)
        cuts += mine.cut()
        await page.waitForFunction(`trial.links().filter((c) => c.resumed).length >= ${cuts}`)
      }
      const all = Array.from({ length: 400 }, (_, n) => n)
      expect(await published).toEqual(all)
      expect(await streamed).toEqual(all)
      const links = await on('links')
      expect(links.filter(({ state }) => state === 'lost').length).toBeGreaterThanOrEqual(4)
      expect(links.filter(({ state }) => state === 'refused' || state === 'closed')).toEqual([])
      expect(links.filter(({ resumed }) => resumed === false)).toHaveLength(1) // the first
      expect(await on('close')).toBe('closed')
    }, 30_000)

    it('a token that is none is refused', async () => {
      await open(mine)
      const place = { url: direct(), token: `loom_${'A'.repeat(43)}`, protocol }
      expect(await on('code', 'connect', place)).toBe('UNAUTHENTICATED token')
    }, 30_000)
  })

  it('a page of another origin is not let in, by whichever way', async () => {
    await open(foreign)
    for (const url of [direct(), behind(foreign), behind(mine)]) {
      complaints.length = 0
      const place = { url, token: node.token, protocol: 'proto' as const }
      expect(await on('refused', place)).toBe('lost')
      await expect.poll(() => complaints.join()).toMatch(/WebSocket.*403/)
    }
  }, 30_000)
})
