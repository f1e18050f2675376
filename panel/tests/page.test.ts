import { AuthApiError, AuthRetryableFetchError } from '@supabase/supabase-js'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { readConfig } from '../src/config'
import { address, parse } from '../src/route'
import { inWords } from '../src/sign-in'
import { en } from '../src/strings/en'
import { applyTheme, chooseTheme, theme } from '../src/theme'

describe('where one is', () => {
  it.each(['#/', '#/new', '#/operations', '#/jobs/01900000-0000-7000-8000-000000000001'])('%s survives', (hash) => {
    expect(address(parse(hash))).toBe(hash)
  })

  it.each(['', '#', '#/jobs', '#/jobs/', '#/jobs/%3Cimg%3E', '#access_token=x', '#/elsewhere'])('%j is the list', (hash) => {
    expect(parse(hash)).toEqual({ view: 'list' })
  })
})

describe('the page’s config', () => {
  afterEach(() => vi.unstubAllGlobals())
  const answer = (body: unknown, init?: ResponseInit): void => {
    vi.stubGlobal('fetch', () => Promise.resolve(new Response(JSON.stringify(body), init)))
  }
  const at = new URL('http://localhost/panel/config.json')

  it('names the project and, in a demo, its users', async () => {
    answer({ url: 'http://localhost', key: 'k', demo: null })
    expect(await readConfig(at, 'incomplete')).toEqual({ url: 'http://localhost', key: 'k', demo: [] })
  })

  it('is refused, with the reason, if it names none', async () => {
    answer({ url: 'http://localhost' })
    await expect(readConfig(at, 'incomplete')).rejects.toThrow('incomplete')
    answer({}, { status: 404 })
    await expect(readConfig(at, 'incomplete')).rejects.toThrow('HTTP 404')
  })
})

describe('what goes wrong at the entrance', () => {
  it('is said in plain words', () => {
    expect(inWords(new AuthApiError('Invalid login credentials', 400, 'invalid_credentials'), en)).toBe(en.page.wrongPassword)
    expect(inWords(new AuthRetryableFetchError('Failed to fetch', 0), en)).toBe(en.page.unreachable)
  })

  it('is said in the server’s words where we have none', () => {
    expect(inWords(new AuthApiError('The moon is full', 400, 'moon'), en)).toBe('The moon is full')
  })
})

describe('colours', () => {
  it('are as the system has them until somebody chooses, and then stay', () => {
    applyTheme()
    expect([theme(), document.documentElement.dataset['theme']]).toEqual(['auto', 'auto'])
    chooseTheme('dark')
    expect([theme(), document.documentElement.dataset['theme']]).toEqual(['dark', 'dark'])
  })
})
