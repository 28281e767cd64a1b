// What ends a wait: a turn that is over, or a signal of the user. Turns are many and few of them are
// cut, so theirs becomes an AbortSignal only where somebody looks at it.

export class Cut {
  /** Why, once it is cut. */
  reason: unknown
  isCut = false
  readonly #listeners = new Set<() => void>()
  #controller: AbortController | undefined

  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController()
      if (this.isCut) this.#controller.abort(this.reason)
    }
    return this.#controller.signal
  }

  /** Ends all that waits on it, once. */
  cut(reason: unknown): void {
    if (this.isCut) return
    this.isCut = true
    this.reason = reason
    this.#controller?.abort(reason)
    for (const listener of [...this.#listeners]) listener()
    this.#listeners.clear()
  }

  throwIfCut(): void {
    if (this.isCut) throw this.reason
  }

  add(listener: () => void): void {
    this.#listeners.add(listener)
  }

  delete(listener: () => void): void {
    this.#listeners.delete(listener)
  }
}

export type End = Cut | AbortSignal

function isOver(end: End): boolean {
  return end instanceof Cut ? end.isCut : end.aborted
}

/** Throws the reason of one that has ended already. */
export function throwIfOver(ends: readonly (End | undefined)[]): void {
  for (const end of ends) if (end !== undefined && isOver(end)) throw end.reason
}

/** A wait that any of `ends` ends; `begin` returns what undoes what it has begun. */
export function waiting<T>(
  ends: readonly (End | undefined)[],
  begin: (resolve: (value: T) => void, reject: (error: unknown) => void) => () => void,
): Promise<T> {
  const given = ends.filter((end) => end !== undefined)
  const over = given.find(isOver)
  if (over !== undefined) return Promise.reject(over.reason)
  return new Promise((resolve, reject) => {
    let undo: (() => void) | undefined
    const leave = (): void => {
      for (const end of given) {
        if (end instanceof Cut) end.delete(abort)
        else end.removeEventListener('abort', abort)
      }
    }
    const abort = (): void => {
      leave()
      undo?.()
      reject(given.find(isOver)?.reason)
    }
    const settle =
      <A>(then: (value: A) => void) =>
      (value: A): void => {
        leave()
        then(value)
      }
    for (const end of given) {
      if (end instanceof Cut) end.add(abort)
      else end.addEventListener('abort', abort, { once: true })
    }
    try {
      undo = begin(settle(resolve), settle(reject))
    } catch (error) {
      settle(reject)(error)
    }
  })
}
