import { beforeEach, describe, expect, it } from 'vitest'
import '../src/create/job-item-keys'
import type { JobItemKeys } from '../src/create/job-item-keys'
import { drawnOf } from '../src/job/job-items'
import type { JobLogs } from '../src/job/job-logs'
import '../src/job/job-logs'
import '../src/job/job-result'
import type { JobResult } from '../src/job/job-result'
import type { ItemHere } from '../src/job/whole'
import { language } from '../src/language'
import type { LogLine } from '../src/rows'

const MARKUP = '<img src=x onerror=alert(1)>'

async function shown<T extends HTMLElement & { updateComplete: Promise<boolean> }>(name: string, values: Partial<T>): Promise<T> {
  const element = Object.assign(document.createElement(name) as T, values)
  document.body.replaceChildren(element)
  await element.updateComplete
  return element
}

function inside(element: HTMLElement): ShadowRoot {
  if (element.shadowRoot === null) throw new Error(`${element.localName} shows nothing`)
  return element.shadowRoot
}

beforeEach(() => language.choose('en'))

describe('stored text', () => {
  it('stays text in a result, a log and the fields of a log', async () => {
    const result = await shown<JobResult>('job-result', { value: { title: MARKUP } })
    expect(inside(result).querySelector('pre')?.textContent).toContain(MARKUP)
    expect(inside(result).querySelector('img')).toBeNull()

    const line: LogLine = {
      id: 1, job_id: 'a', attempt: 1, logged_at: '2026-11-22T12:00:00Z', level: 'info', message: MARKUP, fields: { html: MARKUP },
    }
    const logs = await shown<JobLogs>('job-logs', { lines: [line] })
    expect(inside(logs).querySelector('.line')?.textContent).toContain(`html=${MARKUP}`)
    expect(inside(logs).querySelector('img')).toBeNull()
  })

  it('leads nowhere but to secure addresses, and tells them nothing', async () => {
    const result = await shown<JobResult>('job-result', { value: { url: 'https://example.com/a.png', title: 'A' } })
    const link = inside(result).querySelector('a')
    expect([link?.rel, link?.target]).toEqual(['noopener noreferrer', '_blank'])
    expect(inside(result).querySelector('img')?.alt).toBe('A')
    result.value = 'javascript:alert(1)'
    await result.updateComplete
    expect(inside(result).querySelector('a')).toBeNull()
  })
})

describe('the items of a job to be', () => {
  async function keysBy(act: (input: HTMLInputElement) => void): Promise<readonly string[]> {
    const element = await shown<JobItemKeys>('job-item-keys', { keys: ['de'] })
    const input = inside(element).querySelector('input')
    if (input === null) throw new Error('there is no input')
    act(input)
    await element.updateComplete
    return element.keys
  }

  it.each([
    ['is typed and ended with Enter', 'fr', 'Enter', ['de', 'fr']],
    ['is typed and ended with a comma', ' fr ', ',', ['de', 'fr']],
    ['is there already', 'de', 'Enter', ['de']],
    ['is taken back with Backspace', '', 'Backspace', []],
  ])('one %s', async (_how, text, key, keys) => {
    expect(
      await keysBy((input) => {
        input.value = text
        input.dispatchEvent(new KeyboardEvent('keydown', { key, cancelable: true }))
      }),
    ).toEqual(keys)
  })

  it('are taken without Enter when the form is sent', async () => {
    const element = await shown<JobItemKeys>('job-item-keys', { keys: ['de'] })
    const input = inside(element).querySelector('input')
    if (input === null) throw new Error('there is no input')
    input.value = 'fr'
    element.take()
    expect([element.keys, input.value]).toEqual([['de', 'fr'], ''])
  })
})

describe('of thousands of items', () => {
  it('those that failed are drawn first', () => {
    const items = Array.from({ length: 1_000 }, (_, n) => ({ key: `${n}`, status: n % 250 === 249 ? 'failed' : 'completed' }) as ItemHere)
    expect(drawnOf(items, 6).map((item) => item.key)).toEqual(['249', '499', '749', '999', '0', '1'])
    expect(drawnOf(items, 2_000)).toBe(items)
  })
})
