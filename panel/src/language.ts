import { de } from './strings/de'
import { en, type Strings } from './strings/en'

/** All languages there are. */
export const LANGUAGES: { readonly [code: string]: Strings } = { en, de }

const KEPT_AS = 'job-panel-language'

/** The language of the page: what was chosen here before, else the browser's, else English. */
class Language extends EventTarget {
  code = pick([localStorage.getItem(KEPT_AS), ...navigator.languages])
  readonly #formats = new Map<string, unknown>()

  get strings(): Strings {
    return LANGUAGES[this.code] ?? en
  }

  choose(code: string): void {
    this.code = pick([code])
    localStorage.setItem(KEPT_AS, this.code)
    this.dispatchEvent(new Event('change'))
  }

  /** 1234.5 → "1,234.5" */
  number(value: number): string {
    return this.#format('number', () => new Intl.NumberFormat(this.code)).format(value)
  }

  /** 0.42 → "42%" */
  percent(share: number): string {
    return this.#format('percent', () => new Intl.NumberFormat(this.code, { style: 'percent' })).format(share)
  }

  /** Date and time to the second, in the browser's time zone. */
  moment(iso: string): string {
    const format = (): Intl.DateTimeFormat => new Intl.DateTimeFormat(this.code, { dateStyle: 'medium', timeStyle: 'medium' })
    return this.#format('moment', format).format(new Date(iso))
  }

  /** "3 minutes ago", "in 2 hours". `now` in milliseconds since 1970. */
  ago(iso: string, now: number = Date.now()): string {
    const seconds = (new Date(iso).getTime() - now) / 1000
    const format = this.#format('ago', () => new Intl.RelativeTimeFormat(this.code, { numeric: 'auto' }))
    const units: [Intl.RelativeTimeFormatUnit, number][] = [['day', 86_400], ['hour', 3_600], ['minute', 60]]
    for (const [unit, size] of units) {
      if (Math.abs(seconds) >= size) return format.format(Math.trunc(seconds / size), unit)
    }
    return format.format(Math.trunc(seconds), 'second')
  }

  /** 75 → "1m 15s" in the language's way. */
  duration(seconds: number): string {
    const whole = Math.max(0, Math.round(seconds))
    const parts: [number, string][] = [
      [Math.floor(whole / 3600), 'hour'],
      [Math.floor((whole % 3600) / 60), 'minute'],
      [whole % 60, 'second'],
    ]
    const told = parts.filter(([value]) => value > 0)
    return (told.length > 0 ? told : parts.slice(2))
      .map(([value, unit]) => new Intl.NumberFormat(this.code, { style: 'unit', unit, unitDisplay: 'narrow' }).format(value))
      .join(' ')
  }

  /** To make a format takes longer than to use it a hundred times, and a list uses hundreds with each frame. */
  #format<Format>(name: string, make: () => Format): Format {
    const key = `${this.code} ${name}`
    const format = (this.#formats.get(key) as Format | undefined) ?? make()
    this.#formats.set(key, format)
    return format
  }
}

function pick(wanted: (string | null)[]): string {
  for (const code of wanted) {
    const base = code?.toLowerCase().split('-')[0]
    if (base !== undefined && base in LANGUAGES) return base
  }
  return 'en'
}

export const language = new Language()

/** "{count} of {total}" with values put in. */
export function fill(text: string, values: { [name: string]: string | number }): string {
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole))
}
