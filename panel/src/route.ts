/** Where one is: the part of the address after `#`. */
export type Route = { view: 'list' } | { view: 'new' } | { view: 'operations' } | { view: 'job'; id: string }

/** What is no address of ours is the list's. */
export function parse(hash: string): Route {
  const [, first, second] = hash.replace(/^#/, '').split('/')
  if (first === 'jobs' && second !== undefined && /^[\w-]+$/.test(second)) return { view: 'job', id: second }
  if (first === 'new' || first === 'operations') return { view: first }
  return { view: 'list' }
}

export function address(route: Route): string {
  if (route.view === 'job') return `#/jobs/${route.id}`
  return route.view === 'list' ? '#/' : `#/${route.view}`
}
