/** Commands as lists of words, and as one types them. */

/** What a POSIX shell, and the lobby, takes as it is. */
const PLAIN = /^[A-Za-z0-9_@%+=:,./-]+$/

/** One line of the lobby, each word quoted where it has to be. */
export function quoted(words: readonly string[]): string {
  return words.map((word) => (PLAIN.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(' ')
}

/**
 * The same behind `ssh host`, from one's own shell: ssh hands the lobby its words with blanks between them, so what has
 * to be quoted there is quoted once more.
 * @param lobby `ssh -p 2222 host`
 */
export function typed(lobby: string, words: readonly string[]): string {
  const line = quoted(words)
  return `${lobby} ${words.every((word) => PLAIN.test(word)) ? line : quoted([line])}`
}
