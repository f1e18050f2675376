import { html, nothing, type TemplateResult } from 'lit'
import { statusSign } from '../job/parts'
import { fill, language } from '../language'
import { hasEnded, type Job } from '../rows'

export interface RowLook {
  /** Position in the whole list, from 0. */
  index: number
  /** How many rows are known, or -1 while there may be more. */
  total: number
  /** Pixels from the top of the list. */
  y: number
  /** The one row that the Tab key reaches. */
  active: boolean
  /** Its job is open beside the list. */
  selected: boolean
  /** Whose job it is, for those who see everybody's. */
  showOwner: boolean
  /** Milliseconds since 1970. */
  now: number
  open: (event: MouseEvent, id: string) => void
}

/** One row. The link is its name for screen readers and keys; the rest is read with it. */
export function jobRow(job: Job, look: RowLook): TemplateResult {
  const t = language.strings
  const status = statusText(job)
  return html`<li
    class="job ${look.selected ? 'selected' : ''}"
    data-id=${job.id}
    data-status=${job.status}
    aria-setsize=${look.total}
    aria-posinset=${look.index + 1}
    .style=${`transform: translateY(${look.y}px)`}
    @click=${(event: MouseEvent) => look.open(event, job.id)}
  >
    <span class="state"><span class="tag ${job.status}" data-status=${job.status}>${statusSign(job.status)} ${status}</span></span>
    <span class="what">
      <a
        href="#/jobs/${job.id}"
        tabindex=${look.active ? 0 : -1}
        aria-current=${look.selected ? 'true' : nothing}
        aria-label=${`${job.kind}, ${status}${job.status === 'processing' ? `, ${language.percent(job.progress)}` : ''}`}
        >${job.kind}</a
      >
      <span class="quiet small" title=${job.id}>${about(job, look.showOwner)}</span>
    </span>
    <span class="how">${how(job)}</span>
    <span class="credits quiet small">${credits(job)}</span>
    <time class="when quiet small" datetime=${job.created_at} title=${fill(t.list.createdAt, { at: language.moment(job.created_at) })}
      >${language.ago(job.created_at, look.now)}</time
    >
  </li>`
}

/** In place of a row that is not loaded. */
export function emptyRow(y: number): TemplateResult {
  return html`<li class="job skeleton" aria-hidden="true" .style=${`transform: translateY(${y}px)`}>
    <span class="state"><i></i></span><span class="what"><i></i></span><span class="how"><i></i></span>
    <span class="credits"></span><span class="when"><i></i></span>
  </li>`
}

function statusText(job: Job): string {
  const t = language.strings
  if (job.cancel_requested_at !== null && !hasEnded(job)) return t.list.cancelling
  return t.status[job.status]
}

function about(job: Job, showOwner: boolean): string {
  const t = language.strings
  const owner = showOwner ? [job.owner_id === null ? t.list.noOwner : fill(t.list.ownedBy, { owner: job.owner_id.slice(-8) })] : []
  return [`…${job.id.slice(-8)}`, job.queue, ...owner, ...job.tags].join(' · ')
}

function how(job: Job): TemplateResult | typeof nothing {
  const t = language.strings
  const items =
    job.items_total > 0
      ? fill(t.list.itemsDone, { done: language.number(job.items_done), total: language.number(job.items_total) })
      : ''
  if (job.status === 'processing') {
    const step = job.progress_message ?? items
    return html`<progress max="1" .value=${job.progress} aria-label=${t.list.progress}></progress>
      <span class="small" title=${step}><b>${language.percent(job.progress)}</b> ${step}</span>`
  }
  if (job.error_message !== null && job.status !== 'completed') {
    const why = `${job.error_code ?? ''} ${job.error_message}`
    return html`<span class="small ${job.status === 'failed' ? 'error' : 'quiet'}" title=${why}>${job.error_message}</span>`
  }
  if (job.status === 'pending' && Date.parse(job.run_at) > Date.now() + 1_000) {
    return html`<span class="small quiet">${fill(t.list.runsAt, { when: language.ago(job.run_at) })}</span>`
  }
  const told = [items, took(job)].filter((text) => text !== '').join(' · ')
  return told === '' ? nothing : html`<span class="small quiet">${told}</span>`
}

function took(job: Job): string {
  if (job.started_at === null || job.finished_at === null) return ''
  const seconds = (Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1_000
  return fill(language.strings.list.took, { duration: language.duration(seconds) })
}

function credits(job: Job): string {
  const t = language.strings
  if (job.credits_held > 0) return fill(t.list.held, { credits: language.number(job.credits_held) })
  if (job.credits_captured > 0) return fill(t.list.paid, { credits: language.number(job.credits_captured) })
  if (job.credits_refunded > 0) return fill(t.list.refunded, { credits: language.number(job.credits_refunded) })
  return ''
}
