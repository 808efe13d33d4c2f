// What one map holds: where the points lie, their colours, which are chosen, which tile is looked at. Views
// subscribe to it, so two views of one widget show one selection. Python knows the tiles; it is asked for what is seen.
import { Link } from '../annotator/link.js'
import { Grid } from './grid.js'
import { shuffled } from './paint.js'

const KEPT = 600  // pictures of tiles that stay in the browser

export class Session {
  constructor(model) {
    this.model = model
    this.listeners = new Set()
    this.link = new Link(model)
    this.link.ontrouble = () => this.tell('silence', true); this.link.onwell = () => this.tell('silence', false)
    this.colourings = new Map()  // column -> its codes, colours and names
    this.pictures = new Map()    // point -> picture and facts
    this.parts = new Map()       // what comes in pieces
    this.hidden = new Set()      // codes of the column shown
    this.hover = -1
    this.others = false
    model.on('msg:custom', (content, buffers) => this.hear(content, buffers ?? []))
    this.ask('hello')
  }

  subscribe(listener) { this.listeners.add(listener); return () => this.listeners.delete(listener) }
  tell(what, ...rest) { for (const listener of this.listeners) listener(what, ...rest) }
  ask(type, more = {}, buffers = []) { return this.link.send({ type, ...more }, buffers) }
  get ready() { return !!this.grid && !!this.colouring }

  // What Python says

  hear(message, buffers) {
    if (message.to && message.to !== this.link.client) return
    if (!this.facts && !['map', 'heard', 'say'].includes(message.type)) return  // meant for a page that was here before
    const bytes = buffers.map(b => b instanceof DataView ? new Uint8Array(b.buffer, b.byteOffset, b.byteLength) : new Uint8Array(b))
    switch (message.type) {
      case 'heard': this.link.answered(message.n); break
      case 'map': this.begin(message); break
      case 'xy': this.gather('xy', message, bytes[0], 8, whole => { this.xy = new Float32Array(whole.buffer); this.grid = new Grid(this.xy); this.order = shuffled(this.n); this.opened() }); break
      case 'column': this.gather(`column ${message.column}`, message, bytes[0], 2, whole => { this.colourings.set(message.column, { ...message, codes: new Uint16Array(whole.buffer) }); this.arrived(message.column) }); break
      case 'chosen': if (message.client !== this.link.client) this.adopt(unpack(bytes[0], this.n)); break
      case 'gallery': this.gallery = { ...message, url: this.renew('gallery', bytes[0]) }; this.tell('gallery'); break
      case 'focus': this.focus = message.point < 0 ? null : { ...message, picture: this.renew('focus', bytes[0]), url: this.renew('near', bytes[1]) }; this.others = message.others; this.tell('focus'); break
      case 'tile': this.arrive(message, bytes[0]); break
      case 'say': this.tell('say', message.text, message.level ?? 'info'); break
    }
  }

  begin(message) {
    this.facts = message; this.n = message.points; this.grid = this.colouring = null
    this.column = this.column && message.columns.some(([c]) => c === this.column) ? this.column : message.column
    this.colourings.clear(); this.hidden.clear(); this.forgetPictures()
    this.chosen = new Uint8Array(this.n); this.count = 0
    this.gallery = this.focus = null; this.others = message.others; this.hover = -1
    if (this.column !== message.column) this.ask('colour', { column: this.column })
  }

  // Pieces of an array, in order; `then` when the last is there.
  gather(key, { start, of }, bytes, size, then) {
    if (!start) this.parts.set(key, new Uint8Array(of * size))
    const whole = this.parts.get(key)
    if (!whole || whole.length !== of * size) return
    whole.set(bytes, start * size)
    if (start * size + bytes.length === whole.length) { this.parts.delete(key); then(whole) }
  }

  arrived(column) {
    if (column !== this.column) return
    const first = !this.colouring
    this.colouring = this.colourings.get(column)
    this.hidden.clear()
    if (!first) this.tell('colour')
    this.opened()
  }

