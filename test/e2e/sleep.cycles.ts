import { type Product, SERVER_ADDRESS } from './product.ts'
import { Sleeper, type Slept } from './sleeper.ts'

/** A machine of a product, reached through its gateway. */
export async function findSleeper(product: Product, name: string): Promise<Sleeper> {
  const [found] = await product.sql()<{ id: number }[]>`select id from machines where name = ${name}`
  if (!found) throw new Error(`no machine called ${name}`)
  const { id } = found
  return new Sleeper({
    id,
    async want(state) {
      await product.sql('berth_gateway')`update machines set desired_state = ${state} where id = ${id}`
    },
    async seen() {
      const [row] = await product.sql()<Slept[]>`
        select observed_state, observed_reason, observed_asleep_because, observed_saved_bytes,
          observed_ready_at is not null as ready from machines where id = ${id}`
      if (!row) throw new Error('no machine')
      return row
    },
    ssh: (command) => product.ssh([`${name}@${SERVER_ADDRESS}`, command]),
  })
}
