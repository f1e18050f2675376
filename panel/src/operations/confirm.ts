import { css, html, type TemplateResult } from 'lit'
import { customElement, query, state } from 'lit/decorators.js'
import { JobElement } from '../element'
import { look } from '../styles'

export interface Question {
  title: string
  text: string
  /** What the button says that does it. */
  yes: string
}

/** Asks before something is done that others notice. `await confirm.ask({…})` is whether the answer was yes. */
@customElement('job-confirm')
export class JobConfirm extends JobElement {
  static override styles = [
    look,
    css`
      p {
        margin: 0 0 16px;
      }
      .row {
        justify-content: flex-end;
      }
    `,
  ]

  @query('dialog') private dialog!: HTMLDialogElement
  @state() private question: Question | null = null
  #answer: ((yes: boolean) => void) | null = null

  /** Ask; a question that is still open is answered with no. */
  async ask(question: Question): Promise<boolean> {
    this.#close(false)
    this.question = question
    await this.updateComplete
    this.dialog.showModal()
    return new Promise((resolve) => (this.#answer = resolve))
  }

  override disconnectedCallback(): void {
    this.#answered(false)
    super.disconnectedCallback()
  }

  override render(): TemplateResult {
    return html`<dialog aria-labelledby="title" aria-describedby="text" @close=${() => this.#answered(false)}>
      <h2 id="title">${this.question?.title}</h2>
      <p id="text">${this.question?.text}</p>
      <div class="row">
        <button autofocus @click=${() => this.#close(false)}>${this.t.operations.no}</button>
        <button class="primary" @click=${() => this.#close(true)}>${this.question?.yes}</button>
      </div>
    </dialog>`
  }

  #close(yes: boolean): void {
    this.#answered(yes)
    if (this.hasUpdated && this.dialog.open) this.dialog.close()
  }

  #answered(yes: boolean): void {
    const answer = this.#answer
    this.#answer = null
    answer?.(yes)
  }
}
