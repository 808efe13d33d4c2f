// Buttons, classes, read-out and keys. Every verb of the keyboard is a button too.

export const TOOLS = [
  ['pan', 'Pan', 'V', 'Move the picture (any tool: right button, middle button or Alt)'],
  ['brush', 'Brush', 'B', 'Paint the chosen class'],
  ['erase', 'Erase', 'E', 'Paint background'],
  ['wand', 'Wand', 'W', 'Fill what looks like the place under the cursor'],
  ['polygon', 'Polygon', 'P', 'Click corners; double click or Enter ends; Shift+click begins a hole; Escape drops it'],
  ['suggest', 'Suggest', 'S', 'Click or scribble on a tissue: the program proposes where it goes on'],
  ['accept', 'Accept piece', 'T', 'Click a proposed piece to take it'],
  ['reject', 'Reject piece', 'R', 'Click a proposed piece to refuse it'],
  ['point', 'Cell', 'O', 'Mark a cell; click it again to remove it'],
  ['line', 'Surface', 'L', 'Draw a line along a surface; double click or Enter ends it'],
]

const el = (tag, facts = {}, ...children) => {
  const e = Object.assign(document.createElement(tag), facts)
  for (const c of children.flat()) if (c != null) e.append(c)
  return e
}

export class Panel {
  constructor(session, view, pointer, root, side) {
    Object.assign(this, { session, view, pointer, root })
    const button = (text, title, act, facts = {}) => el('button', { type: 'button', textContent: text, title, onclick: () => { act(); root.focus({ preventScroll: true }) }, ...facts })
    this.tools = new Map(TOOLS.map(([name, text, keyName, title]) => [name, button(text, `${title} (${keyName})`, () => this.choose(name))]))
    this.classes = el('div', { className: 'bh-list' })
    this.cell = el('select', { title: 'Which cell a click marks', onchange: e => { session.cell = e.target.value } })
    this.surface = el('select', { title: 'Which surface a line marks', onchange: e => { session.surface = e.target.value } })
    const slider = (label, title, min, max, step, value, act) => el('label', { title }, el('span', { textContent: label }), el('input', { type: 'range', min, max, step, value, oninput: e => act(+e.target.value) }))
    this.size = slider('Brush', 'Brush radius in screen pixels ([ and ])', 1, 120, 1, session.size, v => { session.size = v })
    this.gains = { red: [1, 1], green: [1, 1], blue: [1, 1] }
    this.light = el('details', { className: 'bh-light' }, el('summary', { textContent: 'Light (display only)' }),
      ['red', 'green', 'blue'].map(c => el('fieldset', {}, el('legend', { textContent: c }),
        el('label', {}, el('input', { type: 'checkbox', checked: true, onchange: e => { this.gains[c][2] = !e.target.checked; this.dim() } }), ' shown'),
        slider('gain', `Gain of ${c}`, 0.2, 5, 0.05, 1, v => { this.gains[c][0] = v; this.dim() }),
        slider('gamma', `Gamma of ${c}`, 0.3, 3, 0.05, 1, v => { this.gains[c][1] = v; this.dim() }))))
    this.readout = el('table', { className: 'bh-readout' })
    this.message = el('div', { className: 'bh-message', role: 'status' })
    this.state = el('div', { className: 'bh-state' })
    this.undo = button('Undo', 'Take back the last step (Z)', () => session.undo()); this.redo = button('Redo', 'Do it again (Shift+Z)', () => session.redo())
    this.bar = el('div', { className: 'bh-bar' }, [...this.tools.values()],
      this.undo, this.redo, button('Fit', 'Whole picture (F)', () => view.fit()), button('+', 'Zoom in (+)', () => view.zoom(1.4)), button('−', 'Zoom out (-)', () => view.zoom(1 / 1.4)))
    side.append(...[this.state, this.classes,
      this.size,
      slider('Opacity', 'Of the classes over the picture', 0, 1, 0.05, session.opacity, v => { session.opacity = v; session.tell('look') }),
      slider('Wand', 'How unlike a pixel may be and still belong', 0.5, 8, 0.25, session.tolerance, v => { session.tolerance = v }),
      el('div', { className: 'bh-row' }, button('Hide', 'Hide the classes; they stay hidden while the key is held (H)', () => this.hide(!session.hidden)), button('Same tissue', 'Show what is like the place under the cursor (D)', () => this.compare(), { className: 'bh-compare' })),
      el('div', { className: 'bh-row' }, button('Model’s proposal', 'What the trained head draws here (M)', () => session.head()), button('Whole ROI', 'Suggest for the whole ROI from your clicks (U)', () => session.whole())),
      el('div', { className: 'bh-row' }, button('Accept all', 'Take the whole proposal (A)', () => session.decide('accept')), button('Reject all', 'Refuse the whole proposal (X)', () => session.decide('reject'))),
      el('div', { className: 'bh-row' }, this.cell, button('Find similar', 'Propose more cells that look like those marked (G)', () => session.similar(session.cell))),
      el('div', { className: 'bh-row' }, this.surface),
      this.light, this.readout,
      el('div', { className: 'bh-row' }, button('Done', 'This ROI is finished: save it as a mask', () => session.ask('done')), button('Next ROI', 'The next one of the queue (Space)', () => session.ask('next')))])
    this.filters = this.makeFilters()
    this.choose(session.tool)
    root.addEventListener('keydown', e => this.key(e)); root.addEventListener('keyup', e => { if (e.key.toLowerCase() === 'h') this.hide(false) })
  }

