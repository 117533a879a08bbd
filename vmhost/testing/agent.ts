import { createServer, type Server } from 'node:net'
import type { Duplex } from 'node:stream'
import { number, text } from '../guest/fields.ts'
import { encodeFrame, type Field, FrameReader } from '../guest/frames.ts'
import { fieldTag, messageType } from '../guest/messages.ts'

/** The agent: answers hellos with the stage it is at, reports with its numbers, and remembers who it was told it is. */
export class Agent {
  stage = 'tools'
  hostname: string | undefined
  /** it was told last, when it was told any */
  address: string | undefined
  /** how often it was told who it is */
  told = 0
  answers = true
  /** it says nothing of itself but this */
  refusesReports: string | undefined
  /** so many tellings of keys alone it does not hear */
  deafToKeys = 0
  memory = { totalBytes: 0, availableBytes: 0 }
  /** of the boot that it shows; undefined: its kernel's own */
  bootId: string | undefined
  /** once it knows who it is, it is at this stage */
  reachesWhenTold: string | undefined
  /** its root filesystem */
  frozen = false
  /** processors that its kernel uses */
  cpus = 1
  /** how often it made its filesystem as large as its disk */
  grown = 0
  /** of its filesystem then */
  filesystemBytes = 0
  /** is called when it is told to switch itself off */
  onPowerOff: (() => void) | undefined
  readonly identified = Promise.withResolvers<void>()
  readonly #server: Server | undefined
  #socket: Duplex | undefined

  /** @param path where it is to be had; left out: whoever connects is handed to `serve` */
  constructor(path?: string) {
    if (path !== undefined) this.#server = createServer((socket) => this.serve(socket)).listen(path)
  }

  serve(socket: Duplex): void {
    this.#socket = socket
    const reader = new FrameReader()
    socket.on('error', () => {})
    socket.on('data', (chunk: Buffer) => {
      for (const { type, id, fields } of reader.push(chunk)) this.#answer(type, id, fields)
    })
  }

  reaches(stage: string): void {
    this.stage = stage
    this.#send(messageType.stage, 0, [text(fieldTag.stage, stage)])
  }

  gives(reason: string): void {
    this.#send(messageType.fatal, 0, [text(fieldTag.message, reason)])
  }

  /** As after a reset: nothing is known, and the host is told to begin again. */
  boots(): void {
    this.hostname = undefined
    this.stage = 'kernel'
    this.#send(messageType.born, 0, [])
  }

  close(): void {
    this.#server?.close()
    this.#socket?.destroy()
  }

  #answer(type: number, id: number, fields: Field[]): void {
    const answer: Field[] = []
    if (type === messageType.hello) {
      const identified = this.hostname === undefined ? 0 : 1
      const nonce = fields.find(({ tag }) => tag === fieldTag.nonce)?.bytes ?? Buffer.alloc(0)
      answer.push(
        { tag: fieldTag.nonce, bytes: nonce },
        text(fieldTag.stage, this.stage),
        number(fieldTag.identified, identified),
      )
    }
    if (type === messageType.identify) {
      this.told++
      this.hostname = fields.find(({ tag }) => tag === fieldTag.hostname)?.bytes.toString()
      this.address = fields.find(({ tag }) => tag === fieldTag.address)?.bytes.toString() ?? this.address
      this.bootId = fields.find(({ tag }) => tag === fieldTag.bootId)?.bytes.toString() ?? this.bootId
      this.identified.resolve()
      if (!this.answers) return
    }
    if (type === messageType.keys && this.deafToKeys-- > 0) return
    if (type === messageType.report && this.refusesReports !== undefined) {
      this.#send(messageType.error, id, [text(fieldTag.message, this.refusesReports)])
      return
    }
    if (type === messageType.report)
      answer.push(
        number(fieldTag.txBytes, 4711),
        number(fieldTag.listeningPort, 8000),
        number(fieldTag.cpuBusyMs, 1500),
        number(fieldTag.memoryTotalBytes, this.memory.totalBytes),
        number(fieldTag.memoryAvailableBytes, this.memory.availableBytes),
      )
    if (type === messageType.grow) {
      this.grown++
      answer.push(number(fieldTag.sizeBytes, this.filesystemBytes))
    }
    if (type === messageType.online) answer.push(number(fieldTag.cpuCount, this.cpus))
    if (type === messageType.freeze) this.frozen = true
    if (type === messageType.thaw) {
      answer.push(number(fieldTag.deadlineMs, this.frozen ? 1000 : 0))
      this.frozen = false
    }
    this.#send(messageType.ok, id, answer)
    if (type === messageType.identify && this.reachesWhenTold !== undefined) this.reaches(this.reachesWhenTold)
    if (type === messageType.powerOff) this.onPowerOff?.()
  }

  #send(type: number, id: number, fields: Field[]): void {
    this.#socket?.write(encodeFrame({ type, id, fields }))
  }
}
