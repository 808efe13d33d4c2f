// What one annotator widget holds: the label map, the proposal, marks, history. Views subscribe to it, so two
// views of one widget show one state. Everything is drawn at once and confirmed by Python afterwards.
import { LabelMask, NOTHING, Region, boxOf, unpack } from './mask.js'
import { Link, inflate } from './link.js'
import { Preview } from './preview.js'

const MARKS = { point: 'points', line: 'lines' }

export class Session {
  constructor(model) {
    this.model = model
    this.listeners = new Set()
    this.link = new Link(model)
    this.link.ontrouble = (unsaved, why) => this.tell('trouble', unsaved, why)
    this.link.onwell = () => this.tell('well')
    this.images = new Map()  // number of a tile's request -> [resolve, reject]
    this.locked = new Set()
    this.opacity = 0.45
    this.hidden = false
    this.previewing = false
    this.cls = 1
    this.tool = 'brush'
    this.size = 12  // of the brush, radius in screen pixels
    this.tolerance = 2.5
    this.sinceEdit = performance.now()
    this.ear = (content, buffers) => this.hear(content, buffers ?? [])
    model.on('msg:custom', this.ear)
    this.link.send({ type: 'hello' })
  }

  subscribe(listener) { this.listeners.add(listener); return () => this.listeners.delete(listener) }
  tell(what, ...rest) { for (const listener of this.listeners) listener(what, ...rest) }
  get ready() { return !!this.mask }
  get writable() { return this.ready && !this.roi.readonly }
  choose(facts) { Object.assign(this, facts); this.tell('chosen') }  // tool, class, brush ...: one choice for all views

  // What Python says

  async hear(message, buffers) {
    const bytes = buffers.map(b => b instanceof DataView ? new Uint8Array(b.buffer, b.byteOffset, b.byteLength) : new Uint8Array(b))
    if (message.type === 'tile') { this.settle(message, bytes[0]); return }
    if (message.to && message.to !== this.link.client) return
    if (message.type !== 'roi') await this.opening  // what follows a ROI waits until it is unpacked
    const own = message.client === this.link.client
    if (own && message.type === 'failed') { if (this.link.refused(message.n, message.text)) return } else if (own && message.n) this.link.answered(message.n)
    const patches = (message.patches ?? []).map((p, i) => ({ ...p, bits: bytes[i] }))
    switch (message.type) {
      case 'roi': await (this.opening = this.open(message, bytes)); break
      case 'edit': if (!own && message.kind !== 'reject') this.carryOut(this.entry({ ...message, patches })); break
      case 'undo': case 'redo': if (!own && !this.step(message.type)) this.ask('hello'); break
      case 'failed': this.tell('say', message.text, 'error'); break
      case 'proposal': this.propose(patches, message); break
      case 'points': this.suggested = message.points; this.tell('marks'); this.tell('say', message.text, 'info'); break
      case 'tokens': this.preview = new Preview(message, bytes[0]); break
      case 'readout': this.readout = message.rows; this.tell('readout'); break
      case 'go': this.tell('go', message.box); break
      case 'say': this.tell('say', message.text, message.level ?? 'info'); break
    }
  }

  async open(message, bytes) {
    const serial = this.opened = (this.opened ?? 0) + 1, { width, height } = message.roi, same = this.roi?.opening === message.roi.opening, left = this.roi?.name
    const data = await inflate(bytes[0])
    if (serial !== this.opened) return  // another ROI was opened meanwhile
    this.roi = message.roi
    this.classes = message.roi.classes
    this.mask = new LabelMask(width, height, data)
    this.proposal = new LabelMask(width, height, new Uint8Array(width * height).fill(NOTHING))
    this.reach = null  // rectangle without which nothing is proposed
    this.region = new Region(width, height)
    this.done = []; this.undone = []  // what the browser can take back; older steps are Python's
    this.points = message.points ?? []; this.lines = message.lines ?? []
    this.suggested = []
    if (!same) this.preview = this.readout = null
    if (this.picture && (bytes[1] || !same)) URL.revokeObjectURL(this.picture)
    this.picture = bytes[1] ? URL.createObjectURL(new Blob([bytes[1]], { type: message.roi.format })) : same ? this.picture : null
    this.cls = this.classes.some(c => c.id === this.cls) ? this.cls : Math.min(1, this.classes.length - 1)
    this.stepping = false
    this.sinceEdit = performance.now()
    const lost = same ? 0 : this.link.forget()
    if (!same) this.steps = 0
    this.tell('roi', !same)
    if (lost) this.tell('say', `${lost} step${lost > 1 ? 's' : ''} on ${left} could not be saved before it was left.`, 'error')
  }