  open() {
    const { session } = this, options = (select, names, set) => { select.replaceChildren(...names.map(n => el('option', { value: n, textContent: n }))); set(names[0]); select.hidden = !names.length }
    options(this.cell, session.roi.cells, n => { session.cell = n }); options(this.surface, session.roi.surfaces, n => { session.surface = n })
    this.rows = new Map(session.classes.map(c => {
      const lock = el('input', { type: 'checkbox', title: `Lock ${c.name}: nothing paints over it`, checked: session.locked.has(c.id), onchange: e => { e.target.checked ? session.locked.add(c.id) : session.locked.delete(c.id); this.root.focus() } })
      const area = el('span', { className: 'bh-area' }), swatch = el('span', { className: 'bh-swatch' })
      swatch.style.background = c.colour
      const row = el('div', { className: 'bh-class', title: `${c.name} (key ${c.id || 0})`, onclick: e => { if (e.target !== lock) { this.take(c.id); this.root.focus() } } }, swatch, el('kbd', { textContent: c.id }), el('span', { textContent: c.name, className: 'bh-name' }), area, el('label', { className: 'bh-lock', title: `Lock ${c.name}` }, lock, 'lock'))
      return [c.id, { row, area }]
    }))
    this.classes.replaceChildren(...[...this.rows.values()].map(r => r.row))
    this.light.hidden = session.roi.domain !== 'fluorescence'
    this.state.textContent = `${session.roi.name} · ${session.roi.domain}${session.roi.subject ? ' · ' + session.roi.subject : ''}${session.roi.readonly ? ' · read only' : ''}`
    this.take(session.cls); this.areas(); this.lengths()
    if (session.roi.readonly) this.say(session.roi.why, 'warn')
  }

  choose(tool) {
    this.session.tool = tool; this.pointer.drop()
    for (const [name, b] of this.tools) b.classList.toggle('bh-on', name === tool)
    this.view.stage.dataset.tool = tool
    this.view.viewer.setMouseNavEnabled(true)
  }

  take(cls) {
    if (!this.rows?.has(cls)) return
    this.session.cls = cls
    for (const [id, { row }] of this.rows) row.classList.toggle('bh-on', id === cls)
  }

  compare() {
    const { session } = this
    session.previewing = !session.previewing
    if (session.previewing && !session.preview) this.say('The tokens of this ROI are still being computed.')
    this.root.querySelector('.bh-compare').classList.toggle('bh-on', session.previewing)
    session.tell('look')
  }

  hide(hidden) { this.session.hidden = hidden; this.session.tell('look') }

