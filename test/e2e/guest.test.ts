import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { startBrowser, type TestBrowser } from '../browser.ts'
import { testPython } from '../clients/python.ts'
import { CHECKOUT, INTERNET_ADDRESS, type Product, SERVER_ADDRESS, startProduct } from './product.ts'
import { transcriptOf } from './transcript.ts'
import { startVite } from './vite.ts'

/** What a user finds inside a machine made of the base image, and what they must not find. */
let product: Product
const HOST = 'berth.example'
/** Not one of those that lead to machines. */
const METRICS_PORT = 19_464
const inside = (command: string, machine = 'demo') => product.ssh([`${machine}@${SERVER_ADDRESS}`, command])

beforeAll(async () => {
  product = await startProduct({
    env: { BERTH_DOMAIN: HOST, BERTH_PORTS: 'on', BERTH_METRICS: `127.0.0.1:${METRICS_PORT}` },
  })
})
afterAll(() => product?.[Symbol.asyncDispose]())

describe('a first visit, as the README tells it', () => {
  // The transcript in the README is this test's: `UPDATE_README=1` writes it, otherwise the two are compared.
  it('makes a machine, lands in it, finds systemd, a disk that lasts and a way out', async () => {
    // No name server here: what a user's DNS would say stands in the client's configuration.
    const config = join(product.home, 'config')
    const lines = [`HostName ${SERVER_ADDRESS}`, `IdentityFile ${product.home}/id_ed25519`, 'IdentitiesOnly yes']
    const trust = [
      'StrictHostKeyChecking accept-new',
      `UserKnownHostsFile ${product.home}/known_hosts`,
      'LogLevel ERROR',
    ]
    writeFileSync(config, `Host ${HOST}\n${[...lines, ...trust].join('\n')}\n`)
    const visit = product.terminal('bash', ['--norc', '--noprofile'], { columns: 80, rows: 40 })
    await visit.expect(/[#$] $/)
    const setUp = `bind 'set enable-bracketed-paste off'; PS1='$ '; ssh() { command ssh -F ${config} "$@"; }; echo set up`
    visit.type(`${setUp}\r`)
    await visit.expect(/set up\r\n\$ $/)
    const from = visit.output().length
    const type = async (line: string, answer: RegExp) => {
      visit.type(`${line}\r`)
      await visit.expect(answer, 120_000)
    }

    await type(`ssh -p 2222 ${HOST} new demo`, /ssh .*demo@[\s\S]*\n\$ $/)
    await type(`ssh -p 2222 demo@${HOST}`, /dev@demo[^\r\n]*\$ (\x1b\S+)?$/)
    await type(
      'uname -sr; findmnt -no SOURCE,FSTYPE /; sudo id -un',
      /\/dev\/vda ext4\r\nroot\r\n[\s\S]*\$ (\x1b\S+)?$/,
    )
    await type('echo "for tomorrow" > notes; exit', /\n\$ $/)
    await type(`ssh -p 2222 demo@${HOST} cat notes`, /\nfor tomorrow\r\n\$ $/)
    await type(`ssh -p 2222 ${HOST} ls`, /running[\s\S]*\n\$ $/)
    const transcript = transcriptOf(`$ ${visit.output().slice(from)}`, 80)
    visit.type('exit\r')
    await visit.ended

    const readme = join(CHECKOUT, 'README.md')
    const text = readFileSync(readme, 'utf8')
    const marked = /(<!-- transcript: first visit -->\n\n```console\n)([\s\S]*?)(```)/
    if (process.env.UPDATE_README)
      writeFileSync(
        readme,
        text.replace(marked, (_, before, _old, after) => `${before}${transcript}\n${after}`),
      )
    else expect(normal(transcript)).toBe(normal(marked.exec(text)?.[2] ?? ''))
  }, 240_000)

  it('greets on a terminal, completes, explains, and leaves with Ctrl-D', async () => {
    const lobby = product.terminal('ssh', ['-t', ...product.sshOptions, `lobby@${SERVER_ADDRESS}`])
    await lobby.expect(/[>$»] ?$/)
    lobby.type('who\t\r')
    await lobby.expect(/SHA256:/)
    lobby.type('help\r')
    await lobby.expect(/untrash/)
    lobby.type('\x04')
    expect(await lobby.ended).toBe(0)
  })
})

describe('the machine', () => {
  it('has the kernel line, disk, network card and devices of the contract', async () => {
    const { stdout } = await inside('cat /proc/cmdline')
    expect(stdout).toMatch(
      /^console=hvc0 root=\/dev\/vda init=\/exe\/bin\/exe-init rw ip=10\.42\.\d+\.\d+:10\.42\.0\.1:10\.42\.0\.1:255\.255\.0\.0:demo:eth0:none:198\.51\.100\.7:203\.0\.113\.2:198\.51\.100\.7/,
    )
    const facts =
      await inside(`findmnt -no SOURCE,FSTYPE /; lsblk -ndo TYPE /dev/vda; ls /dev/vda?* 2>/dev/null; swapon --noheadings
      hostname; basename $(readlink /sys/class/net/eth0/device/driver)
      for d in /sys/bus/virtio/devices/*; do basename $(readlink $d/driver); done | sort -u | tr '\\n' ' '; uname -r`)
    expect(facts.stdout).toMatch(/^\/dev\/vda ext4\ndisk\ndemo\nvirtio_net\n/)
    for (const driver of ['virtio_balloon', 'virtio_blk', 'virtio_net', 'virtio_rng'])
      expect(facts.stdout).toContain(driver)
    expect(facts.stdout).toMatch(/6\.12\..*cloud-amd64/)
    expect(Number((await inside('df -B1 --output=size / | tail -1')).stdout)).toBeGreaterThan(19 * 2 ** 30)
  })

  it('runs systemd without a failed unit, with a user session of dev’s own and sudo', async () => {
    // `--wait` ends when the last unit has started; before there is a bus it cannot wait.
    const wait = 'until systemctl is-system-running --wait 2>/dev/null | grep -v "^$"; do sleep 0.5; done'
    const { stdout } = await product.ssh(
      [
        `demo@${SERVER_ADDRESS}`,
        `${wait}; systemctl --failed --no-legend --plain; systemctl --user is-system-running; sudo -n id -un; locale | grep LANG=; ps -o comm= 1`,
      ],
      { timeoutMs: 280_000 },
    )
    expect(stdout).toBe('running\nrunning\nroot\nLANG=C.UTF-8\nsystemd\n')
    // Long before that, SSH was ready.
    const finished = Number((await inside('date +%s -d "$(systemctl show -P FinishTimestamp)"')).stdout)
    const [row] = await product.sql()<{ ready: number }[]>`
      select extract(epoch from observed_ready_at)::float8 as ready from machines where name = 'demo'`
    expect(row?.ready).toBeLessThan(finished)
  })

  it('can run machines of its own, where the processor lets it', async () => {
    const { stdout } = await inside("grep -owEm1 'svm|vmx' /proc/cpuinfo || echo none")
    const [host] = await product.sql()<{ accelerator: string }[]>`select accelerator from hosts`
    // An emulated processor has AMD's extensions.
    if (host?.accelerator === 'tcg') expect(stdout).toBe('svm\n')
    if (stdout !== 'none\n')
      expect(
        (await inside('sudo modprobe -a kvm_amd kvm_intel 2>/dev/null; test -c /dev/kvm && echo kvm')).stdout,
      ).toBe('kvm\n')
  })

  it('shows the environment to commands, login shells, services and the setup script, whose end is told', async () => {
    const tricky = `--env PLAIN=1 --env 'QUOTED=a "b" c=d $HOME' --env UNICODE=é`
    const script = `--setup-script 'printenv QUOTED > made; id -un >> made; systemctl is-system-running >> made; exit 3'`
    const machine = '--image minimal --memory 512M --cpu 1 --disk 2G'
    const made = await product.lobby(`new other ${machine} ${tricky} ${script}`, { timeoutMs: 280_000 })
    expect(made, made.stderr).toMatchObject({ status: 1, stderr: expect.stringMatching(/ended with status 3/) })
    expect((await inside('cat made', 'other')).stdout).toMatch(/^a "b" c=d \$HOME\ndev\n(running|degraded)\n$/)
    const service = `until systemctl is-system-running 2>/dev/null | grep -q .; do sleep 0.2; done
      sudo systemd-run -q --wait --pipe sh -c 'printenv PLAIN QUOTED UNICODE'`
    const printed = `printenv PLAIN QUOTED UNICODE; bash -lc 'printenv QUOTED'; ${service}`
    const { stdout } = await product.ssh([`other@${SERVER_ADDRESS}`, printed], { timeoutMs: 280_000 })
    const wanted = '1\na "b" c=d $HOME\né\n'
    expect(stdout).toBe(`${wanted}a "b" c=d $HOME\n${wanted}`)
  })

  it('has what a developer expects on day one', async () => {
    const tools = 'git curl python3 gcc make tmux vim jq rg sqlite3 rsync docker node npm sudo'
    expect(
      (await inside(`for t in ${tools}; do command -v $t >/dev/null || echo missing $t; done; node --version`)).stdout,
    ).toMatch(/^v24\./)
  })

  it('runs a container of a local image', async () => {
    const { stdout, stderr } = await product.ssh(
      [
        `demo@${SERVER_ADDRESS}`,
        `tar -ch $(ldd /bin/bash | grep -o '/[^ ]*') /bin/bash 2>/dev/null | docker import - local >/dev/null && docker run --rm local /bin/bash -c 'echo from a container'`,
      ],
      { timeoutMs: 240_000 },
    )
    expect(stdout, stderr).toBe('from a container\n')
  }, 300_000)

  it('answers its metadata and follows a rename', async () => {
    const ask = 'curl -s -m 10 http://169.254.169.254/'
    const first = JSON.parse((await inside(ask)).stdout) as { name: string; source_ip: string }
    expect(first).toEqual({ name: 'demo', source_ip: expect.stringMatching(/^10\.42\./) })
    expect((await product.lobby('rename demo moved')).status).toBe(0)
    expect(JSON.parse((await inside(ask, 'moved')).stdout)).toMatchObject({ name: 'moved' })
    expect((await product.lobby('rename moved demo')).status).toBe(0)
  })

  it('holds terminals and processes that outlive whoever started them', async () => {
    expect(
      await inside('/exe/bin/exe-hold run work -- sh -c "echo begun; sleep 2; echo ended; exit 7" | head -1'),
    ).toMatchObject({
      stdout: 'begun\n',
    })
    expect(await inside('/exe/bin/exe-hold wait work; echo $?; /exe/bin/exe-hold logs work')).toMatchObject({
      stdout: '7\nbegun\nended\n',
    })
  })

  it('works with git and rsync from outside', async () => {
    const ssh = `ssh ${product.sshOptions.join(' ')}`
    await inside('git init -q --bare -b main repo.git')
    const script = `git init -q -b main tree && cd tree && echo hi > f && git add f && git -c user.name=s -c user.email=s@x commit -qm one &&
      git push -q demo@${SERVER_ADDRESS}:repo.git main && cd .. && git clone -q demo@${SERVER_ADDRESS}:repo.git copy && cat copy/f &&
      rsync -a -e '${ssh}' tree/ demo@${SERVER_ADDRESS}:synced/`
    const done = await product.outside('sh', ['-ec', script], { env: { GIT_SSH_COMMAND: ssh } })
    expect(done, done.stderr).toMatchObject({ status: 0, stdout: 'hi\n' })
    expect((await inside('cat synced/f')).stdout).toBe('hi\n')
  })
})

describe('what a machine serves', () => {
  it('is at its HTTPS address for whom it should be', async () => {
    await inside(
      'mkdir site && echo "from demo" > site/index.html; nohup python3 -m http.server -d site 8000 >/dev/null 2>&1 & echo $! > pid',
    )
    const url = `https://demo.${HOST}:8443/`
    const curl = (...parameters: string[]) =>
      product.outside('curl', [
        ...['-sS', '-m', '30', '--cacert', join(product.dataDirectory, 'ca.pem')],
        ...['--resolve', `demo.${HOST}:8443:${SERVER_ADDRESS}`, '--resolve', `demo.${HOST}:8000:${SERVER_ADDRESS}`],
        ...(parameters.at(-1)?.startsWith('https:') ? parameters : [...parameters, url]),
      ])
    const { token } = JSON.parse((await product.lobby('token new --machine demo --json')).stdout) as { token: string }
    const shown = () => curl('-H', `Authorization: Bearer ${token}`).then(({ stdout }) => stdout)
    await expect.poll(shown, { timeout: 60_000, interval: 500 }).toBe('from demo\n')
    const byNumber = await curl('-H', `Authorization: Bearer ${token}`, `https://demo.${HOST}:8000/`)
    expect(byNumber).toMatchObject({ stdout: 'from demo\n' })
    expect((await curl('-o', '/dev/null', '-w', '%{http_code}')).stdout).toMatch(/^(302|303|401)$/)
    expect(await product.lobby('share set-public demo')).toMatchObject({ status: 0 })
    await expect.poll(() => curl().then(({ stdout }) => stdout), { timeout: 10_000 }).toBe('from demo\n')
    expect(await product.lobby('share set-private demo')).toMatchObject({ status: 0 })
    await inside('kill $(cat pid)')
  })
})

describe('in a browser', () => {
  let browser: TestBrowser
  beforeAll(async () => {
    await startVite(product, 'demo')
    // The browser is of the outside world, and what DNS would say stands in its rules.
    const program = join(product.home, 'chromium')
    writeFileSync(program, `#!/bin/sh\nexec ip netns exec ${product.outsideNamespace} /usr/bin/chromium "$@"\n`)
    chmodSync(program, 0o755)
    browser = await startBrowser([`MAP ${HOST} ${SERVER_ADDRESS}`, `MAP *.${HOST} ${SERVER_ADDRESS}`], program)
  })
  afterAll(() => browser?.[Symbol.asyncDispose]())

  it('a link from the lobby opens a dev server, what is saved there shows without a reload, and there is a terminal', async () => {
    const page = await browser.open()
    page.setDefaultTimeout(120_000)
    const { stdout } = await product.lobby('browser --json')
    await page.goto((JSON.parse(stdout) as { url: string }).url)
    await page.getByRole('button', { name: 'Sign in' }).click()
    await page.getByRole('link', { name: 'demo', exact: true }).click()
    await page.getByRole('link', { name: `https://demo.${HOST}:8443`, exact: true }).click()
    const shows = (text: string) =>
      expect
        .poll(
          async () => {
            if (await page.getByText(/^(Nothing listens on|demo did not answer)/).count()) await page.reload()
            return await page.locator('h1').textContent()
          },
          { timeout: 400_000, interval: 500 },
        )
        .toBe(text)
    // An emulated machine beside others takes minutes to load a dev server.
    await shows('first')
    await page.evaluate('window.mark = 1')
    await inside(`sed -i s/first/second/ app/message.js`)
    await shows('second')
    expect(await page.evaluate('window.mark'), 'the page was not loaded again').toBe(1)

    await page.goto(`https://${HOST}:8443/terminal/demo`)
    const screen = () => page.locator('.xterm-rows').textContent()
    await expect.poll(screen, { timeout: 120_000, interval: 500 }).toMatch(/dev@demo/)
    await page.keyboard.type('echo "$(id -un) says $((6 * 7))"\n')
    await expect.poll(screen, { timeout: 120_000, interval: 500 }).toContain('dev says 42')
  })
})

describe('what a machine reaches', () => {
  const tries = (address: string, port: number) =>
    inside(`timeout 4 bash -c '</dev/tcp/${address}/${port}' 2>/dev/null && echo reached || echo not`)

  it('is the internet and the gateway’s SSH port', async () => {
    const served = product.outside('python3', [
      '-c',
      `import socket\ns=socket.create_server(("${INTERNET_ADDRESS}",8099))\nc,a=s.accept()\nprint(a[0])`,
    ])
    expect(
      (
        await inside(
          `for i in $(seq 100); do timeout 2 bash -c '</dev/tcp/${INTERNET_ADDRESS}/8099' 2>/dev/null && { echo reached; break; }; sleep 0.2; done`,
        )
      ).stdout,
    ).toBe('reached\n')
    expect((await served).stdout.trim(), 'masqueraded').toBe(SERVER_ADDRESS)
    expect((await tries(SERVER_ADDRESS, 2222)).stdout).toBe('reached\n')
  })

  it('is no other machine, no other service of the host and no private network', async () => {
    const { vms } = JSON.parse((await product.lobby('ls --json')).stdout) as { vms: { vm_name: string; ip: string }[] }
    const other = vms.find((vm) => vm.vm_name === 'other')?.ip ?? ''
    const onServer = (program: string, ...parameters: string[]) =>
      product.outside('ip', ['netns', 'exec', product.serverNamespace, program, ...parameters], { timeoutMs: 60_000 })
    const service = onServer(
      'python3',
      '-c',
      'import socket\ns=socket.create_server(("0.0.0.0",12001))\nprint(s.accept()[1][0])',
    )
    const closed = [
      [other, 22],
      ['10.42.0.1', METRICS_PORT],
      ['192.168.0.1', 80],
      [SERVER_ADDRESS, 12001],
      ['10.42.0.1', 12001],
    ] as const
    const answers = await Promise.all(closed.map(async ([address, port]) => (await tries(address, port)).stdout))
    expect(answers).toEqual(closed.map(() => 'not\n'))
    // The first that the service hears of is the server itself.
    const itself = 'for i in $(seq 50); do : 2>/dev/null </dev/tcp/127.0.0.1/12001 && exit; sleep 0.2; done; exit 1'
    expect(await onServer('bash', '-c', itself)).toMatchObject({ status: 0 })
    expect((await service).stdout).toBe('127.0.0.1\n')
  })
})

describe('programs', () => {
  it('make a machine with the published SDK, work in it and remove it', async () => {
    const { token } = JSON.parse((await product.lobby('token new --json')).stdout) as { token: string }
    const parts = ['new', 'visit', 'rm']
    const ran = await product.outside(
      testPython(),
      [join(CHECKOUT, 'test/clients/exedev_job.py'), `https://${HOST}:8443`, 'minimal', ...parts],
      {
        timeoutMs: 280_000,
        // No name server here, as above.
        env: {
          EXE_TOKEN: token,
          SSL_CERT_FILE: join(product.dataDirectory, 'ca.pem'),
          RESOLVE: `${HOST}=${SERVER_ADDRESS}`,
        },
      },
    )
    expect(ran, ran.stderr).toMatchObject({ status: 0, stdout: parts.map((part) => `${part}\n`).join('') })
  }, 300_000)
})

// Last: what comes after a restart of `base` waits for its boot.
describe('a restart', () => {
  it('keeps what was written through a restart', async () => {
    await inside('echo kept > here; sync')
    expect((await product.lobby('restart demo')).status).toBe(0)
    expect((await inside('cat here')).stdout).toBe('kept\n')
  })
})

/** What differs from run to run: times, addresses, kernel patch level. */
const normal = (text: string) =>
  text
    .replace(/\d+(\.\d+)? ?(ms|s|min)\b( ago)?/g, 'TIME')
    .replace(/10\.42\.\d+\.\d+/g, 'ADDRESS')
    .replace(/6\.12\.[\w.+-]+/g, 'KERNEL')
    .replace(/[ \t]+/g, ' ')
    .trim()
