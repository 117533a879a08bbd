import { Frame } from '../parts/Frame.tsx'

export function Page() {
  return (
    <Frame title="Billing">
      <p class="dim">
        This page is not there yet. The lobby has the same: <code>help</code> lists its commands.
      </p>
    </Frame>
  )
}
