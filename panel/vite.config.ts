import { defineConfig } from 'vitest/config'

// `vite build` makes the page that the Python package serves; `--mode package` makes the components for npm.
export default defineConfig(({ mode }) => ({
  base: '/panel/',
  build:
    mode === 'package'
      ? { lib: { entry: 'src/index.ts', formats: ['es' as const], fileName: 'job-panel' }, outDir: 'dist', copyPublicDir: false }
      : // no inlined modules or files: the page is served with a Content-Security-Policy that forbids them
        { outDir: '../processor/web/static', emptyOutDir: true, assetsInlineLimit: 0, modulePreload: { polyfill: false } },
  test: { environment: 'happy-dom', include: ['tests/**/*.test.ts'] },
}))
