// Points as pixels, written straight into an ImageData, so that a hundred thousand of them move with the hand.
// A pixel covered to k quarters becomes (k colour + (4 - k) what was there) / 4, all three channels in one number.

const SIXTHS = 0x3f3f3f, OPAQUE = 0xff000000

export const quarter = text => { const v = parseInt(text.slice(1), 16); return ((v & 255) << 16 | v & 0xff00 | v >> 16) >>> 2 & SIXTHS }  // #rrggbb, bytes turned round
export const pale = (text, share) => '#' + [1, 3, 5].map(i => Math.round(255 - share * (255 - parseInt(text.slice(i, i + 2), 16))).toString(16).padStart(2, '0')).join('')

// A disc: offsets and quarters covered, `most` of four in the middle.
export function disc(radius, most = 4) {
  const reach = Math.ceil(radius), x = [], y = [], k = []
  for (let dy = -reach; dy <= reach; dy++) for (let dx = -reach; dx <= reach; dx++) {
    const covered = Math.round(most * Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(dx, dy))))
    if (covered) { x.push(dx); y.push(dy); k.push(covered) }
  }
  return { reach, x: Int32Array.from(x), y: Int32Array.from(y), k: Uint8Array.from(k) }
}

export class Painter {
  constructor(width, height) {
    this.image = new ImageData(width, height)
    this.out = new Uint32Array(this.image.data.buffer)
  }

  clear() { this.out.fill(0xffffffff) }

  // Paints the points that `lut` (by code) gives a colour to; -1 in `lut` leaves one out. `picks` tells which: all where it is null.
  points(xy, order, { scale, ox, oy }, shape, codes, lut, chosen, picks) {
    const { out, image: { width, height } } = this, { reach, x, y, k } = shape, m = k.length, at = new Int32Array(m)
    for (let j = 0; j < m; j++) at[j] = y[j] * width + x[j]
    const right = width - reach, low = height - reach
    for (let o = 0; o < order.length; o++) {
      const i = order[o]
      if (picks !== null && chosen[i] !== picks) continue
      const colour = lut[codes[i]]
      if (colour < 0) continue
      const px = Math.round(ox + scale * xy[2 * i]), py = Math.round(oy - scale * xy[2 * i + 1])
      if (px >= reach && px < right && py >= reach && py < low) {
        const middle = py * width + px
        for (let j = 0; j < m; j++) { const q = middle + at[j], c = k[j]; out[q] = c === 4 ? OPAQUE | colour << 2 : OPAQUE | colour * c + (out[q] >>> 2 & SIXTHS) * (4 - c) }
      } else if (px > -reach && px < width + reach && py > -reach && py < height + reach) {
        for (let j = 0; j < m; j++) {
          const qx = px + x[j], qy = py + y[j], c = k[j]
          if (qx < 0 || qy < 0 || qx >= width || qy >= height) continue
          const q = qy * width + qx
          out[q] = OPAQUE | colour * c + (out[q] >>> 2 & SIXTHS) * (4 - c)
        }
      }
    }
  }
}

// An order that mixes the points, so that no group lies on top because its rows came last; the same every time.
export function shuffled(n) {
  const order = Uint32Array.from({ length: n }, (_, i) => i)
  let state = 12345
  for (let i = n - 1; i > 0; i--) {
    state = Math.imul(state, 1664525) + 1013904223 >>> 0
    const j = Math.floor(state / 4294967296 * (i + 1)), kept = order[i]
    order[i] = order[j]; order[j] = kept
  }
  return order
}
