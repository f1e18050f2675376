import { css, html, nothing, type TemplateResult } from 'lit'
import { live } from 'lit/directives/live.js'
import { fill, language } from '../language'
import { begin, join, type Draft, type Problem } from './draft'
import type { Field, Shape, TextFormat } from './fields'

/** The inputs of a form: each field by its path, with its label, its hint and what is wrong with it. */

export interface Form {
  /** What is wrong, by path. */
  problems: ReadonlyMap<string, Problem>
  /** Put another draft in the place of what stands at a path; `focus`: the path of the field to go to then. */
  change: (path: string, draft: Draft, focus?: string) => void
}

const INPUT_TYPES: { readonly [format in Exclude<TextFormat, 'lines'>]: string } = {
  line: 'text',
  date: 'date',
  datetime: 'datetime-local',
  time: 'time',
  email: 'email',
  url: 'url',
}

/** The DOM id of the input at a path. */
export function idOf(path: string): string {
  return `field-${path || 'payload'}`
}

/** A field with all that is in it. `label` overrides the field's own, such as "Sections 2" for a member. */
export function fieldView(field: Field, draft: Draft, path: string, form: Form, label: string = field.label): TemplateResult | typeof nothing {
  switch (field.shape.type) {
    case 'fixed':
      return nothing // there is nothing to choose
    case 'group':
      return groupView(field, field.shape, draft, path, form, label)
    case 'list':
      return listView(field, field.shape, draft as Draft[], path, form, label)
    case 'boolean':
      return html`<div class="field">
        <label class="check">
          <input
            type="checkbox"
            id=${idOf(path)}
            .checked=${live(draft === true)}
            aria-describedby=${describedBy(field, path, form)}
            @change=${(event: Event) => form.change(path, (event.target as HTMLInputElement).checked)}
          />${label}
        </label>
        ${notes(field, path, form)}
      </div>`
    default:
      return html`<div class="field">
        <label for=${idOf(path)}>${label}${demand(field)}</label>
        ${inputView(field, field.shape, String(draft ?? ''), path, form)} ${notes(field, path, form)}
      </div>`
  }
}

/** The fields of a payload, without a frame around them. */
export function fieldsView(fields: readonly Field[], draft: Draft, path: string, form: Form): unknown {
  const given = (draft ?? {}) as { [name: string]: Draft }
  return fields.map((field) => fieldView(field, given[field.name] ?? null, join(path, field.name), form))
}

function inputView(field: Field, shape: Shape, text: string, path: string, form: Form): TemplateResult {
  const typed = (event: Event): void => form.change(path, (event.target as HTMLInputElement).value)
  const invalid = form.problems.has(path) ? 'true' : 'false'
  const described = describedBy(field, path, form)
  const required = field.required && !field.nullable ? 'true' : 'false'
  if (shape.type === 'choice') {
    return html`<select id=${idOf(path)} aria-invalid=${invalid} aria-required=${required} aria-describedby=${described} @change=${typed}>
      <option value="" .selected=${text === ''}>${field.required ? language.strings.create.choose : '–'}</option>
      ${shape.options.map(
        (option, n) => html`<option value=${n} .selected=${text === String(n)}>${optionName(option)}</option>`,
      )}
    </select>`
  }
  if (shape.type === 'json' || (shape.type === 'text' && shape.format === 'lines')) {
    return html`<textarea
      id=${idOf(path)}
      class=${shape.type}
      rows="4"
      spellcheck=${shape.type === 'json' ? 'false' : 'true'}
      aria-invalid=${invalid}
      aria-required=${required}
      aria-describedby=${described}
      .value=${live(text)}
      @input=${typed}
    ></textarea>`
  }
  const number = shape.type === 'number'
  return html`<input
    id=${idOf(path)}
    type=${shape.type === 'text' && shape.format !== 'lines' ? INPUT_TYPES[shape.format] : 'text'}
    inputmode=${number ? (shape.whole ? 'numeric' : 'decimal') : nothing}
    autocomplete="off"
    aria-invalid=${invalid}
    aria-required=${required}
    aria-describedby=${described}
    .value=${live(text)}
    @input=${typed}
  />`
}

function groupView(
  field: Field,
  shape: Extract<Shape, { type: 'group' }>,
  draft: Draft,
  path: string,
  form: Form,
  label: string,
): TemplateResult {
  const t = language.strings.create
  const optional = !field.required || field.nullable
  if (draft === null) {
    const filled = begin({ ...field, required: true, start: undefined })
    return html`<div class="field">
      <span>${label}${demand(field)}</span>
      <div>
        <button type="button" id=${idOf(path)} @click=${() => form.change(path, filled, firstOf(field, path))}>
          + ${fill(t.fillIn, { group: label })}
        </button>
      </div>
      ${notes(field, path, form)}
    </div>`
  }
  return html`<fieldset>
    <legend>${label}</legend>
    ${notes(field, path, form)} ${fieldsView(shape.fields, draft, path, form)}
    ${optional
      ? html`<div>
          <button type="button" class="small" @click=${() => form.change(path, null, path)}>${fill(t.leaveOut, { group: label })}</button>
        </div>`
      : nothing}
  </fieldset>`
}

