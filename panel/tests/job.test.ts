import { beforeEach, describe, expect, it } from 'vitest'
import { happeningsOf } from '../src/job/happenings'
import { shownAs } from '../src/job/shown'
import type { ItemHere, JobHere } from '../src/job/whole'
import { counted, creditsInWords, itemNames, meaningOf, priceOf, refusalOf } from '../src/job/words'
import { language } from '../src/language'
import type { JobStatus } from '../src/rows'

beforeEach(() => language.choose('en'))

describe('words', () => {
  it('explain the codes of the processor and leave those of an application to its message', () => {
    expect(meaningOf('RATE_LIMITED')).toContain('less often')
    expect(meaningOf('CARD_TOO_LONG')).toBeNull()
    expect(meaningOf('toString')).toBeNull()
    expect(meaningOf(null)).toBeNull()
  })

  it('say what is lacking when credits do not suffice', () => {
    const error = { code: 'PT402', message: 'insufficient credits', details: '{"needed": 1200, "available": 200}' }
    expect(refusalOf(error)).toBe('Not enough credits: 1,200 are needed, you have 200, so 1,000 are lacking.')
  })

  it('pass on what the server says where there is nothing plainer', () => {
    expect(refusalOf({ code: 'JQ006', message: 'priority is 5000', hint: 'Less.' })).toBe('priority is 5000. Less.')
    expect(refusalOf({ code: '', message: 'TypeError: Failed to fetch' })).toContain('cannot be reached')
  })

  it.each<[JobStatus, number, number, number, string]>([
    ['pending', 0, 0, 0, 'costs nothing'],
    ['processing', 10, 0, 0, '10 credits are reserved'],
    ['completed', 0, 10, 0, '10 credits were reserved and paid'],
    ['partial', 0, 6, 4, '10 credits were reserved: 6 paid for what was done, 4 given back'],
    ['failed', 0, 0, 10, '10 credits were reserved and all given back'],
  ])('tell what became of the credits of a %s job', (status, held, paid, back, text) => {
    expect(creditsInWords({ status, credits_held: held, credits_captured: paid, credits_refunded: back })).toContain(text)
  })

  it('count in the language of the page', () => {
    expect(counted(language.strings.job.retryFailedItems, 1)).toBe('Retry the failed item')
    language.choose('de')
    expect(counted(language.strings.job.retryFailedItems, 2000)).toBe('2.000 fehlgeschlagene Teile wiederholen')
  })

  it('give languages their names, unless a key among them is none', () => {
    expect(['de', 'pt-BR'].map(itemNames(['de', 'pt-BR']))).toEqual(['German', 'Brazilian Portuguese'])
    expect(['de', 'file 1'].map(itemNames(['de', 'file 1']))).toEqual(['de', 'file 1'])
    expect(['de', 'fr', 'xx'].map(itemNames(['de', 'fr', 'xx']))).toEqual(['German', 'French', 'xx'])
    expect(['de', 'qq', 'xx'].map(itemNames(['de', 'qq', 'xx']))).toEqual(['de', 'qq', 'xx'])
  })

  it('price a job by its items or as a whole', () => {
    expect(priceOf({ credits_per_item: 2, credits_per_job: 0 }, 5)).toBe(10)
    expect(priceOf({ credits_per_item: 0, credits_per_job: 7 }, 5)).toBe(7)
  })
})

describe('a result', () => {
  it.each([
    [null, 'nothing'],
    ['Done.', 'text'],
    [{ text: '# Title' }, 'text'],
    [{ text: 'a', more: 1 }, 'json'],
    [['a'], 'json'],
    [0, 'json'],
    ['https://example.com/a', 'link'],
    ['https://example.com/a.PNG?x=1', 'image'],
    [{ url: 'https://example.com/a', content_type: 'image/png' }, 'image'],
    [{ url: 'https://example.com/a', content_type: 'image/svg+xml' }, 'link'],
    [{ url: 'https://example.com/a.png', content_type: 'text/html' }, 'link'],
    [{ url: 'http://panel.test/files/a' }, 'link'],
  ])('%j is shown as %s', (value, as) => {
    expect(shownAs(value, 'http://panel.test').as).toBe(as)
  })

  it.each([
    'javascript:alert(1)', 'data:text/html,<script>', 'http://example.com/a', '//example.com/a', 'https://bank.test@example.com/',
    ' https://example.com', 'blob:https://example.com/a',
  ])('never makes %s a link', (url) => {
    expect(shownAs(url, 'http://panel.test').as).toBe('text')
    expect(shownAs({ url, content_type: 'image/png' }, 'http://panel.test').as).toBe('json')
  })
})

describe('what happened', () => {
  const at = (second: number): string => `2026-11-22T12:00:0${second}Z`
  const job = {
    status: 'partial', created_at: at(0), started_at: at(3), attempt: 2, cancel_requested_at: null, finished_at: at(6),
    errors: [{ attempt: 1, code: 'UPSTREAM_TIMEOUT', message: 'slow', at: at(2) }],
  } as unknown as JobHere
  const items = [
    { key: 'fr', status: 'failed', error_code: 'AUTH_FAILED', updated_at: at(5) },
    { key: 'de', status: 'completed', updated_at: at(4) },
  ] as ItemHere[]
  const entries = [
    { id: 1, kind: 'reserve', amount: 3, created_at: at(0) },
    { id: 2, kind: 'reserve', amount: 1, created_at: at(0) },
    { id: 3, kind: 'capture', amount: 2, created_at: at(6) },
    { id: 4, kind: 'release', amount: 2, created_at: at(6) },
  ]

  it('is told in order, credits of one moment as one', () => {
    expect(happeningsOf({ job, items, entries }).map((one) => one.what)).toEqual([
      'Created', '4 credits reserved', 'Attempt 1 failed: UPSTREAM_TIMEOUT', 'Attempt 2 started', 'German done',
      'French failed: AUTH_FAILED', '2 credits paid', '2 credits given back', 'Ended, partly done',
    ])
  })

  it('leaves thousands of items out', () => {
    const many = Array.from({ length: 5_000 }, (_, n) => ({ ...items[1], key: `${n}` }) as ItemHere)
    expect(happeningsOf({ job, items: many, entries }).length).toBeLessThan(10)
  })
})
