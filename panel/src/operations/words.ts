import { language } from '../language'

/** A measured time in two figures or so: "35ms", "1.2s", "3m 20s". */
export function took(seconds: number | null): string {
  if (seconds === null) return '–'
  if (seconds >= 60) return language.duration(seconds)
  const [value, unit, digits] = seconds > 0 && seconds < 1 ? [seconds * 1000, 'millisecond', 0] : [seconds, 'second', seconds < 10 ? 1 : 0]
  const style = { style: 'unit', unit, unitDisplay: 'narrow', maximumFractionDigits: digits } as const
  return new Intl.NumberFormat(language.code, style).format(value)
}

/** How long something has been so, in one unit: "3 minutes", "2 hours". */
export function roughly(seconds: number): string {
  const units: [string, number][] = [['day', 86_400], ['hour', 3_600], ['minute', 60], ['second', 1]]
  const [unit, size] = units.find(([, size]) => seconds >= size) ?? ['second', 1]
  const style = { style: 'unit', unit, unitDisplay: 'long' } as const
  return new Intl.NumberFormat(language.code, style).format(Math.max(0, Math.floor(seconds / size)))
}

/** Time of the day, in the browser's time zone. */
export function clock(milliseconds: number): string {
  return new Intl.DateTimeFormat(language.code, { timeStyle: 'medium' }).format(milliseconds)
}
