// What the pointer does with each tool.
import { UNLABELLED } from './mask.js'
import { grow, spans, WINDOW } from './wand.js'

export class Pointer {
  constructor(session, view) {
    this.session = session; this.view = view
    const element = this.element = view.viewer.canvas
    this.active = null  // the stroke under way
    const on = (name, f) => element.addEventListener(name, f, { capture: true })
    on('pointerdown', e => this.down(e)); on('pointermove', e => this.move(e)); on('pointerup', e => this.up(e)); on('pointercancel', e => this.cancel())
    on('dblclick', e => this.close(e)); on('pointerleave', () => { view.ring.hidden = true })
    on('contextmenu', e => e.preventDefault())
  }

  // With the pan tool panning is OpenSeadragon's; the middle and right button, and Alt, pan with any tool.
  down(e) {
    this.element.closest('.bh-annotator')?.focus({ preventScroll: true })
    if (!this.session.ready || this.session.tool === 'pan' && e.button === 0) return
    e.stopPropagation(); e.preventDefault()
    if (this.active) return  // a second finger or button
    this.finger = e.pointerId
    const at = this.view.toImage(e)
    if (!at) return
    if (e.button > 0 || e.altKey) { this.active = { tool: 'pan', x: e.clientX, y: e.clientY }; this.element.setPointerCapture(e.pointerId); return }
    if (!this.session.free()) return
    this.element.setPointerCapture(e.pointerId)
    const { tool } = this.session, [x, y] = at.map(Math.floor)
    switch (tool) {
      case 'brush': case 'erase': this.begin(tool, at); break
      case 'suggest': this.active = { tool, marks: [at], begun: performance.now() }; break
      case 'wand': this.wand(e, at); break
      case 'polygon': case 'line': this.vertex(at, tool, e.shiftKey); break
      case 'point': this.point(at, e); break
      case 'accept': if (this.view.inside(at)) this.session.decide('accept', [x, y]); break
      case 'reject': if (this.view.inside(at)) this.session.decide('reject', [x, y]); break
    }
  }

  move(e) {
    this.here = this.view.toImage(e)
    this.last = e
    this.view.circle(e)
    const { preview, previewing } = this.session
    if (previewing && preview && !this.active && this.here && preview.at(this.here)) this.view.draw()
    if (!this.active || e.pointerId !== this.finger) return
    e.stopPropagation()
    if (this.active.tool === 'pan') { const { x, y } = this.active; this.view.pan(x - e.clientX, y - e.clientY, true); Object.assign(this.active, { x: e.clientX, y: e.clientY }); return }
    for (const part of e.getCoalescedEvents?.().length ? e.getCoalescedEvents() : [e]) {
      const at = this.view.toImage(part)
      if (this.active.tool === 'suggest') this.active.marks.push(at)
      else this.extend(at)
    }
  }

  up(e) {
    if (!this.active || e.pointerId !== this.finger) return
    e.stopPropagation()
    const stroke = this.active
    this.active = null
    if (stroke.tool === 'pan') return
    if (stroke.tool === 'suggest') {
      if (this.session.cls === UNLABELLED) { this.session.tell('say', 'Choose the class to be suggested first.', 'warn'); return }
      const every = Math.max(1, Math.ceil(stroke.marks.length / 64)), cls = this.session.cls
      this.session.suggest(stroke.marks.filter((_, i) => i % every === 0).filter(at => this.view.inside(at)).map(([x, y]) => ({ x: Math.floor(x), y: Math.floor(y), cls })))
    } else this.finish(stroke)
  }

  cancel() { const stroke = this.active; this.active = null; if (stroke?.radius) this.takeBack() }

  // Strokes: pixels change as the pointer moves, and become one patch when it is lifted.
  begin(tool, at) {
    const { session } = this, f = this.view.frame()
    session.region.clear()
    this.active = { tool, value: tool === 'erase' ? 0 : session.cls, radius: session.size / f.factor, at }
    this.extend(at)
  }

  extend(at) {
    const { session, view, active } = this
    const box = session.region.capsule(active.at[0], active.at[1], at[0], at[1], active.radius)
    active.at = at
    if (!box) return
    view.ink(box, active.value, session.region, session.locked)
  }

  finish(stroke) {
    const { session } = this, patch = session.mask.patch(session.region, stroke.value, session.locked), { x0, y0, x1, y1 } = session.region
    session.region.clear()
    if (patch) session.edit({ kind: 'paint', tool: stroke.tool, cls: stroke.value, patches: [patch] })
    else session.tell('mask', { x: x0, y: y0, width: x1 - x0, height: y1 - y0 })
  }