  areas() {
    const { mask, roi } = this.session, total = mask.data.length, um = roi.pixel_size_um
    for (const [id, { area }] of this.rows) {
      const n = mask.counts[id], share = `${(100 * n / total).toFixed(1)} %`
      area.textContent = um ? `${share} · ${(n * um * um / 1e6).toFixed(4)} mm²` : share
    }
  }

  lengths() {
    const rows = this.session.readout ?? []
    this.readout.replaceChildren(...rows.map(([name, value]) => el('tr', {}, el('td', { textContent: name }), el('td', { textContent: value }))))
  }

  history() { this.undo.disabled = !this.session.done.length && !this.session.roi.earlier; this.redo.disabled = !this.session.undone.length && !this.session.roi.later }

  say(text, level = 'info') { this.message.textContent = text; this.message.className = `bh-message bh-${level}` }

  silence(unsaved) {
    if (!unsaved) { if (this.silent) this.say('Saved again.'); this.silent = false; return }
    this.silent = true
    this.say(`Not saved: ${unsaved} step${unsaved > 1 ? 's' : ''} wait for Python, which does not answer. What was confirmed before is on disk. `, 'error')
    this.message.append(el('button', { type: 'button', textContent: 'Send again', onclick: () => this.session.link.again() }))
  }

  makeFilters() {  // gain and gamma of the picture as an SVG filter: display only
    const id = 'bh-light-' + Math.random().toString(36).slice(2), holder = document.createElement('div')
    holder.innerHTML = `<svg width="0" height="0" style="position:absolute"><filter id="${id}" color-interpolation-filters="sRGB"><feComponentTransfer>${['R', 'G', 'B'].map(c => `<feFunc${c} type="gamma" amplitude="1" exponent="1" offset="0"/>`).join('')}</feComponentTransfer></filter></svg>`
    this.root.append(holder)
    this.filterId = id
    return [...holder.querySelectorAll('feComponentTransfer > *')]
  }

  dim() {
    Object.values(this.gains).forEach(([gain, gamma, off], i) => { this.filters[i].setAttribute('amplitude', off ? 0 : gain); this.filters[i].setAttribute('exponent', 1 / gamma) })
    const plain = Object.values(this.gains).every(([g, m, off]) => g === 1 && m === 1 && !off)
    this.view.filter(plain ? '' : `url(#${this.filterId})`)
  }

  key(e) {
    if (e.target.tagName === 'INPUT' && e.target.type !== 'checkbox' && e.target.type !== 'range' || e.target.tagName === 'SELECT') return
    const { session, view } = this, k = e.key.toLowerCase(), tool = TOOLS.find(t => t[2].toLowerCase() === k)
    if (e.ctrlKey || e.metaKey) { if (k === 'z') { e.shiftKey ? session.redo() : session.undo() } else return }
    else if (k === 'z') e.shiftKey ? session.redo() : session.undo()
    else if (/^[0-9]$/.test(k)) this.take(+k)
    else if (tool) this.choose(tool[0])
    else if (k === 'a') session.decide('accept')
    else if (k === 'x') session.decide('reject')
    else if (k === 'm') session.head()
    else if (k === 'u') session.whole()
    else if (k === 'g') session.similar(session.cell)
    else if (k === 'h') this.hide(true)
    else if (k === 'd') this.compare()
    else if (k === 'f') view.fit()
    else if (k === ' ') session.ask('next')
    else if (k === 'enter') this.pointer.close()
    else if (k === 'escape') { this.pointer.drop(); if (session.proposes) session.withdraw() }
    else if (k === '[' || k === ']') { session.size = Math.max(1, Math.min(120, session.size + (k === ']' ? 2 : -2))); this.size.querySelector('input').value = session.size; if (this.pointer.last) view.circle(this.pointer.last) }
    else if (k === '+' || k === '=') view.zoom(1.4)
    else if (k === '-') view.zoom(1 / 1.4)
    else if (k.startsWith('arrow')) view.pan({ arrowleft: -80, arrowright: 80 }[k] ?? 0, { arrowup: -80, arrowdown: 80 }[k] ?? 0)
    else return
    e.preventDefault(); e.stopPropagation()
  }
}
