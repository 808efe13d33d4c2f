// What the pointer does with each tool.
import { grow, WINDOW } from './wand.js'

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

  // Panning is OpenSeadragon's: with the pan tool, the middle or right button, or Alt held.
  pans(e) { return this.session.tool === 'pan' || e.button > 0 || e.altKey || !this.session.ready }

  down(e) {
    if (this.pans(e)) return
    e.stopPropagation(); e.preventDefault()
    this.element.closest('.bh-annotator')?.focus({ preventScroll: true })
    const at = this.view.toImage(e)
    if (!at) return
    if (!this.session.writable) { this.session.tell('say', this.session.roi.why, 'warn'); return }
    this.element.setPointerCapture(e.pointerId)
    const { tool } = this.session, [x, y] = at.map(Math.floor)
    switch (tool) {
      case 'brush': case 'erase': this.begin(tool, at); break
      case 'suggest': this.active = { tool, marks: [at], begun: performance.now() }; break
      case 'wand': this.wand(e, at); break
      case 'polygon': case 'line': this.vertex(at, tool); break
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
    if (!this.active) return
    e.stopPropagation()
    for (const part of e.getCoalescedEvents?.().length ? e.getCoalescedEvents() : [e]) {
      const at = this.view.toImage(part)
      if (this.active.tool === 'suggest') this.active.marks.push(at)
      else this.extend(at)
    }
  }

  up(e) {
    if (!this.active) return
    e.stopPropagation()
    const stroke = this.active
    this.active = null
    if (stroke.tool === 'suggest') {
      const every = Math.max(1, Math.ceil(stroke.marks.length / 64)), cls = this.session.cls
      this.session.suggest(stroke.marks.filter((_, i) => i % every === 0).filter(at => this.view.inside(at)).map(([x, y]) => ({ x: Math.floor(x), y: Math.floor(y), cls })))
    } else this.finish(stroke)
  }

  cancel() { const stroke = this.active; this.active = null; if (stroke?.undo) this.takeBack(stroke) }

  // Strokes: pixels change as the pointer moves, and become one patch when it is lifted.
  begin(tool, at) {
    const { session } = this, f = this.view.frame()
    session.region.clear()
    this.active = { tool, value: tool === 'erase' ? 0 : session.cls, radius: session.size / f.factor, at, undo: [] }
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
    const { session, view } = this, f = view.frame(), density = view.viewer.drawer.canvas.width / view.viewer.canvas.clientWidth
    if (!view.inside(at)) return
    const inside = grow(view.window(e, WINDOW), session.tolerance), half = WINDOW >> 1, step = 1 / (f.factor * density), { region, mask } = session
    region.clear()
    // Row by row of the image: each run of the window becomes a run of pixels whose centres lie in it.
    const first = (s, o) => Math.ceil((s - half - 0.5) * step + o - 0.5), y1 = Math.min(mask.height, first(WINDOW, at[1]))
    for (let y = Math.max(0, first(0, at[1])); y < y1; y++) {
      const row = Math.min(WINDOW - 1, Math.max(0, Math.round((y + 0.5 - at[1]) / step) + half)) * WINDOW
      for (let s = 0; s < WINDOW; s++) if (inside[row + s]) {
        const begin = s
        while (s < WINDOW && inside[row + s]) s++
        const xa = Math.max(0, first(begin, at[0])), xb = Math.min(mask.width, first(s, at[0]))
        if (xa < xb) { region.marks.fill(1, y * mask.width + xa, y * mask.width + xb); region.grow(xa, y, xb, y + 1) }
      }
    }
    this.fill('wand')
  }

  fill(tool) {
    const { session } = this, patch = session.mask.patch(session.region, session.cls, session.locked)
    session.region.clear()
    if (patch) session.edit({ kind: 'paint', tool, patches: [patch] })
  }

  // Polygons and lines grow by clicks; Enter or a double click ends them, Shift+click begins a hole.
  vertex(at, tool) {
    const { view } = this
    view.draft ??= { tool, rings: [], points: [] }
    if (tool === 'polygon' && this.last?.shiftKey && view.draft.points.length > 2) { view.draft.rings.push(view.draft.points); view.draft.points = [] }
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
