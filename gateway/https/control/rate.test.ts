import { expect, it } from 'vitest'
import { Rate } from './rate.ts'

it('attempts count by IPv4 address, and by the /64 that one customer of IPv6 has', () => {
  const rate = new Rate(2)
  expect(['192.0.2.1', '192.0.2.1', '192.0.2.2', '192.0.2.1'].map((one) => rate.exceeded(one))).toEqual([
    false,
    false,
    false,
    true,
  ])
  const six = ['2001:db8::1', '2001:db8:0:0:1::', '2001:db8::2:3:4:5', '2001:db8:0:1::1']
  expect(six.map((one) => rate.exceeded(one))).toEqual([false, false, true, false])
})
