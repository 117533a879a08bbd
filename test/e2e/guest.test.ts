import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { INTERNET_ADDRESS, OUTSIDE_ADDRESS, type Product, SERVER_ADDRESS, startProduct } from './product.ts'

/** What a user finds inside a machine made of the base image, and what they must not find. */
let product: Product
const inside = (command: string, machine = 'demo') => product.ssh([`${machine}@${SERVER_ADDRESS}`, command])

beforeAll(async () => {
  product = await startProduct()
  const tricky = `--env PLAIN=1 --env 'QUOTED=a "b" c=d $HOME' --env UNICODE=é`
  const made = await Promise.all([
    product.lobby(`new demo --memory 1G --disk 6G ${tricky}`, { timeoutMs: 240_000 }),
    product.lobby('new other --image minimal --memory 512M --cpu 1 --disk 2G', { timeoutMs: 240_000 }),
  ])
  for (const one of made) expect(one, one.stderr).toMatchObject({ status: 0 })
})
afterAll(() => product?.[Symbol.asyncDispose]())

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
  })

  it('has grown its disk to what was asked for and keeps what was written through a restart', async () => {
    expect(Number((await inside('df -B1 --output=size / | tail -1')).stdout)).toBeGreaterThan(5.5 * 2 ** 30)
    await inside('echo kept > here; sync')
    expect((await product.lobby('restart demo')).status).toBe(0)
    expect((await inside('cat here')).stdout).toBe('kept\n')
  })

  it('runs systemd without a failed unit, with a user session of dev’s own and sudo', async () => {
    const { stdout } =
      await inside(`for i in $(seq 60); do s=$(systemctl is-system-running); test "$s" = running -o "$s" = degraded && break; sleep 1; done
      echo $s; systemctl --failed --no-legend --plain; systemctl --user is-system-running; sudo -n id -un; locale | grep LANG=; ps -o comm= 1`)
    expect(stdout).toBe('running\nrunning\nroot\nLANG=C.UTF-8\nsystemd\n')
  })

  it('shows the environment to commands, login shells and services', async () => {
    const { stdout } = await inside(`printenv PLAIN QUOTED UNICODE; bash -lc 'printenv QUOTED'
      sudo systemd-run -q --wait --pipe sh -c 'printenv PLAIN QUOTED UNICODE'`)
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

  it('works with git and rsync from outside', async () => {
    const ssh = `ssh ${product.sshOptions.join(' ')}`
    await inside('git init -q --bare repo.git')
    const script = `git init -q -b main tree && cd tree && echo hi > f && git add f && git -c user.name=s -c user.email=s@x commit -qm one &&
      git push -q demo@${SERVER_ADDRESS}:repo.git main && cd .. && git clone -q demo@${SERVER_ADDRESS}:repo.git copy && cat copy/f &&
      rsync -a -e '${ssh}' tree/ demo@${SERVER_ADDRESS}:synced/`
    const done = await product.outside('sh', ['-ec', script], { env: { GIT_SSH_COMMAND: ssh } })
    expect(done, done.stderr).toMatchObject({ status: 0, stdout: 'hi\n' })
    expect((await inside('cat synced/f')).stdout).toBe('hi\n')
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
          `for i in $(seq 20); do timeout 2 bash -c '</dev/tcp/${INTERNET_ADDRESS}/8099' 2>/dev/null && { echo reached; break; }; sleep 0.2; done`,
        )
      ).stdout,
    ).toBe('reached\n')
    expect((await served).stdout.trim(), 'masqueraded').toBe(SERVER_ADDRESS)
    expect((await tries(SERVER_ADDRESS, 2222)).stdout).toBe('reached\n')
  })

  it('is no other machine, no other service of the host and no private network', async () => {
    const { vms } = JSON.parse((await product.lobby('ls --json')).stdout) as { vms: { vm_name: string; ip: string }[] }
    const other = vms.find((vm) => vm.vm_name === 'other')?.ip ?? ''
    expect((await tries(other, 22)).stdout, 'another machine').toBe('not\n')
    expect((await tries('10.42.0.1', 9464)).stdout, 'the metrics').toBe('not\n')
    expect((await tries('192.168.0.1', 80)).stdout, 'a private network').toBe('not\n')
    const service = product.outside('ip', [
      'netns',
      'exec',
      product.serverNamespace,
      'timeout',
      '15',
      'python3',
      '-c',
      'import socket\ns=socket.create_server(("0.0.0.0",7001))\ns.accept()\nprint("reached")',
    ])
    for (const address of [SERVER_ADDRESS, '10.42.0.1']) expect((await tries(address, 7001)).stdout).toBe('not\n')
    expect((await service).stdout).toBe('')
    expect(OUTSIDE_ADDRESS).toBeTruthy()
  })
})
