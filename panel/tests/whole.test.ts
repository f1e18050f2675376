import { describe, expect, it } from 'vitest'
import { catchUp, LOG_LINES, merge, mergeLogs, type ItemHere, type JobHere, type Whole } from '../src/job/whole'
import type { Change } from '../src/live'
import type { LogLine } from '../src/rows'

const JOB = {
  id: 'a', status: 'processing', progress: 0.2, updated_at: '2026-11-22T12:00:00.5+00:00', payload: { title: 'Tea' },
} as unknown as JobHere
const ITEM = { job_id: 'a', key: 'de', position: 1, status: 'pending', progress: 0, updated_at: '2026-11-22T12:00:00+00:00' } as ItemHere
const WHOLE: Whole = { job: JOB, items: [ITEM], logs: [], logsRead: 0, entries: [], children: [], repeatedBy: null }

function event(table: string, row: object, eventType = 'UPDATE'): Change {
  return { table, eventType, new: row, old: {} } as unknown as Change
}

function line(id: number, job_id = 'a'): LogLine {
  return { id, job_id, attempt: 1, logged_at: '2026-11-22T12:00:00Z', level: 'info', message: `line ${id}`, fields: {} }
}

describe('an event', () => {
  it('makes the job newer, never older', () => {
    const newer = merge(WHOLE, event('jobs', { id: 'a', progress: 0.6, updated_at: '2026-11-22T12:00:00.600001+00:00' }))
    expect(newer.job.progress).toBe(0.6)
    expect(merge(newer, event('jobs', { id: 'a', progress: 0.4, updated_at: '2026-11-22T12:00:00.55+00:00' }))).toBe(newer)
  })

  it('takes times for equal however they are written', () => {
    const same = merge(WHOLE, event('jobs', { id: 'a', progress: 0.3, updated_at: '2026-11-22 12:00:00.500+00' }))
    expect(same.job.progress).toBe(0.3)
  })

  it('leaves the payload and what it does not have as they are', () => {
    const row = { id: 'a', payload: {}, progress: undefined, result: null, updated_at: '2026-11-22T12:00:01+00:00' }
    expect(merge(WHOLE, event('jobs', row)).job).toMatchObject({ payload: { title: 'Tea' }, progress: 0.2 })
    expect(merge(WHOLE, event('jobs', row)).job.result).toBeUndefined()
  })

  it('changes the item it is about, and none of another job', () => {
    const row = { job_id: 'a', key: 'de', status: 'completed', updated_at: '2026-11-22T12:00:02+00:00' }
    expect(merge(WHOLE, event('job_items', row)).items[0]?.status).toBe('completed')
    expect(merge(WHOLE, event('job_items', { ...row, job_id: 'b' }))).toBe(WHOLE)
  })

  it('of a deletion is not believed', () => {
    expect(merge(WHOLE, event('jobs', {}, 'DELETE'))).toBe(WHOLE)
  })
})

describe('lines of the log', () => {
  it('stand in their order, each once, whatever order they come in', () => {
    const logs = [3, 1, 2, 3, 1].reduce((known, id) => merge(known, event('job_logs', line(id), 'INSERT')), WHOLE).logs
    expect(logs.map((one) => one.id)).toEqual([1, 2, 3])
  })

  it('are kept up to a number', () => {
    const many = Array.from({ length: LOG_LINES + 5 }, (_, n) => line(n + 1))
    expect(mergeLogs([], many).map((one) => one.id)).toEqual(many.slice(5).map((one) => one.id))
    expect(mergeLogs(many.slice(0, LOG_LINES), [line(2_000)]).length).toBe(LOG_LINES)
  })
})

describe('what was read', () => {
  it('does not undo what events told meanwhile', () => {
    const told = merge(
      merge(WHOLE, event('jobs', { id: 'a', progress: 0.9, updated_at: '2026-11-22T12:00:09+00:00' })),
      event('job_items', { job_id: 'a', key: 'de', status: 'completed', updated_at: '2026-11-22T12:00:09+00:00' }),
    )
    const both = catchUp({ ...WHOLE, logs: [line(1)] }, { ...told, logs: [line(2)] })
    expect(both.job.progress).toBe(0.9)
    expect(both.items[0]?.status).toBe('completed')
    expect(both.logs.map((one) => one.id)).toEqual([1, 2])
  })

  it('replaces what is older, and what was known of another job', () => {
    const read = { ...WHOLE, job: { ...JOB, progress: 1, updated_at: '2026-11-22T12:01:00+00:00' } }
    expect(catchUp(read, WHOLE).job.progress).toBe(1)
    expect(catchUp(read, { ...WHOLE, job: { ...JOB, id: 'b', updated_at: '2027-01-01T00:00:00+00:00' } })).toBe(read)
  })
})
