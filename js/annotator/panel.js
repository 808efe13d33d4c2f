// Buttons, classes, read-out and keys. Every verb of the keyboard is a button too.
import { Light } from './light.js'
import { UNLABELLED } from './mask.js'
import { el, slider } from './parts.js'

export const TOOLS = [
  ['pan', 'Pan', 'V', 'Move the picture (any tool: right button, middle button or Alt)'],
  ['brush', 'Brush', 'B', 'Paint the chosen class'],
  ['erase', 'Erase', 'E', 'Paint background'],
  ['wand', 'Wand', 'W', 'Fill what looks like the place under the cursor'],
  ['polygon', 'Polygon', 'P', 'Click corners; double click or Enter ends; Shift+click begins a hole; Z takes a corner back, Escape drops it'],
  ['suggest', 'Suggest', 'S', 'Click or scribble on a tissue: the program proposes where it goes on'],
  ['accept', 'Accept piece', 'T', 'Click a proposed piece to take it'],
  ['reject', 'Reject piece', 'R', 'Click a proposed piece to refuse it'],
  ['point', 'Cell', 'O', 'Mark a cell; click it again to remove it'],
  ['line', 'Surface', 'L', 'Draw a line along a surface; double click or Enter ends it; Z takes a corner back, Escape drops it'],
]

const keyOf = id => id === UNLABELLED ? 'N' : id < 10 ? String(id) : ''

export class Panel {
  constructor(session, view, pointer, root, side) {
    Object.assign(this, { session, view, pointer, root })
    const button = (text, title, act, facts = {}) => el('button', { type: 'button', textContent: text, title, onclick: () => { act(); root.focus({ preventScroll: true }) }, ...facts })
    const group = (...parts) => el('div', { className: 'bh-group' }, parts), row = (...parts) => el('div', { className: 'bh-row' }, parts)
    this.tools = new Map(TOOLS.map(([name, text, keyName, title]) => [name, button(text, `${title} (${keyName})`, () => this.choose(name))]))
    this.classes = el('div', { className: 'bh-list' }); this.marks = el('div', { className: 'bh-list' })
    this.cell = el('select', { title: 'Which cell a click marks', onchange: e => { session.cell = e.target.value } })
    this.surface = el('select', { title: 'Which surface a line marks', onchange: e => { session.surface = e.target.value } })
    this.size = slider('Brush', 'Brush radius in screen pixels ([ and ])', 1, 120, 1, session.size, size => session.choose({ size }))
    this.opacity = slider('Opacity', 'Of the classes over the picture', 0, 1, 0.05, session.opacity, opacity => { session.choose({ opacity }); session.tell('look') })
    this.light = new Light(root, text => view.filter(text))
    this.readout = el('table', { className: 'bh-readout' })
    this.message = el('div', { className: 'bh-message', role: 'status' })
    this.state = el('div', { className: 'bh-state' })
    this.undo = button('Undo', 'Take back the last step (Z)', () => this.takeBack()); this.redo = button('Redo', 'Do it again (Shift+Z)', () => session.redo())
    this.same = button('Same tissue', 'Show what is like the place under the cursor (D)', () => this.compare())
    this.offers = {  // what a ROI may come without
      suggest: this.tools.get('suggest'), tokens: this.same, proposal: button('From model', 'What the trained head draws here (M)', () => session.head()),
      whole: button('Whole ROI', 'Suggest for the whole ROI from your clicks (U)', () => session.whole()), similar: button('Find similar', 'Propose more cells that look like those marked (G)', () => session.similar(session.cell)),
    }
    this.bar = el('div', { className: 'bh-bar' }, group(...this.tools.values()), group(this.undo, this.redo),
      el('div', { className: 'bh-group bh-look' }, button('Fit', 'Whole picture (F)', () => view.fit()), button('+', 'Zoom in (+)', () => view.zoom(1.4)), button('−', 'Zoom out (-)', () => view.zoom(1 / 1.4))),
      el('div', { className: 'bh-group bh-end' }, button('Done', 'This ROI is finished: save it as a mask', () => session.leave('done')), button('Next ROI', 'The next one of the queue (Space)', () => session.leave('next'))))
    this.settings = new Map([  // of one tool
      [this.size, ['brush', 'erase']], [slider('Wand', 'How unlike a pixel may be and still belong', 0.5, 8, 0.25, session.tolerance, tolerance => { session.tolerance = tolerance }), ['wand']],
      [row(this.cell, this.offers.similar), ['point']], [row(this.surface), ['line']]])
    side.append(this.state, this.classes, this.marks, ...this.settings.keys(), this.opacity,
      row(button('Hide', 'Hide the classes; they stay hidden while the key is held (H)', () => this.hide(!session.hidden)), this.same),
      el('div', { className: 'bh-part', textContent: 'Proposal' }),
      row(this.offers.proposal, this.offers.whole), row(button('Accept all', 'Take the whole proposal (A)', () => session.decide('accept')), button('Reject all', 'Refuse the whole proposal (X)', () => session.decide('reject'))),
      this.light.box, this.readout)
    this.chosen()
    root.addEventListener('keydown', e => this.key(e)); root.addEventListener('keyup', e => { if (e.key.toLowerCase() === 'h') this.hide(false) })
    root.addEventListener('focusout', e => { if (session.hidden && this.held && !root.contains(e.relatedTarget)) this.hide(false) })
  }

