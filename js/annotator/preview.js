// "The same tissue as here": how like the token under the cursor every other is, computed in the browser from
// the ROI's tokens (int8, one scale for all components).

export class Preview {
  constructor({ rows, columns, cell }, tokens) {
    Object.assign(this, { rows, columns, cell, tokens: new Int8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength) })
    this.dim = this.tokens.length / (rows * columns)
    this.norms = new Float32Array(rows * columns)
    for (let i = 0, k = 0; i < this.norms.length; i++) { let s = 0; for (let d = 0; d < this.dim; d++, k++) s += this.tokens[k] ** 2; this.norms[i] = Math.sqrt(s) || 1 }
    this.canvas = Object.assign(document.createElement('canvas'), { width: columns, height: rows })
    this.context = this.canvas.getContext('2d')
    this.image = this.context.createImageData(columns, rows)
    this.out = new Uint32Array(this.image.data.buffer)
  }

  // Renews the canvas for a place in image pixels; false where it is outside or the same token as before.
  at([x, y]) {
    const column = Math.floor(x / this.cell), row = Math.floor(y / this.cell)
    if (column < 0 || row < 0 || column >= this.columns || row >= this.rows) return false
    const here = row * this.columns + column
    if (here === this.here) return false
    this.here = here
    const { tokens, dim, norms, out } = this, own = Float32Array.from(tokens.subarray(here * dim, (here + 1) * dim)), norm = norms[here]
    for (let i = 0, k = 0; i < norms.length; i++) {
      let s = 0
      for (let d = 0; d < dim; d++, k++) s += tokens[k] * own[d]
      const alike = s / (norms[i] * norm), strength = Math.max(0, Math.min(1, (alike - 0.5) * 2))
      out[i] = (Math.round(200 * strength) << 24 | 0xF4 << 16 | 0xE0 << 8 | 0x32) >>> 0  // turquoise, no class's colour
    }
    this.context.putImageData(this.image, 0, 0)
    return true
  }
}
