import { html, type TemplateResult } from 'lit'
import type { Strings } from '../strings/en'
import { RANGES, type Hours } from './series'

/** How far to look back: one of a few, as radio buttons in words. */
export function rangeChoice(chosen: Hours, t: Strings, choose: (hours: Hours) => void): TemplateResult {
  const said: { [hours in Hours]: string } = { 1: t.operations.hour, 24: t.operations.day, 168: t.operations.week }
  return html`<fieldset class="choice">
    <legend class="sr">${t.operations.range}</legend>
    ${RANGES.map(
      (hours) => html`<label>
        <input type="radio" name="range" .checked=${hours === chosen} @change=${() => choose(hours)} />
        <span>${said[hours]}</span>
      </label>`,
    )}
  </fieldset>`
}
