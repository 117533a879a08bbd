import { defineCommand } from './command.ts'
import { DOCS } from './docs.ts'
import { CommandError } from './error.ts'
import { nearest } from './nearest.ts'
import { definitions, wrap } from './text.ts'
import { sayList, shown } from './values.ts'

export const doc = defineCommand({
  name: 'doc',
  group: 'lobby',
  onMachines: true,
  summary: 'short pages on how things work here',
  arguments: { topic: { label: 'TOPIC', optional: true, complete: () => Object.keys(DOCS) } },
  async run({ app }, { args }) {
    const topics = Object.keys(DOCS)
    if (args.topic === undefined) {
      return {
        json: { topics },
        text: (view) =>
          definitions(
            topics.map((topic) => [topic, DOCS[topic]?.title ?? '']),
            view,
            0,
          ),
      }
    }
    const page = Object.hasOwn(DOCS, args.topic) ? DOCS[args.topic] : undefined
    if (!page) {
      const near = nearest(args.topic, topics)
      throw new CommandError('doc.not_found', 3, `no page on ${shown(args.topic)}`, {
        wayOn: near ? `did you mean ${near}` : `pages: ${sayList(topics, 20)}`,
      })
    }
    const text = page.text(app.settings)
    return {
      json: { topic: args.topic, title: page.title, text },
      text: (view) =>
        `${view.style.bold(page.title)}\n\n${text
          .split('\n')
          // Lines that begin with blanks can be typed, so they are left as they are.
          .flatMap((line) => (line.startsWith('  ') ? [line] : wrap(line, Math.min(80, view.columns))))
          .join('\n')}\n`,
    }
  },
})
