import type { Json } from '../rows'
import type { Field, Shape } from './fields'

/** What stands in the inputs of a field: text as typed, choices as the number of the option, null for what is left out. */
export type Draft = string | boolean | null | Draft[] | { [name: string]: Draft }

/** Something that is wrong with a field. `code` is a string of section `create.problems`; values are put into it. */
export interface Problem {
  /** Where, such as `sections.0.heading`; empty for the payload as a whole. */
  path: string
  code: ProblemCode
  values: { [name: string]: number }
}

export type ProblemCode =
  | 'required'
  | 'tooShort'
  | 'tooLong'
  | 'pattern'
  | 'notANumber'
  | 'notWhole'
  | 'tooSmall'
  | 'tooBig'
  | 'notAbove'
  | 'notBelow'
  | 'tooFew'
  | 'tooMany'
  | 'notATime'
  | 'notAnEmail'
  | 'notAUrl'
  | 'notJson'
  | 'notAnObject'
  | 'notAnArray'

/** What a fresh form shows: the defaults, and one empty member where a list must have some. */
export function begin(field: Field): Draft {
  if (field.start !== undefined && field.start !== null) return draftOf(field, field.start)
  if (!field.required && field.shape.type === 'group') return null
  return blank(field.shape)
}

function blank(shape: Shape): Draft {
  switch (shape.type) {
    case 'boolean':
      return false
    case 'list':
      return Array.from({ length: Math.min(shape.least, 100) }, () => begin(shape.of))
    case 'group':
      return Object.fromEntries(shape.fields.map((field) => [field.name, begin(field)]))
    default:
      return ''
  }
}

/** What the inputs show for a value. */
function draftOf(field: Field, value: Json): Draft {
  const shape = field.shape
  switch (shape.type) {
    case 'boolean':
      return value === true
    case 'choice':
      return String(shape.options.findIndex((option) => option === value)).replace('-1', '')
    case 'list':
      return Array.isArray(value) ? value.map((member) => draftOf(shape.of, member)) : []
    case 'group': {
      const given = typeof value === 'object' && value !== null && !Array.isArray(value) ? value : {}
      return Object.fromEntries(
        shape.fields.map((inner) => {
          const one = given[inner.name]
          return [inner.name, one === undefined || one === null ? begin(inner) : draftOf(inner, one)]
        }),
      )
    }
    case 'json':
      return JSON.stringify(value, null, 2)
    case 'text':
      return shape.format === 'datetime' ? localTime(String(value)) : String(value)
    default:
      return String(value)
  }
}

/** The value that a draft stands for; undefined: leave it out, so that the handler's default holds. Adds to `problems`. */
export function collect(field: Field, draft: Draft, problems: Problem[], path = ''): Json | undefined {
  const wrong = (code: ProblemCode, values: Problem['values'] = {}): undefined => {
    problems.push({ path, code, values })
    return undefined
  }
  const shape = field.shape
  if (shape.type === 'fixed') return shape.value
  if (draft === null || draft === '') {
    // a required text may be "" for the handler; whoever leaves it empty has most likely forgotten it
    if (!field.required) return undefined
    return field.nullable ? null : wrong('required')
  }
  switch (shape.type) {
    case 'boolean':
      return draft === true
    case 'choice':
      return shape.options[Number(draft)]
    case 'text':
      return readText(shape, String(draft), wrong)
    case 'number':
      return readNumber(shape, String(draft), wrong)
    case 'json':
      return readJson(shape.expects, String(draft), wrong)
    case 'list': {
      const members = draft as Draft[]
      if (members.length < shape.least) return wrong('tooFew', { least: shape.least })
      if (members.length > shape.most) return wrong('tooMany', { most: shape.most })
      return members.map((member, n) => collect(shape.of, member, problems, join(path, String(n))) ?? null)
    }
    case 'group': {
      const given = draft as { [name: string]: Draft }
      const value: { [name: string]: Json } = {}
      for (const inner of shape.fields) {
        const one = collect(inner, given[inner.name] ?? null, problems, join(path, inner.name))
        if (one !== undefined) value[inner.name] = one
      }
      return value
    }
  }
}

type Wrong = (code: ProblemCode, values?: Problem['values']) => undefined

function readText(shape: Extract<Shape, { type: 'text' }>, text: string, wrong: Wrong): Json | undefined {
  const length = [...text].length // as Python counts
  if (length < shape.least) return wrong('tooShort', { least: shape.least })
  if (length > shape.most) return wrong('tooLong', { most: shape.most })
  if (shape.pattern !== null && !matches(shape.pattern, text)) return wrong('pattern')
  if (shape.format === 'email' && !/^[^\s@]+@[^\s@]+$/.test(text)) return wrong('notAnEmail')
  if (shape.format === 'url' && !URL.canParse(text)) return wrong('notAUrl')
  if (shape.format !== 'datetime') return text
  const time = new Date(text)
  return Number.isNaN(time.getTime()) ? wrong('notATime') : time.toISOString()
}

function readNumber(shape: Extract<Shape, { type: 'number' }>, text: string, wrong: Wrong): Json | undefined {
  const number = Number(text.trim())
  if (!Number.isFinite(number) || text.trim() === '') return wrong('notANumber')
  if (shape.whole && !Number.isInteger(number)) return wrong('notWhole')
  if (shape.min !== null && number < shape.min) return wrong('tooSmall', { least: shape.min })
  if (shape.max !== null && number > shape.max) return wrong('tooBig', { most: shape.max })
  if (shape.above !== null && number <= shape.above) return wrong('notAbove', { bound: shape.above })
  if (shape.below !== null && number >= shape.below) return wrong('notBelow', { bound: shape.below })
  return number
}

function readJson(expects: 'object' | 'array' | 'anything', text: string, wrong: Wrong): Json | undefined {
  let value: Json
  try {
    value = JSON.parse(text) as Json
  } catch {
    return wrong('notJson')
  }
  if (expects === 'object' && (typeof value !== 'object' || value === null || Array.isArray(value))) return wrong('notAnObject')
  if (expects === 'array' && !Array.isArray(value)) return wrong('notAnArray')
  return value
}

/** Python's patterns are mostly JavaScript's; one that is not is left to the handler. */
function matches(pattern: string, text: string): boolean {
  try {
    return new RegExp(pattern, 'u').test(text)
  } catch {
    return true
  }
}

/** An ISO time as `<input type=datetime-local>` wants it: in the browser's zone, without it. */
function localTime(iso: string): string {
  const time = new Date(iso)
  if (Number.isNaN(time.getTime())) return ''
  return new Date(time.getTime() - time.getTimezoneOffset() * 60_000).toISOString().slice(0, 16)
}

/** `sections` and `0` → `sections.0`. */
export function join(path: string, name: string): string {
  return path === '' ? name : `${path}.${name}`
}

/** The draft with another one at a path. */
export function put(draft: Draft, path: string, value: Draft): Draft {
  if (path === '') return value
  const [name = '', ...rest] = path.split('.')
  const inner = rest.join('.')
  if (Array.isArray(draft)) return draft.with(Number(name), put(draft[Number(name)] ?? null, inner, value))
  const given = (draft ?? {}) as { [name: string]: Draft }
  return { ...given, [name]: put(given[name] ?? null, inner, value) }
}
