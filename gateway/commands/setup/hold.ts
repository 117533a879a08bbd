import { quoteWord } from '../words.ts'

/** The session holder on the tools disk (init/): processes it runs outlive their client, the connection and the gateway. */
export const HOLD = '/exe/bin/exe-hold'
/** The holder's name for the setup script's process. */
const SETUP_SESSION = 'setup'

/**
 * SSH answers before systemd has begun, so a script that runs at once finds no bus, no Docker, no service: it is begun when
 * systemd says that the start is over, well or not. One that never says so is not waited for longer than this; where
 * something else is the init, or nobody could be asked (systemctl asks by D-Bus, but for root), nothing is waited for.
 */
const START_LIMIT_SECONDS = 300
const UNTIL_STARTED = [
  'read -r init < /proc/1/comm',
  'until=0',
  `test "$init" != exe-init && { command -v systemctl && { test "$(id -u)" = 0 || ls /usr/bin/dbus-*; }; } > /dev/null 2>&1 && until=$(($(date +%s) + ${START_LIMIT_SECONDS}))`,
  'while test "$(date +%s)" -lt $until',
  'do case $(systemctl is-system-running 2> /dev/null) in running|degraded|maintenance|stopping|offline) break;; esac',
  'sleep 1',
  'done',
].join('; ')

/**
 * Runs the script as the session's program: by its own interpreter when it begins with `#!`, else by sh. The file goes
 * when it has ended. Nothing beyond what POSIX promises of sh is used, for images that have little more.
 */
const RUN_FILE = `${UNTIL_STARTED}; read -r first < "$0"; case $first in "#!"*) "$0";; *) /bin/sh "$0";; esac; status=$?; rm -f "$0"; exit $status`

/** What both commands print first when the machine has the script: from here on there is only its end to wait for. */
export const HELD = 'held'

/** Takes the script on stdin, starts it in the holder and stays until it has ended, with its exit status. */
export function startSetupCommand(): string {
  const steps = [
    'umask 077',
    'cd "$HOME" 2>/dev/null || cd /',
    'file=$(mktemp /tmp/setup.XXXXXX) || exit 125',
    'cat > "$file" || exit 125',
    'chmod u+x "$file"',
    `echo ${HELD}`,
    `exec ${HOLD} run ${SETUP_SESSION} -- /bin/sh -c "$0" "$file"`,
  ].join('; ')
  return `exec /bin/sh -c ${quoteWord(steps)} ${quoteWord(RUN_FILE)}`
}

/** What `resumeSetupCommand` prints when the holder has no such session. */
export const NO_SESSION = 'no session'

/**
 * Waits for a script that was started earlier and exits as it did, or prints `NO_SESSION`: a status alone would not
 * tell, because the script may exit with any.
 */
export function resumeSetupCommand(): string {
  const steps = [
    `${HOLD} status ${SETUP_SESSION} > /dev/null 2>&1 || { echo ${NO_SESSION}; exit 0; }`,
    `echo ${HELD}`,
    `exec ${HOLD} wait ${SETUP_SESSION}`,
  ].join('; ')
  return `exec /bin/sh -c ${quoteWord(steps)}`
}

/** What a person types in the machine to read what the script said. */
export const SETUP_LOG_COMMAND = `${HOLD} logs ${SETUP_SESSION}`
