// The map on the screen: one canvas for the points, one over it for rings and the lasso, and a card for the tile under the pointer.
import { disc, pale, Painter, quarter } from './paint.js'

const NEAR = 9, CLICK = 4  // px on the screen: how far a point may be from the pointer, how far a click may wander
const INK = '#222222'

export class View {
  constructor(session, stage, root) {
    Object.assign(this, { session, stage, root })
    this.tool = 'pan'
    this.canvas = document.createElement('canvas'); this.over = document.createElement('canvas')
    this.canvas.className = 'bm-points'; this.over.className = 'bm-over'
    this.card = Object.assign(document.createElement('div'), { className: 'bm-card', hidden: true })
    stage.append(this.canvas, this.over, this.card)
    this.context = this.canvas.getContext('2d'); this.above = this.over.getContext('2d')
    this.at = null     // { scale, ox, oy }: screen = o + scale * point, y upwards
    this.last = null   // where the pointer is; null where a tile is looked at in the gallery
    const on = (name, act) => this.over.addEventListener(name, act)
    on('pointerdown', e => this.down(e)); on('pointermove', e => this.move(e)); on('pointerup', e => this.up(e)); on('pointercancel', () => this.drop())
    on('pointerleave', () => session.look(-1))
    this.over.addEventListener('wheel', e => { e.preventDefault(); this.zoom(Math.exp(-e.deltaY * (e.deltaMode ? 20 : 1) * (e.ctrlKey ? 0.01 : 0.0015)), e) }, { passive: false })
    this.watch = new ResizeObserver(() => this.resize()); this.watch.observe(stage)
  }

  get width() { return this.stage.clientWidth }
  get height() { return this.stage.clientHeight }

  open() { this.at = null; this.resize() }

  resize() {
    const { width, height, canvas, over } = this, density = window.devicePixelRatio || 1
    if (!width || !height || !this.session.ready) return
    const w = Math.round(width * density), h = Math.round(height * density)
    if (!this.painter || canvas.width !== w || canvas.height !== h) {
      if (this.at) { this.at.ox += (w - canvas.width) / density / 2; this.at.oy += (h - canvas.height) / density / 2 }
      for (const c of [canvas, over]) { c.width = w; c.height = h }
      this.painter = new Painter(w, h); this.density = density
    }
    if (!this.at) this.place()
    this.draw(true)
  }

  // The whole map in the middle.
  place() {
    const [x0, y0, x1, y1] = this.session.grid.box, margin = 24
    const scale = Math.min((this.width - 2 * margin) / (x1 - x0 || 1), (this.height - 2 * margin) / (y1 - y0 || 1))
    this.whole = scale
    this.at = { scale, ox: this.width / 2 - scale * (x0 + x1) / 2, oy: this.height / 2 + scale * (y0 + y1) / 2 }
  }

  fit() { if (this.session.ready) { this.place(); this.draw() } }

  zoom(by, event) {
    if (!this.at) return
    const { at } = this, r = this.over.getBoundingClientRect(), x = event ? event.clientX - r.left : this.width / 2, y = event ? event.clientY - r.top : this.height / 2
    const scale = Math.max(this.whole / 4, Math.min(this.whole * 4000, at.scale * by)), k = scale / at.scale
    Object.assign(at, { scale, ox: x - k * (x - at.ox), oy: y - k * (y - at.oy) })
    this.draw()
  }

  pan(dx, dy) { if (this.at) { this.at.ox += dx; this.at.oy += dy; this.draw() } }

  toMap(e) { const r = this.over.getBoundingClientRect(), { scale, ox, oy } = this.at; return [(e.clientX - r.left - ox) / scale, (oy - e.clientY + r.top) / scale] }
  toScreen(i) { const { xy } = this.session, { scale, ox, oy } = this.at; return [ox + scale * xy[2 * i], oy - scale * xy[2 * i + 1]] }

  // Points grow with their room on the screen, and slowly as one comes nearer.
  get radius() {
    const room = Math.sqrt(this.width * this.height / Math.max(1, this.session.n))
    return Math.min(7, Math.max(1.1, Math.min(4.5, 0.3 * room)) * Math.max(1, this.at.scale / this.whole) ** 0.35)
  }

