import { Frame } from '../parts/Frame.tsx'
import { MachineLoad } from '../parts/MachineLoad.tsx'
import type { PageProps } from '../routes.ts'

export function Page({ params }: PageProps) {
  const name = params.name ?? ''
  return (
    <Frame title={name}>
      <MachineLoad name={name} />
    </Frame>
  )
}
