import { describe, expect, it } from 'vitest'
import { begin, collect, type Draft, type Problem } from '../src/create/draft'
import { fieldOf, humanise, type Field, type Schema } from '../src/create/fields'
import type { Json } from '../src/rows'
import schemas from './fixtures/schemas.json'

// what pydantic writes for the translation example's card, a model of everything, a tree, and dict[str, Any]
const card = fieldOf(schemas.card as unknown as Schema)
const everything = fieldOf(schemas.everything as unknown as Schema)

function fieldsOf(field: Field): Field[] {
  if (field.shape.type !== 'group') throw new Error(`${field.name} is no group`)
  return field.shape.fields
}

function named(name: string): Field {
  const found = fieldsOf(everything).find((field) => field.name === name)
  if (found === undefined) throw new Error(`no field ${name}`)
  return found
}

function judged(field: Field, draft: Draft): { value: Json | undefined; problems: Problem[] } {
  const problems: Problem[] = []
  const value = collect(field, draft, problems)
  return { value, problems }
}

function codes(field: Field, draft: Draft): string[] {
  return judged(field, draft).problems.map((problem) => problem.code)
}

describe('a form from a schema', () => {
  it('draws lists of objects, with the labels and bounds of the model', () => {
    const [title, sections] = fieldsOf(card)
    expect(title).toMatchObject({ name: 'title', label: 'Title', required: true })
    expect(title?.shape).toEqual({ type: 'text', format: 'line', least: 1, most: 200, pattern: null })
    if (sections?.shape.type !== 'list') throw new Error('sections are a list')
    expect(sections.shape).toMatchObject({ least: 1, most: 100 })
    expect(fieldsOf(sections.shape.of).map((field) => [field.name, field.shape])).toEqual([
      ['heading', { type: 'text', format: 'line', least: 1, most: 200, pattern: null }],
      ['text', { type: 'text', format: 'lines', least: 1, most: 20000, pattern: null }],
    ])
  })

  it('starts a list that must not be empty with one empty member', () => {
    expect(begin(card)).toEqual({ title: '', sections: [{ heading: '', text: '' }] })
  })

  it('shows what is required first, in the order of the model', () => {
    expect(fieldsOf(everything).map((field) => field.name).slice(0, 5)).toEqual(['name', 'size', 'share', 'day', 'address'])
  })

  it.each([
    ['name', 'text'], ['tone', 'choice'], ['size', 'choice'], ['level', 'choice'], ['kind', 'fixed'], ['pages', 'number'],
    ['price', 'number'], ['urgent', 'boolean'], ['words', 'list'], ['flags', 'list'], ['address', 'group'],
    ['other', 'group'], ['extra', 'json'], ['either', 'json'],
  ])('draws %s as %s', (name, type) => {
    expect(named(name).shape.type).toBe(type)
  })

  it.each([['day', 'date'], ['at', 'datetime'], ['site', 'url'], ['text', 'lines']])('knows the format of %s', (name, format) => {
    expect(named(name).shape).toMatchObject({ format })
  })

  it('gives a description as the hint, and names a field after its property where the title is that of a class', () => {
    expect(named('name').hint).toBe('As it is printed.')
    expect(named('other').label).toBe('Other')
    expect(humanise('ship_to')).toBe('Ship to')
  })

  it('asks for JSON where a schema goes on without end or says nothing', () => {
    const tree = fieldOf(schemas.tree as unknown as Schema)
    expect(fieldsOf(tree).map((field) => field.shape.type)).toEqual(['text', 'json'])
    expect(fieldOf(schemas.anything as unknown as Schema).shape).toEqual({ type: 'json', expects: 'object' })
    expect(fieldOf({}).shape).toEqual({ type: 'json', expects: 'anything' })
  })
})

describe('what was typed', () => {
  const filled = {
    ...(begin(everything) as { [name: string]: Draft }),
    name: 'Ada', size: '1', share: '0.5', day: '2026-11-22', address: { street: 'High', zip: '12345', country: '' },
  }

  it('becomes the payload: defaults are kept, what is empty and optional is left out', () => {
    expect(judged(everything, filled)).toEqual({
      problems: [],
      value: {
        name: 'Ada', size: 'M', share: 0.5, day: '2026-11-22', address: { street: 'High', zip: '12345' },
        tone: 'formal', level: 2, kind: 'only', pages: 1, urgent: false, words: [], flags: [], extra: {}, either: 1,
      },
    })
  })

  it('is told to be wrong where it is wrong', () => {
    const wrong = { ...filled, name: '', share: '1', pages: '1.5', address: { street: '', zip: '12', country: '' } }
    expect(judged(everything, wrong).problems.map(({ path, code }) => [path, code])).toEqual([
      ['name', 'required'], ['share', 'notBelow'], ['address.street', 'required'], ['address.zip', 'pattern'], ['pages', 'notWhole'],
    ])
  })

  it.each<[string, Draft, string]>([
    ['pages', '0', 'tooSmall'], ['pages', '101', 'tooBig'], ['pages', 'many', 'notANumber'], ['share', '0', 'notAbove'],
    ['words', ['a', 'b', 'c', 'd'], 'tooMany'], ['extra', '[1]', 'notAnObject'], ['extra', '{', 'notJson'],
    ['site', 'example', 'notAUrl'], ['size', '', 'required'], ['day', '', 'required'],
  ])('%s: %j is %s', (name, draft, code) => {
    expect(codes(named(name), draft)).toEqual([code])
  })

  it('names the member of a list that is wrong', () => {
    const draft = { title: 'Tea', sections: [{ heading: 'Brew', text: 'Pour.' }, { heading: 'x'.repeat(201), text: '' }] }
    expect(judged(card, draft).problems).toEqual([
      { path: 'sections.1.heading', code: 'tooLong', values: { most: 200 } },
      { path: 'sections.1.text', code: 'required', values: {} },
    ])
  })

  it('sends a local time with its zone', () => {
    expect(judged(named('at'), '2026-11-22T12:00').value).toBe(new Date('2026-11-22T12:00').toISOString())
  })

  it('leaves a pattern that only Python can read to the handler', () => {
    const field = fieldOf({ type: 'object', properties: { a: { type: 'string', pattern: '(?P<year>\\d+)' } } })
    expect(codes(field, { a: 'x' })).toEqual([])
  })
})
