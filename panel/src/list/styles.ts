import { css } from 'lit'

/** The look of the list. Rows have one fixed height, which `job-list.ts` knows: 56 px, or 84 px where it is narrow. */
export const listLook = css`
  :host {
    display: flex;
    flex-direction: column;
    height: var(--job-list-height, 560px);
    min-height: 0;
    border: 1px solid var(--line);
    border-radius: calc(var(--radius) + 2px);
    background: var(--paper);
    container-type: inline-size;
    overflow: hidden;
  }
  .tools {
    display: flex;
    flex-wrap: wrap;
    gap: 8px;
    align-items: center;
    padding: 10px 12px;
    border-bottom: 1px solid var(--line);
  }
  .tools input {
    flex: 1 1 160px;
    min-width: 0;
  }
  .tools select {
    max-width: 200px;
  }
  .chips {
    display: flex;
    flex-wrap: wrap;
    gap: 6px;
    margin: 0;
    padding: 0;
    border: 0;
    min-width: 0;
  }
  .chips button {
    min-height: 28px;
    padding: 2px 10px;
    border-radius: 999px;
    font-size: 13px;
  }
  .chips button[aria-pressed='true'] {
    border-color: var(--accent);
    background: var(--accent);
    color: var(--on-accent);
  }
  .body {
    position: relative;
    flex: 1;
    min-height: 0;
  }
  .scroll {
    height: 100%;
    overflow: auto;
    overflow-anchor: none;
    overscroll-behavior: contain;
  }
  ul {
    position: relative;
    margin: 0;
    padding: 0;
    list-style: none;
    contain: layout;
  }
  .job {
    position: absolute;
    inset: 0 0 auto;
    height: 56px;
    display: grid;
    grid-template: 'state what how credits when' 1fr / 128px minmax(0, 1.1fr) minmax(0, 1fr) 92px 118px;
    gap: 0 12px;
    align-items: center;
    padding: 0 12px;
    border-bottom: 1px solid var(--line);
    cursor: pointer;
    contain: strict;
  }
  .job:hover {
    background: var(--ground);
  }
  .job.selected {
    background: var(--ground);
    box-shadow: inset 3px 0 var(--accent);
  }
  .job:has(a:focus-visible) {
    outline: 2px solid var(--accent);
    outline-offset: -2px;
  }
  .job a {
    color: inherit;
    font-weight: 600;
    text-decoration: none;
    outline: none;
  }
  .state {
    grid-area: state;
  }
  .what {
    grid-area: what;
  }
  .how {
    grid-area: how;
  }
  .credits {
    grid-area: credits;
    text-align: end;
  }
  .when {
    grid-area: when;
    text-align: end;
  }
  .what,
  .how {
    display: flex;
    flex-direction: column;
    min-width: 0;
  }
  .what > *,
  .how > span,
  .credits,
  .when {
    overflow: hidden;
    text-overflow: ellipsis;
    white-space: nowrap;
  }
  .small {
    font-size: 12px;
    font-variant-numeric: tabular-nums;
  }
  progress {
    appearance: none;
    width: 100%;
    height: 6px;
    border: 0;
    border-radius: 3px;
    overflow: hidden;
    background: var(--line);
  }
  progress::-webkit-progress-bar {
    background: var(--line);
  }
  progress::-webkit-progress-value {
    background: var(--processing);
    transition: width 0.25s;
  }
  progress::-moz-progress-bar {
    background: var(--processing);
  }
  .skeleton {
    cursor: default;
  }
  .skeleton i {
    display: block;
    height: 10px;
    border-radius: 5px;
    background: var(--line);
    animation: breathe 1.6s ease-in-out infinite;
  }
  @keyframes breathe {
    50% {
      opacity: 0.4;
    }
  }
  .news {
    position: absolute;
    inset: 8px 0 auto;
    z-index: 1;
    display: flex;
    justify-content: center;
    pointer-events: none;
  }
  .news button {
    border-radius: 999px;
    box-shadow: 0 2px 8px rgb(0 0 0 / 25%);
    pointer-events: auto;
  }
  .message {
    display: grid;
    gap: 8px;
    justify-items: center;
    padding: 48px 16px;
    text-align: center;
  }
  .message h2 {
    margin: 0;
  }
  .message p {
    margin: 0;
    max-width: 44ch;
    overflow-wrap: anywhere;
  }
  .trouble {
    display: flex;
    flex-wrap: wrap;
    gap: 8px;
    align-items: center;
    padding: 6px 12px;
    border-bottom: 1px solid var(--line);
    overflow-wrap: anywhere;
  }
  @container (max-width: 719px) {
    .job {
      height: 84px;
      grid-template:
        'what state' auto
        'how how' auto
        'when credits' auto / minmax(0, 1fr) auto;
      align-content: center;
      gap: 2px 8px;
    }
    .how {
      flex-direction: row;
      align-items: center;
      gap: 8px;
      min-height: 18px;
    }
    .how:empty {
      display: none;
    }
    .how progress {
      flex: 0 0 80px;
    }
    .when {
      text-align: start;
    }
    .tools input {
      flex-basis: 50%;
    }
    .tools job-live-state {
      order: 1;
    }
    .tools select {
      order: 2;
      max-width: 120px;
    }
    .chips {
      order: 3;
      flex: 1 1 180px;
      flex-wrap: nowrap;
      overflow-x: auto;
      scrollbar-width: thin;
      padding: 2px;
    }
    .chips button {
      flex: none;
    }
  }
`
