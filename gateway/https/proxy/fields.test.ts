import { describe, expect, it } from 'vitest'
import { get, OK, rawOrigin, type WorldOptions, world } from '../testing/world.ts'

/** What the machine is sent for a request, through a proxy with these options. */
async function seenByMachine(request: string, options: Omit<WorldOptions, 'originPort'> = {}): Promise<string> {
  await using origin = await rawOrigin((wire) => wire.socket.write(OK))
  await using proxy = await world({ originPort: origin.port, ...options })
  const wire = await proxy.dial()
  await wire.send(request).until(/\r\n\r\nok$/)
  return origin.connections[0]?.text ?? ''
}

/** What a client gets when the machine answers with these bytes and, unless told otherwise, keeps the connection. */

describe('headers to the machine', () => {
  it('say who and from where, and a client’s own copies are dropped, also with _ or . for -', async () => {
    const text = await seenByMachine(
      get(
        '/',
        'X-Forwarded-For: 6.6.6.6',
        'X_Forwarded_For: 6.6.6.6',
        'X-Forwarded-Host: evil',
        'X-Forwarded-Port: 1',
        'Forwarded: for=6.6.6.6',
        'X-Real-IP: 6.6.6.6',
        'x-berth-user: evil',
        'X_Berth_User: evil',
        'X-Berth_Email: evil',
        'X-BERTH-ANYTHING: evil',
        'X-ExeDev-UserID: evil',
        'X_ExeDev_Email: evil',
        'X.Berth.User: evil',
        'X.ExeDev-Email: evil',
        "X-Berth~Token'Ctx: evil",
        'X.Forwarded.For: 6.6.6.6',
        'Content.Length: 5',
        'X-ExeDev-Token-Ctx: evil',
        'Content_Length: 5',
        'Transfer_Encoding: chunked',
      ),
      {
        access: {
          allow: true,
          by: 'credential',
          identity: { user: '12', email: 'a@example.com', tokenCtx: '{"n":1}' },
        },
      },
    )
    expect(text).not.toMatch(/evil|6\.6\.6\.6|Content.Length|Transfer_Encoding|Port: 1/i)
    for (const line of [
      'X-Forwarded-For: 127.0.0.1',
      'X-Forwarded-Proto: https',
      'X-Forwarded-Host: demo.example.test',
      'X-Berth-User: 12',
      'X-Berth-Email: a@example.com',
      'X-Berth-Token-Ctx: {"n":1}',
      'X-ExeDev-UserID: 12',
      'X-ExeDev-Email: a@example.com',
      'X-ExeDev-Token-Ctx: {"n":1}',
    ]) {
      expect(text).toContain(`\r\n${line}\r\n`)
    }
  })

  it('carry no identity for a visitor without one', async () => {
    expect(await seenByMachine(get('/', 'X-Berth-User: 1'))).not.toMatch(/berth|exedev/i)
  })

  it('lose the hop-by-hop ones and those that Connection names, but never what frames the message', async () => {
    const text = await seenByMachine(
      'POST / HTTP/1.1\r\nHost: demo.example.test\r\nConnection: keep-alive, X-Gone, Content-Length, Host, X-Berth-User\r\n' +
        'X-Gone: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\n' +
        'HTTP2-Settings: AAMAAABk\r\nUpgrade: h2c\r\nTE: trailers, deflate\r\nContent-Length: 2\r\nX-Kept: 1\r\n\r\nhi',
      { access: { allow: true, by: 'public', identity: { user: '3' } } },
    )
    expect(text).not.toMatch(/X-Gone|Keep-Alive|Proxy-|HTTP2|h2c|deflate/i)
    expect(text).toMatch(/\r\nX-Kept: 1\r\n/)
    expect(text).toMatch(/\r\nContent-Length: 2\r\n/)
    expect(text).toMatch(/\r\nX-Berth-User: 3\r\n/)
    expect(text).toMatch(/\r\nTE: trailers\r\nConnection: TE\r\n/)
    expect(text.endsWith('\r\n\r\nhi')).toBe(true)
  })

  it('lose the credential that let the request in and Berth’s own cookie; any other passes', async () => {
    const lines = ['Authorization: Bearer t', 'Cookie: a=1; __Host-berth=s; b=2']
    const stripped = await seenByMachine(get('/', ...lines), {
      access: { allow: true, by: 'credential', stripAuthorization: true },
    })
    expect(stripped).not.toMatch(/Authorization|__Host-berth/)
    expect(stripped).toMatch(/\r\nCookie: a=1; b=2\r\n/)
    expect(await seenByMachine(get('/', ...lines))).toMatch(/\r\nAuthorization: Bearer t\r\n/)
    expect(await seenByMachine(get('/', 'Cookie: __Host-berth_x=s'))).not.toMatch(/Cookie/)
  })

  it('an identity that would end its line lets nothing through', async () => {
    await using origin = await rawOrigin((wire) => wire.socket.write(OK))
    await using proxy = await world({
      originPort: origin.port,
      access: { allow: true, by: 'cookie', identity: { user: '1', email: 'a\r\nX-Evil: 1' } },
    })
    const wire = await proxy.dial()
    expect(await wire.send(get()).toEnd()).toMatch(/^HTTP\/1\.1 500 /)
    expect(origin.connections).toHaveLength(0)
  })

  it('range requests and encodings pass untouched', async () => {
    const seen = await seenByMachine(get('/', 'Range: bytes=2-5', 'Accept-Encoding: br, zstd', 'If-Range: "x"'))
    expect(seen).toMatch(/\r\nRange: bytes=2-5\r\nAccept-Encoding: br, zstd\r\nIf-Range: "x"\r\n/)
  })
})