  takeBack() { const { region } = this.session, { x0, y0, x1, y1 } = region; region.clear(); this.session.tell('mask', { x: x0, y: y0, width: x1 - x0, height: y1 - y0 }) }

  wand(e, at) {
    const { session, view } = this, { region, mask } = session
    if (!view.inside(at)) return
    const { pixels, left, top, density } = view.window(e, WINDOW), inside = grow(pixels, session.tolerance), { ox, oy, factor } = view.frame()
    const shown = (v, origin, from) => Math.floor((origin + (v + 0.5) * factor) * density) - from  // where an image pixel's centre is in the window
    const ends = (origin, from, span, size) => span.map(v => Math.max(0, Math.min(size, Math.ceil(((from + v) / density - origin) / factor - 0.5)))), [across, down] = spans(inside)
    const [x0, x1] = ends(ox, left, across, mask.width), [y0, y1] = ends(oy, top, down, mask.height)
    region.clear()
    const columns = Int32Array.from({ length: Math.max(0, x1 - x0) }, (_, k) => shown(x0 + k, ox, left))
    for (let y = y0; y < y1; y++) {
      const row = shown(y, oy, top) * WINDOW, o = y * mask.width + x0
      for (let k = 0; k < columns.length; k++) if (inside[row + columns[k]]) region.marks[o + k] = 1
    }
    if (y0 < y1) region.grow(x0, y0, x1, y1)
    if (factor * density > 1) region.keep(...at.map(Math.floor))  // centres of large pixels may miss a narrow bridge; small ones follow the window
    this.fill('wand')
  }

  fill(tool) {
    const { session } = this, patch = session.mask.patch(session.region, session.cls, session.locked)
    session.region.clear()
    if (patch) session.edit({ kind: 'paint', tool, patches: [patch] })
  }

  // Polygons and lines grow by clicks; Enter or a double click ends them, Shift+click begins a hole, Z takes a corner back.
  vertex(at, tool, hole) {
    const { view } = this, { width, height } = this.session.mask
    if (tool === 'line') at = [Math.max(0, Math.min(width, at[0])), Math.max(0, Math.min(height, at[1]))]
    view.draft ??= { tool, rings: [], points: [] }
    if (tool === 'polygon' && hole && view.draft.points.length > 2) { view.draft.rings.push(view.draft.points); view.draft.points = [] }
    view.draft.points.push(at)
    view.drawMarks()
  }

  close(e) {
    const { view, session } = this, draft = view.draft
    if (!draft) return
    e?.stopPropagation?.()
    const same = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) * (view.frame()?.factor ?? 1) < 2
    const points = draft.points.filter((p, i, all) => !i || !same(p, all[i - 1]))
    view.draft = null
    if (draft.tool === 'line') {
      if (points.length > 1) session.edit({ kind: 'line', tool: 'line', mark: { type: 'line', key: key(session), cls: session.surface, points } })
    } else {
      const rings = [...draft.rings, points].filter(r => r.length > 2)
      if (rings.length) { session.region.clear(); session.region.polygon(rings); this.fill('polygon') }
    }
    view.drawMarks()
  }

  // Takes the last corner back; returns whether there was one.
  shorten() {
    const { draft } = this.view
    if (!draft) return false
    draft.points.pop()
    if (!draft.points.length) draft.points = draft.rings.pop() ?? []
    if (!draft.points.length) this.view.draft = null
    this.view.drawMarks()
    return true
  }

  drop() { this.view.draft = null; this.cancel(); this.view.drawMarks() }

  point(at, e) {
    const { session, view } = this, f = view.frame(), near = p => Math.hypot(p.x - at[0], p.y - at[1]) * f.factor < 8
    const proposed = (session.suggested ?? []).find(near), old = session.points.find(near)
    if (proposed) { session.suggested = session.suggested.filter(p => p !== proposed); session.edit({ kind: 'point', tool: 'find similar', source: 'model', mark: { type: 'point', key: key(session), x: proposed.x, y: proposed.y, cls: proposed.cls } }) }
    else if (old) session.edit({ kind: 'remove', tool: 'point', mark: old })
    else if (view.inside(at)) session.edit({ kind: 'point', tool: 'point', mark: { type: 'point', key: key(session), x: at[0], y: at[1], cls: session.cell } })
  }
}

const key = session => `${session.link.client}-${++session.link.n}`
