import { css } from 'lit'

/** What the sections of the operator's view have in common: cards in a grid, facts in pairs, tables that scroll. */
export const sectionLook = css`
  .cards {
    display: grid;
    grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr));
    gap: 12px;
    margin: 0;
    padding: 0;
    list-style: none;
  }
  .cards .card {
    display: flex;
    flex-direction: column;
    gap: 10px;
  }
  .head {
    display: flex;
    flex-wrap: wrap;
    gap: 8px;
    align-items: baseline;
    justify-content: space-between;
  }
  .head h3 {
    margin: 0;
    min-width: 0;
    font-size: 15px;
    overflow-wrap: anywhere;
  }
  .figures {
    display: grid;
    grid-template-columns: repeat(4, 1fr);
    gap: 8px;
    margin: 0;
  }
  .figures div {
    display: flex;
    flex-direction: column-reverse;
    justify-content: flex-end;
    min-width: 0;
  }
  .figures dt {
    color: var(--quiet);
    font-size: 12px;
    overflow-wrap: anywhere;
  }
  .figures dd {
    margin: 0;
    font-size: 20px;
    font-variant-numeric: tabular-nums;
  }
  .facts {
    display: grid;
    grid-template-columns: max-content 1fr;
    gap: 2px 12px;
    margin: 0;
  }
  .facts dt {
    color: var(--quiet);
  }
  .facts dd {
    margin: 0;
    min-width: 0;
    overflow-wrap: anywhere;
  }
  p {
    margin: 0;
  }
  button[aria-disabled='true'] {
    opacity: 0.55;
    cursor: default;
  }
  .problem {
    margin-bottom: 12px;
    padding: 8px 12px;
    border: 1px solid var(--failed);
    border-radius: var(--radius);
    background: var(--paper);
  }
  .bottom {
    margin-top: auto;
  }
  .tools {
    justify-content: space-between;
    margin-bottom: 12px;
  }
  fieldset.choice {
    display: inline-flex;
    margin: 0;
    padding: 0;
    border: 0;
  }
  .choice label {
    position: relative;
    cursor: pointer;
  }
  .choice input {
    position: absolute;
    inset: 0;
    margin: 0;
    opacity: 0;
    cursor: pointer;
  }
  .choice span {
    display: block;
    padding: 5px 12px;
    border: 1px solid var(--line);
    background: var(--paper);
  }
  .choice label:first-of-type span {
    border-radius: var(--radius) 0 0 var(--radius);
  }
  .choice label:last-of-type span {
    border-radius: 0 var(--radius) var(--radius) 0;
  }
  .choice input:checked + span {
    border-color: var(--accent);
    box-shadow: inset 0 0 0 1px var(--accent);
    font-weight: 600;
  }
  .choice input:focus-visible + span {
    outline: 2px solid var(--accent);
    outline-offset: 2px;
  }
  .message {
    min-width: 220px;
    max-width: 480px;
    overflow-wrap: anywhere;
  }
  code {
    font: 12px/1.5 ui-monospace, monospace;
  }
  .plots {
    display: grid;
    grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
    gap: 12px;
    margin-bottom: 12px;
  }
  .scrolls {
    overflow-x: auto;
  }
  .scrolls:focus-visible {
    outline-offset: -2px;
  }
  .warning {
    color: var(--partial);
  }
  .bar {
    height: 8px;
    border-radius: 4px;
    background: var(--line);
    overflow: hidden;
  }
  .bar svg {
    display: block;
    width: 100%;
    height: 8px;
    color: var(--processing);
  }
`