  open(anew) {
    const { session } = this, { roi } = session, options = (select, names, kept) => { select.replaceChildren(...names.map(n => el('option', { value: n, textContent: n, selected: n === kept }))); return names.includes(kept) ? kept : names[0] }
    session.cell = options(this.cell, roi.cells, session.cell); session.surface = options(this.surface, roi.surfaces, session.surface)
    this.rows = new Map(session.classes.map(c => {
      const lock = el('input', { type: 'checkbox', className: 'bh-lock', title: `Lock ${c.name}: nothing paints over it`, onchange: e => { session.locked[e.target.checked ? 'add' : 'delete'](c.id); session.tell('chosen'); this.root.focus({ preventScroll: true }) } })
      const area = el('span', { className: 'bh-area' }), swatch = el('span', { className: 'bh-swatch' })
      if (c.id === UNLABELLED) swatch.classList.add('bh-hatched'); else swatch.style.background = c.colour
      const row = el('div', { className: 'bh-class', title: c.name + (keyOf(c.id) && ` (${keyOf(c.id)})`), onclick: e => { if (e.target !== lock) { this.take(c.id); this.root.focus({ preventScroll: true }) } } }, swatch, el('kbd', { textContent: keyOf(c.id) }), el('span', { textContent: c.name, className: 'bh-name' }), area, lock)
      return [c.id, { row, area, lock, name: c.name }]
    }))
    this.classes.replaceChildren(...[...this.rows.values()].map(r => r.row))
    for (const [name, button] of Object.entries(this.offers)) button.disabled = !roi.offers.includes(name)
    this.state.textContent = `${roi.name} · ${roi.domain}${roi.subject && roi.subject !== roi.name ? ' · ' + roi.subject : ''}${roi.readonly ? ' · read only' : ''}`
    if (anew) { this.ill = ''; this.light.open(roi.domain === 'fluorescence', roi.gain); this.say('') }
    this.chosen(); this.areas(); this.lengths(); this.legend()
    if (roi.readonly && !this.root.classList.contains('bh-compact')) this.say(roi.why, 'warn')
  }

  choose(tool) { this.pointer.drop(); this.session.choose({ tool }) }
  take(cls) { if (this.rows?.has(cls)) this.session.choose({ cls }) }

  chosen() {  // as the session has it, also where another view chose
    const { session } = this
    for (const [name, b] of this.tools) b.classList.toggle('bh-on', name === session.tool)
    for (const [part, tools] of this.settings) part.hidden = !tools.includes(session.tool)
    for (const [id, { row, lock }] of this.rows ?? []) { row.classList.toggle('bh-on', id === session.cls); lock.checked = session.locked.has(id) }
    this.size.lastChild.value = session.size; this.opacity.lastChild.value = session.opacity
    this.same.classList.toggle('bh-on', session.previewing)
    this.view.stage.dataset.tool = session.tool
    if (this.pointer.last) this.view.circle(this.pointer.last)
  }

  compare() {
    const { session } = this
    if (!session.previewing && !session.preview) { this.say(session.roi?.offers.includes('tokens') ? 'The tokens of this ROI are still being computed.' : 'Comparing tissue needs a run: start with --run.'); return }
    session.choose({ previewing: !session.previewing })
    session.tell('look')
  }

  hide(hidden, held = false) { this.held = held; this.session.hidden = hidden; this.session.tell('look') }

  areas() {
    const { mask, roi } = this.session, total = mask.data.length, um = roi.pixel_size_um
    for (const [id, { row, area, name }] of this.rows) {
      const n = mask.counts[id]
      area.textContent = `${(100 * n / total).toFixed(1)} %`
      row.title = `${name}${keyOf(id) && ` (${keyOf(id)})`}: ${n.toLocaleString('en')} px${um ? `, ${(n * um * um / 1e6).toFixed(4)} mm²` : ''}`
    }
  }

  // What the points and lines of the picture are, and how many.
  legend() {
    const { points = [], lines = [], roi } = this.session, counts = new Map()
    for (const { cls } of [...points, ...lines]) counts.set(cls, (counts.get(cls) ?? 0) + 1)
    const swatch = name => { const e = el('span', { className: 'bh-swatch bh-round' }); e.style.background = roi.colours[name] ?? '#ffffff'; return e }
    this.marks.replaceChildren(...[...counts].map(([name, n]) => el('div', { className: 'bh-mark', title: `${n} on this ROI` }, swatch(name), el('span', { textContent: name }), el('span', { className: 'bh-area', textContent: String(n) }))))
    this.marks.hidden = !counts.size
  }

