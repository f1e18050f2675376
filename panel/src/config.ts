/** What the page is told by the server that it comes from. */
export interface Config {
  url: string
  /** The publishable (anon) key. */
  key: string
  /** Users to try it with, where it is a demo. */
  demo: { email: string; password: string }[]
}

/** Raises an `Error` that says what was wrong; `incomplete` is what it says of an answer without url and key. */
export async function readConfig(at: URL, incomplete: string): Promise<Config> {
  const response = await fetch(at, { cache: 'no-store' })
  if (!response.ok) throw new Error(`HTTP ${response.status}`)
  const told = (await response.json()) as { url?: unknown; key?: unknown; demo?: Config['demo'] | null }
  if (typeof told.url !== 'string' || typeof told.key !== 'string') throw new Error(incomplete)
  return { url: told.url, key: told.key, demo: told.demo ?? [] }
}
