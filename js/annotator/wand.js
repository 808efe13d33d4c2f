// Grows from the pixel under the cursor over what looks like it, in a window of the picture as it is drawn:
// the cost hangs on the window, not on the image.

export const WINDOW = 257  // screen pixels on a side

// `pixels` (ImageData of the window), its centre the seed. Returns Uint8Array (window), 1 in the piece under the cursor.
export function grow(pixels, tolerance) {
  const { width: w, height: h, data } = pixels, smooth = blur(data, w, h), seed = (h >> 1) * w + (w >> 1)
  const [mean, spread] = around(smooth, w, h, seed), limit = Math.max(6, tolerance * spread)
  const inside = new Uint8Array(w * h), stack = [seed]
  const alike = i => Math.hypot(smooth[3 * i] - mean[0], smooth[3 * i + 1] - mean[1], smooth[3 * i + 2] - mean[2]) <= limit
  while (stack.length) {
    const i = stack.pop()
    if (inside[i] || !data[4 * i + 3] || !alike(i)) continue
    inside[i] = 1
    const x = i % w
    if (x > 0) stack.push(i - 1)
    if (x + 1 < w) stack.push(i + 1)
    if (i >= w) stack.push(i - w)
    if (i + w < w * h) stack.push(i + w)
  }
  inside[seed] = 1
  return inside
}

function blur(data, w, h) {  // box of 3x3
  const rows = new Float32Array(w * h * 3), out = new Float32Array(w * h * 3)
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const i = y * w + x, l = y * w + Math.max(0, x - 1), r = y * w + Math.min(w - 1, x + 1)
    for (let c = 0; c < 3; c++) rows[3 * i + c] = (data[4 * l + c] + data[4 * i + c] + data[4 * r + c]) / 3
  }
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const i = y * w + x, u = Math.max(0, y - 1) * w + x, d = Math.min(h - 1, y + 1) * w + x
    for (let c = 0; c < 3; c++) out[3 * i + c] = (rows[3 * u + c] + rows[3 * i + c] + rows[3 * d + c]) / 3
  }
  return out
}

function around(smooth, w, h, seed) {  // mean colour and spread of the 5x5 about the seed
  const sx = seed % w, sy = (seed - sx) / w, sum = [0, 0, 0]
  let squares = 0, n = 0
  for (let y = Math.max(0, sy - 2); y <= Math.min(h - 1, sy + 2); y++) for (let x = Math.max(0, sx - 2); x <= Math.min(w - 1, sx + 2); x++, n++)
    for (let c = 0; c < 3; c++) { const v = smooth[3 * (y * w + x) + c]; sum[c] += v; squares += v * v }
  const mean = sum.map(v => v / n)
  return [mean, Math.sqrt(Math.max(0, squares / n - mean.reduce((a, m) => a + m * m, 0)))]
}
