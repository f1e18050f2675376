import type { ErrorRate, Throughput } from './rows'

/** Hours that an operator looks back. */
export const RANGES = [1, 24, 168] as const
export type Hours = (typeof RANGES)[number]

const HOUR = 3_600
export const DAY = 24 * HOUR

/** Seconds of a step of `read_throughput`: minutes up to 3 hours, hours beyond. */
export function throughputStep(hours: number): number {
  return hours <= 3 ? 60 : HOUR
}

/** Seconds of a step of `read_error_rates`: 5 minutes up to 3 hours, hours beyond. */
export function errorStep(hours: number): number {
  return hours <= 3 ? 300 : HOUR
}

/** A moment of the server in seconds since 1970. */
export function seconds(moment: string): number {
  return Date.parse(moment) / 1000
}

/**
 * The starts of all steps of the last `span` seconds, in seconds since 1970, `step` apart. Steps that `starts` has
 * besides are in it, too: the server's clock decides, and this one may go wrong.
 */
export function steps(starts: number[], span: number, step: number, now: number): number[] {
  const newest = starts.reduce((a, b) => Math.max(a, b), Math.floor(now / step) * step)
  const oldest = starts.reduce((a, b) => Math.min(a, b), Math.ceil((now - span) / step) * step)
  const count = Math.round((newest - oldest) / step) + 1
  // a row from years ago would make millions of steps: then only those near the newest are drawn
  const drawn = Math.min(count, Math.ceil(span / step) * 2)
  return Array.from({ length: drawn }, (_, n) => newest - (drawn - 1 - n) * step)
}

/** The sum of `value` for each step: 0 where there are no rows. */
export function sums<Row>(rows: Row[], times: number[], at: (row: Row) => number, value: (row: Row) => number): number[] {
  const places = new Map(times.map((time, place) => [time, place]))
  const totals = times.map(() => 0)
  for (const row of rows) {
    const place = places.get(at(row))
    if (place !== undefined) totals[place] = (totals[place] ?? 0) + value(row)
  }
  return totals
}

/** The largest `value` for each step: null where nothing was measured, which is not the same as 0. */
export function largest(
  rows: Throughput[],
  times: number[],
  value: (row: Throughput) => number | null,
): (number | null)[] {
  const found = new Map<number, number>()
  for (const row of rows) {
    const [time, measured] = [seconds(row.starts_at), value(row)]
    if (measured !== null) found.set(time, Math.max(found.get(time) ?? 0, measured))
  }
  return times.map((time) => found.get(time) ?? null)
}

/** The codes with most failures, most first, and whether there are more. */
export function topCodes(rows: ErrorRate[], count: number): { codes: string[]; more: boolean } {
  const totals = new Map<string, number>()
  for (const row of rows) totals.set(row.code, (totals.get(row.code) ?? 0) + row.failures)
  const codes = [...totals.entries()].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])).map(([code]) => code)
  return { codes: codes.slice(0, count), more: codes.length > count }
}
