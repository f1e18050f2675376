/** English, and the list of all strings there are. A language is one file like this and one line in `../language.ts`. */
export const en = {
  // what is said in several places
  retryNow: 'Try again',
  loading: 'Loading …',
  close: 'Close',
  // the state of the line to the server
  live: 'Live',
  liveHint: 'Changes appear as they happen.',
  connecting: 'Connecting …',
  refreshing: 'Refreshing every 5 s',
  refreshingHint: 'The live connection is down. What you see is at most 5 seconds old.',
  offline: 'Offline',
  offlineHint: 'The server cannot be reached. What you see may be out of date; it is tried again every 5 seconds.',
  // states of jobs and items
  status: {
    pending: 'Waiting',
    processing: 'Running',
    completed: 'Done',
    partial: 'Partly done',
    failed: 'Failed',
    cancelled: 'Cancelled',
  },
  // the list and the page
  list: {},
  page: {},
  // one job, its parts, the form for new ones, credits
  job: {},
  create: {},
  credits: {},
  // the operator's view
  operations: {},
}

export type Strings = typeof en
