/** A machine: what it does and why, the ways to it, its console, who may see it, and everything one can do with it. */
import { useEffect, useRef } from 'preact/hooks'
import { machineCalled, machineIds } from '../api/live.ts'
import { useExec } from '../api/use-exec.ts'
import { Frame } from '../parts/Frame.tsx'
import { Skeleton } from '../parts/Skeleton.tsx'
import type { PageProps } from '../routes.ts'
import { Absent } from './machine/absent.tsx'
import { Checkpoints } from './machine/checkpoints.tsx'
import { Console } from './machine/console.tsx'
import type { MachineDocument, WhyDocument } from './machine/documents.ts'
import { Domains } from './machine/domains.tsx'
import { Overview } from './machine/overview.tsx'
import { Power } from './machine/power.tsx'
import { Settings } from './machine/settings.tsx'
import { Shares } from './machine/shares.tsx'
import { State } from './machine/state.tsx'
import { Tabs } from './machine/tabs.tsx'
import './machine/machine.css'

export function Page({ params }: PageProps) {
  const name = params.name ?? ''
  const machine = machineCalled(name) as MachineDocument | undefined
  if (machine) return <Present machine={machine} />
  const isKnown = machineIds.value !== undefined
  return <Frame title={name}>{isKnown ? <Absent name={name} /> : <Skeleton lines={8} />}</Frame>
}

/** What it belongs to. */
function Above() {
  return (
    <p class="above">
      <a href="/">Machines</a>
    </p>
  )
}

function Present({ machine }: { machine: MachineDocument }) {
  const { vm_name: name } = machine
  const why = useExec<WhyDocument>(['why', name])
  const seen = useRef(machine)
  // News of a machine may be news of what keeps it awake.
  useEffect(() => {
    if (seen.current !== machine) why.reload()
    seen.current = machine
  }, [machine, why.reload])
  return (
    <Frame title={name} above={<Above />}>
      <State machine={machine} why={why.value} />
      <Power machine={machine} why={why.value} />
      <Tabs
        label={`About ${name}`}
        tabs={[
          { id: 'overview', title: 'Overview', show: () => <Overview machine={machine} why={why} /> },
          { id: 'console', title: 'Console', show: () => <Console name={name} /> },
          { id: 'shares', title: 'Shares', show: () => <Shares name={name} /> },
          { id: 'domains', title: 'Domains', show: () => <Domains name={name} /> },
          { id: 'checkpoints', title: 'Checkpoints', show: () => <Checkpoints machine={machine} /> },
          { id: 'settings', title: 'Settings', show: () => <Settings machine={machine} /> },
        ]}
      />
    </Frame>
  )
}
