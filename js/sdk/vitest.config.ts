import { defineConfig } from 'vitest/config'

const config: ReturnType<typeof defineConfig> = defineConfig({
  test: {
    include: ['tests/**/*.test.ts'],
    testTimeout: 20_000,
    sequence: { shuffle: true },
    typecheck: { enabled: false },
  },
})

// biome-ignore lint/style/noDefaultExport: what vitest reads
export default config
