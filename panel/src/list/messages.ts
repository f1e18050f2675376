import { html, type TemplateResult } from 'lit'
import { fill, language } from '../language'
import { emptyRow } from './row'

/** Browsers say in many ways that no answer came. */
const NO_ANSWER = /fetch|network|load failed|timed? ?out|abort/i

function plainly(failure: string, noAnswer: string): string {
  return NO_ANSWER.test(failure) ? noAnswer : failure
}

/** In place of the rows: nobody is signed in. */
export function signedOut(): TemplateResult {
  return html`<div class="message"><p class="quiet">${language.strings.list.signedOut}</p></div>`
}

/** In place of the rows: there was no answer yet. */
export function waiting(rows: number, rowHeight: number): TemplateResult {
  return html`<p class="sr" role="status">${language.strings.loading}</p>
    <ul role="list" aria-hidden="true">${Array.from({ length: rows }, (_, i) => emptyRow(i * rowHeight))}</ul>`
}

/** In place of the rows: the first reading failed. */
export function cannotRead(failure: string, again: () => void): TemplateResult {
  const t = language.strings
  return html`<div class="message" role="alert">
    <h2>${t.list.cannotRead}</h2>
    <p class="quiet">${plainly(failure, t.page.unreachable)}</p>
    <button type="button" class="primary" @click=${again}>${t.retryNow}</button>
  </div>`
}

/** Above rows that are getting old. */
export function notRead(failure: string, again: () => void): TemplateResult {
  const t = language.strings
  return html`<div class="trouble error small">
    <span>${plainly(fill(t.list.notRead, { why: failure }), t.offlineHint)}</span>
    <button type="button" @click=${again}>${t.retryNow}</button>
  </div>`
}

export function noneFound(clear: () => void): TemplateResult {
  const t = language.strings
  return html`<div class="message" role="status">
    <h2>${t.list.noneFound}</h2>
    <button type="button" @click=${clear}>${t.list.clear}</button>
  </div>`
}

export function none(): TemplateResult {
  const t = language.strings
  return html`<div class="message" role="status">
    <h2>${t.list.none}</h2>
    <p class="quiet">${t.list.noneHint}</p>
    <slot name="empty"></slot>
  </div>`
}
