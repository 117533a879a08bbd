import { ExecError } from '../api/exec.ts'
import { sentence } from './words.ts'

/** It did not work: why, and the way on. */
export function Failed({ error, wayOn }: { error: Error; wayOn?: { label: string; act: () => void } | undefined }) {
  return (
    <div class="failed" role="alert">
      <p>
        {sentence(error.message)}
        {error instanceof ExecError && error.wayOn !== undefined && <span class="dim"> {sentence(error.wayOn)}</span>}
      </p>
      {wayOn && (
        <button type="button" class="plain" onClick={wayOn.act}>
          {wayOn.label}
        </button>
      )}
    </div>
  )
}
