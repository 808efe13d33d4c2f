// Messages to Python. What is large goes in chunks: a message over 10 MiB closes the socket without a word.

export const CHUNK = 4 << 20
const PATIENCE = 4000  // ms without an answer before the user is told

let table
export function crc32(bytes) {
  table ??= Uint32Array.from({ length: 256 }, (_, n) => { for (let k = 0; k < 8; k++) n = n & 1 ? 0xEDB88320 ^ (n >>> 1) : n >>> 1; return n >>> 0 })
  let c = 0xFFFFFFFF
  for (let i = 0; i < bytes.length; i++) c = table[(c ^ bytes[i]) & 255] ^ (c >>> 8)
  return (c ^ 0xFFFFFFFF) >>> 0
}

export async function inflate(view) {
  const stream = new Blob([view]).stream().pipeThrough(new DecompressionStream('deflate'))
  return new Uint8Array(await new Response(stream).arrayBuffer())
}

export class Link {
  constructor(model) {
    this.model = model
    this.client = Math.random().toString(36).slice(2, 10)
    this.n = 0
    this.waiting = new Map()  // number -> [when sent, what]
    this.onsilence = () => {}
    this.watch = setInterval(() => this.check(), 1000)
  }

  // Sends with a number; edits are waited for, so that silence is seen.
  send(content, buffers = [], awaited = false) {
    const n = ++this.n, message = { ...content, client: this.client, n }
    if (awaited) this.waiting.set(n, [Date.now(), message, buffers])
    this.post(message, buffers)
    return n
  }

  post(message, buffers) {
    const size = buffers.reduce((a, b) => a + b.byteLength, 0)
    if (size <= CHUNK) { this.model.send(message, undefined, buffers.map(b => b.slice().buffer)); return }
    const whole = new Uint8Array(size)
    let at = 0
    for (const b of buffers) { whole.set(b, at); at += b.byteLength }
    const of = Math.ceil(size / CHUNK), sizes = buffers.map(b => b.byteLength)
    for (let i = 0; i < of; i++) {
      const part = whole.slice(i * CHUNK, (i + 1) * CHUNK)
      this.model.send({ type: 'chunk', client: this.client, n: message.n, i, of, crc: crc32(part), ...(i ? {} : { message, sizes }) }, undefined, [part.buffer])
    }
  }

  answered(n) { this.waiting.delete(n); if (!this.waiting.size) this.onsilence(0) }

  check() {
    const late = [...this.waiting.values()].filter(([when]) => Date.now() - when > PATIENCE).length
    if (late) this.onsilence(this.waiting.size)
  }

  forget() { this.waiting.clear(); this.onsilence(0) }

  // Everything that is not confirmed, in its order; what Python has already it only confirms.
  again() { for (const [n, [, message, buffers]] of [...this.waiting].sort((a, b) => a[0] - b[0])) { this.waiting.set(n, [Date.now(), message, buffers]); this.post(message, buffers) } }

  close() { clearInterval(this.watch) }
}
