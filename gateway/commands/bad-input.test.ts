import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { flagNames } from './parse.ts'
import { TABLE } from './table.ts'
import { random } from './testing/random.ts'
import { machineRow } from './testing/rows.ts'
import { startWorld, type World } from './testing/world.ts'

const MEBIBYTE = 2 ** 20

const names = (count: number) => Array.from({ length: count }, (_, n) => `m${n}`).join(' ')

describe('bad input', () => {
  let world: World
  beforeAll(async () => {
    world = await startWorld()
  })
  afterAll(() => world?.[Symbol.asyncDispose]())

  it.each([
    ['new Demo', 2, /a-z/],
    ['new root', 2, /root/],
    ['new demo --name other', 2, /two names/],
    ['new demo --cpu many', 2, /cpu/],
    ['new demo --cpu 0', 2, /cpu is between 1 and 256, not 0/],
    ['new demo --cpu 99999999999999', 2, /cpu is between 1 and 256, not 9/],
    ['audit --before 9999999999999', 2, /--before is at most 999999999999, not/],
    ['new demo --cpu 64', 5, /64 CPUs; the largest has 8/],
    ['new demo --memory 12', 2, /memory/],
    ['new demo --memory 1K', 2, /at least 128M, not 1K/],
    ['new demo --memory 4T', 5, /4 TiB of memory left; the most is 64 GiB/],
    ['new demo --disk 900T', 5, /disk/],
    ['new demo --disk 100M', 2, /at least 1 GiB/],
    ['new demo --image ../nothing', 3, /images: base, minimal and any of a registry/],
    ['new demo --colour blue', 2, /--colour/],
    ['new demo --env 1A=2', 2, /variable/],
    ['new demo --env A', 2, /=/],
    ['new demo --tag "no blanks"', 2, /tag/],
    ['new demo --sleep-after soon', 2, /30m, 1h30m or 7d, or never, not soon/],
    ['new demo --sleep-after 5200w', 2, /at most 520w, ten years\n.*never/],
    ['new demo --dry-run --sleep-after 4000w', 2, /at most 520w/],
    ['new lobby', 2, /lobby is never a machine's name: it leads to the lobby/],
    ['new demo --setup-script -', 2, /empty/],
    ['stop tpyo', 3, /no machine called tpyo/],
    ['lss', 2, /did you mean ls/],
    ['doc st\u200bates', 3, /no page on st\?ates\n/],
    ["'*'", 2, /no command called \*\nhelp lists the commands/],
    ['billing', 2, /billing plan, usage, .* or send\n$/],
    ['ssh-key ad', 2, /ssh-key add/],
    ['doc nothing', 3, /start/],
    ['invite rm 7', 3, /invite ls/],
    ['defaults write colour blue', 2, /image/],
    ['defaults write memory much', 2, /4G/],
    ['defaults write sleep-after 5200w', 2, /at most 520w/],
    ['defaults write image ../x', 2, /x is no image\nwhat there is: doc images/],
    ["ssh-key remove ''", 3, /no key called ''\nssh-key list/],
    [`ssh-key rename ${'x'.repeat(90)} y`, 3, /no key called x{59}…\nssh-key list/],
    ['browser --qr --sign-out-everywhere', 2, /exclude each other/],
    ["billing rates --plan ''", 3, /no plan called ''/],
    ['audit --account 999', 3, /no account 999\naccount ls/],
    ['account limit 1 --spend none --hard', 2, /--hard belongs to --spend AMOUNT/],
    ["account credit 1 5 ''", 2, /say what the credit is for/],
    ['defaults write memory 1K', 2, /memory is at least 128M, not 1K/],
    ['defaults write disk 63.9M', 2, /disk is at least 64M/],
    ['host drain nowhere', 3, /server1/],
    ['host overcommit 1000', 2, /0\.1/],
    ['mail 4', 3, /mail/],
    ['new demo "', 2, /a double quote is not closed\nclose it with another ", or write '"' where " itself is meant/],
    ["comment demo it's", 2, /a single quote is not closed\nclose it with another ', or write "'" where ' itself/],
    ['ls | wc', 2, /one command a line/],
    ['billing limit -5', 2, /billing limit has no flag -5\nbilling limit --help lists its flags\n$/],
  ])('%s', async (line, status, sentence) => {
    const ran = await world.run(line)
    expect(ran, ran.stderr + ran.stdout).toMatchObject({ status, stdout: '' })
    expect(ran.stderr).toMatch(sentence)
    expect(await world.gateway.sql`select from machines`).toHaveLength(0)
    expect(await world.gateway.sql`select from addresses`).toHaveLength(0)
  })

  it.each([
    [`rm ${names(501)}`, /one line may name 500 machines, and this one names 501/],
    [`stop ${names(20_000)}`, /names 20000/],
    [`ls -${'a'.repeat(200_000)}`, /ls has no flag -a/],
  ])('however much of it there is, is answered at once', async (line, sentence) => {
    const began = performance.now()
    const ran = await world.run(line)
    expect(ran).toMatchObject({ status: 2, stdout: '', stderr: expect.stringMatching(sentence) })
    expect(performance.now() - began).toBeLessThan(1000)
  })

  it.each(['share', 'token', 'ssh-key'])('%s --help shows the whole family, as help does', async (family) => {
    const help = await world.run(`help ${family}`)
    expect(help).toMatchObject({ status: 0, stdout: expect.stringContaining('each of them takes --help') })
    expect(await world.run(`${family} --help`)).toEqual(help)
    const document = await world.run(`${family} --json --help`)
    expect(document.status).toBe(0)
    expect(JSON.parse(document.stdout).commands.length).toBeGreaterThan(1)
  })

  it('help says what runs where an image has no init', async () => {
    const help = (await world.run('help new')).stdout.replaceAll(/\s+/g, ' ')
    expect(help).toMatch(/auto runs the image's own program/)
  })

  it('a size that no machine can have is rounded up to one that it can', async () => {
    for (const [index, size] of ['--memory 1.3G', '--memory 700000K', '--memory 128.001M', '--disk 10.1G'].entries()) {
      expect(await world.run(`new sized-${index} --no-wait ${size}`)).toMatchObject({ status: 0 })
      const row = await machineRow(world, `sized-${index}`)
      // What the vmhost asks of a row before it makes the machine.
      expect(
        [row?.memory_bytes, row?.disk_bytes].map((bytes) => (bytes ?? 1) % MEBIBYTE),
        size,
      ).toEqual([0, 0])
      expect(row?.memory_bytes).toBeGreaterThanOrEqual(128 * MEBIBYTE)
      await world.run(`rm --now sized-${index}`)
    }
    expect(await machineRow(world, 'sized-0')).toBeUndefined()
    await world.gateway.sql`delete from machines`
  })

  it('overcommit gives no single machine more memory than its server has', async () => {
    await world.run('host overcommit 2')
    expect(await world.run('new demo --memory 100G')).toMatchObject({
      status: 5,
      stderr: expect.stringMatching(/100 GiB of memory left; the most is 64 GiB/),
    })
    await world.run('host overcommit 1')
  })

  it('as one JSON document with --json', async () => {
    expect(await world.json('stop tpyo')).toEqual({
      status: 3,
      document: {
        error: 'no machine called tpyo',
        code: 'machine.not_found',
        way_on: 'you have no machine yet; to make one: new',
      },
    })
    expect(await world.json('lss')).toMatchObject({ status: 2, document: { code: 'command.unknown' } })
    const open = await world.run('new --json "')
    expect([open.status, JSON.parse(open.stdout)]).toEqual([
      2,
      {
        error: 'a double quote is not closed',
        code: 'usage',
        way_on: expect.stringContaining('close it with another'),
      },
    ])
  })

  it("the operator's commands are the operator's", async () => {
    const caller = await world.account()
    for (const line of [
      'doctor',
      'mail',
      'host ls',
      'host drain server1',
      'host overcommit 2',
      'account ls',
      'account limit 1 5',
      'account suspend 1',
      'billing set-rate usage cpu 1',
      'billing recompute',
    ]) {
      expect(await world.run(line, { caller }), line).toMatchObject({ status: 4, stdout: '' })
    }
    expect((await world.run('help', { caller })).stdout).not.toMatch(/doctor/)
    for (const line of ['billing --help', 'help billing', 'billing nothing', 'billing nothing --json']) {
      const { stdout, stderr } = await world.run(line, { caller })
      expect(stdout + stderr, line).toMatch(/payments/)
      expect(stdout + stderr, line).not.toMatch(/recompute|set-rate|seller/)
    }
    for (const line of ['help doctor', 'help account', 'account --help', 'account nothing', 'help billing recompute']) {
      const refused = { status: 4, stdout: '', stderr: expect.stringMatching(/is the operator's\nhelp lists what you/) }
      expect(await world.run(line, { caller }), line).toEqual(refused)
      expect(await world.run(line), line).toMatchObject({ status: line === 'account nothing' ? 2 : 0 })
    }
    expect((await world.run('docto', { caller })).stderr).not.toMatch(/doctor/)
  })

  it('a token that may not is told which one may', async () => {
    const limits = { tokenId: 1, expiresAtMs: Date.now() + 3_600_000, commands: undefined, tag: undefined }
    const scope = { ...limits, machineId: 1 }
    const refused = async (line: string) => await world.run(line, { caller: { ...world.owner, via: 'exec', scope } })
    expect(await refused('audit')).toEqual({
      ...{ status: 4, stdout: '' },
      stderr:
        "this token is for some machines alone, and audit is about more than those\ntoken new --cmds 'audit', without --machine or --tag\n",
    })
    for (const line of ['new demo --dry-run', 'cp demo other']) {
      expect(await refused(line), line).toMatchObject({
        status: 4,
        stderr: expect.stringMatching(/makes no others\ntoken new --tag TAG/),
      })
    }
  })

  it('--help and -h alone are help', async () => {
    const help = await world.run('help')
    expect(help.status).toBe(0)
    for (const line of ['--help', '-h', '?']) expect(await world.run(line)).toEqual(help)
  })

  it('whatever is typed gets an answer: an exit status of ours, and never a fault', async () => {
    const pick = random(42)
    // Nothing that waits for ever, or for a person.
    const safe = TABLE.filter((command) => !['new', 'ssh'].includes(command.name))
    const words = [
      ...safe.flatMap((command) => command.name.split(' ')),
      ...safe.flatMap((command) => flagNames(command.flags)).filter((flag) => !['-f', '--follow'].includes(flag)),
      ...[
        'demo',
        'nothing',
        '--',
        '-',
        '--json',
        '',
        "''",
        '"a b"',
        '--name=x',
        '--uses=0',
        '1',
        '99999999999999999999',
        '../..',
        '%',
        'é',
        '漢',
        '\u0000',
        '$(id)',
        '{}',
        '*',
      ],
    ]
    for (let round = 0; round < 400; round++) {
      const line = Array.from({ length: 1 + pick(5) }, () => words[pick(words.length)] ?? '').join(' ')
      const { status, stdout, stderr } = await world.run(line)
      expect([0, 1, 2, 3, 4, 5], line).toContain(status)
      expect(stdout + stderr, line).not.toMatch(/reason of ours|internal/)
      if (status !== 0 && !line.includes('--json')) expect(stderr, line).not.toBe('')
    }
  }, 120_000)
})
