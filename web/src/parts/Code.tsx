/**
 * What one could type, in the monospaced face. A browser breaks a line behind any hyphen, and half of `--spend` reads as
 * another word: where it does not fit, a word goes to the next line, and is cut only when it is longer than one.
 */
export function Code({ text }: { text: string }) {
  return (
    <code>
      <span>
        {text.split(/(?<= )/).map((part, index) => {
          const word = part.trimEnd()
          return word.includes('-') ? [<Whole key={index} word={word} />, part.slice(word.length)] : part
        })}
      </span>
    </code>
  )
}

const Whole = ({ word }: { word: string }) => <span class="word">{word}</span>
