/** What a client of `POST /exec` is told when its line did not end well. */
import type { ServerResponse } from 'node:http'
import { EXIT } from '../../app.ts'
import type { CommandError } from '../../commands/error.ts'

/** Something else holds what was asked for. */
const CONFLICTS = new Set(['machine.name_taken', 'machine.overtaken'])

export function statusOf({ code, exit }: CommandError): number {
  if (code === 'auth.invalid') return 401
  if (code === 'token.not_allowed') return 403
  if (code === 'command.unknown') return 404
  if (code === 'internal') return 500
  if (CONFLICTS.has(code)) return 409
  if (exit === EXIT.usage) return 400
  return exit === EXIT.busy ? 503 : 422
}

/**
 * What went wrong, with the words that the published SDK looks for: it knows a missing machine, one that is off, and
 * one that may answer yet by their texts alone.
 */
export function textOf({ code, message, machineName }: CommandError): string {
  if (machineName === undefined) return message
  const vm = `VM ${JSON.stringify(machineName)}`
  switch (code) {
    case 'machine.not_found':
      return `${vm} not found`
    case 'machine.off':
    case 'machine.paused':
    case 'machine.failed':
      return `${vm} is not running: ${message}`
    case 'machine.unreachable':
    case 'machine.timeout':
      return `failed to connect to ${vm}: ${message}`
    default:
      return message
  }
}

/** Sends a JSON document. @returns its bytes */
export function sendDocument(
  response: ServerResponse,
  status: number,
  document: unknown,
  fields: Record<string, string | string[]> = {},
): number {
  const text = `${JSON.stringify(document)}\n`
  const bytes = Buffer.byteLength(text)
  response.writeHead(status, {
    'Content-Type': 'application/json',
    'Content-Length': bytes,
    'Cache-Control': 'no-store',
    'X-Content-Type-Options': 'nosniff',
    ...fields,
  })
  response.end(text)
  return bytes
}
