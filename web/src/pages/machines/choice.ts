/** What is filtered, chosen, open and under the keyboard in the list of machines; it outlives a visit to another page. */
import { computed, signal } from '@preact/signals'
import { type Machine, machineIds, machineOf } from '../../api/live.ts'
import { query, setQuery } from '../../router.ts'

/** the machine that the keyboard is at */
export const active = signal<number | undefined>(undefined)
export const chosen = signal<ReadonlySet<number>>(new Set())
/** the rows that are open */
export const opened = signal<ReadonlySet<number>>(new Set())

export const filter = computed(() => query.value.get('q') ?? '')
export const setFilter = (text: string) => setQuery({ q: text })

/** The machines that the filter leaves, by name: each of its words is somewhere in what a row shows. */
export const shownIds = computed<readonly number[] | undefined>(() => {
  const ids = machineIds.value
  const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean)
  if (ids === undefined || wanted.length === 0) return ids
  return ids.filter((id) => {
    const machine = machineOf(id)?.value
    if (!machine) return false
    const text = searched(machine)
    return wanted.every((word) => text.includes(word))
  })
})

function searched({ vm_name, status_text, image, host, comment, tags, ip }: Machine): string {
  return [vm_name, status_text, image, host, comment, ip ?? '', ...tags].join(' ').toLowerCase()
}

/** The chosen machines that there still are. */
export const chosenMachines = computed<Machine[]>(() => {
  const marked = chosen.value
  return (machineIds.value ?? []).filter((id) => marked.has(id)).flatMap((id) => machineOf(id)?.value ?? [])
})

export function toggled(set: ReadonlySet<number>, id: number, isIn = !set.has(id)): ReadonlySet<number> {
  const next = new Set(set)
  if (isIn) next.add(id)
  else next.delete(id)
  return next
}