function listView(
  field: Field,
  shape: Extract<Shape, { type: 'list' }>,
  draft: Draft[] | null,
  path: string,
  form: Form,
  label: string,
): TemplateResult {
  const t = language.strings.create
  const members = draft ?? []
  const nameOf = (n: number): string => fill(t.member, { list: label, number: n + 1 })
  const remove = (n: number): void => {
    form.change(path, members.toSpliced(n, 1), members.length > 1 ? firstOf(shape.of, join(path, String(Math.max(0, n - 1)))) : path)
  }
  const add = (): void => {
    form.change(path, [...members, begin(shape.of)], firstOf(shape.of, join(path, String(members.length))))
  }
  return html`<fieldset>
    <legend>${label}${demand(field)}</legend>
    ${notes(field, path, form)}
    ${members.map(
      (member, n) => html`<div class="member">
        ${fieldView(shape.of, member, join(path, String(n)), form, nameOf(n))}
        ${members.length > shape.least
          ? html`<button type="button" class="small" aria-label=${fill(t.remove, { what: nameOf(n) })} @click=${() => remove(n)}>✕</button>`
          : nothing}
      </div>`,
    )}
    ${members.length < shape.most
      ? html`<div><button type="button" id=${idOf(path)} @click=${add}>+ ${fill(t.add, { list: label })}</button></div>`
      : nothing}
  </fieldset>`
}

/** The path of the first input in a field. */
function firstOf(field: Field, path: string): string {
  const [first] = field.shape.type === 'group' ? field.shape.fields : []
  return first === undefined ? path : firstOf(first, join(path, first.name))
}

function demand(field: Field): TemplateResult {
  const t = language.strings.create
  return html` <span class="quiet">(${field.required && !field.nullable ? t.required : t.optional})</span>`
}

function optionName(option: unknown): string {
  const t = language.strings.create
  return option === true ? t.yes : option === false ? t.no : typeof option === 'string' ? option : JSON.stringify(option)
}

function hintOf(field: Field): string {
  return field.hint || (field.shape.type === 'json' ? language.strings.create.json : '')
}

function describedBy(field: Field, path: string, form: Form): string | typeof nothing {
  const ids = [hintOf(field) === '' ? '' : `${idOf(path)}-hint`, form.problems.has(path) ? `${idOf(path)}-problem` : '']
  return ids.join(' ').trim() || nothing
}

function notes(field: Field, path: string, form: Form): TemplateResult {
  const problem = form.problems.get(path)
  const hint = hintOf(field)
  return html`${hint === '' ? nothing : html`<p class="quiet note" id="${idOf(path)}-hint">${hint}</p>`}
  ${problem === undefined ? nothing : html`<p class="error note" id="${idOf(path)}-problem">${problemInWords(problem)}</p>`}`
}

export function problemInWords({ code, values }: Problem): string {
  const numbers = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, language.number(value)]))
  return fill(language.strings.create.problems[code], numbers)
}

export const inputsLook = css`
  .field {
    display: grid;
    gap: 4px;
    min-width: 0;
  }
  label {
    font-weight: 500;
  }
  label .quiet {
    font-weight: 400;
  }
  .check {
    display: flex;
    gap: 8px;
    align-items: center;
    min-height: 24px;
  }
  .check input {
    width: 18px;
    height: 18px;
    accent-color: var(--accent);
  }
  .note {
    margin: 0;
    font-size: 12px;
  }
  input:not([type='checkbox']),
  textarea,
  select {
    width: 100%;
  }
  textarea {
    resize: vertical;
  }
  textarea.json {
    font: 12px/1.5 ui-monospace, monospace;
  }
  [aria-invalid='true'] {
    border-color: var(--failed);
  }
  fieldset {
    display: grid;
    gap: 12px;
    min-width: 0;
    margin: 0;
    padding: 12px;
    border: 1px solid var(--line);
    border-radius: var(--radius);
  }
  legend {
    padding: 0 4px;
    font-weight: 500;
  }
  .member {
    display: grid;
    grid-template-columns: minmax(0, 1fr) auto;
    gap: 8px;
    align-items: start;
  }
  .member > :only-child {
    grid-column: 1 / -1;
  }
`
