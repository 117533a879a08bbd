import { useComputed } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { costs, type Machine, machineOf } from '../../api/live.ts'
import { glances } from '../../load/glance.ts'
import { newest } from '../../load/series.ts'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Copy } from '../../parts/Copy.tsx'
import { Dot } from '../../parts/Dot.tsx'
import { Money } from '../../parts/figures.tsx'
import { Spark } from '../../parts/Spark.tsx'
import { Ago } from '../../parts/time.tsx'
import { figure, sayBytes } from '../../parts/words.ts'
import { ACTIONS, actOn } from './actions.ts'
import { active, chosen, opened, toggled } from './choice.ts'

/** A machine in the list: a line, and more in place when it is opened. */
export function Row({
  id,
  index,
  isFirst,
  onHeight,
}: {
  id: number
  index: number
  /** Tab comes here, as long as the keyboard is at no row */
  isFirst: boolean
  /** hears how high it is when it is open */
  onHeight: (id: number, px: number) => void
}) {
  const machine = machineOf(id)?.value
  if (!machine) return null
  const isOpen = opened.value.has(id)
  const isActive = active.value === id
  const { vm_name: name, status_text: status, tags } = machine
  const toggle = () => {
    active.value = id
    opened.value = toggled(opened.peek(), id)
  }
  return (
    <>
      {/* biome-ignore lint/a11y/useKeyWithClickEvents: the list has the keyboard (keyboard.ts) */}
      <div
        role="row"
        id={`machine-${id}`}
        class={isActive ? 'machine active' : 'machine'}
        aria-rowindex={index + 2}
        aria-level={1}
        aria-expanded={isOpen}
        aria-selected={chosen.value.has(id)}
        tabIndex={isActive || isFirst ? 0 : -1}
        onFocus={() => {
          active.value = id
        }}
        onClick={(event) => {
          if (!(event.target as Element).closest('a, button, input')) toggle()
        }}
      >
        <div role="gridcell" class="choose">
          <input
            type="checkbox"
            tabIndex={-1}
            aria-label={`Choose ${name}`}
            checked={chosen.value.has(id)}
            onChange={() => {
              chosen.value = toggled(chosen.peek(), id)
            }}
          />
        </div>
        <div role="gridcell" class="name">
          <a class="mono" href={`/machines/${name}`} tabIndex={-1}>
            {name}
          </a>
          {tags.length > 0 && <span class="tags dim">{tags.join(' ')}</span>}
        </div>
        <div role="gridcell" class="status">
          <Dot status={status} />
        </div>
        <div role="gridcell" class="why">
          <Why machine={machine} />
        </div>
        <div role="gridcell" class="size dim">
          {machine.allocated_cpus} cpu, {sayBytes(machine.memory_capacity_bytes)}
        </div>
        <div role="gridcell" class="glance">
          <Load id={id} cpus={machine.allocated_cpus} />
        </div>
        <div role="gridcell" class="cost">
          <Cost id={id} />
        </div>
      </div>
      {isOpen && <Opened id={id} machine={machine} onHeight={onHeight} />}
    </>
  )
}

function Load({ id, cpus }: { id: number; cpus: number }) {
  // Of this machine alone: what is new of others draws nothing here.
  const values = useComputed(() => glances.value?.of.get(id)).value
  if (!values) return null
  const now = newest(values)
  const most = Math.max(...values.map((value) => value ?? 0))
  const label = `cpu in the last hour: ${now === null ? 'not known' : figure(now)} now, ${figure(most)} at most, of ${cpus}`
  return (
    <span title={label}>
      <Spark values={values} most={Math.max(cpus, most)} label={label} />
    </span>
  )
}

function Cost({ id }: { id: number }) {
  const micros = useComputed(() => costs.value.get(id)).value
  return micros === undefined ? null : <Money micros={micros} />
}

/** What keeps it awake, or asleep, or from being what it should be. */
export function Why({ machine }: { machine: Machine }) {
  const { status, status_text, stage, awake_because, never_sleeps, idle_since, asleep_since, asleep_because } = machine
  if (stage !== null) return <span>{stage}</span>
  if (status === 'failed') return <span class="error">{machine.reason ?? 'no reason was reported'}</span>
  if (machine.reason !== undefined) return <span>{machine.reason}</span>
  if (status === 'asleep' || status === 'paused') {
    return (
      <span class="dim">
        {asleep_because}
        {asleep_since !== null && (
          <>
            {asleep_because ? ', ' : ''}
            <Ago at={asleep_since} />
          </>
        )}
      </span>
    )
  }
  if (status !== 'running' || status_text !== 'running') return null
  if (awake_because !== null && awake_because !== 'never') return <span>{awake_because}</span>
  if (never_sleeps) return <span class="dim">always awake</span>
  if (idle_since === null) return null
  return (
    <span class="dim">
      idle, <Ago at={idle_since} />
    </span>
  )
}

function Opened({
  id,
  machine,
  onHeight,
}: {
  id: number
  machine: Machine
  onHeight: (id: number, px: number) => void
}) {
  const element = useRef<HTMLDivElement>(null)
  useEffect(() => {
    const watched = element.current
    if (!watched) return
    const observer = new ResizeObserver(() => onHeight(id, watched.getBoundingClientRect().height))
    observer.observe(watched)
    return () => observer.disconnect()
  }, [id, onHeight])
  const { vm_name: name, https_url, ssh_dest, ssh_port, image, disk_capacity_bytes, host, ip, comment } = machine
  return (
    <div role="row" class="opened" ref={element} aria-level={2}>
      <div role="gridcell">
        <dl class="facts">
          <dt>State</dt>
          <dd>
            <Dot status={machine.status_text} /> <Why machine={machine} />
          </dd>
          <dt>SSH</dt>
          <dd>
            <Copy text={`ssh ${ssh_port === 22 ? '' : `-p ${ssh_port} `}${ssh_dest}`} />
          </dd>
          <dt>Web</dt>
          <dd>
            <Copy text={https_url} href={https_url} />
          </dd>
          <dt>Terminal</dt>
          <dd>
            <a href={`/terminal/${name}`}>Open in the browser</a>
          </dd>
          <dt>Made of</dt>
          <dd>
            <code>{image}</code>, {sayBytes(disk_capacity_bytes)} disk, at {ip ?? 'no address'} on {host},{' '}
            <Ago at={machine.created_at} />
          </dd>
          {comment !== '' && (
            <>
              <dt>Comment</dt>
              <dd>{comment}</dd>
            </>
          )}
        </dl>
        <div class="buttons">
          {ACTIONS.filter(({ fits }) => fits(machine)).map((action) => (
            <CommandButton key={action.verb} {...actOn(action, [machine])}>
              {action.label}
            </CommandButton>
          ))}
          <a class="button plain" href={`/machines/${name}`}>
            More
          </a>
        </div>
      </div>
    </div>
  )
}
