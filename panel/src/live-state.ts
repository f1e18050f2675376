import { css, html } from 'lit'
import { customElement, property } from 'lit/decorators.js'
import { JobElement } from './element'
import type { LiveState } from './live'

/** How fresh the rows beside it are. Give it `live.state`; changes are announced. */
@customElement('job-live-state')
export class JobLiveState extends JobElement {
  static override styles = [
    JobElement.styles,
    css`
      :host {
        display: inline-block;
      }
      span {
        display: inline-flex;
        gap: 6px;
        align-items: center;
        min-height: 24px;
        font-size: 12px;
        white-space: nowrap;
      }
      i {
        width: 8px;
        height: 8px;
        border-radius: 50%;
        background: currentcolor;
      }
      [data-live='refreshing'] i,
      [data-live='connecting'] i {
        background: none;
        border: 2px solid currentcolor;
      }
      [data-live='offline'] i {
        border-radius: 0;
      }
      [data-live='live'] {
        color: var(--completed);
      }
      [data-live='refreshing'] {
        color: var(--partial);
      }
      [data-live='offline'] {
        color: var(--failed);
      }
    `,
  ]

  @property() state: LiveState = 'connecting'
  /** In place of the usual explanation. */
  @property() hint = ''

  override render() {
    const { t } = this
    const hints = { connecting: '', live: t.liveHint, refreshing: t.refreshingHint, offline: t.offlineHint }
    const hint = this.hint || hints[this.state]
    return html`<span role="status" data-live=${this.state} title=${hint}><i></i>${t[this.state]}<span class="sr">${hint}</span></span>`
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-live-state': JobLiveState
  }
}
