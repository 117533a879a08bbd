import { expect, test } from 'vitest'
import { portUrl, waysTo } from './addresses.ts'
import type { MachineDocument } from './documents.ts'

const machine = {
  vm_name: 'demo',
  ssh_dest: 'demo@berth.example',
  ssh_host: 'berth.example',
  ssh_port: 22,
  login_user: 'dev',
  https_url: 'https://demo.berth.example',
} as MachineDocument

test('ways to a machine are what one types, with a port only where it is not the usual one', () => {
  expect(waysTo(machine).map(({ text }) => text)).toEqual([
    'ssh demo@berth.example',
    'ssh -J berth.example dev@demo',
    'scp FILE demo@berth.example:',
    'https://demo.berth.example',
  ])
  const other = { ...machine, ssh_port: 2222 }
  expect(waysTo(other, [{ https_url: 'https://www.shop.example' }]).map(({ text }) => text)).toEqual([
    'ssh -p 2222 demo@berth.example',
    'ssh -J berth.example:2222 dev@demo',
    'scp -P 2222 FILE demo@berth.example:',
    'https://demo.berth.example',
    'https://www.shop.example',
  ])
})

test('a port is at a host name of its own', () => {
  expect(portUrl(machine, 5173)).toBe('https://demo--5173.berth.example')
  expect(portUrl({ vm_name: 'demo', https_url: 'https://demo.localhost:8443' }, 3000)).toBe(
    'https://demo--3000.localhost:8443',
  )
})
