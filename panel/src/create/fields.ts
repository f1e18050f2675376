import type { Json } from '../rows'

/**
 * What a form shows, from a JSON Schema as pydantic writes it. What cannot be drawn becomes a field for JSON, so that
 * every payload can be entered somehow. The schema was stored as `jsonb`, which forgets the order of properties: those
 * that are required come in the order of `required`, the others after them.
 */

export type Schema = { [name: string]: Json }

export type TextFormat = 'line' | 'lines' | 'date' | 'datetime' | 'time' | 'email' | 'url'

export type Shape =
  | { type: 'text'; format: TextFormat; least: number; most: number; pattern: string | null }
  | { type: 'number'; whole: boolean; min: number | null; max: number | null; above: number | null; below: number | null }
  | { type: 'boolean' }
  | { type: 'choice'; options: Json[] }
  | { type: 'fixed'; value: Json }
  | { type: 'list'; of: Field; least: number; most: number }
  | { type: 'group'; fields: Field[] }
  | { type: 'json'; expects: 'object' | 'array' | 'anything' }

export interface Field {
  /** Its key in the object it belongs to; empty for the whole payload and the members of lists. */
  name: string
  label: string
  hint: string
  required: boolean
  /** Whether null may be sent. */
  nullable: boolean
  /** The schema's default; undefined: none. */
  start: Json | undefined
  shape: Shape
}

const DEEPEST = 6
/** A text that may be longer than this gets several lines. */
const LINE = 255

/** The field for a whole payload: a group of fields, or JSON. */
export function fieldOf(schema: Schema): Field {
  return read('', schema, true, new Scope(defsOf(schema), [], 0))
}

class Scope {
  constructor(
    readonly defs: Schema,
    readonly open: readonly string[],
    readonly depth: number,
  ) {}

  inside(): Scope {
    return new Scope(this.defs, this.open, this.depth + 1)
  }

  entering(name: string): Scope {
    return new Scope(this.defs, [...this.open, name], this.depth)
  }
}

function read(name: string, schema: Schema, required: boolean, scope: Scope): Field {
  const { meant, nullable, inner } = resolve(schema, scope)
  return {
    name,
    label: textOf(schema['title']) || humanise(name), // the title of what `$ref` leads to is that of a class
    hint: textOf(schema['description']) || textOf(meant?.['description']),
    required,
    nullable,
    start: 'default' in schema ? schema['default'] : meant?.['default'],
    shape: meant === null ? { type: 'json', expects: 'anything' } : shapeOf(meant, nullable, inner),
  }
}

/** Follow `$ref` and "this or null" down to the schema that says what is to be entered; null: nothing one can draw. */
function resolve(schema: Schema, scope: Scope): { meant: Schema | null; nullable: boolean; inner: Scope } {
  let meant: Schema | null = schema
  let nullable = false
  let inner = scope
  while (meant !== null) {
    const reference: Json | undefined = meant['$ref']
    const choices: Json | undefined = meant['anyOf'] ?? meant['oneOf'] ?? meant['allOf']
    if (typeof reference === 'string') {
      const target: string = reference.replace('#/$defs/', '')
      const found: Json | undefined = inner.defs[target]
      if (inner.open.includes(target) || !isSchema(found)) meant = null // a tree without end, or nothing
      else {
        inner = inner.entering(target)
        meant = found
      }
    } else if (Array.isArray(choices)) {
      const some: Schema[] = choices.filter(isSchema).filter((choice) => choice['type'] !== 'null')
      nullable ||= some.length < choices.length
      meant = some.length === 1 ? (some[0] ?? null) : decimal(some)
    } else if (Array.isArray(meant['type'])) {
      const types: Json[] = meant['type'].filter((type) => type !== 'null')
      nullable ||= types.length < meant['type'].length
      meant = types.length === 1 ? { ...meant, type: types[0] ?? null } : null
    } else break
  }
  return { meant, nullable, inner }
}

/** A Decimal is "number or string": a number for whoever types it. */
function decimal(choices: Schema[]): Schema | null {
  const number = choices.find((choice) => choice['type'] === 'number')
  return choices.length === 2 && number && choices.some((choice) => choice['type'] === 'string') ? number : null
}

function shapeOf(schema: Schema, nullable: boolean, scope: Scope): Shape {
  if ('const' in schema) return { type: 'fixed', value: schema['const'] ?? null }
  if (Array.isArray(schema['enum'])) return { type: 'choice', options: schema['enum'].filter((option) => option !== null) }
  switch (schema['type']) {
    case 'string':
      return text(schema)
    case 'integer':
    case 'number':
      return {
        type: 'number',
        whole: schema['type'] === 'integer',
        min: numberOf(schema['minimum']),
        max: numberOf(schema['maximum']),
        above: numberOf(schema['exclusiveMinimum']),
        below: numberOf(schema['exclusiveMaximum']),
      }
    case 'boolean':
      return nullable ? { type: 'choice', options: [true, false] } : { type: 'boolean' }
    case 'array':
      return list(schema, scope)
    case 'object':
      return group(schema, scope)
    default:
      return { type: 'json', expects: 'anything' }
  }
}

function text(schema: Schema): Shape {
  const most = numberOf(schema['maxLength']) ?? Infinity
  const formats: { [name: string]: TextFormat } = {
    date: 'date',
    'date-time': 'datetime',
    time: 'time',
    email: 'email',
    uri: 'url',
  }
  const format = formats[textOf(schema['format'])] ?? (most > LINE && most < Infinity ? 'lines' : 'line')
  return { type: 'text', format, least: numberOf(schema['minLength']) ?? 0, most, pattern: textOf(schema['pattern']) || null }
}

function list(schema: Schema, scope: Scope): Shape {
  if (!isSchema(schema['items']) || scope.depth >= DEEPEST) return { type: 'json', expects: 'array' }
  const of = read('', schema['items'], true, scope.inside())
  if (of.shape.type === 'json') return { type: 'json', expects: 'array' }
  return { type: 'list', of, least: numberOf(schema['minItems']) ?? 0, most: numberOf(schema['maxItems']) ?? Infinity }
}

function group(schema: Schema, scope: Scope): Shape {
  const properties = schema['properties']
  if (!isSchema(properties) || Object.keys(properties).length === 0) {
    // nothing may be entered, or anything
    return schema['additionalProperties'] === false ? { type: 'group', fields: [] } : { type: 'json', expects: 'object' }
  }
  if (scope.depth >= DEEPEST) return { type: 'json', expects: 'object' }
  const required = Array.isArray(schema['required']) ? schema['required'].filter((name) => typeof name === 'string') : []
  const names = [...new Set([...required.filter((name) => name in properties), ...Object.keys(properties)])]
  return {
    type: 'group',
    fields: names.map((name) => {
      const property = properties[name]
      return read(name, isSchema(property) ? property : {}, required.includes(name), scope.inside())
    }),
  }
}

/** `ship_to` → "Ship to". */
export function humanise(name: string): string {
  const words = name.replace(/[_-]+/g, ' ').replace(/([a-z])([A-Z])/g, '$1 $2').trim().toLowerCase()
  return words.charAt(0).toUpperCase() + words.slice(1)
}

function defsOf(schema: Schema): Schema {
  const defs = schema['$defs'] ?? schema['definitions']
  return isSchema(defs) ? defs : {}
}

function isSchema(value: Json | undefined): value is Schema {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function textOf(value: Json | undefined): string {
  return typeof value === 'string' ? value : ''
}

function numberOf(value: Json | undefined): number | null {
  return typeof value === 'number' ? value : null
}
