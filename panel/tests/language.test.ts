import { describe, expect, it } from 'vitest'
import { fill, language, LANGUAGES } from '../src/language'
import { en } from '../src/strings/en'

type Tree = { [name: string]: string | Tree }

function holes(tree: Tree, path = ''): { [name: string]: string[] } {
  return Object.entries(tree).reduce<{ [name: string]: string[] }>((found, [name, value]) => {
    if (typeof value !== 'string') return { ...found, ...holes(value, `${path}${name}.`) }
    return { ...found, [path + name]: [...value.matchAll(/\{\w+\}/g)].map(([hole]) => hole).sort() }
  }, {})
}

describe('languages', () => {
  it.each(Object.entries(LANGUAGES))('%s says everything, with the same values in it', (_code, strings) => {
    expect(holes(strings)).toEqual(holes(en))
    expect(Object.values(JSON.parse(JSON.stringify(strings)) as Tree).flat(9)).not.toContain('')
  })

  it('tells how long ago something was', () => {
    const now = Date.parse('2026-11-22T12:00:00Z')
    language.choose('en')
    expect(language.ago('2026-11-22T11:57:00Z', now)).toBe('3 minutes ago')
    expect(language.ago('2026-11-22T14:00:00Z', now)).toBe('in 2 hours')
    language.choose('de')
    expect(language.ago('2026-11-22T11:57:00Z', now)).toBe('vor 3 Minuten')
  })

  it('falls back to English where it is asked for what it does not have', () => {
    language.choose('xx')
    expect(language.code).toBe('en')
  })

  it('puts values into a text and leaves what it has no value for', () => {
    expect(fill('{done} of {total} {what}', { done: 2, total: 5 })).toBe('2 of 5 {what}')
  })
})
