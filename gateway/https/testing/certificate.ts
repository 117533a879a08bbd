import { execFileSync } from 'node:child_process'

/** Makes a self-signed P-256 certificate for `names` (`DNS:example.test`, `IP:127.0.0.1`) with the real openssl. */
export function makeCertificate(names: readonly string[], files: { cert: string; key: string }): void {
  const options = '-x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test'.split(' ')
  const out = ['-addext', `subjectAltName=${names.join(',')}`, '-keyout', files.key, '-out', files.cert]
  execFileSync('openssl', ['req', ...options, ...out], { stdio: 'ignore' })
}
