/** The web components. Call `connect(url, key)` or `use(client)` once; then the elements work wherever they stand. */
export { connect, use } from './connection'
export { language, LANGUAGES } from './language'
export { JobOperations } from './operations/operations'
