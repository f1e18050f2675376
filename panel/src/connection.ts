import { createClient, type Session, type SupabaseClient } from '@supabase/supabase-js'

/** One per page: the client that all components use, and who is signed in. Components re-render when either changes. */
class Connection extends EventTarget {
  client: SupabaseClient | null = null
  session: Session | null = null
  #stop: (() => void) | null = null

  /** Use this client from now on: the application's own, so that its sign-in is ours. */
  use(client: SupabaseClient): void {
    this.#stop?.()
    this.client = client
    const { data } = client.auth.onAuthStateChange((_event, session) => {
      const before = this.session?.user.id
      this.session = session
      if (before !== session?.user.id) this.#changed()
    })
    this.#stop = () => data.subscription.unsubscribe()
    this.#changed()
  }

  get userId(): string | null {
    return this.session?.user.id ?? null
  }

  /** Whether this user sees the operator's view. What it shows is decided by the database, each time. */
  get isOperator(): boolean {
    return this.session !== null && mayOperate(this.session)
  }

  #changed(): void {
    this.dispatchEvent(new Event('change'))
  }
}

/** `is_operator` in the token, at top level or in `app_metadata`: where `processor.is_operator()` looks for it. */
function mayOperate(session: Session): boolean {
  if (session.user.app_metadata['is_operator'] === true) return true
  const body = session.access_token.split('.')[1]
  if (body === undefined) return false
  try {
    const bytes = Uint8Array.from(atob(body.replace(/-/g, '+').replace(/_/g, '/')), (c) => c.charCodeAt(0))
    return (JSON.parse(new TextDecoder().decode(bytes)) as { is_operator?: unknown }).is_operator === true
  } catch {
    return false // a token of another form says nothing about operators
  }
}

export const connection = new Connection()

/** Make a client and use it. The key is the publishable (anon) key: never the service's. */
export function connect(url: string, key: string): SupabaseClient {
  const client = createClient(url, key, {
    // a dead line is noticed after one missed answer; 25 s, the default, is long for somebody who watches
    realtime: { heartbeatIntervalMs: 10_000 },
  })
  connection.use(client)
  return client
}

/** Use a client that the application has. */
export function use(client: SupabaseClient): void {
  connection.use(client)
}
