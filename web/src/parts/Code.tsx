/**
 * What one could type, in the monospaced face. A browser breaks a line behind any hyphen, and half of `--spend` reads as
 * another word: where it does not fit, a word goes to the next line, and is cut only when it is longer than one, between
 * the parts of an address where it has any.
 */
export function Code({ text }: { text: string }) {
  return (
    <code>
      <span>
        {text.split(/(?<= )/).map((part, index) => {
          const word = part.trimEnd()
          const isWhole = word.includes('-') || word.length > SHORT_MOST
          return isWhole ? [<Whole key={index} word={word} />, part.slice(word.length)] : part
        })}
      </span>
    </code>
  )
}

/** Characters that every line has room for. */
const SHORT_MOST = 20
/** `https://demo--3000.example:8443/`: behind a slash and an at sign, before a dot and a colon. */
const PARTS = /(?<=[/@])(?=[^/])|(?=[.:]\w)/

function Whole({ word }: { word: string }) {
  return (
    <span class="word">
      {word
        .split(PARTS)
        .map((part, index) => [
          index > 0 && <wbr />,
          part.length > SHORT_MOST ? part : <span class="part">{part}</span>,
        ])}
    </span>
  )
}
