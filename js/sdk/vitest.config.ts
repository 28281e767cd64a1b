import { defineConfig } from 'vitest/config'

const shared = { testTimeout: 20_000, sequence: { shuffle: true } }

// What stands in tests/links runs once for each link, unchanged; spec/links.toml names what must.
const include = ['tests/links/*.test.ts']
const link = (name: 'memory' | 'websocket' | 'unix', protocol: 'proto' | 'json' = 'proto') => ({
  test: {
    ...shared,
    name,
    include,
    exclude: name === 'memory' ? ['tests/links/log.test.ts'] : [], // it has no log
    provide: { link: name, protocol },
  },
})

const config: ReturnType<typeof defineConfig> = defineConfig({
  test: {
    globalSetup: 'tests/support/setup.ts',
    projects: [
      { test: { ...shared, name: 'alone', include: ['tests/*.test.ts'] } },
      { test: { ...shared, name: 'browser', include: ['tests/browser/*.test.ts'] } },
      link('memory'),
      link('websocket'),
      link('unix', 'json'),
    ],
  },
})

// biome-ignore lint/style/noDefaultExport: what vitest reads
export default config
