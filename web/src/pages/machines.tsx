import './machines/machines.css'
import { useSignal } from '@preact/signals'
import { useCallback, useEffect, useRef } from 'preact/hooks'
import { costOfAll, live, type Machine, machineIds } from '../api/live.ts'
import { useGlances } from '../load/glance.ts'
import { CommandButton } from '../parts/CommandButton.tsx'
import { Empty } from '../parts/Empty.tsx'
import { Failed } from '../parts/Failed.tsx'
import { Frame } from '../parts/Frame.tsx'
import { Money } from '../parts/figures.tsx'
import { helpIsOpen } from '../parts/Help.tsx'
import { isPhone } from '../parts/media.ts'
import { Skeleton } from '../parts/Skeleton.tsx'
import { Virtual } from '../parts/Virtual.tsx'
import { ACTIONS, actOn } from './machines/actions.ts'
import { active, chosen, chosenMachines, filter, opened, setFilter, shownIds } from './machines/choice.ts'
import { listKey, move } from './machines/keyboard.ts'
import { Row } from './machines/Row.tsx'
import { Shared } from './machines/Shared.tsx'

/** As machines/machines.css has them. */
const ROW_PX = { desktop: 40, phone: 68 }
/** What an open row takes until it was measured. */
const OPENED_PX = 232

/** The home page: every machine, what it is doing and why, and what it has cost. */
export function Page() {
  const ids = machineIds.value
  return (
    <Frame
      title="Machines"
      wide
      actions={
        <div class="buttons">
          {ids !== undefined && ids.length > 0 && <Filter />}
          <a class="button" href="/new">
            New machine
          </a>
        </div>
      }
    >
      {ids === undefined && <Waiting />}
      {ids?.length === 0 && (
        <Empty
          words={['new', 'demo']}
          action={
            <a class="button" href="/new">
              Make the first
            </a>
          }
        >
          You have no machine yet. One is a Linux of your own, there in seconds: reached over SSH, shown on the web,
          asleep while nobody needs it.
        </Empty>
      )}
      {ids !== undefined && ids.length > 0 && <List />}
      <Shared />
    </Frame>
  )
}

function Waiting() {
  if (live.value.state !== 'stale') return <Skeleton lines={8} label="Loading the machines" />
  return (
    <Failed
      error={new Error('The machines could not be read: Berth, or its database, does not answer. They go on')}
      wayOn={{ label: 'Try again', act: () => location.reload() }}
    />
  )
}

function Filter() {
  return (
    <input
      id="filter"
      type="search"
      aria-label="Filter"
      placeholder={isPhone.value ? 'Filter' : 'Filter: name, status, tag, image'}
      autocomplete="off"
      autocapitalize="none"
      spellcheck={false}
      value={filter.value}
      onInput={(event) => setFilter(event.currentTarget.value)}
      onKeyDown={(event) => {
        if (event.key === 'Escape') {
          setFilter('')
          event.currentTarget.blur()
        } else if (event.key === 'Enter' || event.key === 'ArrowDown') {
          event.preventDefault()
          move(0, isPhone.peek() ? ROW_PX.phone : ROW_PX.desktop)
        } else return
        event.stopPropagation()
      }}
    />
  )
}

