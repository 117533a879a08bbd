/** What is typed into the form of a new machine, as a command. */

export type Wish = {
  name: string
  image: string
  cpus: string
  memory: string
  disk: string
  sleepAfter: string
  tags: string
  comment: string
  env: string
  script: string
}

export function nothingTyped(): Wish {
  return {
    name: '',
    image: '',
    cpus: '',
    memory: '',
    disk: '',
    sleepAfter: '',
    tags: '',
    comment: '',
    env: '',
    script: '',
  }
}

/** Only what was typed is said: the rest is as the account has it. */
export function newWords(wish: Wish): string[] {
  const flag = (name: string, value: string) => (value.trim() === '' ? [] : [`--${name}=${value.trim()}`])
  return [
    'new',
    ...(wish.name.trim() === '' ? [] : [wish.name.trim()]),
    ...flag('image', wish.image),
    ...flag('cpu', wish.cpus),
    ...flag('memory', withUnit(wish.memory)),
    ...flag('disk', withUnit(wish.disk)),
    ...flag('sleep-after', wish.sleepAfter),
    ...wish.tags.split(/[\s,]+/).flatMap((tag) => flag('tag', tag)),
    ...flag('comment', wish.comment),
    ...wish.env.split('\n').flatMap((line) => (line.trim() === '' ? [] : [`--env=${line.trimStart()}`])),
    ...(wish.script.trim() === '' ? [] : [`--setup-script=${wish.script}`]),
  ]
}

/** A bare number is GiB. */
function withUnit(size: string): string {
  return /^\d+(\.\d+)?$/.test(size.trim()) ? `${size.trim()}G` : size
}
