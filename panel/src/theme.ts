export type Theme = 'auto' | 'light' | 'dark'
export const THEMES: readonly Theme[] = ['auto', 'light', 'dark']

const KEPT_AS = 'job-panel-theme'

/** Light, dark, or as the system has it: kept in this browser. `page.css` does the rest. */
export function theme(): Theme {
  const kept = localStorage.getItem(KEPT_AS)
  return THEMES.find((name) => name === kept) ?? 'auto'
}

export function chooseTheme(name: Theme): void {
  localStorage.setItem(KEPT_AS, name)
  applyTheme()
}

export function applyTheme(): void {
  document.documentElement.dataset['theme'] = theme()
}
