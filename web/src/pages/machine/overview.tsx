import { useSignal } from '@preact/signals'
import type { Asked } from '../../api/use-exec.ts'
import { useExec } from '../../api/use-exec.ts'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Copy } from '../../parts/Copy.tsx'
import { SelectField } from '../../parts/inputs.tsx'
import { MachineLoad } from '../../parts/MachineLoad.tsx'
import { Ago } from '../../parts/time.tsx'
import { sayBytes } from '../../parts/words.ts'
import { PORTS, portUrl, waysTo } from './addresses.ts'
import type { DomainDocument, MachineDocument, WhyDocument } from './documents.ts'
import { Terminals } from './terminals.tsx'

export function Overview({ machine, why }: { machine: MachineDocument; why: Asked<WhyDocument> }) {
  const { vm_name: name } = machine
  const domains = useExec<{ domains: DomainDocument[] }>(['domain', 'ls', name], ['audit'])
  return (
    <>
      <section aria-labelledby="reach">
        <h2 id="reach">Reach it</h2>
        <dl class="ways">
          {waysTo(machine, domains.value?.domains).map(({ what, text, href }) => (
            <div key={text}>
              <dt>{what}</dt>
              <dd>
                <Copy text={text} href={href} />
              </dd>
            </div>
          ))}
          <PortWay machine={machine} />
        </dl>
      </section>
      <Terminals machine={machine} />
      <section aria-label="Load">
        <MachineLoad name={name} />
      </section>
      <section aria-labelledby="facts">
        <h2 id="facts">What it is</h2>
        <dl class="facts">
          <Fact title="Image">
            <span class="mono">{machine.image}</span>
          </Fact>
          <Fact title="Size">
            {machine.allocated_cpus} CPU{machine.allocated_cpus === 1 ? '' : 's'},{' '}
            {sayBytes(machine.memory_capacity_bytes)} memory, {sayBytes(machine.disk_capacity_bytes)} disk
          </Fact>
          <Fact title="Server">
            {machine.host}
            {machine.ip !== null && <span class="mono dim"> {machine.ip}</span>}
          </Fact>
          <Fact title="Made">
            <Ago at={machine.created_at} />
          </Fact>
          {machine.tags.length > 0 && <Fact title="Tags">{machine.tags.join(', ')}</Fact>}
        </dl>
      </section>
      <SleepAfter name={name} why={why} />
    </>
  )
}

function Fact({ title, children }: { title: string; children: preact.ComponentChildren }) {
  return (
    <div>
      <dt>{title}</dt>
      <dd>{children}</dd>
    </div>
  )
}

/** Every port has an address; which one is wanted is typed. */
function PortWay({ machine }: { machine: MachineDocument }) {
  const typed = useSignal('3000')
  const port = Number(typed.value)
  const isPort = Number.isInteger(port) && port >= PORTS.least && port <= PORTS.most
  const url = portUrl(machine, port)
  return (
    <div>
      <dt>
        <label for="port">Port</label>{' '}
        <input
          id="port"
          class="short mono"
          inputMode="numeric"
          value={typed.value}
          aria-invalid={!isPort}
          onInput={(event) => {
            typed.value = event.currentTarget.value
          }}
        />
      </dt>
      <dd>
        {isPort ? (
          <Copy text={url} href={url} />
        ) : (
          <span class="dim">
            {PORTS.least} to {PORTS.most}
          </span>
        )}
      </dd>
    </div>
  )
}

const CHOICES = [
  ['never', 'never'],
  ['10m', '10 minutes'],
  ['30m', '30 minutes'],
  ['1h', '1 hour'],
  ['8h', '8 hours'],
  ['default', 'what my account has'],
] as const

function SleepAfter({ name, why }: { name: string; why: Asked<WhyDocument> }) {
  const chosen = useSignal('30m')
  const now = why.value
  if (!now) return null
  const before = now.sleep_after_is_default
    ? 'default'
    : now.sleep_after_seconds === null
      ? 'never'
      : `${now.sleep_after_seconds}s`
  return (
    <section aria-labelledby="idle">
      <h2 id="idle">When it is idle</h2>
      <p>
        {now.sleep_after_seconds === null
          ? 'It never sleeps for being idle'
          : `It sleeps when it was idle for ${sayIdle(now.sleep_after_seconds)}`}
        {now.sleep_after_is_default && ', as your account has it'}.
      </p>
      <div class="line-form">
        <SelectField label="Sleep when idle for" value={chosen} choices={CHOICES} />
        <CommandButton words={['sleep-after', name, chosen.value]} undo={['sleep-after', name, before]}>
          Set
        </CommandButton>
      </div>
    </section>
  )
}

function sayIdle(seconds: number): string {
  if (seconds % 3600 === 0) return `${seconds / 3600} h`
  return seconds % 60 === 0 ? `${seconds / 60} min` : `${seconds} s`
}
