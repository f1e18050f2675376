import type { Strings } from './en'

/** German. */
export const de: Strings = {
  retryNow: 'Nochmal versuchen',
  loading: 'Lädt …',
  close: 'Schließen',
  live: 'Live',
  liveHint: 'Änderungen erscheinen sofort.',
  connecting: 'Verbinde …',
  refreshing: 'Alle 5 s aktualisiert',
  refreshingHint: 'Die Live-Verbindung ist unterbrochen. Was du siehst, ist höchstens 5 Sekunden alt.',
  offline: 'Offline',
  offlineHint: 'Der Server ist nicht erreichbar. Was du siehst, kann veraltet sein; alle 5 Sekunden wird es neu versucht.',
  status: {
    pending: 'Wartet',
    processing: 'Läuft',
    completed: 'Fertig',
    partial: 'Teilweise fertig',
    failed: 'Fehlgeschlagen',
    cancelled: 'Abgebrochen',
  },
  list: {},
  page: {},
  job: {},
  create: {},
  credits: {},
  operations: {},
}
