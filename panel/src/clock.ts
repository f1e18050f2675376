import type { ReactiveController, ReactiveControllerHost } from 'lit'

/** Lets a component render once a second, for "12 seconds ago", while the page is looked at. */
export class Clock implements ReactiveController {
  readonly #host: ReactiveControllerHost
  #timer: ReturnType<typeof setInterval> | undefined

  constructor(host: ReactiveControllerHost) {
    this.#host = host
    host.addController(this)
  }

  hostConnected(): void {
    this.#timer = setInterval(() => {
      if (!document.hidden) this.#host.requestUpdate()
    }, 1_000)
  }

  hostDisconnected(): void {
    clearInterval(this.#timer)
  }
}
