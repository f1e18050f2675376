import type { SupabaseClient } from '@supabase/supabase-js'
import { html, nothing, type PropertyValues, type TemplateResult } from 'lit'
import { state } from 'lit/decorators.js'
import { JobElement } from '../element'
import { fill } from '../language'
import { messageOf } from '../live'
import { look } from '../styles'
import './confirm'
import type { JobConfirm, Question } from './confirm'
import { Polled } from './polled'
import { sectionLook } from './styles'
import { clock } from './words'

const ANSWER_MS = 20_000

/** Call a function of the operators' API; raises what the database said. */
export async function ask<T>(client: SupabaseClient, name: string, values: object = {}): Promise<T> {
  const { data, error } = await client.rpc(name, values).abortSignal(AbortSignal.timeout(ANSWER_MS))
  if (error !== null) throw error
  return data as T
}

/** Whether the database answered that this is for operators only. */
export function isRefusal(error: unknown): boolean {
  const code = (error as { code?: unknown } | null)?.code
  return code === 'JQ015' || code === '42501'
}

/**
 * A part of the operator's view: reads its rows again and again, shows why it cannot, and carries out what an operator
 * asks for. A refusal is told to whoever holds the section: event `operator-refused`.
 */
export abstract class Section<T> extends JobElement {
  static override styles = [look, sectionLook]

  @state() private busy: string | null = null
  @state() private problem: string | null = null

  protected abstract readonly everyMs: number
  protected abstract read(client: SupabaseClient): Promise<T>
  protected abstract body(value: T): TemplateResult
  /** The database said that this is not for us: stop whatever else is going on. */
  protected refused(): void {}
  #polled: Polled<T> | null = null

  protected get polled(): Polled<T> {
    this.#polled ??= new Polled<T>(this, this.everyMs, () => this.read(this.client))
    return this.#polled
  }

  protected override connected(client: SupabaseClient): void {
    this.problem = null
    this.polled.start()
    this.begin(client)
  }

  /** Read for the first time. */
  protected begin(_client: SupabaseClient): void {
    this.again()
  }

  /** Read now; a failure is shown. */
  protected again(): void {
    void this.polled.refresh().catch(() => undefined)
  }

  /** Whether something that was asked for is under way; `name` says what. */
  protected isBusy(name: string): boolean {
    return this.busy === name
  }

  /** Carry out what an operator asked for, one thing at a time, then read again. Returns whether it worked. */
  protected async act(name: string, done: string, action: () => Promise<unknown>): Promise<boolean> {
    if (this.busy !== null) return false
    this.busy = name
    this.problem = null
    try {
      await action()
      this.dispatchEvent(
        new CustomEvent('job-toast', { detail: { text: done, kind: 'info' }, bubbles: true, composed: true }),
      )
      await this.polled.refresh().catch(() => undefined) // a failure is shown
      return true
    } catch (error) {
      this.problem = messageOf(error)
      return false
    } finally {
      this.busy = null
    }
  }

  protected sure(question: Question): Promise<boolean> {
    const confirm = this.renderRoot.querySelector<JobConfirm>('job-confirm')
    return confirm === null ? Promise.resolve(false) : confirm.ask(question)
  }

  protected override updated(changed: PropertyValues): void {
    super.updated(changed)
    if (!isRefusal(this.polled.failure)) return
    this.polled.stop()
    this.refused()
    this.dispatchEvent(new Event('operator-refused', { bubbles: true, composed: true }))
  }

  override render(): TemplateResult {
    const { value, failure } = this.polled
    return html`
      ${this.problem === null ? nothing : html`<p class="error problem" role="alert">${this.problem}</p>`}
      ${failure === null ? nothing : this.#failed(failure)}
      ${value === null && failure === null ? html`<p class="quiet" role="status">${this.t.loading}</p>` : nothing}
      ${value === null ? nothing : this.body(value)}
      <job-confirm></job-confirm>
    `
  }

  #failed(failure: unknown): TemplateResult {
    const t = this.t.operations
    const values = { message: messageOf(failure), time: clock(this.polled.readAt) }
    return html`<div class="row problem" role="alert">
      <span class="error">${fill(this.polled.value === null ? t.unread : t.stale, values)}</span>
      <button @click=${() => this.again()}>${this.t.retryNow}</button>
    </div>`
  }
}
