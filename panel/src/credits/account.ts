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
        const { data, error } = await client
          .from('credit_accounts')
          .select('available,held,updated_at')
          .eq('owner_id', owner)
          .maybeSingle()
        if (error) throw error
        // who was never granted anything has no account
        if (owner === connection.userId) this.#show(data ?? { available: 0, held: 0, updated_at: '' })
      },
      change: ({ eventType, new: row }) => {
        if (eventType !== 'DELETE') this.#show(row as unknown as Balance)
      },
    })
  }

  hostConnected(): void {}

  hostDisconnected(): void {
    this.balance = null
  }

  #show(balance: Balance): void {
    if (this.balance !== null && Date.parse(balance.updated_at) < Date.parse(this.balance.updated_at)) return
    this.balance = balance
    this.#host.requestUpdate()
  }
}
