import { machineIds, machineOf } from '../api/live.ts'
import { Dot } from '../parts/Dot.tsx'
import { Empty } from '../parts/Empty.tsx'
import { Frame } from '../parts/Frame.tsx'
import { Skeleton } from '../parts/Skeleton.tsx'

export function Page() {
  const ids = machineIds.value
  return (
    <Frame
      title="Machines"
      wide
      actions={
        <a class="button" href="/new">
          New machine
        </a>
      }
    >
      {ids === undefined && <Skeleton lines={6} />}
      {ids?.length === 0 && <Empty words={['new', 'demo']}>You have no machine yet.</Empty>}
      <ul>
        {ids?.map((id) => (
          <Row key={id} id={id} />
        ))}
      </ul>
    </Frame>
  )
}

function Row({ id }: { id: number }) {
  const machine = machineOf(id)?.value
  if (!machine) return null
  return (
    <li>
      <a href={`/machines/${machine.vm_name}`}>{machine.vm_name}</a> <Dot status={machine.status_text} />
    </li>
  )
}
