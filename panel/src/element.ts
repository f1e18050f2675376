import type { SupabaseClient } from '@supabase/supabase-js'
import { LitElement, type CSSResultGroup } from 'lit'
import { connection } from './connection'
import { language } from './language'
import { look } from './styles'
import type { Strings } from './strings/en'

/**
 * What every component has: the client, the language, the look. It renders again when the language changes, and
 * `connected()` is called whenever there is another client or another user: that is where data is asked for, afresh.
 */
export abstract class JobElement extends LitElement {
  static override styles: CSSResultGroup = [look]

  readonly #languageChanged = (): void => this.requestUpdate()
  readonly #userChanged = (): void => {
    if (connection.client !== null) this.connected(connection.client)
    this.requestUpdate()
  }

  override connectedCallback(): void {
    super.connectedCallback()
    language.addEventListener('change', this.#languageChanged)
    connection.addEventListener('change', this.#userChanged)
    if (connection.client !== null) this.connected(connection.client)
  }

  override disconnectedCallback(): void {
    language.removeEventListener('change', this.#languageChanged)
    connection.removeEventListener('change', this.#userChanged)
    super.disconnectedCallback()
  }

  /** There is a client, and perhaps a user: another one than before. Forget what was shown and ask again. */
  protected connected(_client: SupabaseClient): void {}

  protected get t(): Strings {
    return language.strings
  }

  protected get client(): SupabaseClient {
    if (connection.client === null) throw new Error('call connect(url, key) or use(client) before this component works')
    return connection.client
  }
}
