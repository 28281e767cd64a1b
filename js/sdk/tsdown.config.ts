import { defineConfig } from 'tsdown'

const config: ReturnType<typeof defineConfig> = defineConfig({
  entry: [
    'src/index.ts',
    'src/node.ts',
    'src/memory.ts',
    'src/json-schema.ts',
    'src/collab/index.ts',
  ],
  format: 'esm',
  platform: 'neutral',
  target: 'es2022',
  dts: true,
  sourcemap: true,
  clean: true,
  deps: { neverBundle: ['ws', /^node:/] },
})

// biome-ignore lint/style/noDefaultExport: what tsdown reads
export default config
