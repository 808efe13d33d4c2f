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

// Every message bears a number and is waited for, so that silence is seen. Steps are kept until Python has them on the disk.
export class Link {
  constructor(model) {
    this.model = model
    this.client = Math.random().toString(36).slice(2, 10)
    this.n = 0
    this.waiting = new Map()  // number -> { since, message, buffers, kept }
    this.why = ''             // what Python gave as its reason not to save the first step that waits
    this.ontrouble = () => {}; this.onwell = () => {}
    this.watch = setInterval(() => this.check(), 1000)
  }

  get unsaved() { return [...this.waiting.values()].filter(w => w.kept).length }

  send(content, buffers = [], kept = false) {
    const n = ++this.n, message = { ...content, client: this.client, n }
    this.waiting.set(n, { since: Date.now(), message, buffers, kept })
    this.post(message, buffers)
    return n
  }

  post(message, buffers) {
    const size = buffers.reduce((a, b) => a + b.byteLength, 0)
    if (size <= CHUNK) { this.hand(message, buffers.map(b => b.slice().buffer)); return }
    const whole = new Uint8Array(size)
    let at = 0
    for (const b of buffers) { whole.set(b, at); at += b.byteLength }
    const of = Math.ceil(size / CHUNK), sizes = buffers.map(b => b.byteLength)
    for (let i = 0; i < of; i++) {
      const part = whole.slice(i * CHUNK, (i + 1) * CHUNK)
      this.hand({ type: 'chunk', client: this.client, n: message.n, i, of, crc: crc32(part), ...(i ? {} : { message, sizes }) }, [part.buffer])
    }
  }

  hand(message, buffers) {  // where the way to Python is gone, that is trouble at once
    const gone = () => this.trouble(true)
    try { Promise.resolve(this.model.send(message, undefined, buffers)).catch(gone) } catch { gone() }
  }

  trouble(now) {
    if (!now && !this.waiting.size) return
    this.ill = true
    this.ontrouble(this.unsaved, this.why)
  }

  check() { if (this.ill || [...this.waiting.values()].some(w => Date.now() - w.since > PATIENCE)) this.trouble() }

  answered(n) {
    this.waiting.delete(n)
    if (!this.unsaved) this.why = ''
    if (this.ill && !this.waiting.size) { this.ill = false; this.onwell() }
  }

  // Python could not do it: a step goes on waiting, a question is over. Returns whether it was a step.
  refused(n, why) {
    if (!this.waiting.get(n)?.kept) { this.answered(n); return false }
    this.why ||= why
    this.trouble()
    return true
  }

  // Lets go of what waits; returns how many steps were not saved.
  forget() { const lost = this.unsaved; this.waiting.clear(); this.why = ''; this.ill = false; return lost }

  // Every step that is not confirmed, in its order; what Python has already it only confirms.
  again() {
    this.why = ''
    for (const [n, w] of [...this.waiting].sort((a, b) => a[0] - b[0])) {
      if (!w.kept) { this.waiting.delete(n); continue }  // a question may be out of date
      w.since = Date.now()
      this.post(w.message, w.buffers)
    }
  }

  close() { clearInterval(this.watch) }
}
