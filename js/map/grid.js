// Which point is near, which lie inside: points sorted into square cells, so that neither question asks them all.

export class Grid {
  constructor(xy) {
    const n = this.n = xy.length / 2
    this.xy = xy
    let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity
    for (let i = 0; i < n; i++) {
      const x = xy[2 * i], y = xy[2 * i + 1]
      if (x < x0) x0 = x; if (x > x1) x1 = x; if (y < y0) y0 = y; if (y > y1) y1 = y
    }
    this.box = [x0, y0, x1, y1]
    this.side = Math.min(512, Math.ceil(Math.sqrt(n / 4)) || 1)  // about four points a cell
    this.step = Math.max(x1 - x0, y1 - y0) / this.side || 1
    const cells = this.side * this.side, where = new Uint32Array(n)
    this.start = new Uint32Array(cells + 1)
    for (let i = 0; i < n; i++) this.start[(where[i] = this.cell(xy[2 * i], xy[2 * i + 1])) + 1]++
    for (let c = 0; c < cells; c++) this.start[c + 1] += this.start[c]
    const next = this.start.slice()
    this.items = new Uint32Array(n)
    for (let i = 0; i < n; i++) this.items[next[where[i]]++] = i
  }

  line(v, from) { return Math.max(0, Math.min(this.side - 1, Math.floor((v - from) / this.step))) }
  cell(x, y) { return this.line(y, this.box[1]) * this.side + this.line(x, this.box[0]) }

  // Calls `act` with every point of the cells that a rectangle touches.
  within(x0, y0, x1, y1, act) {
    const left = this.line(x0, this.box[0]), right = this.line(x1, this.box[0]), low = this.line(y0, this.box[1]), high = this.line(y1, this.box[1])
    for (let row = low; row <= high; row++)
      for (let k = this.start[row * this.side + left], end = this.start[row * this.side + right + 1]; k < end; k++) act(this.items[k])
  }

  // The nearest point that `seen` lets through, no farther than `reach`; -1 where there is none.
  nearest(x, y, reach, seen) {
    const { xy } = this
    let best = -1, least = reach * reach
    this.within(x - reach, y - reach, x + reach, y + reach, i => {
      const d = (xy[2 * i] - x) ** 2 + (xy[2 * i + 1] - y) ** 2
      if (d <= least && seen(i)) { least = d; best = i }
    })
    return best
  }

  // The points inside a polygon (corners x, y, x, y ...), by the even-odd rule.
  inside(ring, seen) {
    const { xy } = this, found = [], n = ring.length
    if (n < 6) return found
    let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity
    for (let k = 0; k < n; k += 2) { x0 = Math.min(x0, ring[k]); x1 = Math.max(x1, ring[k]); y0 = Math.min(y0, ring[k + 1]); y1 = Math.max(y1, ring[k + 1]) }
    this.within(x0, y0, x1, y1, i => {
      const x = xy[2 * i], y = xy[2 * i + 1]
      if (x < x0 || x > x1 || y < y0 || y > y1 || !seen(i)) return
      let odd = false
      for (let k = 0, j = n - 2; k < n; j = k, k += 2) {
        const ay = ring[k + 1], by = ring[j + 1]
        if (ay > y !== by > y && x < (ring[j] - ring[k]) * (y - ay) / (by - ay) + ring[k]) odd = !odd
      }
      if (odd) found.push(i)
    })
    return found
  }
}
