import { sayBytes, sayCount, sayMicros, sayMoney } from './words.ts'

/** An amount in a list, to the cent. @param micros millionths of a dollar */
export function Money({ micros, exact = false }: { micros: number | bigint; exact?: boolean }) {
  return (
    <span class="figure" title={exact ? undefined : sayMicros(micros)}>
      {exact ? sayMicros(micros) : sayMoney(micros)}
    </span>
  )
}

/** @param kind memory and disks in powers of 1024, transfer in powers of 1000 */
export function Bytes({ bytes, kind = 'memory' }: { bytes: number; kind?: 'memory' | 'transfer' }) {
  return (
    <span class="figure" title={`${sayCount(bytes)} bytes`}>
      {sayBytes(bytes, kind)}
    </span>
  )
}
