import { css, html, nothing, type LitElement, type TemplateResult } from 'lit'
import { fill, language } from '../language'
import type { Item, Job, JobStatus } from '../rows'

/** Small pieces that several components draw. */

/** Beside its colour and its name, each state has a sign. */
const SIGNS: { readonly [status in JobStatus]: string } = {
  pending: '○',
  processing: '▸',
  completed: '✓',
  partial: '◐',
  failed: '✕',
  cancelled: '–',
}

/** The state of a job in a word. */
export function statusTag(status: JobStatus): TemplateResult {
  return html`<span class="tag ${status}" data-status=${status}>${statusSign(status)}${language.strings.status[status]}</span>`
}

export function statusSign(status: JobStatus): TemplateResult {
  return html`<span aria-hidden="true">${SIGNS[status]}</span>`
}

/** The state that an item is shown in: it runs if something of it is done and its job runs. */
export function shownState(item: Pick<Item, 'status' | 'progress'>, job: Pick<Job, 'status'>): JobStatus {
  return item.status === 'pending' && item.progress > 0 && job.status === 'processing' ? 'processing' : item.status
}

/** How far a job is, open items included: the job's own progress knows only of those that are finished. */
export function shareOf(job: Pick<Job, 'status' | 'progress'>, items: readonly Pick<Item, 'status' | 'progress'>[]): number {
  if (job.status === 'completed') return 1
  if (items.length === 0) return job.progress
  const sum = items.reduce((done, item) => done + (item.status === 'pending' ? item.progress : 1), 0)
  return job.status === 'processing' ? Math.max(job.progress, sum / items.length) : job.progress
}

/** How far a job is, as a bar. A native element, so that no style attribute is needed. */
export function progressBar(job: Pick<Job, 'status' | 'progress_message'>, share: number): TemplateResult {
  const percent = language.percent(share)
  const text = job.progress_message ? fill(language.strings.job.progressText, { percent, step: job.progress_message }) : percent
  return html`<progress
    class=${job.status}
    max="1"
    .value=${share}
    aria-label=${language.strings.job.progress}
    aria-valuetext=${text}
  ></progress>`
}

/** A time as people say it; when exactly, as a hint. */
export function timeOf(iso: string): TemplateResult {
  return html`<time datetime=${iso} title=${language.moment(iso)}>${language.ago(iso)}</time>`
}

/** A link to another job: told by `job-open`; in a new tab by its address. */
export function jobLink(host: LitElement, id: string, text: TemplateResult | string): TemplateResult {
  const open = (event: MouseEvent): void => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return
    event.preventDefault()
    tell(host, 'job-open', { id })
  }
  return html`<a href=${`#/jobs/${id}`} @click=${open}>${text}</a>`
}

/** Tell whoever the component stands in. */
export function tell(host: LitElement, name: string, detail: object): void {
  host.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }))
}

/** A short message that goes away by itself. */
export function toast(host: LitElement, text: string, kind: 'info' | 'error'): void {
  tell(host, 'job-toast', { text, kind })
}

/** A section of a job's page; nothing, if there is nothing to show. */
export function section(heading: string, content: unknown, more: unknown = nothing): TemplateResult {
  return html`<section>
    <div class="row head"><h3>${heading}</h3>${more}</div>
    ${content}
  </section>`
}

export const partsLook = css`
  progress {
    display: block;
    width: 100%;
    height: 10px;
    border: 0;
    border-radius: 999px;
    overflow: hidden;
    appearance: none;
    background: var(--line);
    color: var(--processing);
  }
  progress::-webkit-progress-bar {
    background: var(--line);
  }
  progress::-webkit-progress-value {
    background: currentcolor;
    transition: inline-size 0.3s;
  }
  progress::-moz-progress-bar {
    background: currentcolor;
  }
  progress.completed {
    color: var(--completed);
  }
  progress.partial {
    color: var(--partial);
  }
  progress.failed,
  progress.cancelled {
    color: var(--quiet);
  }
  section {
    min-width: 0;
  }
  .head {
    justify-content: space-between;
    min-height: 24px;
    margin-bottom: 8px;
  }
  .head h3 {
    margin: 0;
  }
  p {
    margin: 0;
    overflow-wrap: anywhere;
  }
  code {
    font: 12px/1.5 ui-monospace, monospace;
    overflow-wrap: anywhere;
  }
  .stack {
    display: grid;
    gap: 8px;
  }
  .small {
    min-height: 24px;
    padding: 1px 8px;
    font-size: 12px;
  }
`
