// The label map in the browser. It changes by patches alone: a rectangle, a value, and packed bits for the
// pixels that take it. The same patches go to Python, so both maps are equal by construction.

export const NOTHING = 254    // in a map of proposals: none here
export const UNLABELLED = 255 // nobody said what it is

export const unpack = (bits, i) => bits[i >> 3] >> (7 - (i & 7)) & 1

// Pixels that an edit touches, gathered over one stroke. A pixel belongs when its centre does.
export class Region {
  constructor(width, height) {
    this.width = width; this.height = height
    this.marks = new Uint8Array(width * height)
    this.empty()
  }

  empty() { this.x0 = this.width; this.y0 = this.height; this.x1 = 0; this.y1 = 0 }

  clear() {
    for (let y = this.y0; y < this.y1; y++) this.marks.fill(0, y * this.width + this.x0, y * this.width + this.x1)
    this.empty()
  }

  grow(x0, y0, x1, y1) {
    this.x0 = Math.min(this.x0, x0); this.y0 = Math.min(this.y0, y0)
    this.x1 = Math.max(this.x1, x1); this.y1 = Math.max(this.y1, y1)
  }

  // Within `radius` of the line from a to b. Returns the rectangle that may have changed, or null.
  capsule(ax, ay, bx, by, radius) {
    const r = Math.max(radius, 0.5), dx = bx - ax, dy = by - ay, length2 = dx * dx + dy * dy
    const x0 = Math.max(0, Math.floor(Math.min(ax, bx) - r)), x1 = Math.min(this.width, Math.ceil(Math.max(ax, bx) + r))
    const y0 = Math.max(0, Math.floor(Math.min(ay, by) - r)), y1 = Math.min(this.height, Math.ceil(Math.max(ay, by) + r))
    if (x0 >= x1 || y0 >= y1) return null
    for (let y = y0; y < y1; y++) {
      const py = y + 0.5 - ay, row = y * this.width
      for (let x = x0; x < x1; x++) {
        const px = x + 0.5 - ax
        const t = length2 ? Math.max(0, Math.min(1, (px * dx + py * dy) / length2)) : 0
        const ex = px - t * dx, ey = py - t * dy
        if (ex * ex + ey * ey <= r * r) this.marks[row + x] = 1
      }
    }
    this.grow(x0, y0, x1, y1)
    return { x: x0, y: y0, width: x1 - x0, height: y1 - y0 }
  }

  // Keeps the piece (4-connected) that holds a pixel; the pixel is always of it.
  keep(x, y) {
    const { marks, width: w } = this
    this.grow(x, y, x + 1, y + 1); marks[y * w + x] = 1
    const { x0, y0, x1, y1 } = this, stack = [[x, y]]
    while (stack.length) {
      const [cx, cy] = stack.pop(), i = cy * w + cx
      if (cx < x0 || cy < y0 || cx >= x1 || cy >= y1 || marks[i] !== 1) continue
      marks[i] = 2
      stack.push([cx - 1, cy], [cx + 1, cy], [cx, cy - 1], [cx, cy + 1])
    }
    for (let cy = y0; cy < y1; cy++) for (let i = cy * w + x0; i < cy * w + x1; i++) marks[i] = marks[i] === 2 ? 1 : 0
  }

  // Inside rings of [x, y] by the even-odd rule, so a ring within another is a hole.
  polygon(rings) {
    const ys = rings.flat().map(p => p[1])
    const y0 = Math.max(0, Math.floor(Math.min(...ys))), y1 = Math.min(this.height, Math.ceil(Math.max(...ys)))
    for (let y = y0; y < y1; y++) {
      const crossings = [], cy = y + 0.5
      for (const ring of rings) for (let i = 0; i < ring.length; i++) {
        const [ax, ay] = ring[i], [bx, by] = ring[(i + 1) % ring.length]
        if ((ay <= cy) !== (by <= cy)) crossings.push(ax + (cy - ay) / (by - ay) * (bx - ax))
      }
      crossings.sort((a, b) => a - b)
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        const x0 = Math.max(0, Math.ceil(crossings[i] - 0.5)), x1 = Math.min(this.width, Math.ceil(crossings[i + 1] - 0.5))
        if (x0 < x1) { this.marks.fill(1, y * this.width + x0, y * this.width + x1); this.grow(x0, y, x1, y + 1) }
      }
    }
  }
}

