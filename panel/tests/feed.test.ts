import type { SupabaseClient } from '@supabase/supabase-js'
import type { ReactiveControllerHost } from 'lit'
import { beforeEach, describe, expect, it, vi } from 'vitest'
import { ListFeed } from '../src/list/feed'
import type { Job } from '../src/rows'
import { id, job, jobs } from './jobs'

type Heard = (event: object) => void
interface Asked {
  before: string | null
  limit: number
  statuses: string[] | null
  search: string | null
}

/** A project at the other end of supabase-js: answers `read_jobs` from rows and lets the test send events. */
class Project {
  rows: Job[] = []
  asked: Asked[] = []
  failing = false
  /** While set, answers wait for it; what they say is decided before. */
  gate: Promise<void> | null = null
  changed: Heard = () => undefined
  system: Heard = () => undefined

  get client(): SupabaseClient {
    const channel = {
      on: (type: string, _filter: object, heard: Heard) => {
        if (type === 'system') this.system = heard
        else this.changed = heard
        return channel
      },
      subscribe: () => channel,
    }
    return {
      channel: () => channel,
      removeChannel: () => Promise.resolve('ok'),
      realtime: { setAuth: () => Promise.resolve() },
      rpc: (_name: string, asked: Asked) => ({ abortSignal: () => this.#answer(asked) }),
    } as unknown as SupabaseClient
  }

  async #answer(asked: Asked) {
    this.asked.push(asked)
    const data = this.rows
      .filter((row) => asked.before === null || row.id < asked.before)
      .filter((row) => asked.statuses === null || asked.statuses.includes(row.status))
      .slice(0, asked.limit)
    await this.gate
    return this.failing ? { data: null, error: { message: 'no answer' } } : { data, error: null }
  }

  /** The row changes, and an event says so. */
  tell(row: Job): void {
    this.rows = [row, ...this.rows.filter((other) => other.id !== row.id)].sort((a, b) => (a.id < b.id ? 1 : -1))
    this.changed({ eventType: 'UPDATE', table: 'jobs', new: { ...row }, old: { id: row.id } })
  }
}

const host = { addController: () => undefined, requestUpdate: () => undefined } as unknown as ReactiveControllerHost
const nextFrame = (): Promise<unknown> => new Promise((resolve) => requestAnimationFrame(resolve))

describe('a list', () => {
  let project: Project
  let feed: ListFeed
  const gone: number[] = []
  const came: number[] = []
  const numbers = (): number[] => feed.pages.slice(0, 5).map((row) => Number(row?.id.slice(-6)))

  beforeEach(async () => {
    gone.length = 0
    came.length = 0
    project = new Project()
    project.rows = jobs(1_000, 1)
    feed = new ListFeed(host, {
      gone: (index) => gone.push(index),
      came: (index) => came.push(index),
      changed: () => undefined,
    })
    feed.start(project.client, false)
    await vi.waitFor(() => expect(feed.loading).toBe(false))
    return () => feed.stop()
  })

  it('reads one short page first, and further ones when somebody comes near their end', async () => {
    expect(project.asked).toMatchObject([{ before: null, limit: 60 }])
    feed.look(0, 30)
    await vi.waitFor(() => expect(feed.pages.length).toBe(260))
    expect(project.asked.at(-1)).toMatchObject({ before: id(941), limit: 200 })
    feed.look(0, 30)
    expect(project.asked).toHaveLength(2)
  })

  it('shows a new job on top and a change in place', async () => {
    project.tell(job(1_001, { status: 'processing' }))
    project.tell(job(999, { status: 'failed' }))
    await nextFrame()
    expect(numbers().slice(0, 3)).toEqual([1_001, 1_000, 999])
    expect(feed.pages.get(id(999))?.status).toBe('failed')
  })

  it('merges a thousand events in one frame', async () => {
    const upsert = vi.spyOn(feed.pages, 'upsert')
    for (let i = 0; i < 1_000; i += 1) project.tell(job(1_000, { progress: i / 1_000 }))
    await nextFrame()
    expect(upsert).toHaveBeenCalledTimes(1)
    expect(feed.pages.get(id(1_000))?.progress).toBe(0.999)
  })

  it('holds new jobs back while somebody has scrolled down', async () => {
    feed.atTop = false
    project.tell(job(1_001))
    project.tell(job(1_002))
    project.tell(job(1_001, { status: 'failed' }))
    await nextFrame()
    expect(feed.news).toEqual({ count: 2, more: false })
    expect(numbers()[0]).toBe(1_000)
    feed.showNews()
    expect(numbers().slice(0, 3)).toEqual([1_002, 1_001, 1_000])
    expect(feed.news.count).toBe(0)
  })

  it('tells of jobs that came while no events did, and reads again only what is near', async () => {
    feed.look(0, 700)
    await vi.waitFor(() => expect(feed.pages.length).toBeGreaterThan(740))
    feed.atTop = false
    feed.look(700, 720)
    project.rows = [job(1_001), ...project.rows.map((row) => (row.id === id(290) ? job(290, { status: 'failed' }) : row))]
    project.asked.length = 0
    await feed.live.refresh()
    expect(feed.news.count).toBe(1)
    expect(feed.pages.get(id(290))?.status).toBe('failed')
    expect(project.asked.length).toBeLessThanOrEqual(3)
    expect(feed.pages.loaded().length).toBeLessThanOrEqual(400)
  })

  it('drops a job that is not asked for any more and takes it back when it is, and says where', async () => {
    project.rows = jobs(1_000, 1).map((row) => ({ ...row, status: 'pending' as const }))
    feed.setFilter({ statuses: ['pending'], queue: null, search: '' })
    await vi.waitFor(() => expect(feed.loading).toBe(false))
    project.tell(job(999, { status: 'processing' }))
    project.tell(job(2_000, { status: 'failed' }))
    await nextFrame()
    expect(numbers().slice(0, 2)).toEqual([1_000, 998])
    expect(gone).toEqual([1])
    project.tell(job(999, { status: 'pending', updated_at: '2026-01-02T00:00:00Z' }))
    await nextFrame()
    expect(numbers().slice(0, 2)).toEqual([1_000, 999])
    expect(came).toEqual([1])
  })

  it('leaves it to the database what a search finds', async () => {
    feed.setFilter({ statuses: [], queue: null, search: 'tea' })
    await vi.waitFor(() => expect(feed.loading).toBe(false))
    expect(project.asked.at(-1)).toMatchObject({ search: 'tea' })
    project.tell(job(1_001))
    await nextFrame()
    expect(numbers()[0]).toBe(1_000)
    await vi.waitFor(() => expect(numbers()[0]).toBe(1_001), 3_000)
  })

  it('forgets nothing that was told while an older answer was under way', async () => {
    let open = (): void => undefined
    project.gate = new Promise((resolve) => (open = resolve))
    const reading = feed.live.refresh()
    project.tell(job(1_001))
    project.rows = project.rows.filter((row) => row.id !== id(1_000))
    project.changed({ eventType: 'DELETE', table: 'jobs', new: {}, old: { id: id(1_000) } })
    await nextFrame()
    open()
    await reading
    expect(numbers().slice(0, 2)).toEqual([1_001, 999])
  })

  it('says that it cannot read, keeps what it has, and recovers', async () => {
    project.failing = true
    await feed.live.refresh()
    expect([feed.live.state, feed.live.failure]).toEqual(['offline', 'no answer'])
    expect(feed.pages.length).toBe(60)
    project.failing = false
    project.system({ extension: 'postgres_changes', status: 'ok' })
    await vi.waitFor(() => expect(feed.live.state).toBe('live'))
  })
})
