import { html, type TemplateResult } from 'lit'
import type { LiveState } from '../live'
import type { Strings } from '../strings/en'

const COLOUR = { connecting: 'pending', live: 'completed', refreshing: 'partial', offline: 'failed' } as const

/** Whether what is shown is fresh, in a word; the longer text on hover and for screen readers. */
export function liveTag(state: LiveState, t: Strings): TemplateResult {
  const hint = state === 'connecting' ? '' : t[`${state}Hint`]
  return html`<span class="tag ${COLOUR[state]}" role="status" data-live=${state} title=${hint}>
    ${t[state]}<span class="sr">${hint}</span>
  </span>`
}
