/** What lets one in: SSH keys, tokens of programs, and the browsers that are signed in. */
import { Frame } from '../parts/Frame.tsx'
import { Browsers } from './keys/browsers.tsx'
import { SshKeys } from './keys/ssh-keys.tsx'
import { Tokens } from './keys/tokens.tsx'
import './keys/keys.css'

export function Page() {
  return (
    <Frame title="Keys and tokens">
      <SshKeys />
      <Tokens />
      <Browsers />
    </Frame>
  )
}
