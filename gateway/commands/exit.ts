import { defineCommand } from './command.ts'

export const exit = defineCommand({
  name: 'exit',
  aliases: ['logout', 'quit'],
  group: 'lobby',
  summary: 'leave the lobby; Ctrl-D does too',
  run: async () => ({ json: {}, text: '' }),
})