  lengths() {
    const rows = this.session.readout ?? []
    this.readout.replaceChildren(...rows.map(([name, value]) => el('tr', {}, el('td', { textContent: name }), el('td', { textContent: value }))))
  }

  history() { this.undo.disabled = !this.session.done.length && !this.session.roi.earlier; this.redo.disabled = !this.session.undone.length && !this.session.roi.later }

  // Messages

  say(text, level = 'info') {
    if (this.ill) return  // trouble stays in sight until it is over
    this.message.textContent = text; this.message.className = `bh-message bh-${text ? level : 'info'}`
  }

  proposed(found) {
    if (found.text) this.say(found.text)
    else if (this.session.proposes && !this.root.classList.contains('bh-compact')) this.say('Proposed: A takes it all, X refuses it all; T or R, then a click, decides on a piece.')
    else if (this.message.classList.contains('bh-wait')) this.say('')
  }

  trouble(unsaved, why) {
    const steps = unsaved > 1 ? `${unsaved} steps wait` : 'a step waits'
    const text = why ? `Not saved: ${why} (${steps})` : unsaved ? `Not saved: ${steps} for Python, which does not answer. What was confirmed before is on the disk.` : 'Python does not answer: it is busy or was stopped. All that you drew is saved.'
    if (this.ill && this.ill === text) return  // a button must not vanish under the pointer
    this.ill = ''
    this.say(text, 'error')
    if (unsaved) this.message.append(' ', el('button', { type: 'button', textContent: 'Send again', onclick: () => { this.sends(); this.session.link.again() } }))
    this.ill = text
  }

  sends() { this.ill = ''; this.say('Sending again ...', 'wait'); this.ill = 'again' }

  well(text = 'Python answers again. All that you drew is saved.') { if (this.ill) { this.ill = ''; this.say(text) } }

  // Keys

  key(e) {
    const { session, view, pointer } = this, k = e.key.toLowerCase(), { tagName, type } = e.target, size = '[]'.indexOf(k)
    if (tagName === 'SELECT' || tagName === 'INPUT' && type !== 'checkbox' && type !== 'range') return
    const plain = !(e.ctrlKey || e.metaKey || e.altKey) || size >= 0  // brackets need AltGr or Option on many keyboards
    if (plain) e.stopPropagation()  // no key of the picture is one of the notebook's
    if ((k === ' ' || k === 'enter') && ['BUTTON', 'SUMMARY', 'INPUT'].includes(tagName) || k.startsWith('arrow') && type === 'range') return
    const tool = plain && TOOLS.find(t => t[2].toLowerCase() === k)
    if (pointer.active && k !== 'h' && k !== 'escape') { if (plain) e.preventDefault(); return }  // a stroke is under way
    if (!plain) {
      if (e.altKey || k !== 'z' && k !== 'y') return
      k === 'y' || e.shiftKey ? session.redo() : this.takeBack()
    } else if (tool) this.choose(tool[0])
    else if (/^[0-9]$/.test(k)) this.take(+k)
    else if (size >= 0) session.choose({ size: Math.max(1, Math.min(120, session.size + [-2, 2][size])) })
    else if (k.startsWith('arrow')) view.pan({ arrowleft: -80, arrowright: 80 }[k] ?? 0, { arrowup: -80, arrowdown: 80 }[k] ?? 0)
    else {
      const act = {
        z: () => e.shiftKey ? session.redo() : this.takeBack(), backspace: () => pointer.shorten(), n: () => this.take(UNLABELLED), a: () => session.decide('accept'), x: () => session.decide('reject'),
        m: () => session.head(), u: () => session.whole(), g: () => session.similar(session.cell), h: () => this.hide(true, true), d: () => this.compare(), f: () => view.fit(),
        ' ': () => e.repeat || session.leave('next'), enter: () => pointer.close(), escape: () => this.escape(), '+': () => view.zoom(1.4), '=': () => view.zoom(1.4), '-': () => view.zoom(1 / 1.4),
      }[k]
      if (!act) return
      act()
    }
    e.preventDefault(); e.stopPropagation()
  }

  takeBack() { this.pointer.shorten() || this.session.undo() }  // a corner of what is being drawn, else a step

  escape() {  // first what is being drawn, then what is proposed
    const { session, pointer, view } = this
    if (pointer.active || view.draft) { pointer.drop(); return }
    if (session.proposes) session.withdraw()
    if (session.suggested?.length) { session.suggested = []; session.tell('marks') }
  }
}
