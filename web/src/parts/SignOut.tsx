import { leave } from '../api/exec.ts'
import { CommandButton, type CommandButtonProps } from './CommandButton.tsx'

/** Signs every browser of the account out, this one too. */
export function SignOutEverywhere({ kind }: Pick<CommandButtonProps, 'kind'>) {
  return (
    <CommandButton
      words={['browser', '--sign-out-everywhere']}
      title="Sign out everywhere"
      confirm="everywhere"
      warning="Every browser of yours is signed out, this one too, and what your machines show asks them to sign in again. SSH goes on."
      kind={kind ?? 'plain'}
      onDone={leave}
    >
      Sign out everywhere
    </CommandButton>
  )
}
