import { hostname } from 'node:os'
import { z } from 'zod'
import type { Sql } from '../../migrations/connect.ts'
import type { PublicPort } from '../network/types.ts'

/** Where the gateway on this server writes down which ports it has bound. */
export const portsSetting = `gateway_ports@${hostname()}`

const portsSchema = z.array(
  z.object({ protocol: z.enum(['tcp', 'udp']), port: z.number(), address: z.string().optional() }),
)

/**
 * Which of the gateway's ports machines may reach now: those of the settings that it says it has. A port that another
 * program was quicker to take is a service of the host like any other; and a gateway that was taken over, which writes
 * what is read here, can open no port beyond the settings.
 * @param allowed ports of the settings
 */
export async function readOpenPorts(sql: Sql, allowed: readonly PublicPort[]): Promise<PublicPort[]> {
  const [found] = await sql<{ value: string }[]>`select value from settings where key = ${portsSetting}`
  const { data: bound = [] } = portsSchema.safeParse(parseJson(found?.value ?? '[]'))
  return allowed.filter(({ protocol, port, address }) =>
    bound.some((one) => one.protocol === protocol && one.port === port && one.address === address),
  )
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