  draw(now = false) {
    if (!now) { this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw(true) }); return }
    if (!this.painter || !this.at || !this.session.ready) return
    const { session, painter, density } = this, { xy, order, chosen, hidden, colouring } = session, some = session.count > 0
    const at = { scale: this.at.scale * density, ox: this.at.ox * density, oy: this.at.oy * density }, r = this.radius * density
    const lut = share => Int32Array.from(colouring.colours, (c, code) => hidden.has(code) ? -1 : quarter(pale(c, share)))
    painter.clear()
    painter.points(xy, order, at, disc(r, 3), colouring.codes, lut(some ? 0.28 : 1), chosen, some ? 0 : null)
    if (some) {
      painter.points(xy, order, at, disc(r + 1.3 * density), colouring.codes, lut(1).map(c => c < 0 ? c : quarter(INK)), chosen, 1)
      painter.points(xy, order, at, disc(r + 0.3 * density), colouring.codes, lut(1), chosen, 1)
    }
    this.context.putImageData(painter.image, 0, 0)
    this.drawOver()
  }

  drawOver() {
    const { above, session, density } = this
    if (!this.at || !session.ready) return
    above.setTransform(density, 0, 0, density, 0, 0)
    above.clearRect(0, 0, this.width, this.height)
    const ring = (i, r, line, colour = INK) => {
      const [x, y] = this.toScreen(i)
      for (const [style, wide] of [['#ffffff', line + 2], [colour, line]]) { above.beginPath(); above.arc(x, y, r, 0, 2 * Math.PI); above.strokeStyle = style; above.lineWidth = wide; above.stroke() }
    }
    const r = this.radius
    if (session.focus) { for (const i of session.focus.near) ring(i, r + 3, 1.2); ring(session.focus.point, r + 6, 2.4, '#d55e00') }
    if (session.hover >= 0) ring(session.hover, r + 4, 1.8)
    if (this.path) {
      above.beginPath()
      for (let k = 0; k < this.path.length; k += 2) above.lineTo(this.path[k], this.path[k + 1])
      above.closePath(); above.fillStyle = 'rgba(0, 114, 178, .12)'; above.fill()
      above.setLineDash([6, 4]); above.strokeStyle = '#0072b2'; above.lineWidth = 1.5; above.stroke(); above.setLineDash([])
    }
  }

  // The pointer: a drag pans or draws the lasso, a click goes to the tile.

  down(e) {
    this.root.focus({ preventScroll: true })
    if (e.button !== 0 && e.button !== 1 || !this.at) return
    e.preventDefault()
    this.over.setPointerCapture(e.pointerId)
    const lasso = e.button === 0 && (this.tool === 'lasso' || e.shiftKey), r = this.over.getBoundingClientRect()
    this.drag = { lasso, x: e.clientX, y: e.clientY, from: [e.clientX, e.clientY], moved: false, way: e.ctrlKey || e.metaKey ? 'with' : e.altKey ? 'without' : 'new' }
    if (lasso) this.path = [e.clientX - r.left, e.clientY - r.top]
  }

  move(e) {
    if (!this.at || !this.session.ready) return
    const { drag } = this
    if (!drag) { this.last = e; this.session.look(this.find(e)); if (!this.card.hidden) this.placeCard(); return }
    if (!drag.moved && Math.hypot(e.clientX - drag.from[0], e.clientY - drag.from[1]) < CLICK) return
    if (!drag.moved) { drag.moved = true; this.session.look(-1) }
    if (drag.lasso) {
      const r = this.over.getBoundingClientRect()
      for (const p of e.getCoalescedEvents?.() ?? [e]) {
        const x = p.clientX - r.left, y = p.clientY - r.top, { path } = this
        if (Math.hypot(x - path.at(-2), y - path.at(-1)) >= 2) path.push(x, y)
      }
      this.drawOver()
    } else this.pan(e.clientX - drag.x, e.clientY - drag.y)
    drag.x = e.clientX; drag.y = e.clientY
  }

  up(e) {
    const { drag, path } = this
    this.drop()
    if (!drag) return
    if (!drag.moved) { const i = this.find(e); if (i >= 0 && e.button === 0) this.session.go(i); return }
    if (!drag.lasso) return
    const { scale, ox, oy } = this.at, ring = path.map((v, k) => k % 2 ? (oy - v) / scale : (v - ox) / scale)
    const found = this.session.grid.inside(ring, i => this.session.visible(i))
    if (found.length || drag.way === 'new') this.session.select(found, { way: drag.way })
    if (!found.length) this.session.tell('say', 'No tile lies in the lasso.')
  }

  // Gives up what the pointer has begun; true where something was.
  drop() {
    const begun = !!this.path
    this.drag = this.path = null
    this.drawOver()
    return begun
  }

  find(e) { const { session } = this, [x, y] = this.toMap(e); return session.grid.nearest(x, y, Math.max(NEAR, this.radius + 3) / this.at.scale, i => session.visible(i)) }

  // The card

  placeCard() {
    const r = this.over.getBoundingClientRect(), [x, y] = this.last ? [this.last.clientX - r.left, this.last.clientY - r.top] : this.toScreen(this.session.hover), { offsetWidth: w, offsetHeight: h } = this.card
    const left = x + 18 + w > this.width ? x - 18 - w : x + 18
    this.card.style.left = `${Math.max(4, Math.min(this.width - w - 4, left))}px`
    this.card.style.top = `${Math.max(4, Math.min(this.height - h - 4, y - h / 2))}px`
  }

  showCard() {
    const { session, card } = this, tile = session.pictures.get(session.hover)
    card.hidden = !tile || session.hover === session.focus?.point || !!this.drag || !this.root.matches(':hover, :focus-within')
    if (card.hidden) return
    const text = (className, textContent) => Object.assign(document.createElement('div'), { className, textContent })
    card.replaceChildren(...(tile.url ? [Object.assign(document.createElement('img'), { src: tile.url, alt: '', width: 128, height: 128 })] : []),
      text('bm-name', tile.name), ...tile.facts.map(([name, value]) => text('', `${name} ${value}`)))
    this.placeCard()
  }

  close() { this.watch.disconnect(); if (this.frame) cancelAnimationFrame(this.frame) }
}
