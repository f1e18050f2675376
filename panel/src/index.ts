/** The web components. Call `connect(url, key)` or `use(client)` once; then the elements work wherever they stand. */
export { connect, use } from './connection'
export { language, LANGUAGES } from './language'
export { JobList } from './job-list'
export { JobLiveState } from './live-state'
export { JobPanel } from './job-panel'
export { JobToasts, type Toast } from './toasts'
