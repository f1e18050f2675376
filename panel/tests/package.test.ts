import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { build } from 'vite'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const panel = join(import.meta.dirname, '..')
interface Built {
  output: { fileName: string }[]
}

/** The code blocks of the README, by language. */
async function snippets(): Promise<{ [language: string]: string[] }> {
  const text = await readFile(join(panel, 'README.md'), 'utf8')
  const found: { [language: string]: string[] } = {}
  for (const [, language = '', code = ''] of text.matchAll(/^```(\w+)\n(.*?)^```/gms)) (found[language] ??= []).push(code)
  return found
}

describe('the package', () => {
  let folder: string
  let output: Built['output']
  let names: string[]

  beforeAll(async () => {
    folder = await mkdtemp(join(panel, 'node_modules', '.package-'))
    const built = await build({ root: panel, mode: 'package', logLevel: 'error', build: { outDir: folder } })
    output = (built as Built[]).flatMap((part) => part.output)
    names = Object.keys((await import(/* @vite-ignore */ pathToFileURL(join(folder, 'job-panel.js')).href)) as object)
  }, 60_000)

  afterAll(() => rm(folder, { recursive: true }))

  it('is one file without imports', () => {
    expect(output).toMatchObject([{ fileName: 'job-panel.js', imports: [], dynamicImports: [] }])
  })

  it('has every element that the README names', async () => {
    const readme = await readFile(join(panel, 'README.md'), 'utf8')
    const named = [...readme.matchAll(/<((?:job|credit)-[\w-]+)/g)].map(([, name]) => name as string)
    expect(named).toContain('job-list')
    expect(named.filter((name) => customElements.get(name) === undefined)).toEqual([])
  })

  it('has every name that the README imports', async () => {
    const code = Object.values(await snippets()).flat().join('\n')
    const imported = [...code.matchAll(/import \{ (.*?) \} from '(?:\.\/job-panel\.js|@supabase-job-processor\/panel)'/g)]
    expect(imported.flatMap(([, list = '']) => list.split(', '))).toEqual(['connect', 'use'])
    expect(names).toEqual(expect.arrayContaining(['connect', 'use', 'language', 'LANGUAGES']))
  })

  it('shows itself where an element stands, and asks to sign in', async () => {
    document.body.append(document.createElement('job-panel'))
    const list = await new Promise<Element>((resolve) => {
      const look = (): void => {
        const found = document.querySelector('job-panel')?.shadowRoot?.querySelector('job-list')
        if (found?.shadowRoot?.querySelector('.message')) resolve(found)
        else setTimeout(look, 10)
      }
      look()
    })
    expect(list.shadowRoot?.textContent).toContain('Sign in to see your jobs.')
  })
})
