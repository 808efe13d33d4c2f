// Grows from the pixel under the cursor over what looks like it, in a window of the picture as it is drawn:
// the cost hangs on the window, not on the image.

export const WINDOW = 149  // screen pixels on a side

const EDGE = 8  // what smoothing takes off the rim of a piece, in steps to a neighbour

// `pixels` (ImageData of the window), its centre the seed. Returns Uint8Array (window), 1 in the piece under the cursor.
export function grow(pixels, tolerance) {
  const { width: w, height: h, data } = pixels, seed = (h >> 1) * w + (w >> 1)
  const [red, green, blue] = [0, 1, 2].map(c => blur(data, c, w, h)), [mean, spread] = around([red, green, blue], w, h, seed)
  const limit = (tolerance * Math.min(24, Math.max(4, spread))) ** 2, [r, g, b] = mean
  const inside = new Uint8Array(w * h), stack = new Int32Array(w * h)  // every pixel comes onto the stack once at most
  let n = 0
  const look = i => {
    if (inside[i] || !data[4 * i + 3] || (red[i] - r) ** 2 + (green[i] - g) ** 2 + (blue[i] - b) ** 2 > limit) return
    inside[i] = 1; stack[n++] = i
  }
  inside[seed] = 1; stack[n++] = seed
  while (n) {
    const i = stack[--n], x = i % w
    if (x > 0) look(i - 1)
    if (x + 1 < w) look(i + 1)
    if (i >= w) look(i - w)
    if (i + w < w * h) look(i + w)
  }
  // The smoothed colour is mixed along the rim: there the pixel's own decides.
  const next = i => { const x = i % w; return [x > 0 ? i - 1 : -1, x + 1 < w ? i + 1 : -1, i - w, i + w < w * h ? i + w : -1].filter(j => j >= 0) }
  const alike = i => (data[4 * i] - r) ** 2 + (data[4 * i + 1] - g) ** 2 + (data[4 * i + 2] - b) ** 2 <= limit
  let rim = []
  for (let i = 0; i < inside.length; i++) if (inside[i]) {
    const x = i % w
    if (x > 0 && !inside[i - 1]) rim.push(i - 1)
    if (x + 1 < w && !inside[i + 1]) rim.push(i + 1)
    if (i >= w && !inside[i - w]) rim.push(i - w)
    if (i + w < w * h && !inside[i + w]) rim.push(i + w)
  }
  for (let step = 0; step < EDGE && rim.length; step++) {
    const found = rim.filter(i => !inside[i] && data[4 * i + 3] && alike(i) && (inside[i] = 1))
    rim = found.flatMap(next)
  }
  return inside
}

// Columns and rows, [first, last + 1], that a piece of the window takes up.
export function spans(inside) {
  let left = WINDOW, right = 0, top = WINDOW, bottom = 0
  for (let y = 0, i = 0; y < WINDOW; y++) for (let x = 0; x < WINDOW; x++, i++) if (inside[i]) {
    if (x < left) left = x
    if (x >= right) right = x + 1
    if (y < top) top = y
    bottom = y + 1
  }
  return [[left, right], [top, bottom]]
}

// One channel, twice a box of 5x5 by running sums; beyond the rim the rim goes on.
function blur(data, channel, w, h) {
  let from = new Float32Array(w * h)
  for (let i = 0; i < w * h; i++) from[i] = data[4 * i + channel]
  for (const [n, lines, step, next] of [[w, h, 1, w], [h, w, w, 1], [w, h, 1, w], [h, w, w, 1]]) {
    const to = new Float32Array(from.length), last = n - 1
    for (let line = 0; line < lines; line++) {
      const o = line * next
      let sum = 3 * from[o] + from[o + step * Math.min(1, last)] + from[o + step * Math.min(2, last)]
      for (let i = 0; i < n; i++) {
        to[o + step * i] = sum / 5
        sum += from[o + step * (i + 3 < last ? i + 3 : last)] - from[o + step * (i > 2 ? i - 2 : 0)]
      }
    }
    from = to
  }
  return from
}

function around(channels, w, h, seed) {  // mean colour and spread of the 5x5 about the seed
  const sx = seed % w, sy = (seed - sx) / w, sum = [0, 0, 0]
  let squares = 0, n = 0
  for (let y = Math.max(0, sy - 2); y <= Math.min(h - 1, sy + 2); y++) for (let x = Math.max(0, sx - 2); x <= Math.min(w - 1, sx + 2); x++, n++)
    channels.forEach((plane, c) => { const v = plane[y * w + x]; sum[c] += v; squares += v * v })
  const mean = sum.map(v => v / n)
  return [mean, Math.sqrt(Math.max(0, squares / n - mean.reduce((a, m) => a + m * m, 0)))]
}
