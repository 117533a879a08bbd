import { execFileSync } from 'node:child_process'
import { beforeAll, describe, expect, test } from 'vitest'
import { buildInit } from './build.ts'

let pure = ''
beforeAll(() => {
  pure = buildInit('pure')
}, 120_000)

const lines = (args: string[], input: string[]) =>
  execFileSync(pure, args, { input: `${input.join('\n')}\n`, encoding: 'utf8' })
    .trimEnd()
    .split('\n')

describe('ip=', () => {
  const meaning = (value: string) => lines(['ip'], [value])[0]

  test('has every field of the kernel’s format', () => {
    expect(meaning('10.42.0.7:10.42.0.2:10.42.0.1:255.255.0.0:demo:eth0:none:1.1.1.1:8.8.8.8:pool.ntp.org')).toBe(
      'static client=10.42.0.7 server=10.42.0.2 gateway=10.42.0.1 netmask=255.255.0.0 hostname=demo device=eth0 dns=1.1.1.1,8.8.8.8 ntp=pool.ntp.org',
    )
  })

  test('has empty fields and ends early', () => {
    expect(meaning('10.1.2.3')).toMatch(/^static client=10.1.2.3 .*netmask=255.0.0.0 hostname= device= dns=0.0.0.0/)
    expect(meaning('192.168.1.2::192.168.1.1:255.255.255.255::eth0:off')).toMatch(
      /netmask=255.255.255.255 .*device=eth0/,
    )
    expect(meaning('172.16.0.9::::::off::9.9.9.9:')).toMatch(/netmask=255.255.0.0 .*dns=0.0.0.0,9.9.9.9/)
    expect(meaning('off')).toMatch(/^off /)
    expect(meaning('none')).toMatch(/^off /)
    expect(meaning(':::::eth0:none')).toMatch(/^off /)
  })

  test.each([
    ['dhcp', 'autoconfiguration'],
    ['', 'autoconfiguration'],
    ['on', 'autoconfiguration'],
    ['10.0.0.1::::::dhcp', 'autoconfiguration'],
    ['10.0.0.1::::::magic', 'no such protocol: "magic"'],
    ['10.0.0.256', 'the client is no address: "10.0.0.256"'],
    ['10.0.0.1 ', 'no address'],
    ['10.0.0.0001', 'no address'],
    ['+1.2.3.4', 'no address'],
    ['10.0.0.1:x', 'the server is no address: "x"'],
    ['10.0.0.1:::255.0.255.0', 'the netmask has holes'],
    ['10.0.0.1::::a b', 'no host name'],
    ['10.0.0.1:::::a-name-that-is-too-long', 'no network device'],
    ['10.0.0.1:::::::8.8.8', 'name server'],
    ['::10.0.0.1:255.0.0.0', 'no client address'],
    ['1.1.1.1:2:3:4:5:6:7:8:9:10:11', 'more than ten fields'],
  ])('refuses %j with the reason', (value, reason) => {
    expect(meaning(value)).toMatch(/^refused ip=: /)
    expect(meaning(value)).toContain(reason)
  })
})

test('the last of a parameter on the kernel’s command line counts, and quotes hold spaces together', () => {
  expect(
    lines(
      ['cmdline', 'ip'],
      ['a=b ip=1 x.ip=2 ip=3 zip=4', 'ip="a b" c', '"ip=a b" c', 'ipx=1 ip', 'ip= x', 'a="ip=1 x"'],
    ),
  ).toEqual(['3', 'a b', 'a b', '(none)', '', '(none)'])
})

test('variables are quoted for sshd and systemd, and what would become a line of its own is refused', () => {
  expect(lines(['environment'], ['A=two "words" \\ 100% $HOME é'])).toEqual([
    ' "A=two \\"words\\" \\\\ 100% $HOME é"',
    ' "A=two \\"words\\" \\\\ 100%% $HOME é"',
  ])
  expect(lines(['environment'], ['A', '=x', '1A=x', 'A B=x', 'A=\u0007', 'A=\r'])).toEqual(Array(6).fill('refused'))
})

test('systemd and exe-init are asked to shut down by signal, any other init through its own program', () => {
  const asked = [
    ['/usr/lib/systemd/systemd systemd', 'signal'],
    // Upgraded meanwhile; and in its first moments, under the name it was called by
    ['/usr/lib/systemd/systemd(deleted) systemd', 'signal'],
    ['/usr/lib/systemd/systemd init', 'signal'],
    ['/exe/bin/exe-init exe-init', 'signal'],
    ['/bin/busybox init', 'program'],
    ['/usr/sbin/openrc-init openrc-init', 'program'],
    ['/usr/bin/dash init', 'program'],
  ] as const
  const answers = lines(
    ['signals'],
    asked.map(([init]) => init),
  )
  expect(answers).toEqual(asked.map(([, answer]) => answer))
})

test('what a terminal would answer is taken out of a replay, what it shows stays', () => {
  const shown = (text: string) => execFileSync(pure, ['replay'], { input: text, encoding: 'latin1' })
  const kept =
    '\x1b[1;31mred\x1b[0m \x1b]0;title\x07\x1b]2;t\x1b\\ \x1b[?1049h\x1b[2J\x1b[10;20H\x1b[2t\x1b(B\x1b7 \xc3\xa9\r\n'
  expect(shown(kept)).toBe(kept)
  const asked = [
    '[c',
    '[0c',
    '[>c',
    '[6n',
    '[5n',
    '[?6n',
    '[18t',
    '[>q',
    '[>0q',
    '[?u',
    '[?2026$p',
    'Z',
    ']11;?\x07',
    ']10;?\x1b\\',
  ]
  for (const question of asked) expect([question, shown(`a\x1b${question}b`)]).toEqual([question, 'ab'])
  expect(shown('a\x05b\x1bP+q544e\x1b\\c\x1b_Gi=1,a=q;AAAA\x1b\\d')).toBe('abcd')
})

test('random and damaged input harms none of them', () => {
  const seed = process.env.FUZZ_SEED ?? '20250601'
  expect(execFileSync(pure, ['fuzz', seed, process.env.FUZZ_ROUNDS ?? '40000'], { encoding: 'utf8' })).toBe('done\n')
})
