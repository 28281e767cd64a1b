// What ends a wait: a turn that is over, or a signal of the user. Turns are many and few of them are
// cut, so theirs becomes an AbortSignal only where somebody looks at it.

/** What may end a wait: a Cut, or an AbortSignal. */
export interface End {
  readonly aborted: boolean
  /** Why, once it is. */
  readonly reason: unknown
  throwIfAborted(): void
  addEventListener(type: 'abort', listener: () => void): void
  removeEventListener(type: 'abort', listener: () => void): void
}

export class Cut implements End {
  reason: unknown
  aborted = false
  readonly #listeners = new Set<() => void>()
  #controller: AbortController | undefined

  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController()
      if (this.aborted) this.#controller.abort(this.reason)
    }
    return this.#controller.signal
  }

  /** Ends all that waits on it, once. */
  cut(reason: unknown): void {
    if (this.aborted) return
    this.aborted = true
    this.reason = reason
    this.#controller?.abort(reason)
    for (const listener of [...this.#listeners]) listener()
    this.#listeners.clear()
  }

  throwIfAborted(): void {
    if (this.aborted) throw this.reason
  }

  addEventListener(_: 'abort', listener: () => void): void {
    this.#listeners.add(listener)
  }

  removeEventListener(_: 'abort', listener: () => void): void {
    this.#listeners.delete(listener)
  }
}

/** A wait that any of `ends` ends; `begin` returns what undoes what it has begun. */
export function waiting<T>(
  ends: readonly (End | undefined)[],
  begin: (resolve: (value: T) => void, reject: (error: unknown) => void) => () => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    let undo: (() => void) | undefined
    const leave = (): void => {
      for (const end of ends) end?.removeEventListener('abort', abort)
    }
    const settle =
      <A>(then: (value: A) => void) =>
      (value: A): void => {
        leave()
        then(value)
      }
    const fail = settle(reject)
    const abort = (): void => {
      undo?.()
      fail(ends.find((end) => end?.aborted)?.reason)
    }
    try {
      for (const end of ends) {
        end?.throwIfAborted()
        end?.addEventListener('abort', abort)
      }
      undo = begin(settle(resolve), fail)
    } catch (error) {
      fail(error)
    }
  })
}
