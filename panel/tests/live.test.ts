import { createClient } from '@supabase/supabase-js'
import type { ReactiveControllerHost } from 'lit'
import { afterEach, describe, expect, it } from 'vitest'
import { Live } from '../src/live'

/** What was sent over it; it is open at once. */
class Line {
  static readonly OPEN = 1
  static sent: string[] = []
  readyState = 0
  bufferedAmount = 0
  onopen: (() => void) | null = null
  onclose: (() => void) | null = null
  onerror: (() => void) | null = null
  onmessage: (() => void) | null = null

  constructor() {
    setTimeout(() => {
      this.readyState = 1
      this.onopen?.()
    })
  }

  send(frame: string): void {
    Line.sent.push(frame)
  }

  close(): void {
    this.readyState = 3
  }
}

const host = { addController: () => undefined, requestUpdate: () => undefined } as unknown as ReactiveControllerHost
const joins = (): string[] => Line.sent.filter((frame) => frame.includes('phx_join'))

describe('what is watched', () => {
  const live = new Live(host)
  let give: (token: string) => void = () => undefined

  function start(): void {
    Line.sent = []
    const token = new Promise<string>((resolve) => (give = resolve))
    const client = createClient('http://project.test', 'the key', {
      accessToken: () => token,
      realtime: { transport: Line as never },
    })
    live.start(client, { tables: [{ table: 'jobs' }], refresh: () => Promise.resolve(), change: () => undefined })
  }

  afterEach(() => live.stop())

  it('is asked for with the token of the user, however long it takes to get', async () => {
    start()
    await new Promise((resolve) => setTimeout(resolve, 20))
    expect(joins()).toEqual([])
    give('the token')
    await expect.poll(joins).toHaveLength(1)
    expect(joins()[0]).toContain('"access_token":"the token"')
  })

  it('is not asked for any more if it was given up before the token came', async () => {
    start()
    live.stop()
    give('the token')
    await new Promise((resolve) => setTimeout(resolve, 20))
    expect(joins()).toEqual([])
  })
})
