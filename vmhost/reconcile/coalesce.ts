/**
 * Work that looks at everything there is: asked for while it runs, however often, it runs once more afterwards.
 * @returns what asks for it; resolves when a run has ended that began after the call, rejects with the failure of one
 */
export function coalesce(work: () => Promise<void>): () => Promise<void> {
  let running: Promise<void> | undefined
  let isWanted = false
  const run = async () => {
    while (isWanted) {
      isWanted = false
      await work()
    }
  }
  return () => {
    isWanted = true
    running ??= run().finally(() => {
      running = undefined
    })
    return running
  }
}
