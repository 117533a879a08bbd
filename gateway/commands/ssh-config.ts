import { authorizedKeysForm } from '../accounts/public-key.ts'
import { defineCommand } from './command.ts'
import { sshPort } from './machine-document.ts'

export const sshConfig = defineCommand({
  name: 'ssh-config',
  group: 'you',
  summary: 'lines for ~/.ssh/config, so that ssh NAME.DOMAIN works everywhere',
  description:
    'Without a flag it prints what belongs into ~/.ssh/config, the host keys as comments. With --known-hosts it prints those alone, to append to ~/.ssh/known_hosts.',
  flags: { 'known-hosts': { type: 'boolean', summary: 'only the host keys' } },
  examples: ['ssh-config', 'ssh-config --known-hosts'],
  async run({ app, caller }, { flags }) {
    const { domain, machineDomain } = app.settings
    const port = sshPort(app.settings)
    const machines = await app.machines.list(caller)
    const loginUser = machines.find((machine) => machine.observedLoginUser)?.observedLoginUser ?? 'dev'
    const gatewayName = port === 22 ? domain : `[${domain}]:${port}`
    const knownHosts = [
      `${gatewayName} ${app.hostPublicKey.trim().split(/\s+/).slice(0, 2).join(' ')}`,
      ...machines.flatMap((machine) =>
        machine.observedHostKey
          ? [`${machine.name}.${machineDomain} ${authorizedKeysForm(machine.observedHostKey)}`]
          : [],
      ),
    ]
    const config = [
      'Host berth',
      `  HostName ${domain}`,
      `  Port ${port}`,
      '  User lobby',
      // Before the pattern, which it may match: ssh takes the first value it finds. The control host is no machine.
      ...(domain.endsWith(`.${machineDomain}`) ? [`Host ${domain}`, '  ProxyJump none', `  Port ${port}`] : []),
      `Host *.${machineDomain}`,
      `  User ${loginUser}`,
      `  ProxyJump lobby@${domain}${port === 22 ? '' : `:${port}`}`,
    ]
    const comments = ['# for ~/.ssh/known_hosts:', ...knownHosts.map((line) => `# ${line}`)]
    const lines = flags['known-hosts'] ? knownHosts : [...config, ...comments]
    return { json: { config: `${config.join('\n')}\n`, known_hosts: knownHosts }, text: `${lines.join('\n')}\n` }
  },
})
