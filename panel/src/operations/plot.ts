import { css, html, nothing, svg, unsafeCSS, type PropertyValues, type TemplateResult } from 'lit'
import { customElement, property, query, state } from 'lit/decorators.js'
import uPlot from 'uplot'
import plotCss from 'uplot/dist/uPlot.min.css?inline'
import { JobElement } from '../element'
import { language } from '../language'
import { look } from '../styles'
import { sectionLook } from './styles'

export type Colour = 'completed' | 'failed' | 'partial' | 'processing' | 'ink' | 'quiet'

export interface Line {
  label: string
  colour: Colour
  /** Lengths of dashes and gaps, in pixels, so that a line is known by more than its colour; []: a full line. */
  dash: number[]
  /** One value for each time; null: nothing was measured. */
  values: (number | null)[]
  /** What the legend says while nobody points at a time. */
  summary: string
}

export interface Figure {
  /** Starts of the steps, in seconds since 1970, ascending. */
  times: number[]
  lines: Line[]
  /** `counts`: whole numbers per step, drawn as steps. `measured`: a line with gaps. */
  sort: 'counts' | 'measured'
  /** Steps are days of UTC. */
  days?: boolean
}

const HEIGHT = 190

/** A plot over time: lines on a canvas, a legend in words, and the same numbers as a table for whoever wants to read them. */
@customElement('job-plot')
export class JobPlot extends JobElement {
  static override styles = [
    look,
    sectionLook,
    unsafeCSS(plotCss),
    css`
      :host {
        min-width: 0;
      }
      .canvas {
        height: ${HEIGHT}px;
        overflow: hidden;
      }
      .probe {
        color: var(--line);
      }
      ul {
        display: flex;
        flex-wrap: wrap;
        gap: 4px 16px;
        margin: 8px 0;
        padding: 0;
        list-style: none;
      }
      li {
        display: inline-flex;
        gap: 6px;
        align-items: center;
        overflow-wrap: anywhere;
      }
      li svg {
        flex: none;
        width: 26px;
        height: 8px;
      }
      .ink {
        color: var(--ink);
      }
      b {
        color: var(--ink);
        font-weight: 600;
        font-variant-numeric: tabular-nums;
      }
      summary {
        min-height: 24px;
        color: var(--quiet);
        cursor: pointer;
      }
      .scrolls {
        max-height: 260px;
        overflow: auto;
      }
      .u-cursor-x,
      .u-cursor-y {
        border-color: var(--quiet);
      }
    `,
  ]

  /** What the plot is about. */
  @property() heading = ''
  @property({ attribute: false }) figure: Figure = { times: [], lines: [], sort: 'counts' }
  /** A value in words. */
  @property({ attribute: false }) says: (value: number) => string = (value) => language.number(value)
  @state() private at: number | null = null
  @state() private open = false
  @query('.canvas') private canvas!: HTMLElement
  #plot: uPlot | null = null
  #shown: Figure | null = null
  #drawn = '' // what the plot that stands was made for: other lines need another one, other values do not
  readonly #sized = new ResizeObserver(() => this.#fit())
  readonly #themed = new MutationObserver(() => this.#plot?.redraw())
  readonly #scheme = matchMedia('(prefers-color-scheme: dark)')
  readonly #schemed = (): void => void this.#plot?.redraw()

  override connectedCallback(): void {
    super.connectedCallback()
    this.#themed.observe(document.documentElement, { attributeFilter: ['data-theme', 'class', 'style'] })
    this.#scheme.addEventListener('change', this.#schemed)
    if (this.hasUpdated) this.requestUpdate('figure')
  }

  override disconnectedCallback(): void {
    this.#sized.disconnect()
    this.#themed.disconnect()
    this.#scheme.removeEventListener('change', this.#schemed)
    this.#plot?.destroy()
    this.#plot = null
    super.disconnectedCallback()
  }

