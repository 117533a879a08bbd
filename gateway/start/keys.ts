import ssh2 from 'ssh2'
import type { Sql } from '../../migrations/connect.ts'
import { loadOrCreateSecret } from '../secrets.ts'

/** A private key in OpenSSH's format and its public part as `ssh-ed25519 AAAA…`. */
export type StoredKey = { privateKey: string; publicKey: string }

/**
 * The installation's own SSH keys: the host key that people's known_hosts remember, and the one that machines accept.
 * Made once; every gateway of the installation uses the same. The public parts go into `settings`, where a vmhost
 * reads the one it tells its machines to accept.
 */
export async function loadSshKeys(sql: Sql, secretKey: Buffer): Promise<{ host: StoredKey; gateway: StoredKey }> {
  const host = await load(sql, secretKey, 'ssh_host_key')
  const gateway = await load(sql, secretKey, 'gateway_key')
  await publish(sql, 'ssh_host_public_key', host.publicKey)
  await publish(sql, 'gateway_public_key', gateway.publicKey)
  return { host, gateway }
}

async function load(sql: Sql, secretKey: Buffer, name: string): Promise<StoredKey> {
  const privateKey = (await loadOrCreateSecret(sql, secretKey, name, makeKey)).toString()
  const parsed = ssh2.utils.parseKey(privateKey)
  if (parsed instanceof Error) throw new Error(`The secret ${name} holds no SSH key`, { cause: parsed })
  return { privateKey, publicKey: `${parsed.type} ${parsed.getPublicSSH().toString('base64')}` }
}

/** About one in 300 keys that ssh2 1.17 generates is one it cannot read itself (a leading zero is lost): those are made again. */
function makeKey(): Buffer {
  for (;;) {
    const { private: made } = ssh2.utils.generateKeyPairSync('ed25519', { comment: 'berth' })
    if (!(ssh2.utils.parseKey(made) instanceof Error)) return Buffer.from(made)
  }
}

/** A setting that others read. Written only when it differs: each write is news to every process. */
export async function publish(sql: Sql, key: string, value: string): Promise<void> {
  await sql`
    insert into settings (key, value) values (${key}, ${value})
    on conflict (key) do update set value = excluded.value where settings.value <> excluded.value`
}
