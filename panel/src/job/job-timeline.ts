import { css, html, type TemplateResult } from 'lit'
import { customElement, property } from 'lit/decorators.js'
import { Clock } from '../clock'
import { JobElement } from '../element'
import { language } from '../language'
import { happeningsOf } from './happenings'
import type { Whole } from './whole'

/** What happened to a job, and when: how long ago, and exactly. */
@customElement('job-timeline')
export class JobTimeline extends JobElement {
  static override styles = [
    JobElement.styles,
    css`
      ol {
        margin: 0;
        padding: 0;
        list-style: none;
      }
      li {
        position: relative;
        padding: 0 0 10px 20px;
        overflow-wrap: anywhere;
      }
      li::before {
        content: '';
        position: absolute;
        left: 3px;
        top: 6px;
        width: 9px;
        height: 9px;
        border: 2px solid currentcolor;
        border-radius: 50%;
        background: var(--paper);
      }
      li:not(:last-child)::after {
        content: '';
        position: absolute;
        left: 7px;
        top: 18px;
        bottom: -4px;
        border-left: 1px solid var(--line);
      }
      span {
        color: var(--ink);
      }
      time {
        display: block;
        font-size: 12px;
      }
    `,
  ]

  @property({ attribute: false }) whole: Whole | null = null

  constructor() {
    super()
    new Clock(this)
  }

  override render(): TemplateResult {
    const happenings = this.whole === null ? [] : happeningsOf(this.whole)
    return html`<ol role="list" aria-label=${this.t.job.timeline}>
      ${happenings.map(
        ({ at, what, as }) => html`<li class=${as ?? 'quiet'}>
          <span>${what}</span>
          <time class="quiet" datetime=${at}>${language.ago(at)} · ${language.moment(at)}</time>
        </li>`,
      )}
    </ol>`
  }
}

declare global {
  interface HTMLElementTagNameMap {
    'job-timeline': JobTimeline
  }
}
