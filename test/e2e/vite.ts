/** A project with Vite in a machine, as a developer has one; its packages come from this checkout, for want of a registry. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { CHECKOUT, type Product, SERVER_ADDRESS } from './product.ts'

const MODULES = join(CHECKOUT, 'node_modules')

const FILES = {
  'index.html': '<!doctype html><title>app</title><h1></h1><script type="module" src="/main.js"></script>',
  'message.js': "export const message = 'first'\n",
  'main.js': `import { message } from './message.js'
const show = (text) => { document.querySelector('h1').textContent = text }
show(message)
import.meta.hot.accept('./message.js', (changed) => show(changed.message))
`,
  // Vite answers to names that it knows; this one is Berth's to choose.
  'vite.config.js': 'export default { server: { host: true, port: 8000, strictPort: true, allowedHosts: true } }\n',
}

/** Makes the project `app` in the machine's home and starts its dev server on port 8000. */
export async function startVite(product: Product, machine: string): Promise<void> {
  const ssh = `ssh ${product.sshOptions.join(' ')} ${machine}@${SERVER_ADDRESS}`
  const copied = await product.outside('sh', [
    '-c',
    `tar -C ${MODULES} -cz ${closure('vite').join(' ')} | ${ssh} 'mkdir -p app/node_modules && tar -xz -C app/node_modules'`,
  ])
  if (copied.status !== 0) throw new Error(copied.stderr)
  const writing = Object.entries(FILES).map(([name, text]) => `cat > app/${name} <<'END'\n${text}\nEND\n`)
  const started = await product.ssh([
    `${machine}@${SERVER_ADDRESS}`,
    `${writing.join('')}/exe/bin/exe-hold run vite -- sh -c 'cd app && exec node node_modules/vite/bin/vite.js' > vite.log 2>&1 < /dev/null &`,
  ])
  if (started.status !== 0) throw new Error(started.stderr)
}

/** A package and all that it needs, as far as it is installed. */
function closure(name: string, found = new Set<string>()): string[] {
  const file = join(MODULES, name, 'package.json')
  if (found.has(name) || !existsSync(file)) return [...found]
  found.add(name)
  const { dependencies = {}, optionalDependencies = {} } = JSON.parse(readFileSync(file, 'utf8')) as {
    dependencies?: object
    optionalDependencies?: object
  }
  for (const next of Object.keys({ ...dependencies, ...optionalDependencies })) closure(next, found)
  return [...found]
}
