import { css } from 'lit'

/**
 * The look of all components. A page changes it by setting the `--job-…` properties; light and dark follow `color-scheme`.
 * Colours of text have a contrast of at least 4.5 : 1 on their background.
 */
export const look = css`
  :host {
    --ink: var(--job-ink, light-dark(#1b2126, #e8ebee));
    --quiet: var(--job-quiet, light-dark(#56616b, #a3adb7));
    --paper: var(--job-paper, light-dark(#ffffff, #171b1f));
    --ground: var(--job-ground, light-dark(#f6f7f9, #101316));
    --line: var(--job-line, light-dark(#d9dee3, #323a42));
    --accent: var(--job-accent, light-dark(#0b6e4f, #4cc79a));
    --on-accent: var(--job-on-accent, light-dark(#ffffff, #06251a));
    --pending: light-dark(#56616b, #a3adb7);
    --processing: light-dark(#1259b8, #7db3ff);
    --completed: light-dark(#0b6e4f, #4cc79a);
    --partial: light-dark(#8a5300, #f0b354);
    --failed: light-dark(#b3261e, #ff8f86);
    --cancelled: light-dark(#56616b, #a3adb7);
    --radius: var(--job-radius, 8px);
    display: block;
    color: var(--ink);
    font: 400 14px/1.45 var(--job-font, system-ui, sans-serif);
    -webkit-text-size-adjust: 100%;
  }
  :host([hidden]) {
    display: none;
  }
  *,
  *::before,
  *::after {
    box-sizing: border-box;
  }
  button,
  input,
  select,
  textarea {
    font: inherit;
    color: inherit;
  }
  button {
    min-height: 32px;
    padding: 4px 12px;
    border: 1px solid var(--line);
    border-radius: var(--radius);
    background: var(--paper);
    cursor: pointer;
  }
  button:hover:not(:disabled) {
    border-color: var(--quiet);
  }
  button:disabled {
    opacity: 0.55;
    cursor: default;
  }
  button.primary {
    border-color: transparent;
    background: var(--accent);
    color: var(--on-accent);
    font-weight: 600;
  }
  button.danger {
    color: var(--failed);
  }
  input:not([type='checkbox'], [type='radio']),
  select,
  textarea {
    min-height: 32px;
    padding: 4px 8px;
    border: 1px solid var(--line);
    border-radius: var(--radius);
    background: var(--paper);
    max-width: 100%;
  }
  :focus-visible {
    outline: 2px solid var(--accent);
    outline-offset: 2px;
  }
  a {
    color: var(--accent);
  }
  .card {
    padding: 16px;
    border: 1px solid var(--line);
    border-radius: calc(var(--radius) + 2px);
    background: var(--paper);
  }
  .quiet {
    color: var(--quiet);
  }
  .error {
    color: var(--failed);
  }
  .row {
    display: flex;
    flex-wrap: wrap;
    gap: 8px;
    align-items: center;
  }
  .sr {
    position: absolute;
    width: 1px;
    height: 1px;
    overflow: hidden;
    clip-path: inset(50%);
    white-space: nowrap;
  }
  .tag {
    display: inline-flex;
    gap: 4px;
    align-items: center;
    padding: 1px 8px;
    border: 1px solid currentcolor;
    border-radius: 999px;
    font-size: 12px;
    line-height: 1.5;
    white-space: nowrap;
  }
  .pending {
    color: var(--pending);
  }
  .processing {
    color: var(--processing);
  }
  .completed {
    color: var(--completed);
  }
  .partial {
    color: var(--partial);
  }
  .failed {
    color: var(--failed);
  }
  .cancelled {
    color: var(--cancelled);
  }
  dialog {
    width: min(440px, calc(100vw - 32px));
    padding: 20px;
    border: 1px solid var(--line);
    border-radius: calc(var(--radius) + 4px);
    background: var(--paper);
    color: var(--ink);
  }
  dialog::backdrop {
    background: rgb(0 0 0 / 45%);
  }
  h2,
  h3 {
    margin: 0 0 8px;
    font-size: 16px;
    line-height: 1.3;
  }
  h3 {
    font-size: 14px;
  }
  pre {
    margin: 0;
    overflow: auto;
    font: 12px/1.5 ui-monospace, monospace;
    white-space: pre-wrap;
    overflow-wrap: anywhere;
  }
  table {
    width: 100%;
    border-collapse: collapse;
  }
  th,
  td {
    padding: 6px 8px;
    border-bottom: 1px solid var(--line);
    text-align: start;
    vertical-align: top;
  }
  th {
    color: var(--quiet);
    font-weight: 500;
  }
  td.number,
  th.number {
    text-align: end;
    font-variant-numeric: tabular-nums;
  }
  @media (prefers-reduced-motion: reduce) {
    * {
      animation: none !important;
      transition: none !important;
    }
  }
`