  opened() { if (this.ready && this.grid !== this.told) { this.told = this.grid; this.tell('map') } }

  renew(name, bytes) {
    this.urls ??= {}
    if (this.urls[name]) URL.revokeObjectURL(this.urls[name])
    return this.urls[name] = bytes ? URL.createObjectURL(new Blob([bytes], { type: 'image/jpeg' })) : null
  }

  // Colours

  colour(column) {
    this.column = column
    if (this.colourings.has(column)) this.arrived(column); else this.ask('colour', { column })
  }

  // Hides or shows a category; `alone` shows it without all others, and a second time all again.
  toggle(code, alone = false) {
    const { hidden } = this, others = this.codes.filter(c => c !== code)
    if (alone) { const lone = !hidden.has(code) && others.every(c => hidden.has(c)); hidden.clear(); if (!lone) for (const c of others) hidden.add(c) }
    else if (!hidden.delete(code)) hidden.add(code)
    if (this.hover >= 0 && !this.visible(this.hover)) this.look(-1)
    this.tell('hidden')
  }

  showAll() { this.hidden.clear(); this.tell('hidden') }
  get codes() { const { names, colours } = this.colouring; return names.map((_, k) => colours.length - names.length + k) }  // of what has a name
  visible(i) { return !this.hidden.has(this.colouring.codes[i]) }

  // The selection: local at once, Python is told.

  select(points, { way = 'new', stay = false } = {}) {
    if (!this.ready) return
    if (way === 'new') this.chosen.fill(0)
    for (const i of points) this.chosen[i] = way === 'without' ? 0 : 1
    this.recount()
    this.ask('select', { stay }, [pack(this.chosen)])
  }

  adopt(chosen) { this.chosen = chosen; this.recount() }
  recount() { let n = 0; for (const c of this.chosen) n += c; this.count = n; this.tell('chosen') }
  clear() { if (this.count) this.select([]) }
  page(start) { this.ask('page', { start }) }
  sample() { this.ask('sample') }

  // One tile: looked at under the pointer, or gone to by a click.

  look(point) {
    if (point === this.hover) return
    this.hover = point
    this.tell('look')
    if (point >= 0 && !this.pictures.has(point)) this.fetch()
  }

  fetch() {  // one question at a time; the pointer has moved on before most answers come
    if (this.asked !== undefined && performance.now() - this.askedAt < 2000) return
    this.asked = this.hover; this.askedAt = performance.now()
    this.link.send({ type: 'look', point: this.hover })
  }

  arrive({ point, ...rest }, bytes) {
    if (this.pictures.size >= KEPT) { const [oldest, { url }] = this.pictures.entries().next().value; if (url) URL.revokeObjectURL(url); this.pictures.delete(oldest) }
    this.pictures.set(point, { ...rest, url: bytes ? URL.createObjectURL(new Blob([bytes], { type: 'image/jpeg' })) : null })
    this.asked = undefined
    if (point === this.hover) this.tell('look')
    else if (this.hover >= 0 && !this.pictures.has(this.hover)) this.fetch()
  }

  forgetPictures() { for (const { url } of this.pictures.values()) if (url) URL.revokeObjectURL(url); this.pictures.clear(); this.asked = undefined }

  go(point) { this.ask('focus', { point, open: true }) }
  fromOthers(value) { this.others = value; this.tell('near'); this.ask('others', { value }) }

  close() { this.link.close(); this.listeners.clear(); this.forgetPictures(); for (const url of Object.values(this.urls ?? {})) if (url) URL.revokeObjectURL(url) }
}

export const pack = marks => { const bits = new Uint8Array(marks.length + 7 >> 3); for (let i = 0; i < marks.length; i++) if (marks[i]) bits[i >> 3] |= 128 >> (i & 7); return bits }
const unpack = (bits, n) => Uint8Array.from({ length: n }, (_, i) => bits[i >> 3] >> (7 - (i & 7)) & 1)
