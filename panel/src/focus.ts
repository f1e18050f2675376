const PATIENCE_MS = 5_000

/** Put the focus on the heading of a view that was opened, as soon as it has one; unless somebody is elsewhere by then. */
export function focusHeading(view: HTMLElement): void {
  const before = document.activeElement
  const heading = (): HTMLElement | null => (view.shadowRoot ?? view).querySelector('h1, h2')
  const focus = (): boolean => {
    const found = heading()
    if (found === null) return false
    if (document.activeElement !== before && document.activeElement !== document.body) return true
    found.tabIndex = -1
    found.focus()
    return true
  }
  if (focus()) return
  const changes = new MutationObserver(() => {
    if (focus()) changes.disconnect()
  })
  changes.observe(view.shadowRoot ?? view, { childList: true, subtree: true })
  setTimeout(() => changes.disconnect(), PATIENCE_MS)
}