  override render(): TemplateResult {
    const { times, lines } = this.figure
    const at = this.at
    const spoken = lines.map((line) => `${line.label}: ${line.summary}`).join('; ')
    return html`
      <h3 id="heading">${this.heading}</h3>
      <span class="probe" hidden></span>
      <div class="canvas" role="img" aria-label="${this.heading}. ${spoken}"></div>
      <ul>
        ${lines.map((line) => {
          const value = at === null ? null : line.values[at]
          const now = value === null || value === undefined ? '–' : this.says(value)
          return html`<li class=${line.colour}>
            <svg viewBox="0 0 26 8" aria-hidden="true">
              ${svg`<line x1="0" y1="4" x2="26" y2="4" stroke="currentColor" stroke-width="2.5" stroke-dasharray=${line.dash.join(' ')} />`}
            </svg>
            <span>${line.label} <b>${at === null ? line.summary : now}</b></span>
          </li>`
        })}
        ${at === null || times[at] === undefined ? nothing : html`<li class="quiet">${this.#moment(times[at])}</li>`}
      </ul>
      <details @toggle=${(event: Event) => (this.open = (event.target as HTMLDetailsElement).open)}>
        <summary>${this.t.operations.asTable}</summary>
        ${this.open ? this.#table() : nothing}
      </details>
    `
  }

  protected override updated(changed: PropertyValues): void {
    super.updated(changed)
    this.#draw()
  }

  #table(): TemplateResult {
    const { times, lines } = this.figure
    // steps in which nothing was are left out: a table is read, not looked at
    const told = times.map((_, place) => place).filter((place) => lines.some((line) => Boolean(line.values[place])))
    if (told.length === 0) return html`<p class="quiet">${this.t.operations.nothingInRange}</p>`
    return html`<div class="scrolls" tabindex="0" role="region" aria-label=${this.heading}>
      <table>
        <thead>
          <tr>
            <th scope="col">${this.t.operations.time}</th>
            ${lines.map((line) => html`<th scope="col" class="number">${line.label}</th>`)}
          </tr>
        </thead>
        <tbody>
          ${told.reverse().map(
            (place) => html`<tr>
              <th scope="row">${this.#moment(times[place] ?? 0)}</th>
              ${lines.map((line) => {
                const value = line.values[place]
                return html`<td class="number">${value === null || value === undefined ? '–' : this.says(value)}</td>`
              })}
            </tr>`,
          )}
        </tbody>
      </table>
    </div>`
  }

  #moment(time: number): string {
    const form: Intl.DateTimeFormatOptions = this.figure.days
      ? { dateStyle: 'medium', timeZone: 'UTC' }
      : { dateStyle: 'short', timeStyle: 'short' }
    return new Intl.DateTimeFormat(language.code, form).format(time * 1000)
  }

  #draw(): void {
    const { lines, sort, days } = this.figure
    const made = JSON.stringify([language.code, sort, days, lines.map((line) => [line.label, line.colour, line.dash])])
    if (this.#plot !== null && made === this.#drawn) {
      // a cursor that moves renders again, and must not draw again
      if (this.#shown !== this.figure) this.#plot.setData(this.#data())
      this.#shown = this.figure
      return
    }
    this.#plot?.destroy()
    this.#drawn = made
    this.#shown = this.figure
    this.#plot = new uPlot(this.#options(), this.#data(), this.canvas)
    this.#sized.disconnect()
    this.#sized.observe(this.canvas)
  }

  /** Counts are of the time up to the next step: the last one gets its width by a point that closes it. */
  #data(): uPlot.AlignedData {
    const { times, lines, sort, days } = this.figure
    const [before, last] = times.slice(-2)
    if (sort !== 'counts' || days || before === undefined || last === undefined) {
      return [times, ...lines.map((line) => line.values)]
    }
    return [[...times, 2 * last - before], ...lines.map(({ values }) => [...values, values.at(-1) ?? 0])]
  }

  readonly #pointed = (plot: uPlot): void => {
    const place = plot.cursor.idx ?? null
    this.at = place === null ? null : Math.min(place, this.figure.times.length - 1)
  }

  #fit(): void {
    const width = Math.floor(this.canvas.clientWidth)
    if (this.#plot !== null && width > 0 && width !== this.#plot.width) this.#plot.setSize({ width, height: HEIGHT })
  }

  #options(): uPlot.Options {
    const { lines, sort, days } = this.figure
    const ink = (selector: string) => (): string => {
      const element = this.renderRoot.querySelector(selector)
      return element === null ? '#888' : getComputedStyle(element).color
    }
    const axis = { stroke: ink('summary'), grid: { stroke: ink('.probe'), width: 1 }, ticks: { stroke: ink('.probe'), width: 1 } }
    const stepped = uPlot.paths.stepped?.({ align: 1 })
    return {
      width: Math.max(100, Math.floor(this.canvas.clientWidth)),
      height: HEIGHT,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { size: 7 } },
      padding: [8, 34, 0, 0],
      ...(days ? { tzDate: (time: number) => uPlot.tzDate(new Date(time * 1000), 'Etc/UTC') } : {}),
      scales: { y: { range: (_plot, _low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [
        { ...axis, space: 70, size: 32, values: (_plot, splits, _axis, _space, step) => splits.map((time) => this.#tick(time, step)) },
        {
          ...axis,
          size: 62,
          values: (_plot, splits) => splits.map((value) => this.says(value)),
          ...(sort === 'counts' ? { incrs: WHOLE } : {}),
        },
      ],
      series: [
        {},
        ...lines.map((line) => ({
          label: line.label,
          stroke: ink(`li.${line.colour}`),
          dash: line.dash,
          width: 2,
          points: { show: sort === 'measured' || days === true, size: 5 },
          ...(sort === 'counts' && !days && stepped !== undefined ? { paths: stepped } : {}),
        })),
      ],
      hooks: { setCursor: [this.#pointed] },
    }
  }

  #tick(time: number, step: number): string {
    const form: Intl.DateTimeFormatOptions =
      step >= 86_400 || this.figure.days
        ? { day: 'numeric', month: 'short', ...(this.figure.days ? { timeZone: 'UTC' } : {}) }
        : { hour: 'numeric', minute: '2-digit' }
    return new Intl.DateTimeFormat(language.code, form).format(time * 1000)
  }
}

/** Steps of an axis of whole numbers: 1, 2, 5, 10, … */
const WHOLE = Array.from({ length: 12 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat()