  // Edits

  seconds() { const now = performance.now(), s = (now - this.sinceEdit) / 1000; this.sinceEdit = now; return +s.toFixed(3) }

  // Whether an edit may begin; where it may not, the user is told.
  free() {
    const why = !this.ready ? 'Nothing is open.' : this.roi.readonly ? this.roi.why || 'Read only.' : this.stepping ? 'An earlier step is being taken back: one moment.' : ''
    if (why) this.tell('say', why, 'warn')
    return !why
  }

  entry({ kind, patches = [], mark, of }) { return { kind, patches, mark, of } }

  edit(content) {
    if (!this.free()) return false
    const { patches = [], ...rest } = content
    const entry = this.entry({ ...rest, patches })
    this.carryOut(entry)
    this.save({ type: 'edit', cls: this.cls, source: 'human', ...rest, patches: patches.map(({ bits, ...p }) => p) }, patches.map(p => p.bits))
    return true
  }

  // Steps bear consecutive numbers, so that Python sees one that is lacking and one that comes twice.
  save(content, buffers = []) { this.link.send({ ...content, step: ++this.steps, opening: this.roi.opening, seconds: this.seconds() }, buffers, true) }

  carryOut(entry) {
    this.apply(entry)
    this.done.push(entry); this.undone = []; this.roi.later = false
    this.tell('history')
  }

  apply(entry) {
    entry.inverse = []
    for (const p of entry.patches) { entry.inverse.unshift(...this.mask.apply(p)); this.clearProposal(p) }
    if (entry.patches.length) this.tell('mask', boxOf(entry.patches))
    if (entry.mark) {
      const list = MARKS[entry.mark.type]
      if (entry.kind === 'remove') this[list] = this[list].filter(m => m.key !== entry.mark.key)
      else this[list] = [...this[list], entry.mark]
      this.tell('marks')
    }
  }

  revert(entry) {
    for (const p of entry.inverse) this.mask.apply(p)
    if (entry.inverse.length) this.tell('mask', boxOf(entry.inverse))
    if (entry.returned?.length && entry.made === this.proposed) {  // none was made since
      for (const p of entry.returned) this.proposal.apply(p)
      this.tell('proposal', boxOf(entry.returned))
    }
    if (entry.mark) {
      const list = MARKS[entry.mark.type]
      if (entry.kind === 'remove') this[list] = [...this[list], entry.mark]
      else this[list] = this[list].filter(m => m.key !== entry.mark.key)
      this.tell('marks')
    }
  }

  step(way) {
    const [from, to] = way === 'undo' ? [this.done, this.undone] : [this.undone, this.done]
    const entry = from.pop()
    if (!entry) return false
    if (way === 'undo') this.revert(entry); else this.apply(entry)
    to.push(entry)
    this.tell('history')
    return true
  }

  undo() { this.backOrForth('undo') }
  redo() { this.backOrForth('redo') }

  backOrForth(way) {
    if (!this.free()) return
    const here = this.step(way)
    if (!here && !(way === 'undo' ? this.roi.earlier : this.roi.later)) { this.tell('say', `Nothing to ${way}.`); return }
    this.stepping = !here  // a step of an earlier sitting is Python's: its map replaces this one
    this.save({ type: way, here })
  }

  // Proposals

