import type { SupabaseClient } from '@supabase/supabase-js'
import type { ReactiveController, ReactiveControllerHost } from 'lit'
import { connection } from '../connection'
import { Live } from '../live'
import type { Account } from '../rows'

export type Balance = Pick<Account, 'available' | 'held'> & { updated_at: string }

/** The user's credits, live. */
export class AccountFeed implements ReactiveController {
  /** null: not read yet. */
  balance: Balance | null = null
  readonly live: Live
  readonly #host: ReactiveControllerHost
  /** Events so far. They come in the order of the changes, and a reading that one came into may be older than it. */
  #told = 0

  constructor(host: ReactiveControllerHost) {
    this.#host = host
    this.live = new Live(host)
    host.addController(this)
  }

  start(client: SupabaseClient): void {
    this.live.stop()
    this.balance = null
    const owner = connection.userId
    if (owner === null) return
    this.live.start(client, {
      tables: [{ table: 'credit_accounts', filter: `owner_id=eq.${owner}` }],
      refresh: async () => {
        const told = this.#told
        const { data, error } = await client
          .from('credit_accounts')
          .select('available,held,updated_at')
          .eq('owner_id', owner)
          .maybeSingle()
        if (error) throw error
        // who was never granted anything has no account
        if (owner === connection.userId && told === this.#told) this.#show(data ?? { available: 0, held: 0, updated_at: '' })
      },
      change: ({ eventType, new: row }) => {
        if (eventType === 'DELETE') return
        this.#told += 1
        this.#show(row as unknown as Balance)
      },
    })
  }

  hostConnected(): void {}

  hostDisconnected(): void {
    this.balance = null
  }

  #show(balance: Balance): void {
    this.balance = balance
    this.#host.requestUpdate()
  }
}
