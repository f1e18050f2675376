import { fill, language } from '../language'
import { messageOf } from '../live'
import { hasEnded, type Job, type Kind } from '../rows'

/** What codes, refusals, prices and names are in plain words, in the language of the page. */

/** A text with a number in it: `{count}` is put in, in the form that the language has for it. */
export function counted(text: { one: string; other: string }, count: number): string {
  const form = new Intl.PluralRules(language.code).select(count) === 'one' ? text.one : text.other
  return fill(form, { count: language.number(count) })
}

/** What an error code of a job or an item means; null: a code of the application's own, which its message explains. */
export function meaningOf(code: string | null): string | null {
  const known: { [code: string]: string } = language.strings.job.codes
  return code !== null && Object.hasOwn(known, code) ? (known[code] ?? null) : null
}

/** Why the server refused something, or that it could not be reached. */
export function refusalOf(error: unknown): string {
  const t = language.strings.job.refusals
  const { code, details, message } = (error ?? {}) as { code?: unknown; details?: unknown; message?: unknown }
  if (code === 'PT402') {
    const lack = lackOf(details)
    if (lack !== null) return lackInWords(lack.needed, lack.available)
  }
  const known: { [code: string]: string } = t
  if (typeof code === 'string' && /^JQ\d{3}$/.test(code) && Object.hasOwn(known, code)) return known[code] ?? messageOf(error)
  if (code === 'PGRST301' || code === 'PGRST303') return t.expired // the token is over, or of another project
  if (typeof message === 'string' && isUnreachable(message)) return t.unreachable
  return messageOf(error)
}

/** Whether an answer may have been lost: then what was asked may have been done, or not. */
export function isUnreachable(message: string): boolean {
  return /failed to fetch|networkerror|load failed|network request failed|aborterror|timeouterror/i.test(message)
}

/** "Not enough credits: …" */
export function lackInWords(needed: number, available: number): string {
  return fill(language.strings.job.refusals.credits, {
    needed: language.number(needed),
    available: language.number(available),
    lacking: language.number(needed - available),
  })
}

function lackOf(details: unknown): { needed: number; available: number } | null {
  try {
    const { needed, available } = JSON.parse(String(details)) as { needed?: unknown; available?: unknown }
    return typeof needed === 'number' && typeof available === 'number' ? { needed, available } : null
  } catch {
    return null
  }
}

/** What became of a job's credits, in one sentence. */
export function creditsInWords(job: Pick<Job, 'status' | 'credits_held' | 'credits_captured' | 'credits_refunded'>): string {
  const t = language.strings.job
  const { credits_held: held, credits_captured: paid, credits_refunded: back } = job
  const reserved = held + paid + back
  if (reserved === 0) return t.free
  const values = { reserved: language.number(reserved), paid: language.number(paid), back: language.number(back) }
  if (!hasEnded(job)) return fill(t.creditsRunning, values)
  if (back === 0) return fill(t.creditsAllPaid, values)
  return fill(paid === 0 ? t.creditsAllBack : t.creditsEnded, values)
}

/** What a job of this kind reserves. */
export function priceOf(kind: Pick<Kind, 'credits_per_job' | 'credits_per_item'>, items: number): number {
  return kind.credits_per_item > 0 ? kind.credits_per_item * items : kind.credits_per_job
}

/**
 * The names of a job's items for people: if all keys look like language codes, and most of them are, they get the names of
 * the languages; every other key is its own name.
 */
export function itemNames(keys: readonly string[]): (key: string) => string {
  const names = new Intl.DisplayNames(language.code, { type: 'language', fallback: 'none' })
  const codes = keys.length <= 200 && keys.every((key) => /^[a-z]{2}(-[A-Za-z]{2,4})?$/.test(key))
  const languages = codes && keys.filter((key) => names.of(key) !== undefined).length > keys.length / 2
  return (key) => (languages ? (names.of(key) ?? key) : key)
}