export class LabelMask {
  constructor(width, height, data) {
    this.width = width; this.height = height; this.data = data
    this.counts = new Float64Array(256)
    for (let i = 0, end = 0; i < data.length; i = end) {  // by runs: far quicker than one by one
      const value = data[i]
      while (end < data.length && data[end] === value) end++
      this.counts[value] += end - i
    }
  }

  at(x, y) { return this.data[y * this.width + x] }

  // The patch that gives `value` to a region but for locked classes; null where it changes nothing.
  patch(region, value, locked = new Set()) {
    let { x0, y0, x1, y1 } = region, left = x1, top = y1, right = x0, bottom = y0
    const open = new Uint8Array(256).fill(1)
    for (const c of locked) open[c] = 0
    open[value] = 0
    const { marks } = region, { data, width: w } = this
    for (let y = y0; y < y1; y++) for (let x = x0, i = y * w + x0; x < x1; x++, i++) if (marks[i] && open[data[i]]) {
      if (x < left) left = x
      if (x >= right) right = x + 1
      if (y < top) top = y
      bottom = y + 1
    }
    if (left >= right) return null
    const width = right - left, height = bottom - top, bits = new Uint8Array((width * height + 7) >> 3)
    for (let y = 0, k = 0; y < height; y++) for (let x = 0, i = (top + y) * w + left; x < width; x++, i++, k++)
      if (marks[i] && open[data[i]]) bits[k >> 3] |= 128 >> (k & 7)
    return { x: left, y: top, width, height, value, bits }
  }

  // Carries a patch out and returns the patches that take it back.
  apply(patch) {
    const { x, y, width, height, value, bits } = patch, { data, width: w, counts } = this, before = new Map()
    let last = -1, former = null, n = 0  // neighbours mostly had one value
    const settle = () => { if (n) { counts[last] -= n; counts[value] += n; n = 0 } }
    for (let dy = 0, k = 0; dy < height; dy++) for (let dx = 0, i = (y + dy) * w + x; dx < width; dx++, i++, k++) if (bits[k >> 3] >> (7 - (k & 7)) & 1) {
      const old = data[i]
      if (old === value) continue
      if (old !== last) {
        settle(); last = old
        if (!before.has(old)) before.set(old, new Uint8Array(bits.length))
        former = before.get(old)
      }
      former[k >> 3] |= 128 >> (k & 7)
      data[i] = value; n++
    }
    settle()
    return [...before].map(([old, b]) => ({ x, y, width, height, value: old, bits: b }))
  }

  // Every pixel of a rectangle takes a value.
  wipe({ x, y, width, height }, value) {
    const { data, width: w, counts } = this
    for (let row = y; row < y + height; row++) for (let i = row * w + x, end = i + width; i < end; i++) { counts[data[i]]--; data[i] = value }
    counts[value] += width * height
  }

  // All pixels of one value in a rectangle, as a region.
  all(value, { x, y, width, height }, region) {
    const { data, width: w } = this, { marks } = region
    for (let row = y; row < y + height; row++) {
      const i = row * w + x, end = i + width
      let first = -1, last = -1
      for (let j = i; j < end; j++) if (data[j] === value) { marks[j] = 1; last = j; if (first < 0) first = j }
      if (first >= 0) region.grow(x + first - i, row, x + last - i + 1, row + 1)
    }
  }

  // The piece of one value that holds a pixel (4-connected), as a region.
  piece(x, y, region, limit = Infinity) {
    const value = this.at(x, y), stack = [y * this.width + x], w = this.width
    let n = 0
    region.clear()
    while (stack.length) {
      const i = stack.pop()
      if (region.marks[i] || this.data[i] !== value) continue
      const cx = i % w, cy = (i - cx) / w
      region.marks[i] = 1; region.grow(cx, cy, cx + 1, cy + 1)
      if (++n > limit) break
      if (cx > 0) stack.push(i - 1)
      if (cx + 1 < w) stack.push(i + 1)
      if (cy > 0) stack.push(i - w)
      if (cy + 1 < this.height) stack.push(i + w)
    }
    return value
  }
}

export const boxOf = patches => {
  const x = Math.min(...patches.map(p => p.x)), y = Math.min(...patches.map(p => p.y))
  return { x, y, width: Math.max(...patches.map(p => p.x + p.width)) - x, height: Math.max(...patches.map(p => p.y + p.height)) - y }
}
