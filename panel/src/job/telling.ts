import { css, html, nothing, type TemplateResult } from 'lit'
import { fill, language } from '../language'
import { hasEnded } from '../rows'
import { timeOf } from './parts'
import type { JobHere } from './whole'
import { counted, creditsInWords, meaningOf } from './words'

/** Why a job failed or is tried again: in plain words, with the code, and what the program itself said. */
export function whatWentWrong(job: JobHere): TemplateResult | typeof nothing {
  if (job.error_code === null || job.status === 'completed') return nothing
  const t = language.strings.job
  const meaning = meaningOf(job.error_code)
  return html`<section class="wrong stack ${job.status}" aria-label=${t.whatHappened}>
    <p>${meaning ?? job.error_message} <code>${job.error_code}</code></p>
    ${meaning === null || !job.error_message ? nothing : html`<p class="quiet">${fill(t.inItsWords, { message: job.error_message })}</p>`}
    ${hasEnded(job) && job.status !== 'cancelled' ? html`<p class="quiet">${t.notTriedAgain}</p>` : nothing}
    ${job.errors.length < 2
      ? nothing
      : html`<details>
          <summary>${counted(t.earlierErrors, job.errors.length)}</summary>
          <ul>
            ${job.errors.map(
              ({ attempt, code, message, at }) =>
                html`<li>${fill(t.attempt, { attempt, most: job.max_attempts })}, ${timeOf(at)}: <code>${code}</code> ${message}</li>`,
            )}
          </ul>
        </details>`}
  </section>`
}

/** What became of a job's credits: in words, and in numbers. */
export function whatItCost(job: JobHere): TemplateResult {
  const t = language.strings.job
  const reserved = job.credits_held + job.credits_captured + job.credits_refunded
  const numbers: [string, number][] = [
    [t.creditsReserved, reserved],
    [t.creditsPaid, job.credits_captured],
    [t.creditsBack, job.credits_refunded],
  ]
  return html`<div class="stack">
    <p>${creditsInWords(job)}</p>
    ${reserved === 0
      ? nothing
      : html`<dl>${numbers.map(([name, value]) => html`<dt class="quiet">${name}</dt><dd>${language.number(value)}</dd>`)}</dl>`}
  </div>`
}

export const tellingLook = css`
  .wrong {
    padding: 10px 12px;
    border-radius: var(--radius);
    border-inline-start: 4px solid currentcolor;
    background: var(--ground);
  }
  .wrong > * {
    color: var(--ink);
  }
  .wrong > .quiet {
    color: var(--quiet);
  }
  dl {
    display: grid;
    grid-template-columns: 1fr max-content;
    gap: 2px 12px;
    margin: 0;
  }
  dd {
    margin: 0;
    text-align: end;
    font-variant-numeric: tabular-nums;
  }
`
