/** A browser that listens to `GET /events`, as a test sees it. */
import { type IncomingHttpHeaders, type IncomingMessage, request as requestPlain } from 'node:http'
import { request as requestTls } from 'node:https'

export type ServerEvent = { name: string; id: string; said: Record<string, unknown> }

export type Listener = {
  status: number
  headers: IncomingHttpHeaders
  /** all that came so far */
  events: ServerEvent[]
  /** waits for one that fits, among those that came, too */
  until(fits: (event: ServerEvent) => boolean): Promise<ServerEvent>
  /** stops reading, and reads again */
  pause(): void
  resume(): void
  /** when the gateway ended it */
  ended: Promise<void>
  leave(): void
}

/** @param url `https://localhost:<port>/events`, or plain */
export function listen(url: string, headers: Record<string, string>): Promise<Listener> {
  return new Promise((resolve, reject) => {
    const fields = { agent: false, headers: { 'sec-fetch-site': 'same-origin', ...headers } } as const
    const hear = (response: IncomingMessage) => {
      const events: ServerEvent[] = []
      const waiting = new Set<() => void>()
      const ended = Promise.withResolvers<void>()
      let text = ''
      response.setEncoding('utf8')
      response.on('data', (chunk: string) => {
        text += chunk
        const parts = text.split('\n\n')
        text = parts.pop() ?? ''
        for (const part of parts) {
          const field = (name: string) => new RegExp(`^${name}: (.*)$`, 'm').exec(part)?.[1] ?? ''
          if (field('event') !== '') {
            events.push({ name: field('event'), id: field('id'), said: JSON.parse(field('data')) })
          }
        }
        for (const look of [...waiting]) look()
      })
      response.once('close', () => ended.resolve())
      response.on('error', () => {})
      resolve({
        status: response.statusCode ?? 0,
        headers: response.headers,
        events,
        until: (fits) =>
          new Promise((found) => {
            const look = () => {
              const event = events.find(fits)
              if (!event) return
              waiting.delete(look)
              found(event)
            }
            waiting.add(look)
            look()
          }),
        pause: () => response.pause(),
        resume: () => response.resume(),
        ended: ended.promise,
        leave: () => request.destroy(),
      })
    }
    const request = url.startsWith('https:')
      ? requestTls(url, { rejectUnauthorized: false, ...fields }, hear)
      : requestPlain(url, fields, hear)
    request.once('error', reject)
    request.end()
  })
}
