// The picture with the label map over it: OpenSeadragon pans and zooms, a canvas of our own holds the classes,
// an SVG the points, lines and the polygon under way.
import OpenSeadragon from 'openseadragon'
import { NOTHING, UNLABELLED } from './mask.js'

const SVG = 'http://www.w3.org/2000/svg'

const rgb = text => [1, 3, 5].map(i => parseInt(text.slice(i, i + 2), 16))

// A map of values painted in colours, kept at the image's size and renewed by rectangles. What is hatched has a
// colour of its own (or none) in the gaps.
class Layer {
  constructor(mask, rimmed) {
    this.rimmed = rimmed  // each piece with a white rim: the colours of a stain and of a class may be alike
    this.canvas = Object.assign(document.createElement('canvas'), { width: mask.width, height: mask.height })
    this.context = this.canvas.getContext('2d')
    this.mask = mask
  }

  // `ink(row, i)` may change the values of a row (a copy, its first pixel the map's i-th) before they are painted.
  paint({ x, y, width, height }, ink) {
    const { rimmed, full, gap, mask: { data, width: w } } = this
    if (rimmed) [x, y, width, height] = this.wider(x, y, width, height)
    const image = this.context.createImageData(width, height), out = new Uint32Array(image.data.buffer)
    for (let dy = 0, k = 0; dy < height; dy++) {
      const i = (y + dy) * w + x, values = data.subarray(i, i + width), row = ink ? ink(values.slice(), i) : values
      for (let dx = 0, at = x + y + dy; dx < width; dx++, k++, at++) {
        const v = row[dx]
        if (rimmed && v === NOTHING) continue
        out[k] = rimmed && this.rim(i + dx, x + dx, y + dy) ? 0xFFFFFFFF : ((at & 7) > 4 ? gap : full)[v]
      }
    }
    this.context.putImageData(image, x, y)
  }

  wider(x, y, width, height) {
    const x0 = Math.max(0, x - 1), y0 = Math.max(0, y - 1)
    return [x0, y0, Math.min(this.mask.width, x + width + 1) - x0, Math.min(this.mask.height, y + height + 1) - y0]
  }

  rim(i, x, y) {
    const { data, width: w, height: h } = this.mask, v = data[i]
    return x > 0 && data[i - 1] !== v || x + 1 < w && data[i + 1] !== v || y > 0 && data[i - w] !== v || y + 1 < h && data[i + w] !== v
  }
}

