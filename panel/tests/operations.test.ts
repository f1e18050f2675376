import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { language } from '../src/language'
import { changedLimits, type Limits } from '../src/operations/limits'
import { Polled } from '../src/operations/polled'
import { errorStep, largest, seconds, steps, sums, throughputStep, topCodes } from '../src/operations/series'
import type { Throughput } from '../src/operations/rows'
import { roughly, took } from '../src/operations/words'

const NOON = seconds('2026-11-22T12:00:00Z')
const HOUR = 3_600

describe('steps of a plot', () => {
  it('are all there where no row is, and the one that is going on is among them', () => {
    expect(steps([], 3 * HOUR, HOUR, NOON + 60)).toEqual([NOON - 2 * HOUR, NOON - HOUR, NOON])
  })

  it('go on to what the server has, when the clock here is behind', () => {
    const behind = NOON - HOUR
    expect(steps([NOON], 2 * HOUR, HOUR, behind).at(-1)).toBe(NOON)
  })

  it('stay few when a clock is years off', () => {
    expect(steps([0], 24 * HOUR, 60, NOON).length).toBeLessThanOrEqual(2 * 24 * 60)
  })

  it('are as long as the functions make them', () => {
    expect([1, 3, 4, 168].map(throughputStep)).toEqual([60, 60, HOUR, HOUR])
    expect([1, 3, 4, 168].map(errorStep)).toEqual([300, 300, HOUR, HOUR])
  })
})

describe('values of a plot', () => {
  const row = (starts_at: string, queue: string, completed: number, p50: number | null): Throughput => ({
    starts_at, queue, completed, partial: 0, failed: 0, cancelled: 0,
    pickup_seconds_p50: p50, pickup_seconds_p95: p50, run_seconds_p50: p50, run_seconds_p95: p50,
  })
  const rows = [
    row('2026-11-22T10:00:00+00:00', 'a', 3, 0.5),
    row('2026-11-22T10:00:00+00:00', 'b', 4, 2),
    row('2026-11-22T12:00:00+00:00', 'a', 1, null),
  ]
  const times = [NOON - 2 * HOUR, NOON - HOUR, NOON]

  it('add up over queues, with 0 where nothing was', () => {
    expect(sums(rows, times, (one) => seconds(one.starts_at), (one) => one.completed)).toEqual([7, 0, 1])
  })

  it('leave a gap where nothing was measured, and take the slowest queue', () => {
    expect(largest(rows, times, (one) => one.run_seconds_p50)).toEqual([2, null, null])
  })

  it('name the codes that fail most, and say when there are more', () => {
    const of = (code: string, failures: number) => ({ starts_at: '2026-11-22T10:00:00Z', code, failures })
    const rates = [of('B', 1), of('A', 1), of('C', 5), of('B', 1)]
    expect(topCodes(rates, 2)).toEqual({ codes: ['C', 'B'], more: true })
    expect(topCodes(rates, 3)).toEqual({ codes: ['C', 'B', 'A'], more: false })
  })
})

describe('limits', () => {
  const had: Limits = {
    max_processing: 5, rate_limit: null, rate_seconds: 60, max_processing_per_owner: null,
    max_pending_per_owner: 100, timeout_seconds: 600, max_attempts: 4,
  }

  it('are sent only where they differ, and an emptied one as null', () => {
    expect(changedLimits(had, had)).toEqual({})
    expect(changedLimits(had, { ...had, max_processing: null, rate_limit: 10 })).toEqual({ max_processing: null, rate_limit: 10 })
  })
})

describe('times in words', () => {
  it('follow the language', () => {
    language.choose('en')
    expect([null, 0, 0.0351, 1.24, 12.4, 75].map(took)).toEqual(['–', '0s', '35ms', '1.2s', '12s', '1m 15s'])
    expect([0, 59.9, 60, 7_300, 86_400].map(roughly)).toEqual(['0 seconds', '59 seconds', '1 minute', '2 hours', '1 day'])
    language.choose('de')
    expect(took(1.24)).toContain('1,2')
    expect(roughly(7_300)).toBe('2 Stunden')
  })
})

describe('what is read again and again', () => {
  let read = vi.fn<() => Promise<number>>()
  const polled = (): Polled<number> =>
    new Polled({ addController: () => {}, removeController: () => {}, requestUpdate: () => {}, updateComplete: Promise.resolve(true) }, 10_000, () => read())
  const hide = (hidden: boolean): void => {
    vi.spyOn(document, 'hidden', 'get').mockReturnValue(hidden)
    document.dispatchEvent(new Event('visibilitychange'))
  }

  beforeEach(() => {
    vi.useFakeTimers()
    read = vi.fn(() => Promise.resolve(1))
  })
  afterEach(() => {
    vi.useRealTimers()
    vi.restoreAllMocks()
  })

  it('comes every 10 s, and not while nobody looks', async () => {
    const one = polled()
    one.start()
    await one.refresh()
    await vi.advanceTimersByTimeAsync(20_000)
    expect(read).toHaveBeenCalledTimes(3)
    hide(true)
    await vi.advanceTimersByTimeAsync(60_000)
    expect(read).toHaveBeenCalledTimes(3)
    hide(false)
    await vi.advanceTimersByTimeAsync(0)
    expect(read).toHaveBeenCalledTimes(4)
    one.stop()
    await vi.advanceTimersByTimeAsync(60_000)
    expect(read).toHaveBeenCalledTimes(4)
  })

  it('comes within a second of a change, once for many of them', async () => {
    const one = polled()
    one.start()
    await one.refresh()
    for (let n = 0; n < 30; n += 1) {
      one.soon()
      await vi.advanceTimersByTimeAsync(100)
    }
    expect(read.mock.calls.length).toBeGreaterThanOrEqual(3)
    expect(read.mock.calls.length).toBeLessThanOrEqual(4)
  })

  it('keeps what it has when a reading fails, says why, and goes on', async () => {
    const one = polled()
    one.start()
    await one.refresh()
    read.mockRejectedValueOnce(new Error('away'))
    await vi.advanceTimersByTimeAsync(10_000)
    expect([one.value, String(one.failure)]).toEqual([1, 'Error: away'])
    await vi.advanceTimersByTimeAsync(10_000)
    expect(one.failure).toBeNull()
  })

  it('shows no answer to what was asked before it was started anew', async () => {
    const one = polled()
    let answer: (value: number) => void = () => {}
    read.mockImplementationOnce(() => new Promise((resolve) => (answer = resolve)))
    one.start()
    const first = one.refresh()
    one.start()
    await one.refresh()
    answer(99)
    await first
    expect(one.value).toBe(1)
  })
})
