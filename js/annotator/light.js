// Gain and gamma of each channel, as an SVG filter on the picture: display only.
import { el, slider } from './parts.js'

const CHANNELS = ['red', 'green', 'blue'], MOST = 6

export class Light {
  constructor(root, apply) {
    const id = 'bh-light-' + Math.random().toString(36).slice(2), holder = el('div')
    holder.innerHTML = `<svg width="0" height="0" style="position:absolute"><filter id="${id}" color-interpolation-filters="sRGB"><feComponentTransfer>${['R', 'G', 'B'].map(c => `<feFunc${c} type="gamma" amplitude="1" exponent="1" offset="0"/>`).join('')}</feComponentTransfer></filter></svg>`
    root.append(holder)
    this.url = `url(#${id})`; this.apply = apply
    const changed = () => this.renew()
    this.channels = CHANNELS.map((name, i) => ({
      shown: el('input', { type: 'checkbox', title: `Show ${name}`, onchange: changed }), function: holder.querySelectorAll('feComponentTransfer > *')[i],
      gain: slider('gain', `Gain of ${name}`, 0.2, MOST, 0.05, 1, changed), gamma: slider('γ', `Gamma of ${name}`, 0.3, 3, 0.05, 1, changed) }))
    this.box = el('details', { className: 'bh-light' }, el('summary', { textContent: 'Light (display only)' }),
      this.channels.map((c, i) => el('div', { className: 'bh-channel' }, el('label', {}, c.shown, CHANNELS[i]), c.gain, c.gamma)))
    this.open(false)
  }

  // A new picture: all channels as bright as Python says.
  open(offered, gain = 1) {
    this.box.hidden = !offered
    for (const c of this.channels) { c.shown.checked = true; c.gain.lastChild.value = offered ? gain : 1; c.gamma.lastChild.value = 1 }
    this.renew()
  }

  renew() {
    let plain = true
    for (const c of this.channels) {
      const gain = c.shown.checked ? +c.gain.lastChild.value : 0, exponent = 1 / c.gamma.lastChild.value
      c.function.setAttribute('amplitude', gain ** exponent); c.function.setAttribute('exponent', exponent)  // gain first, then gamma
      plain &&= gain === 1 && exponent === 1
    }
    this.apply(plain ? '' : this.url)
  }
}