function List() {
  useGlances()
  const shown = shownIds.value ?? []
  const extra = useSignal<ReadonlyMap<number, number>>(new Map())
  const rowHeight = isPhone.value ? ROW_PX.phone : ROW_PX.desktop
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => listKey(event, rowHeight)
    addEventListener('keydown', onKey)
    return () => removeEventListener('keydown', onKey)
  }, [rowHeight])
  const onHeight = useCallback(
    (id: number, px: number) => {
      if (extra.peek().get(id) !== px) extra.value = new Map(extra.peek()).set(id, px)
    },
    [extra],
  )
  const isAnyActive = shown.includes(active.value ?? -1)
  const open = opened.value
  const heights = extra.value
  return (
    <>
      <div
        role="treegrid"
        class="machines"
        aria-label="Machines"
        aria-rowcount={shown.length + 1}
        aria-multiselectable="true"
      >
        <div role="row" class="machine head" aria-rowindex={1}>
          <div role="columnheader" class="choose">
            <ChooseAll shown={shown} />
          </div>
          <div role="columnheader" class="name">
            Name
          </div>
          <div role="columnheader" class="status">
            Status
          </div>
          <div role="columnheader" class="why">
            Why
          </div>
          <div role="columnheader" class="size">
            Size
          </div>
          <div role="columnheader" class="glance">
            CPU, 1 h
          </div>
          <div role="columnheader" class="cost" title="This month so far, in UTC">
            This month
          </div>
        </div>
        <Virtual
          count={shown.length}
          rowHeight={rowHeight}
          extraOf={(index) => {
            const id = shown[index] ?? -1
            return open.has(id) ? (heights.get(id) ?? OPENED_PX) : 0
          }}
          row={(index) => {
            const id = shown[index] ?? -1
            return <Row key={id} id={id} index={index} isFirst={!isAnyActive && index === 0} onHeight={onHeight} />
          }}
          attributes={{ role: 'rowgroup' }}
        />
      </div>
      {shown.length === 0 && (
        <p class="none">
          No machine fits.{' '}
          <button type="button" class="small" onClick={() => setFilter('')}>
            Show all
          </button>
        </p>
      )}
      <Sum shown={shown.length} />
      <Chosen />
    </>
  )
}

function ChooseAll({ shown }: { shown: readonly number[] }) {
  const box = useRef<HTMLInputElement>(null)
  const marked = chosen.value
  const count = shown.filter((id) => marked.has(id)).length
  useEffect(() => {
    if (box.current) box.current.indeterminate = count > 0 && count < shown.length
  })
  return (
    <input
      ref={box}
      type="checkbox"
      aria-label="Choose all that are shown"
      checked={count > 0 && count === shown.length}
      onChange={() => {
        chosen.value = count === shown.length ? new Set() : new Set(shown)
      }}
    />
  )
}

function Sum({ shown }: { shown: number }) {
  const all = machineIds.value?.length ?? 0
  return (
    <p class="sum dim">
      <span role="status">
        {shown === all ? `${all} ${all === 1 ? 'machine' : 'machines'}` : `${shown} of ${all} machines`}
      </span>
      {costOfAll.value > 0 && (
        <>
          , <Money micros={costOfAll.value} /> this month so far (UTC)
        </>
      )}
      .{' '}
      <button type="button" class="small" onClick={() => (helpIsOpen.value = true)}>
        Keyboard
      </button>
    </p>
  )
}

/** As many as one command takes (gateway/commands/machine-steps.ts); then the others are still chosen. */
const MACHINES_A_LINE = 500

function unchoose(machines: readonly Machine[]): void {
  const done = new Set(machines.map(({ id }) => id))
  chosen.value = new Set([...chosen.peek()].filter((id) => !done.has(id)))
}

/** What can be done to the chosen ones, all at once. */
function Chosen() {
  const machines = chosenMachines.value
  if (machines.length === 0) return null
  return (
    <div class="chosen" role="toolbar" aria-label="With the chosen machines">
      <span>{machines.length} chosen</span>
      {ACTIONS.map((action) => {
        const those = machines.filter(action.fits).slice(0, MACHINES_A_LINE)
        if (those.length === 0) return null
        const rest = machines.length > MACHINES_A_LINE ? () => unchoose(those) : undefined
        return (
          <CommandButton key={action.verb} {...actOn(action, those)} {...(rest ? { onDone: rest } : {})}>
            {those.length === machines.length ? action.label : `${action.label} ${those.length}`}
          </CommandButton>
        )
      })}
      <button
        type="button"
        class="small"
        onClick={() => {
          chosen.value = new Set()
        }}
      >
        Choose none
      </button>
    </div>
  )
}
