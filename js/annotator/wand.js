// Grows from the pixel under the cursor over what looks like it, in a window of the picture as it is drawn:
// the cost hangs on the window, not on the image.

export const WINDOW = 257  // screen pixels on a side

const EDGE = 8  // what smoothing takes off the rim of a piece, in steps to a neighbour

// `pixels` (ImageData of the window), its centre the seed. Returns Uint8Array (window), 1 in the piece under the cursor.
export function grow(pixels, tolerance) {
  const { width: w, height: h, data } = pixels, smooth = blur(data, w, h), seed = (h >> 1) * w + (w >> 1)
  const [mean, spread] = around(smooth, w, h, seed), limit = tolerance * Math.min(24, Math.max(4, spread))
  const inside = new Uint8Array(w * h), stack = [seed]
  const near = (r, g, b) => Math.hypot(r - mean[0], g - mean[1], b - mean[2]) <= limit, alike = i => near(smooth[3 * i], smooth[3 * i + 1], smooth[3 * i + 2])
  const next = i => { const x = i % w; return [x > 0 ? i - 1 : -1, x + 1 < w ? i + 1 : -1, i - w, i + w < w * h ? i + w : -1].filter(j => j >= 0) }
  while (stack.length) {
    const i = stack.pop()
    if (inside[i] || !data[4 * i + 3] || !alike(i)) continue
    inside[i] = 1
    stack.push(...next(i))
  }
  inside[seed] = 1
  // The smoothed colour is mixed along the rim: there the pixel's own decides.
  let rim = []
  for (let i = 0; i < inside.length; i++) if (inside[i]) for (const j of next(i)) if (!inside[j]) rim.push(j)
  for (let step = 0; step < EDGE && rim.length; step++) {
    const found = rim.filter(i => !inside[i] && data[4 * i + 3] && near(data[4 * i], data[4 * i + 1], data[4 * i + 2]) && (inside[i] = 1))
    rim = found.flatMap(next)
  }
  return inside
}

function blur(data, w, h) {  // twice a box of 5x5, by running sums
  let from = new Float32Array(w * h * 3)
  for (let i = 0; i < w * h; i++) for (let c = 0; c < 3; c++) from[3 * i + c] = data[4 * i + c]
  for (const [n, lines, step, next] of [[w, h, 3, 3 * w], [h, w, 3 * w, 3], [w, h, 3, 3 * w], [h, w, 3 * w, 3]]) {
    const to = new Float32Array(from.length)
    for (let line = 0; line < lines; line++) for (let c = 0; c < 3; c++) {
      const at = i => from[line * next + step * Math.max(0, Math.min(n - 1, i)) + c]
      let sum = at(-2) + at(-1) + at(0) + at(1) + at(2)
      for (let i = 0; i < n; i++) { to[line * next + step * i + c] = sum / 5; sum += at(i + 3) - at(i - 2) }
    }
    from = to
  }
  return from
}

function around(smooth, w, h, seed) {  // mean colour and spread of the 5x5 about the seed
  const sx = seed % w, sy = (seed - sx) / w, sum = [0, 0, 0]
  let squares = 0, n = 0
  for (let y = Math.max(0, sy - 2); y <= Math.min(h - 1, sy + 2); y++) for (let x = Math.max(0, sx - 2); x <= Math.min(w - 1, sx + 2); x++, n++)
    for (let c = 0; c < 3; c++) { const v = smooth[3 * (y * w + x) + c]; sum[c] += v; squares += v * v }
  const mean = sum.map(v => v / n)
  return [mean, Math.sqrt(Math.max(0, squares / n - mean.reduce((a, m) => a + m * m, 0)))]
}
