import { describe, expect, it } from 'vitest'
import { asJob, fits, Pages, type Page } from '../src/list/pages'
import { id, job, jobs } from './jobs'

function shown(pages: Pages): (number | undefined)[] {
  return pages.slice(0, pages.length).map((row) => (row === undefined ? undefined : Number(row.id.slice(-6))))
}

function some(): Pages {
  const pages = new Pages()
  pages.reset(jobs(10, 8), 3)
  pages.append(jobs(7, 5), 3)
  pages.append(jobs(4, 3), 3)
  return pages
}

describe('the pages of a list', () => {
  it('know when there is nothing older', () => {
    const pages = new Pages()
    pages.reset(jobs(10, 8), 3)
    expect(pages.complete).toBe(false)
    expect(pages.oldest).toBe(id(8))
    pages.append(jobs(7, 6), 3)
    expect(pages.complete).toBe(true)
    expect(shown(pages)).toEqual([10, 9, 8, 7, 6])
  })

  it('put a row where it belongs, whether it is new, known, or came into the list by a change', () => {
    const pages = some()
    expect(pages.isNew(id(11))).toBe(true)
    pages.upsert(job(11))
    pages.remove(id(6))
    pages.upsert(job(6, { status: 'failed' }))
    pages.upsert(job(9, { status: 'failed' }))
    expect(shown(pages)).toEqual([11, 10, 9, 8, 7, 6, 5, 4, 3])
    expect(pages.get(id(9))?.status).toBe('failed')
    expect(pages.isNew(id(11))).toBe(false)
  })

  it('take what is older than all of them only if they are complete', () => {
    const pages = new Pages()
    pages.reset(jobs(10, 8), 3)
    expect(pages.upsert(job(2))).toBe(false)
    pages.append([job(7)], 3)
    expect(pages.upsert(job(2))).toBe(true)
    expect(shown(pages)).toEqual([10, 9, 8, 7, 2])
    pages.append([], 3)
    expect(pages.length).toBe(5)
  })

  it('keep the later of two changes, in whatever order they come', () => {
    const pages = some()
    pages.upsert(job(9, { progress: 0.8, updated_at: '2026-01-01T01:00:02Z' }))
    pages.upsert(job(9, { progress: 0.4, updated_at: '2026-01-01T01:00:01Z' }))
    expect(pages.get(id(9))?.progress).toBe(0.8)
    pages.reset([job(9, { progress: 0.2, updated_at: '2026-01-01T01:00:00Z' })], 3)
    expect(pages.get(id(9))?.progress).toBe(0.8)
  })

  it('let go of rows out of sight, remember how many there were, and take them back', () => {
    const pages = some()
    pages.keep(6, 8)
    expect(shown(pages)).toEqual([...Array<undefined>(6), 4, 3])
    expect(pages.indexOf(id(4))).toBe(6)
    const [lost] = pages.between(3, 4) as [Page]
    expect(lost).toMatchObject({ before: id(8), last: id(5), count: 3, rows: null })
    pages.put(lost, [job(7), job(5), job(4)]) // 6 is gone; 4 is of the next page
    expect(shown(pages)).toEqual([undefined, undefined, undefined, 7, 5, 4, 3])
  })

  it('take what came into the list at its end when the last page is read again', () => {
    const pages = some()
    const [last] = pages.between(7, 8) as [Page]
    pages.put(last, [job(4), job(3), job(1)])
    expect(shown(pages).slice(6)).toEqual([4, 3, 1])
    expect(pages.oldest).toBe(id(1))
  })

  it('cut a page that grows on top, so that no more than what is near is kept', () => {
    const pages = some()
    for (let n = 11; n <= 2_000; n += 1) {
      pages.upsert(job(n))
      pages.keep(0, 40)
    }
    expect(pages.length).toBe(1_998)
    expect(pages.loaded().length).toBeLessThanOrEqual(401)
    expect(shown(pages).slice(0, 3)).toEqual([2_000, 1_999, 1_998])
    expect(shown(pages).slice(-2)).toEqual([undefined, undefined])
  })

  it('say where a removed row had been, so that what is below can stay in its place', () => {
    const pages = some()
    expect(pages.remove(id(7))).toBe(3)
    expect(pages.remove(id(7))).toBe(-1)
    expect(shown(pages)).toEqual([10, 9, 8, 6, 5, 4, 3])
  })
})

describe('an event’s row', () => {
  it('leaves alone what it does not tell, and brings no payload into the list', () => {
    const known = job(1, { tags: ['a'], error_message: 'because' })
    const told = asJob({ id: id(1), status: 'pending', payload: { big: true }, tags: undefined }, known)
    expect(told).toEqual({ ...known, status: 'pending' })
  })

  it('belongs into the list by its state and queue', () => {
    const none = { statuses: [], queue: null, search: '' }
    expect(fits(job(1), none)).toBe(true)
    expect(fits(job(1), { ...none, statuses: ['failed'] })).toBe(false)
    expect(fits(job(1), { ...none, statuses: ['failed', 'completed'], queue: 'default' })).toBe(true)
    expect(fits(job(1), { ...none, queue: 'other' })).toBe(false)
  })
})
