import { html, nothing, type TemplateResult } from 'lit'
import type { Live } from '../live'
import { language } from '../language'
import { STATUSES, type JobStatus } from '../rows'
import type { Counts } from './counts'
import type { Filter } from './pages'
import '../live-state'

export interface Tools {
  filter: Filter
  counts: Counts
  live: Live
  /** The user sees everybody's jobs. */
  everybody: boolean
  typed: () => void
  choose: (filter: Filter) => void
}

/** What stands above the list: search, queue, states, and how fresh it is. */
export function tools({ filter, counts, live, everybody, typed, choose }: Tools): TemplateResult {
  const t = language.strings
  return html`<div class="tools" role="search" aria-label=${t.list.filters}>
    <input
      type="search"
      placeholder=${t.list.searchHint}
      aria-label=${t.list.search}
      aria-keyshortcuts="/"
      maxlength="200"
      @input=${typed}
    />
    ${queueSelect(filter, counts.queues, choose)}
    <job-live-state .state=${live.state} .hint=${everybody && live.state === 'refreshing' ? t.list.everybodyHint : ''}></job-live-state>
    <div class="chips" role="group" aria-label=${t.list.statuses}>
      ${STATUSES.map((status) => chip(status, filter, counts, () => choose({ ...filter, statuses: toggled(filter.statuses, status) })))}
    </div>
  </div>`
}

function queueSelect(filter: Filter, known: readonly string[], choose: Tools['choose']): TemplateResult | typeof nothing {
  const t = language.strings
  const queues = [...new Set([...known, ...(filter.queue === null ? [] : [filter.queue])])]
  if (queues.length < 2) return nothing
  const chosen = (event: Event): void => choose({ ...filter, queue: (event.target as HTMLSelectElement).value || null })
  return html`<select aria-label=${t.list.queue} @change=${chosen}>
    <option value="" .selected=${filter.queue === null}>${t.list.allQueues}</option>
    ${queues.map((name) => html`<option value=${name} .selected=${name === filter.queue}>${name}</option>`)}
  </select>`
}

function chip(status: JobStatus, filter: Filter, counts: Counts, toggle: () => void): TemplateResult {
  const open = counts.open
  const count = open !== null && (status === 'pending' || status === 'processing') ? open[status] : 0
  return html`<button
    type="button"
    data-filter=${status}
    aria-pressed=${filter.statuses.includes(status) ? 'true' : 'false'}
    @click=${toggle}
    >${language.strings.status[status]}${count === 0 ? '' : html` <b>${language.number(count)}</b>`}</button
  >`
}

function toggled(statuses: readonly JobStatus[], status: JobStatus): JobStatus[] {
  return statuses.includes(status) ? statuses.filter((other) => other !== status) : [...statuses, status]
}
