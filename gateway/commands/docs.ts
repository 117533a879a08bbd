import type { Settings } from '../settings.ts'
import { httpsUrl, lobbyLine, sshLine, sshPort } from './machine-document.ts'

function controlOrigin({ domain, https }: Settings): string {
  const port = https[0]?.port ?? 443
  return `https://${domain}${port === 443 ? '' : `:${port}`}`
}

type Page = { title: string; text: (settings: Settings) => string }

/** The pages of `doc`. A line that begins with two blanks can be typed as it stands. */
export const DOCS: Record<string, Page> = {
  start: {
    title: 'the first machine',
    text: (settings) =>
      [
        'Make one, then go there:',
        `  ${lobbyLine(settings, 'new demo')}`,
        `  ${sshLine(settings, 'demo')}`,
        '',
        'It is a Linux machine with systemd and a disk that lasts. You are the user dev, and sudo asks for nothing. What it listens on stays in it until you forward it or share it.',
      ].join('\n'),
  },
  ssh: {
    title: 'where ssh goes',
    text: (settings) =>
      [
        "The user name says where: a machine's name goes to that machine, lobby to this lobby.",
        `  ${sshLine(settings, 'demo')}`,
        `  ${sshLine(settings, 'root+demo')}`,
        '',
        'The name that your ssh sends by itself leads to the lobby too, once it is recorded: as the user part of a key comment, at sign-up, or after you have used the lobby by it on a terminal. whoami lists these names. Any other name gets no further than a sentence, so that a slip of the fingers never runs a command of the lobby.',
        '',
        'scp, sftp, rsync, git, -L, -R, -D, agent and X11 forwarding and editors over SSH work as with any server. End to end, past the gateway:',
        `  ssh -J ${settings.domain}${sshPort(settings) === 22 ? '' : `:${sshPort(settings)}`} dev@demo`,
        '',
        'ssh-config prints lines for ~/.ssh/config that make this shorter.',
      ].join('\n'),
  },
  https: {
    title: 'pages over HTTPS',
    text: (settings) =>
      [
        'What listens on port 8000 of demo is shown at',
        `  ${httpsUrl(settings, 'demo')}`,
        '',
        'A server in the machine must listen on all addresses (0.0.0.0), not on 127.0.0.1 alone. Another port:',
        `  ${lobbyLine(settings, 'port demo 5173')}`,
        'Each port from 3000 to 9999 also has an address of its own:',
        `  ${httpsUrl(settings, 'demo--5173')}`,
        ...(settings.ports ? [`  https://demo.${settings.machineDomain}:5173/`] : []),
        '',
        'Pages are private. To sign your browser in, open the link that this prints:',
        `  ${lobbyLine(settings, 'browser')}`,
        'To let others see them:',
        `  ${lobbyLine(settings, 'share add demo ada@example.com')}`,
        `  ${lobbyLine(settings, 'share add-link demo --expires 7d')}`,
        `  ${lobbyLine(settings, 'share set-public demo')}`,
        '',
        'Programs send a token, see token new, or one made with your SSH key alone. The machine is told who visits: X-Berth-User, X-Berth-Email.',
        '',
        'A terminal in the browser, whose sessions go on when it is closed:',
        `  ${controlOrigin(settings)}/terminal/demo`,
        '',
        'Under a domain of your own; it says which record to set:',
        `  ${lobbyLine(settings, 'domain add demo www.example.com')}`,
        ...(settings.acme === undefined
          ? [
              '',
              `Certificates are of Berth's own authority until a browser trusts it: its root is at ${settings.dataDirectory}/ca.pem on the server.`,
            ]
          : []),
      ].join('\n'),
  },
  api: {
    title: 'commands over HTTPS',
    text: (settings) =>
      [
        'The body is one line, up to 64 KiB, the answer its document, as --json shows it:',
        `  curl -u :$TOKEN -d ls ${controlOrigin(settings)}/exec`,
        'The token is from token new, or made with an SSH key of the account as for pages, for the namespace',
        `  v0@${settings.domain}`,
        '',
        'What goes wrong is {"error","code"}, with "way_on" where there is one: 400 not understood, 401 no good token, 403 not this token, 404 no such command, 409 something else holds it, 413 too long, 422 it failed, 429 too many, 503 busy or no room, 504 not done after 30 s. A command that waits for a machine answers after 20 s with the machine as it is by then. One on several machines is answered with 200, and with "errors", by name, of those it could not be done to.',
        '',
        'ssh NAME CMD streams: with application/x-ndjson in Accept lines of {"stdout"}, {"stderr"} in base64 and a last {"exit_code"} or {"error"}; otherwise text, with the exit status in the trailer X-Exe-Exit. It may take as long as it likes, and ends when the request is closed. In --setup-script a backslash is written twice.',
        '',
        'At /exec?follow any other command does so too: lines of {"progress"}, {"remark"} and {"text"}, which logs -f prints, and a last {"result"} or {"error","code"}. Then it may take as long as it likes, and new returns when SSH works.',
        '',
        'The Python package exedev works with it: exedev.Client(token, base_url=..).',
      ].join('\n'),
  },
  states: {
    title: 'the states of a machine',
    text: () =>
      [
        'creating: its server makes its disk and boots it, or has it go on from a template of its image, which has booted already.',
        'running: it answers.',
        'asleep: all it had in memory lies on the disk of its server; whatever comes for it wakes it.',
        'paused: asleep until resume, whatever comes.',
        'stopped: off, until start.',
        'trashed: off and without a name; untrash brings it back within 7 days.',
        'failed: the reason is in ls -l and logs; restart tries again, rm gives up.',
      ].join('\n'),
  },
  sleep: {
    title: 'machines that sleep',
    text: (settings) =>
      [
        'A machine that sleeps takes disk and nothing else, and is back with every program as it was. An SSH session, a jump, a request for its page, and a key typed in a session that is still open wake it; whoever comes is held until it answers.',
        `  ${lobbyLine(settings, 'sleep demo')}`,
        `  ${lobbyLine(settings, 'wake demo')}`,
        '',
        'By itself it sleeps when it was idle for as long as you say, for one machine or for all that have no time of their own:',
        `  ${lobbyLine(settings, 'sleep-after demo 30m')}`,
        `  ${lobbyLine(settings, 'defaults write sleep-after 30m')}`,
        '',
        'It is not idle while a session, a request or a WebSocket carried something in the last 10 minutes, a program started over SSH runs, its processors or its network were busy in the last minute, or it is held:',
        `  ${lobbyLine(settings, 'hold demo --for 8h')}`,
        `  ${lobbyLine(settings, 'why demo')}`,
        '',
        'Open sessions, forwards and WebSockets live through a sleep. The keepalives of your ssh are answered here and wake nothing, except through ssh -J, where all that your ssh sends is for the machine.',
        '',
        'pause is a sleep that only resume ends. A server short of memory puts the machines to sleep that were idle longest, whatever their time; why and audit say so.',
        '',
        'A machine that its server cannot restore, after an update of QEMU that was taken back, a start without KVM or for want of memory, sleeps on with all its memory, and whatever comes for it has that tried again; restart gives it up and starts it from its disk. Only memory that is missing or damaged is given up without being asked, and the machine says so.',
      ].join('\n'),
  },
  images: {
    title: 'what machines are made from',
    text: (settings) =>
      [
        'base is Debian for developers, minimal little more than systemd. Any container image does as well:',
        `  ${lobbyLine(settings, 'new web --image nginx:stable')}`,
        `  ${lobbyLine(settings, 'new api --image registry.example.com/team/api:v2')}`,
        '',
        'Its variables are those of every session, and what it exposes is what its page shows: port 80, else the lowest from 1024 on. You log in as the user it runs as if that one has a shell, else as root; the label berth.login-user names another, berth.port another port. An image without an init runs its own program, started again when it fails; its output is in logs. --command none leaves it out.',
        '',
        'Without a registry in its name an image is from docker.io. For a registry that wants credentials, or is in a private network, the operator lists it in registries.json in the data directory, which is as docker login writes it; what is listed there is for every account.',
      ].join('\n'),
  },
  copies: {
    title: 'checkpoints and copies',
    text: (settings) =>
      [
        'A checkpoint is a machine as it was in one moment: its disk, and what it had in memory where it ran or slept. It is taken in seconds, during which a machine that runs stands still, and takes what it does not share with its machine.',
        `  ${lobbyLine(settings, `"checkpoint demo 'before the upgrade'"`)}`,
        `  ${lobbyLine(settings, 'checkpoints demo')}`,
        '',
        'restore goes back to it, with every program as it was then, and keeps what was before as a checkpoint too; with --as it makes another machine of it.',
        `  ${lobbyLine(settings, 'restore demo 3')}`,
        `  ${lobbyLine(settings, 'restore demo 3 --as demo-before')}`,
        '',
        'cp makes another machine that is as this one in this moment, and goes on with all that runs in it:',
        `  ${lobbyLine(settings, 'cp demo experiment')}`,
        '',
        'A copy has a name, address, host key and machine id of its own, and is private. Connections to others stay with the machine; what the copy still has open of them ends. Both share their disks until one of them writes.',
        '',
        'A machine has at most 50 checkpoints, and takes them with it when it is gone. An upgrade of the hypervisor may leave the memory in a checkpoint unreadable: what is restored of it then boots from its disk, and says so.',
      ].join('\n'),
  },
  billing: {
    title: 'what machines cost',
    text: (settings) =>
      [
        'Counted are the vCPUs and the memory of a machine while it runs, its disk always, what its checkpoints alone hold, and the bytes that leave it. What sleeps, is off or has failed is disk alone; what lies in the trash is nothing. Months and days are those of UTC.',
        `  ${lobbyLine(settings, 'billing usage')}`,
        `  ${lobbyLine(settings, 'billing usage --range 7d --by machine')}`,
        `  ${lobbyLine(settings, 'billing rates')}`,
        '',
        'On plan house nothing is charged, and these show what it would be. On others a month becomes an invoice two hours after it has ended: a line for each kind and rate, exact to the millionth of a dollar, paid in cents. What came to light later is on the next one. Each line names the machines and days that it is the sum of, so that it can be computed again.',
        `  ${lobbyLine(settings, 'billing invoices')}`,
        `  ${lobbyLine(settings, 'billing invoices 12 --csv')}`,
        'Invoices that print are at /invoices in the browser.',
        '',
        'A limit tells you at 80 and at 100 % of it, by mail too. With --hard machines that run are paused there, with all that runs in them, and nothing wakes or starts one until the month is over or the limit is higher; nothing is deleted, and disks go on costing. It acts within seven minutes of what is used; on plan house, where nothing is spent, never.',
        `  ${lobbyLine(settings, 'billing limit 50 --hard')}`,
        '',
        'Plans and rates change from a day to come on. Whoever is to pay otherwise by it is told when that is decided: by mail, where the lobby begins, and in the browser.',
        `  ${lobbyLine(settings, 'billing notices')}`,
      ].join('\n'),
  },
  names: {
    title: 'names of machines',
    text: () =>
      [
        'A name has 1 to 40 of a-z, 0-9 and single hyphens inside, and starts with a letter. It is unique in this installation. rm and rename free it at once.',
        '',
        'Names that ssh sends by itself, such as root or your own user name, are never those of machines.',
      ].join('\n'),
  },
  setup: {
    title: 'setup scripts and variables',
    text: (settings) =>
      [
        'A setup script runs once, as the login user, when the machine has started for the first time. It goes on when you leave; new reports how it ended. When the machine boots anew it ends, and is not run again.',
        `  ${lobbyLine(settings, 'new ci --setup-script - < setup.sh')}`,
        '',
        'Variables are seen by every session and service of the machine:',
        `  ${lobbyLine(settings, 'new api --env PORT=8000')}`,
        '',
        'Both are kept in the database of this installation: a script until it has ended, variables as long as the machine. Its operator and its backups can read them; a password that nobody else may see belongs into a file in the machine.',
      ].join('\n'),
  },
  scripts: {
    title: 'for scripts',
    text: (settings) =>
      [
        'Every command takes --json and prints one document; nothing asks without a terminal. Exit status: 0 done, 1 failed, 2 not understood, 3 not found, 4 not allowed, 5 busy or no room. Errors go to stderr, with --json they are {"error","code"} on stdout, with "way_on" where there is one.',
        `  ${lobbyLine(settings, 'ls --json')}`,
        '',
        'Words are quoted as for a shell. Your own shell takes one layer of quotes, so a text with blanks wants two:',
        `  ${lobbyLine(settings, `"comment demo 'for Tuesday'"`)}`,
      ].join('\n'),
  },
}
