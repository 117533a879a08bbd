import { usageError } from './error.ts'
import { shown } from './values.ts'

const MAX_TAGS = 20
const MAX_COMMENT = 500

/** Tags are words of a-z, 0-9 and `._-`, at most 40 characters and 20 a machine. */
export function validTags(tags: readonly string[]): string[] {
  for (const tag of tags) {
    if (!/^[a-z0-9][a-z0-9._-]{0,39}$/.test(tag)) {
      throw usageError(`a tag has a-z, 0-9 and ._- inside, at most 40 characters, and ${shown(tag)} does not`)
    }
  }
  const unique = [...new Set(tags)].sort()
  if (unique.length > MAX_TAGS) throw usageError(`a machine has at most ${MAX_TAGS} tags`)
  return unique
}

/** One line of text. */
export function validComment(text: string, most = MAX_COMMENT): string {
  const line = text.trim()
  if (line.length > most)
    throw usageError(`a comment here has at most ${most} characters, and this one has ${line.length}`)
  if (/\p{Cc}/u.test(line)) throw usageError('a comment is one line of text')
  return line
}