export class View {
  constructor(session, place) {
    this.session = session
    this.stage = place
    this.viewer = OpenSeadragon({
      element: place, drawer: 'canvas', showNavigationControl: false, showNavigator: false, animationTime: 0.25, maxZoomPixelRatio: 24, visibilityRatio: 0.2,
      imageSmoothingEnabled: false, immediateRender: true, preload: true, gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false, flickEnabled: false },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: false }, gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: false },
    })
    this.viewer.innerTracker.keyDownHandler = this.viewer.innerTracker.keyHandler = null
    const over = this.viewer.canvas
    this.canvas = document.createElement('canvas'); this.canvas.className = 'bh-classes'
    this.svg = document.createElementNS(SVG, 'svg'); this.svg.classList.add('bh-marks')
    this.ring = document.createElement('div'); this.ring.className = 'bh-ring'; this.ring.hidden = true
    this.scale = document.createElement('div'); this.scale.className = 'bh-scale'
    over.append(this.canvas, this.svg, this.ring); place.append(this.scale)
    this.context = this.canvas.getContext('2d')
    this.moved = false  // by the user: until then the whole picture is shown, whatever the place becomes
    for (const event of ['canvas-drag', 'canvas-scroll', 'canvas-pinch']) this.viewer.addHandler(event, () => { this.moved = true })
    this.viewer.addHandler('open', () => { this.fit(); if (this.wanted) this.goTo(this.wanted) })
    this.viewer.addHandler('tile-drawn', () => { if (session.ready) session.seen() })
    for (const event of ['update-viewport', 'open', 'resize']) this.viewer.addHandler(event, () => this.draw())
    this.watch = new ResizeObserver(() => requestAnimationFrame(() => this.resized())); this.watch.observe(place)
    this.draft = null
  }

  resized() {  // a page may be laid out long after the viewer was made
    const { clientWidth: w, clientHeight: h } = this.stage
    if (!w || !h || !this.viewer.viewport) return
    this.viewer.viewport.resize(new OpenSeadragon.Point(w, h), true)
    if (this.moved) this.draw(); else this.fit()
  }

  open() {
    const { session } = this, { width, height, tile } = session.roi
    this.classes = new Layer(session.mask); this.proposal = new Layer(session.proposal, true)
    this.last = null  // another ROI may lie where this one lay
    this.recolour()
    const source = session.picture ? { type: 'image', url: session.picture } : {
      width, height, tileSize: tile, minLevel: 0, maxLevel: Math.ceil(Math.log2(Math.max(width, height))), getTileUrl: (level, x, y) => `${session.roi.name}/${level}/${x}/${y}`,
      downloadTileStart: job => {
        const [level, x, y] = job.src.split('/').slice(-3).map(Number)
        session.tile(level, x, y).then(blob => createImageBitmap(blob)).then(bitmap => {
          const canvas = Object.assign(document.createElement('canvas'), { width: bitmap.width, height: bitmap.height })
          canvas.getContext('2d').drawImage(bitmap, 0, 0)
          job.finish(canvas.getContext('2d'), null, 'context2d')
        }).catch(e => job.fail(String(e)))
      },
      downloadTileAbort: () => {},
    }
    const shown = `${session.roi.subject}/${session.roi.name}`
    if (shown === this.shown) { this.drawMarks(); session.seen(); return }  // the same picture: stay where it was
    this.shown = shown; this.wanted = null
    this.viewer.open(source)
  }

  recolour() {
    const { session, classes, proposal } = this
    classes.full = new Uint32Array(256)
    for (const c of session.classes) {
      const [r, g, b] = rgb(c.colour)
      classes.full[c.id] = c.id ? (255 << 24 | b << 16 | g << 8 | r) >>> 0 : 0
    }
    classes.gap = classes.full.slice(); classes.gap[UNLABELLED] = 0x50E0E0E0
    proposal.full = classes.full.slice(); proposal.gap = new Uint32Array(256)
    proposal.full[0] = 0xB0FFFFFF  // a proposal of background is seen too
    proposal.full[NOTHING] = 0
    const all = { x: 0, y: 0, width: session.mask.width, height: session.mask.height }
    if (session.mask.counts[0] < session.mask.data.length) classes.paint(all)  // a fresh canvas shows nothing as it is
    if (session.proposes) proposal.paint(all)
    this.draw()
  }

  renew(layer, box) {
    if (!this.classes || box.width <= 0) return
    this[layer].paint(box)
    this.draw(box)
  }

  // The stroke under way, seen at once: what is marked takes its colour before it is an edit.
  ink(box, value, region, locked) {
    if (!this.classes) return
    const { marks } = region
    this.classes.paint(box, (row, from) => { for (let k = 0; k < row.length; k++) if (marks[from + k] && !locked.has(row[k])) row[k] = value; return row })
    this.draw(box)
  }

  // Screen = origin + factor * image.
  frame() {
    const item = this.viewer.world.getItemAt(0)
    if (!item) return null
    const o = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0)), e = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(1000, 0))
    return { ox: o.x, oy: o.y, factor: (e.x - o.x) / 1000 }
  }

  toImage(event) {
    const f = this.frame(), r = this.viewer.canvas.getBoundingClientRect()
    return f && [(event.clientX - r.left - f.ox) / f.factor, (event.clientY - r.top - f.oy) / f.factor]
  }

  inside([x, y]) { return x >= 0 && y >= 0 && x < this.session.mask.width && y < this.session.mask.height }

  draw(box) {
    const f = this.frame()
    if (!f || !this.classes) return
    const { clientWidth: w, clientHeight: h } = this.viewer.canvas, density = window.devicePixelRatio || 1, { canvas, context } = this
    if (canvas.width !== Math.round(w * density) || canvas.height !== Math.round(h * density)) { canvas.width = Math.round(w * density); canvas.height = Math.round(h * density); box = null }
    const moved = !this.last || this.last.ox !== f.ox || this.last.oy !== f.oy || this.last.factor !== f.factor
    if (moved) { box = null; this.last = f; this.drawMarks(); this.drawScale(f) }
    const { mask, opacity, hidden } = this.session
    let x0 = box ? box.x : Math.max(0, Math.floor(-f.ox / f.factor)), y0 = box ? box.y : Math.max(0, Math.floor(-f.oy / f.factor))
    let x1 = box ? box.x + box.width : Math.min(mask.width, Math.ceil((w - f.ox) / f.factor)), y1 = box ? box.y + box.height : Math.min(mask.height, Math.ceil((h - f.oy) / f.factor))
    const s = density * f.factor
    if (box) {  // what is cleared is whole screen pixels, so draw a little more than that
      const pad = Math.ceil(2 / s) + 1
      x0 = Math.max(0, x0 - pad); y0 = Math.max(0, y0 - pad); x1 = Math.min(mask.width, x1 + pad); y1 = Math.min(mask.height, y1 + pad)
    }
    context.setTransform(1, 0, 0, 1, 0, 0)
    context.save()
    const left = density * f.ox + x0 * s, top = density * f.oy + y0 * s, wide = (x1 - x0) * s, tall = (y1 - y0) * s
    if (box) { context.beginPath(); context.rect(Math.ceil(left), Math.ceil(top), Math.floor(wide) - 1, Math.floor(tall) - 1); context.clip() }
    context.clearRect(0, 0, canvas.width, canvas.height)
    if (!hidden && x1 > x0 && y1 > y0) {
      context.imageSmoothingEnabled = false
      context.setTransform(s, 0, 0, s, density * f.ox, density * f.oy)
      context.globalAlpha = opacity
      context.drawImage(this.classes.canvas, x0, y0, x1 - x0, y1 - y0, x0, y0, x1 - x0, y1 - y0)
      if (this.session.proposes) { context.globalAlpha = Math.min(1, opacity + 0.3); context.drawImage(this.proposal.canvas, x0, y0, x1 - x0, y1 - y0, x0, y0, x1 - x0, y1 - y0) }
    }
    this.svg.style.visibility = hidden ? 'hidden' : ''
    const { preview, previewing } = this.session
    if (previewing && preview) {
      context.imageSmoothingEnabled = true; context.globalAlpha = 1
      context.setTransform(s, 0, 0, s, density * f.ox, density * f.oy)
      context.drawImage(preview.canvas, 0, 0, preview.columns * preview.cell, preview.rows * preview.cell)
    }
    context.restore()
  }

  drawMarks() {
    const f = this.frame()
    if (!f || !this.session.ready) return
    const { points, lines, suggested, roi } = this.session, at = ([x, y]) => `${f.ox + x * f.factor},${f.oy + y * f.factor}`
    const node = (tag, facts, text) => { const e = document.createElementNS(SVG, tag); for (const k in facts) e.setAttribute(k, facts[k]); if (text) { const t = document.createElementNS(SVG, 'title'); t.textContent = text; e.append(t) } return e }
    const colour = name => roi.colours[name] ?? '#ffffff'
    const dot = (p, facts) => { const [x, y] = at([p.x, p.y]).split(','); return node('circle', { cx: x, cy: y, r: 5, ...facts }, p.cls) }
    this.svg.replaceChildren(
      ...lines.map(l => node('polyline', { points: l.points.map(at).join(' '), fill: 'none', stroke: colour(l.cls), 'stroke-width': 2.5 }, l.cls)),
      ...points.map(p => dot(p, { fill: colour(p.cls), stroke: '#000' })),
      ...(suggested ?? []).map(p => dot(p, { fill: 'none', stroke: colour(p.cls), 'stroke-width': 2, 'stroke-dasharray': '3 2', class: 'bh-suggested' })),
      ...(this.draft ? [...this.draft.rings, this.draft.points].filter(r => r.length).map(r => node('polyline', { points: r.map(at).join(' '), fill: 'none', stroke: '#fff', 'stroke-width': 1.5, 'stroke-dasharray': '5 3' })) : []),
      ...(this.draft ? this.draft.points.map(p => { const [x, y] = at(p).split(','); return node('circle', { cx: x, cy: y, r: 3, fill: '#fff', stroke: '#000' }) }) : []))
  }

  drawScale(f) {
    const um = this.session.roi.pixel_size_um
    if (!um) { this.scale.textContent = ''; this.scale.hidden = true; return }
    const per = f.factor / um, steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000], length = steps.findLast(s => s * per <= 140) ?? 1
    this.scale.hidden = false; this.scale.style.width = `${length * per}px`; this.scale.textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`
  }

  circle(event) {
    const { tool, size } = this.session, shown = ['brush', 'erase'].includes(tool), r = this.viewer.canvas.getBoundingClientRect()
    this.ring.hidden = !shown
    if (!shown) return
    Object.assign(this.ring.style, { width: `${2 * size}px`, height: `${2 * size}px`, left: `${event.clientX - r.left - size}px`, top: `${event.clientY - r.top - size}px` })
  }

  // The picture as it is drawn, `size` of its pixels about a place on the screen, and where the window's corner is.
  window(event, size) {
    const r = this.viewer.canvas.getBoundingClientRect(), from = this.viewer.drawer.canvas, density = from.width / this.viewer.canvas.clientWidth, half = size >> 1
    const left = Math.floor((event.clientX - r.left) * density) - half, top = Math.floor((event.clientY - r.top) * density) - half
    return { pixels: from.getContext('2d', { willReadFrequently: true }).getImageData(left, top, size, size), left, top, density }
  }

  filter(text) { this.viewer.drawer.canvas.style.filter = text }
  fit() { const item = this.viewer.world.getItemAt(0); this.moved = false; if (item) this.viewer.viewport.fitBounds(item.getBounds(), true) }
  zoom(by) { this.moved = true; this.viewer.viewport.zoomBy(by); this.viewer.viewport.applyConstraints() }
  pan(dx, dy, now) { this.moved = true; this.viewer.viewport.panBy(this.viewer.viewport.deltaPointsFromPixels(new OpenSeadragon.Point(dx, dy)), now); this.viewer.viewport.applyConstraints(now) }
  goTo(box) {  // at once, or when the picture is there
    const item = this.viewer.world.getItemAt(0), { x, y, width, height } = box
    this.wanted = item ? null : box
    if (item) { this.moved = true; this.viewer.viewport.fitBounds(item.imageToViewportRectangle(x, y, width, height), true) }
  }

  close() { this.watch.disconnect(); this.viewer.destroy() }
}
