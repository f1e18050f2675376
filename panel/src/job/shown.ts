import type { Json } from '../rows'

/**
 * How a result is shown:
 *
 * - an `https:` address (or `http:` of this page's own host) is a link; so is an object `{url}`, named by its `title` or `name`;
 * - it is an image if the object's `content_type` is `image/…`, or, without one, if the path ends like a picture's;
 * - a text, or an object `{text}` and nothing else, is text;
 * - everything else is JSON.
 *
 * Addresses of any other scheme are never links.
 */
export type Shown =
  | { as: 'nothing' }
  | { as: 'link'; url: string; name: string }
  | { as: 'image'; url: string; name: string }
  | { as: 'text'; text: string }
  | { as: 'json'; text: string }

export function shownAs(value: Json | undefined, origin: string = location.origin): Shown {
  if (value === null || value === undefined) return { as: 'nothing' }
  if (typeof value === 'string') {
    const url = safeUrl(value, origin)
    return url === null ? { as: 'text', text: value } : linked(url, '', '')
  }
  if (typeof value === 'object' && !Array.isArray(value)) {
    const url = safeUrl(value['url'], origin)
    if (url !== null) return linked(url, textOf(value['title']) || textOf(value['name']), textOf(value['content_type']))
    const text = value['text']
    if (typeof text === 'string' && Object.keys(value).length === 1) return { as: 'text', text }
  }
  return { as: 'json', text: JSON.stringify(value, null, 2) }
}

function linked(url: string, name: string, type: string): Shown {
  const image = type === '' ? /\.(png|jpe?g|gif|webp|avif)$/i.test(new URL(url).pathname) : /^image\/(?!svg)/i.test(type)
  return { as: image ? 'image' : 'link', url, name: name || url }
}

/** The address, if it is one that may be followed; null if not. */
export function safeUrl(value: Json | undefined, origin: string): string | null {
  if (typeof value !== 'string' || !/^https?:\/\/\S+$/i.test(value) || !URL.canParse(value)) return null
  const url = new URL(value)
  if (url.username !== '' || url.password !== '') return null // "https://your.bank@elsewhere" shows another place than it leads to
  return url.protocol === 'https:' || url.origin === origin ? url.href : null
}

function textOf(value: Json | undefined): string {
  return typeof value === 'string' ? value : ''
}
