/** The page: asks where the project is, then shows the application. */
import { applyTheme } from './theme'
import './index'
import './job-app'

applyTheme()
