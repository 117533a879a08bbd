import { useExec } from '../../api/use-exec.ts'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Empty } from '../../parts/Empty.tsx'
import { Failed } from '../../parts/Failed.tsx'
import { Skeleton } from '../../parts/Skeleton.tsx'
import { Ago } from '../../parts/time.tsx'
import { Until } from '../until.tsx'
import type { TrashedDocument } from './documents.ts'

/** No machine is called that: it may lie in the trash, and then this is where it comes back from. */
export function Absent({ name }: { name: string }) {
  const trash = useExec<{ vms: TrashedDocument[] }>(['trash'], ['machines'])
  if (trash.error) return <Failed error={trash.error} wayOn={{ label: 'Try again', act: trash.reload }} />
  if (!trash.value) return <Skeleton lines={4} />
  const trashed = trash.value.vms.find(({ vm_name }) => vm_name === name)
  if (!trashed) {
    return (
      <Empty words={['ls']}>
        No machine is called {name}. It may have another name by now: <a href="/">Machines</a> lists those there are.
      </Empty>
    )
  }
  return (
    <div class="empty">
      <p>
        {name} is in the trash. Put there <Ago at={trashed.trashed_at} />, it goes for good{' '}
        <Until at={trashed.goes_at} />, or when the space is needed. It costs nothing, and its name is free for others.
      </p>
      <div class="actions">
        <CommandButton words={['untrash', name]} undo={['rm', name]} kind="main">
          Bring it back
        </CommandButton>
        <CommandButton
          words={['rm', name, '--now']}
          kind="danger"
          confirm={name}
          warning={`${name} and its disk are gone at once.`}
        >
          Delete for good
        </CommandButton>
      </div>
    </div>
  )
}
