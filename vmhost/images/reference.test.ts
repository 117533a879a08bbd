import { expect, test } from 'vitest'
import { ImageError } from './errors.ts'
import { isPrivate } from './reach.ts'
import { isLoopback, parseReference } from './reference.ts'

const digest = `sha256:${'0123456789abcdef'.repeat(4)}`

test.each([
  ['ubuntu', 'docker.io/library/ubuntu:latest'],
  ['ubuntu:24.04', 'docker.io/library/ubuntu:24.04'],
  ['docker.io/ubuntu', 'docker.io/library/ubuntu:latest'],
  ['index.docker.io/ubuntu', 'docker.io/library/ubuntu:latest'],
  ['grafana/grafana', 'docker.io/grafana/grafana:latest'],
  ['registry.example.com/team/app:v1.2', 'registry.example.com/team/app:v1.2'],
  ['registry.example.com:5000/app', 'registry.example.com:5000/app:latest'],
  ['localhost/app', 'localhost/app:latest'],
  ['localhost:5000/a/b/c', 'localhost:5000/a/b/c:latest'],
  ['[::1]:5000/app', '[::1]:5000/app:latest'],
  ['10.1.2.3/app', '10.1.2.3/app:latest'],
  [`app@${digest}`, `docker.io/library/app@${digest}`],
  [`host.example/app:v1@${digest}`, `host.example/app:v1@${digest}`],
  ['a__b/c-d.e--f', 'docker.io/a__b/c-d.e--f:latest'],
])('%s is %s', (text, spelled) => {
  expect(parseReference(text).text).toBe(spelled)
})

test('a registry is asked where its API is, and credentials are kept under its name', () => {
  expect(parseReference('ubuntu')).toMatchObject({ registry: 'docker.io', repository: 'library/ubuntu', tag: 'latest' })
  expect(parseReference('ubuntu').apiHost).not.toBe('docker.io')
  expect(parseReference('host.example:1/a')).toMatchObject({ registry: 'host.example:1', apiHost: 'host.example:1' })
})

test.each([
  '',
  'Ubuntu',
  'a b',
  '../x',
  'a/../b',
  'a//b',
  '/a',
  'a/',
  'a:',
  'a:b:c',
  'a@sha256:12',
  `a@md5:${'0'.repeat(32)}`,
  'a_/b',
  'ho_st.example/a',
  'host.example:99999/a',
  '[::1/a',
  '[fe80::1%eth0]/a',
  'http://host.example/a',
  'a\nb',
  'a'.repeat(300),
])('%j is refused in a sentence', (text) => {
  expect(() => parseReference(text)).toThrow(ImageError)
  expect(() => parseReference(text)).toThrow(/ is no image: /)
})

test('the server itself is known by all its names', () => {
  expect(
    ['localhost', 'localhost:5000', 'a.localhost:1', '127.0.0.1', '127.9.9.9:80', '[::1]:5000'].every(isLoopback),
  ).toBe(true)
  expect(['localhost.example.com', '10.0.0.1', '[::2]'].some(isLoopback)).toBe(false)
})

test('addresses that are nobody else’s to reach are known', () => {
  for (const address of [
    '10.0.0.1',
    '127.0.0.1',
    '169.254.169.254',
    '192.168.1.1',
    '172.31.0.1',
    '100.64.0.1',
    '0.0.0.0',
  ])
    expect(isPrivate(address), address).toBe(true)
  for (const address of [
    '::1',
    '::',
    'fe80::1',
    'fd00::1',
    '::ffff:10.0.0.1',
    '64:ff9b::a00:1',
    'ff02::1',
    '2002:a00:1::',
  ])
    expect(isPrivate(address), address).toBe(true)
  for (const address of ['203.0.113.5', '8.8.8.8', '2606:4700::1']) expect(isPrivate(address), address).toBe(false)
})
