import { configs as lit } from 'eslint-plugin-lit'
import tseslint from 'typescript-eslint'

export default tseslint.config(
  { ignores: ['dist', 'node_modules'] },
  ...tseslint.configs.strict,
  lit['flat/recommended'],
  {
    rules: {
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      // stored text is shown as text: nothing may bring it in as markup
      'no-restricted-imports': ['error', { patterns: ['lit/directives/unsafe-*'] }],
      'no-restricted-properties': ['error', { property: 'innerHTML' }, { property: 'outerHTML' }],
    },
  },
)
