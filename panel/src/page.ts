/** The page: asks where the project is, then shows the application. */