  propose(patches, message) {
    if (message.asked && message.asked < (this.asked ?? 0)) return  // a later click was made since
    if (message.fresh !== false) this.withdraw()
    for (const p of patches) this.proposal.apply(p)
    if (patches.length) { this.reach = boxOf(this.reach ? [this.reach, ...patches] : patches); this.tell('proposal', boxOf(patches)) }
    this.proposed = { model: message.model, weights: message.weights, confidence: message.confidence, tool: message.tool ?? 'suggest' }
    this.tell('proposed', message)
  }

  withdraw() {
    const { reach } = this
    this.proposed = this.reach = null
    if (!reach) return
    this.proposal.wipe(reach, NOTHING)
    this.tell('proposal', reach)
  }

  get proposes() { return this.proposal && this.proposal.counts[NOTHING] < this.proposal.data.length }

  clearProposal(p) {  // what was edited is decided: no proposal there any more
    if (this.proposes) { this.proposal.apply({ ...p, value: NOTHING }); this.tell('proposal', p) }
  }

  // Accept or reject the piece at a pixel, or all of it where none is given.
  decide(verdict, at) {
    if (!this.free()) return
    if (!this.proposes) { this.tell('say', 'There is no proposal to ' + verdict + '.'); return }
    const region = this.region, values = new Set()
    if (at) {
      if (this.proposal.at(...at) === NOTHING) { this.tell('say', 'There is no proposal here.'); return }
      values.add(this.proposal.piece(...at, region))
    } else for (let v = 0; v < 256; v++) if (v !== NOTHING && this.proposal.counts[v]) values.add(v)
    const patches = [], gone = []
    for (const v of values) {
      if (!at) { region.clear(); this.proposal.all(v, this.reach, region) }
      const whole = this.proposal.patch(region, NOTHING)
      if (whole) gone.push(whole)
      if (verdict === 'accept') { const p = this.mask.patch(region, v, this.locked); if (p) patches.push(p) }
    }
    region.clear()
    const returned = gone.flatMap(p => this.proposal.apply(p))
    this.tell('proposal', boxOf(gone))
    const { made = null, tool, model, weights, confidence } = { made: this.proposed, ...this.proposed }
    const facts = { tool, source: 'model', model, weights, confidence, pixels: gone.reduce((a, p) => a + count(p), 0), whole: !at, cls: values.size === 1 ? [...values][0] : undefined }
    if (verdict === 'accept') { this.edit({ kind: 'accept', ...facts, patches }); Object.assign(this.done.at(-1), { returned, made }) }
    else this.save({ type: 'edit', kind: 'reject', ...facts, box: Object.values(boxOf(gone)), patches: [] })
  }

  // Questions

  suggest(marks) { this.asked = this.link.send({ type: 'suggest', marks }) }
  whole() { this.asked = this.link.send({ type: 'whole' }); this.tell('say', 'Working on the whole ROI ...', 'wait') }
  head() { this.asked = this.link.send({ type: 'head' }) }
  similar(cls) { this.link.send({ type: 'similar', cls }) }
  ask(what) { this.link.send({ type: what }) }

  // The picture is in sight: what Python computes for it in the background no longer holds it up.
  seen() { if (this.sight !== this.roi.opening) { this.sight = this.roi.opening; this.ask('seen') } }

  leave(what) {  // done or next: never over steps that are not saved
    if (this.link.ill && this.link.unsaved) this.link.trouble(); else this.ask(what)
  }

  // Tiles of an image too large to send whole

  tile(level, x, y) {
    return new Promise((resolve, reject) => this.images.set(this.link.send({ type: 'tile', level, x, y }), [resolve, reject]))
  }

  settle(message, bytes) {
    const asked = message.client === this.link.client && this.images.get(message.n)
    if (!asked) return
    this.images.delete(message.n); this.link.answered(message.n)
    if (bytes) asked[0](new Blob([bytes], { type: message.format })); else asked[1](new Error(message.text))
  }

  close() {
    this.link.close(); this.listeners.clear()
    this.model.off('msg:custom', this.ear)
    if (this.picture) URL.revokeObjectURL(this.picture)
  }
}

export const count = p => { let n = 0; for (let k = 0; k < p.width * p.height; k++) n += unpack(p.bits, k); return n }
